//! What is shown at a glance: sums over hours, a job's calls over time, names to choose from, what is in force on hosts.

use crate::on_both;
use crate::runs::{begin, call, host, lines, report, upload};
use crate::support::{Server, World, context, send};
use jiff::{Timestamp, ToSpan as _};
use portcullis_store::database::Database;
use reqwest::Method;
use serde_json::{Value, json};

on_both!(
    the_summary_is_what_jobs_add_up_to,
    a_timeline_has_every_call,
    targets_are_what_runners_reported,
    hosts_say_what_is_less_than_it_should_be,
    new_calls_are_found_among_others
);

fn id(number: u64) -> String {
    format!("0197aaaaaaaa70008000{number:012x}")
}

/// A job of a run that began at a time, with other values of its context.
fn job(number: u64, run: u64, started: Timestamp, changed: &Value) -> Value {
    let mut context = serde_json::to_value(context()).unwrap();
    context["run_id"] = json!(run);
    for (key, value) in changed.as_object().unwrap() {
        context[key] = value.clone();
    }
    json!({
        "id": id(number), "context": context, "target": "octo/hello", "identity": "asserted", "mode": "block",
        "policy": { "name": "p", "version": "1", "scope": "repository" }, "started_at": started,
    })
}

/// A call of a job at a time.
fn call_at(number: u64, seq: u64, verdict: &str, name: &str, time: Timestamp) -> Value {
    let mut event = call(&id(number), seq, verdict, name);
    event["time"] = json!(time);
    event
}

async fn end(server: &Server, host: &str, number: u64, posture: Value) {
    let mut said = report(&id(number));
    said["posture"] = posture;
    let put = server.as_caller(host, Method::PUT, &format!("/jobs/{}/report", id(number)));
    assert_eq!(send(put.json(&said)).await.status, 204);
}

fn posture(level: &str) -> Value {
    json!({ "level": level, "scope": "host", "features": [
        { "name": "nftables", "state": "active", "reason": "verified" },
        { "name": "table-owner", "state": "missing", "reason": "this kernel is older than 6.9" },
    ] })
}

async fn the_summary_is_what_jobs_add_up_to(world: World) {
    let server = world.start().await;
    let host = host(&server, "prod").await;
    let now = Timestamp::now();
    let two_days_ago = now - 48.hours();
    // Before the last day: known destinations, and counted in none of its sums.
    begin(&server, &host, job(1, 1, two_days_ago, &json!({}))).await.expect(200);
    let old = [
        call_at(1, 1, "allowed", "known.test", two_days_ago),
        call_at(1, 2, "blocked", "evil.test", two_days_ago),
    ];
    upload(&server, &host, &id(1), lines(&old)).await.expect(200);
    end(&server, &host, 1, posture("degraded")).await;
    // In it: two jobs of one run, of which one was killed and one goes on, and one of another.
    let hour_ago = now - 1.hours();
    for (number, run) in [(2, 2), (3, 2), (4, 3)] {
        let named = json!({ "job": format!("job-{number}") });
        begin(&server, &host, job(number, run, hour_ago, &named)).await.expect(200);
    }
    let mut killed = vec![
        call_at(2, 1, "allowed", "known.test", hour_ago),
        call_at(2, 2, "blocked", "evil.test", hour_ago),
        call_at(2, 3, "would-block", "fresh.test", hour_ago),
    ];
    for seq in 4..=5 {
        killed.push(json!({ "job_id": id(2), "seq": seq, "time": hour_ago, "type": "detection", "detection": "Reverse-Shell",
            "evidence": "it was", "is_lockdown": true }));
    }
    upload(&server, &host, &id(2), lines(&killed)).await.expect(200);
    end(&server, &host, 2, posture("degraded")).await;
    let more = [call_at(4, 1, "would-block", "fresh.test", hour_ago)];
    upload(&server, &host, &id(4), lines(&more)).await.expect(200);
    end(&server, &host, 4, posture("audit")).await;
    let summary = server.get("/summary").await.expect(200);
    for (what, value) in [
        ("runs", 2),
        ("jobs", 3),
        ("running", 1),
        // Every event of a call stands for two packets.
        ("blocked", 2),
        ("would_block", 4),
        ("detections", 2),
        ("lockdowns", 1),
        ("weak_jobs", 1),
        ("new_destinations", 1),
    ] {
        assert_eq!(summary[what], json!(value), "{what} of {summary}");
    }
    let newest = &summary["newest"][0];
    assert_eq!(
        (&newest["endpoint"], &newest["verdict"], &newest["calls"]),
        (&json!("fresh.test:443"), &json!("would-block"), &json!(4))
    );
    let hours = summary["hours"].as_array().unwrap();
    assert!((24..=25).contains(&hours.len()), "also hours without a job: {}", hours.len());
    let sum = |of: &str| hours.iter().map(|hour| hour[of].as_u64().unwrap()).sum::<u64>();
    assert_eq!([sum("jobs"), sum("allowed"), sum("blocked"), sum("would_block")], [3, 2, 2, 4]);
    // What the page leads to has the same.
    let since = summary["since"].as_str().unwrap();
    let runs = server.get(&format!("/runs?since={since}")).await.expect(200);
    let ids: Vec<_> = runs["items"].as_array().unwrap().iter().map(|run| &run["run_id"]).collect();
    assert_eq!(ids, [&json!(3), &json!(2)]);
    let found = server.get(&format!("/detections?since={since}")).await.expect(200);
    assert_eq!(found["items"].as_array().unwrap().len(), 2);
    let longer = server.get("/summary?hours=72").await.expect(200);
    assert_eq!((&longer["jobs"], &longer["blocked"]), (&json!(4), &json!(4)));
    server.stop().await;
}

