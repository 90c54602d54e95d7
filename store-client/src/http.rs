//! One connection to a store: where it is, whom to trust, how long to wait, how much to take.

use crate::error::StoreError;
use portcullis_common::hook::with_causes;
use portcullis_common::store_api::{API_ROOT, Problem};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use std::time::Duration;
use url::Url;

/// The largest answer in bytes: a policy of 100 000 endpoints, or a page of a thousand events.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// How long connecting may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// A store that can be asked.
#[derive(Clone, Debug)]
pub struct Connection {
    client: Client,
    base: Url,
    patience: Duration,
}

/// What the store answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Connection {
    /// The store at `url`. `authorities` are certificates, PEM, that are trusted beside the system's; `patience` is how long a
    /// whole request may take.
    ///
    /// # Errors
    /// When the address or the certificates can't be understood. Plain HTTP is for the same machine alone.
    pub fn new(
        url: &str,
        authorities: Option<&[u8]>,
        patience: Duration,
    ) -> Result<Self, StoreError> {
        let wrong = || StoreError::Address(url.to_owned());
        let mut base = Url::parse(url).map_err(|_| wrong())?;
        let is_own = match base.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        if !(base.scheme() == "https" || base.scheme() == "http" && is_own) || !base.has_host() {
            return Err(wrong());
        }
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        let failed = |error: reqwest::Error| StoreError::Client(with_causes(&error));
        let mut builder = Client::builder()
            .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_PATIENCE)
            // A store that moves is configured anew; credentials are not carried to where an answer points.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(pem) = authorities {
            for certificate in reqwest::Certificate::from_pem_bundle(pem).map_err(failed)? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        Ok(Self { client: builder.build().map_err(failed)?, base, patience })
    }

    /// A request below the root of the API: `resolve`, `policies/x`.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let root = API_ROOT.trim_start_matches('/');
        self.client.request(method, format!("{}{root}/{path}", self.base)).timeout(self.patience)
    }

    /// The client itself, for requests to others with the same trust.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a request and returns the answer, if it is one of success.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Reply, StoreError> {
        let failed =
            |error: reqwest::Error| StoreError::of(&error, self.base.as_str(), self.patience);
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let headers = response.headers().clone();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(StoreError::TooLarge(MAX_ANSWER_BYTES));
            }
        }
        if status.is_success() {
            return Ok(Reply { headers, body });
        }
        Err(StoreError::Refused(Box::new(problem(status, &body))))
    }
}

/// The problem that was answered, or one made of the status when a proxy answered something else.
fn problem(status: StatusCode, body: &[u8]) -> Problem {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) if problem.status == status.as_u16() => problem,
        _ => Problem {
            kind: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or_default().to_owned(),
            status: status.as_u16(),
            detail: format!("status {status}, and no explanation"),
            hint: Some(
                "is this the address of a Portcullis store, and not of something in front of it?"
                    .to_owned(),
            ),
            ..Problem::default()
        },
    }
}

/// Reads JSON.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(body).map_err(|error| StoreError::NotUnderstood(error.to_string()))
}
