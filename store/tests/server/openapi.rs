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
        // Every reference leads somewhere.
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        server.stop().await;
    });
}
