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
pub(super) const fn is_built() -> bool {
    BUILT.is_ok()
}

/// Why this program was built without its dashboard; nothing where it has one.
pub(crate) fn why_missing() -> Option<&'static str> {
    BUILT.err()
}

/// What people are told in the place of every page by a program that was built without its dashboard; nothing by others.
pub(super) fn missing() -> Option<String> {
    why_missing().map(without)
}

fn without(reason: &str) -> String {
    format!(
        "This server was built without its dashboard: {reason}.\n\n\
         The API at /api/v1 (described at /openapi.json) and the command line `portcullis` are complete.\n\
         To have the dashboard, build with Node.js 20 or newer and npm: `PORTCULLIS_DASHBOARD=required cargo build --release`.\n"
    )
}

/// The address of an asset; nothing when it was not built.
pub(super) fn address(name: &str) -> String {
    let found = BUILT.iter().copied().flatten().find(|asset| asset.name == name);
    found.map(|asset| format!("/assets/{}", asset.file)).unwrap_or_default()
}

/// Answers a request for an asset. Its name has the hash of its contents, so it may be kept for good.
pub(super) fn answer(file: &str, headers: &HeaderMap) -> Response {
    let Some(asset) = BUILT.iter().copied().flatten().find(|asset| asset.file == file) else {
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

#[cfg(test)]
mod tests {
    use super::{is_built, missing, without};
    use std::fs;
    use std::path::Path;
    use std::process::{Command, Output};

    /// Runs the build script where no program is found in `PATH`.
    fn build_without_node(program: &Path, out: &Path, wish: &str) -> Output {
        Command::new(program)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("PATH", out.join("no-programs"))
            .env("OUT_DIR", out)
            .env("PORTCULLIS_DASHBOARD", wish)
            .output()
            .unwrap()
    }

    #[test]
    fn a_build_without_node_goes_on_and_says_so_unless_the_dashboard_is_required() {
        let out = tempfile::tempdir().unwrap();
        let program = out.path().join("build-script");
        // The script needs nothing but the standard library.
        let compiled = Command::new("rustc")
            .args(["--edition=2024", "--crate-name=build_script", "build.rs", "-o"])
            .arg(&program)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(compiled.success());
        let built = build_without_node(&program, out.path(), "");
        let told = String::from_utf8_lossy(&built.stdout);
        assert!(built.status.success(), "{built:?}");
        assert!(
            told.contains(
                "cargo::warning=portcullis is built WITHOUT its dashboard: npm can't be run"
            ),
            "{told}"
        );
        assert!(told.contains("cargo::rerun-if-env-changed=PATH"), "{told}");
        let code = fs::read_to_string(out.path().join("dashboard_assets.rs")).unwrap();
        assert!(code.contains("= Err(\"npm can't be run"), "{code}");
        let refused = build_without_node(&program, out.path(), "required");
        assert!(!refused.status.success(), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("npm can't be run"));
    }

    #[test]
    fn who_has_no_dashboard_is_told_why_and_what_there_is() {
        let told = without("node can't be run (No such file or directory)");
        for part in ["without its dashboard: node can't be run", "/api/v1", "Node.js 20"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert_eq!(missing().is_none(), is_built());
    }
}
