//! The policy server: a process of its own, asked over loopback by a client that does as little as it can.
//!
//! Server and client share the machine, so that absolute figures say little; ratios to `/healthz`, answered by the same
//! server to the same client in turn, say what an answer costs beyond being answered.

mod client;
pub(crate) mod dashboard;
mod server;

use crate::Found;
use crate::result::Row;
use crate::statistics::Samples;
use anyhow::{Context, Result};
use client::Request;
use portcullis_common::job_context::JobContext;
use serde_json::{Value, json};
use server::{Backend, Kept, Server, admin};
use std::fmt::Write as _;
use std::time::Duration;

/// How long one round of asking takes.
const ROUND: Duration = Duration::from_secs(3);

/// Rounds in which both take turns.
const ROUNDS: usize = 3;

/// Connections that ask at the same time.
const CONNECTIONS: usize = 8;

/// Policies, and targets of each.
const POLICIES: usize = 10_000;
const TARGETS: usize = 10;

/// Policies of one import: a body has at most 16 MiB, and a request at most 30 seconds.
const POLICIES_OF_IMPORT: usize = 500;

/// Resolutions with 10 000 policies and 100 000 attachments, against `/healthz`; and the server's memory.
pub(crate) fn resolve(found: Found<'_>) -> Result<()> {
    let server = Server::start(Backend::Sqlite)?;
    let idle = server.resident_mebibytes("VmRSS")?;
    found(Row::at_most("server, resident memory, idle", idle, 80.0, " MiB"))?;
    for first in (0..POLICIES).step_by(POLICIES_OF_IMPORT) {
        let bundle: String = (first..first + POLICIES_OF_IMPORT).map(policy).collect();
        server.ask(&admin().text("POST", "/api/v1/policies:import", &bundle))?;
    }
    let credential = server.enrol()?;
    let resolve = |number: usize| {
        let repository =
            format!("org-{}/repository-{}", number % 100, number % (POLICIES * TARGETS));
        let context = context(&repository, 7);
        credential.json(
            "POST",
            "/api/v1/resolve",
            &json!({ "context": context, "nonce": format!("{number:032x}") }),
        )
    };
    let requests: Vec<Request> = (0..1000).map(|number| resolve(number * 97)).collect();
    let health = [credential.get("/healthz")];
    let answer: Value = serde_json::from_str(&server.ask(&resolve(1234))?)?;
    anyhow::ensure!(answer.to_string().contains("policy-"), "nothing is attached: {answer}");
    let (mut resolved, mut healthy) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        healthy.push(server.rate(&health, CONNECTIONS, ROUND)?);
        resolved.push(server.rate(&requests, CONNECTIONS, ROUND)?);
    }
    let (resolved, healthy) = (Samples::new(resolved).median(), Samples::new(healthy).median());
    let detail = format!("{resolved:.0} against {healthy:.0} a second, {CONNECTIONS} connections");
    let what = "`POST /resolve`, 10 000 policies, 100 000 attachments, rate";
    found(Row::at_least(what, resolved / healthy, 0.5, "× /healthz").with(&detail))?;
    let paced = server.paced(&requests, CONNECTIONS, resolved / 2.0, 2 * ROUND)?;
    let detail = format!(
        "{} requests at {:.0} a second; p50 {:.2} ms",
        paced.len(),
        resolved / 2.0,
        paced.median()
    );
    found(
        Row::at_most("`POST /resolve` at half load, p99", paced.percentile(99), 10.0, " ms")
            .with(&detail),
    )?;
    let most = server.resident_mebibytes("VmHWM")?;
    found(Row::at_most(
        "server, resident memory, the most while importing and resolving",
        most,
        300.0,
        " MiB",
    ))?;
    Ok(())
}

/// What a job of a repository says of itself.
fn context(repository: &str, run_id: u64) -> JobContext {
    JobContext {
        repository: repository.to_owned(),
        repository_owner: repository.split('/').next().unwrap_or_default().to_owned(),
        workflow_ref: format!("{repository}/.github/workflows/ci.yml@refs/heads/main"),
        workflow: "CI".to_owned(),
        job: "build".to_owned(),
        run_id,
        run_attempt: 1,
        server_url: "https://github.com".to_owned(),
        runner_name: "runner-1".to_owned(),
        ..JobContext::default()
    }
}

fn policy(number: usize) -> String {
    let mut text = format!(
        "---\nname: policy-{number}\negress-policy: block\nallowed-endpoints:\n  - github.com:443\n  - \"*.npmjs.org:443\"\n  - registry-{number}.example.com:443\nattach:\n"
    );
    for target in number * TARGETS..(number + 1) * TARGETS {
        // Writing to a String can't fail.
        let _ = writeln!(text, "  - repository: org-{}/repository-{target}", target % 100);
    }
    text
}

