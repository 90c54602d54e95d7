//! What is installed is what was meant, and stays so.

use crate::fixture::{grant, grant_range, host_target, job_target, policy, table};
use crate::output::{counter, install};
use crate::world::{Agent, Cgroup, EVIL4, Namespace, OK4, OK6, World, at, eventually};
use portcullis_common::endpoint::{PortRange, Protocol};
use portcullis_common::event::FeatureState;
use portcullis_common::policy::EgressMode;
use portcullis_monitor::egress::grant::GrantError;
use portcullis_monitor::egress::plan::rule_set;
use portcullis_monitor::egress::target::{
    EnforcementTarget, KernelSupport, OwnerMode, ResolverPorts,
};
use portcullis_monitor::nftables::{
    ActionKind, ChangeWatcher, DnsFlows, InstallError, InstalledTable, Notice, ObjectKind, probe,
};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_mins(1);

const MANY_KINDS: [&str; 5] = [
    "ok.test:443",
    "udp://10.0.0.0/8:1000-2000",
    "icmp://192.0.2.1",
    "[2001:db8::7]:8443",
    "x.test:*",
];

#[test]
fn the_kernel_holds_what_nft_lists_and_other_tables_stay_as_they_are() {
    let world = World::new();
    world.host.run(
        "nft 'add table inet theirs; add chain inet theirs o { type filter hook output priority 0; }; \
         add rule inet theirs o counter; add table ip nat; add set ip nat s { type ipv4_addr; }'",
    );
    let stateless = "nft -s list ruleset";
    let before = world.host.run(stateless);
    let policy = policy(EgressMode::Block, &MANY_KINDS, &["203.0.113.0/24:*", "203.0.113.7:443"]);
    let resolver = ResolverPorts { v4: Some(5353), v6: Some(5353) };
    let target = EnforcementTarget { resolver, ..host_target(&world) };
    let rules = rule_set(&policy, &target).unwrap();
    let table = InstalledTable::install(world.host.fd(), &rules).unwrap();
    for (family, value) in ["inet", "netdev"].into_iter().zip(&rules.tables) {
        let listed = world.host.run(&format!("nft -j list table {family} {}", rules.name));
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let objects = listed["nftables"].as_array().unwrap();
        let names = |kind: &str| -> Vec<String> {
            let named = objects.iter().filter_map(|object| object.get(kind));
            let mut names: Vec<String> =
                named.map(|object| object["name"].as_str().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        assert_eq!(names("chain"), sorted(value.chains.iter().map(|c| c.name.clone()).collect()));
        assert_eq!(names("set"), sorted(value.sets.iter().map(|s| s.name.clone()).collect()));
        let hooked: Vec<&serde_json::Value> = objects
            .iter()
            .filter_map(|object| object.get("chain"))
            .filter(|chain| chain.get("hook").is_some())
            .collect();
        assert_eq!(hooked.len(), value.chains.iter().filter(|chain| chain.hook.is_some()).count());
        for chain in hooked {
            let is_zone = chain["name"].as_str().unwrap().starts_with("zone_");
            let expected = if is_zone {
                -300
            } else if chain["type"] == "nat" {
                -105
            } else {
                100
            };
            assert_eq!(chain["prio"], expected, "{chain}");
        }
        for chain in &value.chains {
            let listed = objects
                .iter()
                .filter_map(|object| object.get("rule"))
                .filter(|rule| rule["chain"] == chain.name.as_str());
            assert_eq!(listed.count(), chain.rules.len(), "chain {}", chain.name);
        }
        for set in &value.sets {
            let mut found = objects.iter().filter_map(|object| object.get("set"));
            let found = found.find(|found| found["name"] == set.name.as_str()).unwrap();
            let elements = found.get("elem").map_or(0, |list| list.as_array().unwrap().len());
            assert_eq!(elements, set.elements.len(), "set {}", set.name);
        }
    }
    let zones = world.host.run(&format!("nft list chain inet {} zone_host", rules.name));
    assert!(zones.contains("ct original zone set 5353"), "{zones}");
    table.verify().unwrap();
    table.remove().unwrap();
    table.remove().unwrap();
    assert_eq!(world.host.run(stateless), before);
}

#[test]
fn another_process_neither_flushes_nor_deletes_nor_changes_an_owned_table() {
    let world = World::new();
    let policy = policy(EgressMode::Block, &MANY_KINDS, &[]);
    for owner in [OwnerMode::Owner, OwnerMode::OwnerPersist] {
        let target = EnforcementTarget { owner, table: table(), ..host_target(&world) };
        let installed = install(&world, &policy, &target);
        let name = installed.name();
        world.host.run("nft flush ruleset");
        installed.verify().unwrap();
        for line in [
            format!("nft delete table inet {name}"),
            format!("nft flush table inet {name}"),
            format!("nft add rule inet {name} output accept"),
            format!("nft insert rule inet {name} judge_output accept"),
            format!("nft add element inet {name} granted4 '{{ {EVIL4} . tcp . 443 }}'"),
            format!("nft delete table netdev {name}"),
        ] {
            assert!(!world.host.try_run(&line).status.success(), "{line}");
        }
        installed.verify().unwrap();
        installed.remove().unwrap();
    }
}

#[test]
fn tampering_with_a_table_without_an_owner_is_found_and_seen() {
    let world = World::new();
    let policy = policy(EgressMode::Block, &MANY_KINDS, &["203.0.113.0/24:*"]);
    for tampering in [
        "insert rule inet NAME judge_output accept",
        "add rule inet NAME output accept",
        "flush chain inet NAME blocked_output",
        "add chain inet NAME more",
        "add chain inet NAME output '{ policy drop; }'",
        "add set inet NAME more '{ type ipv4_addr; }'",
        "add element inet NAME denied_ranges4 '{ 10.9.9.9 . tcp . 1 }'",
        "delete element inet NAME transports '{ udp }'",
        "flush set inet NAME denied_ranges4",
        "add counter inet NAME more",
        "flush chain netdev NAME frames",
        "delete table netdev NAME",
        "flush ruleset",
    ] {
        let target =
            EnforcementTarget { owner: OwnerMode::None, table: table(), ..host_target(&world) };
        let mut watcher = ChangeWatcher::open(world.host.fd()).unwrap();
        let installed = install(&world, &policy, &target);
        installed.add_grants(&[grant(EVIL4, Protocol::Tcp, 443, MINUTE)]).unwrap();
        assert_eq!(watcher.take().unwrap(), [], "our own changes are no news");
        let command = tampering.replace("NAME", installed.name().as_str());
        world.host.run(&format!("nft {command}"));
        let error = installed.verify().unwrap_err();
        assert!(matches!(error, InstallError::Mismatch(_)), "{tampering}: {error}");
        let notices = watcher.take().unwrap();
        let Some(Notice::Changed(change)) = notices.first() else {
            panic!("{tampering}: {notices:?}")
        };
        assert_eq!(change.process.as_deref(), Some("nft"), "{tampering}");
        assert!(change.pid.is_some());
        assert!(change.actions.iter().any(|action| action.table == installed.name().as_str()));
        installed.remove().unwrap();
        drop(installed);
        assert_eq!(
            watcher.take().unwrap(),
            [],
            "{tampering}: the end of our own table, told when its socket is closed already"
        );
    }
}

#[test]
fn the_watcher_tells_what_was_done_and_that_it_lost_something() {
    let world = World::new();
    let mut watcher = ChangeWatcher::open(world.host.fd()).unwrap();
    world.host.run(
        "nft 'add table ip x; add chain ip x y; add rule ip x y accept'; nft delete table ip x",
    );
    let mut notices = Vec::new();
    eventually("two transactions", || {
        notices.extend(watcher.take().unwrap());
        (notices.len() == 2).then_some(())
    });
    let [Notice::Changed(added), Notice::Changed(deleted)] = notices.as_slice() else {
        panic!("{notices:?}")
    };
    let added: Vec<_> = added.actions.iter().map(|action| (action.kind, action.object)).collect();
    assert_eq!(
        added,
        [
            (ActionKind::Added, ObjectKind::Table),
            (ActionKind::Added, ObjectKind::Chain),
            (ActionKind::Added, ObjectKind::Rule)
        ]
    );
    assert!(deleted.actions.iter().all(|action| action.kind == ActionKind::Deleted));
}

#[test]
fn tables_of_a_dead_monitor_are_adopted_with_their_grants_and_counters() {
    let world = World::new();
    world.serve(443);
    let mut job = Agent::new(&world.host, None, 1000);
    let first = policy(EgressMode::Block, &["ok.test:443", "udp://ok.test:1-100"], &[]);
    for owner in [OwnerMode::OwnerPersist, OwnerMode::None] {
        let target = EnforcementTarget { owner, table: table(), ..host_target(&world) };
        let rules = rule_set(&first, &target).unwrap();
        let installed = InstalledTable::install(world.host.fd(), &rules).unwrap();
        let ports = PortRange::new(1, 100).unwrap();
        installed
            .add_grants(&[
                grant(OK4, Protocol::Tcp, 443, MINUTE),
                grant_range(OK4, Protocol::Udp, ports, MINUTE),
            ])
            .unwrap();
        assert!(job.ask(&format!("tcp {} granted", at(OK4, 443))).starts_with("ok"));
        let (grants, allowed) = (installed.list_grants().unwrap(), counter(&installed, "allowed"));
        assert_eq!((grants.len(), allowed), (2, 1));
        drop(installed);
        // Nobody is at home, and the gate is down.
        assert!(job.ask(&format!("tcp {} CANARY", at(EVIL4, 443))).contains("TimedOut"));
        let rules = rule_set(
            &policy(EgressMode::Block, &["ok.test:443", "udp://ok.test:1-100", "192.0.2.9:1"], &[]),
            &target,
        )
        .unwrap();
        let adopted = InstalledTable::adopt(world.host.fd(), &rules.name, &rules).unwrap();
        adopted.verify().unwrap();
        let now = adopted.list_grants().unwrap();
        assert_eq!(now.len(), 2);
        assert!(now.iter().any(|grant| grant.used && grant.remaining > MINUTE / 2));
        assert_eq!(counter(&adopted, "allowed"), allowed);
        assert!(job.ask(&format!("tcp {} granted", at(OK4, 443))).starts_with("ok"));
        assert!(job.ask(&format!("tcp {} CANARY", at(EVIL4, 443))).contains("TimedOut"));
        // Replaced while it is ours.
        adopted.replace(&rule_set(&first, &target).unwrap()).unwrap();
        assert_eq!(adopted.list_grants().unwrap().len(), 2);
        adopted.remove().unwrap();
        assert!(job.ask(&format!("tcp {} free", at(EVIL4, 443))).starts_with("ok"));
    }
}

#[test]
fn what_we_opened_is_open_again_after_tampering_and_what_others_opened_is_not() {
    let world = World::new();
    let policy = policy(EgressMode::Block, &["ok.test:443"], &[]);
    for tampering in [
        "flush ruleset",
        "delete table inet NAME",
        "flush set inet NAME granted4",
        "add element inet NAME granted4 '{ 203.0.113.66 . tcp . 443 timeout 1h }'",
        "add element inet NAME active4 '{ 203.0.113.66 . tcp . 443 timeout 1h }'",
    ] {
        let target =
            EnforcementTarget { owner: OwnerMode::None, table: table(), ..host_target(&world) };
        let rules = rule_set(&policy, &target).unwrap();
        let installed = InstalledTable::install(world.host.fd(), &rules).unwrap();
        let short = Duration::from_millis(200);
        installed.add_grants(&[grant(OK4, Protocol::Tcp, 443, MINUTE)]).unwrap();
        installed.add_grants(&[grant("198.51.100.77", Protocol::Tcp, 443, short)]).unwrap();
        eventually("the end of the short grant", || {
            (installed.list_grants().unwrap().len() == 1).then_some(())
        });
        let command = tampering.replace("NAME", installed.name().as_str());
        world.host.run(&format!("nft {command}"));
        for _ in 0..2 {
            installed.restore(&rules).unwrap();
            installed.verify().unwrap();
            let open = installed.list_grants().unwrap();
            let addresses: Vec<_> = open.iter().map(|grant| grant.address.to_string()).collect();
            assert_eq!(addresses, [OK4], "{tampering}");
            assert!(open[0].remaining > MINUTE / 2 && open[0].remaining <= MINUTE, "{tampering}");
        }
        installed.remove().unwrap();
    }
}

#[test]
fn a_socket_kept_elsewhere_goes_on_owning_the_tables() {
    let world = World::new();
    let target = EnforcementTarget { owner: OwnerMode::Owner, ..host_target(&world) };
    let rules = rule_set(&policy(EgressMode::Block, &MANY_KINDS, &[]), &target).unwrap();
    let installed = InstalledTable::install(world.host.fd(), &rules).unwrap();
    installed.add_grants(&[grant(OK4, Protocol::Tcp, 443, MINUTE)]).unwrap();
    let (port, kept) = (installed.port_id(), installed.socket().unwrap());
    drop(installed);
    let resumed = InstalledTable::resume(world.host.fd(), kept, &rules).unwrap();
    assert_eq!(resumed.port_id(), port);
    assert_eq!(resumed.list_grants().unwrap().len(), 1);
    drop(resumed);
    assert_eq!(world.host.run("nft list ruleset"), "", "an owned table vanishes with its socket");
}

#[test]
fn a_table_that_is_there_already_is_an_error_and_stays() {
    let world = World::new();
    let target = host_target(&world);
    world.host.run(&format!("nft add table netdev {}", target.table));
    let before = world.host.run("nft list ruleset");
    let rules = rule_set(&policy(EgressMode::Block, &MANY_KINDS, &[]), &target).unwrap();
    let error = InstalledTable::install(world.host.fd(), &rules).unwrap_err();
    assert!(
        matches!(&error, InstallError::Refused { what, .. } if what.starts_with("table")),
        "{error}"
    );
    assert_eq!(world.host.run("nft list ruleset"), before, "nothing half applied");
    // An uplink that does not exist is refused as a whole, too.
    let mut missing = host_target(&world);
    missing.uplinks[0].interface.name = "nowhere0".to_owned();
    let rules = rule_set(&policy(EgressMode::Block, &MANY_KINDS, &[]), &missing).unwrap();
    let error = InstalledTable::install(world.host.fd(), &rules).unwrap_err();
    assert!(matches!(&error, InstallError::NoInterface(name) if name == "nowhere0"), "{error}");
    assert_eq!(world.host.run("nft list ruleset"), before);
}

#[test]
fn ten_thousand_and_a_hundred_thousand_endpoints_are_applied_and_verified() {
    let namespace = Namespace::new();
    let cgroup = Cgroup::new();
    for count in [10_000_u32, 100_000] {
        let texts: Vec<String> = (0..count)
            .map(|number| {
                let [_, b, c, d] = number.to_be_bytes();
                match number % 10 {
                    0 => format!("[2001:db8:{b:x}{c:02x}:{d:x}::1]:443"),
                    1 => format!("[2001:db8:{b:x}{c:02x}:{d:x}::]:8000-8100"),
                    2 => format!("udp://10.{b}.{c}.{d}:5000-5010"),
                    _ => format!("10.{b}.{c}.{d}:443"),
                }
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        // Ranges are dearer than single addresses; the larger case has only a part of them.
        let kept: Vec<&str> = texts
            .iter()
            .enumerate()
            .filter(|(index, _)| count == 10_000 || !matches!(index % 10, 1 | 2) || *index < 10_000)
            .map(|(_, text)| *text)
            .collect();
        let target = EnforcementTarget {
            job_cgroup: Some(cgroup.id()),
            owner: OwnerMode::Owner,
            ..EnforcementTarget::new(table(), portcullis_common::event::EnforcementScope::Job)
        };
        let policy = policy(EgressMode::Block, &kept, &[]);
        let start = Instant::now();
        let rules = rule_set(&policy, &target).unwrap();
        let planned = start.elapsed();
        let installed = InstalledTable::install(namespace.fd(), &rules).unwrap();
        println!(
            "{} endpoints: planned {planned:?}, in force and verified {:?}",
            kept.len(),
            start.elapsed()
        );
        let elements: usize = rules.tables[0].sets.iter().map(|set| set.elements.len()).sum();
        assert!(elements >= kept.len());
        installed.remove().unwrap();
    }
}

#[test]
fn grants_are_bounded_and_a_full_set_says_so() {
    let world = World::new();
    for element_update in [true, false] {
        let mut target = host_target(&world);
        target.max_grants = 100;
        target.kernel = KernelSupport { element_update, ..target.kernel };
        let installed = install(&world, &policy(EgressMode::Block, &["ok.test:443"], &[]), &target);
        let grants: Vec<_> = (0..100)
            .map(|host| grant(&format!("198.18.0.{host}"), Protocol::Tcp, 443, MINUTE))
            .collect();
        installed.add_grants(&grants).unwrap();
        let more = [grant("198.18.1.1", Protocol::Tcp, 443, MINUTE)];
        let error = installed.add_grants(&more).unwrap_err();
        assert!(matches!(error, GrantError::Full { limit: 100 }), "{error}");
        // All or none, those that are open can be prolonged, and the other family has room of its own.
        let mixed = [grant("2001:db8::1", Protocol::Tcp, 443, MINUTE), more[0].clone()];
        installed.add_grants(&mixed).unwrap_err();
        assert_eq!(installed.list_grants().unwrap().len(), 100);
        let longer: Vec<_> = (0..100)
            .map(|host| grant(&format!("198.18.0.{host}"), Protocol::Tcp, 443, MINUTE * 10))
            .collect();
        installed.add_grants(&longer).unwrap();
        let open = installed.list_grants().unwrap();
        assert_eq!(open.len(), 100);
        assert!(open.iter().all(|grant| grant.remaining > MINUTE * 9));
        installed.add_grants(&mixed[..1]).unwrap();
        let ports = PortRange::new(1, 9).unwrap();
        let error =
            installed.add_grants(&[grant_range(OK4, Protocol::Tcp, ports, MINUTE)]).unwrap_err();
        assert!(matches!(error, GrantError::NoSuchEndpoint { .. }), "{error}");
        installed.verify().unwrap();
        installed.remove().unwrap();
    }
}

#[test]
fn grants_from_several_threads_all_arrive() {
    let world = World::new();
    let cgroup = Cgroup::new();
    let installed = install(
        &world,
        &policy(EgressMode::Block, &["ok.test:443"], &[]),
        &job_target(&world, &cgroup),
    );
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let installed = &installed;
            scope.spawn(move || {
                for host in 0..100 {
                    let address = format!("198.18.{thread}.{host}");
                    installed.add_grants(&[grant(&address, Protocol::Tcp, 443, MINUTE)]).unwrap();
                }
            });
        }
    });
    assert_eq!(installed.list_grants().unwrap().len(), 800);
}

#[test]
fn flows_of_dns_from_before_are_forgotten_and_others_are_not() {
    let world = World::new();
    world.serve(53);
    world.serve(443);
    // Something must make connection tracking look.
    world.host.run("nft 'add table inet t; add chain inet t o { type filter hook output priority 0; }; add rule inet t o ct state new counter'");
    let mut job = Agent::new(&world.host, None, 1000);
    for server in [OK4, EVIL4, OK6] {
        for port in [53, 443] {
            assert!(job.ask(&format!("ask {} query", at(server, port))).contains("query"));
        }
    }
    let tracked = |port: u16| {
        let listed = world.host.run("conntrack -L 2>/dev/null");
        listed.lines().filter(|line| line.contains(&format!("dport={port} "))).count()
    };
    assert_eq!((tracked(53), tracked(443)), (3, 3));
    let mut before = DnsFlows::list(world.host.fd()).unwrap();
    // What begins after that stays: it may be a job's first question, whose answer is on its way.
    assert!(job.ask(&format!("ask {} query", at(OK4, 53))).contains("query"));
    assert_eq!(tracked(53), 4);
    // Nor does one go from where the resolver of another job asks.
    let listed = world.host.run("conntrack -L 2>/dev/null");
    let of_resolver = |line: &&str| line.contains(OK6) && line.contains("dport=53 ");
    let (_, port) = listed.lines().find(of_resolver).unwrap().split_once("sport=").unwrap();
    let spared = BTreeSet::from([port.split(' ').next().unwrap().parse().unwrap()]);
    assert_eq!(before.forget(&spared).unwrap(), 2);
    assert_eq!((tracked(53), tracked(443)), (2, 3));
    assert_eq!(before.forget(&BTreeSet::new()).unwrap(), 3);
    assert_eq!((tracked(53), tracked(443)), (1, 3));
    // Once more, when they are gone.
    assert_eq!(before.forget(&BTreeSet::new()).unwrap(), 3);
    assert_eq!((tracked(53), tracked(443)), (1, 3));
}

#[test]
fn this_kernel_can_do_everything() {
    let probed = probe().unwrap();
    for feature in &probed.features {
        assert_eq!(feature.state, FeatureState::Active, "{}: {}", feature.name, feature.reason);
    }
    assert_eq!(probed.owner, OwnerMode::OwnerPersist);
    assert!(probed.kernel.netdev_egress && probed.kernel.element_update);
}
