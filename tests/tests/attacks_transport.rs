//! ATTACKS.md, T1-T8: one secret, sent by every way out of a machine that a job has.
//!
//! The same list of attacks is run without a gate, where each must get through, behind a gate that blocks, where none
//! may and each must be recorded with its process, and behind one that only audits, where each gets through and is
//! recorded all the same.

use anyhow::{Context, Result, ensure};
use portcullis_common::event::Verdict;
use portcullis_tests::attacker::{ATTACKER_V4, ATTACKER_V6, Packet};
use portcullis_tests::evidence::{Actor, Call, NO_RULE, check_sequence};
use portcullis_tests::gate::{Gate, POLICY, policy, root_step, step};
use portcullis_tests::world::RunningJob;
use portcullis_tests::{Job, JobOutcome, World, wait_for};
use std::net::IpAddr;

/// Where an attack runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Level {
    /// As the runner's user, all at the same time.
    Job,
    /// As the runner's user, one after the other: they can't be told apart by a port.
    JobInTurn,
    /// As root, one after the other: raw sockets of several processes can't be told apart.
    Root,
}

/// One way to send something.
#[derive(Clone, Copy, Debug)]
struct Technique {
    name: &'static str,
    level: Level,
    /// The IP protocol that leaves; 1 stands for `ICMPv6` over IPv6, too.
    protocol: u8,
    /// Over IPv4 and IPv6.
    families: &'static [Family],
    /// Whether the same to an allowed destination works: nothing can allow what is none of TCP, UDP and echo requests.
    allowable: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Family {
    V4,
    V6,
}

const BOTH: &[Family] = &[Family::V4, Family::V6];
const V4: &[Family] = &[Family::V4];

const fn technique(name: &'static str, level: Level, protocol: u8) -> Technique {
    Technique { name, level, protocol, families: BOTH, allowable: true }
}

const fn only_v4(name: &'static str, level: Level, protocol: u8) -> Technique {
    Technique { families: V4, ..technique(name, level, protocol) }
}

/// What nothing can allow.
const fn never(name: &'static str, level: Level, protocol: u8) -> Technique {
    Technique { allowable: false, ..technique(name, level, protocol) }
}

/// SCTP, DCCP and, on kernels without its socket, UDP-Lite come from raw sockets, so that they need no module.
const TECHNIQUES: &[Technique] = &[
    // Plain, and from a port of the job's choice.
    technique("tcp", Level::Job, 6),
    technique("tcp-bound", Level::Job, 6),
    technique("mptcp", Level::Job, 6),
    // T1: never connected; variants: connected, put together from parts, in fragments.
    technique("udp-sendto", Level::Job, 17),
    technique("udp-sendmsg", Level::Job, 17),
    technique("udp-sendmmsg", Level::Job, 17),
    technique("udp-connected", Level::Job, 17),
    technique("udp-corked", Level::Job, 17),
    technique("udp-large", Level::Job, 17),
    // T2: and from a worker thread of the kernel, and a datagram.
    technique("uring-connect", Level::Job, 6),
    technique("uring-connect-async", Level::Job, 6),
    technique("uring-sendmsg", Level::Job, 17),
    technique("uring-sendmsg-async", Level::Job, 17),
    // T3: and by connect() with a delayed SYN, and to IPv4 from an IPv6 socket.
    only_v4("tcp-fast-open-mapped", Level::Job, 6),
    technique("tcp-fast-open", Level::Job, 6),
    technique("tcp-fast-open-connect", Level::Job, 6),
    // T4: forged source; variants: in the middle of a connection that there is not, in fragments.
    never("raw-forged-udp", Level::Root, 17),
    never("raw-forged-tcp", Level::Root, 6),
    Technique { families: V4, ..never("raw-fragments", Level::Root, 17) },
    // T6: a ping socket, the program; variants: raw, an error and an answer that nobody asked for.
    technique("ping-socket", Level::JobInTurn, 1),
    technique("ping-command", Level::JobInTurn, 1),
    never("icmp-echo", Level::Root, 1),
    never("icmp-error", Level::Root, 1),
    never("icmp-reply", Level::Root, 1),
    // T7: IPv4 on IPv6 sockets; native IPv6 is in every line.
    only_v4("tcp-mapped", Level::Job, 6),
    only_v4("udp-mapped", Level::Job, 17),
    // T8: IP in IP, DCCP, GRE, SCTP, UDP-Lite, an experimental number (RFC 3692).
    never("ip-4", Level::Root, 4),
    never("ip-33", Level::Root, 33),
    never("ip-47", Level::Root, 47),
    never("ip-132", Level::Root, 132),
    never("ip-136", Level::Root, 136),
    never("ip-253", Level::Root, 253),
];

/// A technique and a destination.
#[derive(Clone, Debug)]
struct Attack {
    technique: Technique,
    address: IpAddr,
    port: u16,
}

impl Attack {
    /// What the file that ends it is called.
    fn word(&self) -> String {
        format!("{}-{}", self.technique.name, self.address)
    }

