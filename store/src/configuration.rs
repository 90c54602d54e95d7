//! `store.toml`: what the operator of a server decides.

mod load;
#[cfg(test)]
mod tests;

pub use load::ConfigurationError;

use portcullis_common::store_api::Role;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The server's configuration. Everything has a default; a server without a file serves `127.0.0.1:8440` on SQLite.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Configuration {
    /// Where to listen.
    pub listen: SocketAddr,
    /// How runners and people reach the server: `https://portcullis.example.com`. Links in notifications begin with it.
    pub public_url: String,
    /// The audience of GitHub's OIDC tokens; absent: `public-url`.
    pub audience: Option<String>,
    /// Where everything is kept.
    pub database: DatabaseConfiguration,
    /// Serve HTTPS with this certificate; absent: HTTP, for a proxy on the same host.
    pub tls: Option<TlsConfiguration>,
    /// Which GitHub the runners belong to.
    pub github: GithubConfiguration,
    /// Certificates, PEM, that outgoing requests trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The Ed25519 key that signs answers; absent: made at the first start and kept in the database.
    pub signing_key_file: Option<PathBuf>,
    /// A file with the first admin's token; absent: one is made at the first start and printed once.
    pub admin_token_file: Option<PathBuf>,
    /// Runner hosts.
    pub hosts: HostsConfiguration,
    /// People sign in by OpenID Connect with this provider; absent: by tokens alone.
    pub sign_in: Option<SignInConfiguration>,
    /// How much is too much.
    pub limits: LimitsConfiguration,
    /// How long what is kept.
    pub retention: RetentionConfiguration,
    /// When a job counts as known.
    pub baseline: BaselineConfiguration,
    /// Outgoing notifications.
    pub notifications: NotificationConfiguration,
    /// The pages for people.
    pub dashboard: DashboardConfiguration,
    /// Where jobs and their events are archived before retention removes them; absent: nowhere.
    pub archive: Option<ArchiveConfiguration>,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8440)),
            public_url: "http://127.0.0.1:8440".to_owned(),
            audience: None,
            database: DatabaseConfiguration::default(),
            tls: None,
            github: GithubConfiguration::default(),
            ca_file: None,
            signing_key_file: None,
            admin_token_file: None,
            hosts: HostsConfiguration::default(),
            sign_in: None,
            limits: LimitsConfiguration::default(),
            retention: RetentionConfiguration::default(),
            baseline: BaselineConfiguration::default(),
            notifications: NotificationConfiguration::default(),
            dashboard: DashboardConfiguration::default(),
            archive: None,
        }
    }
}

/// `[database]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DatabaseConfiguration {
    /// `sqlite:/a/file` or `postgres://user@host/name`.
    pub url: String,
    /// Connections to PostgreSQL at most.
    pub max_connections: u32,
}

impl Default for DatabaseConfiguration {
    fn default() -> Self {
        Self { url: "sqlite:/var/lib/portcullis-store/store.db".to_owned(), max_connections: 10 }
    }
}

/// `[tls]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TlsConfiguration {
    /// The certificate and those that lead to a root, PEM.
    pub certificate_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
}

/// `[github]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct GithubConfiguration {
    /// Who signs OIDC tokens: GitHub, or `https://HOST/_services/token` of a GitHub Enterprise Server.
    pub issuer: String,
}

impl Default for GithubConfiguration {
    fn default() -> Self {
        Self { issuer: "https://token.actions.githubusercontent.com".to_owned() }
    }
}

impl GithubConfiguration {
    /// The server whose jobs these are: `github.com`, or the host of the GitHub Enterprise Server that issues tokens.
    pub fn server(&self) -> &str {
        let host = self.issuer.split_once("://").map_or("", |(_, rest)| rest);
        let host = host.split(['/', ':']).next().unwrap_or_default();
        if host == "token.actions.githubusercontent.com" { "github.com" } else { host }
    }
}

/// `[hosts]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct HostsConfiguration {
    /// How long a host's credential lasts, in days. Monitors renew theirs when a third of it is left.
    pub credential_days: u32,
}

impl Default for HostsConfiguration {
    fn default() -> Self {
        Self { credential_days: 90 }
    }
}

