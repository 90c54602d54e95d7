//! The main job with a policy server instead of a directory of files: attached by command line, resolved with an identity that
//! GitHub vouches for, enforced, told; and what happens while the server is away.

use anyhow::{Context, Result, ensure};
use portcullis_tests::gate::step;
use portcullis_tests::policy_server::{PolicyServer, URL, for_server};
use portcullis_tests::receivers::{self, LAB, Receivers, WEBHOOK_HOST};
use portcullis_tests::server::http::Response;
use portcullis_tests::server::id_tokens::IdTokens;
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Canary, Job, JobOutcome, JobResult, StepKind, World};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const POLICY: &str = "name: hello-build
egress-policy: block
allowed-endpoints: [git.test:443, pypi.test:443, files.pypi.test:443, api.ok.test:443]
on-failure: last-known-good
";

fn job(run_id: u64, tokens: &IdTokens, canary: &Canary) -> Result<Job> {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/jobs/main.yml"));
    let mut job = Job::from_file(file)?.secret("DEPLOY_TOKEN", canary.as_str());
    // One runner, several jobs: each begins as on a fresh checkout.
    job.steps.insert(0, step("clean", "find . -mindepth 1 -delete"));
    Ok(for_server(job, run_id, tokens))
}

/// People are told of a blocked call and of a job that was killed.
fn people_are_told(
    store: &PolicyServer,
    world: &World,
    receivers: &Receivers<'_>,
    run: u64,
) -> Result<()> {
    receivers::killed_job(world, store, run)?;
    let told = receivers.detection(store)?;
    receivers::check(&told, run)?;
    let told_calls = receivers.told(WEBHOOK_HOST);
    let calls = told_calls.iter().find(|body| body["type"] == "calls.blocked");
    let calls = calls.context("the main job's blocked call was not told")?;
    let listed = calls["data"]["calls"].as_array().context("no calls")?;
    let is_told = listed.iter().any(|call| {
        call["endpoint"].to_string().contains(":4444")
            && call["process"].to_string().contains("python")
            && call["verdict"] == "blocked"
    });
    ensure!(is_told, "{calls}");
    ensure!(calls["data"]["repository"] == "octo/hello", "{calls}");
    let detections = store.json(&["detections", "--repository", LAB])?;
    ensure!(detections[0]["id"] == told.webhook["data"]["id"], "{detections}");
    Ok(())
}

/// An integration whose name leads elsewhere later, and those that lead where nobody may go.
fn addresses_are_looked_at(store: &PolicyServer, world: &World) -> Result<()> {
    let dns = world.dns();
    let target = |host: &str| json!({ "kind": "slack", "url": format!("https://{host}/x") });
    dns.addresses_with_ttl("rebind.test", 0, &["198.51.100.61"])?;
    store.integrate("rebinding", &target("rebind.test"), &json!({ "detections": false }))?;
    dns.addresses_with_ttl("rebind.test", 0, &["127.0.0.1"])?;
    let error = store.command(&["integration", "test", "rebinding"]).err();
    let error =
        format!("{:#}", error.context("a name that leads to the store's own host was asked")?);
    ensure!(error.contains("127.0.0.1 is not on the internet (loopback)"), "{error}");
    for (host, usage) in [
        ("metadata.special.test", "cloud-metadata"),
        ("link-local.special.test", "link-local"),
        ("private.special.test", "private-use"),
        ("mapped.special.test", "IPv4-mapped"),
    ] {
        let error = store.integrate(host, &target(host), &json!({ "detections": false })).err();
        let error = format!("{:#}", error.with_context(|| format!("{host} was asked"))?);
        ensure!(error.contains(usage) || error.contains("is not on the internet"), "{error}");
    }
    Ok(())
}

fn first_line(result: &JobResult) -> Result<String> {
    let hook = result.step_of_kind(StepKind::StartedHook).context("no started hook")?;
    let line = hook.log.lines().find(|line| line.starts_with("Portcullis: "));
    Ok(line.with_context(|| hook.log.clone())?.to_owned())
}

