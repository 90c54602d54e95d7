//! Who is told what, how often it is tried, and what is never told.

use crate::on_both;
use crate::runs::{begin, call, host, lines, new_job, report, upload};
use crate::support::object_store::ObjectStore;
use crate::support::other_readers::assert_understood;
use crate::support::receiver::{Answer, Receiver};
use crate::support::{Server, World, eventually, send};
use crate::suppressions::detection;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_store::configuration::Configuration;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::{Duration, Instant};

on_both!(
    everybody_who_asks_is_told,
    failures_are_tried_again_and_given_up,
    a_target_that_hangs_keeps_nobody_waiting,
    a_target_that_answers_for_ever_is_not_listened_to,
    a_new_destination_of_a_stable_job_is_told,
    a_bucket_is_nowhere_that_a_webhook_may_not_be,
    secrets_go_in_and_never_out
);

pub const JOB: &str = "0197aaaaaaaa7000800000000000000a";
const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A store that may tell receivers on this machine.
pub fn configuration(world: &World) -> Configuration {
    let mut configuration = world.configuration();
    configuration.notifications.allowed_networks = vec!["127.0.0.0/8".parse().unwrap()];
    configuration.notifications.allow_http = true;
    configuration.notifications.retry_seconds = vec![0, 0];
    configuration.notifications.timeout_seconds = 1;
    configuration
}

pub async fn make(server: &Server, name: &str, target: Value, selection: Value) -> String {
    let body = json!({ "name": name, "target": target, "selection": selection });
    let made = server.post("/integrations", body).await.expect(201);
    made["id"].as_str().unwrap().to_owned()
}

pub fn webhook(url: &str) -> Value {
    json!({ "kind": "webhook", "url": url, "secret": KEY })
}

pub async fn deliveries(server: &Server, id: &str, state: &str) -> Vec<Value> {
    let page = server.get(&format!("/integrations/{id}/deliveries?state={state}")).await;
    page.expect(200)["items"].as_array().unwrap().clone()
}

