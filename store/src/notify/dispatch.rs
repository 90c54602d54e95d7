//! Empties the outbox: one worker for each integration that something waits for, so that a target that hangs keeps nobody
//! else waiting.
//!
//! A worker leases rows, so that another server leaves them alone; what it held when it died is free again when the lease is
//! over. A message can therefore come twice, always with the same id, and is never lost.

use super::Payload;
use super::client::Outgoing;
use super::message::Message;
use super::schedule::{next, share};
use super::send::{Failure, Sender};
use super::settings::{Secrets, Settings};
use crate::database::{ClaimedDelivery, DatabaseError, IntegrationRow, Settled};
use crate::service::{Store, now};
use portcullis_common::hook::with_causes;
use portcullis_common::store_api::{DeliveryState, Notification};
use prometheus_client::metrics::counter::Counter;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

/// How often the outbox is looked at when nothing says that something is in it: another server may have put it there.
const LOOK: Duration = Duration::from_secs(2);

/// How much longer than an attempt may take a lease is, so that its end can be written down.
const LEASE_MARGIN: Duration = Duration::from_secs(10);

/// How much longer than its client's limit an attempt may take.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(1);

/// Attempts that are made at a target at the same time.
const AT_ONCE: u32 = 8;

/// Slack takes one message a second from an app, and tells those beyond that to wait.
const AT_ONCE_SLACK: u32 = 1;

/// The longest time that a target which just failed is left alone.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The longest error that is stored, in bytes.
const MAX_ERROR_BYTES: usize = 500;

/// What emptying the outbox needs beside the store.
#[derive(Debug)]
pub struct Dispatcher {
    wake: Notify,
    /// Who holds the leases of this server.
    holder: String,
    sender: Sender,
}

impl Dispatcher {
    /// A dispatcher whose requests leave by `outgoing`.
    pub fn new(outgoing: Outgoing) -> Self {
        let holder = Uuid::now_v7().simple().to_string();
        Self { wake: Notify::new(), holder, sender: Sender { outgoing } }
    }

    /// Says that something is in the outbox.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Makes one attempt at once, for somebody who waits for it.
    ///
    /// # Errors
    /// When it fails.
    pub async fn attempt(
        &self,
        target: (&Settings, &Secrets),
        id: &str,
        notification: Notification,
        timeout: Duration,
    ) -> Result<Option<u16>, Failure> {
        self.send(target, id, &Message::Notification(Box::new(notification)), timeout).await
    }

    /// Makes one attempt. The client has a limit of its own; this one also bounds what that does not: a slow name server,
    /// for one.
    async fn send(
        &self,
        (settings, secrets): (&Settings, &Secrets),
        id: &str,
        message: &Message,
        timeout: Duration,
    ) -> Result<Option<u16>, Failure> {
        let sending = self.sender.send(settings, secrets, id, message);
        tokio::time::timeout(timeout + TIMEOUT_MARGIN, sending).await.unwrap_or_else(|_| {
            Err(Failure { error: "the target took too long".to_owned(), ..Failure::default() })
        })
    }
}

/// Empties the outbox until `stop` says otherwise, and then lets attempts that have begun end.
pub async fn dispatch(store: Arc<Store>, dead: Counter, mut stop: watch::Receiver<bool>) {
    let mut workers: JoinSet<(String, bool)> = JoinSet::new();
    let mut busy: HashSet<String> = HashSet::new();
    let mut paused: HashMap<String, Instant> = HashMap::new();
    let pause = store.configuration.notifications.first_pause().min(MAX_PAUSE);
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = store.dispatcher.wake.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
            Some(done) = workers.join_next(), if !workers.is_empty() => match done {
                Ok((id, failed)) => {
                    busy.remove(&id);
                    if failed {
                        paused.insert(id, Instant::now() + pause);
                    }
                }
                // A worker that panicked: nobody is busy for sure then, and a lease keeps two from doing the same.
                Err(error) => {
                    tracing::error!(error = %error, "a worker that sends notifications failed");
                    busy.clear();
                }
            }
        }
        paused.retain(|_, until| *until > Instant::now());
        let due = match store.database.due_integrations(now().as_millisecond()).await {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(error = %with_causes(&error), "the outbox can't be read");
                tokio::time::sleep(LOOK).await;
                continue;
            }
        };
        for id in due {
            if paused.contains_key(&id) || !busy.insert(id.clone()) {
                continue;
            }
            let (store, dead, stop) = (Arc::clone(&store), dead.clone(), stop.clone());
            workers.spawn(async move {
                let failed = match work(&store, &id, &dead, &stop).await {
                    Ok(failed) => failed,
                    Err(error) => {
                        tracing::warn!(integration = id, error = %with_causes(&error), "notifications can't be sent");
                        true
                    }
                };
                (id, failed)
            });
        }
    }
    while workers.join_next().await.is_some() {}
}