/// `[sign-in]`: an OpenID Connect provider.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SignInConfiguration {
    /// The provider: `https://login.example.com`; its discovery document lies below it.
    pub issuer: String,
    /// This store's name at the provider.
    pub client_id: String,
    /// A file with this store's secret at the provider; absent: it has none there (a public client, by PKCE alone).
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// What is asked for beside `openid`.
    #[serde(default = "usual_scopes")]
    pub scopes: Vec<String>,
    /// The claim with a person's groups; dots lead into objects: `realm_access.roles`.
    #[serde(default = "usual_groups_claim")]
    pub groups_claim: String,
    /// After how many minutes the provider is asked again whether a person is still in the groups that they signed in with.
    #[serde(default = "usual_confirm_minutes")]
    pub confirm_minutes: u32,
    /// What members of a group may do. Who is in several has the most of it; who is in none can't sign in.
    pub roles: BTreeMap<String, Role>,
}

const fn usual_confirm_minutes() -> u32 {
    15
}

fn usual_scopes() -> Vec<String> {
    ["profile", "email"].map(str::to_owned).to_vec()
}

fn usual_groups_claim() -> String {
    "groups".to_owned()
}

/// `[limits]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LimitsConfiguration {
    /// Requests of one caller in a second, sustained.
    pub requests_per_second: u32,
    /// Requests of one caller at once.
    pub burst: u32,
    /// Failed attempts to become somebody, from one address in a minute.
    pub failed_sign_ins_per_minute: u32,
    /// How long a request may take, with its body.
    pub request_timeout_seconds: u32,
}

impl Default for LimitsConfiguration {
    fn default() -> Self {
        Self {
            requests_per_second: 200,
            burst: 1000,
            failed_sign_ins_per_minute: 30,
            request_timeout_seconds: 30,
        }
    }
}

impl LimitsConfiguration {
    /// How long a request may take, with its body.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_seconds.into())
    }
}

/// `[retention]`, in days.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RetentionConfiguration {
    /// Raw events.
    pub events_days: u32,
    /// Jobs, detections, and what baselines are made of.
    pub jobs_days: u32,
    /// The audit log.
    pub audit_days: u32,
    /// Deliveries of notifications that were made or given up.
    pub deliveries_days: u32,
}

impl Default for RetentionConfiguration {
    fn default() -> Self {
        Self { events_days: 90, jobs_days: 365, audit_days: 1095, deliveries_days: 30 }
    }
}

/// `[baseline]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BaselineConfiguration {
    /// Runs of a job before its baseline says anything.
    pub min_runs: u32,
    /// The last runs that are looked at.
    pub window_runs: u32,
    /// How many of them may have brought a new destination while the job still counts as stable.
    pub max_changed_runs: u32,
}

impl Default for BaselineConfiguration {
    fn default() -> Self {
        Self { min_runs: 10, window_runs: 10, max_changed_runs: 1 }
    }
}

/// `[notifications]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NotificationConfiguration {
    /// Networks that notifications may go to although they are not on the internet: `10.1.2.0/24`.
    pub allowed_networks: Vec<ipnet::IpNet>,
    /// Whether plain HTTP is allowed; only for receivers in `allowed-networks`.
    pub allow_http: bool,
    /// How long an attempt may take.
    pub timeout_seconds: u32,
    /// The pauses between attempts; behind the last one a notification is given up.
    pub retry_seconds: Vec<u32>,
}

impl Default for NotificationConfiguration {
    fn default() -> Self {
        Self {
            allowed_networks: Vec::new(),
            allow_http: false,
            timeout_seconds: 10,
            // A bit more than a day in all.
            retry_seconds: vec![5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 28800],
        }
    }
}

impl NotificationConfiguration {
    /// How long an attempt may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into())
    }

    /// The pause behind the first attempt.
    pub fn first_pause(&self) -> Duration {
        Duration::from_secs(self.retry_seconds.first().copied().unwrap_or_default().into())
    }
}

/// `[archive]`: a bucket of an S3-compatible object store.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ArchiveConfiguration {
    /// The bucket.
    pub bucket: String,
    /// Its region: `eu-central-1`.
    pub region: String,
    /// Another server than AWS: `https://minio.example.com`.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// What names of objects begin with.
    #[serde(default)]
    pub prefix: String,
    /// The id of the access key.
    pub access_key_id: String,
    /// A file with the access key.
    pub secret_access_key_file: PathBuf,
}

/// `[dashboard]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DashboardConfiguration {
    /// After how many hours people have to sign in again.
    pub session_hours: u32,
}

impl Default for DashboardConfiguration {
    fn default() -> Self {
        Self { session_hours: 12 }
    }
}
