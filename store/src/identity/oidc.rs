//! GitHub's OIDC tokens of jobs: who signed them, for whom, when, and whether they say the same as the job's context.
//!
//! The algorithm is pinned to RS256, which is what GitHub signs with; a key set that offers others, or a token that names
//! another, is refused. Keys are fetched from the issuer and kept; a token with a key that is not known makes the store
//! fetch again, but not more often than [`REFETCH_PAUSE`], so that forged tokens don't make it a hammer.

use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use portcullis_common::hook::with_causes;
use portcullis_common::job_context::JobContext;
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, RwLock};
use url::Url;

/// How far the clocks of GitHub and the store may be apart.
const LEEWAY: Duration = Duration::from_mins(1);

/// How long fetched keys are trusted without a look at the issuer. GitHub rotates keys every few months and announces
/// new ones before it uses them.
const KEYS_FRESH: Duration = Duration::from_hours(1);

/// How long keys are still used when the issuer can't be reached.
const KEYS_STALE: Duration = Duration::from_hours(24);

/// The shortest pause between two fetches.
const REFETCH_PAUSE: Duration = Duration::from_secs(10);

/// How long a fetch may take: `pre-job` waits for it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(4);

/// The largest key set or discovery document in bytes.
const MAX_DOCUMENT_BYTES: usize = 256 * 1024;

/// The claims that are compared.
#[derive(Clone, Debug, Deserialize)]
pub struct Claims {
    /// `octo/hello`.
    pub repository: String,
    /// `octo/hello/.github/workflows/ci.yml@refs/heads/main`.
    pub workflow_ref: String,
    /// The workflow that holds the job, when a reusable workflow runs.
    #[serde(default)]
    pub job_workflow_ref: Option<String>,
    /// The run, a number as text.
    pub run_id: String,
    /// The attempt, a number as text.
    pub run_attempt: String,
    /// The owner of the repository.
    #[serde(default)]
    pub repository_owner: Option<String>,
    /// The commit.
    #[serde(default)]
    pub sha: Option<String>,
    /// When the token ends, in seconds since 1970.
    pub exp: i64,
}

/// Why a token is refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IdentityError {
    /// It is no valid token of the issuer for this store.
    #[error("the id token is refused: {0}")]
    Token(String),
    /// It is valid, and says something else than the job.
    #[error(
        "the id token contradicts the job's environment: its `{claim}` is `{token}`, not `{context}`"
    )]
    Contradiction {
        /// The claim.
        claim: &'static str,
        /// What the token says.
        token: String,
        /// What the job says.
        context: String,
    },
    /// The issuer's keys can't be had.
    #[error("the keys of {issuer} can't be had: {reason}")]
    KeysUnavailable {
        /// The issuer.
        issuer: String,
        /// Why.
        reason: String,
    },
}

