-- Secrets are 256 random bits; their SHA-256 is kept. No salt and no slow hash: there is nothing to guess.
CREATE TABLE tokens (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    expires_ms BIGINT,
    last_used_ms BIGINT
);

CREATE TABLE enrolments (
    id TEXT NOT NULL PRIMARY KEY,
    cluster TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    hosts_left BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);

CREATE TABLE hosts (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    cluster TEXT NOT NULL,
    enrolled_ms BIGINT NOT NULL,
    last_seen_ms BIGINT,
    revoked_ms BIGINT
);

CREATE TABLE host_credentials (
    id TEXT NOT NULL PRIMARY KEY,
    host_id TEXT NOT NULL REFERENCES hosts (id),
    hash TEXT NOT NULL UNIQUE,
    created_ms BIGINT NOT NULL,
    -- Set when a newer credential of the host exists: the old one goes on for a while, so that a host that crashed
    -- before it wrote the new one down is not locked out.
    expires_ms BIGINT
);
CREATE INDEX host_credentials_by_host ON host_credentials (host_id);

-- GitHub's OIDC tokens that were presented, until they expire by themselves: each is good for one job.
CREATE TABLE used_id_tokens (
    hash TEXT NOT NULL PRIMARY KEY,
    job TEXT NOT NULL,
    expires_ms BIGINT NOT NULL
);
