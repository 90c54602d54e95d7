//! An issuer of OpenID Connect tokens: where it answers, and the keys that it signs with, fetched and kept.
//!
//! A token with a key that is not known makes the store fetch again, but not more often than [`REFETCH_PAUSE`], so that
//! forged tokens don't make it a hammer. While the issuer is away, keys that are known go on for [`KEYS_STALE`].

use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use portcullis_common::hook::with_causes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, RwLock};
use url::Url;

/// How long fetched keys are trusted without a look at the issuer. Issuers rotate keys every few months (GitHub) or weeks,
/// and announce new ones before they use them.
const KEYS_FRESH: Duration = Duration::from_hours(1);

/// How long keys are still used when the issuer can't be reached.
const KEYS_STALE: Duration = Duration::from_hours(24);

/// The shortest pause between two fetches.
const REFETCH_PAUSE: Duration = Duration::from_secs(10);

/// How long a request may take: `pre-job`, or a person, waits for it.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(4);

/// The largest answer in bytes.
const MAX_DOCUMENT_BYTES: usize = 256 * 1024;

/// Where an issuer's keys may lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeysAt {
    /// At the issuer's own host, as GitHub has them.
    Issuer,
    /// Wherever the issuer says, over HTTPS; Google, for one, has another host for them.
    Anywhere,
}

/// What an issuer says of itself (OpenID Connect Discovery 1.0).
#[derive(Clone, Debug, Deserialize)]
pub struct Discovery {
    /// Its name, which tokens carry.
    pub issuer: String,
    /// Where its keys are.
    pub jwks_uri: String,
    /// Where people sign in.
    #[serde(default)]
    pub authorization_endpoint: Option<String>,
    /// Where codes become tokens.
    #[serde(default)]
    pub token_endpoint: Option<String>,
    /// Where more about a person can be asked.
    #[serde(default)]
    pub userinfo_endpoint: Option<String>,
    /// How a client may say its secret.
    #[serde(default)]
    pub token_endpoint_auth_methods_supported: Vec<String>,
}

/// An issuer with what is known of it.
#[derive(Debug)]
pub struct Issuer {
    url: String,
    keys_at: KeysAt,
    client: reqwest::Client,
    known: RwLock<Option<Arc<Known>>>,
    /// When it was last asked for what was not known, or in vain; held while it is asked.
    fetching: Mutex<Option<Instant>>,
}

/// What an issuer said.
#[derive(Debug)]
struct Known {
    discovery: Discovery,
    by_id: HashMap<String, DecodingKey>,
    fetched: Instant,
}