async fn everybody_who_asks_is_told(world: World) {
    let server = world.start_with(configuration(&world)).await;
    let receiver = Receiver::start().await;
    let objects = ObjectStore::start("evidence").await;
    let hook = json!({
        "kind": "webhook", "url": receiver.url("/hook?token=t0k3n"), "secret": KEY,
        "headers": { "Authorization": "Bearer s3cret" },
    });
    make(&server, "all", hook, json!({})).await;
    let ocsf =
        json!({ "kind": "webhook", "url": receiver.url("/ocsf"), "secret": KEY, "format": "ocsf" });
    make(&server, "ocsf", ocsf, json!({ "detection_types": ["Sudo-Use"] })).await;
    let slack = json!({ "kind": "slack", "url": receiver.url("/services/T/B/x") });
    make(&server, "slack", slack, json!({ "scopes": [{ "repository": "Octo/Hello" }] })).await;
    let otlp =
        json!({ "kind": "otlp", "url": receiver.url("/v1/logs"), "headers": { "api-key": "k" } });
    make(&server, "otlp", otlp, json!({ "scopes": [{ "cluster": "prod" }] })).await;
    let calls = json!({ "detections": false, "blocked_calls": true });
    make(&server, "calls", webhook(&receiver.url("/calls")), calls).await;
    let bucket = json!({
        "kind": "s3", "bucket": "evidence", "region": "us-east-1", "endpoint": objects.url, "prefix": "pc/",
        "access_key_id": "id", "secret_access_key": "key", "events": true,
    });
    let bucket = make(&server, "bucket", bucket, json!({})).await;
    // These must get nothing of what follows.
    for (name, selection) in [
        ("elsewhere", json!({ "scopes": [{ "organization": "other" }] })),
        ("killed only", json!({ "lockdown_only": true })),
        ("other type", json!({ "detection_types": ["Reverse-Shell"] })),
        ("nothing", json!({ "detections": false })),
    ] {
        make(&server, name, webhook(&receiver.url("/never")), selection).await;
    }
    let off =
        json!({ "name": "off", "target": webhook(&receiver.url("/never")), "enabled": false });
    server.post("/integrations", off).await.expect(201);
    let accepted = json!({ "type": "Raw-Frames", "reason": "known" });
    server.post("/suppressions", accepted).await.expect(201);

    let host = host(&server, "prod").await;
    begin(&server, &host, new_job(JOB, 7, "build")).await.expect(200);
    let events = [
        call(JOB, 1, "allowed", "good.test"),
        call(JOB, 2, "blocked", "evil.test"),
        call(JOB, 3, "would-block", "odd.test"),
        detection(JOB, 4, "Sudo-Use", "/usr/bin/sudo"),
        detection(JOB, 5, "Raw-Frames", "/usr/bin/frames"),
    ];
    upload(&server, &host, JOB, lines(&events)).await.expect(200);
    // The same call again, and a batch that came before: nobody is told twice.
    let again = [call(JOB, 6, "blocked", "evil.test")];
    for _ in 0..2 {
        upload(&server, &host, JOB, lines(&again)).await.expect(200);
    }
    let received = receiver.wait(5).await;
    let at = |path: &str| {
        let found: Vec<_> = received.iter().filter(|it| it.path.starts_with(path)).collect();
        assert_eq!(found.len(), 1, "{path}");
        found[0].clone()
    };

    let hook = at("/hook?token=t0k3n");
    let (id, time) = (hook.header("webhook-id"), hook.header("webhook-timestamp"));
    let key = STANDARD.decode(KEY.strip_prefix("whsec_").unwrap()).unwrap();
    let signed = [format!("{id}.{time}.").as_bytes(), &hook.body].concat();
    let signature = hook.header("webhook-signature").strip_prefix("v1,").unwrap();
    let signature = STANDARD.decode(signature).unwrap();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed, &signature).unwrap();
    assert_eq!(hook.header("authorization"), "Bearer s3cret");
    let age = jiff::Timestamp::now().as_second() - time.parse::<i64>().unwrap();
    assert!((0..300).contains(&age), "{age}");
    let told = hook.json();
    assert_eq!(told["type"], "detection.created");
    let data = &told["data"];
    for (key, value) in [
        ("detection", "Sudo-Use"),
        ("evidence", "/usr/bin/sudo did it"),
        ("repository", "octo/hello"),
        ("workflow", "octo/hello/.github/workflows/ci.yml"),
        ("job", "build"),
        ("job_id", JOB),
        ("cluster", "prod"),
        ("link", "https://store.test/runs/7-1"),
    ] {
        assert_eq!(data[key], value, "{key}");
    }
    assert_eq!((&data["run_id"], &data["policy"]["name"]), (&json!(7), &json!("p")));
    assert_eq!(data["process"]["argv"], json!(["/usr/bin/sudo", "-i"]));

    let (otlp, ocsf) = (at("/v1/logs").json(), at("/ocsf").json());
    tokio::task::block_in_place(|| assert_understood(&otlp, &ocsf));
    let slack = at("/services").json();
    assert_eq!(slack["text"], "Sudo-Use in job build of octo/hello");
    let blocks = slack["blocks"].as_array().unwrap();
    assert_eq!(blocks[0]["text"]["text"], "Sudo-Use in job build of octo/hello");
    let texts = |fields: &Value| -> Vec<String> {
        let fields = fields.as_array().unwrap().iter();
        fields.map(|field| field["text"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        texts(&blocks[1]["fields"]),
        [
            "Repository: octo/hello",
            "Workflow: octo/hello/.github/workflows/ci.yml",
            "Run: 7 attempt 1",
            "Job: build",
            &format!("Job id: {JOB}"),
            "Policy: p version 1",
            "Cluster: prod",
        ]
    );
    assert_eq!(
        blocks[2]["text"]["text"],
        "/usr/bin/sudo did it\nProcess: /usr/bin/sudo: /usr/bin/sudo -i"
    );
    assert_eq!(texts(&blocks[3]["elements"]), ["<https://store.test/runs/7-1|Open the run>"]);
    assert_eq!(blocks.len(), 4, "{slack}");
    assert_eq!(at("/v1/logs").header("api-key"), "k");
    let calls = at("/calls").json();
    assert_eq!(calls["type"], "calls.blocked");
    let evil = json!([{ "endpoint": "evil.test:443", "verdict": "blocked", "process": "/usr/bin/curl", "calls": 2 }]);
    assert_eq!(calls["data"]["calls"], evil, "what audit let through was not asked for");

    // The bucket has an object for each batch of events, and one for the detection.
    let names = eventually("three objects", async || {
        let names = objects.names("evidence").await;
        (names.len() >= 3).then_some(names)
    })
    .await;
    let day = "2026/01/01";
    let batch = format!("pc/events/{day}/{JOB}/000000000001-000000000005.ndjson");
    assert_eq!(
        names[..2],
        [batch.clone(), format!("pc/events/{day}/{JOB}/000000000006-000000000006.ndjson")]
    );
    assert!(names[2].starts_with(&format!("pc/notifications/{day}/")), "{names:?}");
    assert_eq!(String::from_utf8(objects.get("evidence", &batch).await).unwrap(), lines(&events));
    assert_eq!(objects.json("evidence", &names[2]).await["data"]["detection"], "Sudo-Use");
    eventually("all is delivered", async || {
        (deliveries(&server, &bucket, "delivered").await.len() == 3).then_some(())
    })
    .await;
    assert_eq!(receiver.received().len(), 5, "nobody else was told, and nobody twice");
    server.stop().await;
}

/// Uploads a detection; its number in the job.
pub async fn happen(server: &Server, host: &str, seq: u64) {
    let events = [detection(JOB, seq, "Sudo-Use", "/usr/bin/sudo")];
    upload(server, host, JOB, lines(&events)).await.expect(200);
}

async fn failures_are_tried_again_and_given_up(world: World) {
    let server = world.start_with(configuration(&world)).await;
    let receiver = Receiver::start().await;
    let id = make(&server, "hook", webhook(&receiver.url("/")), json!({})).await;
    let host = host(&server, "prod").await;
    begin(&server, &host, new_job(JOB, 7, "build")).await.expect(200);
    receiver
        .answer([Answer::Status(500), Answer::With(307, "location", receiver.url("/elsewhere"))]);
    happen(&server, &host, 1).await;
    let received = receiver.wait(3).await;
    let ids: HashSet<&str> = received.iter().map(|it| it.header("webhook-id")).collect();
    assert_eq!(ids.len(), 1, "the same message each time");
    assert!(received.iter().all(|it| it.path == "/"), "redirects are not followed");
    let delivered =
        eventually("it is delivered", async || deliveries(&server, &id, "delivered").await.pop())
            .await;
    assert_eq!(
        (
            delivered["attempts"].as_u64(),
            delivered["last_status"].as_u64(),
            delivered.get("last_error")
        ),
        (Some(3), Some(200), None)
    );

    // As often as the configuration says, then no more, until a person wants it.
    receiver.always(Some(Answer::Status(404)));
    happen(&server, &host, 2).await;
    let dead =
        eventually("it is given up", async || deliveries(&server, &id, "dead").await.pop()).await;
    assert_eq!(
        (dead["attempts"].as_u64(), dead["last_error"].as_str()),
        (Some(3), Some("the target answered 404 Not Found"))
    );
    assert_eq!(server.get(&format!("/integrations/{id}")).await.expect(200)["dead"], 1);
    receiver.always(None);
    let path = format!("/deliveries/{}/retry", dead["id"].as_str().unwrap());
    assert_eq!(server.post(&path, json!({})).await.status, 204);
    eventually("it is delivered after all", async || {
        (deliveries(&server, &id, "delivered").await.len() == 2).then_some(())
    })
    .await;
    server.post(&path, json!({})).await.problem(404);

    // A receiver that is gone for good is not asked again.
    receiver.answer([Answer::Status(410)]);
    happen(&server, &host, 3).await;
    let dead =
        eventually("it is given up", async || deliveries(&server, &id, "dead").await.pop()).await;
    assert_eq!(dead["attempts"], 1);
    // One that asks to wait is waited for.
    receiver.answer([Answer::With(429, "retry-after", "3600".to_owned())]);
    happen(&server, &host, 4).await;
    let waiting = eventually("it waits", async || {
        deliveries(&server, &id, "pending").await.pop().filter(|it| it["last_status"] == 429)
    })
    .await;
    let next: jiff::Timestamp = waiting["next_attempt_at"].as_str().unwrap().parse().unwrap();
    assert!(next.as_second() - jiff::Timestamp::now().as_second() > 3000, "{waiting}");

    // The test says what happens, and is a delivery like any other.
    let tested = server.post(&format!("/integrations/{id}/test"), json!({})).await.expect(200);
    assert_eq!(
        (tested["state"].as_str(), tested["type"].as_str()),
        (Some("delivered"), Some("test"))
    );
    receiver.answer([Answer::Status(401)]);
    let tested = server.post(&format!("/integrations/{id}/test"), json!({})).await.expect(200);
    assert_eq!(
        (tested["state"].as_str(), tested["last_error"].as_str()),
        (Some("dead"), Some("the target answered 401 Unauthorized"))
    );
    let listed = deliveries(&server, &id, "dead").await;
    assert_eq!(listed[0], tested);
    server.stop().await;
}

async fn a_target_that_hangs_keeps_nobody_waiting(world: World) {
    let mut configuration = configuration(&world);
    configuration.notifications.retry_seconds = vec![3600];
    let server = world.start_with(configuration).await;
    let (hanging, good) = (Receiver::start().await, Receiver::start().await);
    hanging.always(Some(Answer::Hang));
    let id = make(&server, "hanging", webhook(&hanging.url("/")), json!({})).await;
    make(&server, "good", webhook(&good.url("/")), json!({})).await;
    let host = host(&server, "prod").await;
    begin(&server, &host, new_job(JOB, 7, "build")).await.expect(200);
    let events: Vec<Value> =
        (1..=30).map(|seq| detection(JOB, seq, "Sudo-Use", "/usr/bin/sudo")).collect();
    let begun = Instant::now();
    upload(&server, &host, JOB, lines(&events)).await.expect(200);
    good.wait(30).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let failed = eventually("the attempt is over", async || {
        let waiting = deliveries(&server, &id, "pending").await;
        waiting.into_iter().find(|it| it["last_error"].is_string())
    })
    .await;
    let error = failed["last_error"].as_str().unwrap();
    assert!(error.contains("timed out") || error.contains("took too long"), "{error}");
    // It is asked by a few at a time, and then left alone.
    assert!(hanging.received().len() <= 8, "{}", hanging.received().len());
    // A server that is told to stop does not wait for it either.
    let begun = Instant::now();
    server.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

async fn a_new_destination_of_a_stable_job_is_told(world: World) {
    let mut configuration = configuration(&world);
    configuration.baseline.min_runs = 2;
    configuration.baseline.window_runs = 2;
    let server = world.start_with(configuration).await;
    let receiver = Receiver::start().await;
    let only = json!({ "detection_types": ["New-Outbound-Network-Call"] });
    make(&server, "hook", webhook(&receiver.url("/")), only).await;
    let known = json!({
        "type": "New-Outbound-Network-Call", "endpoint": "*.Mirror.test:443", "process": "*/curl", "reason": "our mirrors",
    });
    server.post("/suppressions", known).await.expect(201);
    let host = host(&server, "prod").await;
    for run in 1..=4 {
        let job = format!("0197aaaaaaaa70008000{run:012x}");
        begin(&server, &host, new_job(&job, run, "build")).await.expect(200);
        let mut events = vec![call(&job, 1, "allowed", "usual.test")];
        if run == 4 {
            events.push(call(&job, 2, "allowed", "eu.mirror.test"));
            events.push(call(&job, 3, "allowed", "new.test"));
        }
        upload(&server, &host, &job, lines(&events)).await.expect(200);
        let put = server.as_caller(&host, Method::PUT, &format!("/jobs/{job}/report"));
        assert_eq!(send(put.json(&report(&job))).await.status, 204);
    }
    let told = receiver.wait(1).await[0].json();
    assert_eq!(
        (&told["data"]["endpoint"], &told["data"]["process"]["exe"], &told["data"]["run_id"]),
        (&json!("new.test:443"), &json!("/usr/bin/curl"), &json!(4))
    );
    for (state, endpoint) in [("new", "new.test:443"), ("suppressed", "eu.mirror.test:443")] {
        let page = server.get(&format!("/detections?state={state}")).await.expect(200);
        assert_eq!(page["items"].as_array().unwrap().len(), 1, "{state}");
        assert_eq!(page["items"][0]["endpoint"], endpoint);
    }
    let run = server.get("/runs/4").await.expect(200);
    assert_eq!(run["detections"], 2, "both are recorded");
    assert_eq!(receiver.received().len(), 1);
    server.stop().await;
}

async fn secrets_go_in_and_never_out(world: World) {
    let server = world.start_with(configuration(&world)).await;
    let receiver = Receiver::start().await;
    let target = json!({
        "kind": "webhook", "url": receiver.url("/path-t0k3n?key=s3cret"), "secret": KEY,
        "headers": { "X-Key": "h3ader" },
    });
    let body = json!({ "name": "hook", "target": target, "selection": { "blocked_calls": true } });
    let made = server.post("/integrations", body.clone()).await.expect(201);
    let id = made["id"].as_str().unwrap();
    server.post("/integrations", body).await.problem(409);
    let path = format!("/integrations/{id}");
    let changed = json!({ "name": "renamed", "target": { "kind": "webhook", "format": "ocsf" } });
    let changed = server.put(&path, changed).await.expect(200);
    assert_eq!(changed["target"]["format"], "ocsf");
    server.post(&format!("{path}/test"), json!({})).await.expect(200);
    let received = receiver.wait(1).await;
    assert_eq!(
        (received[0].path.as_str(), received[0].header("x-key")),
        ("/path-t0k3n?key=s3cret", "h3ader")
    );
    // Another host gets none of what was meant for the first.
    let other = Receiver::start().await;
    let moved =
        json!({ "name": "renamed", "target": { "kind": "webhook", "url": other.url("/") } });
    let (_, detail) = server.put(&path, moved).await.problem(400);
    assert!(detail.contains("the key of signatures is missing"), "{detail}");
    let moved = json!({ "name": "renamed", "target": webhook(&other.url("/")) });
    server.put(&path, moved).await.expect(200);
    server.post(&format!("{path}/test"), json!({})).await.expect(200);
    assert!(!other.wait(1).await[0].headers.contains_key("x-key"));
    for at in ["/integrations", &path, &format!("{path}/deliveries"), "/audit-log"] {
        let text = server.get(at).await.text;
        for secret in ["t0k3n", "s3cret", "h3ader", "MfKQ9r8"] {
            assert!(!text.contains(secret), "{at}: {text}");
        }
    }
    for (body, told) in [
        (json!({ "name": "", "target": webhook("https://a.test") }), "1 to 100 visible characters"),
        (json!({ "name": "x", "target": webhook("gopher://a.test") }), "neither https nor http"),
        (json!({ "name": "x", "target": { "kind": "pager" } }), "unknown variant"),
        (
            json!({ "name": "x", "target": webhook("https://a.test"), "selection": { "detection_types": ["Nothing"] } }),
            "no detections of type",
        ),
        (
            json!({ "name": "x", "target": webhook("https://a.test"), "selection": { "scopes": [{ "repository": "x" }] } }),
            "names no repository",
        ),
    ] {
        let (_, detail) = server.post("/integrations", body.clone()).await.problem(400);
        assert!(detail.contains(told), "{body}: {detail}");
    }
    assert_eq!(server.delete(&path).await.status, 204);
    server.get(&path).await.problem(404);
    server.get(&format!("{path}/deliveries")).await.problem(404);
    server.post(&format!("{path}/test"), json!({})).await.problem(404);
    server.stop().await;
}

/// A bucket's server is looked at as every other target is: not this machine, not the cloud's metadata.
async fn a_bucket_is_nowhere_that_a_webhook_may_not_be(world: World) {
    let receiver = Receiver::start().await;
    let mut strict = configuration(&world);
    strict.notifications.allowed_networks = vec!["192.0.2.0/24".parse().unwrap()];
    let server = world.start_with(strict).await;
    let port = receiver.address.port();
    let bucket = |endpoint: &str| {
        json!({
            "kind": "s3", "bucket": "evidence", "region": "us-east-1", "endpoint": endpoint,
            "access_key_id": "id", "secret_access_key": "key",
        })
    };
    for (endpoint, told) in [
        (format!("https://127.0.0.1:{port}"), "loopback"),
        (format!("http://127.0.0.1:{port}"), "allowed-networks"),
        (format!("https://[::ffff:127.0.0.1]:{port}"), "is not on the internet"),
        ("https://169.254.169.254".to_owned(), "is not on the internet"),
        ("https://[fe80::1]".to_owned(), "is not on the internet"),
        // A name is looked at when it is resolved.
        (format!("https://localhost:{port}"), "is not on the internet (loopback)"),
    ] {
        let id = make(&server, &endpoint, bucket(&endpoint), json!({})).await;
        let tried = server.post(&format!("/integrations/{id}/test"), json!({})).await.expect(200);
        let error = tried["last_error"].as_str().unwrap();
        assert!(error.contains(told), "{endpoint}: {tried}");
        assert_ne!(tried["state"], "delivered", "{tried}");
    }
    assert!(receiver.received().is_empty(), "nobody was connected to");
    server.stop().await;
}

/// The status is all that counts of an answer: one whose body never ends keeps nobody.
async fn a_target_that_answers_for_ever_is_not_listened_to(world: World) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 16_000]).await;
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head).await.unwrap();
            let chunk = [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat();
            let mut sent = 0_u64;
            while stream.write_all(&chunk).await.is_ok() {
                sent += 0x4000;
            }
            let _ = ended.send(sent);
        }
    });
    let server = world.start_with(configuration(&world)).await;
    let id = make(&server, "endless", webhook(&url), json!({})).await;
    let tried = server.post(&format!("/integrations/{id}/test"), json!({})).await.expect(200);
    assert_eq!((&tried["state"], &tried["last_status"]), (&json!("delivered"), &json!(200)));
    // The connection was ended by the store, which did not read it all.
    let sent = end.recv().await.unwrap();
    assert!(sent < 64 * 1024 * 1024, "{sent} bytes were taken");
    server.stop().await;
}
