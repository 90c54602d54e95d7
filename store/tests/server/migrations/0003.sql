-- What a server of version 3 wrote.
INSERT INTO runs (run_id, run_attempt, repository, organization, workflow, workflow_path, started_ms)
VALUES (7, 1, 'octo/hello', 'octo', 'CI', 'octo/hello/.github/workflows/ci.yml', 1767225600000);
INSERT INTO jobs (id, run, host_id, cluster, organization, repository, workflow_path, job_name, context, policy, policy_version,
    scope, target, identity, mode, started_ms, ended_ms, last_seq, allowed, blocked, would_block, detections, posture, report)
SELECT '0197aaaaaaaa7000800000000000000a', key, 'h1', 'prod', 'octo', 'octo/hello', 'octo/hello/.github/workflows/ci.yml', 'build', '{context}',
    'build', '2', 'repository', 'octo/hello', 'verified', 'block', 1767225600000, 1767225660000, 1, 2, 0, 0, 1, 'enforced', NULL
FROM runs WHERE run_id = 7;
INSERT INTO events (job, seq, time_us, kind, verdict, endpoint, process, step, body)
SELECT key, 1, 1767225601000000, 1, 0, 'github.com:443', '/usr/bin/curl', 'build', '{event}' FROM jobs;
INSERT INTO destinations (job, endpoint, verdict, process, calls, first_us, last_us)
SELECT key, 'github.com:443', 0, '/usr/bin/curl', 2, 1767225601000000, 1767225601000000 FROM jobs;
INSERT INTO detections (id, job, seq, kind, time_us, evidence, is_lockdown, process, endpoint, resolved_ms, resolved_by)
SELECT '0197aaaaaaaa7000800000000000000a-9', key, 9, 'Reverse-Shell', 1767225602000000, 'a shell', TRUE, '/bin/sh', NULL, NULL, NULL FROM jobs;
