//! What a server does by itself now and then, for as long as it runs.

use crate::api::rate::RateLimits;
use crate::database::Retention;
use crate::metrics::Metrics;
use crate::notify;
use crate::service::{Store, now};
use crate::tls::Tls;
use std::sync::Arc;
use std::time::Duration;

/// How often in one round removing what is too old is tried again, and the pause before.
const MAX_REMOVAL_FAILURES: u32 = 20;
const REMOVAL_PAUSE: Duration = Duration::from_millis(500);

/// How often there is something to do.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two rounds.
    pub pause: Duration,
    /// Rounds between two looks at what is too old.
    pub retention_rounds: u32,
}

impl Default for Pace {
    /// A round twice a minute, and a look at what is too old every hour.
    fn default() -> Self {
        Self { pause: Duration::from_secs(30), retention_rounds: 120 }
    }
}

/// What upkeep is done on.
#[derive(Debug)]
pub(super) struct Upkeep {
    pub(super) store: Arc<Store>,
    pub(super) limits: Arc<RateLimits>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tls: Option<Tls>,
}

impl Upkeep {
    /// Goes on until the task is aborted. What fails is logged, and tried again in its next round.
    pub(super) async fn run(mut self, pace: Pace) {
        let mut rounds: u32 = 0;
        loop {
            tokio::time::sleep(pace.pause).await;
            if rounds.is_multiple_of(pace.retention_rounds)
                && let Err(error) = remove_old(&self.store).await
            {
                tracing::warn!(error = %format!("{error:#}"), "what is too old could not be removed");
            }
            rounds = rounds.wrapping_add(1);
            self.limits.forget_idle();
            if let Some(tls) = &mut self.tls {
                tls.look();
            }
            if let Err(error) = tidy_up(&self.store).await {
                tracing::warn!(error = %format!("{error:#}"), "the store could not be tidied up");
            }
            self.metrics.policies.set(
                self.store.snapshot().await.map_or(0, |snapshot| {
                    i64::try_from(snapshot.entries().len()).unwrap_or(i64::MAX)
                }),
            );
        }
    }
}

/// Archives jobs that have ended, round by round, until the task is aborted.
pub(super) async fn archive(store: Arc<Store>, pace: Pace) {
    loop {
        tokio::time::sleep(pace.pause).await;
        if let Err(error) = notify::archive(&store).await {
            tracing::warn!(error = %format!("{error:#}"), "jobs could not be archived; nothing of them is removed");
        }
    }
}

/// Removes what is older than the configuration keeps, in portions between which others get their turn.
///
/// # Errors
/// When the database can't be used.
pub async fn remove_old(store: &Store) -> anyhow::Result<()> {
    let kept = &store.configuration.retention;
    let before = |days: u32| (now() - Duration::from_hours(24) * days).as_millisecond();
    let retention = Retention {
        events_before_ms: before(kept.events_days),
        jobs_before_ms: before(kept.jobs_days),
        audit_before_ms: before(kept.audit_days),
        deliveries_before_ms: before(kept.deliveries_days),
        only_archived: store.configuration.archive.is_some(),
    };
    let mut failures = 0;
    loop {
        match store.database.remove_old(&retention).await {
            Ok(true) => tokio::task::yield_now().await,
            Ok(false) => return Ok(()),
            // PostgreSQL ends one of two transactions that wait for each other; the next attempt goes on.
            Err(error) if error.is_transient() && failures < MAX_REMOVAL_FAILURES => {
                failures += 1;
                tokio::time::sleep(REMOVAL_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn tidy_up(store: &Store) -> anyhow::Result<()> {
    store.flush_uses().await?;
    store.database.remove_expired(now().as_millisecond()).await?;
    Ok(())
}
