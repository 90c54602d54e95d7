//! Events, counters and the report of a job.
//!
//! The file of events is the record; the report is computed from it ([`summary::Summary`] takes events and nothing
//! else), so that a monitor which was restarted in the middle of a job reports what the job did before, too.

pub mod event_log;
mod interner;
pub mod reconcile;
pub mod recorder;
pub mod repeats;
pub mod singles;
pub mod summary;
