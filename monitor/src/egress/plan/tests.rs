use super::endpoints::{MAX_PORT_RANGES, static_endpoints};
use super::*;
use crate::egress::expression::{Expression, Verdict};
use crate::egress::target::{Interface, KernelSupport, TableName, Uplink};
use portcullis_common::endpoint::Endpoint;
use portcullis_common::policy::Rule as PolicyRule;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

fn rules<T: AsRef<str>>(texts: &[T]) -> Vec<Arc<PolicyRule>> {
    let rule = |text: &T| PolicyRule {
        endpoint: text.as_ref().parse::<Endpoint>().unwrap(),
        text: text.as_ref().into(),
        policy: "test".into(),
    };
    texts.iter().map(rule).map(Arc::new).collect()
}

fn policy(egress: EgressMode, allowed: &[&str], denied: &[&str]) -> EffectivePolicy {
    EffectivePolicy {
        name: "test".to_owned(),
        allowed: rules(allowed),
        denied: rules(denied),
        ..EffectivePolicy::built_in(egress)
    }
}

fn target(scope: EnforcementScope) -> EnforcementTarget {
    let interface = Interface { name: "eth0".to_owned(), index: 2 };
    EnforcementTarget {
        job_cgroup: Some(CgroupId { id: 42, level: 3 }),
        uplinks: vec![Uplink { interface, mac: Some([2, 0, 0, 0, 0, 1]) }],
        kernel: KernelSupport { netdev_egress: true, element_update: true, conntrack_zones: true },
        ..EnforcementTarget::new(TableName::for_job("a1").unwrap(), scope)
    }
}

fn refused(change: impl FnOnce(&mut EnforcementTarget), scope: EnforcementScope) -> PlanError {
    let mut target = target(scope);
    change(&mut target);
    rule_set(&policy(EgressMode::Block, &[], &[]), &target).unwrap_err()
}

#[test]
fn targets_that_would_open_everything_are_refused() {
    use EnforcementScope::{Host, Job};
    let root = CgroupId { id: 1, level: 0 };
    let no_owner = refused(|target| target.job_cgroup = None, Job);
    assert_eq!(no_owner, PlanError::NoOwner);
    assert_eq!(refused(|target| target.runner_uid = Some(0), Job), PlanError::RootRunner);
    assert_eq!(refused(|target| target.uplinks.clear(), Host), PlanError::NoUplink);
    for (change, whom) in [
        (
            (|target: &mut EnforcementTarget| {
                target.infrastructure.push(CgroupId { id: 1, level: 0 });
            }) as fn(&mut EnforcementTarget),
            "an infrastructure unit",
        ),
        (|target| target.job_cgroup = Some(CgroupId { id: 1, level: 0 }), "the job"),
    ] {
        assert_eq!(refused(change, Job), PlanError::RootCgroup { whom });
    }
    for name in ["", "a-name-that-is-too-long", "a\0b"] {
        let error = refused(|target| target.uplinks[0].interface.name = name.to_owned(), Host);
        assert_eq!(error, PlanError::InterfaceName(name.to_owned()));
    }
    let mixed = Flow {
        local: "192.0.2.1:1".parse().unwrap(),
        remote: "[2001:db8::1]:443".parse().unwrap(),
    };
    assert_eq!(refused(|target| target.adopted_flows.push(mixed), Job), PlanError::MixedFlow);
    // The monitor may well live in the root cgroup; its user tells it then.
    let mut target = target(Job);
    target.monitor_cgroup = Some(root);
    rule_set(&policy(EgressMode::Block, &[], &[]), &target).unwrap();
}