/// Tells an integration what waits for it, until there is nothing more or the target fails; says whether it did.
async fn work(
    store: &Arc<Store>,
    id: &str,
    dead: &Counter,
    stop: &watch::Receiver<bool>,
) -> Result<bool, DatabaseError> {
    while !*stop.borrow() {
        let Some(row) = store.database.integration(id).await? else { return Ok(false) };
        let (settings, secrets) = parts(&row)?;
        let limit = if matches!(settings, Settings::Slack) { AT_ONCE_SLACK } else { AT_ONCE };
        let lease = store.configuration.notifications.timeout() + LEASE_MARGIN;
        let time = now();
        let claimed = store
            .database
            .claim_deliveries(
                id,
                &store.dispatcher.holder,
                (time.as_millisecond(), (time + lease).as_millisecond()),
                limit,
            )
            .await?;
        if claimed.is_empty() {
            return Ok(false);
        }
        let target = Arc::new((settings, secrets));
        let mut attempts = JoinSet::new();
        for delivery in claimed {
            let (store, target, dead) = (Arc::clone(store), Arc::clone(&target), dead.clone());
            attempts.spawn(async move { deliver(&store, &target, &delivery, &dead).await });
        }
        let mut failed = false;
        while let Some(done) = attempts.join_next().await {
            match done {
                Ok(delivered) => failed |= !delivered?,
                Err(error) => {
                    tracing::error!(integration = id, error = %error, "an attempt to send a notification failed");
                    failed = true;
                }
            }
        }
        if failed {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is stored of an integration.
pub(crate) fn parts(row: &IntegrationRow) -> Result<(Settings, Secrets), DatabaseError> {
    let corrupt = |_| DatabaseError::Corrupt(format!("integration {}", row.id));
    Ok((
        serde_json::from_str(&row.settings).map_err(corrupt)?,
        serde_json::from_str(&row.secrets).map_err(corrupt)?,
    ))
}

/// Makes one attempt and writes down what became of it; says whether it was delivered.
async fn deliver(
    store: &Store,
    target: &(Settings, Secrets),
    delivery: &ClaimedDelivery,
    dead: &Counter,
) -> Result<bool, DatabaseError> {
    let result = match message(store, &delivery.payload).await? {
        Ok(message) => {
            let timeout = store.configuration.notifications.timeout();
            let target = (&target.0, &target.1);
            store.dispatcher.send(target, &delivery.id, &message, timeout).await
        }
        Err(failure) => Err(failure),
    };
    let time = now();
    let now_ms = time.as_millisecond();
    let settled = match &result {
        Ok(status) => Settled {
            state: DeliveryState::Delivered,
            due_ms: now_ms,
            now_ms,
            status: *status,
            error: None,
        },
        Err(failure) => {
            let attempts = u32::try_from(delivery.attempts).unwrap_or(u32::MAX);
            let schedule = &store.configuration.notifications.retry_seconds;
            let pause = next(schedule, attempts, failure.retry_after, share())
                .filter(|_| !failure.is_final);
            let error = portcullis_common::text::log_line(&failure.error, MAX_ERROR_BYTES);
            if pause.is_none() {
                dead.inc();
                tracing::warn!(delivery = delivery.id, error, "a notification was given up");
            }
            Settled {
                state: if pause.is_some() { DeliveryState::Pending } else { DeliveryState::Dead },
                due_ms: (time + pause.unwrap_or_default()).as_millisecond(),
                now_ms,
                status: failure.status,
                error: Some(error),
            }
        }
    };
    store.database.settle_delivery(delivery.key, &store.dispatcher.holder, &settled).await?;
    Ok(result.is_ok())
}

/// What a row of the outbox tells, with what is read only now.
async fn message(store: &Store, payload: &str) -> Result<Result<Message, Failure>, DatabaseError> {
    let lost =
        |error: &str| Failure { error: error.to_owned(), is_final: true, ..Failure::default() };
    let payload: Payload = match serde_json::from_str(payload) {
        Ok(payload) => payload,
        Err(_) => return Ok(Err(lost("what it tells can't be read"))),
    };
    match payload {
        Payload::Notification(mut notification) => {
            notification.link = store.link(notification.run_id, notification.run_attempt);
            Ok(Ok(Message::Notification(notification)))
        }
        Payload::Events { job_id, first_seq, last_seq, time } => {
            let lines = store.database.event_lines(&job_id, (first_seq, last_seq)).await?;
            let expected = last_seq.saturating_sub(first_seq) + 1;
            if u64::try_from(lines.len()).unwrap_or_default() != expected {
                return Ok(Err(lost("the events are not there any more")));
            }
            Ok(Ok(Message::Events { job_id, first_seq, last_seq, time, lines }))
        }
    }
}
