//! Uploads what is spooled: jobs, events while the job runs, reports; again and again until the store has everything.

use super::spool::{Progress, Spooled, waiting};
use portcullis_common::hook::with_causes;
use portcullis_store_client::{HostClient, StoreError};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How often a running job's events are sent, and how soon after a failure it is tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// The longest pause after failures in a row.
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// Why a job is not uploaded.
#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the spool can't be used")]
    Spool(#[from] io::Error),
}

/// Uploads for as long as the monitor runs. `wake` ends a pause early.
pub(super) async fn run(client: Arc<HostClient>, spool: PathBuf, wake: Arc<Notify>) {
    let mut pause = PAUSE;
    let mut was_failing = false;
    loop {
        let jobs = waiting(&spool);
        let is_idle = jobs.is_empty();
        let failure = upload_all(&client, jobs).await;
        match &failure {
            Some(error) if !was_failing => {
                tracing::warn!(error = %with_causes(error), "jobs can't be uploaded now; they are kept and sent later");
            }
            None if was_failing => tracing::info!("jobs are uploaded again"),
            _ => {}
        }
        was_failing = failure.is_some();
        pause = next_pause(pause, was_failing);
        if is_idle {
            wake.notified().await;
        } else {
            // A job that ends wakes up as well, and after a failure that is a reason to try.
            let _ = tokio::time::timeout(pause, wake.notified()).await;
        }
    }
}

/// How long to wait after a round, when it was `pause` before it.
fn next_pause(pause: Duration, is_failing: bool) -> Duration {
    if is_failing { (pause * 2).min(MAX_PAUSE) } else { PAUSE }
}

/// Uploads what can be uploaded. The first failure that may pass ends the round: the other jobs would meet it, too.
async fn upload_all(client: &HostClient, jobs: Vec<Spooled>) -> Option<UploadError> {
    for job in jobs {
        match upload(client, &job).await {
            Ok(()) => {}
            Err(UploadError::Store(StoreError::Refused(problem))) if problem.status == 404 => {
                // The store was set up anew, or restored from before this job: it is told from the start.
                if let Err(error) = job.keep_progress(Progress::default()) {
                    return Some(error.into());
                }
                return Some(StoreError::Refused(problem).into());
            }
            Err(UploadError::Store(error)) if error.is_final() => {
                // The store will never take it; the record stays on this host.
                tracing::error!(job.id = job.job.id, error = %with_causes(&error), "the store refuses a job for good");
                if let Err(error) = job.done() {
                    tracing::error!(job.id = job.job.id, error = %error, "the spool can't be used");
                }
            }
            Err(error) => return Some(error),
        }
    }
    None
}

async fn upload(client: &HostClient, job: &Spooled) -> Result<(), UploadError> {
    let mut progress = job.progress();
    if !progress.is_begun {
        let accepted = client.start_job(&job.job).await?;
        progress = Progress { is_begun: true, ..Progress::default() };
        if accepted.last_seq > 0 {
            progress.last_seq = accepted.last_seq;
            progress.offset = job.offset_of(accepted.last_seq + 1)?;
        }
        job.keep_progress(progress)?;
    }
    // Read before the events: what is recorded before the report is written is in the file then.
    let report = job.report()?;
    loop {
        let batch = job.batch(progress.offset)?;
        if batch.events == 0 {
            break;
        }
        match client.send_events(&job.job.id, &batch.lines).await {
            Ok(accepted) => {
                progress.last_seq = accepted.last_seq;
                progress.offset = batch.end;
            }
            Err(error) => {
                // The store was restored from a backup, or has more than we noted: go on from where it is.
                let expected = error.expected_seq().filter(|seq| *seq != progress.last_seq + 1);
                let Some(expected) = expected else { return Err(error.into()) };
                progress.last_seq = expected.saturating_sub(1);
                progress.offset = job.offset_of(expected)?;
            }
        }
        job.keep_progress(progress)?;
    }
    if let Some(report) = report {
        client.send_report(&report).await?;
        job.done()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MAX_PAUSE, PAUSE, next_pause};

    #[test]
    fn pauses_grow_with_failures_up_to_a_minute_and_end_with_them() {
        let grown: Vec<u64> =
            std::iter::successors(Some(PAUSE), |pause| Some(next_pause(*pause, true)))
                .map(|pause| pause.as_secs())
                .take(8)
                .collect();
        assert_eq!(grown, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(next_pause(MAX_PAUSE, false), PAUSE);
    }
}
