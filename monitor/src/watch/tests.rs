//! Flows, sockets, packets and processes in network namespaces of this test's own.

use super::attribution::{AttributionSource, ProcessSensor, ProcfsSensor};
use super::flow::{Flow, TCP, UDP};
use super::nflog::{LoggedPacket, NflogError, NflogGroup};
use super::process::ProcessInspector;
use super::sockets::{SocketDiagnostics, SocketRecord};
use super::worker_exit::WorkerExit;
use crate::caller::testing::{FakeRunner, eventually, scratch_network_namespace};
use crate::caller::{ProcFs, Worker, lineage};
use crate::cgroup::{Cgroup, Hierarchy};
use crate::sys::namespace::in_network_namespace;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

mod connections;
mod short_lived;

/// Runs `work` in the namespace.
fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> T {
    in_network_namespace(namespace.as_fd(), work).unwrap()
}

/// Adds a chain at the output hook.
fn add_output_rules(namespace: &File, rules: &[&str]) {
    let text = format!(
        "table inet t {{\nchain o {{\ntype filter hook output priority 0\n{}\n}}\n}}\n",
        rules.join("\n")
    );
    let status = within(namespace, || Command::new("nft").arg(&text).status().unwrap());
    assert!(status.success(), "{text}");
}

fn inode(socket: impl AsFd) -> u32 {
    u32::try_from(nix::sys::stat::fstat(socket.as_fd()).unwrap().st_ino).unwrap()
}

/// A cgroup of this test's own.
struct Scratch(Cgroup);

impl Scratch {
    fn new(name: &str) -> Self {
        let root = Hierarchy::find().unwrap().root().unwrap();
        Self(root.create_child(&format!("test-watch-{name}-{}", std::process::id())).unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        assert!(self.0.wait_empty(Duration::from_secs(20)).unwrap());
        self.0.remove().unwrap();
    }
}

#[test]
fn sockets_are_found_by_their_tuple() {
    let namespace = scratch_network_namespace();
    let diagnostics = SocketDiagnostics::open(namespace.as_fd()).unwrap();
    within(&namespace, || {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let server = listener.local_addr().unwrap();
            let client = TcpStream::connect(server).unwrap();
            let flow = Flow::new(TCP, client.local_addr().unwrap(), server);
            let found = diagnostics.find(&flow).unwrap().unwrap();
            assert_eq!(found.inode, inode(&client));
            assert_eq!(found.flow(), flow);
            assert_eq!((found.uid, found.state), (0, 1));
            let own = Hierarchy::find().unwrap().group_of(std::process::id()).unwrap();
            assert_eq!(found.cgroup, Some(own.identity().id));
            let nobody = SocketAddr::new(server.ip(), 9);
            assert_eq!(diagnostics.find(&Flow::new(TCP, server, nobody)).unwrap(), None);
            assert_eq!(diagnostics.find(&Flow::new(TCP, nobody, server)).unwrap(), None);
        }
        for (local, remote) in [("127.0.0.1:0", "127.0.0.1:7"), ("[::1]:0", "[::1]:7")] {
            let remote: SocketAddr = remote.parse().unwrap();
            let connected = UdpSocket::bind(local).unwrap();
            connected.connect(remote).unwrap();
            let flow = Flow::new(UDP, connected.local_addr().unwrap(), remote);
            assert_eq!(diagnostics.find(&flow).unwrap().unwrap().inode, inode(&connected));
        }
    });
}

#[test]
fn unconnected_and_mapped_sockets_are_found() {
    let namespace = scratch_network_namespace();
    let diagnostics = SocketDiagnostics::open(namespace.as_fd()).unwrap();
    within(&namespace, || {
        for local in ["0.0.0.0:0", "127.0.0.1:0", "[::]:0"] {
            let socket = UdpSocket::bind(local).unwrap();
            let source =
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), socket.local_addr().unwrap().port());
            let flow = Flow::new(UDP, source, "127.0.0.9:53".parse().unwrap());
            let found = diagnostics.find(&flow).unwrap().unwrap();
            assert_eq!(found.inode, inode(&socket), "{local}");
            assert!(!found.is_connected());
        }
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{port}").parse().unwrap();
        let client = TcpStream::connect(mapped).unwrap();
        let flow = Flow::new(TCP, client.local_addr().unwrap(), mapped);
        assert_eq!(flow.destination, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
        let found = diagnostics.find(&flow).unwrap().unwrap();
        assert_eq!((found.inode, found.flow()), (inode(&client), flow));
        assert!(diagnostics.destroy(&found).unwrap(), "a mapped socket can be cut, too");
    });
}

