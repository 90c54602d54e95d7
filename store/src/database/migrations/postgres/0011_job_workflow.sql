-- The workflow that holds a job, as its OIDC token says: another one than the run's when a reusable workflow runs.
ALTER TABLE used_id_tokens ADD COLUMN job_workflow_ref TEXT;
ALTER TABLE jobs ADD COLUMN job_workflow_ref TEXT;
CREATE INDEX used_id_tokens_job ON used_id_tokens (job);
