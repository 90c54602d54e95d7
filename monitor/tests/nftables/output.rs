//! What leaves the host: allowed, blocked, denied, audited, in both families.

use crate::fixture::{grant, grant_range, host_target, job_target, policy};
use crate::world::{
    Agent, Capture, Cgroup, EVIL4, EVIL6, HOST4, HOST6, Holder, Namespace, OK4, OK6, World, at,
    eventually,
};
use portcullis_common::endpoint::{PortRange, Protocol};
use portcullis_common::policy::{EffectivePolicy, EgressMode};
use portcullis_monitor::egress::plan::rule_set;
use portcullis_monitor::egress::target::{EnforcementTarget, Flow};
use portcullis_monitor::nftables::InstalledTable;
use std::time::Duration;

const MINUTE: Duration = Duration::from_mins(1);

pub(crate) fn install(
    world: &World,
    policy: &EffectivePolicy,
    target: &EnforcementTarget,
) -> InstalledTable {
    InstalledTable::install(world.host.fd(), &rule_set(policy, target).unwrap()).unwrap()
}

pub(crate) fn counter(table: &InstalledTable, name: &str) -> u64 {
    let counters = table.counters().unwrap();
    counters.iter().filter(|counter| counter.name == name).map(|counter| counter.packets).sum()
}

/// A UDP packet with headers of our own making, in hexadecimal digits.
fn forged(to: &str, protocol: u8, payload: &str) -> String {
    let to: std::net::IpAddr = to.parse().unwrap();
    let mut body = vec![0, 99, 1, 187, 0, u8::try_from(8 + payload.len()).unwrap(), 0, 0];
    body.extend(payload.as_bytes());
    let length = u16::try_from(body.len()).unwrap();
    let mut packet = match to {
        std::net::IpAddr::V4(to) => {
            let [high, low] = (20 + length).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, protocol, 0, 0];
            header.extend(HOST4.parse::<std::net::Ipv4Addr>().unwrap().octets());
            header.extend(to.octets());
            header
        }
        std::net::IpAddr::V6(to) => {
            let [high, low] = length.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, high, low, protocol, 64];
            header.extend(HOST6.parse::<std::net::Ipv6Addr>().unwrap().octets());
            header.extend(to.octets());
            header
        }
    };
    packet.extend(body);
    let digits: Vec<String> = packet.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

#[test]
fn only_what_is_allowed_or_granted_leaves_a_host_in_block_mode() {
    let world = World::new();
    world.serve(443);
    let seen = Capture::new(&world.outside, "eth0");
    let logged = Capture::new(&world.host, "nflog:7");
    let policy = policy(
        EgressMode::Block,
        &[
            "198.51.100.10:443",
            "[2001:db8:a::/48]:443",
            "ok.test:443",
            "udp://ok.test:443",
            "udp://ok.test:7000-7100",
        ],
        &[],
    );
    let table = install(&world, &policy, &host_target(&world));
    let mut job = Agent::new(&world.host, None, 1000);
    let mut root = Agent::new(&world.host, None, 0);

    for (ok, evil) in [(OK4, EVIL4), (OK6, EVIL6)] {
        let (ok, evil_address) = (at(ok, 443), at(evil, 443));
        assert_eq!(job.ask(&format!("tcp {ok} fine-{ok}")).get(..2), Some("ok"));
        // Dropped: it is the monitor that ends the attempt, once it knows whose it is.
        assert!(job.ask(&format!("tcp {evil_address} CANARY-tcp")).contains("TimedOut"));
        assert!(job.ask(&format!("udp {evil_address} CANARY-udp")).starts_with("error"));
        assert!(job.ask(&format!("udp {ok} CANARY-udp-is-not-tcp")).starts_with("error"));
        for protocol in [17, 1, 58, 33, 47, 132, 136] {
            let packet = forged(evil, protocol, "CANARY-raw");
            root.ask(&format!("raw {} {packet}", at(evil, 0)));
        }
    }
    let mapped = format!("[::ffff:{EVIL4}]:443");
    assert!(job.ask(&format!("tcp {mapped} CANARY-mapped")).starts_with("error"));

    // Granted, then: exact, and a range of ports.
    for evil in [EVIL4, EVIL6] {
        table.add_grants(&[grant(evil, Protocol::Tcp, 443, MINUTE)]).unwrap();
        assert!(job.ask(&format!("tcp {} granted", at(evil, 443))).starts_with("ok"));
        assert!(
            job.ask(&format!("udp {} CANARY-other-protocol", at(evil, 443))).starts_with("error")
        );
        let ports = PortRange::new(7000, 7100).unwrap();
        assert!(job.ask(&format!("udp {} CANARY-not-yet", at(evil, 7100))).starts_with("error"));
        table.add_grants(&[grant_range(evil, Protocol::Udp, ports, MINUTE)]).unwrap();
        assert_eq!(job.ask(&format!("udp {} ranged-{evil}", at(evil, 7100))), "ok");
        assert!(job.ask(&format!("udp {} CANARY-beyond", at(evil, 7101))).starts_with("error"));
        seen.wait_for(&format!("ranged-{evil}"));
    }
    assert_eq!(seen.count("CANARY"), 0);
    for prefix in ["allowed output", "blocked output"] {
        logged.wait_for(&format!("{} {prefix}", table.name()));
    }
    assert!(counter(&table, "blocked") >= 20);
    assert_eq!(counter(&table, "would_block"), 0);
    table.verify().unwrap();
}

