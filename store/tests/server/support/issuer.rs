//! An issuer of OIDC tokens as GitHub is one (discovery, keys, RS256), and an OpenID Connect provider that people sign in with
//! (authorization endpoint, token endpoint with PKCE, userinfo). Its keys can be rotated.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The client that may sign people in, and its secret; one without a secret is public.
pub const CLIENT: &str = "portcullis";
pub const CLIENT_SECRET: &str = "s3cret of:the client";

/// What the address of the keys answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeysAnswer {
    Keys,
    Fails,
    /// Nothing, for a long time.
    Hangs,
}

pub struct Issuer {
    address: SocketAddr,
    path: &'static str,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    url: String,
    key: EncodingKey,
    key_id: String,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
    fetches: usize,
    is_down: bool,
    keys_answer: KeysAnswer,
    /// Whether the person is signed in there, so that nothing has to be asked.
    is_signed_in: bool,
    /// How often a browser came to be confirmed.
    confirmations: usize,
    /// Who signs in, and what is said of the person.
    person: Value,
    /// What userinfo says; `None`: there is no such endpoint.
    userinfo: Option<Value>,
    /// Codes that were given, and what belongs to each.
    codes: HashMap<String, HashMap<String, String>>,
    /// What is changed in id tokens: for tokens that are not as they must be.
    twist: Value,
    /// Whether clients have to say a secret.
    is_confidential: bool,
}

impl Shared {
    fn make_key(&mut self, key_id: &str) {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = pair.as_der().unwrap();
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            STANDARD.encode(der.as_ref())
        );
        let public = pair.public_key();
        self.modulus = public.modulus().big_endian_without_leading_zero().to_vec();
        self.exponent = public.exponent().big_endian_without_leading_zero().to_vec();
        self.key = EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
        key_id.clone_into(&mut self.key_id);
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::RS256) };
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }

    fn discovery(&self) -> Value {
        let url = &self.url;
        let mut document = json!({
            "issuer": url, "jwks_uri": format!("{url}/keys"),
            "authorization_endpoint": format!("{url}/authorize?tenant=one"),
            "token_endpoint": format!("{url}/token"), "end_session_endpoint": format!("{url}/logout"),
        });
        if self.userinfo.is_some() {
            document["userinfo_endpoint"] = json!(format!("{url}/userinfo"));
        }
        document
    }

    fn keys(&mut self) -> Value {
        self.fetches += 1;
        json!({ "keys": [
            {
                "kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.key_id,
                "n": URL_SAFE_NO_PAD.encode(&self.modulus), "e": URL_SAFE_NO_PAD.encode(&self.exponent),
            },
            { "kty": "oct", "kid": "secret", "k": "AAAA" },
        ] })
    }

    /// What a code is exchanged for, when everything that belongs to it is said.
    fn exchange(&mut self, headers: &HeaderMap, body: &str) -> Result<Value, &'static str> {
        let form = pairs(body);
        let escaped: String =
            url::form_urlencoded::byte_serialize(CLIENT_SECRET.as_bytes()).collect();
        let basic = format!("Basic {}", STANDARD.encode(format!("{CLIENT}:{escaped}")));
        let said = headers.get("authorization").and_then(|value| value.to_str().ok());
        let is_known = if self.is_confidential {
            said == Some(basic.as_str())
        } else {
            said.is_none() && form.get("client_id").map(String::as_str) == Some(CLIENT)
        };
        if !is_known {
            return Err("invalid_client");
        }
        let given = form.get("code").and_then(|code| self.codes.remove(code));
        let given = given.ok_or("invalid_grant")?;
        let verifier = form.get("code_verifier").ok_or("invalid_request")?;
        let is_its = form.get("grant_type").map(String::as_str) == Some("authorization_code")
            && form.get("redirect_uri") == given.get("redirect_uri")
            && given.get("code_challenge")
                == Some(&URL_SAFE_NO_PAD.encode(Sha256::digest(verifier)));
        if !is_its {
            return Err("invalid_grant");
        }
        let now = jiff::Timestamp::now().as_second();
        let mut claims = json!({
            "iss": self.url, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": given.get("nonce"),
        });
        for more in [&self.person, &self.twist] {
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        Ok(
            json!({ "token_type": "Bearer", "access_token": "acc3ss", "id_token": self.sign(&claims) }),
        )
    }
}

