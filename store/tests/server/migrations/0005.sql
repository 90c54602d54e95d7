-- What a server of version 5 wrote: another run of the job, with what its baselines learned of it.
INSERT INTO runs (run_id, run_attempt, repository, organization, workflow, workflow_path, started_ms)
VALUES (8, 1, 'octo/hello', 'octo', 'CI', 'octo/hello/.github/workflows/ci.yml', 1767225700000);
INSERT INTO jobs (id, run, host_id, cluster, organization, repository, workflow_path, job_name, context, policy, policy_version,
    scope, target, identity, mode, started_ms, ended_ms, last_seq, allowed, blocked, would_block, detections, posture, report,
    told_calls, archived_seq, archived_record, job_baseline, repository_baseline, organization_baseline, cluster_baseline, learned, told)
SELECT '0197aaaaaaaa7000800000000000000b', r.key, 'h1', 'prod', 'octo', 'octo/hello', 'octo/hello/.github/workflows/ci.yml', 'build', '{context}',
    'build', '2', 'repository', 'octo/hello', 'verified', 'block', 1767225700000, 1767225760000, 1, 4, 0, 0, 0, 'enforced', NULL,
    1, 1, TRUE, j.job_baseline, j.repository_baseline, j.organization_baseline, j.cluster_baseline, 1, 0
FROM runs r, jobs j WHERE r.run_id = 8 AND j.id = '0197aaaaaaaa7000800000000000000a';
INSERT INTO destinations (job, endpoint, verdict, process, calls, first_us, last_us, address)
SELECT key, 'pypi.org:443', 0, '/usr/bin/pip', 4, 1767225710000000, 1767225720000000, '192.0.2.9' FROM jobs
WHERE id = '0197aaaaaaaa7000800000000000000b';
INSERT INTO baseline_endpoints (baseline, endpoint, verdict, calls, runs, first_us, last_us)
SELECT key, 'pypi.org:443', 0, 4, 1, 1767225710000000, 1767225720000000 FROM baselines;
INSERT INTO baseline_runs (baseline, run, added, ended_ms)
SELECT b.key, r.key, 1, 1767225760000 FROM baselines b, runs r WHERE r.run_id = 8;
