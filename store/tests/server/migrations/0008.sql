-- What a server of version 8 wrote.
INSERT INTO sessions (hash, token_id, subject, name, role, created_ms, expires_ms, provider_groups, confirmed_ms)
VALUES ('with groups', NULL, 'https://login.test 1', 'ada@example.com', 'viewer', 1767225600000, 4102444800000, '["developers"]', 1767225600000);
