//! Export and import.

use crate::on_both;
use crate::support::{World, send};
use reqwest::Method;

on_both!(a_bundle_is_what_a_directory_holds);

const BUNDLE: &str = "name: base\nallowed-endpoints:\n  - github.com:443\n---\nname: app\negress-policy: block\nextends:\n  - base\nattach:\n  - repository: octo/hello\n";

async fn a_bundle_is_what_a_directory_holds(world: World) {
    let server = world.start().await;
    let import = |query: &str, body: &'static str| {
        send(server.request(Method::POST, &format!("/policies:import{query}")).body(body))
    };
    let dry = import("?dry_run=true", BUNDLE).await.expect(200);
    assert_eq!(
        (dry["dry_run"].as_bool(), dry["policies"][0]["action"].as_str()),
        (Some(true), Some("created"))
    );
    assert_eq!(server.get("/policies").await.expect(200)["items"].as_array().unwrap().len(), 0);

    let done = import("", BUNDLE).await.expect(200);
    assert_eq!(done["policies"][0]["attached"][0]["repository"], "octo/hello");
    let again = import("", BUNDLE).await.expect(200);
    assert!(
        again["policies"].as_array().unwrap().iter().all(|policy| policy["action"] == "unchanged"),
        "{again}"
    );
    assert_eq!(server.get("/policies/app").await.expect(200)["version"], 1);

    // What is exported is read by the embedded store, and means the same.
    let exported = server.get("/policies:export").await.text;
    let directory = world.path("policies");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("all.yaml"), &exported).unwrap();
    let embedded =
        portcullis_common::store_client::directory::DirectoryStore::open(&directory).unwrap();
    assert_eq!(embedded.current().unwrap().attachments().count(), 1);
    assert!(import("", Box::leak(exported.into_boxed_str())).await.text.contains("unchanged"));

    // All or nothing.
    import("", "name: new\negress-policy: audit\n---\nname: bad\nextends: [nowhere]\n")
        .await
        .problem(422);
    server.get("/policies/new").await.problem(404);
    let pruned = import(
        "?prune=true",
        "name: only\negress-policy: block\nattach: [{repository: octo/hello}]\n",
    )
    .await
    .expect(200);
    assert_eq!(pruned["policies"].as_array().unwrap().len(), 3, "{pruned}");
    assert_eq!(server.get("/policies").await.expect(200)["items"].as_array().unwrap().len(), 1);
    server.stop().await;
}
