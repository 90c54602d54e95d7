-- Baselines: what the calls of many runs add up to, kept while events come in, so that reading one costs as much as it has
-- endpoints, however many events there are.
CREATE TABLE baselines (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    -- 1 job, 2 repository, 3 organization, 4 cluster; the columns that do not name it are empty.
    source SMALLINT NOT NULL,
    cluster TEXT NOT NULL,
    organization TEXT NOT NULL,
    repository TEXT NOT NULL,
    workflow_path TEXT NOT NULL,
    job_name TEXT NOT NULL,
    UNIQUE (source, cluster, organization, repository, workflow_path, job_name)
);

CREATE TABLE baseline_endpoints (
    baseline BIGINT NOT NULL,
    endpoint TEXT NOT NULL,
    verdict SMALLINT NOT NULL,
    calls BIGINT NOT NULL,
    runs BIGINT NOT NULL,
    first_us BIGINT NOT NULL,
    last_us BIGINT NOT NULL,
    PRIMARY KEY (baseline, endpoint, verdict)
) WITHOUT ROWID;

-- How many endpoints a run brought that the baseline did not have; a run counts once a job of it has ended.
CREATE TABLE baseline_runs (
    baseline BIGINT NOT NULL,
    run BIGINT NOT NULL,
    added BIGINT NOT NULL,
    ended_ms BIGINT,
    PRIMARY KEY (baseline, run)
) WITHOUT ROWID;

ALTER TABLE jobs ADD COLUMN job_baseline BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN repository_baseline BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN organization_baseline BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN cluster_baseline BIGINT NOT NULL DEFAULT 0;
-- Endpoints of the job that went into its baselines, and new ones that were told: both are bounded, for a job can scan.
ALTER TABLE jobs ADD COLUMN learned BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN told BIGINT NOT NULL DEFAULT 0;

-- The address that a name led to last, for judging the call by another policy.
ALTER TABLE destinations ADD COLUMN address TEXT;

-- A job with each of its baselines.
CREATE VIEW job_baselines (job, run, ended_ms, baseline) AS
    SELECT key, run, ended_ms, job_baseline FROM jobs
    UNION ALL SELECT key, run, ended_ms, repository_baseline FROM jobs
    UNION ALL SELECT key, run, ended_ms, organization_baseline FROM jobs
    UNION ALL SELECT key, run, ended_ms, cluster_baseline FROM jobs;

-- What jobs did before this version.
INSERT INTO baselines (source, cluster, organization, repository, workflow_path, job_name)
    SELECT DISTINCT 1, '', organization, repository, workflow_path, job_name FROM jobs;
INSERT INTO baselines (source, cluster, organization, repository, workflow_path, job_name)
    SELECT DISTINCT 2, '', organization, repository, '', '' FROM jobs;
INSERT INTO baselines (source, cluster, organization, repository, workflow_path, job_name)
    SELECT DISTINCT 3, '', organization, '', '', '' FROM jobs;
INSERT INTO baselines (source, cluster, organization, repository, workflow_path, job_name)
    SELECT DISTINCT 4, cluster, '', '', '', '' FROM jobs;
UPDATE jobs SET
    job_baseline = (SELECT b.key FROM baselines b WHERE b.source = 1 AND b.cluster = '' AND b.organization = jobs.organization
        AND b.repository = jobs.repository AND b.workflow_path = jobs.workflow_path AND b.job_name = jobs.job_name),
    repository_baseline = (SELECT b.key FROM baselines b WHERE b.source = 2 AND b.cluster = '' AND b.organization = jobs.organization
        AND b.repository = jobs.repository AND b.workflow_path = '' AND b.job_name = ''),
    organization_baseline = (SELECT b.key FROM baselines b WHERE b.source = 3 AND b.cluster = '' AND b.organization = jobs.organization
        AND b.repository = '' AND b.workflow_path = '' AND b.job_name = ''),
    cluster_baseline = (SELECT b.key FROM baselines b WHERE b.source = 4 AND b.cluster = jobs.cluster AND b.organization = ''
        AND b.repository = '' AND b.workflow_path = '' AND b.job_name = '');
INSERT INTO baseline_endpoints (baseline, endpoint, verdict, calls, runs, first_us, last_us)
    SELECT j.baseline, d.endpoint, d.verdict, SUM(d.calls), COUNT(DISTINCT j.run), MIN(d.first_us), MAX(d.last_us)
    FROM destinations d JOIN job_baselines j ON j.job = d.job GROUP BY j.baseline, d.endpoint, d.verdict;
INSERT INTO baseline_runs (baseline, run, added, ended_ms)
    SELECT baseline, run, 0, MIN(ended_ms) FROM job_baselines GROUP BY baseline, run;
INSERT INTO baseline_runs (baseline, run, added)
    SELECT baseline, run, COUNT(*) FROM (
        SELECT j.baseline AS baseline, d.endpoint AS endpoint, MIN(j.run) AS run
        FROM destinations d JOIN job_baselines j ON j.job = d.job WHERE d.verdict <> 1 GROUP BY j.baseline, d.endpoint
    ) AS firsts WHERE run > 0 GROUP BY baseline, run
    ON CONFLICT (baseline, run) DO UPDATE SET added = excluded.added;

-- What is looked for within a job's events, and is rare among them.
CREATE INDEX events_not_allowed ON events (job, verdict, seq) WHERE verdict <> 0;
CREATE INDEX events_of_processes ON events (job, kind, seq) WHERE kind <> 1 AND kind <> 2;
CREATE INDEX runs_by_repository ON runs (repository, key);
CREATE INDEX jobs_by_repository ON jobs (repository, key);
CREATE INDEX jobs_by_policy ON jobs (policy, key);