#[test]
fn audit_mode_lets_everything_through_but_what_is_denied() {
    let world = World::new();
    world.serve(443);
    let seen = Capture::new(&world.outside, "eth0");
    let policy = policy(
        EgressMode::Audit,
        &["203.0.113.66:443", "198.51.100.10:443", "[2001:db8:a::10]:443"],
        &["203.0.113.0/24:*", "[2001:db8::66]:443", "udp://203.0.113.66:53", "icmp://203.0.113.66"],
    );
    let table = install(&world, &policy, &host_target(&world));
    let mut job = Agent::new(&world.host, None, 1000);
    for (ok, evil) in [(OK4, EVIL4), (OK6, EVIL6)] {
        assert!(job.ask(&format!("tcp {} CANARY", at(evil, 443))).contains("TimedOut"));
        assert!(job.ask(&format!("tcp {} allowed-{ok}", at(ok, 443))).starts_with("ok"));
        let answer = job.ask(&format!("ask {} audited-{ok}", at(ok, 443)));
        assert!(answer.contains("audited"), "{answer}");
        seen.wait_for(&format!("audited-{ok}"));
    }
    world.host.try_run(&format!("ping -c1 -W1 -p 43414e415259 {EVIL4}"));
    assert_eq!(seen.count("CANARY"), 0);
    assert_eq!(counter(&table, "allowed"), 2);
    assert_eq!(counter(&table, "would_block"), 2, "once a flow");
    assert_eq!(counter(&table, "blocked"), 0);
    // An attempt that is dropped is repeated by the kernel.
    assert!(counter(&table, "denied") >= 3);
}

