-- What a server of version 6 wrote: a credential that was asked for and never arrived, beside the one that is used.
UPDATE host_credentials SET used_ms = 1767225600000 WHERE id = 'c1';
INSERT INTO host_credentials (id, host_id, hash, created_ms, expires_ms, used_ms)
VALUES ('c2', 'h1', 'never-arrived', 1767225700000, 4102444800000, NULL);