#[test]
fn raw_sockets_are_found_by_protocol() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let namespace = scratch_network_namespace();
    let diagnostics = SocketDiagnostics::open(namespace.as_fd()).unwrap();
    within(&namespace, || {
        let raw =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)
                .unwrap();
        let icmp = |protocol| {
            Flow::new(protocol, "127.0.0.1:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap())
        };
        assert_eq!(diagnostics.find(&icmp(1)).unwrap().unwrap().inode, inode(&raw));
        assert_eq!(diagnostics.find(&icmp(47)).unwrap(), None);
    });
}

#[test]
fn forged_segments_are_the_raw_sockets_that_sends_them() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let namespace = scratch_network_namespace();
    let diagnostics = SocketDiagnostics::open(namespace.as_fd()).unwrap();
    within(&namespace, || {
        let server = "127.0.0.1:9".parse().unwrap();
        let forged = |protocol| Flow::new(protocol, "192.0.2.77:40001".parse().unwrap(), server);
        assert_eq!(diagnostics.find(&forged(UDP)).unwrap(), None);
        let raw =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
                .unwrap();
        for protocol in [UDP, TCP] {
            let found = diagnostics.find(&forged(protocol)).unwrap().unwrap();
            assert_eq!(found.inode, inode(&raw));
            assert!(!diagnostics.refuse(&forged(protocol)).unwrap(), "it is no attempt");
        }
        // A socket of the flow's own comes first.
        let real = UdpSocket::bind("127.0.0.1:0").unwrap();
        let flow = Flow::new(UDP, real.local_addr().unwrap(), server);
        assert_eq!(diagnostics.find(&flow).unwrap().unwrap().inode, inode(&real));
    });
}

#[test]
fn flows_are_listed_and_cut() {
    let namespace = scratch_network_namespace();
    let diagnostics = SocketDiagnostics::open(namespace.as_fd()).unwrap();
    within(&namespace, || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(server).unwrap();
        let (_accepted, _) = listener.accept().unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect(server).unwrap();
        let flows: Vec<Flow> =
            diagnostics.connected().unwrap().iter().map(SocketRecord::flow).collect();
        assert_eq!(flows.len(), 3, "{flows:?}");
        assert!(flows.contains(&Flow::new(UDP, datagrams.local_addr().unwrap(), server)));

        let own = diagnostics.connected_where(|socket| socket.inode == inode(&client)).unwrap();
        assert_eq!(own.len(), 1);
        assert!(diagnostics.destroy(&own[0]).unwrap());
        assert!(!diagnostics.destroy(&own[0]).unwrap(), "it is gone");
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);

        let udp = diagnostics.connected_where(|socket| socket.protocol == UDP).unwrap();
        assert!(diagnostics.destroy(&udp[0]).unwrap());
        assert!(diagnostics.connected_where(|socket| socket.protocol == UDP).unwrap().is_empty());
    });
}

#[test]
fn only_a_connection_attempt_is_refused() {
    let namespace = scratch_network_namespace();
    let diagnostics = SocketDiagnostics::open(namespace.as_fd()).unwrap();
    add_output_rules(&namespace, &["tcp dport 81 drop"]);
    within(&namespace, || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let client = TcpStream::connect(server).unwrap();
        let flow = Flow::new(TCP, client.local_addr().unwrap(), server);
        assert!(!diagnostics.refuse(&flow).unwrap(), "an established connection stays");
        assert!(client.peer_addr().is_ok());
    });
    thread::scope(|scope| {
        let attempt =
            scope.spawn(|| within(&namespace, || TcpStream::connect("127.0.0.1:81").map(drop)));
        let attempt_flow = eventually("the attempt", || {
            let attempts = diagnostics.connected_where(SocketRecord::is_connecting).unwrap();
            attempts.first().map(SocketRecord::flow)
        });
        assert!(diagnostics.refuse(&attempt_flow).unwrap());
        let error = attempt.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    });
}

