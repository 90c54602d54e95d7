//! GitHub as far as it signs OIDC tokens of jobs: discovery and keys for the store, tokens for jobs that ask with their own
//! request token.

use super::http::Response;
use super::web::Web;
use crate::sync::lock;
use anyhow::Result;
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// Who signs the tokens of jobs on github.com.
pub const ISSUER_HOST: &str = "token.actions.githubusercontent.com";

/// Where a job asks for a token: `ACTIONS_ID_TOKEN_REQUEST_URL` begins with it.
pub const REQUEST_HOST: &str = "pipelines.actions.githubusercontent.com";

/// What a job asks with: `ACTIONS_ID_TOKEN_REQUEST_TOKEN`.
pub const REQUEST_TOKEN: &str = "r3quest";

/// The signer of a world.
#[derive(Clone, Debug)]
pub struct IdTokens {
    claims: Arc<Mutex<Value>>,
    audience: String,
}

impl IdTokens {
    /// Signs on the world's web servers, for `audience` and nobody else.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn serve(web: &Web, audience: &str) -> Result<Self> {
        let pair = KeyPair::generate(KeySize::Rsa2048)?;
        let der = pair.as_der()?;
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            STANDARD.encode(der.as_ref())
        );
        let key = EncodingKey::from_rsa_pem(pem.as_bytes())?;
        let public = pair.public_key();
        let keys = json!({ "keys": [{
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": "k",
            "n": URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero()),
            "e": URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero()),
        }] });
        let discovery = json!({
            "issuer": format!("https://{ISSUER_HOST}"),
            "jwks_uri": format!("https://{ISSUER_HOST}/jwks"),
        });
        web.route(ISSUER_HOST, "/.well-known/", move |_| Response::ok(discovery.to_string()));
        web.route(ISSUER_HOST, "/jwks", move |_| Response::ok(keys.to_string()));
        let tokens = Self { claims: Arc::default(), audience: audience.to_owned() };
        let (claims, audience) = (Arc::clone(&tokens.claims), escaped(audience));
        web.route(REQUEST_HOST, "/idtoken", move |request| {
            let is_asked_by_the_job = request.headers.iter().any(|(name, value)| {
                name == "authorization" && *value == format!("Bearer {REQUEST_TOKEN}")
            });
            if !is_asked_by_the_job || !request.query.contains(&format!("audience={audience}")) {
                return Response::new(403, request.query.clone());
            }
            let header = Header { kid: Some("k".to_owned()), ..Header::new(Algorithm::RS256) };
            match jsonwebtoken::encode(&header, &*lock(&claims), &key) {
                Ok(token) => Response::ok(json!({ "value": token }).to_string()),
                Err(error) => Response::new(500, error.to_string()),
            }
        });
        Ok(tokens)
    }

    /// What GitHub says from now on: that whoever asks is this run of `octo/hello`'s workflow `ci.yml`.
    pub fn vouch_for_run(&self, run_id: u64) {
        let now = jiff::Timestamp::now().as_second();
        *lock(&self.claims) = json!({
            "iss": format!("https://{ISSUER_HOST}"), "aud": self.audience, "sub": "repo:octo/hello",
            "iat": now, "nbf": now, "exp": now + 600, "jti": uuid::Uuid::now_v7(),
            "repository": "octo/hello", "workflow_ref": "octo/hello/.github/workflows/ci.yml@refs/heads/main",
            "run_id": run_id.to_string(), "run_attempt": "1",
        });
    }
}

/// As it stands in a query.
fn escaped(text: &str) -> String {
    text.replace(':', "%3A").replace('/', "%2F")
}
