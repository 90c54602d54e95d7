//! Policies and targets for the tests' world.

use crate::world::{Cgroup, World, unique};
use portcullis_common::endpoint::{DnsName, Endpoint, PortRange, Protocol};
use portcullis_common::event::EnforcementScope;
use portcullis_common::policy::{EffectivePolicy, EgressMode, Rule};
use portcullis_monitor::egress::grant::Grant;
use portcullis_monitor::egress::target::{
    EnforcementTarget, Interface, KernelSupport, OwnerMode, TableName, Uplink,
};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn rules(endpoints: &[&str]) -> Vec<Arc<Rule>> {
    endpoints
        .iter()
        .map(|text| Rule {
            endpoint: text.parse::<Endpoint>().unwrap(),
            text: (*text).into(),
            policy: "test".into(),
        })
        .map(Arc::new)
        .collect()
}

pub(crate) fn policy(egress: EgressMode, allowed: &[&str], denied: &[&str]) -> EffectivePolicy {
    EffectivePolicy {
        name: "test".to_owned(),
        allowed: rules(allowed),
        denied: rules(denied),
        ..EffectivePolicy::built_in(egress)
    }
}

pub(crate) fn table() -> TableName {
    TableName::for_job(&unique()).unwrap()
}

/// What this kernel (6.18) can do.
pub(crate) const KERNEL: KernelSupport =
    KernelSupport { netdev_egress: true, element_update: true, conntrack_zones: true };

pub(crate) fn host_target(world: &World) -> EnforcementTarget {
    let interface = Interface { name: "eth0".to_owned(), index: world.index("eth0") };
    EnforcementTarget {
        uplinks: vec![Uplink { interface: interface.clone(), mac: Some(world.mac("eth0")) }],
        known_interfaces: vec![Interface { name: "lo".to_owned(), index: 1 }, interface],
        nflog_group: 7,
        owner: OwnerMode::OwnerPersist,
        kernel: KERNEL,
        ..EnforcementTarget::new(table(), EnforcementScope::Host)
    }
}

pub(crate) fn job_target(world: &World, job: &Cgroup) -> EnforcementTarget {
    EnforcementTarget {
        scope: EnforcementScope::Job,
        job_cgroup: Some(job.id()),
        ..host_target(world)
    }
}

pub(crate) fn grant(address: &str, protocol: Protocol, port: u16, lifetime: Duration) -> Grant {
    let ports = PortRange::single(port).unwrap_or(PortRange::ALL);
    grant_range(address, protocol, ports, lifetime)
}

pub(crate) fn grant_range(
    address: &str,
    protocol: Protocol,
    ports: PortRange,
    lifetime: Duration,
) -> Grant {
    Grant {
        address: address.parse::<IpAddr>().unwrap(),
        protocol,
        ports,
        name: "ok.test".parse::<DnsName>().unwrap(),
        cname_chain: Vec::new(),
        rule: rules(&["ok.test:443"]).remove(0),
        lifetime,
    }
}
