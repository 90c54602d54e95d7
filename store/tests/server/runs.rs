//! Uploads and reading them back.

use crate::on_both;
use crate::support::{Reply, Server, World, context, send};
use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::Method;
use serde_json::{Value, json};
use std::io::Write as _;

on_both!(
    batches_are_stored_once,
    what_is_no_upload_is_refused,
    a_run_is_read_back,
    nothing_acknowledged_is_lost,
    baselines_add_up_and_old_things_go,
    each_kind_is_kept_for_its_own_days,
    what_is_too_old_goes_by_itself
);

pub const JOB: &str = "0197aaaaaaaa7000800000000000000a";

pub fn new_job(id: &str, run: u64, name: &str) -> Value {
    let mut context = context();
    context.run_id = run;
    name.clone_into(&mut context.job);
    json!({
        "id": id, "context": context, "target": "octo/hello", "identity": "asserted", "mode": "block",
        "policy": { "name": "p", "version": "1", "scope": "repository" }, "started_at": "2026-01-01T00:00:00Z",
    })
}

pub fn call(id: &str, seq: u64, verdict: &str, name: &str) -> Value {
    json!({
        "job_id": id, "seq": seq, "time": format!("2026-01-01T00:00:{:02}.000000Z", seq % 60), "type": "network",
        "verdict": verdict, "direction": "outbound", "protocol": "tcp", "address": "192.0.2.1", "port": 443, "name": name,
        "packets": 2, "rule": "r", "policy": { "name": "p", "version": "1", "scope": "repository" },
        "process": { "pid": 7, "exe": "/usr/bin/curl", "step": "build" },
    })
}

pub fn lines(events: &[Value]) -> String {
    events.iter().flat_map(|event| [event.to_string(), "\n".to_owned()]).collect()
}

pub async fn upload(server: &Server, host: &str, id: &str, body: String) -> Reply {
    let post = server.as_caller(host, Method::POST, &format!("/jobs/{id}/events"));
    send(post.header("content-type", "application/x-ndjson").body(body)).await
}

pub async fn begin(server: &Server, host: &str, job: Value) -> Reply {
    send(server.as_caller(host, Method::POST, "/jobs").json(&job)).await
}

pub async fn host(server: &Server, cluster: &str) -> String {
    server.enrol(cluster).await["credential"].as_str().unwrap().to_owned()
}

pub fn report(id: &str) -> Value {
    json!({
        "job_id": id, "policy": { "name": "p", "version": "1", "scope": "repository" }, "target": "octo/hello",
        "identity": "asserted", "mode": "block", "posture": { "level": "enforced", "scope": "host", "features": [] },
        "allowed": 1, "blocked": 1, "would_block": 0, "destinations": [], "detections": [], "fail_job": false,
    })
}