/// Verifies tokens of one issuer for one audience.
#[derive(Debug)]
pub struct Verifier {
    issuer: String,
    audience: String,
    client: reqwest::Client,
    keys: RwLock<Arc<Keys>>,
    /// When keys were last asked for; held while they are.
    fetching: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Keys {
    by_id: HashMap<String, DecodingKey>,
    fetched: Option<Instant>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Verifier {
    /// Tokens that `issuer` (`https://token.actions.githubusercontent.com`) made for `audience`.
    pub fn new(issuer: &str, audience: &str, client: reqwest::Client) -> Self {
        Self {
            issuer: issuer.trim_end_matches('/').to_owned(),
            audience: audience.to_owned(),
            client,
            keys: RwLock::default(),
            fetching: Mutex::default(),
        }
    }

    /// The audience that tokens must have.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// Verifies a token and that it belongs to the job.
    ///
    /// # Errors
    /// When it is not valid, contradicts the context, or the issuer's keys can't be had.
    pub async fn verify(&self, token: &str, context: &JobContext) -> Result<Claims, IdentityError> {
        let claims = self.claims(token).await?;
        compare(&claims, context)?;
        Ok(claims)
    }

    /// Verifies a token for what it is.
    ///
    /// # Errors
    /// When it is not valid, or the issuer's keys can't be had.
    pub async fn claims(&self, token: &str) -> Result<Claims, IdentityError> {
        let refused = |error: jsonwebtoken::errors::Error| IdentityError::Token(error.to_string());
        let header = jsonwebtoken::decode_header(token).map_err(refused)?;
        if header.alg != Algorithm::RS256 {
            let reason = format!("its algorithm is {:?}, and RS256 is the only one", header.alg);
            return Err(IdentityError::Token(reason));
        }
        let key_id =
            header.kid.ok_or_else(|| IdentityError::Token("it names no key (`kid`)".to_owned()))?;
        let keys = self.keys_with(&key_id).await?;
        let key = keys.by_id.get(&key_id).ok_or_else(|| {
            IdentityError::Token(
                "the issuer has no key of the name that it was signed with".to_owned(),
            )
        })?;
        let mut validation = Validation::new(Algorithm::RS256);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&[&self.audience]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        let token = jsonwebtoken::decode::<Claims>(token, key, &validation).map_err(refused)?;
        Ok(token.claims)
    }

    async fn keys_with(&self, key_id: &str) -> Result<Arc<Keys>, IdentityError> {
        let is_good = |keys: &Keys| {
            keys.by_id.contains_key(key_id)
                && keys.fetched.is_some_and(|fetched| fetched.elapsed() < KEYS_FRESH)
        };
        let keys = Arc::clone(&*self.keys.read().await);
        if is_good(&keys) {
            return Ok(keys);
        }
        let mut last_fetch = self.fetching.lock().await;
        // Somebody else may have fetched while we waited.
        let keys = Arc::clone(&*self.keys.read().await);
        if is_good(&keys) || last_fetch.is_some_and(|last| last.elapsed() < REFETCH_PAUSE) {
            return Ok(keys);
        }
        *last_fetch = Some(Instant::now());
        match self.fetch().await {
            Ok(fetched) => {
                let fetched = Arc::new(fetched);
                *self.keys.write().await = Arc::clone(&fetched);
                Ok(fetched)
            }
            Err(reason) => {
                tracing::warn!(issuer = self.issuer, reason, "the issuer's keys can't be had");
                let is_usable = keys.fetched.is_some_and(|fetched| fetched.elapsed() < KEYS_STALE);
                if is_usable && keys.by_id.contains_key(key_id) {
                    return Ok(keys);
                }
                Err(IdentityError::KeysUnavailable { issuer: self.issuer.clone(), reason })
            }
        }
    }

    async fn fetch(&self) -> Result<Keys, String> {
        let discovery: Discovery =
            self.get(&format!("{}/.well-known/openid-configuration", self.issuer)).await?;
        if discovery.issuer.trim_end_matches('/') != self.issuer {
            return Err(format!("its discovery document is that of `{}`", discovery.issuer));
        }
        // The keys come from where the issuer itself is: a document that could name any address would make us ask it.
        let (keys, issuer) = (Url::parse(&discovery.jwks_uri), Url::parse(&self.issuer));
        let is_own =
            matches!((&keys, &issuer), (Ok(keys), Ok(issuer)) if keys.origin() == issuer.origin());
        if !is_own {
            return Err(format!("its keys are at another host: `{}`", discovery.jwks_uri));
        }
        let set: JwkSet = self.get(&discovery.jwks_uri).await?;
        let mut by_id = HashMap::new();
        for key in &set.keys {
            let is_rsa = matches!(key.algorithm, AlgorithmParameters::RSA(_));
            let (Some(id), true) = (&key.common.key_id, is_rsa) else { continue };
            if let Ok(decoding) = DecodingKey::from_jwk(key) {
                by_id.insert(id.clone(), decoding);
            }
        }
        if by_id.is_empty() {
            return Err("it offers no RSA key".to_owned());
        }
        Ok(Keys { by_id, fetched: Some(Instant::now()) })
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let fetched = async {
            let mut response = self.client.get(url).send().await?.error_for_status()?;
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > MAX_DOCUMENT_BYTES {
                    break;
                }
            }
            Ok::<_, reqwest::Error>(bytes)
        };
        let bytes = tokio::time::timeout(FETCH_TIMEOUT, fetched)
            .await
            .map_err(|_| format!("no answer within {} s", FETCH_TIMEOUT.as_secs()))?
            .map_err(|error| with_causes(&error))?;
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(format!("{url} has more than {MAX_DOCUMENT_BYTES} bytes"));
        }
        serde_json::from_slice(&bytes).map_err(|error| format!("{url}: {error}"))
    }
}

