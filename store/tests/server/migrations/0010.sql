-- What a server of version 10 wrote: why the job was less than enforced.
UPDATE jobs SET posture_reason = NULL;
