//! Who may call what: every route, without a token and with each role.

use crate::on_both;
use crate::support::{World, send};
use portcullis_store::api::Access;
use reqwest::Method;
use serde_json::json;

on_both!(every_route_asks_for_its_role, tokens_end, secrets_are_stored_as_hashes);

/// The routes that need no token, checked in: a new one is a decision that a reviewer sees.
const UNAUTHENTICATED: &str = include_str!("../unauthenticated-endpoints.txt");

async fn every_route_asks_for_its_role(world: World) {
    let mut configuration = world.configuration();
    configuration.limits.failed_sign_ins_per_minute = 10_000;
    let server = world.start_with(configuration).await;
    let enrolled = server.enrol("prod").await;
    let runner = enrolled["credential"].as_str().unwrap().to_owned();
    let tokens = [
        ("runner", runner),
        ("viewer", server.token("viewer").await),
        ("editor", server.token("editor").await),
        ("admin", server.token("admin").await),
    ];
    let mut public = Vec::new();
    for route in &server.running.routes {
        let method: Method = route.method.parse().unwrap();
        let path = route
            .path
            .replace("{version}", "1")
            .replace("{id}", "none")
            .replace("{name}", "none")
            .replace("{owner}", "none");
        let name = format!("{} {}", route.method, route.path);
        let call = |token: Option<String>| {
            let mut request = server.anonymous(method.clone(), &path);
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            send(request)
        };
        if route.access == Access::Public {
            public.push(name);
            continue;
        }
        call(None).await.problem(401);
        call(Some("pct_wrong".to_owned())).await.problem(401);
        call(Some("x".repeat(100_000)[..4000].to_owned())).await.problem(401);
        let needed = route.access.words().unwrap();
        for (role, token) in &tokens {
            let may = match needed.strip_prefix("role ").unwrap() {
                "runner" => *role == "runner",
                "viewer" => *role != "runner",
                "runner or viewer" => true,
                "editor" => ["editor", "admin"].contains(role),
                "admin" => *role == "admin",
                other => panic!("{other}"),
            };
            let status = call(Some(token.clone())).await.status.as_u16();
            assert_eq!(status != 403, may, "{name} as {role}: {status}");
            assert_ne!(status, 401, "{name} as {role}");
            assert!(status < 500, "{name} as {role}: {status}");
        }
    }
    public.sort();
    let listed: Vec<&str> = UNAUTHENTICATED.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(public, listed, "the list of routes without a token is out of date");
    server.stop().await;
}

async fn tokens_end(world: World) {
    let server = world.start().await;
    let body = serde_json::json!({ "name": "short", "role": "viewer", "expires_in_seconds": 0 });
    let secret =
        server.post("/tokens", body).await.expect(201)["secret"].as_str().unwrap().to_owned();
    let (_, detail) = send(server.as_caller(&secret, Method::GET, "/policies")).await.problem(401);
    assert_eq!(detail, "the token has expired");
    // The secret itself is nowhere in what is stored or listed.
    let listed = server.get("/tokens").await.text;
    assert!(!listed.contains(&secret) && !listed.contains("hash"), "{listed}");
    // A restart makes no second first token.
    server.stop().await;
    let server = world.start().await;
    assert_eq!(server.running.first_token, None);
    server.stop().await;
}

/// Nobody who has the database has the secrets: of tokens, enrolments, hosts or sessions.
async fn secrets_are_stored_as_hashes(world: World) {
    let server = world.start().await;
    let made = server.post("/enrolments", json!({ "cluster": "prod", "hosts": 2 })).await;
    let enrolment = made.expect(201)["secret"].as_str().unwrap().to_owned();
    let enrol = server.as_caller(&enrolment, Method::POST, "/enrol");
    let host = send(enrol.json(&json!({ "host_name": "runner-1" }))).await.expect(201);
    let first = host["credential"].as_str().unwrap().to_owned();
    let renewed = send(server.as_caller(&first, Method::POST, "/host/credential")).await;
    let second = renewed.expect(201)["credential"].as_str().unwrap().to_owned();
    let cookie = crate::dashboard::sign_in(&server, &server.token).await;
    let session = cookie.split_once('=').unwrap().1.to_owned();
    let secrets = [
        ("the first token", server.token.clone()),
        ("a token", server.token("editor").await),
        ("an enrolment", enrolment),
        ("a credential", first),
        ("a renewed credential", second),
        ("a session", session),
    ];
    server.stop().await;
    let stored = everything(&world);
    let stored = String::from_utf8_lossy(&stored);
    // What has to be there is: this search finds what is stored.
    for (what, secret) in &secrets {
        let hash = portcullis_store::identity::secret::hash(secret);
        assert!(stored.contains(&hash), "the hash of {what} is not found");
        assert!(!stored.contains(secret.as_str()), "{what} is stored");
        // Not without its prefix either.
        let (_, random) = secret.split_once('_').unwrap();
        assert!(!stored.contains(random), "{what} is stored");
    }
}

/// All that the database holds: SQLite's files as they are, PostgreSQL's tables as its own tool writes them.
fn everything(world: &World) -> Vec<u8> {
    let Some(postgres) = &world.postgres else {
        let files = std::fs::read_dir(world.directory.path()).unwrap();
        let files = files.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        return files.flat_map(|path| std::fs::read(path).unwrap()).collect();
    };
    postgres.dump()
}