async fn batches_are_stored_once(world: World) {
    let server = world.start().await;
    let host = host(&server, "prod").await;
    for _ in 0..2 {
        assert_eq!(
            begin(&server, &host, new_job(JOB, 7, "build")).await.expect(200)["last_seq"],
            0
        );
    }
    let events: Vec<Value> = (1..=10).map(|seq| call(JOB, seq, "allowed", "a.test")).collect();
    assert_eq!(upload(&server, &host, JOB, lines(&events[..4])).await.expect(200)["last_seq"], 4);
    // Again, overlapping, late: nothing is counted twice.
    for range in [0..4, 2..6, 0..2, 5..10, 0..10] {
        upload(&server, &host, JOB, lines(&events[range])).await.expect(200);
    }
    let mut many = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let post = server.as_caller(&host, Method::POST, &format!("/jobs/{JOB}/events"));
        many.spawn(send(post.body(lines(&events))));
    }
    for reply in many.join_all().await {
        assert_eq!(reply.expect(200)["last_seq"], 10);
    }
    let gap = upload(&server, &host, JOB, lines(&[call(JOB, 12, "allowed", "a.test")])).await;
    assert_eq!(gap.json()["expected_seq"], 11);
    assert_eq!(gap.problem(409).0, "events-out-of-order");
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(lines(&[call(JOB, 11, "blocked", "b.test")]).as_bytes()).unwrap();
    let post = server.as_caller(&host, Method::POST, &format!("/jobs/{JOB}/events"));
    let packed = send(post.header("content-encoding", "gzip").body(packed.finish().unwrap())).await;
    assert_eq!(packed.expect(200)["last_seq"], 11);
    let packed = in_zstd(lines(&[call(JOB, 12, "blocked", "b.test")]).as_bytes());
    let post = server.as_caller(&host, Method::POST, &format!("/jobs/{JOB}/events"));
    let packed = send(post.header("content-encoding", "zstd").body(packed)).await;
    assert_eq!(packed.expect(200)["last_seq"], 12);
    let job = server.get(&format!("/jobs/{JOB}")).await.expect(200);
    assert_eq!(
        (job["allowed"].as_u64(), job["blocked"].as_u64(), job["events"].as_u64()),
        (Some(20), Some(4), Some(12))
    );
    let destinations = server.get("/destinations").await.expect(200);
    assert_eq!(destinations["items"][0]["calls"], 20);
    server.stop().await;
}

/// A frame of RFC 8878 with one block that is as it is.
fn in_zstd(text: &[u8]) -> Vec<u8> {
    // The magic number; one segment, its size in two bytes (256 are taken off); the last block, raw, of this size.
    let size = u16::try_from(text.len()).unwrap();
    let block = u32::from(size) << 3 | 1;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x60];
    frame.extend_from_slice(&(size - 256).to_le_bytes());
    frame.extend_from_slice(&block.to_le_bytes()[..3]);
    frame.extend_from_slice(text);
    frame
}

async fn what_is_no_upload_is_refused(world: World) {
    let server = world.start().await;
    let (one, two) = (host(&server, "prod").await, host(&server, "prod").await);
    begin(&server, &one, new_job(JOB, 7, "build")).await.expect(200);
    // Another host can neither take the job over nor add to it.
    begin(&server, &two, new_job(JOB, 7, "build")).await.problem(409);
    upload(&server, &two, JOB, lines(&[call(JOB, 1, "allowed", "a.test")])).await.problem(404);
    let put = server.as_caller(&two, Method::PUT, &format!("/jobs/{JOB}/report"));
    send(put.json(&report(JOB))).await.problem(404);
    for body in [
        "{}".to_owned(),
        "x".to_owned(),
        lines(&[call("other", 1, "allowed", "a.test")]),
        lines(&[call(JOB, 0, "allowed", "a.test")]),
        lines(&[call(JOB, 1, "allowed", "a.test"), call(JOB, 3, "allowed", "a.test")]),
        lines(&[call(JOB, 1, "allowed", "a\u{0}b")]),
        lines(&[call(JOB, 1, "perhaps", "a.test")]),
        format!("{}{{", lines(&[call(JOB, 1, "allowed", "a.test")])),
    ] {
        upload(&server, &one, JOB, body).await.problem(400);
    }
    for bad in [
        new_job("../../x", 7, "b"),
        new_job(JOB, 0, "b"),
        new_job(JOB, u64::MAX, "b"),
        new_job(JOB, 7, "a b"),
    ] {
        begin(&server, &one, bad).await.problem(400);
    }
    assert_eq!(
        server.get(&format!("/jobs/{JOB}")).await.expect(200)["events"],
        0,
        "all or nothing"
    );
    // People don't upload, and runners don't read.
    begin(&server, &server.token.clone(), new_job(JOB, 7, "build")).await.problem(403);
    send(server.as_caller(&one, Method::GET, "/runs")).await.problem(403);
    server.stop().await;
}

