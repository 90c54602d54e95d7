//! The served policy store, as this host uses it: which policy a job gets, and telling what happened.
//!
//! Everything here waits for a network, so all of it is bounded, runs on threads of its own, and may fail without a job noticing
//! more than its failure mode says.

mod credential;
mod heartbeat;
mod id_token;
mod spool;
mod upload;

pub use id_token::{IdTokenError, check_address};
pub use spool::{UPLOAD_FILE, keep_header};

use crate::config::{Config, Paths};
use portcullis_common::hook::with_causes;
use portcullis_common::job_context::JobContext;
use portcullis_common::resolution::{DefaultPolicy, Resolution};
use portcullis_common::store_api::ResolveRequest;
use portcullis_common::wire::IdTokenRequest;
use portcullis_store_client::{Connection, HostClient};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

/// How long one request may take. `pre-job` waits for a token and a resolution, one after the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a job waits for its policy at most, with everything that this takes.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(10);

/// The largest file of certificates or credentials in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The served store.
#[derive(Debug)]
pub struct ServedStore {
    client: Arc<HostClient>,
    github: String,
    cluster: Option<String>,
    default_policy: DefaultPolicy,
    /// Says that there is something to upload.
    wake: Arc<Notify>,
    /// Ends when the store is dropped; `None` only then.
    runtime: Option<Runtime>,
}

impl ServedStore {
    /// The store that the configuration names, with this host's credential. Begins to upload what is spooled.
    ///
    /// # Errors
    /// In words for a person: when the credential can't be used, or the address can't be understood.
    pub fn open(config: &Config, paths: &Paths) -> Result<Self, String> {
        let renewed = paths.renewed_credential();
        let credential = credential::load(&paths.at(&config.store.credential_file), &renewed)?;
        let authorities = match &config.store.ca_file {
            Some(file) => Some(read(&paths.at(file))?),
            None => None,
        };
        let connection = Connection::new(&config.store.url, authorities.as_deref(), PATIENCE)
            .map_err(|error| with_causes(&error))?;
        let client = Arc::new(HostClient::new(connection, credential.clone()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("store")
            .build()
            .map_err(|error| format!("threads for the store can't be started: {error}"))?;
        let wake = Arc::new(Notify::new());
        runtime.spawn(credential::keep_renewed(Arc::clone(&client), credential, renewed));
        runtime.spawn(heartbeat::run(Arc::clone(&client)));
        runtime.spawn(upload::run(Arc::clone(&client), paths.spool(), Arc::clone(&wake)));
        Ok(Self {
            client,
            github: config.github.server.clone(),
            cluster: config.cluster.clone(),
            default_policy: config.default_policy(),
            wake,
            runtime: Some(runtime),
        })
    }

    /// Which policy applies to a job; blocks for [`RESOLVE_PATIENCE`] at most. With a way to ask for an OIDC token the
    /// store verifies the job's identity; a token that can't be had leaves it asserted, and is logged.
    ///
    /// # Errors
    /// Why the store can't say, in words for a person.
    pub fn resolve(
        &self,
        context: &JobContext,
        id_token: Option<String>,
        request: Option<&IdTokenRequest>,
    ) -> Result<Resolution, String> {
        let Some(runtime) = &self.runtime else { return Err("the monitor stops".to_owned()) };
        let asked = async {
            let id_token = match (id_token, request) {
                (Some(token), _) => Some(token),
                (None, None) => None,
                (None, Some(request)) => self.id_token(request).await,
            };
            let request = ResolveRequest {
                context: context.clone(),
                id_token,
                cluster: self.cluster.clone(),
                default_policy: self.default_policy.clone(),
                nonce: None,
            };
            self.client.resolve(request).await.map_err(|error| with_causes(&error))
        };
        runtime.block_on(async {
            tokio::time::timeout(RESOLVE_PATIENCE, asked).await.unwrap_or_else(|_| {
                Err(format!("no answer within {} s", RESOLVE_PATIENCE.as_secs()))
            })
        })
    }

    async fn id_token(&self, request: &IdTokenRequest) -> Option<String> {
        let client = self.client.connection().client();
        let fetched =
            id_token::fetch(client, request, &self.github, self.client.audience(), PATIENCE).await;
        fetched
            .inspect_err(|error| {
                tracing::warn!(error = %with_causes(error), "GitHub gave no id token; the job's identity stays asserted");
            })
            .ok()
    }

    /// Says that there is something to upload.
    pub fn wake(&self) {
        self.wake.notify_one();
    }
}

impl Drop for ServedStore {
    fn drop(&mut self) {
        // Without waiting: what is not uploaded now is spooled, and the next monitor goes on with it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("{} can't be read: {error}", path.display());
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("{} has more than {MAX_FILE_BYTES} bytes", path.display()));
    }
    fs::read(path).map_err(unreadable)
}
