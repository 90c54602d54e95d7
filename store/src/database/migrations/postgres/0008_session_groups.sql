-- A person's session goes by groups, not by a role that was once found: a role that groups no longer have counts no more, and
-- the provider is asked again who is in which.
ALTER TABLE sessions ADD COLUMN provider_groups TEXT;
ALTER TABLE sessions ADD COLUMN confirmed_ms BIGINT NOT NULL DEFAULT 0;
-- Of sessions from before nobody knows the groups: those people sign in again.
DELETE FROM sessions WHERE token_id IS NULL;
