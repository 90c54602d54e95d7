//! Runner hosts: enrolment, rotation, revocation.

use crate::on_both;
use crate::support::{World, context, send};
use reqwest::Method;
use serde_json::json;

on_both!(
    a_host_enrols_once,
    credentials_rotate_without_a_gap,
    a_credential_that_never_arrived_locks_nobody_out,
    monitors_say_what_they_are
);

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
    // What is under way with the old one still ends.
    resolve(old.clone()).await.expect(200);
    let id = enrolled["host_id"].as_str().unwrap();
    assert_eq!(server.delete(&format!("/hosts/{id}")).await.status, 204);
    resolve(old).await.problem(401);
    resolve(new).await.problem(401);
    server.delete(&format!("/hosts/{id}")).await.problem(404);
    server.stop().await;
}

/// A host that is killed before it has kept its new credential goes on with the old one, however long it is away.
async fn a_credential_that_never_arrived_locks_nobody_out(world: World) {
    let server = world.start().await;
    let enrolled = server.enrol("prod").await;
    assert!(enrolled["expires_at"].as_str() > enrolled["issued_at"].as_str(), "{enrolled}");
    let (id, old) =
        (enrolled["host_id"].as_str().unwrap(), enrolled["credential"].as_str().unwrap());
    let this_host = |credential: &str| send(server.as_caller(credential, Method::GET, "/host"));
    let rotate =
        |credential: &str| send(server.as_caller(credential, Method::POST, "/host/credential"));
    let end = async |credential: &str| {
        let hash = portcullis_store::identity::secret::hash(credential);
        let row = server.running.store.database.credential(&hash).await.unwrap();
        row.map(|row| row.expires_ms.unwrap())
    };
    let old_end = end(old).await.unwrap();
    let mut lost = Vec::new();
    for _ in 0..12 {
        let made = rotate(old).await.expect(201);
        lost.push(made["credential"].as_str().unwrap().to_owned());
        assert_eq!(end(old).await, Some(old_end), "the old one keeps its end");
    }
    assert_eq!(end(&lost[0]).await, None, "answers that are lost don't pile up");
    // One arrives, and is used: then the old one ends soon, and those that were lost at once.
    let arrived = lost.pop().unwrap();
    assert_eq!(this_host(&arrived).await.expect(200)["id"], id);
    let soon = jiff::Timestamp::now().as_millisecond() + 11 * 60 * 1000;
    assert!(end(old).await.unwrap() < soon && soon < old_end);
    for never in &lost {
        this_host(never).await.problem(401);
    }
    this_host(old).await.expect(200);
    this_host(&arrived).await.expect(200);
    server.stop().await;
}

/// The version of a host's monitor is what its last heartbeat says; nobody but the host can say it.
async fn monitors_say_what_they_are(world: World) {
    let server = world.start().await;
    let enrolled = server.enrol("prod").await;
    let (id, credential) =
        (enrolled["host_id"].as_str().unwrap(), enrolled["credential"].as_str().unwrap());
    let host = async || server.get("/hosts").await.expect(200)["items"][0].clone();
    assert_eq!((&host().await["version"], &host().await["kernel"]), (&json!(null), &json!(null)));
    let say = |token: &str, body: serde_json::Value| {
        send(server.as_caller(token, Method::POST, "/host/heartbeat").json(&body))
    };
    for (body, version, kernel) in [
        (json!({ "version": "1.2.3", "kernel": "6.18.0-1" }), json!("1.2.3"), json!("6.18.0-1")),
        (json!({ "version": "1.2.3", "kernel": "6.18.0-1" }), json!("1.2.3"), json!("6.18.0-1")),
        // A monitor of the future says more than this store knows.
        (json!({ "version": "2.0.0", "more": { "to": "come" } }), json!("2.0.0"), json!(null)),
    ] {
        assert_eq!(say(credential, body).await.status, 204);
        let said = host().await;
        assert_eq!(
            (&said["version"], &said["kernel"], &said["id"]),
            (&version, &kernel, &json!(id))
        );
    }
    for bad in [
        json!({}),
        json!({ "version": "" }),
        json!({ "version": "a\nb" }),
        json!({ "version": "x".repeat(101) }),
        json!({ "version": "1", "kernel": " " }),
    ] {
        say(credential, bad.clone()).await.problem(400);
    }
    say(&server.token, json!({ "version": "6.6.6" })).await.problem(403);
    assert_eq!(host().await["version"], "2.0.0");
    server.stop().await;
}
