//! The resolver as clients, upstreams and the kernel see it.

#[cfg(test)]
#[expect(dead_code, reason = "shared with other tests, which use more of it")]
mod dns_support;

use dns_support::*;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType::{self, A, AAAA, CNAME, HTTPS, MX, PTR, SRV, TXT};
use portcullis_common::endpoint::DnsName;
use portcullis_common::policy::EgressMode;
use portcullis_monitor::dns::{Timeouts, Transport};
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

const ZONE: &[(&str, RecordType, &[&str])] = &[
    ("ok.test", A, &["@ 120 A 203.0.113.10", "@ 30 A 203.0.113.11"]),
    ("ok.test", AAAA, &["@ 120 AAAA 2001:db8::10"]),
    ("ok.test", TXT, &["@ 120 TXT hello"]),
    ("ok.test", MX, &["@ 120 MX 10 mail.ok.test."]),
    ("a.wild.test", A, &["@ 60 A 203.0.113.20"]),
    ("svc.wild.test", SRV, &["@ 60 SRV 1 2 443 a.wild.test."]),
    (
        "www.ok.test",
        A,
        &[
            "@ 60 CNAME edge.cdn.test.",
            "edge.cdn.test. 20 CNAME e1.cdn.test.",
            "e1.cdn.test. 600 A 203.0.113.30",
        ],
    ),
    ("half.test", A, &["@ 60 CNAME e1.cdn.test."]),
    ("e1.cdn.test", A, &["@ 600 A 203.0.113.30"]),
    ("to-denied.test", A, &["@ 60 CNAME denied.test.", "denied.test. 60 A 203.0.113.66"]),
    ("half-denied.test", A, &["@ 60 CNAME denied.test."]),
    ("circle.test", A, &["@ 60 CNAME b.circle.test.", "b.circle.test. 60 CNAME circle.test."]),
    (
        "mixed.test",
        A,
        &["@ 60 A 203.0.113.40", "@ 60 A 127.0.0.1", "@ 60 A 169.254.169.254", "@ 60 A 10.1.2.3"],
    ),
    ("inner.test", A, &["@ 60 A 192.168.7.7"]),
    ("mapped.test", AAAA, &["@ 60 AAAA ::ffff:203.0.113.1", "@ 60 AAAA fd00::1"]),
    ("off.test", A, &["@ 60 A 203.0.113.66"]),
    ("foreign.test", A, &["bystander.test. 60 A 203.0.113.99", "@ 60 A 203.0.113.50"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_name_is_answered_and_open_before_the_answer() {
    let world = World::start(&["ok.test"], zone(ZONE)).await;
    assert_eq!(
        world.ask("ok.test", A).await,
        "NOERROR ok.test.=203.0.113.10 ok.test.=203.0.113.11"
    );
    assert_eq!(world.kernel.open(), ["203.0.113.10:443-443", "203.0.113.11:443-443"]);
    assert_eq!(world.kernel.grants.lock().unwrap()[0].lifetime, Duration::from_mins(6));
    world.observes("Allowed ok.test A NOERROR: ok.test").await;
    assert_eq!(world.ask("OK.Test", AAAA).await, "NOERROR ok.test.=2001:db8::10");
    assert_eq!(world.ask("ok.test", TXT).await, "NOERROR ok.test.=hello");
    assert_eq!(world.ask("ok.test", MX).await, "NOERROR ok.test.=10 mail.ok.test.");
    assert_eq!(world.ask("reg.ok.test", A).await.split(' ').next(), Some("NXDOMAIN"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_off_the_list_is_never_asked_for() {
    let world = World::start(&["ok.test"], zone(ZONE)).await;
    let blocked = "NXDOMAIN (15: policy node-build: no endpoint allows it)";
    assert_eq!(world.ask("off.test", A).await, blocked);
    assert_eq!(world.ask("ok.test.off.test", TXT).await, blocked);
    world.observes("Blocked ok.test.off.test TXT NXDOMAIN: no endpoint allows it").await;
    assert_eq!(world.upstream.asked(), [""; 0]);
    assert_eq!(world.kernel.open(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_answers_and_says_what_would_be_blocked() {
    let script = zone(ZONE);
    let world = World::with(&["ok.test", "inner.test"], &["denied.test"], script, |config| {
        config.mode = EgressMode::Audit;
    })
    .await;
    assert_eq!(world.ask("off.test", A).await, "NOERROR off.test.=203.0.113.66");
    // Not waited for: a call that follows the answer at once has its name.
    assert_eq!(*world.observer.answers.lock().unwrap(), ["off.test"]);
    world.observes("WouldBlock off.test A NOERROR: no endpoint allows it").await;
    assert_eq!(world.kernel.open(), [""; 0]);
    assert_eq!(
        world.ask("denied.test", A).await,
        "NXDOMAIN (15: policy node-build: denied by denied.test)"
    );
    assert_eq!(
        world.ask("inner.test", A).await.split(" (").next(),
        Some("NOERROR inner.test.=192.168.7.7")
    );
    world
        .observes("WouldBlock inner.test A NOERROR: private-use address 192.168.7.7 is not granted")
        .await;
    assert_eq!(world.upstream.asked(), ["off.test. A", "inner.test. A"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aliases_are_followed_and_recorded() {
    let world = World::with(
        &["www.ok.test", "half.test", "to-denied.test", "half-denied.test", "circle.test"],
        &["denied.test"],
        zone(ZONE),
        |_| {},
    )
    .await;
    assert_eq!(
        world.ask("www.ok.test", A).await,
        "NOERROR www.ok.test.=edge.cdn.test. edge.cdn.test.=e1.cdn.test. e1.cdn.test.=203.0.113.30"
    );
    {
        let grants = world.kernel.grants.lock().unwrap();
        assert_eq!(grants[0].name.as_str(), "www.ok.test");
        let chain: Vec<&str> = grants[0].cname_chain.iter().map(DnsName::as_str).collect();
        assert_eq!(chain, ["edge.cdn.test", "e1.cdn.test"]);
    }
    // An upstream that stops in the middle is asked for the rest.
    assert_eq!(
        world.ask("half.test", A).await,
        "NOERROR half.test.=e1.cdn.test. e1.cdn.test.=203.0.113.30"
    );
    let before = world.kernel.open().len();
    for name in ["to-denied.test", "half-denied.test"] {
        assert_eq!(
            world.ask(name, A).await,
            "NXDOMAIN (15: policy node-build: denied by denied.test)",
            "{name}"
        );
    }
    assert!(world.ask("circle.test", A).await.starts_with("SERVFAIL"));
    assert_eq!(world.kernel.open().len(), before);
    assert!(!world.upstream.asked().contains(&"denied.test. A".to_owned()));
    // The names in between are not open themselves.
    assert!(world.ask("e1.cdn.test", A).await.starts_with("NXDOMAIN"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d9_addresses_of_special_use_are_not_granted() {
    let allowed = ["mixed.test", "inner.test", "mapped.test", "10.0.0.0/8"];
    let world = World::start(&allowed, zone(ZONE)).await;
    assert_eq!(
        world.ask("mixed.test", A).await,
        "NOERROR mixed.test.=203.0.113.40 mixed.test.=10.1.2.3 (15: policy node-build: loopback address \
         127.0.0.1 is not granted; cloud-metadata address 169.254.169.254 is not granted)"
    );
    assert_eq!(world.kernel.open(), ["203.0.113.40:443-443", "10.1.2.3:443-443"]);
    world.observes("Blocked mixed.test A NOERROR: loopback address 127.0.0.1 is not granted").await;
    assert!(world.ask("inner.test", A).await.starts_with("NOERROR (15: "));
    assert!(world.ask("mapped.test", AAAA).await.starts_with("NOERROR (15: "));
    assert_eq!(world.kernel.open().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_other_names_are_left_out() {
    let world = World::start(&["foreign.test"], zone(ZONE)).await;
    assert_eq!(world.ask("foreign.test", A).await, "NOERROR foreign.test.=203.0.113.50");
    assert_eq!(world.kernel.open(), ["203.0.113.50:443-443"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_that_carry_data_stay_here() {
    let world = World::start(&["ok.test", "*.wild.test"], zone(ZONE)).await;
    assert_eq!(world.ask("a.wild.test", A).await, "NOERROR a.wild.test.=203.0.113.20");
    assert!(world.ask("svc.wild.test", SRV).await.starts_with("NOERROR svc.wild.test.="));
    let refused = "REFUSED (15: policy node-build: queries of this type are not forwarded)";
    for kind in [TXT, CNAME, RecordType::NULL, RecordType::ANY, RecordType::Unknown(4711)] {
        assert_eq!(world.ask("secret.wild.test", kind).await, refused, "{kind}");
    }
    assert_eq!(world.ask("ok.test", RecordType::NULL).await, refused);
    assert_eq!(world.ask("ok.test", RecordType::AXFR).await, refused);
    // Browsers and curl ask for these first and go on with A and AAAA.
    assert_eq!(world.ask("ok.test", HTTPS).await, "NOERROR");
    assert_eq!(world.upstream.asked(), ["a.wild.test. A", "svc.wild.test. SRV"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_names_are_answered_here() {
    let world = World::start(&["ok.test"], zone(ZONE)).await;
    assert_eq!(world.ask("localhost", A).await, "NOERROR localhost.=127.0.0.1");
    assert_eq!(world.ask("a.localhost", AAAA).await, "NOERROR a.localhost.=::1");
    for name in ["runner-1", "printer.local", "_dns.resolver.arpa", "use-application-dns.net"] {
        assert_eq!(world.ask(name, A).await, "NXDOMAIN", "{name}");
    }
    world.observes("Allowed use-application-dns.net A NXDOMAIN: answered locally").await;
    assert_eq!(world.ask("10.113.0.203.in-addr.arpa", PTR).await, "NXDOMAIN");
    world.ask("ok.test", A).await;
    world.ask("ok.test", AAAA).await;
    assert_eq!(
        world.ask("10.113.0.203.in-addr.arpa", PTR).await,
        "NOERROR 10.113.0.203.in-addr.arpa.=ok.test."
    );
    let nibbles = "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
    assert_eq!(world.ask(nibbles, PTR).await, format!("NOERROR {nibbles}.=ok.test."));
    assert_eq!(world.upstream.asked(), ["ok.test. A", "ok.test. AAAA"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn search_domains_make_no_blocked_calls() {
    let world = World::with(&["ok.test"], &[], zone(ZONE), |config| {
        config.search_domains = vec!["Corp.Internal.".to_owned()];
    })
    .await;
    assert_eq!(world.ask("ok.test.corp.internal", A).await, "NXDOMAIN");
    world.observes("Allowed ok.test.corp.internal").await;
    assert!(world.ask("off.test.corp.internal", A).await.starts_with("NXDOMAIN (15"));
    assert_eq!(world.upstream.asked(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_questions_are_asked_once() {
    let world = Arc::new(World::start(&["ok.test"], zone(ZONE)).await);
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.ask("ok.test", A).await })
        })
        .collect();
    for client in clients {
        assert!(client.await.unwrap().starts_with("NOERROR ok.test."));
    }
    assert_eq!(world.upstream.asked().len(), 1);
    assert_eq!(*world.kernel.calls.lock().unwrap(), 1);
    // Absence is remembered too.
    for _ in 0..3 {
        assert_eq!(world.ask("ok.test", SRV).await, "NOERROR");
    }
    assert_eq!(world.upstream.asked().len(), 2);
    // Observed after the answer has left, so it may take a moment.
    let cached = || {
        let observations = world.observer.observations.lock().unwrap();
        observations.iter().filter(|observation| observation.cached).count()
    };
    let deadline = Instant::now() + PATIENCE;
    while cached() < 2 {
        assert!(Instant::now() < deadline, "answers from the cache are observed too");
        tokio::task::yield_now().await;
    }
}

/// A client may ask in the moment in which the answer to another one is remembered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_while_a_client_asks_is_not_asked_for_again() {
    const ROUNDS: usize = 1000;
    const CLIENTS: usize = 6;
    let script: Arc<Script> = Arc::new(|query, _| vec![answer(query, &["@ 60 A 203.0.113.20"])]);
    let world = World::with(&["*.wild.test"], &[], script, |config| {
        config.budgets.upstream_query_burst = u32::try_from(2 * ROUNDS).unwrap();
        config.budgets.names_per_wildcard = ROUNDS;
    })
    .await;
    let address = world.address();
    blocking(move || {
        for round in 0..ROUNDS {
            let question = query(&format!("n{round}.wild.test"), A);
            let together = Barrier::new(CLIENTS);
            std::thread::scope(|scope| {
                for client in 0..CLIENTS {
                    let (question, together) = (&question, &together);
                    scope.spawn(move || {
                        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                        socket.set_read_timeout(Some(PATIENCE)).unwrap();
                        together.wait();
                        // Apart by up to as long as an answer takes.
                        for _ in 0..(client * round) % 40 {
                            std::thread::yield_now();
                        }
                        socket.send_to(question, address).unwrap();
                        let mut buffer = vec![0; 65536];
                        let length = socket.recv(&mut buffer).expect("an answer");
                        assert!(words(&buffer[..length]).starts_with("NOERROR"));
                    });
                }
            });
        }
    })
    .await;
    assert_eq!(world.upstream.asked().len(), ROUNDS);
}

/// The answer to the first one is not remembered, so that the same question, asked while the first answer leaves, has to be
/// asked for again; the end of the first must not take its client away.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_question_that_comes_while_the_answer_to_its_like_leaves_is_answered() {
    let zone = zone(ZONE);
    let (first_is_over, is_over) = std::sync::mpsc::channel();
    let is_over = Mutex::new(is_over);
    let asked = AtomicUsize::new(0);
    let script: Arc<Script> = Arc::new(move |query, transport| {
        if asked.fetch_add(1, Ordering::Relaxed) == 1 {
            let over = || is_over.lock().unwrap().recv_timeout(PATIENCE);
            tokio::task::block_in_place(over).expect("the first question ends");
        }
        zone(query, transport)
    });
    let world = World::start(&["ok.test"], script).await;
    world.kernel.refuses.store(true, Ordering::Relaxed);
    let (address, upstream) = (world.address(), world.upstream.clone());
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let asks_again = client.try_clone().unwrap();
    world.observer.meanwhile.lock().unwrap().0 = Some(Box::new(move || {
        asks_again.send_to(&query("ok.test", A), address).unwrap();
        // Another thread of the runtime has to take this one's place at the sockets.
        tokio::task::block_in_place(|| {
            let deadline = Instant::now() + PATIENCE;
            while upstream.seen.lock().unwrap().len() < 2 {
                assert!(Instant::now() < deadline, "the same question is asked again");
                std::thread::yield_now();
            }
        });
        first_is_over.send(()).unwrap();
    }));
    let failed = "SERVFAIL (0: the address could not be opened";
    assert!(world.ask("ok.test", A).await.starts_with(failed));
    let second = blocking(move || {
        let mut buffer = vec![0; 65536];
        let length = client.recv(&mut buffer).expect("an answer to the second question");
        words(&buffer[..length])
    })
    .await;
    assert!(second.starts_with(failed), "{second}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kernel_does_not_open_is_not_answered() {
    let world = World::start(&["ok.test"], zone(ZONE)).await;
    world.kernel.refuses.store(true, Ordering::Relaxed);
    let failed = world.ask("ok.test", A).await;
    assert!(failed.starts_with("SERVFAIL (0: the address could not be opened"), "{failed}");
    world.observes("Blocked ok.test A SERVFAIL").await;
    // Not remembered: as soon as there is room it works.
    world.kernel.refuses.store(false, Ordering::Relaxed);
    assert!(world.ask("ok.test", A).await.starts_with("NOERROR"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_upstream_is_reported_and_another_one_asked() {
    // Connected to somebody else it hears nobody here, and the kernel says so; held, so that nobody gets its port meanwhile.
    let deaf = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    deaf.connect((Ipv4Addr::LOCALHOST, 9)).unwrap();
    let dead = deaf.local_addr().unwrap();
    let world = World::with(&["ok.test"], &[], zone(ZONE), |config| {
        config.upstreams.insert(0, dead);
    })
    .await;
    assert!(world.ask("ok.test", A).await.starts_with("NOERROR"));
    {
        let changes = world.observer.changes.lock().unwrap();
        assert_eq!((changes.len(), changes[0].upstream, changes[0].reachable), (1, dead, false));
    }
    let alone = World::with(&["ok.test"], &[], zone(ZONE), |config| {
        config.upstreams = vec![dead];
        config.timeouts = Timeouts { first_try: Duration::from_millis(50), ..Timeouts::default() };
    })
    .await;
    assert!(alone.ask("ok.test", A).await.starts_with("SERVFAIL (23: no upstream answered"));
    let none = World::with(&["ok.test"], &[], zone(ZONE), |config| config.upstreams.clear()).await;
    assert!(none.ask("ok.test", A).await.contains("no upstream is known"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_answer_is_asked_for_over_tcp_from_a_reserved_port() {
    let records: Vec<String> = (0..80).map(|number| format!("@ 60 A 203.0.113.{number}")).collect();
    let world = World::start(
        &["big.test"],
        Arc::new(move |query, transport| match transport {
            Transport::Udp => {
                let mut cut = reply(query, ResponseCode::NoError);
                cut.metadata.truncation = true;
                vec![cut]
            }
            Transport::Tcp => {
                let records: Vec<&str> = records.iter().map(String::as_str).collect();
                vec![answer(query, &records)]
            }
        }),
    )
    .await;
    // Too long for a client without EDNS, and bounded for the others.
    assert_eq!(words(&world.exchange(plain_query("big.test", A)).await), "NOERROR TC");
    let answers = world.exchange_tcp(&[query("big.test", A)], 1).await;
    assert_eq!(Message::from_vec(&answers[0]).unwrap().answers.len(), 64);
    assert_eq!(world.kernel.open().len(), 64);
    let sources: Vec<_> = world
        .resolver
        .upstream_source_ports()
        .iter()
        .map(|source| (source.transport, source.port, source.upstream))
        .collect();
    let seen = world.upstream.seen.lock().unwrap();
    assert_eq!(seen.len(), 2);
    for (transport, from, _) in seen.iter() {
        assert!(sources.contains(&(*transport, from.port(), world.upstream.address)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reserved_port_is_used_again_at_once() {
    let world = World::start(
        &["*.wild.test"],
        Arc::new(|query, transport| {
            let mut reply = answer(query, &["@ 60 A 203.0.113.1"]);
            reply.metadata.truncation = transport == Transport::Udp;
            vec![reply]
        }),
    )
    .await;
    for number in 0..20 {
        let answer = world.ask(&format!("n{number}.wild.test"), A).await;
        assert!(answer.starts_with("NOERROR"), "{number}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_changes_letters_is_asked_over_tcp() {
    let world = World::start(
        &["lettered.test"],
        Arc::new(|query, _| {
            let mut reply = answer(query, &["lettered.test. 60 A 203.0.113.1"]);
            let lower = reply.queries[0].name().to_lowercase();
            reply.queries[0].set_name(lower);
            vec![reply]
        }),
    )
    .await;
    assert!(world.ask("lettered.test", A).await.starts_with("NOERROR lettered.test.=203.0.113.1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_without_edns_is_asked_without() {
    let world = World::start(
        &["ok.test", "www.ok.test"],
        Arc::new(|query, transport| {
            if query.edns.is_some() {
                return vec![reply(query, ResponseCode::FormErr)];
            }
            zone(ZONE)(query, transport)
        }),
    )
    .await;
    assert!(world.ask("ok.test", A).await.starts_with("NOERROR"));
    assert!(world.ask("www.ok.test", A).await.starts_with("NOERROR"));
    assert_eq!(world.upstream.asked().len(), 3);
}

/// What other people's clients see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dig_understands_us() {
    let world = World::start(&["ok.test"], zone(ZONE)).await;
    let port = world.resolver.port().to_string();
    let dig = |arguments: &'static [&'static str]| {
        let port = port.clone();
        blocking(move || {
            let output = std::process::Command::new("dig")
                .args(["@127.0.0.1", "-p", &port, "+tries=1", "+time=5"])
                .args(arguments)
                .output()
                .expect("dig is installed (package bind9-dnsutils)");
            String::from_utf8(output.stdout).unwrap()
        })
    };
    let short = dig(&["ok.test", "+short"]).await;
    assert_eq!(short, "203.0.113.10\n203.0.113.11\n");
    let tcp = dig(&["+tcp", "ok.test", "AAAA", "+short"]).await;
    assert_eq!(tcp, "2001:db8::10\n");
    let blocked = dig(&["off.test"]).await;
    assert!(blocked.contains("status: NXDOMAIN"), "{blocked}");
    assert!(
        blocked.contains("EDE: 15 (Blocked): (policy node-build: no endpoint allows it)"),
        "{blocked}"
    );
    assert!(!blocked.contains("WARNING") && !blocked.contains("malformed"), "{blocked}");
    let negative = dig(&["ok.test", "SRV"]).await;
    assert!(negative.contains("status: NOERROR") && negative.contains("SOA"), "{negative}");
    let plain = dig(&["+noedns", "off.test"]).await;
    assert!(plain.contains("status: NXDOMAIN") && !plain.contains("EDNS"), "{plain}");
    if world.resolver.skipped_listeners().is_empty() {
        let port = port.clone();
        let output = blocking(move || {
            std::process::Command::new("dig")
                .args(["@::1", "-p", &port, "ok.test", "+short"])
                .output()
                .unwrap()
        })
        .await;
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "203.0.113.10\n203.0.113.11\n");
    }
}
