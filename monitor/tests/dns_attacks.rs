//! What a hostile job tries on its resolver, as raw bytes.

#[cfg(test)]
#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod dns_support;

use dns_support::*;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType::{self, A};
use nix::sched::{CloneFlags, unshare};
use portcullis_common::policy::EgressMode;
use portcullis_monitor::dns::{
    BudgetKind, Budgets, NamePolicy, Resolver, ResolverConfig, ResolverError, TcpLimits, Timeouts,
    Transport,
};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const SECRET: &[u8] = b"ghs_S3cr3tCanary";

const ZONE: &[(&str, RecordType, &[&str])] = &[("ok.test", A, &["@ 120 A 203.0.113.10"])];

const OK: &str = "NOERROR ok.test.=203.0.113.10";

/// A header with RD and these counts, then `rest`.
fn raw(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let header = [0x4242, flags].into_iter().chain(counts).flat_map(u16::to_be_bytes);
    header.chain(rest.iter().copied()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_tcp_is_judged_like_udp() {
    let world = World::start(&["ok.test"], zone(ZONE)).await;
    let answers = world.exchange_tcp(&[query("s3cr3t.evil.test", A)], 1).await;
    assert!(words(&answers[0]).starts_with("NXDOMAIN (15"));
    assert_eq!(world.upstream.asked(), [""; 0]);
    let answers = world.exchange_tcp(&[query("ok.test", A)], 1).await;
    assert_eq!(words(&answers[0]), OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2_two_questions_are_a_format_error() {
    let world = World::start(&["ok.test"], zone(ZONE)).await;
    let two = [question(&[b"ok", b"test"], 1), question(&[SECRET, b"evil", b"test"], 1)].concat();
    assert_eq!(words(&world.exchange(raw(0x100, [2, 0, 0, 0], &two)).await), "FORMERR");
    // The second one hidden behind the count.
    assert_eq!(words(&world.exchange(raw(0x100, [1, 0, 0, 0], &two)).await), "FORMERR");
    world.observes("Blocked   FORMERR: not a well-formed query with one question").await;
    assert_eq!(world.upstream.asked(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_pipelined_queries_are_judged_alone() {
    let world = World::start(&["ok.test"], zone(ZONE)).await;
    let messages = [query("ok.test", A), query("s3cr3tcanary.evil.test", A), query("ok.test", A)];
    let answers = world.exchange_tcp(&messages, 3).await;
    let id = |bytes: &[u8]| [bytes[0], bytes[1]];
    let answer = |message: &[u8]| {
        words(answers.iter().find(|answer| id(answer) == id(message)).expect("each is answered"))
    };
    assert_eq!(answer(&messages[0]), OK);
    assert!(answer(&messages[1]).starts_with("NXDOMAIN"));
    assert_eq!(answer(&messages[2]), OK);
    assert_eq!(world.upstream.asked(), ["ok.test. A"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_answers_from_anybody_but_the_upstream_are_nothing() {
    let world = World::start(&["ok.test"], zone(ZONE)).await;
    let asked = Message::from_vec(&query("ok.test", A)).unwrap();
    let forged = answer(&asked, &["@ 3600 A 203.0.113.66"]).to_vec().unwrap();
    let stranger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    stranger.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    stranger.send_to(&forged, world.address()).unwrap();
    assert!(stranger.recv(&mut [0; 512]).is_err(), "a response is not answered");
    world.observes("Blocked   NONE: not a well-formed query").await;
    for source in world.resolver.upstream_source_ports() {
        stranger.send_to(&forged, (Ipv4Addr::LOCALHOST, source.port)).unwrap();
    }
    assert_eq!(world.ask("ok.test", A).await, OK);
    assert_eq!(world.kernel.open(), ["203.0.113.10:443-443"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_answers_that_do_not_match_are_nothing() {
    let world = World::start(
        &["ok.test"],
        Arc::new(|query, transport| {
            let right = answer(query, &["@ 60 A 203.0.113.10"]);
            if transport == Transport::Tcp {
                return vec![right];
            }
            let mut other_id = answer(query, &["@ 60 A 203.0.113.66"]);
            other_id.metadata.id ^= 1;
            let mut other_question = answer(query, &["@ 60 A 203.0.113.66"]);
            other_question.queries[0].set_query_type(RecordType::AAAA);
            vec![other_id, other_question, right]
        }),
    )
    .await;
    assert_eq!(world.ask("ok.test", A).await, OK);
    assert_eq!(world.kernel.open(), ["203.0.113.10:443-443"]);
    assert_eq!(world.upstream.seen.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_who_guesses_sends_us_to_tcp() {
    let world = World::start(
        &["ok.test"],
        Arc::new(|query, transport| {
            if transport == Transport::Tcp {
                return vec![answer(query, &["@ 60 A 203.0.113.10"])];
            }
            (1..=40)
                .map(|guess| {
                    let mut forged = answer(query, &["@ 60 A 203.0.113.66"]);
                    forged.metadata.id = query.metadata.id.wrapping_add(guess);
                    forged
                })
                .collect()
        }),
    )
    .await;
    assert_eq!(world.ask("ok.test", A).await, OK);
    let seen = world.upstream.seen.lock().unwrap();
    assert_eq!(seen.last().map(|(transport, ..)| *transport), Some(Transport::Tcp));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_garbage_leaves_the_resolver_up() {
    let world = World::start(&["ok.test"], zone(ZONE)).await;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let whole = query("ok.test", A);
    let mut bad: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
    bad.push(raw(0x100, [0, 0, 0, 0], &[]));
    bad.push(raw(0x100, [1, 0, 0, 0], &[0xc0, 12, 0, 1, 0, 1]));
    bad.push(raw(0x100, [1, 0, 0, 0], &[1, b'a', 0xc0, 12, 0, 1, 0, 1]));
    bad.push(raw(0x100, [0xffff; 4], &[0xff; 400]));
    bad.push(vec![0xaa; 65_000]);
    bad.push(vec![0; 65_000]);
    for message in &bad {
        socket.send_to(message, world.address()).unwrap();
    }
    for garbage in [vec![0xff; 65_537], vec![0; 65_537], framed(&[0; 3]), vec![0, 0]] {
        let mut stream = TcpStream::connect(world.address()).unwrap();
        // It may be closed while we write.
        let _ = stream.write_all(&garbage);
    }
    assert_eq!(words(&world.exchange(raw(0x100, [0, 0, 0, 0], &[])).await), "FORMERR");
    assert_eq!(world.ask("ok.test", A).await, OK);
    assert_eq!(world.upstream.asked(), ["ok.test. A"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_labels_that_are_no_host_names_are_refused() {
    let world = World::start(&["ok.test", "*.wild.test", "evil.ok.test"], zone(ZONE)).await;
    let labels: [&[u8]; 9] =
        [b"a.b", b"a\0", b"a&b", b"a#b", b"a b", b"\xff", b"*", b"evil.ok", b"x\x2e"];
    for label in labels {
        for zone in [&b"wild"[..], b"ok"] {
            let message = raw(0x100, [1, 0, 0, 0], &question(&[label, zone, b"test"], 1));
            assert_eq!(words(&world.exchange(message).await), "REFUSED", "{label:?}");
        }
    }
    // One label with dots inside, spelled like a name on the list.
    let spelled = raw(0x100, [1, 0, 0, 0], &question(&[b"ok.test"], 1));
    assert_eq!(words(&world.exchange(spelled).await), "REFUSED");
    world.observes("Blocked ok\\046test A REFUSED: not a host name").await;
    assert_eq!(world.upstream.asked(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_data_in_labels_is_bounded() {
    let world = World::start(&["*.wild.test"], zone(ZONE)).await;
    let mut refused = 0;
    for number in 0..100 {
        let name = format!("{number:03}{}.wild.test", "x".repeat(50));
        refused += usize::from(world.ask(&name, A).await.starts_with("REFUSED"));
    }
    let most = Budgets::default().long_names_per_wildcard;
    assert_eq!((world.upstream.asked().len(), refused), (most, 100 - most));
    let detections = world.observer.detections.lock().unwrap();
    assert_eq!(detections.len(), 1);
    assert_eq!(detections[0].budget, BudgetKind::LongLabels);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d8_nothing_but_the_name_goes_upstream() {
    let world = World::start(&["ok.test", "*.wild.test"], zone(ZONE)).await;
    // Cookie, padding, client subnet and an option of our own, each with the secret; DO bit; large Z field.
    let options: Vec<u8> = [10u16, 12, 8, 65_001]
        .into_iter()
        .flat_map(|code| {
            let length = u16::try_from(SECRET.len()).unwrap();
            [&code.to_be_bytes(), &length.to_be_bytes(), SECRET].concat()
        })
        .collect();
    let opt = [
        &[0, 0, 41, 0x10, 0, 0, 0, 0xff, 0xff][..],
        &u16::try_from(options.len()).unwrap().to_be_bytes(),
        &options,
    ]
    .concat();
    let message = raw(0x0170, [1, 0, 0, 1], &[question(&[b"ok", b"test"], 1), opt].concat());
    let answer = world.exchange(message).await;
    assert_eq!(words(&answer), OK);
    assert!(!answer.windows(SECRET.len()).any(|window| window == SECRET));
    assert_not_leaked(&world, SECRET);
    let seen = world.upstream.seen.lock().unwrap();
    assert_eq!(seen[0].2.len(), 12 + 9 + 4 + 11);
}

/// One bit for each letter would be data too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d8_the_case_of_letters_carries_nothing() {
    let world = World::start(&["*.wild.test"], zone(ZONE)).await;
    let mut forwarded = Vec::new();
    for number in 0..8 {
        let name = format!("ABCDEFGHIJKLMNOP{number}.wild.test");
        assert!(world.ask(&name, A).await.starts_with("NXDOMAIN"));
        let seen = world.upstream.seen.lock().unwrap();
        forwarded.push(seen.last().unwrap().2[13..29].to_vec());
    }
    assert!(forwarded.iter().any(|label| label != b"ABCDEFGHIJKLMNOP"));
    forwarded.dedup();
    assert!(forwarded.len() > 4, "letter case is ours, and random");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d13_a_port_that_is_taken_is_an_error_and_an_end_is_an_end() {
    let world = World::start(&["ok.test"], zone(ZONE)).await;
    let mut config = ResolverConfig::new(EgressMode::Block, "p", Vec::new());
    config.port = world.resolver.port();
    let second = Resolver::start(
        config,
        NamePolicy::default(),
        Arc::<Kernel>::default(),
        Arc::<Observer>::default(),
    );
    assert!(matches!(second, Err(ResolverError::Listen { .. })));
    let address = world.address();
    world.resolver.shutdown().await;
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.connect(address).unwrap();
    client.send(&query("ok.test", A)).unwrap();
    let refused = client.recv(&mut [0; 512]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(TcpStream::connect(address).is_err());
    // All sockets are closed, so the monitor can take the same port again for the same job.
    let mut config = ResolverConfig::new(EgressMode::Block, "p", Vec::new());
    config.port = address.port();
    let again = Resolver::start(
        config,
        NamePolicy::default(),
        Arc::<Kernel>::default(),
        Arc::<Observer>::default(),
    );
    assert_eq!(again.map(|resolver| resolver.port()).ok(), Some(address.port()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_reads_blocks_nobody_else() {
    let world = World::with(&["ok.test"], &[], zone(ZONE), |config| {
        config.tcp = TcpLimits { write: Duration::from_millis(300), ..TcpLimits::default() };
    })
    .await;
    let address = world.address();
    let flood = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let many = framed(&query("off.test", A)).repeat(1000);
        // Until the resolver closes the connection.
        for _ in 0..10_000 {
            if stream.write_all(&many).is_err() {
                return true;
            }
        }
        false
    });
    let other = world.exchange_tcp(&[query("ok.test", A)], 1).await;
    assert_eq!(words(&other[0]), OK);
    assert_eq!(world.ask("ok.test", A).await, OK);
    assert!(blocking(move || flood.join().unwrap()).await, "the connection is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded_and_idle_ones_are_closed() {
    let world = World::with(&["ok.test"], &[], zone(ZONE), |config| {
        config.tcp =
            TcpLimits { connections: 8, idle: Duration::from_millis(300), ..TcpLimits::default() };
    })
    .await;
    let address = world.address();
    blocking(move || {
        let mut streams: Vec<TcpStream> =
            (0..50).map(|_| TcpStream::connect(address).unwrap()).collect();
        // Half a message is as idle as none.
        let _ = streams[0].write_all(&[0, 20, 1]);
        for stream in &mut streams {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            match stream.read(&mut [0; 1]) {
                Ok(length) => assert_eq!(length, 0),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            }
        }
    })
    .await;
    let answers = world.exchange_tcp(&[query("ok.test", A)], 1).await;
    assert_eq!(words(&answers[0]), OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_clients_are_bounded_and_forgotten() {
    let silent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&silent);
    let world = World::with(
        &["*.wild.test"],
        &[],
        Arc::new(move |query, _| {
            let name = query.queries[0].name().to_lowercase().to_ascii();
            if name.starts_with("alive") {
                return vec![reply(query, ResponseCode::NXDomain)];
            }
            count.fetch_add(1, Ordering::Relaxed);
            Vec::new()
        }),
        |config| {
            config.budgets = Budgets { waiting_clients: 50, ..Budgets::default() };
            config.timeouts =
                Timeouts { first_try: Duration::from_millis(400), tries: 1, ..Timeouts::default() };
        },
    )
    .await;
    let address = world.address();
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let codes = blocking(move || {
        for number in 0..200 {
            client.send_to(&query(&format!("x{number}.wild.test"), A), address).unwrap();
        }
        let mut buffer = [0; 1500];
        let mut codes = Vec::new();
        for _ in 0..200 {
            let length = client.recv(&mut buffer).unwrap();
            codes.push(words(&buffer[..length]).split(' ').next().unwrap().to_owned());
        }
        codes
    })
    .await;
    let refused = codes.iter().filter(|code| *code == "REFUSED").count();
    let failed = codes.iter().filter(|code| *code == "SERVFAIL").count();
    assert_eq!((refused, failed), (150, 50));
    assert!(world.ask("alive.wild.test", A).await.starts_with("NXDOMAIN"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_answered_or_dropped_and_then_it_is_over() {
    let world = World::start(&["ok.test", "*.wild.test"], zone(ZONE)).await;
    let address = world.address();
    blocking(move || {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for number in 0..20_000 {
            let zone = if number % 2 == 0 { "wild.test" } else { "evil.test" };
            let _ = client.send_to(&query(&format!("x{number}.{zone}"), A), address);
        }
    })
    .await;
    // A datagram may find the socket's queue full; stub resolvers ask again, and so do we.
    let address = world.address();
    let answer = blocking(move || {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut buffer = [0; 512];
        (0..20).find_map(|_| {
            client.send_to(&query("ok.test", A), address).unwrap();
            client.recv(&mut buffer).ok().map(|length| words(&buffer[..length]))
        })
    })
    .await;
    assert_eq!(answer.as_deref(), Some(OK));
    assert!(world.upstream.asked().len() <= Budgets::default().names_per_wildcard + 1);
}

/// The resolver lives where the Worker lives, not where the monitor does; there IPv6 may be missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_are_in_the_network_namespace_of_the_worker() {
    let (started, namespace) = std::sync::mpsc::channel();
    let (questions, asked) = std::sync::mpsc::channel::<u16>();
    // A thread that lives in a namespace of its own, as a Worker does.
    let worker = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs CAP_SYS_ADMIN");
        // Without IPv6: the loopback interface gets no ::1.
        // This file is about the namespace of the thread that opens it.
        std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
        started.send(OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())).unwrap();
        let port = asked.recv().unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send_to(&query("localhost", A), (Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).unwrap();
        words(&buffer[..length])
    });
    let namespace = blocking(move || namespace.recv().unwrap()).await;
    let mut config =
        ResolverConfig::new(EgressMode::Block, "p", vec!["192.0.2.1:53".parse().unwrap()]);
    config.network_namespace = Some(namespace);
    let resolver = Resolver::start(
        config,
        NamePolicy::default(),
        Arc::<Kernel>::default(),
        Arc::<Observer>::default(),
    )
    .unwrap();
    let skipped: Vec<String> =
        resolver.skipped_listeners().iter().map(|skipped| skipped.address.to_string()).collect();
    assert_eq!(skipped, ["::1"]);
    assert_eq!(resolver.listen_addresses().len(), 1);
    questions.send(resolver.port()).unwrap();
    let answer = blocking(move || worker.join().unwrap()).await;
    assert_eq!(answer, "NOERROR localhost.=127.0.0.1");
    resolver.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wildcard_has_a_budget() {
    let world = World::with(&["*.wild.test", "ok.test"], &[], zone(ZONE), |config| {
        config.budgets = Budgets { names_per_wildcard: 5, ..Budgets::default() };
    })
    .await;
    for number in 0..20 {
        let answer = world.ask(&format!("x{number}.wild.test"), A).await;
        let expected = if number < 5 { "NXDOMAIN" } else { "REFUSED" };
        assert!(answer.starts_with(expected), "{number}: {answer}");
    }
    assert_eq!(world.upstream.asked().len(), 5);
    assert!(world.ask("x3.wild.test", A).await.starts_with("NXDOMAIN"));
    assert!(world.ask("ok.test", A).await.starts_with("NOERROR"));
    let detections = world.observer.detections.lock().unwrap();
    assert_eq!(detections.len(), 1);
    assert_eq!(detections[0].budget, BudgetKind::Names);
    assert_eq!(detections[0].below.as_deref(), Some("*.wild.test"));
    assert_eq!(detections[0].name, "x5.wild.test");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_reports_a_budget_and_goes_on() {
    let world = World::with(&["ok.test"], &[], zone(ZONE), |config| {
        config.mode = EgressMode::Audit;
        config.budgets = Budgets { names_per_wildcard: 3, ..Budgets::default() };
    })
    .await;
    for number in 0..6 {
        assert!(world.ask(&format!("x{number}.evil.test"), A).await.starts_with("NXDOMAIN"));
    }
    assert_eq!(world.upstream.asked().len(), 6);
    assert_eq!(world.observer.detections.lock().unwrap().len(), 1);
}
