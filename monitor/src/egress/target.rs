//! What is enforced on whom: everything measured about the host and the job that a rule set depends on.

use portcullis_common::event::EnforcementScope;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The name of a job's tables, in the families `inet` and `netdev`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TableName(String);

impl TableName {
    /// What every table of ours starts with.
    pub const PREFIX: &str = "portcullis_";

    /// The longest short id in bytes: the name is a part of the NFLOG prefix, which holds 127 bytes.
    pub const MAX_ID_BYTES: usize = 48;

    /// The table of the job with this short id: `portcullis_<id>`. `None` unless the id has 1 to
    /// [`Self::MAX_ID_BYTES`] characters of `[0-9a-z]`.
    pub fn for_job(short_id: &str) -> Option<Self> {
        let valid = (1..=Self::MAX_ID_BYTES).contains(&short_id.len())
            && short_id.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
        valid.then(|| Self(format!("{}{short_id}", Self::PREFIX)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The job's short id.
    pub fn short_id(&self) -> &str {
        self.0.strip_prefix(Self::PREFIX).unwrap_or(&self.0)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A cgroup of the v2 hierarchy as nftables names it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CgroupId {
    /// The inode number of its directory.
    pub id: u64,
    /// Its depth: 0 for the root of the hierarchy, 1 for `/system.slice`.
    pub level: u32,
}

/// A network interface of the Worker's network namespace.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Interface {
    /// Its name: `eth0`. At most 15 bytes.
    pub name: String,
    /// Its index.
    pub index: u32,
}

/// An interface through which packets leave the machine.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Uplink {
    /// The interface.
    pub interface: Interface,
    /// Its Ethernet address. When given, frames with another source address (a macvlan child's) do not leave.
    pub mac: Option<[u8; 6]>,
}

/// A TCP connection that stays alive: one of the runner's own, open when the policy was bound.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Flow {
    /// Our end.
    pub local: SocketAddr,
    /// The other end; of the same family.
    pub remote: SocketAddr,
}

/// The ports of the job's resolver by family. Without one, DNS of that family is not redirected, and so blocked like any
/// other call.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct ResolverPorts {
    /// The port for IPv4.
    pub v4: Option<u16>,
    /// The port for IPv6.
    pub v6: Option<u16>,
}

/// Who may change the tables, and what becomes of them when our netlink socket closes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum OwnerMode {
    /// Anybody with `CAP_NET_ADMIN` may change them; they stay.
    #[default]
    None,
    /// Only our socket may change them (kernel 5.12); they vanish with it.
    Owner,
    /// Only our socket may change them; they stay, without an owner, when it closes (kernel 6.9).
    OwnerPersist,
}

/// What the kernel can do, as probed (`nftables::probe`).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct KernelSupport {
    /// `netdev` chains with an egress hook (5.16), and `meta rtclassid` in them.
    pub netdev_egress: bool,
    /// Adding an element again sets its timeout anew (6.12); otherwise it is deleted and added in one transaction.
    pub element_update: bool,
    /// `ct original zone set` (`CONFIG_NF_CONNTRACK_ZONES`, which the kernels of distributions have).
    pub conntrack_zones: bool,
}

impl Default for KernelSupport {
    /// What every supported kernel has.
    fn default() -> Self {
        Self { netdev_egress: false, element_update: false, conntrack_zones: false }
    }
}

/// Everything measured about the host and the job that a rule set depends on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EnforcementTarget {
    /// The name of the job's tables.
    pub table: TableName,
    /// Whose traffic is the job's.
    pub scope: EnforcementScope,
    /// The job's cgroup; `None` without cgroup v2. Not the root of the hierarchy.
    pub job_cgroup: Option<CgroupId>,
    /// The runner's user; `None` when another runner has the same one. Never 0.
    pub runner_uid: Option<u32>,
    /// Groups of other runners' jobs that are younger than the job's own. In scope `job` every other younger group is
    /// taken for one that the job had somebody make: a container engine, a service manager.
    pub other_jobs: Vec<CgroupId>,
    /// Infrastructure of the machine that is not the job. In scope `host` what the monitor itself sends besides
    /// upstream queries (uploads to the store) passes only when its cgroup is listed here.
    pub infrastructure: Vec<CgroupId>,
    /// The monitor's own cgroup; `None` when it has none of its own. Its upstream queries are then told apart by
    /// user 0 instead.
    pub monitor_cgroup: Option<CgroupId>,
    /// The DNS servers that the resolver asks.
    pub upstreams: Vec<SocketAddr>,
    /// The source ports of the resolver's upstream sockets, UDP and TCP; can be changed later
    /// (`InstalledTable::set_upstream_ports`).
    pub upstream_source_ports: Vec<u16>,
    /// Where the job's resolver listens on `127.0.0.1` and `::1` of the Worker's network namespace.
    pub resolver: ResolverPorts,
    /// Where it listens, on every address, for what containers and other network namespaces ask.
    pub container_resolver: ResolverPorts,
    /// TCP ports of this host that the job may not connect to by loopback: container engines.
    pub closed_ports: Vec<u16>,
    /// Interfaces through which packets leave the machine.
    pub uplinks: Vec<Uplink>,
    /// The runner's own connections at binding.
    pub adopted_flows: Vec<Flow>,
    /// Bridges of container engines.
    pub container_bridges: Vec<Interface>,
    /// Interfaces that existed before the job.
    pub known_interfaces: Vec<Interface>,
    /// The NFLOG group that logged packets are sent to.
    pub nflog_group: u16,
    /// Who may change the tables.
    pub owner: OwnerMode,
    /// What the kernel can do.
    pub kernel: KernelSupport,
    /// How long an address stays open after the last packet to it, once its grant has expired.
    pub grace: Duration,
    /// The most addresses that can be open at a time, per family and kind of grant.
    pub max_grants: u32,
}

impl EnforcementTarget {
    /// The usual bound on open addresses, per family.
    pub const DEFAULT_MAX_GRANTS: u32 = 65_536;

    /// The usual grace period: connections idle for longer than this after their name's TTL has run out must be
    /// opened anew. Common keep-alive intervals (NAT gateways, HTTP/2 pings) are shorter.
    pub const DEFAULT_GRACE: Duration = Duration::from_mins(5);

    /// A target with nothing exempt, nothing adopted and the defaults, to be filled in.
    pub fn new(table: TableName, scope: EnforcementScope) -> Self {
        Self {
            table,
            scope,
            job_cgroup: None,
            runner_uid: None,
            other_jobs: Vec::new(),
            infrastructure: Vec::new(),
            monitor_cgroup: None,
            upstreams: Vec::new(),
            upstream_source_ports: Vec::new(),
            resolver: ResolverPorts::default(),
            container_resolver: ResolverPorts::default(),
            closed_ports: Vec::new(),
            uplinks: Vec::new(),
            adopted_flows: Vec::new(),
            container_bridges: Vec::new(),
            known_interfaces: Vec::new(),
            nflog_group: 0,
            owner: OwnerMode::None,
            kernel: KernelSupport::default(),
            grace: Self::DEFAULT_GRACE,
            max_grants: Self::DEFAULT_MAX_GRANTS,
        }
    }
}

/// The IP families.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `4` or `6`, as it ends the names of sets and chains.
    pub const fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }
}
