//! The main job with a policy server instead of a directory of files: attached by command line, resolved with an identity that
//! GitHub vouches for, enforced, told; and what happens while the server is away.

use anyhow::{Context, Result};
use portcullis_tests::gate::step;
use portcullis_tests::policy_server::{PolicyServer, for_server};
use portcullis_tests::server::id_tokens::IdTokens;
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Canary, Job, JobOutcome, JobResult, StepKind, World, policy_server};
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

fn first_line(result: &JobResult) -> Result<String> {
    let hook = result.step_of_kind(StepKind::StartedHook).context("no started hook")?;
    let line = hook.log.lines().find(|line| line.starts_with("Portcullis: "));
    Ok(line.with_context(|| hook.log.clone())?.to_owned())
}

#[test]
fn the_main_job_runs_by_the_server_and_without_it() -> Result<()> {
    let world = World::builder().main_job().build()?;
    let mut store = PolicyServer::prepare(&world, "")?;
    store.start()?;
    let tokens = IdTokens::serve(world.web(), policy_server::URL)?;
    let policy = store.directory().join("hello-build.yaml");
    fs::write(&policy, POLICY)?;
    store.command(&["policy", "apply", &policy.display().to_string()])?;
    store.command(&["attach", "hello-build", "--repository", "octo/hello"])?;
    let enrolled = store.enrol(&world)?;
    assert!(enrolled.contains("cluster prod-linux"), "{enrolled}");
    world.install_hooks()?;
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
    let blocked = store.command(&["events", first, "--status", "blocked"])?;
    assert!(blocked.contains(":4444") && blocked.contains("python"), "{blocked}");

    // A token that says something else than the job: the store gives no policy, and what was good last applies.
    let contradicted = job(12, &tokens, &canary)?;
    tokens.vouch_for_run(999);
    let result = world.runner(0).run(&contradicted)?;
    monitor.wait_until_idle()?;
    assert!(result.log().contains("contradicts the job's environment"), "{}", result.log());
    world.attacker().assert_untouched(&canary)?;

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
    Ok(())
}
