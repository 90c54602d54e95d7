//! GitHub's OIDC tokens: good ones verify a job, all others are refused.

use crate::on_both;
use crate::support::issuer::Issuer;
use crate::support::{Server, World, context, send};
use jsonwebtoken::Algorithm;
use reqwest::Method;
use serde_json::{Value, json};

on_both!(
    a_token_verifies_the_job,
    forged_tokens_are_refused,
    keys_rotate,
    a_token_that_was_used_is_used_everywhere
);

async fn with_issuer(world: &World) -> (Server, Issuer) {
    let issuer = Issuer::start().await;
    let mut configuration = world.configuration();
    configuration.github.issuer = issuer.url();
    (world.start_with(configuration).await, issuer)
}

async fn resolve(server: &Server, token: &str) -> crate::support::Reply {
    let body = json!({ "context": context(), "id_token": token });
    send(server.request(Method::POST, "/resolve").json(&body)).await
}

async fn a_token_verifies_the_job(world: World) {
    let (server, issuer) = with_issuer(&world).await;
    let token = issuer.token(&issuer.claims());
    assert_eq!(resolve(&server, &token).await.expect(200)["identity"], "verified");
    // The same job may ask again; another one may not use its token.
    resolve(&server, &token).await.expect(200);
    let mut other = context();
    "test".clone_into(&mut other.job);
    let body = json!({ "context": other, "id_token": token });
    let (kind, detail) = server.post("/resolve", body).await.problem(403);
    assert_eq!(
        (kind.as_str(), detail.as_str()),
        ("identity-refused", "the id token was used for another job already")
    );
    assert_eq!(issuer.fetches(), 1, "keys are kept");
    server.stop().await;
}

async fn forged_tokens_are_refused(world: World) {
    let (server, issuer) = with_issuer(&world).await;
    let now = jiff::Timestamp::now().as_second();
    let with = |key: &str, value: Value| {
        let mut claims = issuer.claims();
        claims[key] = value;
        issuer.token(&claims)
    };
    let contradictions = [
        with("repository", json!("octo/other")),
        with("workflow_ref", json!("octo/hello/.github/workflows/other.yml@refs/heads/main")),
        with("run_id", json!("8")),
        with("run_attempt", json!("2")),
    ];
    for token in contradictions {
        let (kind, detail) = resolve(&server, &token).await.problem(403);
        assert!(kind == "identity-refused" && detail.contains("contradicts"), "{detail}");
    }
    let good = issuer.token(&issuer.claims());
    let (head, rest) = good.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    let none = Issuer::encode(&json!({ "alg": "none", "kid": "key-1" }));
    for token in [
        with("aud", json!("https://other.test")),
        with("iss", json!("https://evil.test")),
        with("exp", json!(now - 120)),
        with("nbf", json!(now + 600)),
        with("exp", Value::Null),
        issuer.signed_with(&issuer.claims(), "key-1", Algorithm::RS384),
        issuer.signed_with(&issuer.claims(), "unknown", Algorithm::RS256),
        Issuer::start().await.token(&issuer.claims()),
        issuer.signed_by_public_key(&issuer.claims()),
        format!("{none}.{payload}."),
        format!("{none}.{payload}.{signature}"),
        format!("{head}.{}.{signature}", Issuer::encode(&json!({ "repository": "octo/hello" }))),
        format!("{head}.{payload}"),
        String::new(),
        "x".repeat(20_000),
    ] {
        let (kind, _) = resolve(&server, &token).await.problem(403);
        assert_eq!(kind, "identity-refused");
    }
    // Clocks that are a little apart are no reason to refuse.
    resolve(&server, &with("nbf", json!(now + 30))).await.expect(200);
    assert!(
        issuer.fetches() <= 2,
        "unknown keys don't make the store ask each time: {}",
        issuer.fetches()
    );
    server.stop().await;
}

async fn keys_rotate(world: World) {
    let (server, issuer) = with_issuer(&world).await;
    resolve(&server, &issuer.token(&issuer.claims())).await.expect(200);
    // The issuer is away: keys that are known go on working.
    issuer.set_down(true);
    let mut claims = issuer.claims();
    claims["jti"] = json!("another");
    resolve(&server, &issuer.token(&claims)).await.expect(200);
    // It is back, with another key: the old one is good for nothing any more.
    issuer.set_down(false);
    let old = issuer.token(&claims);
    issuer.rotate("key-2");
    claims["jti"] = json!("a third");
    resolve(&server, &issuer.token(&claims)).await.expect(200);
    resolve(&server, &old).await.problem(403);
    server.stop().await;
    issuer.set_down(true);
    // A server that knows no keys says that it can't verify, not that the job lies.
    let mut configuration = world.configuration();
    configuration.github.issuer = issuer.url();
    let mut fresh = world.start_with(configuration).await;
    fresh.token = server_token(&fresh).await;
    let (kind, _) = resolve(&fresh, &issuer.token(&issuer.claims())).await.problem(503);
    assert_eq!(kind, "unavailable");
    fresh.stop().await;
}

/// Replayed at another replica, and after a restart.
async fn a_token_that_was_used_is_used_everywhere(world: World) {
    let (one, issuer) = with_issuer(&world).await;
    let mut configuration = world.configuration();
    configuration.github.issuer = issuer.url();
    let mut two = world.start_with(configuration.clone()).await;
    two.token.clone_from(&one.token);
    let token = issuer.token(&issuer.claims());
    resolve(&one, &token).await.expect(200);
    let mut other = context();
    "deploy".clone_into(&mut other.job);
    let replay = json!({ "context": other, "id_token": token });
    assert_eq!(two.post("/resolve", replay.clone()).await.problem(403).0, "identity-refused");
    let admin = one.token.clone();
    one.stop().await;
    two.stop().await;
    let mut again = world.start_with(configuration).await;
    again.token = admin;
    assert_eq!(again.post("/resolve", replay).await.problem(403).0, "identity-refused");
    again.stop().await;
}

/// A token for a server that has had its first one.
async fn server_token(server: &Server) -> String {
    use portcullis_store::database::{NewAuditEntry, StoredToken};
    let secret = "a-token-of-this-test-alone-0123456789";
    let token = StoredToken {
        id: "test".to_owned(),
        name: "test".to_owned(),
        role: portcullis_common::store_api::Role::Admin,
        hash: portcullis_store::identity::secret::hash(secret),
        created_by: "test".to_owned(),
        created_ms: 0,
        expires_ms: None,
    };
    let entry = NewAuditEntry {
        time_ms: 0,
        actor: "test".to_owned(),
        action: "token.create",
        subject: "token:test".to_owned(),
        detail: None,
        address: None,
    };
    server.running.store.database.insert_token(&token, &entry).await.unwrap();
    secret.to_owned()
}
