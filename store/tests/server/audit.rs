//! The audit log.

use crate::on_both;
use crate::support::World;
use serde_json::json;

on_both!(every_change_is_recorded);

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
