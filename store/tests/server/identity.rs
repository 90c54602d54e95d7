//! GitHub's OIDC tokens: good ones verify a job, all others are refused.

use crate::command_line::Operator;
use crate::dashboard;
use crate::on_both;
use crate::runs::{begin, host, new_job};
use crate::support::issuer::{Issuer, KeysAnswer};
use crate::support::{Server, World, context, send};
use jsonwebtoken::Algorithm;
use reqwest::Method;
use serde_json::{Value, json};

on_both!(
    a_token_verifies_the_job,
    the_workflow_that_holds_a_job_is_recorded,
    forged_tokens_are_refused,
    keys_rotate,
    keys_that_cannot_be_had_refuse_nobody_for_good,
    an_enterprise_servers_issuer_has_a_path,
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

/// A job of a reusable workflow: its policy is decided by the run's workflow, and the other one is recorded.
async fn the_workflow_that_holds_a_job_is_recorded(world: World) {
    const REUSED: &str = "octo/shared/.github/workflows/build.yml@refs/tags/v1";
    const JOBS: [&str; 3] = [
        "0197aaaaaaaa7000800000000000000a",
        "0197aaaaaaaa7000800000000000000b",
        "0197aaaaaaaa7000800000000000000c",
    ];
    let (server, issuer) = with_issuer(&world).await;
    let host = host(&server, "prod").await;
    for (name, workflow) in [
        ("own", "octo/hello/.github/workflows/ci.yml"),
        ("other", "octo/shared/.github/workflows/build.yml"),
    ] {
        let yaml = format!("name: {name}\negress-policy: block\n");
        server.put_policy(name, &yaml).await.expect(201);
        let path = format!("/policies/{name}/attachments");
        server.post(&path, json!({ "workflow": workflow })).await.expect(200);
    }
    let mut claims = issuer.claims();
    claims["job_workflow_ref"] = json!(REUSED);
    let body = json!({ "context": context(), "id_token": issuer.token(&claims) });
    let post = server.as_caller(&host, Method::POST, "/resolve").json(&body);
    let answer = send(post).await.expect(200);
    assert_eq!(
        (&answer["identity"], &answer["policy"]["name"]),
        (&json!("verified"), &json!("own"))
    );

    // A job that was not verified is not said to be of that workflow, and neither is another job of the run.
    for (id, name, identity, expected) in [
        (JOBS[0], "build", "verified", json!(REUSED)),
        (JOBS[1], "build", "asserted", Value::Null),
        (JOBS[2], "test", "verified", Value::Null),
    ] {
        let mut job = new_job(id, 7, name);
        job["identity"] = json!(identity);
        begin(&server, &host, job).await.expect(200);
        let record = server.get(&format!("/jobs/{id}")).await.expect(200);
        assert_eq!(record["job_workflow_ref"], expected, "{record}");
        let own = "octo/hello/.github/workflows/ci.yml@refs/heads/main";
        assert_eq!(record["context"]["workflow_ref"], own);
    }
    let run = server.get("/runs/7").await.expect(200);
    assert_eq!(run["job_records"][0]["job_workflow_ref"], REUSED);
    let operator = Operator { server: &server, world: &world };
    let shown = operator.run(&["runs", "7"]).await;
    assert!(shown.contains(REUSED) && shown.contains("verified"), "{shown}");
    let cookie = dashboard::sign_in(&server, &server.token).await;
    for (id, is_shown) in [(JOBS[0], true), (JOBS[1], false)] {
        let page = dashboard::get(&server, &format!("/jobs/{id}"), Some(&cookie)).await;
        let html = page.text().await.unwrap();
        assert!(html.contains("octo/hello"), "{html}");
        assert_eq!(html.contains("octo/shared/.github/workflows/build.yml"), is_shown, "{html}");
    }
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

/// The issuer answers, and the address of its keys does not: that is told apart from a token that lies.
async fn keys_that_cannot_be_had_refuse_nobody_for_good(world: World) {
    let (server, issuer) = with_issuer(&world).await;
    resolve(&server, &issuer.token(&issuer.claims())).await.expect(200);
    let mut jobs = 1;
    for answer in [KeysAnswer::Fails, KeysAnswer::Hangs] {
        issuer.set_keys(answer);
        // Keys that are known go on.
        let mut claims = issuer.claims();
        claims["jti"] = json!(format!("with keys that are known, {answer:?}"));
        resolve(&server, &issuer.token(&claims)).await.expect(200);
        jobs += 1;
        // A server that knows none waits for a bounded time, and says that it is not the job's fault.
        let mut configuration = world.configuration();
        configuration.github.issuer = issuer.url();
        let mut fresh = world.start_with(configuration).await;
        fresh.token.clone_from(&server.token);
        let reply = resolve(&fresh, &issuer.token(&issuer.claims())).await;
        assert_eq!(reply.headers["retry-after"], "10", "{reply:?}");
        let (kind, detail) = reply.problem(503);
        assert_eq!(kind, "unavailable");
        assert!(detail.contains(&issuer.url()), "{detail}");
        // Without a token the same job is resolved, as asserted.
        let asserted = fresh.post("/resolve", json!({ "context": context() })).await.expect(200);
        assert_eq!(asserted["identity"], "asserted");
        fresh.stop().await;
    }
    assert_eq!((jobs, issuer.fetches()), (3, 1), "keys are kept");
    server.stop().await;
}

/// A GitHub Enterprise Server issues at `https://HOST/_services/token`; what another path of the same host signs is foreign.
async fn an_enterprise_servers_issuer_has_a_path(world: World) {
    let issuer = Issuer::start_below("/_services/token").await;
    let mut configuration = world.configuration();
    configuration.github.issuer = issuer.url();
    assert_eq!(configuration.github.server(), "127.0.0.1");
    let server = world.start_with(configuration).await;
    let good = issuer.claims();
    assert!(good["iss"].as_str().unwrap().ends_with("/_services/token"), "{good}");
    assert_eq!(resolve(&server, &issuer.token(&good)).await.expect(200)["identity"], "verified");
    let host = good["iss"].as_str().unwrap().trim_end_matches("/_services/token").to_owned();
    let foreign = [
        json!(host),
        json!(format!("{host}/_services")),
        json!(format!("{host}/_services/token/other")),
        json!("https://token.actions.githubusercontent.com"),
    ];
    for name in foreign {
        let mut claims = good.clone();
        claims["iss"] = name;
        let (kind, _) = resolve(&server, &issuer.token(&claims)).await.problem(403);
        assert_eq!(kind, "identity-refused");
    }
    let other = Issuer::start_below("/_services/token").await;
    resolve(&server, &other.token(&other.claims())).await.problem(403);
    server.stop().await;
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
