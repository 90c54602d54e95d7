//! The store behind its API: what is in memory, kept true to the database.

mod authentication;
mod baselines;
mod dry_run;
mod freshness;
mod integrations;
mod policies;
mod process_tree;
mod sessions;
mod suppressions;

pub use authentication::{Authentication, AuthenticationError};
pub use baselines::{EndpointsError, MAX_ENDPOINTS};
pub use dry_run::DryRunError;
pub use integrations::NotifyError;
pub use policies::{WriteRequest, read as read_document};
pub use sessions::LiveSession;

use crate::catalog::Snapshot;
use crate::configuration::{Configuration, SignInConfiguration};
use crate::database::{Database, DatabaseError, Thresholds};
use crate::identity::oidc::Verifier;
use crate::identity::sign_in::SignIn;
use crate::identity::sign_in::attempt::Sealer;
use crate::identity::signer::{KeyError, Signer};
use crate::notify::{Dispatcher, Outgoing};
use authentication::Callers;
use freshness::Freshness;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use secrecy::SecretString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Mutex;

/// The store.
#[derive(Debug)]
pub struct Store {
    /// The database.
    pub database: Database,
    /// What the operator wants.
    pub configuration: Configuration,
    /// Signs answers to hosts.
    pub signer: Signer,
    /// Verifies GitHub's tokens.
    pub verifier: Verifier,
    /// The provider that people sign in with, if there is one.
    pub sign_in: Option<SignIn>,
    /// The policies as they were last seen; replaced as a whole.
    snapshot: std::sync::RwLock<Arc<Snapshot>>,
    /// Held while the policies are read anew.
    loading: Mutex<()>,
    freshness: Freshness,
    callers: Callers,
    draining: AtomicBool,
    /// Tells people and programs what happened.
    pub dispatcher: Dispatcher,
    /// Events that were stored.
    pub events: Counter,
}

/// Why the store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The signing key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The HTTP client.
    #[error("outgoing requests can't be made")]
    Client(#[from] reqwest::Error),
    /// A file of the configuration.
    #[error("{} can't be read", .path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Store {
    /// Opens the database, brings its schema up to date and reads the policies.
    ///
    /// # Errors
    /// When the database can't be used or a file of the configuration can't be read.
    pub async fn open(configuration: Configuration) -> Result<Self, OpenError> {
        let database =
            Database::open(&configuration.database.url, configuration.database.max_connections)
                .await?;
        let key = if let Some(path) = &configuration.signing_key_file {
            std::fs::read_to_string(path)
                .map_err(|source| OpenError::File { path: path.clone(), source })?
        } else {
            database.setting_or_insert("signing-key", &Signer::generate()?).await?
        };
        let authorities = configuration.authorities().map_err(|source| OpenError::File {
            path: configuration.ca_file.clone().unwrap_or_default(),
            source,
        })?;
        let client = outgoing_client(&authorities)?;
        let outgoing = Outgoing::new(&configuration.notifications, &authorities)?;
        let sign_in = match &configuration.sign_in {
            None => None,
            Some(sign_in) => {
                Some(open_sign_in(&database, sign_in, &configuration.public_url, &client).await?)
            }
        };
        let store = Self {
            signer: Signer::from_text(&key)?,
            sign_in,
            verifier: Verifier::new(&configuration.github.issuer, configuration.audience(), client),
            snapshot: std::sync::RwLock::new(Arc::new(Snapshot::new(0, []))),
            loading: Mutex::default(),
            freshness: Freshness::default(),
            callers: Callers::default(),
            draining: AtomicBool::new(false),
            dispatcher: Dispatcher::new(outgoing),
            events: Counter::default(),
            database,
            configuration,
        };
        store.snapshot().await?;
        Ok(store)
    }

    /// When a baseline counts as known.
    pub const fn thresholds(&self) -> Thresholds {
        let baseline = &self.configuration.baseline;
        Thresholds {
            min_runs: baseline.min_runs,
            window_runs: baseline.window_runs,
            max_changed_runs: baseline.max_changed_runs,
        }
    }

    /// Whether the server is about to stop, so that load balancers send nothing more.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Ends all connections to the database, after what they do is done.
    pub async fn close(&self) {
        self.freshness.close().await;
        self.database.close().await;
    }

    /// Says that the server is about to stop.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// The provider that people sign in with. All replicas share the key that closes what browsers keep meanwhile.
async fn open_sign_in(
    database: &Database,
    configuration: &SignInConfiguration,
    public_url: &str,
    client: &reqwest::Client,
) -> Result<SignIn, OpenError> {
    let secret = match &configuration.client_secret_file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| OpenError::File { path: path.clone(), source })?;
            Some(SecretString::from(text.trim().to_owned()))
        }
    };
    let proposed = Sealer::generate().map_err(|_| KeyError)?;
    let key = database.setting_or_insert("sign-in-key", &proposed).await?;
    let sealer = Sealer::from_text(&key).ok_or(KeyError)?;
    Ok(SignIn::new(configuration.clone(), secret, public_url, client.clone(), sealer))
}

/// The client for what the store asks of others: no redirects, so that an address that was checked is the one that is asked.
fn outgoing_client(authorities: &[reqwest::Certificate]) -> Result<reqwest::Client, OpenError> {
    let mut client = reqwest::Client::builder()
        .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none());
    for authority in authorities {
        client = client.add_root_certificate(authority.clone());
    }
    Ok(client.build()?)
}

/// Now.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Whether a text can name a token, a host or an integration: visible, in one line, not too long.
pub fn is_name(text: &str) -> bool {
    (1..=100).contains(&text.chars().count())
        && !text.chars().any(char::is_control)
        && text.trim() == text
}