/// Events of one batch, and batches of one connection.
const BATCH: usize = 1000;
const BATCHES: usize = 60;

/// Connections that upload, each a job of its own.
const UPLOADS: usize = 4;

/// Uploads of events on both databases.
pub(crate) fn intake(found: Found<'_>) -> Result<()> {
    for (backend, name, target) in
        [(Backend::Sqlite, "SQLite", 50_000.0), (Backend::Postgres, "PostgreSQL", 30_000.0)]
    {
        let server = Server::start(backend)?;
        let credential = server.enrol()?;
        let mut jobs: Vec<Vec<Request>> = Vec::new();
        for job in 0..UPLOADS {
            let id = format!("0197aaaaaaaa70008000{job:012x}");
            let new = json!({
                "id": id, "target": "prod", "identity": "asserted", "mode": "block", "started_at": "2026-01-01T00:00:00Z",
                "policy": { "name": "p", "version": "1", "scope": "cluster" },
                "context": context(&format!("octo/repository-{job}"), job as u64 + 1),
            });
            server.ask(&credential.json("POST", "/api/v1/jobs", &new))?;
            jobs.push(
                (0..BATCHES)
                    .map(|batch| {
                        credential.text(
                            "POST",
                            &format!("/api/v1/jobs/{id}/events"),
                            &events(&id, batch * BATCH),
                        )
                    })
                    .collect(),
            );
        }
        let seconds = server.each(&jobs)?.as_secs_f64();
        let count = UPLOADS * BATCHES * BATCH;
        // Far below 2^53.
        #[expect(clippy::cast_precision_loss, reason = "a count of some hundred thousand")]
        let rate = count as f64 / seconds;
        let detail =
            format!("{count} events, {UPLOADS} jobs at once, batches of {BATCH}, {seconds:.1} s");
        found(
            Row::at_least(format!("event intake, {name}, a second"), rate, target, "")
                .with(&detail),
        )?;
        let most = server.resident_mebibytes("VmHWM")?;
        found(Row::at_most(
            format!("server, resident memory, the most during intake, {name}"),
            most,
            300.0,
            " MiB",
        ))?;
    }
    Ok(())
}

fn events(id: &str, before: usize) -> String {
    let mut text = String::new();
    for seq in before + 1..=before + BATCH {
        let host = seq % 30;
        let event = json!({
            "job_id": id, "seq": seq, "time": format!("2026-01-01T00:{:02}:{:02}.000000Z", seq / 60 % 60, seq % 60), "type": "network",
            "verdict": if seq % 50 == 0 { "blocked" } else { "allowed" }, "direction": "outbound", "protocol": "tcp",
            "address": format!("192.0.2.{host}"), "port": 443, "name": format!("host-{host}.example.com"), "packets": 1, "bytes": 60,
            "process": { "pid": 100 + seq % 900, "start_time": 726_430, "exe": "/usr/bin/curl", "argv": ["curl", "https://host.example.com/"],
                "uid": 1001, "cwd": "/home/runner/work", "ancestors": [{ "pid": 7, "exe": "/usr/bin/bash" }], "step": "build" },
            "rule": "*.example.com:443", "policy": { "name": "p", "version": "1", "scope": "cluster" },
        });
        text.push_str(&event.to_string());
        text.push('\n');
    }
    text
}

/// Jobs of the store whose pages are read, and calls of each: together ten million.
const JOBS: usize = 10_000;
const CALLS: usize = 1000;

/// Jobs and calls of each that are stored before pages are read. `PORTCULLIS_BENCH_JOBS` asks for fewer jobs, to try a
/// measurement out.
fn stored() -> (usize, usize) {
    let wish = std::env::var("PORTCULLIS_BENCH_JOBS").ok().and_then(|text| text.parse().ok());
    (wish.unwrap_or(JOBS), CALLS)
}

/// Pages that are read of each kind.
const PAGES: usize = 300;

/// What is asked for each of many jobs: what it is, and its address behind `/api/v1/jobs/ID/` or `/jobs/ID`.
const OF_JOBS: [(&str, &str); 4] = [
    ("a job's calls", "network-events?limit=100"),
    ("a job's calls, far behind", "network-events?limit=100&cursor=800"),
    ("a job's stopped calls", "network-events?limit=100&status=blocked"),
    ("a job's processes", "process-tree"),
];

