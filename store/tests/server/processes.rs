//! The processes of a job, and events by their kind.

use crate::on_both;
use crate::runs::{begin, call, host, lines, new_job, upload};
use crate::support::World;
use serde_json::{Value, json};

on_both!(processes_are_a_tree);

const JOB: &str = "0197aaaaaaaa7000800000000000000a";

fn event(seq: u64, rest: &Value) -> Value {
    let mut event = json!({ "job_id": JOB, "seq": seq, "time": "2026-01-01T00:00:00.000000Z" });
    for (key, value) in rest.as_object().unwrap() {
        event[key] = value.clone();
    }
    event
}

async fn processes_are_a_tree(world: World) {
    let server = world.start().await;
    let host = host(&server, "prod").await;
    begin(&server, &host, new_job(JOB, 7, "build")).await.expect(200);
    let above =
        json!([{ "pid": 2, "exe": "/bin/bash" }, { "pid": 1, "exe": "/runner/bin/Runner.Worker" }]);
    let curl = json!({ "pid": 7, "start_time": 70, "exe": "/usr/bin/curl", "argv": ["curl", "x"], "ancestors": above, "step": "build" });
    let mut called = call(JOB, 2, "allowed", "a.test");
    called["process"] = curl.clone();
    let events = [
        event(1, &json!({ "type": "process", "process": curl })),
        called,
        event(
            3,
            &json!({ "type": "file", "path": "/src/a.c", "process": { "pid": 2, "exe": "/bin/bash" } }),
        ),
        event(
            4,
            &json!({ "type": "detection", "detection": "Reverse-Shell", "evidence": "e", "is_lockdown": false, "process": curl }),
        ),
        event(
            5,
            &json!({ "type": "dns", "verdict": "blocked", "name": "b.test", "query_type": "A", "rule": "r", "response_code": "NXDOMAIN",
            "count": 1, "policy": { "name": "p", "version": "1", "scope": "repository" } }),
        ),
    ];
    upload(&server, &host, JOB, lines(&events)).await.expect(200);
    let tree = server.get(&format!("/jobs/{JOB}/process-tree")).await.expect(200);
    assert_eq!((&tree["processes"], &tree["complete"]), (&json!(3), &json!(true)));
    let worker = &tree["roots"][0];
    let bash = &worker["children"][0];
    let curl = &bash["children"][0];
    assert_eq!(worker["exe"], "/runner/bin/Runner.Worker");
    assert_eq!(bash["files"], json!(["/src/a.c"]));
    assert_eq!(curl["executions"][0]["argv"], json!(["curl", "x"]));
    assert_eq!(
        curl["calls"],
        json!([{ "endpoint": "a.test:443", "verdict": "allowed", "calls": 2 }])
    );
    assert_eq!(curl["detections"], json!(["Reverse-Shell"]));
    for (kind, numbers) in [
        ("process", vec![1]),
        ("network", vec![2]),
        ("file", vec![3]),
        ("detection", vec![4]),
        ("dns", vec![5]),
        ("posture", vec![]),
    ] {
        let page = server.get(&format!("/jobs/{JOB}/events?type={kind}")).await.expect(200);
        let found: Vec<u64> = page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["seq"].as_u64().unwrap())
            .collect();
        assert_eq!(found, numbers, "{kind}");
    }
    server.get(&format!("/jobs/{JOB}/events?type=x")).await.problem(400);
    server.get("/jobs/none/process-tree").await.problem(404);
    server.stop().await;
}
