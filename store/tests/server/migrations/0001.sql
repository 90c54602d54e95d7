-- What a server of version 1 of the schema wrote.
INSERT INTO policies (id, name, version, created_ms, updated_ms, updated_by)
VALUES ('p1', 'build', 2, 1700000000000, 1700000001000, 'token:ada');
INSERT INTO policy_versions (policy_id, version, name, document, author, comment, created_ms)
VALUES ('p1', 1, 'build', '{"name":"build","egress_policy":"audit"}', 'token:ada', NULL, 1700000000000),
       ('p1', 2, 'build', '{"name":"build","egress_policy":"block","allowed_endpoints":["github.com:443"]}', 'token:ada', 'it is ''tight'' now', 1700000001000);
INSERT INTO attachments (scope, target, policy_id, author, created_ms)
VALUES ('repository', 'octo/hello', 'p1', 'token:ada', 1700000002000);
INSERT INTO audit_log (time_ms, actor, action, subject, detail, address)
VALUES (1700000001000, 'token:ada', 'policy.write', 'policy:build', NULL, '192.0.2.7');
INSERT INTO settings (name, value) VALUES ('kept', 'as it is');