/// Whether a token speaks of the job.
fn compare(claims: &Claims, context: &JobContext) -> Result<(), IdentityError> {
    let run_id = context.run_id.to_string();
    let run_attempt = context.run_attempt.to_string();
    // GitHub does not tell letter case apart in owners and repositories; a workflow's path and ref are exact.
    let same_repository = claims.repository.eq_ignore_ascii_case(&context.repository);
    let checks: [(&'static str, bool, &str, &str); 4] = [
        ("repository", same_repository, &claims.repository, &context.repository),
        (
            "workflow_ref",
            same_workflow(&claims.workflow_ref, &context.workflow_ref),
            &claims.workflow_ref,
            &context.workflow_ref,
        ),
        ("run_id", claims.run_id == run_id, &claims.run_id, &run_id),
        ("run_attempt", claims.run_attempt == run_attempt, &claims.run_attempt, &run_attempt),
    ];
    match checks.into_iter().find(|(_, same, ..)| !same) {
        None => Ok(()),
        Some((claim, _, token, context)) => Err(IdentityError::Contradiction {
            claim,
            token: portcullis_common::text::log_line(token, 200),
            context: portcullis_common::text::log_line(context, 200),
        }),
    }
}

/// Whether two references name the same workflow: owner and repository in any case, the rest exactly.
fn same_workflow(one: &str, other: &str) -> bool {
    let split = |text: &str| {
        let end = text.match_indices('/').nth(1).map_or(text.len(), |(index, _)| index);
        (text[..end].to_ascii_lowercase(), text[end..].to_owned())
    };
    split(one) == split(other)
}

#[cfg(test)]
mod tests {
    use super::{Claims, compare, same_workflow};
    use portcullis_common::job_context::JobContext;

    #[test]
    fn every_compared_claim_counts() {
        let context = JobContext {
            repository: "Octo/hello".to_owned(),
            workflow_ref: "Octo/hello/.github/workflows/ci.yml@refs/heads/main".to_owned(),
            run_id: 7,
            run_attempt: 1,
            ..JobContext::default()
        };
        let good = Claims {
            repository: "octo/hello".to_owned(),
            workflow_ref: "octo/hello/.github/workflows/ci.yml@refs/heads/main".to_owned(),
            job_workflow_ref: None,
            run_id: "7".to_owned(),
            run_attempt: "1".to_owned(),
            repository_owner: None,
            sha: None,
            exp: 0,
        };
        assert!(compare(&good, &context).is_ok());
        for bad in [
            Claims { repository: "octo/other".to_owned(), ..good.clone() },
            Claims { workflow_ref: good.workflow_ref.replace("ci", "CI"), ..good.clone() },
            Claims { workflow_ref: good.workflow_ref.replace("main", "dev"), ..good.clone() },
            Claims { run_id: "07".to_owned(), ..good.clone() },
            Claims { run_attempt: "2".to_owned(), ..good.clone() },
        ] {
            assert!(compare(&bad, &context).is_err(), "{bad:?}");
        }
        assert!(!same_workflow("a/b/c@d", "a/b/C@d") && same_workflow("A/b", "a/B"));
    }
}