    fn command(&self) -> String {
        format!(
            "python3 -S $ATTACKS/transport.py {} {} {}",
            self.technique.name, self.address, self.port
        )
    }

    fn protocol(&self) -> u8 {
        if self.technique.protocol == 1 && self.address.is_ipv6() {
            58
        } else {
            self.technique.protocol
        }
    }

    fn has_port(&self) -> bool {
        matches!(self.technique.protocol, 6 | 17 | 33 | 132 | 136)
    }

    fn step(&self) -> &'static str {
        match self.technique.level {
            Level::Job => "at-once",
            Level::JobInTurn => "in-turn",
            Level::Root => "as-root",
        }
    }

    /// How it must be recorded.
    fn call(&self, verdict: Verdict, rule: &str) -> Call {
        let protocol = match self.protocol() {
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            1 => "icmp".to_owned(),
            58 => "icmpv6".to_owned(),
            other => other.to_string(),
        };
        let actor = match self.technique.name {
            "ping-command" => Actor::new("ping").argument(&self.address.to_string()),
            name => Actor::new("python3").argument(name).argument(&self.address.to_string()),
        };
        let port = self.has_port().then_some(self.port);
        Call::to(self.address, &protocol, port)
            .verdict(verdict)
            .rule(rule)
            .policy(POLICY)
            .by(actor.step(self.step()))
    }

    /// How many packets of it the attacker has.
    fn arrived(&self, world: &World) -> usize {
        let packets = world.attacker().described_packets();
        packets
            .iter()
            .filter(|packet| packet.destination == self.address && self.is_of_it(packet))
            .count()
    }

    fn is_of_it(&self, packet: &Packet) -> bool {
        // Over IPv6 fragments begin with a header of their own (RFC 8200 §4.5).
        let is_fragment = self.technique.name == "udp-large" && packet.protocol == 44;
        let is_same = packet.protocol == self.protocol()
            && (!self.has_port() || packet.port == Some(self.port));
        is_fragment || is_same
    }
}

/// All attacks on the attacker, each with a port of its own.
fn attacks() -> Vec<Attack> {
    let with_family = TECHNIQUES.iter().flat_map(|technique| {
        technique.families.iter().map(move |family| {
            let address: IpAddr = match family {
                Family::V4 => ATTACKER_V4.into(),
                Family::V6 => ATTACKER_V6.into(),
            };
            (*technique, address)
        })
    });
    (20_000..)
        .zip(with_family)
        .map(|(port, (technique, address))| Attack { technique, address, port })
        .collect()
}

/// The same against an allowed destination: the web servers' port, on which datagrams are taken, too.
fn twins() -> Vec<Attack> {
    attacks()
        .into_iter()
        .filter(|attack| attack.technique.allowable)
        .map(|attack| Attack {
            address: if attack.address.is_ipv4() { FRIEND_V4 } else { FRIEND_V6 }
                .parse()
                .expect("an address"),
            port: 443,
            ..attack
        })
        .collect()
}

const FRIEND_V4: &str = "198.51.100.60";
const FRIEND_V6: &str = "2001:db8:1::60";

const ALLOWED: &[&str] = &[
    "198.51.100.60:443",
    "[2001:db8:1::60]:443",
    "udp://198.51.100.60:443",
    "udp://[2001:db8:1::60]:443",
    "icmp://198.51.100.60",
    "icmp://[2001:db8:1::60]",
    "ok.test:443",
];

/// The job that makes these attacks; each ends when it is told.
fn job(gate: &Gate, attacks: &[Attack]) -> Job {
    let commands = |level: Level, separator: &str| -> String {
        let of_level = attacks.iter().filter(|attack| attack.technique.level == level);
        of_level.flat_map(|attack| [attack.command(), format!("{separator}\n")]).collect()
    };
    let mut job = gate.job();
    job.steps = vec![
        step("at-once", &format!("{}wait\n", commands(Level::Job, " &"))),
        step("in-turn", &commands(Level::JobInTurn, "")),
        root_step("as-root", &commands(Level::Root, "")),
    ];
    job
}

/// Ping sockets are open to everybody, as systemd sets it.
fn open_ping_sockets(world: &World) -> Result<()> {
    world.runner_network().sysctl("ipv4/ping_group_range", "0 2147483647")
}