async fn a_timeline_has_every_call(world: World) {
    let server = world.start().await;
    let host = host(&server, "prod").await;
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    begin(&server, &host, job(1, 1, start, &json!({}))).await.expect(200);
    let timeline = async || server.get(&format!("/jobs/{}/timeline", id(1))).await.expect(200);
    assert_eq!(timeline().await["parts"], json!([]), "no call yet");
    let verdicts = ["allowed", "allowed", "blocked", "would-block", "allowed"];
    let events: Vec<Value> = (0..50_u32)
        .map(|at| {
            let verdict = verdicts[at as usize % verdicts.len()];
            call_at(1, u64::from(at) + 1, verdict, "a.test", start + (i64::from(at) * 4).seconds())
        })
        .collect();
    upload(&server, &host, &id(1), lines(&events)).await.expect(200);
    let found = timeline().await;
    // 196 seconds in at most ninety parts, and some for where they begin.
    assert_eq!(found["seconds"], 3);
    let parts = found["parts"].as_array().unwrap();
    assert_eq!(parts.len(), 66);
    let sum = |of: &str| parts.iter().map(|part| part[of].as_u64().unwrap()).sum::<u64>();
    assert_eq!([sum("allowed"), sum("blocked"), sum("would_block")], [30, 10, 10]);
    assert_eq!(parts[0]["time"], "2026-01-01T00:00:00Z");
    assert_eq!((&parts[0]["allowed"], &parts[1]["allowed"]), (&json!(1), &json!(1)));
    server.get("/jobs/none/timeline").await.problem(404);
    server.stop().await;
}

async fn targets_are_what_runners_reported(world: World) {
    let server = world.start().await;
    let (prod, _) = (host(&server, "prod").await, host(&server, "lab").await);
    for (number, repository) in [(1, "octo/hello"), (2, "octo/other"), (3, "Else/Where")] {
        let named = json!({
            "repository": repository, "repository_owner": repository.split('/').next(),
            "workflow_ref": format!("{repository}/.github/workflows/ci.yml@refs/heads/main"),
        });
        let began = begin(&server, &prod, job(number, number, Timestamp::now(), &named)).await;
        began.expect(200);
    }
    for (query, expected) in [
        ("kind=cluster", json!(["lab", "prod"])),
        ("kind=organization", json!(["else", "octo"])),
        ("kind=repository", json!(["else/where", "octo/hello", "octo/other"])),
        ("kind=repository&search=OCTO", json!(["octo/hello", "octo/other"])),
        ("kind=repository&search=o_to", json!([])),
        ("kind=repository&limit=1", json!(["else/where"])),
        ("kind=workflow&search=hello", json!(["octo/hello/.github/workflows/ci.yml"])),
    ] {
        assert_eq!(
            server.get(&format!("/targets?{query}")).await.expect(200)["items"],
            expected,
            "{query}"
        );
    }
    server.get("/targets").await.problem(400);
    server.get("/targets?kind=planet").await.problem(400);
    server.stop().await;
}

