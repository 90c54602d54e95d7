//! DNS redirection.

use crate::fixture::{KERNEL, host_target, job_target, policy};
use crate::output::{counter, install};
use crate::world::{Agent, Capture, Cgroup, EVIL4, EVIL6, World, at, eventually};
use portcullis_common::policy::EgressMode;
use portcullis_monitor::egress::target::{EnforcementTarget, KernelSupport, ResolverPorts};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::thread;

/// A stand-in of the resolver: answers everything with `our-own-resolver`. Returns its port.
pub(crate) fn resolver(world: &World, address: &str) -> u16 {
    resolver_that_says(world, address, b"our-own-resolver")
}

fn resolver_that_says(world: &World, address: &str, answer: &'static [u8]) -> u16 {
    let address: SocketAddr = address.parse().unwrap();
    world.host.enter(|| {
        let listener = TcpListener::bind(address).unwrap();
        let bound = listener.local_addr().unwrap();
        let socket = UdpSocket::bind(bound).unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 512]);
                let _ = stream.write_all(answer);
            }
        });
        thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 512]) {
                let _ = socket.send_to(answer, from);
            }
        });
        bound.port()
    })
}

fn resolvers(world: &World) -> ResolverPorts {
    ResolverPorts { v4: Some(resolver(world, "127.0.0.1:0")), v6: Some(resolver(world, "[::1]:0")) }
}

fn asks_ours(agent: &mut Agent, server: &str) -> bool {
    let answer = agent.ask(&format!("ask {server} query"));
    let by_udp = answer == format!("{server} our-own-resolver");
    let stream = agent.ask(&format!("tcp {server} query"));
    let Some(stream) = stream.strip_prefix("ok ") else {
        assert!(!by_udp, "UDP answered and TCP said {stream}");
        return false;
    };
    let by_tcp = agent.ask(&format!("hear {stream}")) == "our-own-resolver";
    assert_eq!(by_udp, by_tcp, "{server}: {answer}");
    by_udp
}

#[test]
fn every_query_of_a_host_goes_to_the_resolver() {
    let world = World::new();
    world.serve(53);
    let sshd = Cgroup::new();
    let mut target = host_target(&world);
    target.resolver = resolvers(&world);
    target.infrastructure = vec![sshd.id()];
    let table = install(&world, &policy(EgressMode::Block, &[], &[]), &target);
    let mut job = Agent::new(&world.host, None, 1000);
    let mut infrastructure = Agent::new(&world.host, Some(&sshd), 0);
    for server in [EVIL4, EVIL6, "127.0.0.53", "10.77.0.1"] {
        assert!(asks_ours(&mut job, &at(server, 53)), "{server}");
    }
    for server in [EVIL4, EVIL6] {
        assert!(!asks_ours(&mut infrastructure, &at(server, 53)));
        assert!(infrastructure.ask(&format!("ask {} query", at(server, 53))).contains("query"));
    }
    assert_eq!(counter(&table, "blocked"), 0);
}

