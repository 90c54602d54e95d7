//! An issuer of OIDC tokens as GitHub is one: discovery, keys, RS256.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub struct Issuer {
    address: SocketAddr,
    key: EncodingKey,
    modulus: Vec<u8>,
    fetches: Arc<AtomicUsize>,
    down: Arc<AtomicBool>,
}

impl Issuer {
    pub async fn start() -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = pair.as_der().unwrap();
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            STANDARD.encode(der.as_ref())
        );
        let public = pair.public_key();
        let modulus = public.modulus().big_endian_without_leading_zero().to_vec();
        let exponent = public.exponent().big_endian_without_leading_zero().to_vec();
        let keys = json!({ "keys": [
            { "kty": "RSA", "use": "sig", "alg": "RS256", "kid": "key-1", "n": URL_SAFE_NO_PAD.encode(&modulus), "e": URL_SAFE_NO_PAD.encode(exponent) },
            { "kty": "oct", "kid": "secret", "k": "AAAA" },
        ] });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (fetches, down) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let discovery = json!({ "issuer": format!("http://{address}"), "jwks_uri": format!("http://{address}/keys") });
        let (counted, is_down) = (Arc::clone(&fetches), Arc::clone(&down));
        let answer = move |value: Value| {
            if is_down.load(Ordering::SeqCst) {
                Err(StatusCode::BAD_GATEWAY)
            } else {
                Ok(axum::Json(value))
            }
        };
        let also = answer.clone();
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(async move || answer(discovery)))
            .route(
                "/keys",
                get(async move || {
                    counted.fetch_add(1, Ordering::SeqCst);
                    also(keys)
                }),
            );
        tokio::spawn(async move { axum::serve(listener, router).await });
        let key = EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
        Self { address, key, modulus, fetches, down }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often the keys were asked for.
    pub fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// What GitHub says of the job of [`super::context`].
    pub fn claims(&self) -> Value {
        let now = jiff::Timestamp::now().as_second();
        json!({
            "iss": self.url(), "aud": "https://store.test", "sub": "repo:octo/hello:ref:refs/heads/main",
            "iat": now, "nbf": now - 5, "exp": now + 300, "jti": "one",
            "repository": "octo/hello", "repository_owner": "octo",
            "workflow_ref": "octo/hello/.github/workflows/ci.yml@refs/heads/main",
            "job_workflow_ref": "octo/hello/.github/workflows/ci.yml@refs/heads/main",
            "run_id": "7", "run_attempt": "1", "sha": "0123456789abcdef0123456789abcdef01234567",
        })
    }

    pub fn token(&self, claims: &Value) -> String {
        self.signed_with(claims, "key-1", Algorithm::RS256)
    }

    pub fn signed_with(&self, claims: &Value, key_id: &str, algorithm: Algorithm) -> String {
        let header = Header { kid: Some(key_id.to_owned()), ..Header::new(algorithm) };
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }

    /// HS256 with the public key as secret: the classic confusion of algorithms.
    pub fn signed_by_public_key(&self, claims: &Value) -> String {
        let header = Header { kid: Some("key-1".to_owned()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(&self.modulus)).unwrap()
    }

    pub fn encode(value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }
}
