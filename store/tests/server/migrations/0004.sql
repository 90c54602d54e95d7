-- What a server of version 4 wrote.
INSERT INTO suppressions (id, kind, scope, target, endpoint, process, reason, expires_ms, created_ms, created_by)
VALUES ('s1', 'Reverse-Shell', 'repository', 'octo/hello', NULL, '/bin/sh', 'a drill', NULL, 1700000000000, 'token:ada');
UPDATE detections SET suppressed_by = 's1';