#[test]
fn logged_packets_arrive_with_what_the_rule_and_the_socket_say() {
    let namespace = scratch_network_namespace();
    let first = NflogGroup::bind(namespace.as_fd(), 100..=101).unwrap();
    let second = NflogGroup::bind(namespace.as_fd(), 100..=101).unwrap();
    assert_eq!((first.group(), second.group()), (100, 101), "a group in use is passed over");
    let third = NflogGroup::bind(namespace.as_fd(), 100..=101);
    assert!(matches!(third, Err(NflogError::NoFreeGroup { first: 100, last: 101 })));
    drop(second);

    add_output_rules(
        &namespace,
        &[
            "udp dport 77 log group 100 prefix \"blocked 7 \" drop",
            "meta l4proto { icmp, ipv6-icmp } log group 100",
        ],
    );
    let (reader, mut packets) = first.start_channel(16).unwrap();
    within(&namespace, || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..2 {
            assert!(socket.send_to(b"secret", "127.0.0.1:77").is_err(), "dropped with EPERM");
        }
        let source = socket.local_addr().unwrap();
        let packet = packets.blocking_recv().unwrap();
        assert_eq!(packet.prefix, "blocked 7 ");
        assert_eq!(packet.flow(), Flow::new(UDP, source, "127.0.0.1:77".parse().unwrap()));
        assert_eq!((packet.uid, packet.gid, packet.headers.length), (Some(0), Some(0), 34));
        assert_eq!(packet.output_interface, Some(1));
        assert_eq!(packet.sequence, Some(0));
        assert_eq!(packets.blocking_recv().unwrap().sequence, Some(1));

        let socket = UdpSocket::bind("[::1]:0").unwrap();
        assert!(socket.send_to(b"secret", "[::1]:77").is_err());
        let packet = packets.blocking_recv().unwrap();
        assert_eq!(packet.flow().destination, "[::1]:77".parse().unwrap());
    });
    assert_eq!(reader.losses().counts(), super::nflog::NflogLossCounts::default());
    assert!(reader.is_running());
    drop(reader);
    assert!(packets.blocking_recv().is_none());
    let again = NflogGroup::bind(namespace.as_fd(), 100..=100).unwrap();
    assert_eq!(again.group(), 100, "the group is free again");
}

#[test]
fn packets_of_a_device_s_egress_hook_are_read_behind_their_ethernet_header() {
    let namespace = scratch_network_namespace();
    let group = NflogGroup::bind(namespace.as_fd(), 6..=6).unwrap();
    let rules = "table netdev t {\nchain e {\ntype filter hook egress device lo priority 0\nip protocol udp log group 6 prefix \"raw\" drop\n}\n}\n";
    let status = within(&namespace, || Command::new("nft").arg(rules).status().unwrap());
    assert!(status.success(), "{rules}");
    let (reader, mut packets) = group.start_channel(4).unwrap();
    let socket = within(&namespace, || UdpSocket::bind("127.0.0.1:0").unwrap());
    let _ = socket.send_to(b"secret", "127.0.0.1:77");
    let packet = packets.blocking_recv().unwrap();
    let flow = Flow::new(UDP, socket.local_addr().unwrap(), "127.0.0.1:77".parse().unwrap());
    assert_eq!((packet.flow(), packet.prefix.as_str()), (flow, "raw"));
    assert_eq!(reader.losses().counts().unreadable, 0);
}

#[test]
fn a_burst_is_read_whole_and_in_order_and_holds_up_no_end() {
    const SENT: u32 = 5_000;
    let namespace = scratch_network_namespace();
    let group = NflogGroup::bind(namespace.as_fd(), 8..=8).unwrap().in_bursts();
    add_output_rules(&namespace, &["udp dport 77 log group 8 drop"]);
    let (report, reported) = mpsc::channel();
    let reader = group
        .start(move |packet: LoggedPacket| {
            let _ = report.send(packet.sequence.unwrap());
        })
        .unwrap();
    let socket = within(&namespace, || UdpSocket::bind("127.0.0.1:0").unwrap());
    for _ in 0..SENT {
        let _ = socket.send_to(b"x", "127.0.0.1:77");
    }
    let numbers: Vec<u32> = reported.iter().take(SENT as usize).collect();
    assert_eq!(numbers, (0..SENT).collect::<Vec<_>>());
    // One that comes alone is read as well.
    let _ = socket.send_to(b"x", "127.0.0.1:77");
    assert_eq!(reported.recv(), Ok(SENT));
    assert_eq!(reader.losses().counts(), super::nflog::NflogLossCounts::default());

    // The end does not wait for a flood's.
    let is_over = Arc::new(AtomicBool::new(false));
    let flood = thread::spawn({
        let is_over = Arc::clone(&is_over);
        move || {
            while !is_over.load(Ordering::Relaxed) {
                let _ = socket.send_to(b"x", "127.0.0.1:77");
            }
        }
    });
    assert!(reported.recv().is_ok());
    drop(reader);
    assert!(!flood.is_finished());
    is_over.store(true, Ordering::Relaxed);
    flood.join().unwrap();
}