#[test]
fn jobs_in_one_namespace_are_judged_apart() {
    let world = World::new();
    world.serve(443);
    let seen = Capture::new(&world.outside, "eth0");
    let (first, second) = (Cgroup::new(), Cgroup::new());
    let allow_ok = policy(EgressMode::Block, &["198.51.100.10:443", "[2001:db8:a::10]:443"], &[]);
    let allow_evil = policy(EgressMode::Block, &["203.0.113.66:443", "[2001:db8::66]:443"], &[]);
    let mut older = job_target(&world, &first);
    older.other_jobs = vec![second.id()];
    let table = install(&world, &allow_ok, &older);
    let mut with_user = job_target(&world, &second);
    with_user.runner_uid = Some(1002);
    let other = install(&world, &allow_evil, &with_user);
    let mut one = Agent::new(&world.host, Some(&first), 1001);
    let mut two = Agent::new(&world.host, Some(&second), 0);
    let mut by_user = Agent::new(&world.host, None, 1002);
    let mut neither = Agent::new(&world.host, None, 1003);
    for (ok, evil) in [(OK4, EVIL4), (OK6, EVIL6)] {
        let (ok, evil) = (at(ok, 443), at(evil, 443));
        assert!(one.ask(&format!("tcp {ok} one")).starts_with("ok"));
        assert!(one.ask(&format!("tcp {evil} CANARY")).contains("TimedOut"));
        for job in [&mut two, &mut by_user] {
            assert!(job.ask(&format!("tcp {evil} two")).starts_with("ok"));
            assert!(job.ask(&format!("tcp {ok} CANARY")).contains("TimedOut"));
        }
        for address in [&ok, &evil] {
            assert!(neither.ask(&format!("tcp {address} neither")).starts_with("ok"));
            assert!(neither.ask(&format!("ask {address} neither")).contains("neither"));
        }
    }
    assert_eq!(seen.count("CANARY"), 0);
    assert_eq!((counter(&table, "allowed"), counter(&other, "allowed")), (2, 4));
    // An attempt that is dropped is repeated by the kernel.
    assert!(counter(&table, "blocked") >= 2 && counter(&other, "blocked") >= 4);
    // The end of one job leaves the other one enforced.
    table.remove().unwrap();
    assert!(two.ask(&format!("tcp {} CANARY", at(OK4, 443))).contains("TimedOut"));
    assert!(one.ask(&format!("tcp {} free", at(EVIL4, 443))).starts_with("ok"));
}

/// A job that is ending, and the next one of the same runner, whose user is the same.
#[test]
fn a_user_tells_only_what_no_other_jobs_group_does() {
    let world = World::new();
    world.serve(443);
    let (ending, next) = (Cgroup::new(), Cgroup::new());
    let allow_ok = policy(EgressMode::Block, &["198.51.100.10:443", "[2001:db8:a::10]:443"], &[]);
    let allow_evil = policy(EgressMode::Block, &["203.0.113.66:443", "[2001:db8::66]:443"], &[]);
    let mut first = job_target(&world, &ending);
    first.runner_uid = Some(1002);
    first.other_jobs = vec![next.id()];
    let mut second = job_target(&world, &next);
    second.runner_uid = Some(1002);
    let (first, second) =
        (install(&world, &allow_ok, &first), install(&world, &allow_evil, &second));
    let mut of_next = Agent::new(&world.host, Some(&next), 1002);
    for (ok, evil) in [(OK4, EVIL4), (OK6, EVIL6)] {
        assert!(of_next.ask(&format!("tcp {} next", at(evil, 443))).starts_with("ok"));
        assert!(of_next.ask(&format!("tcp {} next", at(ok, 443))).contains("TimedOut"));
    }
    assert_eq!((counter(&first, "blocked"), counter(&second, "allowed")), (0, 2));
}

/// Whatever a daemon starts in a group of its own once the job runs, unless it is another job's or the machine's own.
#[test]
fn groups_younger_than_the_job_are_judged_like_it() {
    let world = World::new();
    world.serve(443);
    let seen = Capture::new(&world.outside, "eth0");
    let (before, service, job) = (Cgroup::new(), Cgroup::new(), Cgroup::new());
    let (other, engine) = (Cgroup::new(), Cgroup::new());
    let mut target = job_target(&world, &job);
    target.other_jobs = vec![other.id()];
    target.infrastructure = vec![service.id()];
    let allowed = policy(EgressMode::Block, &["198.51.100.10:443"], &[]);
    let table = install(&world, &allowed, &target);
    for group in [None, Some(&before), Some(&service), Some(&other)] {
        let mut theirs = Agent::new(&world.host, group, 1003);
        assert!(theirs.ask(&format!("tcp {} theirs", at(EVIL4, 443))).starts_with("ok"));
    }
    for user in [0, 1003] {
        let mut container = Agent::new(&world.host, Some(&engine), user);
        assert!(container.ask(&format!("tcp {} container", at(OK4, 443))).starts_with("ok"));
        assert!(container.ask(&format!("tcp {} CANARY", at(EVIL4, 443))).contains("TimedOut"));
        assert!(!container.ask(&format!("udp {} CANARY", at(EVIL4, 443))).starts_with("ok"));
    }
    assert_eq!(seen.count("CANARY"), 0);
    assert!(counter(&table, "blocked") >= 4);
}

