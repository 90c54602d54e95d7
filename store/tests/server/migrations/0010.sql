-- What a server of version 10 wrote: what a job's last report said.
UPDATE jobs SET posture = 'degraded' WHERE host_id = 'h1';
