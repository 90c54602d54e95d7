//! `portcullis serve` on a machine of the world's internet, over TLS, and the operator's command line beside it.

use crate::job::Job;
use crate::patience::wait_for;
use crate::server::id_tokens::{IdTokens, REQUEST_HOST, REQUEST_TOKEN};
use crate::world::{HostCommand, Process, World};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Where the server listens: a machine of the world's internet.
pub const ADDRESS: &str = "198.51.100.200";

/// How runners and people reach it.
pub const URL: &str = "https://198.51.100.200:8440";

/// What a server prints before the first admin's token.
pub const FIRST_TOKEN: &str = "The first admin's token, shown this once: ";

/// The workflow of the jobs that [`for_server`] prepares.
const WORKFLOW: &str = "octo/hello/.github/workflows/ci.yml@refs/heads/main";

/// The policy server of a world; killed when the handle is dropped.
#[derive(Debug)]
pub struct PolicyServer {
    directory: PathBuf,
    /// `portcullis` on the server's machine.
    there: HostCommand,
    /// `portcullis` on the runner host.
    here: HostCommand,
    process: Option<Process>,
}

impl PolicyServer {
    /// Prepares a server on SQLite with a certificate of its own; `more` is put behind its configuration.
    ///
    /// # Errors
    /// When the program is not built or files can't be written.
    pub fn prepare(world: &World, more: &str) -> Result<Self> {
        let directory = world.root().join("store");
        fs::create_dir_all(&directory)?;
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate =
            CertificateParams::new(vec![ADDRESS.to_owned()])?.signed_by(&key, &authority)?;
        fs::write(directory.join("certificate.pem"), certificate.pem())?;
        fs::write(directory.join("key.pem"), key.serialize_pem())?;
        // The monitor asks the store and GitHub.
        let github = fs::read_to_string(world.authority_file())?;
        fs::write(directory.join("authorities.pem"), authority.pem() + &github)?;
        let at = directory.display();
        let issuer = crate::server::id_tokens::ISSUER_HOST;
        let configuration = format!(
            "listen = \"{ADDRESS}:8440\"\npublic-url = \"{URL}\"\n\
             ca-file = \"{at}/authorities.pem\"\n\
             [database]\nurl = \"sqlite:{at}/store.db\"\n\
             [tls]\ncertificate-file = \"{at}/certificate.pem\"\nkey-file = \"{at}/key.pem\"\n\
             [github]\nissuer = \"https://{issuer}\"\n{more}"
        );
        fs::write(directory.join("store.toml"), configuration)?;
        let program = world.install_program("portcullis")?;
        Ok(Self {
            directory,
            there: world.internet_command_with_names(&program),
            here: world.command(&program),
            process: None,
        })
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The first admin's token, as the server has printed it at its first start.
    ///
    /// # Errors
    /// When it was not started.
    pub fn token(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.join("token"))?)
    }

    /// Starts it and waits until it listens. What it prints at its first start is an admin's token, which is kept for the
    /// command line.
    ///
    /// # Errors
    /// When it does not listen, or prints no token; the error holds its log.
    pub fn start(&mut self) -> Result<()> {
        let address = self.directory.join("address");
        let _ = fs::remove_file(&address);
        let log = fs::File::options().create(true).append(true).open(self.directory.join("log"))?;
        let printed = self.directory.join("printed");
        let process = self
            .there
            .clone()
            .arg("serve")
            .args(["--config".as_ref(), self.directory.join("store.toml").as_os_str()])
            .args(["--address-file".as_ref(), address.as_os_str()])
            .spawn(Stdio::null(), fs::File::create(&printed)?, log)?;
        self.process = Some(process);
        wait_for("the policy server to listen", || address.exists().then_some(()))
            .with_context(|| self.log())?;
        let token = self.directory.join("token");
        if !token.exists() {
            let printed = fs::read_to_string(printed)?;
            let found = printed.trim_end().strip_prefix(FIRST_TOKEN);
            fs::write(token, found.with_context(|| format!("no token in {printed:?}"))?)?;
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it does not run or ends with an error.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("it does not run")?;
        process.signal(Signal::SIGTERM)?;
        ensure!(process.wait()?.success(), "{}", self.log());
        Ok(())
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The operator's command line, with the admin's token.
    ///
    /// # Errors
    /// When the command fails; the error holds what it wrote.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        self.there
            .clone()
            .args(arguments)
            .args(["--server", URL, "--token-file"])
            .arg(self.directory.join("token"))
            .arg("--ca-file")
            .arg(self.directory.join("authorities.pem"))
            .text()
    }

    /// What the command line says to programs.
    ///
    /// # Errors
    /// When the command fails or writes no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.command(&[arguments, &["--output", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// Makes an integration, and has the server tell it that this is a test.
    ///
    /// # Errors
    /// When it is refused, or does not take the test.
    pub fn integrate(&self, name: &str, target: &Value, selection: &Value) -> Result<()> {
        let file = self.directory.join("integration.json");
        let body = serde_json::json!({ "name": name, "target": target, "selection": selection });
        fs::write(&file, body.to_string())?;
        self.command(&["integration", "create", &file.display().to_string()])?;
        let tested = self.command(&["integration", "test", name])?;
        ensure!(tested.contains("works"), "{tested}");
        Ok(())
    }

    /// Enrols the runner host in the cluster `prod-linux`, and tells its monitor where the store is. Returns what the
    /// command on the runner host wrote.
    ///
    /// # Errors
    /// When the server refuses or files can't be written.
    pub fn enrol(&self, world: &World) -> Result<String> {
        let token = self.command(&["enrol", "create", "--cluster", "prod-linux"])?;
        let file = self.directory.join("enrolment");
        fs::write(&file, token)?;
        let etc = world.root().join("etc/portcullis");
        fs::create_dir_all(&etc)?;
        let enrolled = self
            .here
            .clone()
            .args(["enrol", "host", "--server", URL, "--name", "runner-host", "--enrolment-file"])
            .arg(&file)
            .arg("--ca-file")
            .arg(self.directory.join("authorities.pem"))
            .arg("--credential-file")
            .arg(etc.join("credential"))
            .text()?;
        fs::copy(self.directory.join("authorities.pem"), etc.join("authorities.pem"))?;
        world.write_configuration(&format!(
            "cluster = \"prod-linux\"\n[store]\nurl = \"{URL}\"\nca-file = \"/etc/portcullis/authorities.pem\"\n"
        ))?;
        Ok(enrolled)
    }

    /// Waits until the server has a run whole, with this many events, and returns its only job.
    ///
    /// # Errors
    /// When it does not come; the error holds the server's log.
    pub fn ended_job(&self, run: u64, events: usize) -> Result<Value> {
        wait_for(&format!("run {run} with {events} events"), || {
            let run = self.json(&["runs", &run.to_string()]).ok()?;
            let job = run["job_records"].get(0)?.clone();
            let is_whole = job["state"] == "ended" && job["events"].as_u64() == Some(events as u64);
            is_whole.then_some(job)
        })
        .with_context(|| self.log())
    }
}

/// Makes a job that run of a workflow for which `tokens` vouches; it may ask for an OIDC token (`id-token: write`).
pub fn for_server(mut job: Job, run_id: u64, tokens: &IdTokens) -> Job {
    tokens.vouch_for_run(run_id);
    job.context.run_id = run_id;
    WORKFLOW.clone_into(&mut job.context.workflow_ref);
    job.context.id_token_request_url =
        Some(format!("https://{REQUEST_HOST}/idtoken?api-version=2.0"));
    job.context.id_token_request_token = Some(REQUEST_TOKEN.to_owned());
    job
}