#[test]
fn infrastructure_and_the_monitor_are_exempt_and_nobody_else() {
    let world = World::new();
    world.serve(443);
    world.serve(53);
    let (sshd, monitor) = (Cgroup::new(), Cgroup::new());
    let mut target = host_target(&world);
    target.infrastructure = vec![sshd.id()];
    target.monitor_cgroup = Some(monitor.id());
    target.upstreams = vec![at(OK4, 53).parse().unwrap(), at(OK6, 53).parse().unwrap()];
    target.upstream_source_ports = vec![5999];
    let table = install(&world, &policy(EgressMode::Block, &[], &[]), &target);
    let mut infrastructure = Agent::new(&world.host, Some(&sshd), 0);
    let mut resolver = Agent::new(&world.host, Some(&monitor), 0);
    let mut job = Agent::new(&world.host, None, 0);
    for (ok, evil, host) in [(OK4, EVIL4, HOST4), (OK6, EVIL6, HOST6)] {
        assert!(infrastructure.ask(&format!("tcp {} fine", at(ok, 443))).starts_with("ok"));
        assert!(infrastructure.ask(&format!("ask {} fine", at(evil, 53))).contains("fine"));
        let query = |server: &str, port| format!("ask {} query {}", at(server, 53), at(host, port));
        assert!(resolver.ask(&query(ok, 5999)).contains("query"));
        // Another port, another server, another process.
        assert!(resolver.ask(&query(ok, 5998)).starts_with("error"));
        assert!(resolver.ask(&query(evil, 5999)).starts_with("error"));
        assert!(job.ask(&query(ok, 5999)).starts_with("error"));
        assert!(resolver.ask(&format!("tcp {} x", at(ok, 443))).contains("TimedOut"));
        table.set_upstream_ports(&[5998, 6000]).unwrap();
        assert!(resolver.ask(&query(ok, 5998)).contains("query"));
        assert!(resolver.ask(&query(ok, 5999)).starts_with("error"));
        table.set_upstream_ports(&[5999]).unwrap();
        table.verify().unwrap();
    }
}

#[test]
fn loopback_errors_and_neighbour_discovery_go_on() {
    let world = World::new();
    world.serve(443);
    let policy = policy(
        EgressMode::Block,
        &["198.51.100.10:443", "[2001:db8:a::10]:443", "udp://198.51.100.10:443"],
        &[],
    );
    let table = install(&world, &policy, &host_target(&world));
    let mut job = Agent::new(&world.host, None, 1000);
    for local in ["127.0.0.1:0", "[::1]:0", "10.77.0.1:0", "[2001:db8:77::1]:0"] {
        let mut server = Agent::new(&world.host, None, 1001);
        let bound = server.ask(&format!("listen {local}"));
        let stream = job.ask(&format!("tcp {bound} hello"));
        assert!(stream.starts_with("ok"), "{local}: {stream}");
        assert!(server.ask("accept 0 welcome").starts_with("ok"));
        assert_eq!(job.ask(&format!("hear {}", stream.split(' ').nth(1).unwrap())), "welcome");
    }
    // The host answers pings and unreachable ports (its own kernel's ICMP), and finds its neighbours again.
    world.host.run("ip neigh flush dev eth0; ip -6 neigh flush dev eth0");
    world.outside.run(&format!("ping -c1 -W2 {HOST4}; ping -6 -c1 -W2 {HOST6}"));
    for ok in [OK4, OK6] {
        assert!(job.ask(&format!("tcp {} again", at(ok, 443))).starts_with("ok"));
    }
    assert_eq!(counter(&table, "frames"), 0);
}

