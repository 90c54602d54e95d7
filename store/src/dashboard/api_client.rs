//! The public API, called within the process for somebody who is signed in.
//!
//! Pages know nothing but what the API answers, and change nothing but by it: so nothing is only in the browser, and who may do
//! what is checked in one place.

use super::page::PageError;
use crate::api::ApiError;
use crate::api::access::{Called, InProcess};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::header::{ACCEPT, CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderName, Method, Request};
use portcullis_common::store_api::{API_ROOT, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use tower::ServiceExt as _;

/// The largest answer that a page is made of.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// The API for one caller.
#[derive(Clone, Debug)]
pub(crate) struct ApiClient {
    pub(super) router: Router,
    pub(super) called: Called,
}

/// Which version a write expects.
#[derive(Clone, Copy, Debug)]
pub(crate) enum IfVersion {
    /// None of this name is there.
    New,
    /// This one is the newest.
    Is(u64),
}

/// A path below the API's root, with parts and parameters escaped.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    text: String,
    has_query: bool,
}

/// A path: `path(&["policies", name, "versions"])`.
pub(crate) fn path(parts: &[&str]) -> Path {
    let mut text = String::new();
    for part in parts {
        text.push('/');
        text.push_str(&segment(part));
    }
    Path { text, has_query: false }
}

impl Path {
    /// With a parameter.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        let pair =
            url::form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish();
        self.text.push_str(&pair);
        self
    }

    /// With a parameter, where there is a value that is not empty.
    pub(crate) fn with_some(self, name: &str, value: Option<&str>) -> Self {
        match value.filter(|value| !value.is_empty()) {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// The path as text, below the API's root.
    #[cfg(test)]
    fn text(&self) -> &str {
        &self.text
    }
}

/// One part of a path, escaped; `:` stays, because verbs of the API have it.
pub(crate) fn segment(text: &str) -> String {
    let escaped: String = url::form_urlencoded::byte_serialize(text.as_bytes()).collect();
    let escaped = escaped.replace('+', "%20").replace("%3A", ":");
    match escaped.as_str() {
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        _ => escaped,
    }
}

impl ApiClient {
    /// Reads something.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &Path) -> Result<T, PageError> {
        read(&self.send(Method::GET, path, &[], Body::empty()).await?)
    }

    /// Reads something that may not be there.
    pub(crate) async fn find<T: DeserializeOwned>(
        &self,
        path: &Path,
    ) -> Result<Option<T>, PageError> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(PageError::Problem(problem)) if problem.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads something as text of a type.
    pub(crate) async fn text(&self, path: &Path, accept: &str) -> Result<String, PageError> {
        let bytes = self.send(Method::GET, path, &[(ACCEPT, accept)], Body::empty()).await?;
        String::from_utf8(bytes).map_err(|_| PageError::internal("an answer that is no text"))
    }

    /// Sends JSON, and reads what is answered.
    pub(crate) async fn send_json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &Path,
        body: &(impl Serialize + Sync),
    ) -> Result<T, PageError> {
        let body =
            serde_json::to_vec(body).map_err(|error| PageError::internal(error.to_string()))?;
        read(
            &self
                .send(method, path, &[(CONTENT_TYPE, "application/json")], Body::from(body))
                .await?,
        )
    }

    /// As [`Self::send_json`], if the newest version is the one that was seen.
    pub(crate) async fn send_json_if<T: DeserializeOwned>(
        &self,
        path: &Path,
        version: u64,
        body: &(impl Serialize + Sync),
    ) -> Result<T, PageError> {
        let body =
            serde_json::to_vec(body).map_err(|error| PageError::internal(error.to_string()))?;
        let tag = format!("\"{version}\"");
        let headers = [(CONTENT_TYPE, "application/json"), (IF_MATCH, &*tag)];
        read(&self.send(Method::POST, path, &headers, Body::from(body)).await?)
    }

    /// Writes a document, if what is there is what was seen.
    pub(crate) async fn put_yaml<T: DeserializeOwned>(
        &self,
        path: &Path,
        version: IfVersion,
        yaml: &str,
    ) -> Result<T, PageError> {
        let tag = match version {
            IfVersion::New => "*".to_owned(),
            IfVersion::Is(version) => format!("\"{version}\""),
        };
        let name = if matches!(version, IfVersion::New) { IF_NONE_MATCH } else { IF_MATCH };
        let headers = [(CONTENT_TYPE, "application/yaml"), (name, &*tag)];
        read(&self.send(Method::PUT, path, &headers, Body::from(yaml.to_owned())).await?)
    }

    /// Sends a document, and reads what is answered.
    pub(crate) async fn post_yaml<T: DeserializeOwned>(
        &self,
        path: &Path,
        yaml: &str,
    ) -> Result<T, PageError> {
        let headers = [(CONTENT_TYPE, "application/yaml")];
        read(&self.send(Method::POST, path, &headers, Body::from(yaml.to_owned())).await?)
    }

    /// Deletes something.
    pub(crate) async fn delete(&self, path: &Path) -> Result<(), PageError> {
        self.send(Method::DELETE, path, &[], Body::empty()).await.map(drop)
    }

    /// Deletes something, if its newest version is the one that was seen.
    pub(crate) async fn delete_if(&self, path: &Path, version: u64) -> Result<(), PageError> {
        let tag = format!("\"{version}\"");
        self.send(Method::DELETE, path, &[(IF_MATCH, &*tag)], Body::empty()).await.map(drop)
    }

    /// Asks for something to be done that needs no words.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &Path) -> Result<T, PageError> {
        read(&self.send(Method::POST, path, &[], Body::empty()).await?)
    }

    async fn send(
        &self,
        method: Method,
        path: &Path,
        headers: &[(HeaderName, &str)],
        body: Body,
    ) -> Result<Vec<u8>, PageError> {
        let mut request = Request::builder().method(method).uri(format!("{API_ROOT}{}", path.text));
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request
            .extension(ConnectInfo(SocketAddr::new(self.called.address, 0)))
            .extension(InProcess(self.called.clone()))
            .body(body)
            // Names and comments stand in the address, and people can send what is too long for one.
            .map_err(|error| {
                ApiError::bad_request(format!("this can't be asked for: {error}"))
                    .hint("a name or a comment may be too long")
            })?;
        let response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let status = response.status();
        let body = to_bytes(response.into_body(), MAX_ANSWER_BYTES)
            .await
            .map_err(|error| PageError::internal(format!("an answer for a page: {error}")))?;
        if status.is_success() {
            return Ok(body.to_vec());
        }
        let problem = serde_json::from_slice::<Problem>(&body).unwrap_or_else(|_| Problem {
            title: status.canonical_reason().unwrap_or("It could not be done").to_owned(),
            status: status.as_u16(),
            ..Problem::default()
        });
        Err(PageError::Problem(Box::new(problem)))
    }
}

/// Reads an answer; no content counts as `null`.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, PageError> {
    let body = if body.is_empty() { b"null" } else { body };
    serde_json::from_slice(body)
        .map_err(|error| PageError::internal(format!("an answer that a page can't read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn what_is_put_into_a_path_stays_one_part() {
        let made = path(&["policies", "a/../b?c=d#e f", ".."])
            .with("q", "1&2=3 é")
            .with_some("r", Some(""));
        assert_eq!(made.text(), "/policies/a%2F..%2Fb%3Fc%3Dd%23e%20f/%2E%2E?q=1%262%3D3+%C3%A9");
        assert_eq!(path(&["policies:export"]).text(), "/policies:export");
    }
}
