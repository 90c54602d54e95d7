//! Events, counters and the report of a job.
