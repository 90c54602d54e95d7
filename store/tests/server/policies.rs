//! Policies: versions, lost updates, history.

use crate::on_both;
use crate::support::{World, send};
use reqwest::Method;
use serde_json::json;

on_both!(
    a_policy_has_a_history,
    lost_updates_are_refused,
    what_is_invalid_is_told_as_a_directory_would,
    a_policy_in_use_stays,
    two_replicas_see_each_other,
    lists_come_in_pages,
);

async fn a_policy_has_a_history(world: World) {
    let server = world.start().await;
    let first = server
        .put_policy("build", "name: build\negress-policy: audit\nallowed-endpoints: [a.test:443]\n")
        .await;
    assert_eq!(first.headers["etag"], "\"1\"");
    let first = first.expect(201);
    assert_eq!(
        (first["version"].as_u64(), first["document"]["egress_policy"].as_str()),
        (Some(1), Some("audit"))
    );
    // JSON is read as well, and both spellings of keys.
    let json = json!({ "name": "build", "egress_policy": "block", "allowed_endpoints": "a.test b.test:22" });
    let put = server.request(Method::PUT, "/policies/build?comment=more").json(&json);
    assert_eq!(send(put).await.expect(200)["version"], 2);

    let versions = server.get("/policies/build/versions").await.expect(200);
    let shown: Vec<_> = versions["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            (
                item["version"].as_u64().unwrap(),
                item["author"].as_str().unwrap(),
                item["comment"].as_str(),
            )
        })
        .collect();
    assert_eq!(shown, [(2, "token:first-admin", Some("more")), (1, "token:first-admin", None)]);
    let one = server.get("/policies/build/versions/1").await.expect(200);
    assert_eq!(one["document"]["allowed_endpoints"], json!(["a.test:443"]));
    let diff = server.get("/policies/build/diff").await.expect(200);
    assert_eq!(diff["allowed_added"], json!(["b.test:22"]));
    assert!(
        diff["unified"].as_str().unwrap().contains("-egress-policy: audit\n+egress-policy: block"),
        "{diff}"
    );

    let restored =
        server.post("/policies/build/restore", json!({ "version": 1 })).await.expect(200);
    assert_eq!(
        (restored["version"].as_u64(), restored["document"]["egress_policy"].as_str()),
        (Some(3), Some("audit"))
    );
    server.get("/policies/build/versions/9").await.problem(404);

    let renamed =
        server.post("/policies/build/rename", json!({ "name": "make" })).await.expect(200);
    assert_eq!((renamed["name"].as_str(), renamed["version"].as_u64()), (Some("make"), Some(4)));
    server.get("/policies/build").await.problem(404);
    assert_eq!(server.delete("/policies/make").await.status, 204);
    // A name never means two things: the next policy of this name goes on counting.
    let again = server.put_policy("make", "name: make\negress-policy: audit\n").await.expect(201);
    assert_eq!(again["version"], 5);
    let yaml =
        send(server.request(Method::GET, "/policies/make").header("accept", "application/yaml"))
            .await;
    assert_eq!(yaml.text, "name: make\negress-policy: audit\n");
    server.stop().await;
}

async fn lost_updates_are_refused(world: World) {
    let server = world.start().await;
    let put = |if_match: Option<&'static str>, if_none: bool| {
        let mut request =
            server.request(Method::PUT, "/policies/p").body("name: p\negress-policy: audit\n");
        if let Some(tag) = if_match {
            request = request.header("if-match", tag);
        }
        if if_none {
            request = request.header("if-none-match", "*");
        }
        send(request)
    };
    put(Some("\"1\""), false).await.problem(412);
    put(None, true).await.expect(201);
    let (kind, detail) = put(None, true).await.problem(412);
    assert_eq!(
        (kind.as_str(), detail.as_str()),
        ("version-changed", "policy `p` has version 1 now")
    );
    put(Some("\"1\""), false).await.expect(200);
    put(Some("\"1\""), false).await.problem(412);
    put(Some("W/oops"), false).await.problem(400);
    // Many at once: one wins each version, none is lost.
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let request =
            server.request(Method::PUT, "/policies/p").body("name: p\negress-policy: block\n");
        writers.spawn(send(request));
    }
    let mut versions: Vec<u64> = writers
        .join_all()
        .await
        .into_iter()
        .map(|reply| reply.expect(200)["version"].as_u64().unwrap())
        .collect();
    versions.sort_unstable();
    assert_eq!(versions, (3..13).collect::<Vec<_>>());
    server.stop().await;
}

