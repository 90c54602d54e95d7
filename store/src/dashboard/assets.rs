//! Scripts and styles, as the build made them (`store/build.rs`).

use axum::http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};

include!(concat!(env!("OUT_DIR"), "/dashboard_assets.rs"));

/// One file.
#[derive(Debug)]
pub(super) struct Asset {
    /// What templates call it: `app.js`.
    name: &'static str,
    /// The file, with the hash of its contents in the name.
    file: &'static str,
    content_type: &'static str,
    body: &'static [u8],
    gzip: &'static [u8],
}

/// Whether this program was built with its dashboard.
pub(crate) const fn is_built() -> bool {
    BUILT.is_some()
}

/// The address of an asset; nothing when it was not built.
pub(super) fn address(name: &str) -> String {
    let found = BUILT.into_iter().flatten().find(|asset| asset.name == name);
    found.map(|asset| format!("/assets/{}", asset.file)).unwrap_or_default()
}

/// Answers a request for an asset. Its name has the hash of its contents, so it may be kept for good.
pub(super) fn answer(file: &str, headers: &HeaderMap) -> Response {
    let Some(asset) = BUILT.into_iter().flatten().find(|asset| asset.file == file) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let takes_gzip = headers
        .get(ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.split(',').any(|part| part.trim().starts_with("gzip")));
    let mut response =
        if takes_gzip { asset.gzip.into_response() } else { asset.body.into_response() };
    let headers = response.headers_mut();
    if takes_gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    response
}
