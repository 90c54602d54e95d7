-- What a server of version 7 wrote: somebody who signed in with a token, and somebody whom a provider vouched for.
INSERT INTO sessions (hash, token_id, subject, name, role, created_ms, expires_ms)
VALUES ('of a token', 't1', 't1', 'ada', 'admin', 1767225600000, 4102444800000),
       ('of a person', NULL, 'https://login.test 1', 'ada@example.com', 'admin', 1767225600000, 4102444800000);
