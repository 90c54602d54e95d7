//! Reading `store.toml`, and checking what the types can't.

use super::{Configuration, SignInConfiguration};
use portcullis_common::store_api::Role;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The largest `store.toml` that is read.
const MAX_BYTES: u64 = 1024 * 1024;

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
        if !(1..=600).contains(&limits.request_timeout_seconds) {
            return senseless("limits.request-timeout-seconds must be 1 to 600".to_owned());
        }
        // Somebody who tries an integration waits for it, and no request to the store takes longer than 30 seconds, if nothing
        // else is said.
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
        if !(1..=24 * 60).contains(&self.confirm_minutes) {
            return Err("sign-in.confirm-minutes must be 1 to 1440".to_owned());
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