async fn a_run_is_read_back(world: World) {
    let server = world.start().await;
    let host = host(&server, "prod").await;
    let id = |number: u64| format!("0197aaaaaaaa70008000{number:012x}");
    for number in 1..=3 {
        begin(&server, &host, new_job(&id(number), number, "build")).await.expect(200);
    }
    let job = id(3);
    let mut events = vec![
        call(&job, 1, "allowed", "a.test"),
        call(&job, 2, "blocked", "b_x.test"),
        call(&job, 3, "blocked", "bxx.test"),
    ];
    events[1]["process"]["step"] = json!("test");
    events.push(json!({ "job_id": job, "seq": 4, "time": "2026-01-01T00:01:00.000000Z", "type": "detection", "detection": "Reverse-Shell", "evidence": "it was <b>", "is_lockdown": true }));
    upload(&server, &host, &job, lines(&events)).await.expect(200);
    let put = server.as_caller(&host, Method::PUT, &format!("/jobs/{job}/report"));
    assert_eq!(send(put.json(&report(&job))).await.status, 204);

    let page = server.get("/runs?limit=2&repository=Octo/Hello").await.expect(200);
    let ids: Vec<_> = page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids, ["3-1", "2-1"]);
    let next = server
        .get(&format!("/runs?limit=2&cursor={}", page["next_cursor"].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!((next["items"][0]["id"].as_str(), next.get("next_cursor")), (Some("1-1"), None));
    for (filter, count) in [
        ("blocked=true", 1),
        ("detections=true", 1),
        ("cluster=prod", 3),
        ("cluster=dev", 0),
        ("policy=p", 3),
        ("organization=OCTO", 3),
        ("workflow=octo/hello/.github/workflows/ci.yml", 3),
        ("endpoint=b_x.test:443", 1),
        ("endpoint=b_x.test", 0),
        ("endpoint=bxx.test:443&blocked=true&policy=p", 1),
        ("endpoint=bxx.test:443&cluster=dev", 0),
        ("since=2026-01-01T00:00:00Z", 3),
        ("since=2026-01-01T00:00:01Z", 0),
    ] {
        let runs = server.get(&format!("/runs?{filter}")).await.expect(200);
        assert_eq!(runs["items"].as_array().unwrap().len(), count, "{filter}");
    }
    let run = server.get("/runs/3").await.expect(200);
    assert_eq!(
        (run["state"].as_str(), run["blocked"].as_u64(), run["job_records"][0]["posture"].as_str()),
        (Some("ended"), Some(4), Some("enforced"))
    );
    assert_eq!(server.get("/runs/2-1").await.expect(200)["state"], "running");
    server.get("/runs/9").await.problem(404);
    server.get("/runs/x").await.problem(404);

    // `_` is a letter like any other, not a wildcard.
    for (filter, numbers) in [
        ("", vec![1, 2, 3]),
        ("status=blocked", vec![2, 3]),
        ("endpoint=b_x", vec![2]),
        ("process=curl", vec![1, 2, 3]),
        ("step=build", vec![1, 3]),
        ("step=test", vec![2]),
        ("step=deploy", vec![]),
        ("policy=p", vec![1, 2, 3]),
        ("policy=nobodys", vec![]),
        ("limit=1&cursor=1", vec![2]),
    ] {
        let events = server.get(&format!("/jobs/{job}/network-events?{filter}")).await.expect(200);
        let seen: Vec<u64> = events["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["seq"].as_u64().unwrap())
            .collect();
        assert_eq!(seen, numbers, "{filter}");
    }
    server.get("/runs?since=yesterday").await.problem(400);
    for (since, count) in [("2026-01-01T00:01:00Z", 1), ("2026-01-01T00:01:01Z", 0)] {
        let found = server.get(&format!("/detections?since={since}")).await.expect(200);
        assert_eq!(found["items"].as_array().unwrap().len(), count, "{since}");
    }
    let all = server.get(&format!("/jobs/{job}/events")).await.expect(200);
    assert_eq!(all["items"].as_array().unwrap().len(), 4);
    assert_eq!(all["items"][0], events[0], "an event comes back as it went");
    let detections = server.get("/detections?type=Reverse-Shell&run_id=3").await.expect(200);
    let detection = &detections["items"][0];
    assert_eq!(
        (
            detection["evidence"].as_str(),
            detection["is_lockdown"].as_bool(),
            detection["seq"].as_u64()
        ),
        (Some("it was <b>"), Some(true), Some(4))
    );
    let destinations = server.get("/destinations?status=blocked&limit=1").await.expect(200);
    assert_eq!(destinations["items"][0]["endpoint"], "b_x.test:443");
    // Another run called the same a day earlier: each destination says when it was called first and last.
    let mut earlier = call(&id(2), 1, "blocked", "b_x.test");
    earlier["time"] = json!("2025-12-31T08:00:00.000000Z");
    upload(&server, &host, &id(2), lines(&[earlier])).await.expect(200);
    let seen = server.get("/destinations?status=blocked").await.expect(200);
    let times = |index: usize| {
        let item = &seen["items"][index];
        let time = |key: &str| item[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        (time("first_seen").to_string(), time("last_seen").to_string(), item["runs"].clone())
    };
    let (early, late) = ("2025-12-31T08:00:00Z".to_owned(), "2026-01-01T00:00:02Z".to_owned());
    assert_eq!(times(0), (early, late, json!(2)), "{seen}");
    let once = "2026-01-01T00:00:03Z".to_owned();
    assert_eq!(times(1), (once.clone(), once, json!(1)), "{seen}");
    let rest = server
        .request(Method::GET, "/destinations")
        .query(&[("status", "blocked"), ("cursor", destinations["next_cursor"].as_str().unwrap())]);
    assert_eq!(send(rest).await.expect(200)["items"][0]["endpoint"], "bxx.test:443");
    server.stop().await;
}

/// The database is killed in the middle of uploads: what was acknowledged is there, once.
async fn nothing_acknowledged_is_lost(mut world: World) {
    let server = world.start().await;
    let host = host(&server, "prod").await;
    begin(&server, &host, new_job(JOB, 7, "build")).await.expect(200);
    let mut acknowledged = 0;
    let (mut seq, mut killed) = (1, false);
    while acknowledged < 400 {
        if let (Some(postgres), 200, false) = (&mut world.postgres, acknowledged, killed) {
            postgres.kill();
            postgres.restart();
            killed = true;
        }
        let batch: Vec<Value> =
            (seq..seq + 20).map(|seq| call(JOB, seq, "allowed", "a.test")).collect();
        let reply = upload(&server, &host, JOB, lines(&batch)).await;
        match reply.status.as_u16() {
            200 => {
                acknowledged = reply.json()["last_seq"].as_u64().unwrap();
                seq = acknowledged + 1;
            }
            503 => {}
            other => panic!("{other}: {}", reply.text),
        }
    }
    let job = server.get(&format!("/jobs/{JOB}")).await.expect(200);
    assert_eq!((job["events"].as_u64(), job["allowed"].as_u64()), (Some(400), Some(800)));
    let events = server.get(&format!("/jobs/{JOB}/events?limit=1000")).await.expect(200);
    assert_eq!(events["items"].as_array().unwrap().len(), 400);
    server.stop().await;
}

async fn baselines_add_up_and_old_things_go(world: World) {
    let server = world.start().await;
    let host = host(&server, "prod").await;
    let id = |number: u64| format!("0197aaaaaaaa70008000{number:012x}");
    for (number, name) in [(1, "build"), (2, "build"), (3, "test")] {
        begin(&server, &host, new_job(&id(number), number, name)).await.expect(200);
        let events = [
            call(&id(number), 1, "allowed", "a.test"),
            call(&id(number), 2, "would-block", &format!("only-{number}.test")),
            call(&id(number), 3, "blocked", "evil.test"),
        ];
        upload(&server, &host, &id(number), lines(&events)).await.expect(200);
        let put = server.as_caller(&host, Method::PUT, &format!("/jobs/{}/report", id(number)));
        assert_eq!(send(put.json(&report(&id(number)))).await.status, 204);
    }
    let text = async |query: &str| {
        let get = server.request(Method::GET, &format!("/baselines?{query}"));
        send(get.header("accept", "text/plain")).await.text
    };
    let all = "a.test:443\nonly-1.test:443\nonly-2.test:443\nonly-3.test:443\n";
    for source in [
        "organization&organization=octo",
        "repository&repository=octo/hello",
        "cluster&cluster=prod",
    ] {
        assert_eq!(text(&format!("source={source}")).await, all, "{source}");
    }
    let job =
        "source=job&repository=octo/hello&workflow=octo/hello/.github/workflows/ci.yml&job=test";
    assert_eq!(text(job).await, "a.test:443\nonly-3.test:443\n");
    let page =
        server.get("/baselines?source=repository&repository=octo/hello&limit=1").await.expect(200);
    let first = &page["items"][0];
    assert_eq!(
        (first["endpoint"].as_str(), first["calls"].as_u64(), first["runs"].as_u64()),
        (Some("a.test:443"), Some(6), Some(3))
    );
    assert!(page["next_cursor"].is_string());
    server.get("/baselines?source=job&repository=octo/hello").await.problem(400);
    server.get("/baselines").await.problem(400);

    // Events go first, what they add up to later, and what runs stays.
    begin(&server, &host, new_job(&id(4), 4, "build")).await.expect(200);
    let database = &server.running.store.database;
    let (future, past) = (i64::MAX, 0);
    let mut retention = portcullis_store::database::Retention {
        events_before_ms: future,
        jobs_before_ms: past,
        audit_before_ms: past,
        deliveries_before_ms: past,
        only_archived: false,
    };
    while database.remove_old(&retention).await.unwrap() {}
    assert_eq!(
        server.get(&format!("/jobs/{}/events", id(1))).await.expect(200)["items"],
        json!([])
    );
    assert_eq!(text("source=cluster&cluster=prod").await, all);
    retention.jobs_before_ms = future;
    while database.remove_old(&retention).await.unwrap() {}
    let left = server.get("/runs").await.expect(200);
    assert_eq!(
        (left["items"].as_array().unwrap().len(), left["items"][0]["run_id"].as_u64()),
        (1, Some(4))
    );
    assert_eq!(text("source=cluster&cluster=prod").await, "");
    server.stop().await;
}

/// Each kind of record has days of its own, counted back from now.
async fn each_kind_is_kept_for_its_own_days(world: World) {
    use crate::notifications::{configuration, deliveries, make, webhook};
    use crate::support::receiver::Receiver;
    use portcullis_store::database::NewAuditEntry;
    use portcullis_store::serve::remove_old;
    const DAY: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);
    let receiver = Receiver::start().await;
    let mut configured = configuration(&world);
    let kept = &mut configured.retention;
    (kept.events_days, kept.jobs_days, kept.audit_days, kept.deliveries_days) = (7, 30, 100, 2);
    let server = world.start_with(configured.clone()).await;
    let hook = make(&server, "hook", webhook(&receiver.url("/")), json!({})).await;
    server.post(&format!("/integrations/{hook}/test"), json!({})).await.expect(200);
    assert_eq!(deliveries(&server, &hook, "delivered").await.len(), 1);
    let host = host(&server, "prod").await;
    let id = |number: i32| format!("0197aaaaaaaa70008000{number:012x}");
    let now = jiff::Timestamp::now();
    // By how many days ago they began; the last one still runs.
    for (number, days) in [(1, 6), (2, 8), (3, 29), (4, 31), (5, 500)] {
        let mut job = new_job(&id(number), u64::from(number.unsigned_abs()), "build");
        job["started_at"] = json!(now - DAY * days);
        begin(&server, &host, job).await.expect(200);
        let event = call(&id(number), 1, "allowed", "a.test");
        upload(&server, &host, &id(number), lines(&[event])).await.expect(200);
        if number < 5 {
            let put = server.as_caller(&host, Method::PUT, &format!("/jobs/{}/report", id(number)));
            assert_eq!(send(put.json(&report(&id(number)))).await.status, 204);
        }
    }
    let database = &server.running.store.database;
    for days in [99, 101] {
        let entry = NewAuditEntry {
            time_ms: (now - DAY * days).as_millisecond(),
            actor: "token:first-admin".to_owned(),
            action: "host.revoke",
            subject: format!("host:{days}"),
            detail: None,
            address: None,
        };
        database.audit(&entry).await.unwrap();
    }
    remove_old(&server.running.store).await.unwrap();

    let events = async |number: i32| {
        let reply = server.get(&format!("/jobs/{}/events", id(number))).await;
        let is_there = reply.status == 200;
        is_there.then(|| reply.json()["items"].as_array().unwrap().len())
    };
    for (number, expected) in [(1, Some(1)), (2, Some(0)), (3, Some(0)), (4, None), (5, Some(1))] {
        assert_eq!(events(number).await, expected, "job {number}");
    }
    let log = server.get("/audit-log?action=host.revoke").await.expect(200);
    let subjects: Vec<&Value> =
        log["items"].as_array().unwrap().iter().map(|entry| &entry["subject"]).collect();
    assert_eq!(subjects, ["host:99"]);
    assert_eq!(deliveries(&server, &hook, "delivered").await.len(), 1, "it is not two days old");

    // Deliveries alone: what is older than now goes, and nothing else does.
    let token = server.token.clone();
    server.stop().await;
    configured.retention.deliveries_days = 0;
    configured.retention.events_days = 10_000;
    let mut again = world.start_with(configured).await;
    again.token = token;
    remove_old(&again.running.store).await.unwrap();
    assert_eq!(deliveries(&again, &hook, "delivered").await.len(), 0);
    let reply = again.get(&format!("/jobs/{}/events", id(1))).await.expect(200);
    assert_eq!(reply["items"].as_array().map(Vec::len), Some(1));
    again.stop().await;
}

/// The server's own rounds do it, as often as they are told to, and leave what is young.
async fn what_is_too_old_goes_by_itself(world: World) {
    use portcullis_store::serve::Pace;
    use std::time::{Duration, Instant};
    let pace = Pace { pause: Duration::from_millis(50), retention_rounds: 3 };
    let mut configured = world.configuration();
    configured.retention.jobs_days = 30;
    let server = world.start_at(configured, pace).await;
    let host = host(&server, "prod").await;
    let id = |number: u64| format!("0197aaaaaaaa70008000{number:012x}");
    let ended = async |number: u64, days: i32| {
        let mut job = new_job(&id(number), number, "build");
        job["started_at"] =
            json!(jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24) * days);
        begin(&server, &host, job).await.expect(200);
        let put = server.as_caller(&host, Method::PUT, &format!("/jobs/{}/report", id(number)));
        assert_eq!(send(put.json(&report(&id(number)))).await.status, 204);
    };
    let is_there =
        async |number: u64| server.get(&format!("/jobs/{}", id(number))).await.status == 200;
    let goes = async |number: u64| {
        let deadline = Instant::now() + Duration::from_mins(1);
        while is_there(number).await {
            assert!(Instant::now() < deadline, "nothing removes job {number}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    ended(1, 29).await;
    ended(2, 31).await;
    goes(2).await;
    // Not only the first time.
    ended(3, 500).await;
    goes(3).await;
    assert!(is_there(1).await);
    server.stop().await;
}
