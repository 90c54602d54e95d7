//! What the rules of a job are made for.

use crate::dns::Resolver;
use crate::dns::upstreams::SystemResolver;
use crate::egress::target::{
    CgroupId, EnforcementTarget, Flow, Interface, ResolverPorts, TableName, Uplink,
};
use crate::job::group_ids;
use crate::job::host::Host;
use crate::job::state::JobState;
use crate::network;
use crate::protect::closed_sockets::engine_ports;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Everything measured that the rule set depends on.
pub(super) fn target(
    host: &Host,
    state: &JobState,
    links: &[network::Interface],
    servers: &SystemResolver,
    resolver: &Resolver,
    nflog_group: u16,
) -> Option<EnforcementTarget> {
    let mut target = EnforcementTarget::new(table_name(&state.id)?, state.scope);
    let group_id =
        |group: &crate::cgroup::CgroupIdentity| CgroupId { id: group.id, level: group.level };
    target.job_cgroup = state.cgroup.as_ref().map(group_id);
    target.runner_uid = (state.has_own_user && state.uid != 0).then_some(state.uid);
    target.other_jobs = group_ids(&state.other_jobs);
    target.infrastructure = host.infrastructure_groups();
    target.monitor_cgroup = host.monitor_group.as_ref().map(group_id);
    target.upstreams.clone_from(&servers.upstreams);
    target.upstream_source_ports =
        resolver.upstream_source_ports().iter().map(|source| source.port).collect();
    let listens = |wanted: IpAddr| {
        let mut addresses = resolver.listen_addresses().iter();
        addresses.find(|address| address.ip() == wanted).map(SocketAddr::port)
    };
    target.resolver = ResolverPorts {
        v4: listens(Ipv4Addr::LOCALHOST.into()),
        v6: listens(Ipv6Addr::LOCALHOST.into()),
    };
    let anywhere = |is_v4: bool| {
        let mut listeners = resolver.listens_anywhere().iter();
        listeners.find(|address| address.is_ipv4() == is_v4).map(SocketAddr::port)
    };
    if state.resolution.policy.disable_sudo_and_containers {
        target.closed_ports = engine_ports();
    }
    target.container_resolver = ResolverPorts { v4: anywhere(true), v6: anywhere(false) };
    let plain =
        |link: &network::Interface| Interface { name: link.name.clone(), index: link.index };
    target.uplinks = links
        .iter()
        .filter(|link| link.is_uplink())
        .map(|link| Uplink { interface: plain(link), mac: link.mac })
        .collect();
    target.container_bridges =
        links.iter().filter(|link| link.is_container_bridge()).map(plain).collect();
    target.known_interfaces = state
        .known_interfaces
        .iter()
        .map(|(name, index)| Interface { name: name.clone(), index: *index })
        .collect();
    target.adopted_flows = state
        .adopted_flows
        .iter()
        .map(|(local, remote)| Flow { local: *local, remote: *remote })
        .collect();
    target.nflog_group = nflog_group;
    target.grace = Duration::from_secs(host.config.dns.grant_grace_seconds.into());
    target.owner = host.owner_mode();
    target.kernel = host.kernel.kernel;
    Some(target)
}

/// The job's tables: named after the last 12 digits of its id, which are random.
pub(in crate::job) fn table_name(job_id: &str) -> Option<TableName> {
    let digits: String = job_id.chars().filter(char::is_ascii_hexdigit).collect();
    TableName::for_job(digits.get(digits.len().checked_sub(12)?..)?)
}
