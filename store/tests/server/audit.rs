//! The audit log.

use crate::notifications::configuration;
use crate::on_both;
use crate::runs::{begin, host, lines, new_job, upload};
use crate::support::receiver::{Answer, Receiver};
use crate::support::{Server, World, send};
use crate::suppressions::detection;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;

on_both!(every_change_is_recorded, every_route_that_changes_something_is_recorded);

async fn every_change_is_recorded(world: World) {
    let server = world.start().await;
    server.put_policy("p", "name: p\negress-policy: audit\n").await.expect(201);
    server.post("/policies/p/attachments", json!({ "cluster": "c" })).await.expect(200);
    // Nothing changes, nothing is recorded.
    server.post("/policies/p/attachments", json!({ "cluster": "c" })).await.expect(200);
    server.put_policy("p", "name: p\n").await.problem(422);
    server.enrol("c").await;
    let log = server.get("/audit-log").await.expect(200);
    let actions: Vec<&str> = log["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        ["host.enrol", "enrolment.create", "policy.attach", "policy.write", "token.create"]
    );
    let attach = &log["items"][2];
    assert_eq!(
        (
            attach["actor"].as_str(),
            attach["subject"].as_str(),
            attach["detail"].as_str(),
            attach["address"].as_str()
        ),
        (Some("token:first-admin"), Some("policy:p"), Some("cluster c"), Some("127.0.0.1"))
    );
    let policies = server.get("/audit-log?action=policy&limit=1").await.expect(200);
    assert_eq!(policies["items"][0]["action"], "policy.attach");
    let cursor = policies["next_cursor"].as_str().unwrap();
    let rest =
        server.get(&format!("/audit-log?action=policy&limit=1&cursor={cursor}")).await.expect(200);
    assert_eq!(rest["items"][0]["action"], "policy.write");
    server.stop().await;
}

/// Routes that change nothing that people decide: what they ask, try, or what hosts tell of jobs and of themselves.
const NO_CHANGES: [&str; 9] = [
    "POST /api/v1/policies:validate",
    "POST /api/v1/policies:dry-run",
    "POST /api/v1/suppressions:preview",
    "POST /api/v1/resolve",
    "POST /api/v1/jobs",
    "POST /api/v1/jobs/{id}/events",
    "PUT /api/v1/jobs/{id}/report",
    "POST /api/v1/host/heartbeat",
    // Its change is told where the credential is used.
    "POST /api/v1/enrol",
];

/// Calls routes, and looks at what the audit log says of each call.
struct Walk<'a> {
    server: &'a Server,
    called: BTreeSet<String>,
}

impl Walk<'_> {
    async fn entries(&self) -> Vec<Value> {
        let log = self.server.get("/audit-log?limit=1000").await.expect(200);
        log["items"].as_array().unwrap().clone()
    }

    /// Calls a route by its pattern, in which `{…}` is `value`; the log has one entry more, of this action by this caller.
    async fn call(
        &mut self,
        (token, actor): (&str, &str),
        route: &str,
        value: &str,
        body: Value,
        (action, subject): (&str, &str),
    ) -> Value {
        let before = self.entries().await.len();
        let (method, pattern) = route.split_once(' ').unwrap();
        let (pattern, query) = pattern.split_once('?').unwrap_or((pattern, ""));
        self.called.insert(format!("{method} /api/v1{pattern}"));
        let path = pattern.replace("{name}", value).replace("{id}", value);
        let method: Method = method.parse().unwrap();
        let request = self.server.as_caller(token, method, &format!("{path}?{query}"));
        let request = match &body {
            Value::String(text) => request.body(text.clone()),
            Value::Null => request,
            body => request.json(body),
        };
        let reply = send(request).await;
        assert!(reply.status.is_success(), "{route}: {reply:?}");
        let entries = self.entries().await;
        assert_eq!(entries.len(), before + 1, "{route}: {entries:#?}");
        let entry = &entries[0];
        assert_eq!(
            (entry["action"].as_str(), entry["actor"].as_str()),
            (Some(action), Some(actor)),
            "{entry}"
        );
        let told = entry["subject"].as_str().unwrap();
        // Some are only known by the id that they were given.
        assert!(
            told == subject || subject.ends_with(':') && told.starts_with(subject),
            "{route}: {entry}"
        );
        assert_eq!(entry["address"], "127.0.0.1", "{entry}");
        if reply.text.is_empty() { Value::Null } else { serde_json::from_str(&reply.text).unwrap() }
    }
}

