//! Suppression rules and the states of detections.

use crate::on_both;
use crate::runs::{begin, host, lines, new_job, upload};
use crate::support::{Server, World, send};
use reqwest::Method;
use serde_json::{Value, json};

on_both!(rules_suppress_what_is_there_and_what_comes, people_resolve, what_is_no_rule_is_refused);

pub fn detection(id: &str, seq: u64, kind: &str, process: &str) -> Value {
    json!({
        "job_id": id, "seq": seq, "time": format!("2026-01-01T00:00:{:02}.000000Z", seq % 60), "type": "detection",
        "detection": kind, "evidence": format!("{process} did it"), "is_lockdown": false,
        "process": { "pid": 7, "exe": process, "argv": [process, "-i"], "step": "build" },
    })
}

const JOB: &str = "0197aaaaaaaa7000800000000000000a";
const OTHER: &str = "0197aaaaaaaa7000800000000000000b";

/// The states of all detections, the oldest first.
async fn states(server: &Server) -> Vec<String> {
    let page = server.get("/detections").await.expect(200);
    let mut states: Vec<String> = page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["state"].as_str().unwrap().to_owned())
        .collect();
    states.reverse();
    states
}

async fn rules_suppress_what_is_there_and_what_comes(world: World) {
    let server = world.start().await;
    let (prod, dev) = (host(&server, "prod").await, host(&server, "dev").await);
    begin(&server, &prod, new_job(JOB, 7, "build")).await.expect(200);
    begin(&server, &dev, new_job(OTHER, 8, "build")).await.expect(200);
    let events = [
        detection(JOB, 1, "Sudo-Use", "/usr/bin/sudo"),
        detection(JOB, 2, "Sudo-Use", "/usr/bin/su"),
        detection(JOB, 3, "Raw-Frames", "/usr/bin/sudo"),
    ];
    upload(&server, &prod, JOB, lines(&events)).await.expect(200);
    let events = [detection(OTHER, 1, "Sudo-Use", "/usr/bin/sudo")];
    upload(&server, &dev, OTHER, lines(&events)).await.expect(200);
    assert_eq!(states(&server).await, ["new", "new", "new", "new"]);

    let rule = json!({
        "type": "Sudo-Use", "scope": { "cluster": "prod" }, "process": "/usr/bin/sud*", "reason": "our images use sudo",
    });
    let preview = server.post("/suppressions:preview", rule.clone()).await.expect(200);
    assert_eq!(preview["count"], 1);
    assert_eq!(preview["examples"][0]["process"], "/usr/bin/sudo");
    assert_eq!(states(&server).await, ["new", "new", "new", "new"], "a preview changes nothing");
    let first = server.post("/suppressions", rule.clone()).await.expect(201);
    assert_eq!((first["suppressed"].as_u64(), first["state"].as_str()), (Some(1), Some("active")));
    assert_eq!(states(&server).await, ["suppressed", "new", "new", "new"]);
    // What comes later is judged when it comes; the same batch again changes nothing.
    let events = [
        detection(JOB, 4, "Sudo-Use", "/usr/bin/sudo"),
        detection(JOB, 5, "Sudo-Use", "/usr/bin/doas"),
    ];
    for _ in 0..2 {
        upload(&server, &prod, JOB, lines(&events)).await.expect(200);
    }
    assert_eq!(states(&server).await, ["suppressed", "new", "new", "new", "suppressed", "new"]);
    for (state, count) in [("new", 4), ("suppressed", 2), ("resolved", 0)] {
        let page = server.get(&format!("/detections?state={state}")).await.expect(200);
        assert_eq!(page["items"].as_array().unwrap().len(), count, "{state}");
    }
    // A second rule over the same: what the first one held goes over to it.
    let all = json!({ "type": "Sudo-Use", "reason": "everywhere", "expires_in_seconds": 3600 });
    let second = server.post("/suppressions", all).await.expect(201);
    assert_eq!(second["suppressed"], 3);
    let id = first["id"].as_str().unwrap();
    assert_eq!(server.delete(&format!("/suppressions/{id}")).await.status, 204);
    let listed = server.get("/suppressions").await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed["items"][0]["suppressed"], 5);
    let id = second["id"].as_str().unwrap();
    assert_eq!(server.delete(&format!("/suppressions/{id}")).await.status, 204);
    assert_eq!(states(&server).await, ["new", "new", "new", "new", "new", "new"]);
    server.delete(&format!("/suppressions/{id}")).await.problem(404);
    // A rule that is over suppresses nothing new, and holds what it held.
    let short = json!({ "type": "Raw-Frames", "reason": "for now", "expires_in_seconds": 1 });
    let short = server.post("/suppressions", short).await.expect(201);
    crate::support::eventually("the rule is over", async || {
        let listed = server.get("/suppressions").await.expect(200);
        (listed["items"][0]["state"] == "expired").then_some(())
    })
    .await;
    let events = [detection(OTHER, 2, "Raw-Frames", "/usr/bin/sudo")];
    upload(&server, &dev, OTHER, lines(&events)).await.expect(200);
    let all = states(&server).await;
    assert_eq!((all[2].as_str(), all[6].as_str()), ("suppressed", "new"));
    let id = short["id"].as_str().unwrap();
    assert_eq!(server.delete(&format!("/suppressions/{id}")).await.status, 204);
    assert_eq!(states(&server).await[2], "new");
    // Who did it stands in the audit log.
    let log = server.get("/audit-log?action=suppression").await.expect(200);
    assert_eq!(log["items"].as_array().unwrap().len(), 6);
    server.stop().await;
}

