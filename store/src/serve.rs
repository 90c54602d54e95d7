//! `portcullis serve`: starts the server, and stops it without cutting anybody off.

mod upkeep;

pub use upkeep::{Pace, remove_old};

use crate::api::{self, Api};
use crate::configuration::Configuration;
use crate::dashboard::{self, PageInfo};
use crate::database::{NewAuditEntry, StoredToken};
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
use upkeep::Upkeep;
use uuid::Uuid;

/// How long requests that are being answered may go on after the server was told to stop.
const DRAIN_TIME: Duration = Duration::from_secs(20);

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
    start_at(configuration, Pace::default()).await
}

/// As [`start`], with another pace of what is done now and then.
///
/// # Errors
/// As [`start`].
pub async fn start_at(configuration: Configuration, pace: Pace) -> anyhow::Result<Running> {
    configuration.check()?;
    let listen = configuration.listen;
    let tls = match &configuration.tls {
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
    let archiving = tokio::spawn(upkeep::archive(Arc::clone(&store), pace));
    let upkeep = Upkeep { store: Arc::clone(&store), limits, metrics, tls };
    let upkeep = tokio::spawn(upkeep.run(pace));
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