async fn every_route_that_changes_something_is_recorded(world: World) {
    const JOB: &str = "0197aaaaaaaa7000800000000000000a";
    let receiver = Receiver::start().await;
    let server = world.start_with(configuration(&world)).await;
    let secret = server.token("admin").await;
    let admin = (secret.as_str(), "token:a admin");
    let host = host(&server, "prod").await;
    begin(&server, &host, new_job(JOB, 7, "build")).await.expect(200);
    let events = [
        detection(JOB, 1, "Sudo-Use", "/usr/bin/sudo"),
        crate::runs::call(JOB, 2, "allowed", "a.test"),
    ];
    upload(&server, &host, JOB, lines(&events)).await.expect(200);
    let mut walk = Walk { server: &server, called: BTreeSet::new() };
    let text = |text: &str| Value::String(text.to_owned());

    let p = "policy:p";
    let yaml = text("name: p\negress-policy: audit\n");
    walk.call(admin, "PUT /policies/{name}", "p", yaml, ("policy.write", p)).await;
    let target = json!({ "cluster": "prod" });
    walk.call(admin, "POST /policies/{name}/attachments", "p", target, ("policy.attach", p)).await;
    walk.call(
        admin,
        "DELETE /policies/{name}/attachments?cluster=prod",
        "p",
        Value::Null,
        ("policy.detach", p),
    )
    .await;
    let endpoints = json!({ "endpoints": ["a.test"] });
    walk.call(
        admin,
        "POST /policies/{name}/import-endpoints",
        "p",
        endpoints,
        ("policy.import-endpoints", p),
    )
    .await;
    walk.call(
        admin,
        "POST /policies/{name}/restore",
        "p",
        json!({ "version": 1 }),
        ("policy.restore", p),
    )
    .await;
    walk.call(
        admin,
        "POST /policies/{name}/rename",
        "p",
        json!({ "name": "q" }),
        ("policy.rename", p),
    )
    .await;
    walk.call(admin, "DELETE /policies/{name}", "q", Value::Null, ("policy.delete", "policy:q"))
        .await;
    let bundle = text("name: r\negress-policy: audit\n");
    walk.call(admin, "POST /policies:import", "", bundle, ("policy.import", "policies")).await;
    let learned =
        json!({ "name": "learned", "baseline": { "source": "cluster", "cluster": "prod" } });
    walk.call(
        admin,
        "POST /policies:from-baseline",
        "",
        learned,
        ("policy.write", "policy:learned"),
    )
    .await;

    let body = json!({ "name": "ci", "role": "viewer" });
    let made = walk.call(admin, "POST /tokens", "", body, ("token.create", "token:")).await;
    let id = made["id"].as_str().unwrap();
    walk.call(
        admin,
        "DELETE /tokens/{id}",
        id,
        Value::Null,
        ("token.revoke", &format!("token:{id}")),
    )
    .await;
    let body = json!({ "cluster": "prod" });
    let made =
        walk.call(admin, "POST /enrolments", "", body, ("enrolment.create", "enrolment:")).await;
    let id = made["id"].as_str().unwrap();
    walk.call(
        admin,
        "DELETE /enrolments/{id}",
        id,
        Value::Null,
        ("enrolment.revoke", &format!("enrolment:{id}")),
    )
    .await;
    let enrolled = server.enrol("prod").await;
    let id = enrolled["host_id"].as_str().unwrap();
    let (subject, credential) = (format!("host:{id}"), enrolled["credential"].as_str().unwrap());
    walk.call(
        (credential, &subject),
        "POST /host/credential",
        "",
        Value::Null,
        ("host.rotate", &subject),
    )
    .await;
    walk.call(admin, "DELETE /hosts/{id}", id, Value::Null, ("host.revoke", &subject)).await;

    let rule = json!({ "type": "Sudo-Use", "reason": "known" });
    let made = walk
        .call(admin, "POST /suppressions", "", rule, ("suppression.create", "suppression:"))
        .await;
    let id = made["id"].as_str().unwrap();
    walk.call(
        admin,
        "DELETE /suppressions/{id}",
        id,
        Value::Null,
        ("suppression.delete", &format!("suppression:{id}")),
    )
    .await;
    let id = format!("{JOB}-1");
    let subject = format!("detection:{id}");
    for (state, action) in [("resolved", "detection.resolve"), ("new", "detection.reopen")] {
        let body = json!({ "state": state });
        walk.call(admin, "PUT /detections/{id}/state", &id, body, (action, &subject)).await;
    }

    let hook =
        json!({ "name": "ops", "target": crate::notifications::webhook(&receiver.url("/")) });
    let made = walk
        .call(admin, "POST /integrations", "", hook.clone(), ("integration.create", "integration:"))
        .await;
    let id = made["id"].as_str().unwrap().to_owned();
    let subject = format!("integration:{id}");
    walk.call(admin, "PUT /integrations/{id}", &id, hook, ("integration.update", &subject)).await;
    receiver.answer([Answer::Status(503)]);
    let tried = walk
        .call(admin, "POST /integrations/{id}/test", &id, json!({}), ("integration.test", &subject))
        .await;
    let delivery = tried["id"].as_str().unwrap().to_owned();
    walk.call(
        admin,
        "POST /deliveries/{id}/retry",
        &delivery,
        Value::Null,
        ("delivery.retry", &format!("delivery:{delivery}")),
    )
    .await;
    walk.call(
        admin,
        "DELETE /integrations/{id}",
        &id,
        Value::Null,
        ("integration.delete", &subject),
    )
    .await;

    // People who sign in with a token.
    let before = walk.entries().await.len();
    crate::dashboard::sign_in(&server, &secret).await;
    let entries = walk.entries().await;
    assert_eq!(entries.len(), before + 1, "{entries:#?}");
    assert_eq!(
        (&entries[0]["action"], &entries[0]["actor"]),
        (&json!("session.begin"), &json!("token:a admin"))
    );

    let changing = server.running.routes.iter().filter(|route| route.method != "GET");
    let all: BTreeSet<String> =
        changing.map(|route| format!("{} {}", route.method, route.path)).collect();
    let excepted: BTreeSet<String> = NO_CHANGES.map(str::to_owned).into();
    assert!(excepted.is_subset(&all), "{:?}", excepted.difference(&all));
    let missed: Vec<&String> = all
        .iter()
        .filter(|route| !walk.called.contains(*route) && !excepted.contains(*route))
        .collect();
    assert!(missed.is_empty(), "nobody looked at what is recorded of {missed:?}");
    server.stop().await;
}
