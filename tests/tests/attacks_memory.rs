//! ATTACKS.md, M1–M3: the Worker's memory, which holds every secret of its job. Each reader kills its job and gets nothing;
//! without a gate the same programs get the secret. And B1: debuggers of one's own children, and looks at processes.

use anyhow::{Context, Result, ensure};
use portcullis_common::event::{DetectionEvent, DetectionType, Event, EventKind};
use portcullis_common::policy::LockdownDetection;
use portcullis_tests::gate::{Gate, POLICY, root_step, step};
use portcullis_tests::job::Step;
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Job, JobOutcome, JobResult, World};
use std::fs;
use std::path::PathBuf;

/// Nothing is reachable but what a runner needs, and who reads memory kills the job.
const LOCKDOWN: &str = "
name: gate
egress-policy: block
allowed-endpoints: []
lockdown-mode:
  enabled: true
  detections: [Runner-Worker-Memory-Read]
attach:
  - repository: octo/hello
";

/// The same without Lockdown Mode.
const RECORD: &str = "
name: gate
egress-policy: block
allowed-endpoints: []
attach:
  - repository: octo/hello
";

/// What stands in the environment of every Worker, and so on its stack.
const MARKER: &str = "ACTIONS_RUNNER_HOOK";

/// Finds the Worker and builds the attacker's program.
const PRELUDE: &str = r#"set +e
w=$$
until [ "$(cat /proc/$w/comm)" = Runner.Worker ]; do w=$(awk '/^PPid:/ { print $2 }' /proc/$w/status); done
cd "$(mktemp -d)"
gcc -O1 -w -o reader "$ATTACKS/memory_reader.c"
"#;

/// M1: what a hostile action did to thousands of repositories: every readable piece, searched for what looks like a secret.
const DUMP: &str = r#"python3 - "$w" >>"$LOOT" <<'END'
import re, sys
memory = open(f"/proc/{sys.argv[1]}/mem", "rb", 0)
for line in open(f"/proc/{sys.argv[1]}/maps"):
    begin, end, mode = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line).groups()
    if not mode.startswith("rw"):
        continue
    try:
        memory.seek(int(begin, 16))
        data = memory.read(int(end, 16) - int(begin, 16))
    except OSError:
        continue
    for secret in set(re.findall(rb"canary[0-9a-f]{24}", data)):
        print(secret.decode(), flush=True)
END
"#;

/// A way to read, and how it is asked for.
struct Reader {
    name: &'static str,
    script: String,
}

fn readers() -> Vec<Reader> {
    let with = |name| Reader { name, script: format!("./reader {name} $w 1 {MARKER} >>\"$LOOT\"") };
    let own = |name, script: &str| Reader { name, script: script.to_owned() };
    let mut readers = vec![
        own("dump", DUMP),
        own(
            "gdb",
            "gdb -batch -p $w -ex 'find /b $sp, +65536, 0x41, 0x43, 0x54' >>\"$LOOT\" 2>/dev/null",
        ),
        own(
            "gcore",
            "gcore -o core $w >/dev/null; cat core* | grep -ao 'canary[0-9a-f]*' >>\"$LOOT\"",
        ),
    ];
    readers.extend(
        [
            "vm-read",
            "attach",
            "getfd",
            "perf",
            "relative",
            "symlink",
            "other-mount",
            "other-pids",
            "uring-direct",
        ]
        .map(with),
    );
    readers
}

fn gate(policy: &str) -> Result<Gate> {
    Gate::build(World::builder(), policy, MonitorOptions::default())
}

/// Where readers put what they get.
fn loot(gate: &Gate) -> PathBuf {
    gate.world().directory().join("release").join("loot")
}

fn run(gate: &Gate, script: &str) -> Result<JobResult> {
    let _ = fs::remove_file(loot(gate));
    let attack = root_step("attack", &format!("{PRELUDE}{script}\nsleep 20"));
    gate.world().runner(0).run(&job(gate, vec![attack]))
}

