//! Which policy a job gets, and that the answer can be trusted.

use crate::on_both;
use crate::support::{Server, World, context, send};
use axum::http::{HeaderMap, HeaderValue};
use portcullis_common::resolution::DefaultPolicy;
use portcullis_common::store_api::{Credential, PublicKey, ResolveRequest};
use portcullis_store_client::signature::{SignatureError, verify};
use portcullis_store_client::{Connection, HostClient, StoreError};
use reqwest::Method;
use serde_json::json;
use std::sync::{Arc, Mutex};
use std::time::Duration;

on_both!(
    the_most_specific_policy_wins,
    a_more_specific_policy_exempts_from_lockdown,
    answers_are_signed,
    a_host_takes_no_answer_that_is_not_the_stores
);

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

/// Lockdown Mode for an organization, and a repository of it that has been exempted.
async fn a_more_specific_policy_exempts_from_lockdown(world: World) {
    let server = world.start().await;
    for (name, more, target) in [
        (
            "strict",
            "lockdown-mode: {enabled: true, detections: [Reverse-Shell]}\n",
            json!({ "organization": "octo" }),
        ),
        (
            "exempt",
            "extends: [strict]\nlockdown-mode: {enabled: false}\n",
            json!({ "repository": "octo/hello" }),
        ),
    ] {
        let yaml = format!("name: {name}\negress-policy: block\n{more}");
        server.put_policy(name, &yaml).await.expect(201);
        server.post(&format!("/policies/{name}/attachments"), target).await.expect(200);
    }
    let lockdown = async |repository: &str| {
        let context = portcullis_common::job_context::JobContext {
            repository: repository.to_owned(),
            workflow_ref: format!("{repository}/.github/workflows/ci.yml@refs/heads/main"),
            ..context()
        };
        let answer = server.post("/resolve", json!({ "context": context })).await.expect(200);
        (answer["policy"]["name"].clone(), answer["policy"]["lockdown"]["enabled"].clone())
    };
    assert_eq!(lockdown("octo/other").await, (json!("strict"), json!(true)));
    assert_eq!(lockdown("octo/hello").await, (json!("exempt"), json!(false)));
    // Without the exemption it is like all others.
    server.delete("/policies/exempt/attachments?repository=octo/hello").await;
    assert_eq!(lockdown("octo/hello").await, (json!("strict"), json!(true)));
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

/// What somebody between the host and the store makes of an answer.
#[derive(Clone)]
enum Twist {
    Nothing,
    Unsigned,
    /// Another text below the same signature.
    Edited(&'static str, &'static str),
    /// A signature that is said instead.
    Signed(String),
    /// All of an earlier answer.
    Replayed(String, String),
}

/// Somebody between the hosts and the store, who can read and change everything.
async fn between(server: &Server) -> (String, Arc<Mutex<Twist>>) {
    const SIGNATURE: &str = "portcullis-signature";
    let twist = Arc::new(Mutex::new(Twist::Nothing));
    let (target, client, shared) = (server.url(""), server.client.clone(), Arc::clone(&twist));
    let answer = async move |uri: axum::http::Uri, headers: HeaderMap, body: String| {
        let asked = client
            .post(format!("{target}{uri}"))
            .header("authorization", &headers["authorization"])
            .header("content-type", "application/json")
            .body(body);
        let reply = send(asked).await;
        let mut text = reply.text.clone();
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert(SIGNATURE, reply.headers[SIGNATURE].clone());
        match shared.lock().unwrap().clone() {
            Twist::Nothing => {}
            Twist::Unsigned => drop(headers.remove(SIGNATURE)),
            Twist::Edited(old, new) => {
                assert!(text.contains(old), "{text}");
                text = text.replace(old, new);
            }
            Twist::Signed(signature) => {
                headers.insert(SIGNATURE, signature.parse().unwrap());
            }
            Twist::Replayed(old, signature) => {
                text = old;
                headers.insert(SIGNATURE, signature.parse().unwrap());
            }
        }
        (headers, text)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    (format!("http://{address}"), twist)
}

async fn a_host_takes_no_answer_that_is_not_the_stores(world: World) {
    let server = world.start().await;
    server.put_policy("build", "name: build\negress-policy: block\n").await.expect(201);
    server.post("/policies/build/attachments", json!({ "cluster": "prod" })).await.expect(200);
    let (url, twist) = between(&server).await;
    let credential: Credential = serde_json::from_value(server.enrol("prod").await).unwrap();
    let connection = Connection::new(&url, None, Duration::from_secs(30)).unwrap();
    let host = HostClient::new(connection, credential.clone());
    let resolve = async || {
        host.resolve(ResolveRequest {
            context: context(),
            id_token: None,
            cluster: None,
            default_policy: DefaultPolicy::Audit,
            nonce: None,
        })
        .await
    };
    assert_eq!(resolve().await.unwrap().policy.name, "build");

    let asked = json!({ "context": context(), "nonce": "earlier" });
    let earlier = server.as_caller(&credential.credential, Method::POST, "/resolve").json(&asked);
    let earlier = send(earlier).await;
    let signature = earlier.headers["portcullis-signature"].to_str().unwrap().to_owned();
    // Another store, which signs as well as this one, with keys that this host does not know.
    let other = World::new(crate::support::Backend::Sqlite);
    let foreign = other.start().await;
    let token = foreign.enrol("prod").await["credential"].as_str().unwrap().to_owned();
    let post = foreign.as_caller(&token, Method::POST, "/resolve").json(&asked);
    let of_foreign = send(post).await;
    let foreign_signature = of_foreign.headers["portcullis-signature"].to_str().unwrap().to_owned();
    foreign.stop().await;
    let (header, bytes) = signature.split_once("..").unwrap();
    for (made, expected) in [
        (Twist::Unsigned, "it is no signature of the kind that the store makes"),
        (Twist::Edited("\"block\"", "\"audit\""), "it does not fit the answer"),
        (
            Twist::Edited("\"scope\":\"cluster\"", "\"scope\":\"default\""),
            "it does not fit the answer",
        ),
        (Twist::Signed(signature.clone()), "it does not fit the answer"),
        (Twist::Signed(format!("{header}.e30.{bytes}")), "it is no signature"),
        (Twist::Signed(format!("{header}..")), "it does not fit the answer"),
        (Twist::Signed(foreign_signature.clone()), "a key that this host does not trust"),
        (
            Twist::Replayed(of_foreign.text.clone(), foreign_signature),
            "a key that this host does not trust",
        ),
        (Twist::Replayed(earlier.text.clone(), signature.clone()), "it repeats an earlier one"),
    ] {
        *twist.lock().unwrap() = made;
        let error = resolve().await.unwrap_err();
        assert!(!matches!(error, StoreError::Refused(_)), "{error:?}");
        let told = portcullis_common::hook::with_causes(&error);
        assert!(told.contains(expected), "{expected}: {told}");
    }
    *twist.lock().unwrap() = Twist::Nothing;
    assert_eq!(resolve().await.unwrap().policy.name, "build");
    server.stop().await;
}
