-- One row: what changed last. Every transaction that changes policies or who may do what counts it up, so that a
-- replica sees with one look whether what it holds in memory is still true.
CREATE TABLE store_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    policies BIGINT NOT NULL,
    identities BIGINT NOT NULL
);
INSERT INTO store_state (id, policies, identities) VALUES (1, 1, 1);

CREATE TABLE settings (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE policies (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    version BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL,
    updated_by TEXT NOT NULL
);

-- Never updated, never deleted with the policy: events name a policy by its name and version.
CREATE TABLE policy_versions (
    policy_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    name TEXT NOT NULL,
    document TEXT NOT NULL,
    author TEXT NOT NULL,
    comment TEXT,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (policy_id, version)
);
CREATE INDEX policy_versions_by_name ON policy_versions (name, version);

CREATE TABLE attachments (
    scope TEXT NOT NULL,
    target TEXT NOT NULL,
    policy_id TEXT NOT NULL REFERENCES policies (id),
    author TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (scope, target)
);
CREATE INDEX attachments_by_policy ON attachments (policy_id);

CREATE TABLE audit_log (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time_ms BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT,
    address TEXT
);