fn job(gate: &Gate, steps: Vec<Step>) -> Job {
    let job = gate.job().env("LOOT", &loot(gate).display().to_string());
    Job { steps, ..job }
}

fn taken(gate: &Gate) -> String {
    fs::read_to_string(loot(gate)).unwrap_or_default()
}

fn memory_reads(events: &[Event]) -> Vec<&DetectionEvent> {
    let wanted = DetectionType::Lockdown(LockdownDetection::RunnerWorkerMemoryRead);
    let detections = events.iter().filter_map(|event| match &event.kind {
        EventKind::Detection(detection) => Some(detection),
        _ => None,
    });
    detections.filter(|detection| detection.detection == wanted).collect()
}

/// M1–M3 by root in the job.
#[test]
fn whoever_reads_the_worker_s_memory_gets_nothing_and_kills_the_job() -> Result<()> {
    let gate = gate(LOCKDOWN)?;
    let mut failures = Vec::new();
    for reader in readers() {
        let result = run(&gate, &reader.script)?;
        if taken(&gate).contains("impossible with this kernel") {
            println!("{}: {}", reader.name, taken(&gate));
            continue;
        }
        let events = gate.final_events()?;
        match check(&gate, &result, &events) {
            Ok(evidence) => println!("{}: {evidence}", reader.name),
            Err(error) => failures.push(format!("{}: {error:#}", reader.name)),
        }
    }
    ensure!(failures.is_empty(), "{}\n{}", failures.join("\n"), gate.monitor().log());
    Ok(())
}

fn check(gate: &Gate, result: &JobResult, events: &[Event]) -> Result<String> {
    let loot = taken(gate);
    ensure!(!gate.canary().is_in(loot.as_bytes()), "the secret was obtained");
    ensure!(!loot.contains("obtained 1"), "{loot}");
    let found = memory_reads(events);
    let first = found.first().with_context(|| format!("not detected; {}", result.log()))?;
    ensure!(first.is_lockdown, "{first:?}");
    ensure!(first.evidence.contains("Runner.Worker"), "{first:?}");
    ensure!(first.evidence.contains("before a byte was read"), "{first:?}");
    let process = first.process.as_ref().context("no process")?;
    ensure!(process.exe.is_some() && !process.argv.is_empty(), "{process:?}");
    ensure!(process.step.as_deref() == Some("attack"), "{process:?}");
    let top = process.ancestors.last().context("no ancestors")?;
    ensure!(top.exe.ends_with("Runner.Worker"), "{process:?}");
    ensure!(result.worker_exit_code == 128 + 9, "exit code {}", result.worker_exit_code);
    let told = result.annotations.iter().any(|annotation| {
        annotation.message.contains("Runner-Worker-Memory-Read")
            && annotation.message.contains(POLICY)
    });
    ensure!(told, "the job's page does not say why: {:?}", result.annotations);
    Ok(first.evidence.clone())
}

/// Where Lockdown Mode is off the same is recorded, and nothing is killed.
#[test]
fn without_lockdown_it_is_recorded() -> Result<()> {
    let gate = gate(RECORD)?;
    let script = format!("{PRELUDE}./reader vm-read $w 1 {MARKER} >>\"$LOOT\"");
    let result = gate.world().runner(0).run(&job(&gate, vec![root_step("attack", &script)]))?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    ensure!(taken(&gate).contains("obtained 1"), "{}", taken(&gate));
    let events = gate.final_events()?;
    let found = memory_reads(&events);
    ensure!(found.len() == 1 && !found[0].is_lockdown, "{found:?}");
    Ok(())
}

/// The attacks are real: with nobody there the secret is obtained.
#[test]
fn without_a_gate_the_secret_is_obtained() -> Result<()> {
    let gate = Gate::without(World::builder())?;
    let script = format!("{PRELUDE}{DUMP}");
    let result = gate.world().runner(0).run(&job(&gate, vec![root_step("attack", &script)]))?;
    ensure!(gate.canary().is_in(taken(&gate).as_bytes()), "{} {}", taken(&gate), result.log());
    Ok(())
}

