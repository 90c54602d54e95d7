//! People sign in by OpenID Connect: authorization code flow (OpenID Connect Core 1.0, 3.1) with PKCE (RFC 7636).
//!
//! Deciding is apart from asking: [`attempt`] is what a browser brings back, [`person`] is what the provider's claims come
//! to; both are pure. [`SignIn`] asks the provider.

pub mod attempt;
pub mod person;

use super::issuer::{Discovery, FETCH_TIMEOUT, Issuer, KeysAt, bounded_json};
use super::secret::NoRandomness;
use crate::configuration::SignInConfiguration;
use crate::database::Vouched;
use attempt::{Answered, Attempt, Sealer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, Validation};
use person::{IdClaims, Person, groups, most};
use portcullis_common::store_api::Role;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use url::Url;
use url::form_urlencoded::Serializer;

/// The path of this store that the provider sends people back to; it has to be registered there.
pub const CALLBACK_PATH: &str = "/sign-in/callback";

/// How far the clocks of the provider and the store may be apart.
const LEEWAY: Duration = Duration::from_mins(1);

/// The algorithms that providers may sign with: all with a public key. `none` and shared secrets are not among them.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Why somebody is not signed in.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SignInError {
    /// What the browser brought back is not the end of what it began here.
    #[error("this sign-in was not begun in this browser, or is over: {0}")]
    Attempt(&'static str),
    /// The provider refused, or the person did.
    #[error("the provider did not sign you in: {0}")]
    Refused(String),
    /// The provider's token is not what it must be.
    #[error("the provider's answer is refused: {0}")]
    Token(String),
    /// The person is known, and may do nothing here.
    #[error("{name} is in no group that may use this store")]
    NoRole {
        /// What people call the person.
        name: String,
        /// The issuer and the subject.
        subject: String,
    },
    /// The provider can't be asked.
    #[error("the provider {issuer} can't be asked: {reason}")]
    Unavailable {
        /// The provider.
        issuer: String,
        /// Why.
        reason: String,
    },
    /// The system gave no random numbers.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// The provider that people sign in with.
#[derive(Debug)]
pub struct SignIn {
    configuration: SignInConfiguration,
    secret: Option<SecretString>,
    redirect_uri: String,
    issuer: Issuer,
    client: reqwest::Client,
    sealer: Sealer,
}

/// How long ago the provider vouched for a person, in steps of `sign-in.confirm-minutes`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Confirmation {
    /// Not long ago.
    Fresh,
    /// It is to be asked again with the next page; what scripts and forms of a page ask for goes on.
    Due,
    /// Nothing goes on before it was asked.
    Overdue,
}

/// A sign-in that began: where to send the browser, and what it has to keep meanwhile.
#[derive(Debug)]
pub struct Begun {
    /// The provider's page.
    pub url: Url,
    /// The value of the cookie that belongs to it.
    pub cookie: String,
}

/// A sign-in that came to its end.
#[derive(Debug)]
pub struct SignedIn {
    /// Who it is.
    pub person: Person,
    /// The path of this store where it began.
    pub return_to: String,
    /// Whether it only confirms a session that the person has.
    pub confirms: bool,
}

/// What the token endpoint answers.
#[derive(Deserialize)]
struct Tokens {
    id_token: String,
    #[serde(default)]
    access_token: Option<String>,
}

impl SignIn {
    /// A provider as configured. `secret` is this store's at the provider, `sealer` closes what browsers keep.
    pub fn new(
        configuration: SignInConfiguration,
        secret: Option<SecretString>,
        public_url: &str,
        client: reqwest::Client,
        sealer: Sealer,
    ) -> Self {
        let redirect_uri = format!("{}{CALLBACK_PATH}", public_url.trim_end_matches('/'));
        let issuer = Issuer::new(&configuration.issuer, KeysAt::Anywhere, client.clone());
        Self { configuration, secret, redirect_uri, issuer, client, sealer }
    }

