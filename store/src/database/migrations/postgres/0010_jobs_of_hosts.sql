-- A host's last report is found among its jobs, not by reading all jobs of all hosts.
CREATE INDEX jobs_by_host ON jobs (host_id, key) WHERE posture IS NOT NULL;
