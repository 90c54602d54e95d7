//! Runner hosts: enrolment, rotation, revocation.

use crate::on_both;
use crate::support::{World, context, send};
use reqwest::Method;
use serde_json::json;

on_both!(a_host_enrols_once, credentials_rotate_without_a_gap);

async fn a_host_enrols_once(world: World) {
    let server = world.start().await;
    let made = server.post("/enrolments", json!({ "cluster": "prod" })).await.expect(201);
    let secret = made["secret"].as_str().unwrap();
    let enrol = |token: &str| {
        send(server.as_caller(token, Method::POST, "/enrol").json(&json!({ "host_name": "h" })))
    };
    // An enrolment token is good for nothing else, and other tokens are none.
    send(server.as_caller(secret, Method::GET, "/policies")).await.problem(401);
    enrol(&server.token).await.problem(401);
    let (one, two) = tokio::join!(enrol(secret), enrol(secret));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 401], "only one of two at the same time");
    enrol(secret).await.problem(401);

    let hosts = server.get("/hosts").await.expect(200);
    assert_eq!(
        (hosts["items"][0]["cluster"].as_str(), hosts["items"].as_array().unwrap().len()),
        (Some("prod"), 1)
    );
    for bad in [
        json!({ "cluster": "a b" }),
        json!({ "cluster": "a", "hosts": 0 }),
        json!({ "cluster": "a", "expires_in_seconds": 0 }),
    ] {
        server.post("/enrolments", bad).await.problem(400);
    }
    server.stop().await;
}

async fn credentials_rotate_without_a_gap(world: World) {
    let server = world.start().await;
    let enrolled = server.enrol("prod").await;
    let old = enrolled["credential"].as_str().unwrap().to_owned();
    let resolve = |credential: String| {
        let body = json!({ "context": context() });
        send(server.as_caller(&credential, Method::POST, "/resolve").json(&body))
    };
    let rotated = send(server.as_caller(&old, Method::POST, "/host/credential")).await.expect(201);
    let new = rotated["credential"].as_str().unwrap().to_owned();
    assert_ne!(old, new);
    resolve(old.clone()).await.expect(200);
    resolve(new.clone()).await.expect(200);
    let id = enrolled["host_id"].as_str().unwrap();
    assert_eq!(server.delete(&format!("/hosts/{id}")).await.status, 204);
    resolve(old).await.problem(401);
    resolve(new).await.problem(401);
    server.delete(&format!("/hosts/{id}")).await.problem(404);
    server.stop().await;
}