#[test]
fn an_address_closes_when_its_grant_ends_and_use_keeps_it_open() {
    let world = World::new();
    world.serve(443);
    let mut target = host_target(&world);
    target.grace = Duration::from_millis(1500);
    let policy = policy(EgressMode::Block, &["ok.test:443", "udp://ok.test:443"], &[]);
    let table = install(&world, &policy, &target);
    let mut job = Agent::new(&world.host, None, 1000);
    let short = Duration::from_millis(400);
    for (used, idle) in [(OK4, EVIL4), (OK6, EVIL6)] {
        for address in [used, idle] {
            table.add_grants(&[grant(address, Protocol::Udp, 443, short)]).unwrap();
        }
        let start = std::time::Instant::now();
        // Used again and again it stays open past its own lifetime and past one period of grace.
        while start.elapsed() < Duration::from_secs(3) {
            let answer = job.ask(&format!("ask {} x", at(used, 443)));
            assert!(answer.ends_with(" x"), "{answer} after {:?}", start.elapsed());
        }
        assert!(job.ask(&format!("udp {} CANARY", at(idle, 443))).starts_with("error"));
        let live = table.list_grants().unwrap();
        let found = live.iter().find(|grant| grant.address.to_string() == used).unwrap();
        assert!(found.used && found.remaining <= target.grace, "{found:?}");
        eventually("the end of the period of grace", || {
            let live = table.list_grants().unwrap();
            (!live.iter().any(|grant| grant.address.to_string() == used)).then_some(())
        });
        assert!(job.ask(&format!("udp {} CANARY", at(used, 443))).starts_with("error"));
        // A longer grant is not shortened by a shorter one.
        table.add_grants(&[grant(used, Protocol::Udp, 443, MINUTE)]).unwrap();
        table.add_grants(&[grant(used, Protocol::Udp, 443, short)]).unwrap();
        let live = table.list_grants().unwrap();
        let found = live.iter().find(|grant| grant.address.to_string() == used).unwrap();
        assert!(found.remaining > Duration::from_secs(50), "{found:?}");
    }
}

/// A server outside, and the first connection to it.
fn accept_one(world: &World, address: &str) -> std::thread::JoinHandle<std::net::TcpStream> {
    let listener = world.outside.enter(|| std::net::TcpListener::bind(address).unwrap());
    std::thread::spawn(move || listener.accept().unwrap().0)
}

#[test]
fn a_connection_older_than_the_rules_is_judged_unless_it_was_adopted() {
    let world = World::new();
    let seen = Capture::new(&world.outside, "eth0");
    let mut job = Agent::new(&world.host, None, 1000);
    let mut flows = Vec::new();
    for address in [EVIL4, EVIL6] {
        for (kind, port) in [("old", 443), ("adopted", 444)] {
            let server = accept_one(&world, &at(address, port));
            let stream = job.ask(&format!("tcp {} {kind}", at(address, port)));
            let stream: usize = stream.split(' ').nth(1).unwrap().parse().unwrap();
            let local = job.ask(&format!("local {stream}")).parse().unwrap();
            let flow = Flow { local, remote: at(address, port).parse().unwrap() };
            flows.push((kind == "adopted", stream, flow, server.join().unwrap()));
        }
    }
    let mut target = host_target(&world);
    target.adopted_flows = flows.iter().filter(|flow| flow.0).map(|flow| flow.2).collect();
    let _table = install(&world, &policy(EgressMode::Block, &[], &[]), &target);
    // The other end speaks first, so that connection tracking takes it for the opener.
    for (adopted, stream, _, server) in &mut flows {
        std::io::Write::write_all(server, b"work to do").unwrap();
        let heard = job.ask(&format!("hear {stream}"));
        assert_eq!(heard == "work to do", *adopted, "{heard}");
        job.ask(&format!("more {stream} {}", if *adopted { "long-poll" } else { "CANARY" }));
    }
    for (_, _, _, server) in flows.iter_mut().filter(|flow| flow.0) {
        let mut bytes = [0; 16];
        std::io::Read::read_exact(server, &mut bytes).unwrap();
        assert_eq!(bytes, *b"adoptedlong-poll");
    }
    assert_eq!(seen.count("CANARY"), 0);
}