/// What is asked again and again.
const LISTS: [(&str, &str); 6] = [
    ("runs, the newest", "runs?limit=100"),
    ("an organization's destinations", "destinations?organization=org-3&limit=100"),
    (
        "a cluster's destinations, of a month",
        "destinations?cluster=cluster-1&limit=100&since=MONTH",
    ),
    ("all destinations", "destinations?limit=100"),
    ("baselines of jobs with their states", "baselines/states?source=job&limit=100"),
    ("the summary of a day", "summary?hours=24"),
];

/// The dashboard's pages; `JOB` and `RUN` stand for those of many runs.
const PAGES_OF_DASHBOARD: [&str; 24] = [
    "/",
    "/runs",
    "/runs?blocked=true",
    "/runs?detections=true",
    "/runs?repository=org-3%2Fgenerated-3",
    "/runs?cluster=cluster-1",
    "/runs/RUN",
    "/jobs/JOB",
    "/jobs/JOB?status=blocked",
    "/jobs/JOB/timeline.json",
    "/jobs/JOB/processes",
    "/jobs/JOB/files",
    "/jobs/JOB/detections",
    "/jobs/JOB/posture",
    "/detections",
    "/destinations",
    "/destinations?scope=organization&target=org-3",
    "/destinations?days=30",
    "/baselines",
    "/baselines/of?source=organization&organization=org-3",
    "/policies",
    "/runners",
    "/suppressions",
    "/audit-log",
];

/// What the API and the dashboard answer with ten million events stored, on both databases.
pub(crate) fn pages(found: Found<'_>) -> Result<()> {
    let kept = Kept::from_environment()?.map(|kept| kept.backend);
    for (backend, name) in [(Backend::Sqlite, "SQLite"), (Backend::Postgres, "PostgreSQL")] {
        if kept.is_some_and(|kept| kept != backend) {
            continue;
        }
        let (jobs, calls) = stored();
        let server = Server::start_with_events(backend, jobs, calls)?;
        pages_of(&server, &format!("{} events, {name}", jobs * calls), jobs, found)?;
    }
    Ok(())
}

fn pages_of(server: &Server, name: &str, stored: usize, found: Found<'_>) -> Result<()> {
    let admin = admin();
    let mut jobs: Vec<(usize, String)> = Vec::new();
    // Runs are numbered from a million on; every 33rd is looked at.
    for run in (0..stored).step_by((stored / PAGES).max(1)) {
        let number = 1_000_000 + run;
        let answer = server.ask(&admin.get(&format!("/api/v1/runs/{number}")))?;
        let run: Value = serde_json::from_str(&answer)?;
        let id = run["job_records"][0]["id"].as_str().context("a run without a job")?;
        jobs.push((number, id.to_owned()));
    }
    let mut measure = |what: String, requests: &[Request], limit: f64| -> Result<f64> {
        let times = server.times(requests)?;
        let detail = format!(
            "{} answers, p50 {:.1} ms, p99 {:.1} ms",
            times.len(),
            times.median(),
            times.percentile(99)
        );
        let p95 = times.percentile(95);
        let what = format!("{what}, {name}, p95");
        found(Row::at_most(what, p95, limit, " ms").with(&detail))?;
        Ok(p95)
    };
    for (what, query) in OF_JOBS {
        let requests: Vec<Request> =
            jobs.iter().map(|(_, id)| admin.get(&format!("/api/v1/jobs/{id}/{query}"))).collect();
        measure(format!("API: {what}"), &requests, 50.0)?;
    }
    let month = (jiff::Timestamp::now() - Duration::from_hours(30 * 24)).to_string();
    for (what, path) in LISTS {
        let path = path.replace("MONTH", &month);
        let requests = vec![admin.get(&format!("/api/v1/{path}")); 50];
        measure(format!("API: {what}"), &requests, 50.0)?;
    }
    let person = server.sign_in()?;
    let mut slowest = (0.0, "");
    for page in PAGES_OF_DASHBOARD {
        let many = if page.contains("JOB") || page.contains("RUN") { jobs.len() } else { 50 };
        let requests: Vec<Request> = jobs
            .iter()
            .take(many)
            .map(|(run, id)| {
                person.get(&page.replace("JOB", id).replace("RUN", &format!("{run}-1")))
            })
            .collect();
        let p95 = measure(format!("dashboard: `{page}`"), &requests, 100.0)?;
        if p95 > slowest.0 {
            slowest = (p95, page);
        }
    }
    let what = format!("dashboard: the slowest page, {name}, p95");
    found(Row::at_most(what, slowest.0, 100.0, " ms").with(slowest.1))?;
    let most = server.resident_mebibytes("VmHWM")?;
    found(Row::at_most(
        format!("server, resident memory, the most while its pages are read, {name}"),
        most,
        300.0,
        " MiB",
    ))
}
