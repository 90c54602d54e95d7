//! What arrives: replies are not a way out.

use crate::fixture::{host_target, job_target, policy};
use crate::output::{counter, install};
use crate::world::{Agent, Capture, Cgroup, EVIL4, EVIL6, HOST4, HOST6, World, at};
use portcullis_common::policy::EgressMode;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

const WAIT: Duration = Duration::from_millis(500);

/// Connects from outside and reads what comes.
fn fetch(world: &World, address: &str) -> Option<String> {
    world.outside.enter(|| {
        let address: SocketAddr = address.parse().unwrap();
        let stream = TcpStream::connect_timeout(&address, WAIT).ok()?;
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let mut bytes = [0; 64];
        let length = std::io::Read::read(&mut &stream, &mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    })
}

fn port_of(bound: &str) -> u16 {
    bound.parse::<SocketAddr>().unwrap().port()
}

#[test]
fn nobody_outside_opens_a_connection_to_the_job_of_a_host() {
    let world = World::new();
    let seen = Capture::new(&world.outside, "eth0");
    let logged = Capture::new(&world.host, "nflog:7");
    let sshd = Cgroup::new();
    let mut target = host_target(&world);
    target.infrastructure = vec![sshd.id()];
    let table = install(&world, &policy(EgressMode::Block, &[], &[]), &target);
    let mut job = Agent::new(&world.host, None, 1000);
    let mut ssh = Agent::new(&world.host, Some(&sshd), 0);
    for (index, (host, any)) in [(HOST4, "0.0.0.0:0"), (HOST6, "[::]:0")].into_iter().enumerate() {
        let port = port_of(&job.ask(&format!("listen {any}")));
        assert_eq!(fetch(&world, &at(host, port)), None);
        assert!(job.ask(&format!("accept {index} CANARY")).starts_with("error"));
        // The operator's session: the handshake, data both ways, the end.
        let port = port_of(&ssh.ask(&format!("listen {any}")));
        let client = world
            .outside
            .enter(|| TcpStream::connect_timeout(&at(host, port).parse().unwrap(), WAIT).unwrap());
        assert!(ssh.ask(&format!("accept {index} welcome")).starts_with("ok"));
        client.set_read_timeout(Some(WAIT)).unwrap();
        let mut bytes = [0; 7];
        std::io::Read::read_exact(&mut &client, &mut bytes).unwrap();
        std::io::Write::write_all(&mut &client, b"type").unwrap();
        assert_eq!(ssh.ask(&format!("hear {index}")), "type");
        // A closed port is silent and not the job's business.
        assert_eq!(fetch(&world, &at(host, 9)), None);
    }
    logged.wait_for(&format!("{} inbound input", table.name()));
    assert_eq!(seen.count("CANARY"), 0);
    assert!(counter(&table, "inbound") >= 2 && counter(&table, "noise") >= 2);
}

#[test]
fn nobody_outside_opens_a_connection_to_one_of_several_jobs() {
    let world = World::new();
    let seen = Capture::new(&world.outside, "eth0");
    let cgroup = Cgroup::new();
    let mut target = job_target(&world, &cgroup);
    target.runner_uid = Some(1005);
    let table = install(&world, &policy(EgressMode::Block, &[], &[]), &target);
    let mut job = Agent::new(&world.host, Some(&cgroup), 1000);
    let mut by_user = Agent::new(&world.host, None, 1005);
    let mut other = Agent::new(&world.host, None, 1006);
    for (index, (host, any)) in [(HOST4, "0.0.0.0:0"), (HOST6, "[::]:0")].into_iter().enumerate() {
        for agent in [&mut job, &mut by_user] {
            let port = port_of(&agent.ask(&format!("listen {any}")));
            assert_eq!(fetch(&world, &at(host, port)), None);
            agent.ask(&format!("accept {index} CANARY"));
        }
        let port = port_of(&other.ask(&format!("listen {any}")));
        let client = world
            .outside
            .enter(|| TcpStream::connect_timeout(&at(host, port).parse().unwrap(), WAIT).unwrap());
        assert!(other.ask(&format!("accept {index} welcome")).starts_with("ok"));
        drop(client);
    }
    assert_eq!(seen.count("CANARY"), 0);
    assert!(
        counter(&table, "inbound") >= 4,
        "the job's by cgroup at once, by user with the answer"
    );
}

#[test]
fn audit_mode_records_what_comes_in() {
    let world = World::new();
    let logged = Capture::new(&world.host, "nflog:7");
    let table = install(&world, &policy(EgressMode::Audit, &[], &[]), &host_target(&world));
    let mut job = Agent::new(&world.host, None, 1000);
    for (index, (host, any)) in [(HOST4, "0.0.0.0:0"), (HOST6, "[::]:0")].into_iter().enumerate() {
        let port = port_of(&job.ask(&format!("listen {any}")));
        let client = world
            .outside
            .enter(|| TcpStream::connect_timeout(&at(host, port).parse().unwrap(), WAIT).unwrap());
        assert!(job.ask(&format!("accept {index} welcome")).starts_with("ok"));
        drop(client);
    }
    logged.wait_for(&format!("{} would-block-inbound input", table.name()));
    assert_eq!(counter(&table, "would_block_inbound"), 2);
    assert_eq!(counter(&table, "inbound"), 0);
}

#[test]
fn a_datagram_from_outside_opens_no_way_out() {
    let world = World::new();
    let seen = Capture::new(&world.outside, "eth0");
    let _table = install(&world, &policy(EgressMode::Block, &[], &[]), &host_target(&world));
    for (evil, host) in [(EVIL4, HOST4), (EVIL6, HOST6)] {
        let inside = world.host.enter(|| UdpSocket::bind(at(host, 0)).unwrap());
        let to = inside.local_addr().unwrap();
        let outside = world.outside.enter(|| UdpSocket::bind(at(evil, 4444)).unwrap());
        outside.send_to(b"knock", to).unwrap();
        inside.set_read_timeout(Some(WAIT)).unwrap();
        assert!(inside.recv_from(&mut [0; 16]).is_err());
        assert!(inside.send_to(b"CANARY", outside.local_addr().unwrap()).is_err());
    }
    assert_eq!(seen.count("CANARY"), 0);
}
