//! Which policy a job gets, and that the answer can be trusted.

use crate::on_both;
use crate::support::{World, context, send};
use portcullis_common::store_api::PublicKey;
use portcullis_store_client::signature::{SignatureError, verify};
use reqwest::Method;
use serde_json::json;

on_both!(the_most_specific_policy_wins, answers_are_signed);

async fn the_most_specific_policy_wins(world: World) {
    let server = world.start().await;
    let resolve = async |default: &str| {
        let body = json!({ "context": context(), "cluster": "prod", "default_policy": default });
        server.post("/resolve", body).await
    };
    let answer = resolve("block").await.expect(200);
    assert_eq!(
        (answer["scope"].as_str(), answer["policy"]["name"].as_str()),
        (Some("default"), Some("default-block"))
    );
    for (kind, target) in [
        ("cluster", "prod"),
        ("organization", "octo"),
        ("repository", "octo/hello"),
        ("workflow", "octo/hello/.github/workflows/ci.yml"),
    ] {
        let name = format!("for-{kind}");
        server
            .put_policy(&name, &format!("name: {name}\negress-policy: block\n"))
            .await
            .expect(201);
        server
            .post(&format!("/policies/{name}/attachments"), json!({ kind: target }))
            .await
            .expect(200);
        let answer = resolve("audit").await.expect(200);
        assert_eq!(
            (answer["scope"].as_str(), answer["policy"]["name"].as_str()),
            (Some(kind), Some(name.as_str()))
        );
        assert_eq!(
            (answer["policy"]["version"].as_str(), answer["identity"].as_str()),
            (Some("1"), Some("asserted"))
        );
    }
    // A default that is not there is no mistake while it is not needed.
    resolve("nowhere").await.expect(200);
    server.post("/resolve", json!({ "context": { "repository": "x" } })).await.problem(400);
    let bad = portcullis_common::job_context::JobContext {
        repository: "octo/../x".to_owned(),
        ..context()
    };
    server.post("/resolve", json!({ "context": bad })).await.problem(400);
    server.stop().await;
}

async fn answers_are_signed(world: World) {
    let server = world.start().await;
    let enrolled = server.enrol("prod").await;
    let keys: Vec<PublicKey> = serde_json::from_value(enrolled["signing_keys"].clone()).unwrap();
    let credential = enrolled["credential"].as_str().unwrap();
    let body = json!({ "context": context(), "nonce": "n-1" });
    let reply = send(server.as_caller(credential, Method::POST, "/resolve").json(&body)).await;
    let signature = reply.headers["portcullis-signature"].to_str().unwrap().to_owned();
    assert_eq!(verify(&signature, reply.text.as_bytes(), &keys), Ok(()));
    let forged = reply.text.replace("default-audit", "default-other");
    assert_eq!(verify(&signature, forged.as_bytes(), &keys), Err(SignatureError::Wrong));
    let answer = reply.expect(200);
    assert_eq!((answer["nonce"].as_str(), answer["cluster"].as_str()), (Some("n-1"), Some("prod")));
    // A host belongs to one cluster.
    let other = json!({ "context": context(), "cluster": "dev" });
    send(server.as_caller(credential, Method::POST, "/resolve").json(&other)).await.problem(403);
    // The key outlives the server.
    server.stop().await;
    let server = world.start().await;
    let reply = send(server.as_caller(credential, Method::POST, "/resolve").json(&body)).await;
    let signature = reply.headers["portcullis-signature"].to_str().unwrap().to_owned();
    assert_eq!(verify(&signature, reply.text.as_bytes(), &keys), Ok(()));
    server.stop().await;
}
