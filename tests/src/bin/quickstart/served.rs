//! `quickstart --server`: the same job with a policy server, one that is killed and told of, and the next one while the server
//! is away.

use super::{
    JOB, Outcome, chapter, is_in_force, note_hooks, note_leaked, note_report, policy, report, say,
};
use anyhow::{Context, Result, ensure};
use portcullis_tests::gate::step;
use portcullis_tests::policy_server::{self, PolicyServer, for_server};
use portcullis_tests::receivers::{self, Receivers};
use portcullis_tests::server::id_tokens::IdTokens;
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Canary, Job, JobOutcome, JobResult, StepKind, World};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// The runs: the one with the server, the one that is killed, and the one without the server.
const RUNS: [u64; 3] = [11, 12, 13];

/// What the last line has beside the rest.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Served {
    /// Who says that the first job is the one that it says it is: `verified`, GitHub; `asserted`, its environment.
    identity: Option<String>,
    /// Events of the first job that the server has, each as the monitor recorded it.
    stored_events: Option<usize>,
    /// The detection that the next job was killed for.
    detection: Option<String>,
    /// Who was told of it, each the same.
    told: Option<[&'static str; 3]>,
    /// The policy of the last job, as its log names it.
    offline_policy: Option<String>,
    /// Bytes of the last job that hold the secret and reached the attacker.
    offline_leaked: Option<u64>,
    /// Events of the last job that the server has, after it has come back.
    caught_up_events: Option<usize>,
}

/// Fills `outcome` as far as it comes.
pub(crate) fn run(options: &super::Options, outcome: &mut Outcome) -> Result<()> {
    let served = outcome.served.insert(Served::default());
    chapter("a runner host, an internet and an attacker, in namespaces of their own")?;
    let world = World::builder().main_job().build()?;
    say(&format!("files: {}", world.directory().display()))?;

    chapter("the policy server: `portcullis serve`, on SQLite, over TLS")?;
    let mut server = PolicyServer::prepare(&world, &receivers::configuration())?;
    server.start()?;
    say(policy_server::URL)?;

    chapter("the policy, made and attached by command line")?;
    let document = server.directory().join("hello-build.yaml");
    fs::write(&document, policy(options)? + "on-failure: last-known-good\n")?;
    say(fs::read_to_string(&document)?.trim_end())?;
    operator(&server, &["policy", "apply", &document.display().to_string()])?;
    operator(&server, &["attach", "hello-build", "--repository", "octo/hello"])?;
    operator(&server, &["explain", "--repository", "octo/hello", "--workflow", "ci.yml"])?;

    chapter("who is told: a webhook, Slack and a bucket")?;
    let receivers = Receivers::start(&world)?;
    receivers.integrate(&server)?;
    operator(&server, &["integration", "list"])?;

    chapter("the runner host enrols")?;
    say("$ portcullis enrol create --cluster prod-linux > enrolment")?;
    say("$ portcullis enrol host --enrolment-file enrolment")?;
    say(server.enrol(&world)?.trim_end())?;
    world.install_hooks()?;
    let monitor = world.monitor(MonitorOptions::default())?;
    monitor.wait_until_ready()?;
    let tokens = IdTokens::serve(world.web(), policy_server::URL)?;
    let canary = Canary::generate()?;

    chapter("the job, as its log on GitHub would show it")?;
    let first = world.runner(0).run(&job(RUNS[0], &tokens, &canary)?)?;
    say(first.log().trim_end())?;
    chapter("the job's summary, as its page on GitHub would show it")?;
    say(first.summary().trim_end())?;
    monitor.wait_until_idle().with_context(|| monitor.log())?;

    chapter("what the server has of it")?;
    let ids = world.job_ids()?;
    let id = ids.first().context("the monitor has bound no job")?;
    let recorded = world.events(id)?;
    let record = server.ended_job(RUNS[0], recorded.len())?;
    served.identity = record["identity"].as_str().map(str::to_owned);
    operator(&server, &["runs", &RUNS[0].to_string()])?;
    operator(&server, &["events", id, "--status", "blocked"])?;
    operator(&server, &["detections"])?;
    served.stored_events = Some(stored(&server, id, &recorded)?);
    say(&format!("events: {}, each as the monitor recorded it", recorded.len()))?;

    chapter("a job of another repository opens a reverse shell, and is killed")?;
    let killed = receivers::killed_job(&world, &server, RUNS[1])?;
    say(killed.log().trim_end())?;
    monitor.wait_until_idle().with_context(|| monitor.log())?;
    chapter("what the webhook, Slack and the bucket were told of it")?;
    let told = receivers.detection(&server)?;
    for (receiver, message) in
        [("webhook", &told.webhook), ("Slack", &told.slack), ("bucket", &told.object)]
    {
        say(&format!("{receiver}: {}", shown(message)?))?;
    }
    receivers::check(&told, RUNS[1])?;
    served.detection = told.webhook["data"]["detection"].as_str().map(str::to_owned);
    served.told = Some(["webhook", "slack", "s3"]);

    chapter("the server is stopped; the next job runs by the last known good policy")?;
    server.stop()?;
    let second = world.runner(0).run(&job(RUNS[2], &tokens, &canary)?)?;
    let line = first_line(&second)?;
    say(&line)?;
    served.offline_policy = line.split_once(',').map(|(policy, _)| policy.to_owned());
    monitor.wait_until_idle().with_context(|| monitor.log())?;
    let is_last_known_good = second.log().contains("the last known good policy applies");

    chapter("the server is back, and gets what it missed")?;
    server.start()?;
    let ids = world.job_ids()?;
    let next = ids.last().context("the last job was not recorded")?;
    let recorded = world.events(next)?;
    server.ended_job(RUNS[2], recorded.len())?;
    served.caught_up_events = Some(stored(&server, next, &recorded)?);
    operator(&server, &["runs"])?;

    let report = report(&world)?;
    let leaked = world.attacker().leaked_bytes(&canary)?;
    served.offline_leaked = Some(leaked);
    let is_verified = served.identity.as_deref() == Some("verified");
    note_leaked(&world, &canary, outcome)?;
    note_hooks(&first, outcome);
    let is_in_force = is_in_force(options.mode, report.posture.level, leaked);
    note_report(report, outcome);
    let have_succeeded =
        [&first, &second].into_iter().all(|result| result.outcome == JobOutcome::Success);
    outcome.result = have_succeeded && is_in_force && is_verified && is_last_known_good;
    server.stop()?;
    say("")
}

