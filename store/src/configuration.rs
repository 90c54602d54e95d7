//! `store.toml`: what the operator of a server decides.

use portcullis_common::store_api::Role;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The largest `store.toml` that is read.
const MAX_BYTES: u64 = 1024 * 1024;

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
    /// What members of a group may do. Who is in several has the most of it; who is in none can't sign in.
    pub roles: BTreeMap<String, Role>,
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
}

impl Default for LimitsConfiguration {
    fn default() -> Self {
        Self { requests_per_second: 200, burst: 1000, failed_sign_ins_per_minute: 30 }
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

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file can't be read.
    #[error("{} can't be read", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no configuration.
    #[error("{} is no configuration that can be used", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{0}")]
    Senseless(String),
}

impl Configuration {
    /// Reads `store.toml`.
    ///
    /// # Errors
    /// When it can't be read, or has a key that does not exist or a value that makes no sense.
    pub fn load(path: &Path) -> Result<Self, ConfigurationError> {
        let unreadable = |source| ConfigurationError::Unreadable { path: path.to_owned(), source };
        let metadata = fs::metadata(path).map_err(unreadable)?;
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err(unreadable(io::Error::other("not a regular file of at most 1 MiB")));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        toml::from_str(&text).map_err(|source| ConfigurationError::Invalid {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Checks what the types can't.
    ///
    /// # Errors
    /// When a value makes no sense; the text has the remedy.
    pub fn check(&self) -> Result<(), ConfigurationError> {
        let senseless = |text: String| Err(ConfigurationError::Senseless(text));
        let is_url = |text: &str| {
            url::Url::parse(text).is_ok_and(|url| {
                matches!(url.scheme(), "https" | "http") && url.has_host() && url.query().is_none()
            })
        };
        if !is_url(&self.public_url) {
            return senseless(format!(
                "public-url is {:?}; it must be an address such as \"https://portcullis.example.com\"",
                self.public_url
            ));
        }
        if !is_url(&self.github.issuer) {
            return senseless(format!(
                "github.issuer is {:?}; it must be an address such as \"https://token.actions.githubusercontent.com\"",
                self.github.issuer
            ));
        }
        if self.tls.is_none() && !self.listen.ip().is_loopback() {
            return senseless(format!(
                "listen is {}, which others can reach, and there is no [tls]: tokens would cross the network in the clear; set [tls], or listen on 127.0.0.1 behind a proxy",
                self.listen
            ));
        }
        if self.hosts.credential_days == 0 || self.hosts.credential_days > 3650 {
            return senseless("hosts.credential-days must be 1 to 3650".to_owned());
        }
        if let Some(sign_in) = &self.sign_in {
            sign_in.check(&self.public_url).map_err(ConfigurationError::Senseless)?;
        }
        let limits = &self.limits;
        if limits.requests_per_second == 0
            || limits.burst == 0
            || limits.failed_sign_ins_per_minute == 0
        {
            return senseless("a limit of 0 would refuse everything".to_owned());
        }
        if !(1..=24 * 30).contains(&self.dashboard.session_hours) {
            return senseless("dashboard.session-hours must be 1 to 720".to_owned());
        }
        let baseline = &self.baseline;
        if baseline.min_runs == 0 || baseline.window_runs == 0 {
            return senseless("baseline.min-runs and window-runs must be at least 1".to_owned());
        }
        // Somebody who tries an integration waits for it, and no request to the store takes longer than 30 seconds.
        if !(1..=25).contains(&self.notifications.timeout_seconds) {
            return senseless("notifications.timeout-seconds must be 1 to 25".to_owned());
        }
        if let Some(endpoint) = self.archive.as_ref().and_then(|archive| archive.endpoint.as_ref())
            && !is_url(endpoint)
        {
            return senseless(format!(
                "archive.endpoint is {endpoint:?}; it must be an address such as \"https://minio.example.com\""
            ));
        }
        Ok(())
    }

    /// The certificates that outgoing requests trust beside the system's.
    ///
    /// # Errors
    /// When their file can't be read.
    pub fn authorities(&self) -> io::Result<Vec<reqwest::Certificate>> {
        let Some(path) = &self.ca_file else { return Ok(Vec::new()) };
        reqwest::Certificate::from_pem_bundle(&fs::read(path)?).map_err(io::Error::other)
    }

    /// The audience of GitHub's OIDC tokens for this store.
    pub fn audience(&self) -> &str {
        self.audience.as_deref().unwrap_or(&self.public_url)
    }
}

impl SignInConfiguration {
    /// Why it can't be used, with the remedy.
    fn check(&self, public_url: &str) -> Result<(), String> {
        for (name, text) in [("sign-in.issuer", self.issuer.as_str()), ("public-url", public_url)] {
            if !is_secure(text) {
                return Err(format!(
                    "{name} is {text:?}; for people to sign in it must begin with https:// (or be this machine itself)"
                ));
            }
        }
        if self.client_id.is_empty() {
            return Err(
                "sign-in.client-id is empty; it is this store's name at the provider".to_owned()
            );
        }
        if self.roles.is_empty() {
            return Err("[sign-in.roles] is empty, so nobody could sign in; name groups: developers = \"viewer\"".to_owned());
        }
        if self.roles.values().any(|role| *role == Role::Runner) {
            return Err(
                "[sign-in.roles] has the role runner, which is for hosts; people are viewer, editor or admin"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

/// Whether what is sent to an address can't be read on the way.
fn is_secure(text: &str) -> bool {
    let Ok(url) = url::Url::parse(text) else { return false };
    let is_own = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.has_host() && (url.scheme() == "https" || url.scheme() == "http" && is_own)
}

#[cfg(test)]
mod tests {
    use super::Configuration;

    #[test]
    fn a_sign_in_that_nobody_could_use_is_refused() {
        let with = |more: &str| {
            let text = format!(
                "public-url = \"https://store.test\"\n[sign-in]\nclient-id = \"portcullis\"\n{more}"
            );
            let configuration: Configuration =
                toml::from_str(&text).map_err(|error| error.to_string())?;
            configuration.check().map_err(|error| error.to_string())
        };
        let good = "issuer = \"https://login.test\"\n[sign-in.roles]\nops = \"admin\"\n";
        assert_eq!(with(good), Ok(()));
        for (bad, expected) in [
            ("issuer = \"http://login.test\"\n[sign-in.roles]\nops = \"admin\"\n", "https://"),
            ("issuer = \"https://login.test\"\n[sign-in.roles]\n", "nobody could sign in"),
            ("issuer = \"https://login.test\"\n[sign-in.roles]\nops = \"runner\"\n", "for hosts"),
            (
                "issuer = \"https://login.test\"\n[sign-in.roles]\nops = \"root\"\n",
                "unknown variant",
            ),
            ("issuer = \"https://login.test\"\n", "roles"),
        ] {
            let error = with(bad).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_documented_example_is_read() {
        let text = include_str!("../../docs/examples/store.toml");
        let configuration: Configuration = toml::from_str(text).unwrap();
        configuration.check().unwrap();
        assert_eq!(configuration.audience(), "https://portcullis.example.com");
    }

    #[test]
    fn what_is_shown_elsewhere_is_read_too() {
        let guide = include_str!("../../docs/store.md");
        let blocks =
            guide.split("```toml store\n").skip(1).filter_map(|rest| rest.split("```").next());
        let manifest = include_str!("../../deploy/kubernetes/store/configuration.yaml");
        let manifest: serde_json::Value = serde_saphyr::from_str(manifest).unwrap();
        let manifest = manifest["data"]["store.toml"].as_str().unwrap().to_owned();
        let installed = include_str!("../../deploy/store.toml").to_owned();
        // Lines that are commented out are there to be used.
        let is_key =
            |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        let is_setting = |line: &&str| {
            line.starts_with('[') || line.split_once(" = ").is_some_and(|(name, _)| is_key(name))
        };
        let wanted: String = installed
            .lines()
            .map(|line| line.strip_prefix("# ").filter(is_setting).unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let texts: Vec<String> =
            blocks.map(str::to_owned).chain([manifest, installed, wanted]).collect();
        assert!(texts.len() >= 4);
        for text in texts {
            let configuration: Configuration =
                toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            configuration.check().unwrap_or_else(|error| panic!("{error}: {text}"));
        }
    }

    #[test]
    fn documented_parts_are_read() {
        let text = include_str!("../../docs/notifications.md");
        let parts: Vec<&str> = text.split("```toml store\n").skip(1).collect();
        assert_eq!(parts.len(), 2);
        for part in parts {
            let part = part.split("```").next().unwrap();
            let configuration: Configuration = toml::from_str(part).unwrap();
            configuration.check().unwrap();
        }
        // What is said to be the default is the default.
        let defaults = Configuration::default().notifications;
        assert!(text.contains(&format!("retry-seconds = {:?}", defaults.retry_seconds)));
        assert!(text.contains(&format!("timeout-seconds = {}", defaults.timeout_seconds)));
    }

    #[test]
    fn tokens_never_cross_the_network_in_the_clear() {
        let open =
            Configuration { listen: "0.0.0.0:80".parse().unwrap(), ..Configuration::default() };
        let error = open.check().unwrap_err().to_string();
        assert!(error.contains("[tls]"), "{error}");
        Configuration::default().check().unwrap();
    }
}