impl Issuer {
    /// The issuer at `url`: `https://token.actions.githubusercontent.com`.
    pub fn new(url: &str, keys_at: KeysAt, client: reqwest::Client) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        Self { url, keys_at, client, known: RwLock::default(), fetching: Mutex::default() }
    }

    /// Its name without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it says of itself, not older than keys may be.
    ///
    /// # Errors
    /// In words, when it can't be asked and nothing is known of it.
    pub async fn discovery(&self) -> Result<Discovery, String> {
        self.known_with(|known| known.fetched.elapsed() < KEYS_FRESH)
            .await
            .map(|known| known.discovery.clone())
    }

    /// The key of this name for this algorithm; `None` when the issuer has no such key.
    ///
    /// # Errors
    /// In words, when the issuer can't be asked and no keys are known.
    pub async fn key(
        &self,
        key_id: &str,
        algorithm: Algorithm,
    ) -> Result<Option<DecodingKey>, String> {
        let has_it = |known: &Known| {
            known.by_id.contains_key(key_id) && known.fetched.elapsed() < KEYS_FRESH
        };
        let known = self.known_with(has_it).await?;
        let key = known.by_id.get(key_id);
        // The algorithm is the token's word, the family is the key's: a token can't choose how its signature is read.
        Ok(key.filter(|key| key.family() == algorithm.family()).cloned())
    }

    /// What is known of the issuer: as it is when `is_good` says so, else asked anew if that may be. The last answer goes on
    /// while the issuer is away.
    async fn known_with(&self, is_good: impl Fn(&Known) -> bool) -> Result<Arc<Known>, String> {
        if let Some(known) = self.known.read().await.as_ref().filter(|known| is_good(known)) {
            return Ok(Arc::clone(known));
        }
        let mut last_fetch = self.fetching.lock().await;
        // Somebody else may have fetched while we waited.
        let known = self.known.read().await.clone();
        let is_too_early = last_fetch.is_some_and(|last| last.elapsed() < REFETCH_PAUSE);
        if let Some(known) = &known
            && (is_good(known) || is_too_early)
        {
            return Ok(Arc::clone(known));
        }
        if is_too_early {
            return Err("it could not be asked a moment ago".to_owned());
        }
        // The first look costs nothing: an issuer that rotates its keys a moment later is asked once more.
        if known.is_some() {
            *last_fetch = Some(Instant::now());
        }
        match self.fetch().await {
            Ok(fetched) => {
                let fetched = Arc::new(fetched);
                *self.known.write().await = Some(Arc::clone(&fetched));
                Ok(fetched)
            }
            Err(reason) => {
                *last_fetch = Some(Instant::now());
                tracing::warn!(issuer = self.url, reason, "the issuer's keys can't be had");
                known.filter(|known| known.fetched.elapsed() < KEYS_STALE).ok_or(reason)
            }
        }
    }

    async fn fetch(&self) -> Result<Known, String> {
        let address = format!("{}/.well-known/openid-configuration", self.url);
        let discovery: Discovery = bounded_json(self.client.get(&address)).await?;
        if discovery.issuer.trim_end_matches('/') != self.url {
            return Err(format!("its discovery document is that of `{}`", discovery.issuer));
        }
        if !self.may_hold_keys(&discovery.jwks_uri) {
            return Err(format!("its keys are at another host: `{}`", discovery.jwks_uri));
        }
        let set: JwkSet = bounded_json(self.client.get(&discovery.jwks_uri)).await?;
        let mut by_id = HashMap::new();
        for key in &set.keys {
            // Shared secrets are no keys that anybody could verify by, and keys for encryption sign nothing.
            let is_public = matches!(
                key.algorithm,
                AlgorithmParameters::RSA(_)
                    | AlgorithmParameters::EllipticCurve(_)
                    | AlgorithmParameters::OctetKeyPair(_)
            );
            let signs =
                key.common.public_key_use.as_ref().is_none_or(|it| *it == PublicKeyUse::Signature);
            let Some(id) = key.common.key_id.as_ref().filter(|_| is_public && signs) else {
                continue;
            };
            if let Ok(decoding) = DecodingKey::from_jwk(key)
                && decoding.family() != AlgorithmFamily::Hmac
            {
                by_id.insert(id.clone(), decoding);
            }
        }
        if by_id.is_empty() {
            return Err("it offers no public key".to_owned());
        }
        Ok(Known { discovery, by_id, fetched: Instant::now() })
    }

    /// Whether keys may be fetched from there: a document that could name any address would make us ask it.
    fn may_hold_keys(&self, keys: &str) -> bool {
        let (Ok(keys), Ok(issuer)) = (Url::parse(keys), Url::parse(&self.url)) else {
            return false;
        };
        keys.origin() == issuer.origin()
            || self.keys_at == KeysAt::Anywhere && keys.scheme() == "https"
    }
}

/// Sends a request, and reads a bounded answer of JSON within a bounded time.
pub(super) async fn bounded_json<T: DeserializeOwned>(
    request: reqwest::RequestBuilder,
) -> Result<T, String> {
    let fetched = async {
        let mut response = request.send().await?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_DOCUMENT_BYTES {
                break;
            }
        }
        Ok::<_, reqwest::Error>((status, bytes))
    };
    let (status, bytes) = tokio::time::timeout(FETCH_TIMEOUT, fetched)
        .await
        .map_err(|_| format!("no answer within {} s", FETCH_TIMEOUT.as_secs()))?
        .map_err(|error| with_causes(&error.without_url()))?;
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(format!("its answer has more than {MAX_DOCUMENT_BYTES} bytes"));
    }
    if !status.is_success() {
        return Err(format!("it answers with status {status}{}", error_code(&bytes)));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| format!("its answer can't be understood: {error}"))
}

/// The code of an OAuth error (RFC 6749, 5.2), which is all of it that is safe to show.
fn error_code(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct OauthError {
        error: String,
    }
    match serde_json::from_slice::<OauthError>(body) {
        Ok(OauthError { error }) => {
            format!(" ({})", portcullis_common::text::log_line(&error, 100))
        }
        Err(_) => String::new(),
    }
}
