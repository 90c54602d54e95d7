-- Keys are small numbers, because every event carries its job's.
CREATE TABLE runs (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id BIGINT NOT NULL,
    run_attempt BIGINT NOT NULL,
    repository TEXT NOT NULL,
    organization TEXT NOT NULL,
    workflow TEXT NOT NULL,
    workflow_path TEXT NOT NULL,
    started_ms BIGINT NOT NULL,
    UNIQUE (repository, run_id, run_attempt)
);
CREATE INDEX runs_by_organization ON runs (organization, key);
CREATE INDEX runs_by_run_id ON runs (run_id);

CREATE TABLE jobs (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    run BIGINT NOT NULL REFERENCES runs (key),
    host_id TEXT NOT NULL,
    cluster TEXT NOT NULL,
    organization TEXT NOT NULL,
    repository TEXT NOT NULL,
    workflow_path TEXT NOT NULL,
    job_name TEXT NOT NULL,
    context TEXT NOT NULL,
    policy TEXT NOT NULL,
    policy_version TEXT NOT NULL,
    scope TEXT NOT NULL,
    target TEXT NOT NULL,
    identity TEXT NOT NULL,
    mode TEXT NOT NULL,
    started_ms BIGINT NOT NULL,
    ended_ms BIGINT,
    last_seq BIGINT NOT NULL,
    allowed BIGINT NOT NULL,
    blocked BIGINT NOT NULL,
    would_block BIGINT NOT NULL,
    detections BIGINT NOT NULL,
    posture TEXT,
    report TEXT
);
CREATE INDEX jobs_by_run ON jobs (run);
CREATE INDEX jobs_by_name ON jobs (repository, workflow_path, job_name, key);
CREATE INDEX jobs_by_organization ON jobs (organization, key);
CREATE INDEX jobs_by_cluster ON jobs (cluster, key);
CREATE INDEX jobs_by_start ON jobs (started_ms);

-- Clustered by job and number: a job's events are read together, and are never changed.
CREATE TABLE events (
    job BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    time_us BIGINT NOT NULL,
    kind SMALLINT NOT NULL,
    verdict SMALLINT,
    endpoint TEXT,
    process TEXT,
    step TEXT,
    body TEXT NOT NULL,
    PRIMARY KEY (job, seq)
) WITHOUT ROWID;

-- What a job's calls add up to; baselines are made of these, and they outlive the events.
CREATE TABLE destinations (
    job BIGINT NOT NULL,
    endpoint TEXT NOT NULL,
    verdict SMALLINT NOT NULL,
    process TEXT NOT NULL,
    calls BIGINT NOT NULL,
    first_us BIGINT NOT NULL,
    last_us BIGINT NOT NULL,
    PRIMARY KEY (job, endpoint, verdict, process)
) WITHOUT ROWID;

CREATE TABLE detections (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    job BIGINT NOT NULL REFERENCES jobs (key),
    seq BIGINT,
    kind TEXT NOT NULL,
    time_us BIGINT NOT NULL,
    evidence TEXT NOT NULL,
    is_lockdown BOOLEAN NOT NULL,
    process TEXT,
    endpoint TEXT,
    resolved_ms BIGINT,
    resolved_by TEXT
);
CREATE INDEX detections_by_job ON detections (job);
