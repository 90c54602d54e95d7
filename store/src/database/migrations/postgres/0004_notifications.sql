-- Who is told what happened. Secrets (addresses, keys, headers) stand apart, so that what is shown can't have them.
CREATE TABLE integrations (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    settings TEXT NOT NULL,
    secrets TEXT NOT NULL,
    selection TEXT NOT NULL,
    enabled BOOLEAN NOT NULL,
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    updated_ms BIGINT NOT NULL
);

-- The outbox: written in the transaction of what it tells, emptied by whichever server holds a row's lease.
-- No foreign key: an integration that is deleted meanwhile must not make an upload fail.
CREATE TABLE deliveries (
    key BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    integration TEXT NOT NULL,
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    state TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    due_ms BIGINT NOT NULL,
    lease_ms BIGINT NOT NULL,
    holder TEXT,
    attempts BIGINT NOT NULL,
    last_ms BIGINT,
    last_status BIGINT,
    last_error TEXT
);
CREATE INDEX deliveries_waiting ON deliveries (integration, due_ms) WHERE state = 'pending';
CREATE INDEX deliveries_by_integration ON deliveries (integration, key);
CREATE INDEX deliveries_open ON deliveries (integration, state) WHERE state <> 'delivered';
CREATE INDEX deliveries_by_age ON deliveries (created_ms) WHERE state <> 'pending';

CREATE TABLE suppressions (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    scope TEXT,
    target TEXT,
    endpoint TEXT,
    process TEXT,
    reason TEXT NOT NULL,
    expires_ms BIGINT,
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL
);

-- Held while a rule changes and while detections are stored, so that neither misses the other.
INSERT INTO settings (name, value) VALUES ('suppressions-lock', '');

ALTER TABLE detections ADD COLUMN suppressed_by TEXT;
ALTER TABLE detections ADD COLUMN resolution TEXT;
CREATE INDEX detections_open ON detections (kind, key) WHERE suppressed_by IS NULL AND resolved_ms IS NULL;
CREATE INDEX detections_by_suppression ON detections (suppressed_by) WHERE suppressed_by IS NOT NULL;

-- How often blocked calls of a job were told.
ALTER TABLE jobs ADD COLUMN told_calls BIGINT NOT NULL DEFAULT 0;
-- The archive: events up to this number are there, and whether the job's record is; who is writing, until when.
ALTER TABLE jobs ADD COLUMN archived_seq BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN archived_record BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE jobs ADD COLUMN archive_lease_ms BIGINT NOT NULL DEFAULT 0;
CREATE INDEX jobs_to_archive ON jobs (archive_lease_ms, key) WHERE ended_ms IS NOT NULL AND (archived_seq < last_seq OR NOT archived_record);