#[test]
fn flows_from_before_the_rules_or_of_an_earlier_job_go_to_the_resolver_too() {
    let world = World::new();
    world.serve(53);
    // Something must make connection tracking look.
    world.host.run("nft 'add table inet t; add chain inet t o { type filter hook output priority 0; }; add rule inet t o ct state new counter'");
    let mut job = Agent::new(&world.host, None, 1001);
    // Always from the same port, as some programs ask.
    let mut asks = |server: &str, any: &str| {
        job.ask(&format!("ask {} query {}", at(server, 53), at(any, 40_053)))
    };
    let ways = [(EVIL4, "0.0.0.0"), (EVIL6, "::")];
    for (server, any) in ways {
        assert!(asks(server, any).contains("query"), "the server itself answers");
    }
    for answer in ["first-job", "second-job"] {
        let port = |address| Some(resolver_that_says(&world, address, answer.as_bytes()));
        let resolver = ResolverPorts { v4: port("127.0.0.1:0"), v6: port("[::1]:0") };
        let table = install(
            &world,
            &policy(EgressMode::Block, &[], &[]),
            &EnforcementTarget { resolver, ..host_target(&world) },
        );
        for (server, any) in ways {
            assert_eq!(asks(server, any), format!("{} {answer}", at(server, 53)));
        }
        assert_eq!(counter(&table, "blocked"), 0);
        table.remove().unwrap();
    }
    // Without zones they would not, as long as nobody forgets the flows.
    let kernel = KernelSupport { conntrack_zones: false, ..KERNEL };
    for (server, any) in ways {
        assert!(asks(server, any).contains("query"), "the server itself answers again");
    }
    let target = EnforcementTarget { resolver: resolvers(&world), kernel, ..host_target(&world) };
    let table = install(&world, &policy(EgressMode::Block, &[], &[]), &target);
    for (server, any) in ways {
        assert!(asks(server, any).starts_with("error"));
    }
    assert_eq!(counter(&table, "blocked"), 2);
}

/// The error addresses the server that was asked, and would quote the answer with the name in it.
#[test]
fn what_the_kernel_says_of_answers_to_closed_ports_does_not_leave() {
    let world = World::new();
    world.serve(53);
    let seen = Capture::new(&world.outside, "eth0");
    let cgroup = Cgroup::new();
    let mut job = Agent::new(&world.host, Some(&cgroup), 1001);
    for (target, is_dropped) in [(host_target(&world), true), (job_target(&world, &cgroup), false)]
    {
        let target = EnforcementTarget { resolver: resolvers(&world), ..target };
        let table = install(&world, &policy(EgressMode::Block, &[], &[]), &target);
        for _ in 0..50 {
            for server in [EVIL4, EVIL6] {
                assert_eq!(job.ask(&format!("udp {} query", at(server, 53))), "ok");
            }
        }
        // In scope `job` the flow has no zone, and the error goes to the resolver.
        if is_dropped {
            eventually("errors", || (counter(&table, "kernel_made") > 0).then_some(()));
        }
        assert!(asks_ours(&mut job, &at(EVIL4, 53)));
        assert_eq!(counter(&table, "blocked"), 0);
        table.remove().unwrap();
    }
    // Without a gate the server itself answers.
    assert!(job.ask(&format!("ask {} query", at(EVIL4, 53))).contains("query"));
    seen.wait_for("query");
    assert_eq!(seen.count("our-own-resolver"), 0);
}

#[test]
fn a_job_has_its_own_resolver_and_reaches_no_other() {
    let world = World::new();
    world.serve(53);
    let (first, second) = (Cgroup::new(), Cgroup::new());
    let mut tables = Vec::new();
    let mut ports = Vec::new();
    for cgroup in [&first, &second] {
        let mut target = job_target(&world, cgroup);
        // The other one's group, which may be younger.
        target.other_jobs = vec![second.id()];
        target.resolver = resolvers(&world);
        ports.push(target.resolver);
        tables.push(install(&world, &policy(EgressMode::Block, &[], &[]), &target));
    }
    let mut one = Agent::new(&world.host, Some(&first), 1001);
    let mut two = Agent::new(&world.host, Some(&second), 1002);
    let mut other = Agent::new(&world.host, None, 1003);
    for server in [EVIL4, EVIL6] {
        assert!(asks_ours(&mut one, &at(server, 53)));
        assert!(asks_ours(&mut two, &at(server, 53)));
        assert!(!asks_ours(&mut other, &at(server, 53)));
    }
    for (loopback, port) in [("127.0.0.1", ports[0].v4), ("::1", ports[0].v6)] {
        let resolver = at(loopback, port.unwrap());
        assert!(asks_ours(&mut one, &resolver));
        assert!(!asks_ours(&mut two, &resolver));
        assert!(!asks_ours(&mut other, &resolver));
    }
    assert!(counter(&tables[0], "foreign_resolver") >= 4);
}