async fn what_is_invalid_is_told_as_a_directory_would(world: World) {
    let server = world.start().await;
    let yaml = "name: p\negress-polcy: block\nallowed-endpoints: ['*.com:443', 'x:99999']\n";
    let reply = send(server.request(Method::PUT, "/policies/p?source=p.yaml").body(yaml)).await;
    assert_eq!(reply.status, 422);
    let told: Vec<String> = reply.json()["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| {
            format!(
                "error: {}: `{}`: {}\n\nhint: {}",
                error["place"].as_str().unwrap(),
                error["key"].as_str().unwrap(),
                error["message"].as_str().unwrap(),
                error["hint"].as_str().unwrap()
            )
        })
        .collect();
    // The embedded store's own words for the same file.
    let directory =
        portcullis_common::policy::parse_documents("p.yaml", yaml.as_bytes()).unwrap_err();
    assert_eq!(told.join("\n\n"), directory.to_string());
    assert!(told.len() == 3, "{told:?}");
    server.get("/policies/p").await.problem(404);
    server.put_policy("p", "name: q\negress-policy: block\n").await.problem(400);
    server.put_policy("p", "name: p\nattach: [{cluster: c}]\n").await.problem(422);
    server.put_policy("p", "name: p\n---\nname: q\n").await.problem(400);
    server.put_policy("p", "").await.problem(422);
    // A cycle over several requests.
    server.put_policy("a", "name: a\negress-policy: audit\n").await.expect(201);
    server.put_policy("b", "name: b\nextends: [a]\n").await.expect(201);
    let (_, detail) =
        server.put_policy("a", "name: a\negress-policy: audit\nextends: [b]\n").await.problem(422);
    assert!(detail.contains("circle"), "{detail}");
    server.stop().await;
}

async fn a_policy_in_use_stays(world: World) {
    let server = world.start().await;
    server.put_policy("base", "name: base\nallowed-endpoints: [a.test]\n").await.expect(201);
    server
        .put_policy("app", "name: app\negress-policy: block\nextends: [base]\n")
        .await
        .expect(201);
    let (kind, detail) = server.delete("/policies/base").await.problem(409);
    assert_eq!(
        (kind.as_str(), detail.as_str()),
        ("in-use", "policy `base` is in use: extended by policy `app`")
    );
    let target = json!({ "repository": "Octo/Hello" });
    let attached = server.post("/policies/app/attachments", target.clone()).await.expect(200);
    assert_eq!(attached["items"], json!([{ "repository": "octo/hello" }]));
    server.post("/policies/app/attachments", target.clone()).await.expect(200);
    server.delete("/policies/app").await.problem(409);
    // `base` alone never says what it does with calls: it can't be put in force.
    server.post("/policies/base/attachments", json!({ "cluster": "c" })).await.problem(422);
    server.put_policy("other", "name: other\negress-policy: audit\n").await.expect(201);
    let (_, detail) = server.post("/policies/other/attachments", target.clone()).await.problem(409);
    assert_eq!(detail, "the repository octo/hello has a policy already: `app`");
    server.post("/policies/other/attachments?replace=true", target.clone()).await.expect(200);
    assert_eq!(server.delete("/policies/app").await.status, 204);
    server.delete("/policies/other/attachments?repository=octo/hello").await.expect(200);
    let detach = server.request(Method::DELETE, "/policies/other/attachments").json(&target);
    send(detach).await.problem(404);
    server.stop().await;
}

async fn two_replicas_see_each_other(world: World) {
    let one = world.start().await;
    let mut two = world.start().await;
    two.token.clone_from(&one.token);
    one.put_policy("p", "name: p\negress-policy: audit\n").await.expect(201);
    assert_eq!(two.get("/policies/p").await.expect(200)["version"], 1);
    two.put_policy("p", "name: p\negress-policy: block\n").await.expect(200);
    two.post("/policies/p/attachments", json!({ "organization": "octo" })).await.expect(200);
    let seen = one.get("/policies/p").await.expect(200);
    assert_eq!(
        (seen["version"].as_u64(), seen["attachments"][0]["organization"].as_str()),
        (Some(2), Some("octo"))
    );
    // Revoked on one is revoked on the other, at once.
    let viewer = one.token("viewer").await;
    send(two.as_caller(&viewer, Method::GET, "/policies")).await.expect(200);
    let tokens = one.get("/tokens").await.expect(200);
    let id = tokens["items"][1]["id"].as_str().unwrap();
    assert_eq!(one.delete(&format!("/tokens/{id}")).await.status, 204);
    send(two.as_caller(&viewer, Method::GET, "/policies")).await.problem(401);
    one.stop().await;
    two.stop().await;
}

async fn lists_come_in_pages(world: World) {
    let server = world.start().await;
    for name in ["a1", "a2", "a3", "b1"] {
        server.put_policy(name, &format!("name: {name}\negress-policy: audit\n")).await.expect(201);
    }
    let page = server.get("/policies?limit=2").await.expect(200);
    assert_eq!(page["next_cursor"], "a2");
    let page = server.get("/policies?limit=2&cursor=a2").await.expect(200);
    let names: Vec<_> =
        page["items"].as_array().unwrap().iter().map(|item| item["name"].clone()).collect();
    assert_eq!((names, page.get("next_cursor")), (vec![json!("a3"), json!("b1")], None));
    assert_eq!(
        server.get("/policies?prefix=a").await.expect(200)["items"].as_array().unwrap().len(),
        3
    );
    server.get("/policies?limit=x").await.problem(400);
    server.stop().await;
}