    /// The provider's host, for people.
    pub fn provider(&self) -> String {
        Url::parse(self.issuer.url())
            .ok()
            .and_then(|url| url.host_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// Begins a sign-in that ends at the local path `return_to`.
    ///
    /// # Errors
    /// When the provider can't be asked for its addresses.
    pub async fn begin(&self, return_to: &str, now_s: i64) -> Result<Begun, SignInError> {
        self.begin_as(Attempt::new(return_to, now_s)?).await
    }

    /// Asks the provider whether a person is still who they were, without a word to them, and ends at the local path `return_to`.
    ///
    /// # Errors
    /// When the provider can't be asked for its addresses.
    pub async fn confirm(
        &self,
        name: &str,
        return_to: &str,
        now_s: i64,
    ) -> Result<Begun, SignInError> {
        let attempt = Attempt::new(return_to, now_s)?;
        self.begin_as(Attempt { confirms: Some(name.to_owned()), ..attempt }).await
    }

    async fn begin_as(&self, attempt: Attempt) -> Result<Begun, SignInError> {
        let discovery = self.issuer.discovery().await.map_err(|reason| self.unavailable(reason))?;
        let endpoint = self.endpoint(discovery.authorization_endpoint.as_deref())?;
        let scopes = ["openid".to_owned()].into_iter().chain(self.configuration.scopes.clone());
        let scopes: Vec<String> = scopes.collect();
        let url = attempt.url(
            endpoint,
            &self.configuration.client_id,
            &self.redirect_uri,
            &scopes.join(" "),
        );
        Ok(Begun { url, cookie: self.sealer.seal(&attempt)? })
    }

    /// Ends a sign-in: `cookie` is what [`Self::begin`] gave, `answered` what the provider sent the browser back with.
    ///
    /// # Errors
    /// When anything about it is not as it must be.
    pub async fn finish(
        &self,
        cookie: Option<&str>,
        answered: &Answered,
        now_s: i64,
    ) -> Result<SignedIn, SignInError> {
        let cookie = cookie.ok_or(SignInError::Attempt("the browser sent no cookie of it"))?;
        let attempt = self.sealer.open(cookie)?;
        let code = attempt.accept(answered, self.issuer.url(), now_s)?;
        let discovery = self.issuer.discovery().await.map_err(|reason| self.unavailable(reason))?;
        let tokens = self.exchange(&discovery, code, &attempt).await?;
        let claims = self.verify(&tokens.id_token, &attempt).await?;
        let found = groups(&claims.rest, &self.configuration.groups_claim);
        let found = match (found, &discovery.userinfo_endpoint, &tokens.access_token) {
            (Some(groups), ..) => groups,
            // Some providers tell groups only there.
            (None, Some(endpoint), Some(token)) => {
                self.asked_groups(endpoint, token, &claims.sub).await?
            }
            (None, ..) => Vec::new(),
        };
        let person = Person::new(&claims, self.issuer.url(), &found, &self.configuration.roles)?;
        Ok(SignedIn { person, return_to: attempt.return_to, confirms: attempt.confirms.is_some() })
    }

    /// Whether what a browser brings back belongs to a confirmation that it began itself.
    pub fn is_confirmation(&self, cookie: Option<&str>, answered: &Answered) -> bool {
        cookie.and_then(|cookie| self.sealer.open(cookie).ok()).is_some_and(|attempt| {
            attempt.confirms.is_some() && attempt.is_answered_by(answered)
        })
    }

    /// What a person of this provider may do now, and how their session stands; `None` when they may do nothing any more.
    pub fn standing(
        &self,
        subject: &str,
        vouched: &Vouched,
        now_ms: i64,
    ) -> Option<(Role, Confirmation)> {
        let is_its =
            subject.strip_prefix(self.issuer.url()).is_some_and(|rest| rest.starts_with(' '));
        let role = most(&vouched.groups, &self.configuration.roles).filter(|_| is_its)?;
        let due = i64::from(self.configuration.confirm_minutes) * 60_000;
        let confirmation = match now_ms.saturating_sub(vouched.confirmed_ms) {
            age if age < due => Confirmation::Fresh,
            age if age < 2 * due => Confirmation::Due,
            _ => Confirmation::Overdue,
        };
        Some((role, confirmation))
    }

    fn unavailable(&self, reason: String) -> SignInError {
        SignInError::Unavailable { issuer: self.issuer.url().to_owned(), reason }
    }

    /// An address of the provider. Secrets and codes go there: only over TLS, unless the whole provider is on this machine.
    fn endpoint(&self, text: Option<&str>) -> Result<Url, SignInError> {
        let is_plain = self.issuer.url().starts_with("http://");
        text.and_then(|text| Url::parse(text).ok())
            .filter(|url| url.scheme() == "https" || is_plain && url.scheme() == "http")
            .ok_or_else(|| {
                self.unavailable(
                    "its discovery document lacks an address that is needed".to_owned(),
                )
            })
    }

    /// Makes tokens of a code.
    async fn exchange(
        &self,
        discovery: &Discovery,
        code: &str,
        attempt: &Attempt,
    ) -> Result<Tokens, SignInError> {
        let endpoint = self.endpoint(discovery.token_endpoint.as_deref())?;
        let client_id = &self.configuration.client_id;
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", &self.redirect_uri),
            ("code_verifier", &attempt.verifier),
        ];
        let mut request = self.client.post(endpoint).timeout(FETCH_TIMEOUT);
        match &self.secret {
            None => form.push(("client_id", client_id)),
            Some(secret) => {
                let methods = &discovery.token_endpoint_auth_methods_supported;
                let takes_basic =
                    methods.is_empty() || methods.iter().any(|name| name == "client_secret_basic");
                if takes_basic {
                    // RFC 6749, 2.3.1: both are escaped as in a form before they are joined.
                    let escaped = |text: &str| {
                        url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>()
                    };
                    let both =
                        format!("{}:{}", escaped(client_id), escaped(secret.expose_secret()));
                    let value = format!("Basic {}", STANDARD.encode(both));
                    request = request.header(reqwest::header::AUTHORIZATION, value);
                } else {
                    form.push(("client_id", client_id));
                    form.push(("client_secret", secret.expose_secret()));
                }
            }
        }
        let request = request
            .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(reqwest::header::ACCEPT, "application/json")
            .body(Serializer::new(String::new()).extend_pairs(form).finish());
        bounded_json(request).await.map_err(|reason| {
            if reason.contains("invalid_grant") {
                return SignInError::Attempt("the provider does not know its code (any more)");
            }
            self.unavailable(reason)
        })
    }

    /// Verifies an id token (OpenID Connect Core 1.0, 3.1.3.7).
    async fn verify(&self, token: &str, attempt: &Attempt) -> Result<IdClaims, SignInError> {
        let refused = |error: jsonwebtoken::errors::Error| SignInError::Token(error.to_string());
        let header = jsonwebtoken::decode_header(token).map_err(refused)?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(SignInError::Token(format!("it is signed with {:?}", header.alg)));
        }
        let key_id =
            header.kid.ok_or_else(|| SignInError::Token("it names no key (`kid`)".to_owned()))?;
        let key = self.issuer.key(&key_id, header.alg).await;
        let key = key.map_err(|reason| self.unavailable(reason))?.ok_or_else(|| {
            SignInError::Token("the provider has no key that it was signed with".to_owned())
        })?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        validation.set_audience(&[&self.configuration.client_id]);
        // Discovery allows a slash at the end, and the token repeats it.
        let slashed = format!("{}/", self.issuer.url());
        validation.set_issuer(&[self.issuer.url(), slashed.as_str()]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims =
            jsonwebtoken::decode::<IdClaims>(token, &key, &validation).map_err(refused)?.claims;
        claims.check(&self.configuration.client_id, &attempt.nonce)?;
        Ok(claims)
    }

    /// Asks for a person's groups.
    async fn asked_groups(
        &self,
        endpoint: &str,
        access_token: &str,
        subject: &str,
    ) -> Result<Vec<String>, SignInError> {
        let endpoint = self.endpoint(Some(endpoint))?;
        let asked: Value = bounded_json(self.client.get(endpoint).bearer_auth(access_token))
            .await
            .map_err(|reason| self.unavailable(reason))?;
        // Core, 5.3.2: an answer about another person must not be used.
        if asked.get("sub").and_then(Value::as_str) != Some(subject) {
            return Err(SignInError::Token("it tells about another person".to_owned()));
        }
        let asked = asked.as_object().cloned().unwrap_or_default();
        Ok(groups(&asked, &self.configuration.groups_claim).unwrap_or_default())
    }
}