/// Runs the attacks; `settled` waits for what must become of each before it is let go. The order is the one in which
/// they begin.
fn run(
    gate: &Gate,
    attacks: &[Attack],
    settled: impl Fn(&Attack, usize) -> Result<()>,
) -> Result<portcullis_tests::JobResult> {
    let running = gate.begin(&job(gate, attacks))?;
    for level in [Level::Job, Level::JobInTurn, Level::Root] {
        for attack in attacks.iter().filter(|attack| attack.technique.level == level) {
            let before = if level == Level::Job { 0 } else { attack.arrived(gate.world()) };
            began(&running, attack)?;
            settled(attack, before)
                .with_context(|| format!("{}\n{}", attack.word(), running.lines().join("\n")))?;
            gate.release(&attack.word())?;
        }
    }
    running.wait()
}

/// Waits until the attack has done what it can.
fn began(running: &RunningJob<'_>, attack: &Attack) -> Result<String> {
    running.wait_for_line(&format!("{} {}: ", attack.technique.name, attack.address))
}

#[test]
fn without_a_gate_every_attack_reaches_the_attacker() -> Result<()> {
    let gate = Gate::without(World::builder())?;
    open_ping_sockets(gate.world())?;
    let result = run(&gate, &attacks(), |attack, before| {
        let arrived = || (attack.arrived(gate.world()) > before).then_some(());
        // Raw attacks are prepared before their line is written, so that packets may be there before they are counted.
        let arrived = || arrived().or_else(|| (before > 0).then_some(()));
        wait_for("a packet of it to arrive", arrived)
    })?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    gate.assert_leaked()
}

#[test]
fn in_block_mode_nothing_arrives_and_everything_is_recorded() -> Result<()> {
    let gate = Gate::up(&policy("block", ALLOWED))?;
    open_ping_sockets(gate.world())?;
    let result = run(&gate, &attacks(), |attack, _| {
        gate.wait_for_call(&attack.call(Verdict::Blocked, NO_RULE)).map(drop)
    })?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    gate.assert_contained()?;
    check_sequence(&gate.final_events()?)
}

#[test]
fn in_audit_mode_everything_arrives_and_is_recorded() -> Result<()> {
    let gate = Gate::up(&policy("audit", ALLOWED))?;
    open_ping_sockets(gate.world())?;
    let result = run(&gate, &attacks(), |attack, _| {
        gate.wait_for_call(&attack.call(Verdict::WouldBlock, NO_RULE)).map(drop)
    })?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    gate.assert_leaked()?;
    for attack in attacks() {
        ensure!(attack.arrived(gate.world()) > 0, "{} did not arrive", attack.word());
    }
    Ok(())
}

#[test]
fn the_same_to_an_allowed_destination_works_and_is_recorded() -> Result<()> {
    let gate = Gate::up(&policy("block", ALLOWED))?;
    open_ping_sockets(gate.world())?;
    gate.world().add_address(FRIEND_V6.parse()?)?;
    let sockets = [FRIEND_V4, FRIEND_V6].map(|address| {
        let bind = || std::net::UdpSocket::bind((address, 443));
        gate.world().internet().run(bind)
    });
    let result = run(&gate, &twins(), |attack, _| {
        let rule = match (attack.protocol(), attack.address) {
            (6, IpAddr::V4(address)) => format!("{address}:443"),
            (6, IpAddr::V6(address)) => format!("[{address}]:443"),
            (17, IpAddr::V4(address)) => format!("udp://{address}:443"),
            (17, IpAddr::V6(address)) => format!("udp://[{address}]:443"),
            (_, IpAddr::V4(address)) => format!("icmp://{address}"),
            (_, IpAddr::V6(address)) => format!("icmp://[{address}]"),
        };
        gate.wait_for_call(&attack.call(Verdict::Allowed, &rule)).map(drop)
    })?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    for twin in twins() {
        let sent = format!("{} {}: sent", twin.technique.name, twin.address);
        ensure!(result.log().contains(&sent), "{sent} is missing in\n{}", result.log());
    }
    let datagrams = twins().iter().filter(|twin| twin.technique.protocol == 17).count();
    let mut received = 0;
    for socket in sockets {
        let socket = socket??;
        socket.set_nonblocking(true)?;
        let mut buffer = [0; 8192];
        while let Ok(length) = socket.recv(&mut buffer) {
            ensure!(gate.canary().is_in(&buffer[..length]), "a datagram without its content");
            received += 1;
        }
    }
    ensure!(received >= datagrams, "{received} of {datagrams} datagrams arrived");
    Ok(())
}