#[test]
fn what_the_host_cannot_do_is_said() {
    let mut target = target(EnforcementScope::Job);
    let policy = policy(EgressMode::Block, &[], &[]);
    target.resolver.v4 = Some(5300);
    let gaps = rule_set(&policy, &target).unwrap().gaps;
    assert_eq!(gaps, ["DNS over IPv6 is not redirected: no resolver listens there"]);
    target.resolver.v6 = Some(5300);
    target.kernel.netdev_egress = false;
    let rules = rule_set(&policy, &target).unwrap();
    assert_eq!(rules.tables.len(), 1);
    assert!(rules.gaps[0].contains("AF_PACKET"), "{:?}", rules.gaps);
    target.kernel.netdev_egress = true;
    target.uplinks[0].mac = None;
    assert!(rule_set(&policy, &target).unwrap().gaps[0].contains("macvlan"));
}

/// Every chain and set that a rule names exists, jumps don't loop, and no chain is left out.
#[test]
fn rule_sets_hang_together() {
    for scope in [EnforcementScope::Host, EnforcementScope::Job] {
        for mode in [EgressMode::Audit, EgressMode::Block] {
            let mut target = target(scope);
            target.runner_uid = Some(1001);
            target.infrastructure =
                vec![CgroupId { id: 7, level: 2 }, CgroupId { id: 8, level: 1 }];
            target.upstreams =
                vec!["192.0.2.53:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()];
            target.container_bridges = vec![Interface { name: "docker0".to_owned(), index: 3 }];
            target.container_resolver =
                crate::egress::target::ResolverPorts { v4: Some(5399), v6: Some(5399) };
            target.adopted_flows = vec![Flow {
                local: "192.0.2.1:4000".parse().unwrap(),
                remote: "192.0.2.2:443".parse().unwrap(),
            }];
            let allowed = [
                "a.test:1-9",
                "udp://*.a.test:*",
                "10.0.0.0/8:80",
                "icmp://[2001:db8::1]",
                "192.0.2.1:443",
            ];
            let rules =
                rule_set(&policy(mode, &allowed, &["10.9.0.0/16:*", "192.0.2.3:22"]), &target)
                    .unwrap();
            for table in &rules.tables {
                hangs_together(table);
            }
        }
    }
}

fn hangs_together(table: &Table) {
    let chains: BTreeMap<&str, &Chain> =
        table.chains.iter().map(|chain| (chain.name.as_str(), chain)).collect();
    assert_eq!(chains.len(), table.chains.len(), "names are unique");
    let sets: BTreeSet<&str> = table.sets.iter().map(|set| set.name.as_str()).collect();
    assert_eq!(sets.len(), table.sets.len(), "names are unique");
    let mut reached = BTreeSet::new();
    let bases = table.chains.iter().filter(|chain| chain.hook.is_some());
    let mut open: Vec<(&str, usize)> = bases.map(|chain| (chain.name.as_str(), 0)).collect();
    while let Some((name, depth)) = open.pop() {
        assert!(depth < 16, "the kernel follows 16 jumps");
        reached.insert(name);
        for expression in chains[name].rules.iter().flat_map(|rule| &rule.0) {
            match expression {
                Expression::Verdict(Verdict::Jump(next) | Verdict::Goto(next)) => {
                    open.push((next.as_str(), depth + 1));
                }
                Expression::Lookup { set, .. } | Expression::Update { set, .. } => {
                    assert!(sets.contains(set.as_str()), "{set}");
                }
                Expression::Count(counter) => {
                    assert!(table.counters.contains(&counter.as_str()), "{counter}");
                }
                _ => {}
            }
        }
    }
    // The resolver's chain is reached only where a resolver listens.
    let unreached: Vec<&str> =
        chains.keys().copied().filter(|name| !reached.contains(name)).collect();
    assert!(
        unreached.iter().all(|name| matches!(*name, "resolver" | "inbound_forward")),
        "{unreached:?}"
    );
}

#[test]
fn audit_mode_stops_nothing_but_what_is_denied_and_other_jobs_resolvers() {
    let mut target = target(EnforcementScope::Host);
    target.resolver.v4 = Some(5300);
    let rules =
        rule_set(&policy(EgressMode::Audit, &["a.test:443"], &["192.0.2.1:1"]), &target).unwrap();
    for chain in rules.tables.iter().flat_map(|table| &table.chains) {
        let stops = chain.rules.iter().flat_map(|rule| &rule.0).any(|expression| {
            matches!(expression, Expression::Reject(_) | Expression::Verdict(Verdict::Drop))
        });
        let may_stop = chain.name.starts_with("denied_") || chain.name == "resolver";
        assert_eq!(stops, may_stop, "{}", chain.name);
    }
}

#[test]
fn names_on_port_ranges_get_sets_of_their_own_up_to_a_limit() {
    let plan = |count: usize| {
        let texts: Vec<String> = (1..=count).map(|n| format!("a.test:{n}-60000")).collect();
        let mut policy = policy(EgressMode::Block, &[], &[]);
        policy.allowed = rules(&texts);
        rule_set(&policy, &target(EnforcementScope::Job))
    };
    assert_eq!(plan(0).unwrap().grants.len(), 2);
    assert_eq!(plan(3).unwrap().grants.len(), 8);
    plan(MAX_PORT_RANGES).unwrap();
    let found = MAX_PORT_RANGES + 1;
    assert_eq!(plan(found), Err(PlanError::TooManyPortRanges { found, limit: MAX_PORT_RANGES }));
}

#[test]
fn addresses_of_both_families_become_elements() {
    let rules = rules(&[
        "192.0.2.1:443",
        "udp://192.0.2.1:53",
        "icmp://192.0.2.1",
        "icmp://192.0.2.0/24",
        "[2001:db8::1]:443",
        "[2001:db8::/32]:*",
        "name.test:443",
    ]);
    let v4 = static_endpoints(&rules, IpFamily::V4).unwrap();
    let keys: Vec<&[u8]> = v4.exact.iter().map(|element| element.key.as_slice()).collect();
    assert_eq!(
        keys,
        [
            [192, 0, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0],
            [192, 0, 2, 1, 6, 0, 0, 0, 1, 187, 0, 0],
            [192, 0, 2, 1, 17, 0, 0, 0, 0, 53, 0, 0],
        ]
    );
    assert_eq!(v4.ranges.len(), 1);
    let v6 = static_endpoints(&rules, IpFamily::V6).unwrap();
    assert_eq!((v6.exact.len(), v6.ranges.len()), (1, 1));
}

/// Whether an element's range holds the key.
fn holds(element: &Element, address: Ipv4Addr, port: u16) -> bool {
    let field = |key: &[u8], at: usize| -> Vec<u8> { key[at..at + 4].to_vec() };
    let end = element.end.as_ref().unwrap();
    let key = endpoint_key(IpAddr::V4(address), 6, port);
    [0, 4, 8]
        .into_iter()
        .all(|at| (field(&element.key, at)..=field(end, at)).contains(&field(&key, at)))
}

proptest! {
    /// Cutting ranges apart changes nothing about what they hold, and no two pieces overlap.
    #[test]
    fn cutting_ranges_keeps_their_meaning(
        boxes in prop::collection::vec((0_u32..16, 28_u8..=31, 1_u16..12, 0_u16..6), 1..12),
        address in 0_u32..16,
        port in 1_u16..20,
    ) {
        let texts: Vec<String> = boxes.iter().map(|&(host, length, first, more)| {
            let network = ipnet::Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + host), length).unwrap();
            format!("{}:{first}-{}", network.trunc(), first + more + 1)
        }).collect();
        let found = static_endpoints(&rules(&texts), IpFamily::V4).unwrap();
        let address = Ipv4Addr::from(0x0a00_0000 + address);
        let expected = boxes.iter().any(|&(host, length, first, more)| {
            let network = ipnet::Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + host), length).unwrap();
            network.contains(&address) && (first..=first + more + 1).contains(&port)
        });
        let pieces = found.ranges.iter().filter(|element| holds(element, address, port)).count();
        prop_assert_eq!(pieces, usize::from(expected));
    }
}