/// B1: nobody is killed for looking at processes or for debugging what is its own.
#[test]
fn debuggers_and_looks_go_on() -> Result<()> {
    let gate = gate(LOCKDOWN)?;
    let script = r#"
ps auxe >/dev/null; pgrep -f Runner >/dev/null; top -bn1 >/dev/null
gdb -batch -ex run -ex 'info registers' --args /bin/echo hello | grep -q hello
strace -f -o trace make -v >/dev/null; grep -q exit_group trace
printf '#include <stdlib.h>\nint main(void) { volatile char *lost = malloc(7); lost = 0; return 0; }\n' >leak.c
gcc -g -fsanitize=address -o leak leak.c
./leak 2>&1 | grep -q 'detected memory leaks'
sleep 100 & p=$!
python3 -c "open('/proc/$p/mem','rb'); print('opened')" | grep -q opened
kill $p
"#;
    let job = job(&gate, vec![step("plain", script), root_step("root", script)]);
    let result = gate.world().runner(0).run(&job)?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    let events = gate.final_events()?;
    let found: Vec<_> = memory_reads(&events);
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

/// Without BPF: what root does is told and its process ended, and unprivileged readers get nothing of Worker and Listener.
#[test]
fn without_kernel_sensors_a_dump_is_told_and_others_get_nothing() -> Result<()> {
    let mut gate = Gate::without(World::builder())?;
    gate.world().write_configuration("[sensors]\nbackend = \"procfs\"\n")?;
    gate.raise(LOCKDOWN, MonitorOptions::default())?;
    let plain = r#"l=$(awk '/^PPid:/ { print $2 }' /proc/$w/status)
for p in $w $l; do
  for technique in open vm-read attach getfd; do ./reader $technique $p 3 ACTIONS_RUNNER_HOOK; done
  head -c 1 /proc/$p/environ /proc/$p/maps && echo "obtained 1"
  echo "tried $p"
done 2>/dev/null
true"#;
    let script = format!("{PRELUDE}{plain}");
    let result = gate.world().runner(0).run(&job(&gate, vec![step("plain", &script)]))?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    let log = result.log();
    ensure!(log.matches("tried").count() == 2, "{log}");
    for count in 1..=3 {
        ensure!(!log.contains(&format!("obtained {count}")), "{log}");
    }
    ensure!(memory_reads(&gate.final_events()?).is_empty());
    ensure!(log.contains("degraded sensor-memory"), "{log}");
    ensure!(log.contains("active   listener-memory"), "{log}");

    // Fanotify tells who opens the file, audit who copies without one and who traces: in the machine's first network namespace,
    // which is that of process 1, where root may look at that one.
    let mut attacks = vec![(DUMP, "/proc/PID/mem")];
    if fs::metadata("/proc/1/ns/net").is_ok() {
        attacks.push(("./reader vm-read $w 1 ACTIONS_RUNNER_HOOK", "process_vm_readv"));
        attacks.push(("./reader attach $w 1 ACTIONS_RUNNER_HOOK", "ptrace"));
    }
    for (reads, evidence) in attacks {
        // Long enough for what is told afterwards.
        let script = format!("{PRELUDE}{reads}\nsleep 20");
        let result = gate.world().runner(0).run(&job(&gate, vec![root_step("attack", &script)]))?;
        let events = gate.final_events()?;
        let found = memory_reads(&events);
        let first = found.first().with_context(|| format!("not detected; {}", result.log()))?;
        ensure!(first.is_lockdown && first.evidence.contains(evidence), "{evidence}: {first:?}");
        ensure!(result.worker_exit_code == 128 + 9, "exit code {}", result.worker_exit_code);
    }
    Ok(())
}
