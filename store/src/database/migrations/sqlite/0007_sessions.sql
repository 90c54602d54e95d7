-- People who are signed in to the dashboard. Only a hash of the cookie's secret is kept, as of all secrets.
CREATE TABLE sessions (
    hash TEXT NOT NULL PRIMARY KEY,
    -- The token that was signed in with: its role counts, and its end is the session's. NULL for people whom an identity
    -- provider vouches for; then `subject`, `name` and `role` say who it is.
    token_id TEXT,
    subject TEXT NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);
CREATE INDEX sessions_by_end ON sessions (expires_ms);

-- "Which destinations are new since yesterday?" asks, endpoint by endpoint, whether an older job called it.
CREATE INDEX destinations_by_endpoint ON destinations (endpoint, job);

-- The last report of a job on a host says what is in force there.
CREATE INDEX jobs_by_host ON jobs (host_id, key);