#[test]
fn the_main_job_runs_by_the_server_and_without_it() -> Result<()> {
    let world = World::builder().main_job().build()?;
    let mut store = PolicyServer::prepare(&world, &receivers::configuration())?;
    store.start()?;
    let tokens = IdTokens::serve(world.web(), URL)?;
    let policy = store.directory().join("hello-build.yaml");
    fs::write(&policy, POLICY)?;
    store.command(&["policy", "apply", &policy.display().to_string()])?;
    store.command(&["attach", "hello-build", "--repository", "octo/hello"])?;
    let enrolled = store.enrol(&world)?;
    assert!(enrolled.contains("cluster prod-linux"), "{enrolled}");
    world.install_hooks()?;
    world.dns().addresses("rebind.test", &["198.51.100.61"])?;
    world.web().route("rebind.test", "/", |_| Response::ok("ok"));
    let receivers = Receivers::start(&world)?;
    receivers.integrate(&store)?;
    addresses_are_looked_at(&store, &world)?;
    let mut monitor = world.monitor(MonitorOptions::default())?;
    let canary = Canary::generate()?;

    // With the server.
    let result = world.runner(0).run(&job(11, &tokens, &canary)?)?;
    monitor.wait_until_idle()?;
    let shown = format!("{}\n{}\n{}", result.log(), monitor.log(), store.log());
    assert_eq!(result.outcome, JobOutcome::Success, "{shown}");
    world.attacker().assert_untouched(&canary)?;
    let line = first_line(&result)?;
    assert!(
        line.contains("policy hello-build version 1")
            && line.contains("from repository octo/hello, mode block"),
        "{line}"
    );
    let ids = world.job_ids()?;
    let first = ids.first().context("no job was recorded")?;
    let events = world.events(first)?;
    let record = store.ended_job(11, events.len())?;
    assert_eq!(
        (record["identity"].as_str(), record["cluster"].as_str()),
        (Some("verified"), Some("prod-linux")),
        "{shown}"
    );
    assert_eq!(record["posture"], "enforced");
    let stored = store.json(&["events", first, "--all"])?;
    assert_eq!(stored, serde_json::to_value(&events)?, "every event, as it was recorded");
    let by_the_monitor = |event: &&Value| {
        event["process"]["exe"].as_str().is_some_and(|exe| exe.ends_with("/monitor"))
    };
    let uploads: Vec<_> =
        stored.as_array().context("no list")?.iter().filter(by_the_monitor).collect();
    assert!(uploads.is_empty(), "the monitor's own calls are none of the job's: {uploads:?}");
    let blocked = store.command(&["events", first, "--status", "blocked"])?;
    assert!(blocked.contains(":4444") && blocked.contains("python"), "{blocked}");

    // A token that says something else than the job: the store gives no policy, and what was good last applies.
    let contradicted = job(12, &tokens, &canary)?;
    tokens.vouch_for_run(999);
    let result = world.runner(0).run(&contradicted)?;
    monitor.wait_until_idle()?;
    assert!(result.log().contains("contradicts the job's environment"), "{}", result.log());
    world.attacker().assert_untouched(&canary)?;

    people_are_told(&store, &world, &receivers, 21)?;
    monitor.wait_until_idle()?;

    // Without the server, also over a restart of the monitor: the last known good policy, and nothing is lost.
    store.stop()?;
    let result = world.runner(0).run(&job(13, &tokens, &canary)?)?;
    monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    world.attacker().assert_untouched(&canary)?;
    assert!(first_line(&result)?.contains("policy hello-build version 1"), "{}", result.log());
    assert!(result.log().contains("the last known good policy applies"), "{}", result.log());
    monitor.kill()?;
    monitor.restart()?;
    store.start()?;
    let ids = world.job_ids()?;
    let third = world.events(ids.last().context("no job was recorded")?)?;
    let record = store.ended_job(13, third.len())?;
    assert_eq!(record["identity"], "asserted", "nobody vouched for this job");
    let id = ids.last().context("no job was recorded")?;
    let stored = store.json(&["events", id, "--all"])?;
    assert_eq!(stored, serde_json::to_value(&third)?, "every event, as it was recorded");
    Ok(())
}
