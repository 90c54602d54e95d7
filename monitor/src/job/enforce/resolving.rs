//! Whom the job's resolver asks, and how it is set up.

use super::{EnforceError, at};
use crate::caller::Worker;
use crate::config::DnsConfig;
use crate::dns::upstreams::{SystemResolver, from_resolv_conf, read_bounded};
use crate::dns::{ResolverConfig, SourcePorts};
use crate::job::host::Host;
use crate::sys::namespace::in_network_namespace;
use portcullis_common::policy::EffectivePolicy;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

/// The servers that the resolver asks: the configured ones, or those of the Worker's own `resolv.conf`.
pub(super) fn upstream_servers(
    host: &Host,
    worker: &Worker,
    namespace: &File,
) -> Result<SystemResolver, EnforceError> {
    let configured = &host.config.dns.upstreams;
    if !configured.is_empty() {
        return Ok(SystemResolver { upstreams: configured.clone(), ..SystemResolver::default() });
    }
    let root = PathBuf::from(format!("/proc/{}/root", worker.pid()));
    let text = read_bounded(&root.join("etc/resolv.conf")).map_err(at(
        "the Worker's /etc/resolv.conf can't be read; set dns.upstreams in monitor.toml",
    ))?;
    // Absent unless systemd-resolved runs; whether it is needed is decided by what resolv.conf says.
    let resolved = read_bounded(&root.join("run/systemd/resolve/resolv.conf")).ok();
    // Zones of link-local servers are interfaces of the Worker's namespace.
    in_network_namespace(namespace.as_fd(), || from_resolv_conf(&text, resolved.as_deref()))
        .map_err(at("the Worker's network namespace can't be entered"))?
        .map_err(at("there is no DNS server to ask"))
}

pub(super) fn resolver_config(
    policy: &EffectivePolicy,
    namespace: &File,
    servers: &SystemResolver,
    dns: &DnsConfig,
    source_ports: &SourcePorts,
) -> std::io::Result<ResolverConfig> {
    let mut config = ResolverConfig::new(policy.egress, &policy.name, servers.upstreams.clone());
    config.network_namespace = Some(OwnedFd::from(namespace.try_clone()?));
    config.source_ports = source_ports.clone();
    config.listen_anywhere = true;
    config.search_domains.clone_from(&servers.search_domains);
    config.lifetimes.grant_floor = Duration::from_secs(dns.grant_floor_seconds.into());
    config.lifetimes.grant_grace = Duration::from_secs(dns.grant_grace_seconds.into());
    Ok(config)
}