/// The job; each begins as on a fresh checkout.
fn job(run_id: u64, tokens: &IdTokens, canary: &Canary) -> Result<Job> {
    let mut job = Job::from_file(Path::new(JOB))?.secret("DEPLOY_TOKEN", canary.as_str());
    job.steps.insert(0, step("clean", "find . -mindepth 1 -delete"));
    Ok(for_server(job, run_id, tokens))
}

/// Shows a command of the operator, and what it writes.
fn operator(server: &PolicyServer, arguments: &[&str]) -> Result<()> {
    say(&format!("$ portcullis {}", arguments.join(" ")))?;
    say(server.command(arguments)?.trim_end())
}

/// A message as people see it: an escape of a terminal that a job put into it stays text.
fn shown(message: &serde_json::Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(message)?)
}

/// How many events of a job the server has, when these are the ones that the monitor recorded.
fn stored(
    server: &PolicyServer,
    id: &str,
    recorded: &[portcullis_common::event::Event],
) -> Result<usize> {
    let stored = server.json(&["events", id, "--all"])?;
    ensure!(stored == serde_json::to_value(recorded)?, "the server has other events of job {id}");
    Ok(stored.as_array().map_or(0, Vec::len))
}

/// What the started hook says of the policy.
fn first_line(result: &JobResult) -> Result<String> {
    let hook = result.step_of_kind(StepKind::StartedHook).context("no started hook")?;
    let line = hook.log.lines().find_map(|line| line.strip_prefix("Portcullis: "));
    Ok(line.with_context(|| hook.log.clone())?.to_owned())
}