fn pairs(text: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

type TheShared = State<Arc<Mutex<Shared>>>;

/// A person at the provider's page, who agrees at once.
async fn authorize(State(shared): TheShared, RawQuery(query): RawQuery) -> Response {
    let asked = pairs(&query.unwrap_or_default());
    let is_good = asked.get("tenant").map(String::as_str) == Some("one")
        && asked.get("response_type").map(String::as_str) == Some("code")
        && asked.get("client_id").map(String::as_str) == Some(CLIENT)
        && asked.get("scope").is_some_and(|scope| scope.split(' ').any(|word| word == "openid"))
        && asked.get("code_challenge_method").map(String::as_str) == Some("S256");
    if !is_good {
        return (StatusCode::BAD_REQUEST, format!("{asked:?}")).into_response();
    }
    let mut shared = shared.lock().unwrap();
    let mut back = url::Url::parse(&asked["redirect_uri"]).unwrap();
    if asked.get("prompt").map(String::as_str) == Some("none") {
        shared.confirmations += 1;
        assert_eq!(asked.get("login_hint").map(String::as_str), shared.person["email"].as_str());
        if !shared.is_signed_in {
            back.query_pairs_mut()
                .append_pair("error", "login_required")
                .append_pair("state", &asked["state"]);
            return Redirect::to(back.as_str()).into_response();
        }
    }
    let code = format!("code-{}", uuid::Uuid::now_v7());
    back.query_pairs_mut()
        .append_pair("code", &code)
        .append_pair("state", &asked["state"])
        .append_pair("iss", &shared.url);
    shared.codes.insert(code, asked);
    Redirect::to(back.as_str()).into_response()
}

impl Issuer {
    pub async fn start() -> Self {
        Self::start_below("").await
    }

    /// One whose address has a path, as that of a GitHub Enterprise Server has: `/_services/token`.
    pub async fn start_below(path: &'static str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut shared = Shared {
            url: format!("http://{address}{path}"),
            key: EncodingKey::from_secret(&[]),
            key_id: String::new(),
            modulus: Vec::new(),
            exponent: Vec::new(),
            fetches: 0,
            is_down: false,
            keys_answer: KeysAnswer::Keys,
            is_signed_in: true,
            confirmations: 0,
            person: json!({ "sub": "248289761001", "email": "ada@example.com", "groups": ["developers"] }),
            userinfo: None,
            codes: HashMap::new(),
            twist: json!({}),
            is_confidential: true,
        };
        shared.make_key("key-1");
        let shared = Arc::new(Mutex::new(shared));
        let router = Router::new()
            .route(
                "/.well-known/openid-configuration",
                get(async |State(shared): TheShared| {
                    let shared = shared.lock().unwrap();
                    if shared.is_down {
                        return Err(StatusCode::BAD_GATEWAY);
                    }
                    Ok(Json(shared.discovery()))
                }),
            )
            .route(
                "/keys",
                get(async |State(shared): TheShared| {
                    let answer = shared.lock().unwrap().keys_answer;
                    if answer == KeysAnswer::Hangs {
                        tokio::time::sleep(Duration::from_mins(10)).await;
                    }
                    let mut shared = shared.lock().unwrap();
                    if shared.is_down || answer != KeysAnswer::Keys {
                        return Err(StatusCode::BAD_GATEWAY);
                    }
                    Ok(Json(shared.keys()))
                }),
            )
            .route("/authorize", get(authorize))
            .route(
                "/token",
                post(
                    async |State(shared): TheShared, headers: HeaderMap, body: String| match shared
                        .lock()
                        .unwrap()
                        .exchange(&headers, &body)
                    {
                        Ok(tokens) => Ok(Json(tokens)),
                        Err(code) => Err((StatusCode::BAD_REQUEST, Json(json!({ "error": code })))),
                    },
                ),
            )
            .route(
                "/userinfo",
                get(async |State(shared): TheShared, headers: HeaderMap| {
                    let is_asked_well =
                        headers.get("authorization").is_some_and(|value| value == "Bearer acc3ss");
                    let told = shared.lock().unwrap().userinfo.clone().filter(|_| is_asked_well);
                    told.map(Json).ok_or(StatusCode::UNAUTHORIZED)
                }),
            )
            .with_state(Arc::clone(&shared));
        let router = if path.is_empty() { router } else { Router::new().nest(path, router) };
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, path, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}{}", self.address, self.path)
    }

    /// How often the keys were asked for.
    pub fn fetches(&self) -> usize {
        self.shared.lock().unwrap().fetches
    }

    pub fn set_down(&self, down: bool) {
        self.shared.lock().unwrap().is_down = down;
    }

    /// What the address of the keys answers from now on; the rest of the issuer goes on.
    pub fn set_keys(&self, answer: KeysAnswer) {
        self.shared.lock().unwrap().keys_answer = answer;
    }

    /// Whether somebody is signed in at the provider.
    pub fn set_signed_in(&self, signed_in: bool) {
        self.shared.lock().unwrap().is_signed_in = signed_in;
    }

    /// How often a browser came to be confirmed without a word.
    pub fn confirmations(&self) -> usize {
        self.shared.lock().unwrap().confirmations
    }

    /// From now on it signs with a key of this name, and no longer offers the one before.
    pub fn rotate(&self, key_id: &str) {
        self.shared.lock().unwrap().make_key(key_id);
    }

    /// Who signs in from now on.
    pub fn set_person(&self, person: Value) {
        self.shared.lock().unwrap().person = person;
    }

    /// What userinfo says from now on.
    pub fn set_userinfo(&self, userinfo: Value) {
        self.shared.lock().unwrap().userinfo = Some(userinfo);
    }

    /// What id tokens of people say instead of what they should.
    pub fn twist(&self, claims: Value) {
        self.shared.lock().unwrap().twist = claims;
    }

    /// The client has no secret.
    pub fn make_public(&self) {
        self.shared.lock().unwrap().is_confidential = false;
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
        self.shared.lock().unwrap().sign(claims)
    }

    pub fn signed_with(&self, claims: &Value, key_id: &str, algorithm: Algorithm) -> String {
        let header = Header { kid: Some(key_id.to_owned()), ..Header::new(algorithm) };
        jsonwebtoken::encode(&header, claims, &self.shared.lock().unwrap().key).unwrap()
    }

    /// HS256 with the public key as secret: the classic confusion of algorithms.
    pub fn signed_by_public_key(&self, claims: &Value) -> String {
        let shared = self.shared.lock().unwrap();
        let header = Header { kid: Some(shared.key_id.clone()), ..Header::new(Algorithm::HS256) };
        let key = EncodingKey::from_secret(&shared.modulus);
        jsonwebtoken::encode(&header, claims, &key).unwrap()
    }

    pub fn encode(value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }
}