#[test]
fn what_the_kernel_sends_for_a_closed_address_is_dropped_and_only_counted() {
    let world = World::new();
    let mut target = host_target(&world);
    target.grace = Duration::from_millis(300);
    let table = install(&world, &policy(EgressMode::Block, &["ok.test:443"], &[]), &target);
    let mut job = Agent::new(&world.host, None, 1000);
    for address in [OK4, OK6] {
        table
            .add_grants(&[grant(address, Protocol::Tcp, 443, Duration::from_millis(300))])
            .unwrap();
        let server = accept_one(&world, &at(address, 443));
        assert_eq!(job.ask(&format!("tcp {} x", at(address, 443))), "ok 0");
        let mut server = server.join().unwrap();
        assert_eq!(job.ask("close 0"), "ok");
        eventually("the end of the grant", || {
            table.list_grants().unwrap().is_empty().then_some(())
        });
        let before = counter(&table, "kernel_made");
        // Data for a socket that is gone: the kernel answers with a reset of its own.
        std::io::Write::write_all(&mut server, b"late").unwrap();
        eventually("a reset", || (counter(&table, "kernel_made") > before).then_some(()));
    }
    assert_eq!(counter(&table, "blocked"), 0);
}

#[test]
fn a_smaller_path_is_found_out() {
    let world = World::new();
    // A server behind a link that takes less: without the router's errors big segments would vanish.
    let far = Namespace::new();
    let holder = Holder::new(&far);
    world.outside.run(&format!(
        "ip link add far mtu 1300 type veth peer name eth0 mtu 1300 netns {}; ip link set far up; \
         ip addr add 192.0.2.1/24 dev far; ip -6 addr add 2001:db8:f::1/64 dev far nodad; \
         sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        holder.pid()
    ));
    far.run(
        "ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0; \
         ip -6 addr add 2001:db8:f::2/64 dev eth0 nodad; \
         ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8:f::1; \
         sysctl -qw net.ipv4.tcp_mtu_probing=0",
    );
    let policy = policy(EgressMode::Block, &["192.0.2.2:443", "[2001:db8:f::2]:443"], &[]);
    let _table = install(&world, &policy, &host_target(&world));
    let mut job = Agent::new(&world.host, None, 1000);
    for server in ["192.0.2.2", "2001:db8:f::2"] {
        let listener = far.enter(|| std::net::TcpListener::bind(at(server, 443)).unwrap());
        let received = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            stream.set_read_timeout(Some(crate::world::PATIENCE)).unwrap();
            std::io::Read::read_to_end(&mut std::io::Read::take(&mut stream, 200_000), &mut bytes)
                .map(|_| bytes.len())
        });
        // The server announces what its own link takes; a router in between must be asked to find out.
        world.host.run(&format!(
            "ip route replace {server} {} advmss 1440",
            if server.contains(':') { "via 2001:db8:77::2" } else { "via 10.77.0.2" }
        ));
        far.run(&format!(
            "ip route change default via {} advmss 1440",
            if server.contains(':') { "2001:db8:f::1" } else { "192.0.2.1" }
        ));
        assert!(
            job.ask(&format!("tcp {} {}", at(server, 443), "b".repeat(200_000))).starts_with("ok")
        );
        assert_eq!(received.join().unwrap().unwrap(), 200_000);
        let learned = world.host.run(&format!("ip route get {server}"));
        assert!(learned.contains("mtu 1300"), "{learned}");
    }
}
