//! The OpenAPI document says what the server does.

use crate::support::{Backend, World, run, send};
use reqwest::Method;

#[test]
fn every_route_is_described() {
    run(Backend::Sqlite, async |world: World| {
        let server = world.start().await;
        let document = send(server.anonymous(Method::GET, "/openapi.json")).await.expect(200);
        assert_eq!(document["openapi"], "3.1.0");
        for route in &server.running.routes {
            if ["/openapi.json", "/metrics"].contains(&route.path.as_str()) {
                continue;
            }
            let operation = &document["paths"][&route.path][route.method.to_ascii_lowercase()];
            assert!(operation["summary"].is_string(), "{} {}", route.method, route.path);
            assert_eq!(
                operation["security"].as_array().unwrap().is_empty(),
                route.access.words().is_none()
            );
        }
        is_checked_in(&document);
        // Every reference leads somewhere.
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        server.stop().await;
    });
}

/// The document that is checked in is the one that is served, so that a change of the API is seen by who reviews it.
fn is_checked_in(document: &serde_json::Value) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api/openapi.json");
    let text = serde_json::to_string_pretty(document).unwrap() + "\n";
    if std::env::var_os("PORTCULLIS_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == text,
        "docs/api/openapi.json is stale; run this test with PORTCULLIS_BLESS=1"
    );
}