/// The list says why in few words, without the report; and the page marks a host that is no longer heard of.
async fn hosts_say_what_is_less_than_it_should_be(world: World) {
    let server = world.start().await;
    let mut hosts = Vec::new();
    for number in 1..=3 {
        let enrolled = server.enrol("prod").await;
        let credential = enrolled["credential"].as_str().unwrap().to_owned();
        begin(&server, &credential, job(number, number, Timestamp::now(), &json!({})))
            .await
            .expect(200);
        hosts.push((enrolled["host_id"].as_str().unwrap().to_owned(), credential));
    }
    end(&server, &hosts[0].1, 1, posture("degraded")).await;
    end(&server, &hosts[1].1, 2, posture("enforced")).await;
    let states = server.get("/hosts:state").await.expect(200);
    let state = |host: &str| {
        let items = states["items"].as_array().unwrap();
        items.iter().find(|state| state["host_id"] == host).cloned().unwrap_or_default()
    };
    let weak = state(&hosts[0].0);
    assert_eq!(
        (&weak["level"], &weak["reason"], &weak["posture"]),
        (
            &json!("degraded"),
            &json!("table-owner is missing: this kernel is older than 6.9"),
            &json!(null)
        )
    );
    assert_eq!(
        (&state(&hosts[1].0)["level"], &state(&hosts[1].0)["reason"]),
        (&json!("enforced"), &json!(null))
    );
    assert_eq!(state(&hosts[2].0), json!(null), "no job has ended there");
    let whole = server.get(&format!("/hosts/{}/state", hosts[0].0)).await.expect(200);
    assert_eq!(whole["posture"]["features"][1]["name"], "table-owner");

    // Three say what they are; then one is not heard of for an hour.
    let say = json!({ "version": "1.2.3" });
    for (_, credential) in &hosts {
        let post = server.as_caller(credential, Method::POST, "/host/heartbeat").json(&say);
        assert_eq!(send(post).await.status, 204);
    }
    let hour_ago = (Timestamp::now() - 1.hours()).as_millisecond();
    let silence = "UPDATE hosts SET last_seen_ms = $1 WHERE id = $2";
    match &server.running.store.database {
        Database::Sqlite(_) => {
            let pool = sqlx::SqlitePool::connect(&world.database_url()).await.unwrap();
            sqlx::query(silence).bind(hour_ago).bind(&hosts[1].0).execute(&pool).await.unwrap();
        }
        Database::Postgres(pool) => {
            sqlx::query(silence).bind(hour_ago).bind(&hosts[1].0).execute(pool).await.unwrap();
        }
    }
    let cookie = crate::dashboard::sign_in(&server, &server.token.clone()).await;
    let html =
        crate::dashboard::get(&server, "/runners", Some(&cookie)).await.text().await.unwrap();
    let row = |host: &str| {
        let (_, rest) = html.split_once(&format!("/runners/{host}\"")).expect(host);
        rest.split("</tr>").next().unwrap().to_owned()
    };
    let is_silent: Vec<bool> = hosts.iter().map(|(id, _)| row(id).contains("Silent")).collect();
    assert_eq!(is_silent, [false, true, false]);
    assert!(row(&hosts[0].0).contains("table-owner is missing: this kernel is older than 6.9"));
    server.stop().await;
}

async fn new_calls_are_found_among_others(world: World) {
    let mut configuration = world.configuration();
    configuration.baseline.min_runs = 2;
    configuration.baseline.window_runs = 1;
    configuration.baseline.max_changed_runs = 0;
    let server = world.start_with(configuration).await;
    let host = host(&server, "prod").await;
    for number in 1..=3 {
        let now = Timestamp::now();
        begin(&server, &host, job(number, number, now, &json!({}))).await.expect(200);
        let mut events = vec![call_at(number, 1, "allowed", "usual.test", now)];
        if number == 3 {
            events.push(call_at(number, 2, "would-block", "never-before.test", now));
            events.push(call_at(number, 3, "allowed", "usual.test", now));
        }
        upload(&server, &host, &id(number), lines(&events)).await.expect(200);
        end(&server, &host, number, posture("enforced")).await;
    }
    let found =
        server.get(&format!("/jobs/{}/network-events?new=true&dns=true", id(3))).await.expect(200);
    let names: Vec<_> =
        found["items"].as_array().unwrap().iter().map(|event| &event["name"]).collect();
    assert_eq!(names, [&json!("never-before.test")]);
    let none = server.get(&format!("/jobs/{}/network-events?new=true", id(2))).await.expect(200);
    assert_eq!(none["items"], json!([]));
    // By the command line as well: the run of an endpoint, what is of today, and the new calls of a job.
    let operator = crate::command_line::Operator { server: &server, world: &world };
    let job = id(3);
    for (arguments, has, has_not) in [
        (vec!["runs", "--endpoint", "never-before.test:443", "--days", "1"], "3-1", "2-1"),
        (vec!["runs", "--days", "1"], "1-1", "no-such-run"),
        (vec!["detections", "--days", "1"], "never-before.test:443", "usual.test"),
        (vec!["events", &job, "--new"], "never-before.test:443", "usual.test"),
    ] {
        let told = operator.run(&arguments).await;
        let is_right = told.contains(has) && !told.contains(has_not) && told.ends_with("exit 0");
        assert!(is_right, "{arguments:?}: {told}");
    }
    // Where the detection leads, and the file that is taken away.
    let cookie = crate::dashboard::sign_in(&server, &server.token.clone()).await;
    let page = async |path: String| {
        crate::dashboard::get(&server, &path, Some(&cookie)).await.text().await.unwrap()
    };
    let detections = server.get(&format!("/detections?job={}", id(3))).await.expect(200);
    let detection = detections["items"][0]["id"].as_str().unwrap().to_owned();
    let html = page(format!("/detections/{detection}")).await;
    assert!(html.contains(&format!("href=\"/jobs/{}?cursor=1#event-2\"", id(3))), "{html}");
    assert!(html.contains(&format!("href=\"/jobs/{}/processes#process-7\"", id(3))), "{html}");
    let csv = page(format!("/jobs/{}/network-events.csv", id(3))).await;
    let marks: Vec<bool> = csv.lines().skip(1).map(|line| line.ends_with("\"new\"")).collect();
    assert_eq!(marks, [false, true, false], "{csv}");
    server.stop().await;
}
