-- A credential that replaces another has arrived when it is used. Until then those before it go on, so that a host that
-- never got the answer, or lost it, is not locked out however long it is away.
ALTER TABLE host_credentials ADD COLUMN used_ms BIGINT;
UPDATE host_credentials SET used_ms = created_ms;
