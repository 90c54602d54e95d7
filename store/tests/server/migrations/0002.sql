-- What a server of version 2 wrote. The hashes are those of `pct_of_an_earlier_version` and `pch_of_an_earlier_version`.
INSERT INTO tokens (id, name, role, hash, created_ms, created_by, expires_ms, last_used_ms)
VALUES ('t1', 'ada', 'admin', '{token}', 1700000000000, 'system', NULL, 1700000003000);
INSERT INTO enrolments (id, cluster, hash, hosts_left, created_by, created_ms, expires_ms)
VALUES ('e1', 'prod', 'no-hash', 3, 'token:ada', 1700000000000, 4102444800000);
INSERT INTO hosts (id, name, cluster, enrolled_ms, last_seen_ms, revoked_ms)
VALUES ('h1', 'runner-1', 'prod', 1700000000000, NULL, NULL);
INSERT INTO host_credentials (id, host_id, hash, created_ms, expires_ms)
VALUES ('c1', 'h1', '{credential}', 1700000000000, NULL);
INSERT INTO used_id_tokens (hash, job, expires_ms) VALUES ('used', 'octo/hello/7/1/build/runner-1', 4102444800000);
