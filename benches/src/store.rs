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
use serde_json::{Value, json};
use server::{Backend, Server, admin};
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
        let context = json!({
            "repository": repository, "repository_owner": format!("org-{}", number % 100),
            "workflow_ref": format!("{repository}/.github/workflows/ci.yml@refs/heads/main"), "workflow": "CI", "job": "build",
            "run_id": 7, "run_attempt": 1, "server_url": "https://github.com", "runner_name": "runner-1",
        });
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
                "context": {
                    "repository": format!("octo/repository-{job}"), "repository_owner": "octo", "workflow": "CI", "job": "build",
                    "workflow_ref": format!("octo/repository-{job}/.github/workflows/ci.yml@refs/heads/main"),
                    "run_id": job + 1, "run_attempt": 1, "server_url": "https://github.com", "runner_name": "runner-1",
                },
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

/// The page of a job's calls, its stopped calls, and destinations of an organization, with ten million events stored.
pub(crate) fn pages(found: Found<'_>) -> Result<()> {
    let server = Server::start_with_events(JOBS, CALLS)?;
    let admin = admin();
    let mut jobs: Vec<String> = Vec::new();
    // Runs are numbered from a million on; every 33rd is looked at.
    for run in (0..JOBS).step_by(JOBS / PAGES) {
        let answer = server.ask(&admin.get(&format!("/api/v1/runs/{}", 1_000_000 + run)))?;
        let run: Value = serde_json::from_str(&answer)?;
        jobs.push(run["job_records"][0]["id"].as_str().context("a run without a job")?.to_owned());
    }
    for (what, query) in [
        ("calls", "network-events?limit=100"),
        ("stopped calls", "network-events?limit=100&status=blocked"),
        ("processes", "process-tree"),
    ] {
        let requests: Vec<Request> =
            jobs.iter().map(|id| admin.get(&format!("/api/v1/jobs/{id}/{query}"))).collect();
        let times = server.times(&requests)?;
        let detail = format!(
            "{} jobs, p50 {:.1} ms, p99 {:.1} ms",
            times.len(),
            times.median(),
            times.percentile(99)
        );
        let what = format!("page of a job's {what}, 10 million events, p95");
        found(Row::at_most(what, times.percentile(95), 50.0, " ms").with(&detail))?;
    }
    for (what, path) in [
        ("runs, the newest", "runs?limit=100"),
        ("an organization's destinations", "destinations?organization=org-3&limit=100"),
        ("baselines of jobs with their states", "baselines/states?source=job&limit=100"),
    ] {
        let requests: Vec<Request> =
            (0..50).map(|_| admin.get(&format!("/api/v1/{path}"))).collect();
        let times = server.times(&requests)?;
        let detail = format!("p50 {:.1} ms", times.median());
        found(
            Row::at_most(
                format!("page of {what}, 10 million events, p95"),
                times.percentile(95),
                50.0,
                " ms",
            )
            .with(&detail),
        )?;
    }
    Ok(())
}
