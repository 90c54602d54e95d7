-- What of a job's posture is less than it should be, in few words: a list of hosts says it without reading reports.
ALTER TABLE jobs ADD COLUMN posture_reason TEXT;

-- What began, or was found, at a time or later: the smallest key of that time bounds what is looked at, and these indices alone
-- are read for it.
DROP INDEX jobs_by_start;
CREATE INDEX jobs_by_start ON jobs (started_ms, run);
CREATE INDEX detections_by_time ON detections (time_us, key);
