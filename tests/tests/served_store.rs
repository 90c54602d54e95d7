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
use portcullis_tests::world::{MonitorOptions, Process};
use portcullis_tests::{Canary, Job, JobOutcome, JobResult, StepKind, World};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

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
             [github]\nissuer = \"https://{ISSUER}\"\n"
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