async fn people_resolve(world: World) {
    let server = world.start().await;
    let host = host(&server, "prod").await;
    begin(&server, &host, new_job(JOB, 7, "build")).await.expect(200);
    let events = [detection(JOB, 1, "Sudo-Use", "/usr/bin/sudo")];
    upload(&server, &host, JOB, lines(&events)).await.expect(200);
    let path = format!("/detections/{JOB}-1");
    assert_eq!(server.get(&path).await.expect(200)["state"], "new");
    let body = json!({ "state": "resolved", "comment": "the image was mended" });
    let resolved = server.put(&format!("{path}/state"), body).await.expect(200);
    assert_eq!(
        (resolved["state"].as_str(), resolved["resolution"].as_str()),
        (Some("resolved"), Some("the image was mended"))
    );
    assert!(resolved["resolved_by"].as_str().unwrap().starts_with("token:"), "{resolved}");
    // A rule leaves it alone, and opening it again brings it back.
    let rule = json!({ "type": "Sudo-Use", "reason": "x" });
    assert_eq!(server.post("/suppressions", rule).await.expect(201)["suppressed"], 0);
    let opened = server.put(&format!("{path}/state"), json!({ "state": "new" })).await.expect(200);
    assert_eq!((opened["state"].as_str(), opened.get("resolution")), (Some("new"), None));
    server.put(&format!("{path}/state"), json!({ "state": "suppressed" })).await.problem(400);
    server.put("/detections/none/state", json!({ "state": "new" })).await.problem(404);
    server.get("/detections/none").await.problem(404);
    // A viewer reads and previews, and changes nothing.
    let viewer = server.token("viewer").await;
    let put = server.as_caller(&viewer, Method::PUT, &format!("{path}/state"));
    send(put.json(&json!({ "state": "new" }))).await.problem(403);
    let preview = server.as_caller(&viewer, Method::POST, "/suppressions:preview");
    send(preview.json(&json!({ "type": "Sudo-Use" }))).await.expect(200);
    server.stop().await;
}

async fn what_is_no_rule_is_refused(world: World) {
    let server = world.start().await;
    for (rule, told) in [
        (json!({ "type": "Sudo-Used", "reason": "x" }), "no detections of type"),
        (json!({ "type": "Sudo-Use" }), "the reason is missing"),
        (json!({ "type": "Sudo-Use", "reason": " " }), "the reason is missing"),
        (json!({ "type": "Sudo-Use", "reason": "a\u{0}" }), "NUL character"),
        (json!({ "type": "Sudo-Use", "reason": "x", "process": "" }), "can't be used"),
        (json!({ "type": "Sudo-Use", "reason": "x", "endpoint": "a\nb" }), "can't be used"),
        (json!({ "type": "Sudo-Use", "reason": "x", "expires_in_seconds": 0 }), "over at once"),
        (
            json!({ "type": "Sudo-Use", "reason": "x", "scope": { "repository": "octo" } }),
            "names no repository",
        ),
        (json!({ "type": "Sudo-Use", "reason": "x", "surprise": 1 }), "unknown field"),
    ] {
        let (_, detail) = server.post("/suppressions", rule.clone()).await.problem(400);
        assert!(detail.contains(told), "{rule}: {detail}");
    }
    // SQL and patterns are text like any other.
    let rule = json!({ "type": "Sudo-Use", "reason": "'; DROP TABLE detections; --", "process": "%' OR '1'='1" });
    assert_eq!(server.post("/suppressions", rule).await.expect(201)["suppressed"], 0);
    assert_eq!(server.get("/detections").await.expect(200)["items"], json!([]));
    server.stop().await;
}