#[test]
fn losses_are_counted() {
    const SENT: u32 = 40_000;
    let namespace = scratch_network_namespace();
    let group = NflogGroup::bind(namespace.as_fd(), 5..=5).unwrap();
    add_output_rules(&namespace, &["udp dport 77 log group 5 drop"]);
    let (hold, held) = mpsc::channel::<()>();
    let (report, reported) = mpsc::channel();
    let reader = group
        .start(move |packet: LoggedPacket| {
            // Nothing is read until everything is sent.
            let _ = held.recv();
            let _ = report.send(packet.sequence.unwrap());
        })
        .unwrap();
    let socket = within(&namespace, || UdpSocket::bind("127.0.0.1:0").unwrap());
    let send = |count| {
        for _ in 0..count {
            let _ = socket.send_to(b"x", "127.0.0.1:77");
        }
    };
    send(SENT);
    drop(hold);
    // One more packet shows the gap, once there is room again.
    let (mut sent, mut received) = (u64::from(SENT), 0);
    let counts = eventually("every packet is accounted for", || {
        send(1);
        sent += 1;
        received += u64::try_from(reported.try_iter().count()).unwrap();
        let counts = reader.losses().counts();
        (counts.missing > 0 && counts.missing + received == sent).then_some(counts)
    });
    assert!(counts.overruns > 0, "{counts:?}");
}

#[test]
fn a_snapshot_has_argv_ancestors_and_step() {
    let mut runner = FakeRunner::start();
    let inspector = ProcessInspector::new(runner.worker, 64);
    let child = runner.start_child(
        "env GITHUB_ACTION=__run_2 bash -c 'env GITHUB_ACTION=forged sleep 1000 & wait' arg0",
    );
    let sleep = eventually("sleep", || {
        use crate::caller::ProcessTable;
        ProcFs.pids().into_iter().filter_map(|pid| ProcFs.process(pid)).find(|entry| {
            entry.parent == child.pid
                && entry
                    .executable_name()
                    .is_some_and(|name| name.to_string_lossy().contains("sleep"))
        })
    });
    let snapshot = inspector.inspect(sleep.key).unwrap();
    assert_eq!(snapshot.pid, Some(sleep.key.pid));
    assert_eq!(snapshot.start_time, Some(sleep.key.start_time));
    assert_eq!(snapshot.argv, ["sleep", "1000"]);
    assert_eq!(snapshot.uid, Some(0));
    assert_eq!(snapshot.cwd.as_deref(), std::env::current_dir().unwrap().to_str());
    assert_eq!(snapshot.step.as_deref(), Some("__run_2"), "the value of the Worker's direct child");
    let ancestors: Vec<u32> = snapshot.ancestors.iter().map(|ancestor| ancestor.pid).collect();
    assert_eq!(ancestors, [child.pid, runner.worker.pid]);
    assert!(snapshot.ancestors[1].exe.ends_with("/Runner.Worker"));

    assert!(Arc::ptr_eq(&snapshot, &inspector.inspect(sleep.key).unwrap()), "cached");
    assert!(crate::caller::kill_left_overs(vec![sleep.clone()])[0].result.is_ok());
    eventually("its end", || (!ProcFs.is_alive(sleep.key)).then_some(()));
    assert!(inspector.inspect(sleep.key).is_some(), "remembered after its death");
    let stranger = crate::caller::ProcessKey { start_time: 1, ..sleep.key };
    assert!(inspector.inspect(stranger).is_none());
}

