//! What operators see of a server: its numbers and its log.

use crate::on_both;
use crate::runs::{JOB, call, lines, new_job};
use crate::support::replica::{Replica, TOKEN};
use crate::support::{Backend, World, run, send};
use reqwest::Method;
use serde_json::Value;
use sqlx::Connection as _;

on_both!(numbers_and_log_say_what_was_answered);

/// The value of a series whose line begins with `name` and has all of these labels.
fn series(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line = text.lines().find(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    })?;
    line.rsplit_once(' ')?.1.parse().ok()
}

async fn numbers_and_log_say_what_was_answered(world: World) {
    let replica = Replica::start(&world, "one");
    let put = replica.request(TOKEN, Method::PUT, "/policies/p");
    send(put.body("name: p\negress-policy: audit\n")).await.expect(201);
    for _ in 0..3 {
        replica.get("/policies/p").await.expect(200);
    }
    let marked = replica.request(TOKEN, Method::GET, "/policies/none");
    send(marked.header("x-request-id", "asked-by-this-test")).await.problem(404);
    send(replica.request("pct_wrong", Method::GET, "/policies/p")).await.problem(401);
    let host = replica.enrol().await;
    let begin = replica.request(&host, Method::POST, "/jobs").json(&new_job(JOB, 7, "build"));
    send(begin).await.expect(200);
    let events: Vec<Value> = (1..=5).map(|seq| call(JOB, seq, "allowed", "a.test")).collect();
    // A batch that comes again is no new event.
    for _ in 0..2 {
        let post = replica.request(&host, Method::POST, &format!("/jobs/{JOB}/events"));
        send(post.body(lines(&events))).await.expect(200);
    }
    let metrics = replica.client.get(format!("http://{}/metrics", replica.address));
    let metrics = send(metrics).await;
    let kind = metrics.headers["content-type"].to_str().unwrap();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = metrics.text;
    let requests = "portcullis_store_requests_total";
    let route = "route=\"/api/v1/policies/{name}\"";
    for (labels, expected) in [
        ([route, "method=\"PUT\"", "status=\"201\""], 1.0),
        ([route, "method=\"GET\"", "status=\"200\""], 3.0),
        ([route, "method=\"GET\"", "status=\"404\""], 1.0),
        ([route, "method=\"GET\"", "status=\"401\""], 1.0),
        (["route=\"/api/v1/jobs/{id}/events\"", "method=\"POST\"", "status=\"200\""], 2.0),
    ] {
        assert_eq!(series(&text, requests, &labels), Some(expected), "{labels:?} in {text}");
    }
    let durations = "portcullis_store_request_duration_seconds_count";
    assert_eq!(series(&text, durations, &[route]), Some(6.0), "{text}");
    assert_eq!(series(&text, "portcullis_store_events_total", &[]), Some(5.0), "{text}");
    assert_eq!(
        series(&text, "portcullis_store_dead_notifications_total", &[]),
        Some(0.0),
        "{text}"
    );
    assert!(series(&text, "portcullis_store_policies", &[]).is_some(), "{text}");
    assert!(text.trim_end().ends_with("# EOF"), "{text}");
    // Neither names nor secrets are labels.
    assert!(
        !text.contains("/policies/none") && !text.contains(JOB) && !text.contains("pct_"),
        "{text}"
    );

    let log = replica.log();
    let entries: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let answered: Vec<&Value> =
        entries.iter().filter(|entry| entry["fields"]["http.route"].is_string()).collect();
    for entry in &answered {
        assert!(entry["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{entry}");
        assert_eq!(entry["level"], "INFO", "{entry}");
        let fields = &entry["fields"];
        assert!(fields["request.id"].as_str().is_some_and(|id| !id.is_empty()), "{entry}");
        assert!(fields["http.status"].is_u64() && fields["duration_ms"].is_f64(), "{entry}");
    }
    let is = |entry: &&&Value, status: u64| {
        let fields = &entry["fields"];
        fields["http.route"] == "/api/v1/policies/{name}" && fields["http.status"] == status
    };
    for (status, count) in [(200, 3), (201, 1), (401, 1), (404, 1)] {
        let found = answered.iter().filter(|entry| is(entry, status)).count();
        assert_eq!(found, count, "{status} in {log}");
    }
    let of_test = answered.iter().find(|entry| is(entry, 404)).unwrap();
    assert_eq!(of_test["fields"]["request.id"], "asked-by-this-test");
    assert!(!log.contains(TOKEN) && !log.contains(&host) && !log.contains("pct_wrong"), "{log}");
}

/// Readers go on while somebody writes.
#[test]
fn sqlite_keeps_a_log_of_changes() {
    run(Backend::Sqlite, async |world: World| {
        let server = world.start().await;
        let url = format!("sqlite:{}", world.path("store.db").display());
        let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let (mode,): (String,) =
            sqlx::query_as("PRAGMA journal_mode").fetch_one(&mut connection).await.unwrap();
        assert_eq!(mode, "wal");
        connection.close().await.unwrap();
        server.stop().await;
    });
}
