//! `portcullis serve`: starts the server, and stops it without cutting anybody off.

use crate::api::{self, Api};
use crate::configuration::Configuration;
use crate::dashboard::{self, PageInfo};
use crate::database::{NewAuditEntry, Retention, StoredToken};
use crate::identity::secret::{SecretKind, generate, hash};
use crate::metrics::Metrics;
use crate::notify;
use crate::service::{Store, now};
use crate::tls::Tls;
use anyhow::Context as _;
use axum_server::Handle;
use portcullis_common::store_api::Role;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// How long requests that are being answered may go on after the server was told to stop.
const DRAIN_TIME: Duration = Duration::from_secs(20);

/// Pause between two rounds of what has to be done now and then.
const UPKEEP_PAUSE: Duration = Duration::from_secs(30);

/// Rounds of upkeep between two looks at what is too old: an hour.
const RETENTION_ROUNDS: u32 = 120;

/// How often in one round removing what is too old is tried again, and the pause before.
const MAX_REMOVAL_FAILURES: u32 = 20;
const REMOVAL_PAUSE: Duration = Duration::from_millis(500);

/// A server that is running.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// The store.
    pub store: Arc<Store>,
    /// The secret of the first admin's token, when it was made just now.
    pub first_token: Option<String>,
    /// The API's routes.
    pub routes: Vec<api::RouteInfo>,
    /// The dashboard's pages.
    pub pages: Vec<PageInfo>,
    handle: Handle<SocketAddr>,
    server: JoinHandle<std::io::Result<()>>,
    upkeep: JoinHandle<()>,
    archiving: JoinHandle<()>,
    dispatching: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

/// Opens the store and begins to serve.
///
/// # Errors
/// When the configuration makes no sense, the database can't be used, or the address can't be listened on.
pub async fn start(configuration: Configuration) -> anyhow::Result<Running> {
    configuration.check()?;
    let listen = configuration.listen;
    let mut tls = match &configuration.tls {
        None => None,
        Some(files) => Some(Tls::open(files).context("the certificate or its key can't be used")?),
    };
    let store = Arc::new(Store::open(configuration).await?);
    let first_token = first_token(&store).await?;
    let metrics = Arc::new(Metrics::new(&store.events));
    let Api { router, routes, pages, limits, .. } = api::api(&store, &metrics);
    let listener =
        TcpListener::bind(listen).with_context(|| format!("{listen} can't be listened on"))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let handle = Handle::new();
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let serving = handle.clone();
    let server = match &tls {
        None => {
            let server = axum_server::from_tcp(listener)?.handle(serving);
            tokio::spawn(server.serve(service))
        }
        Some(tls) => {
            let server =
                axum_server::tls_rustls::from_tcp_rustls(listener, tls.config())?.handle(serving);
            tokio::spawn(server.serve(service))
        }
    };
    let (stop, stopped) = watch::channel(false);
    let dead = metrics.dead_notifications.clone();
    let dispatching = tokio::spawn(notify::dispatch(Arc::clone(&store), dead, stopped));
    let archived = Arc::clone(&store);
    let archiving = tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP_PAUSE).await;
            if let Err(error) = notify::archive(&archived).await {
                tracing::warn!(error = %format!("{error:#}"), "jobs could not be archived; nothing of them is removed");
            }
        }
    });
    let kept = Arc::clone(&store);
    let upkeep = tokio::spawn(async move {
        let mut rounds: u32 = 0;
        loop {
            tokio::time::sleep(UPKEEP_PAUSE).await;
            if rounds.is_multiple_of(RETENTION_ROUNDS)
                && let Err(error) = remove_old(&kept).await
            {
                tracing::warn!(error = %format!("{error:#}"), "what is too old could not be removed");
            }
            rounds = rounds.wrapping_add(1);
            limits.forget_idle();
            if let Some(tls) = &mut tls {
                tls.look();
            }
            if let Err(error) = keep_up(&kept).await {
                tracing::warn!(error = %format!("{error:#}"), "the store could not be tidied up");
            }
            metrics.policies.set(
                kept.snapshot().await.map_or(0, |snapshot| {
                    i64::try_from(snapshot.entries().len()).unwrap_or(i64::MAX)
                }),
            );
        }
    });
    if let Some(reason) = dashboard::why_missing() {
        tracing::warn!(
            reason,
            "this program was built without its dashboard; the API and the command line are complete"
        );
    }
    tracing::info!(listen = %address, database = store.database.kind(), version = env!("CARGO_PKG_VERSION"), "the store listens");
    Ok(Running {
        address,
        store,
        first_token,
        routes,
        pages,
        handle,
        server,
        upkeep,
        archiving,
        dispatching,
        stop,
    })
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

async fn keep_up(store: &Store) -> anyhow::Result<()> {
    store.flush_uses().await?;
    store.database.remove_expired(now().as_millisecond()).await?;
    Ok(())
}

impl Running {
    /// Lets requests that are being answered end, then stops.
    ///
    /// # Errors
    /// When the server ended by itself with an error.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.store.drain();
        self.handle.graceful_shutdown(Some(DRAIN_TIME));
        let result = self.server.await.context("the server's task failed")?;
        self.upkeep.abort();
        self.archiving.abort();
        // Attempts that have begun may end; what is cut off is tried again when its lease is over.
        let _ = self.stop.send(true);
        if tokio::time::timeout(DRAIN_TIME, self.dispatching).await.is_err() {
            tracing::warn!(
                "notifications were being sent when the store stopped; they are sent again"
            );
        }
        if let Err(error) = self.store.flush_uses().await {
            tracing::warn!(error = %error, "when callers were last heard of could not be written down");
        }
        self.store.close().await;
        tracing::info!("the store has stopped");
        result.context("the server ended")
    }

    /// Waits until the server ends by itself, which it only does with an error.
    pub async fn ended(&mut self) {
        let _ = (&mut self.server).await;
    }
}

/// The first admin's token: from a file, or made when there is no token at all.
async fn first_token(store: &Store) -> anyhow::Result<Option<String>> {
    let given = match &store.configuration.admin_token_file {
        Some(path) => Some(read_token(path)?),
        None => None,
    };
    let is_given = given.is_some();
    let secret = match given {
        Some(secret) => secret,
        None => generate(SecretKind::Token)?,
    };
    let now_ms = now().as_millisecond();
    let token = StoredToken {
        id: Uuid::now_v7().simple().to_string(),
        name: "first-admin".to_owned(),
        role: Role::Admin,
        hash: hash(&secret),
        created_by: "system".to_owned(),
        created_ms: now_ms,
        expires_ms: None,
    };
    let record = NewAuditEntry {
        time_ms: now_ms,
        actor: "system".to_owned(),
        action: "token.create",
        subject: format!("token:{}", token.id),
        detail: Some("the first admin's token".to_owned()),
        address: None,
    };
    let is_new = store.database.insert_first_token(&token, &record).await?;
    Ok((is_new && !is_given).then_some(secret))
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
    let secret = text.trim().to_owned();
    let is_good =
        (32..=200).contains(&secret.len()) && secret.bytes().all(|byte| byte.is_ascii_graphic());
    anyhow::ensure!(
        is_good,
        "{} holds no token that can be used: it needs 32 to 200 visible characters, such as the output of `openssl rand -hex 32`",
        path.display()
    );
    Ok(secret)
}