#[test]
fn an_exec_makes_a_new_snapshot_and_long_command_lines_are_cut() {
    let mut runner = FakeRunner::start();
    let inspector = ProcessInspector::new(runner.worker, 64);
    let fifo = runner.directory().join("fifo");
    runner.ask(&format!("mkfifo {0}; echo made", fifo.display()));
    let child = runner.start_child(&format!(
        "bash -c 'read < {}; exec sleep 1000 $(printf %05000d 1) $(printf %05000d 2)'",
        fifo.display()
    ));
    let before = eventually("bash", || {
        inspector.inspect(child).filter(|process| {
            process.argv.first().is_some_and(|name| name == "bash") && process.argv.len() > 1
        })
    });
    std::fs::write(&fifo, "go\n").unwrap();
    let after = eventually("the exec", || {
        inspector.inspect(child).filter(|process| process.exe != before.exe)
    });
    assert_eq!(after.start_time, before.start_time);
    assert!(after.exe.as_ref().unwrap().ends_with("sleep"), "{:?}", after.exe);
    assert!(after.argv.iter().map(String::len).sum::<usize>() <= 4096);
}

#[test]
fn a_snapshot_is_of_one_program() {
    let mut runner = FakeRunner::start();
    // One process that becomes the other program again and again.
    let script = runner.directory().join("turns");
    let turns = "case $1 in bash) exec dash \"$0\" dash ;; *) exec bash \"$0\" bash ;; esac\n";
    std::fs::write(&script, turns).unwrap();
    let child = runner.start_child(&format!("exec bash {} bash", script.display()));
    let mut seen = BTreeMap::<String, u32>::new();
    while seen.len() < 2 || seen.values().any(|times| *times < 500) {
        // One that remembers nothing looks at everything each time.
        let process = ProcessInspector::new(runner.worker, 1).inspect(child).unwrap();
        let argv: Vec<&str> = process.argv.iter().map(String::as_str).collect();
        // What it was before its first exec is none of the two.
        let ["bash" | "dash", path, name] = argv[..] else { continue };
        let exe = process.exe.as_deref().and_then(|exe| exe.rsplit('/').next());
        assert_eq!((exe, path), (Some(name), script.to_str().unwrap()), "{process:?}");
        *seen.entry(name.to_owned()).or_default() += 1;
    }
}

#[tokio::test]
async fn the_worker_s_exit_is_awaited() {
    let runner = FakeRunner::start();
    let worker = Worker::reopen(runner.worker).unwrap();
    let exit = WorkerExit::watch(&worker).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(20), exit.wait()).await.is_err());
    worker.kill().unwrap();
    for _ in 0..2 {
        tokio::time::timeout(Duration::from_secs(20), exit.wait()).await.unwrap().unwrap();
    }
}

#[test]
fn later_packets_of_a_client_port_get_the_same_process() {
    let namespace = scratch_network_namespace();
    let mut runner = within(&namespace, FakeRunner::start);
    let candidate = lineage(&ProcFs, runner.worker).unwrap().worker().unwrap().clone();
    let sensor = ProcfsSensor::new(&Worker::open(&candidate).unwrap(), None).unwrap();
    let sink = within(&namespace, || UdpSocket::bind("127.0.0.1:0").unwrap());
    let server = sink.local_addr().unwrap();
    let client = runner.start_child(&format!(
        "bash -c 'exec 3>/dev/udp/127.0.0.1/{}; echo x >&3; exec sleep 1000'",
        server.port()
    ));
    let (_, source) = sink.recv_from(&mut [0; 9]).unwrap();
    let flow = Flow::new(UDP, source, server);
    let live = sensor.attribute(&flow);
    assert_eq!(live.source, AttributionSource::Socket);
    assert_eq!(live.process.as_ref().unwrap().pid, Some(client.pid));
    assert!(crate::caller::kill(client).unwrap());
    eventually("its end", || (!ProcFs.is_alive(client)).then_some(()));
    // A DNS query of the same socket that is looked at after its end, to whatever server.
    let other = Flow { destination: "127.0.0.1:53".parse().unwrap(), ..flow };
    let later = sensor.attribute(&other);
    assert_eq!(later.source, AttributionSource::Remembered);
    assert_eq!(later.process.unwrap().pid, Some(client.pid));
    let unknown = sensor.attribute(&Flow { source: "127.0.0.1:9".parse().unwrap(), ..flow });
    assert_eq!(unknown.source, AttributionSource::Unknown);
    assert!(unknown.to_process().is_none());
}
