//! What the kernel can do, tried in a network namespace of its own.

use super::encode::{ElementValue, add_all, add_elements, delete_table};
use super::socket::{Batch, NetfilterSocket, Refused};
use super::verify::{elements, list};
use super::wire::{kernel, malformed};
use crate::egress::expression::{Comparison, Expression, MetaKey, Register, Verdict};
use crate::egress::rule_set::{
    Chain, ChainKind, ChainPolicy, Hook, HookPoint, KeyField, Rule, RuleSet, Set, SetKind, Table,
    TableFamily,
};
use crate::egress::target::{KernelSupport, OwnerMode, TableName};
use crate::sys::rtnetlink::set_loopback_up;
use nix::sched::{CloneFlags, unshare};
use portcullis_common::event::{Feature, FeatureState};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

/// The counter of the rule that is tried.
const HITS: &str = "hits";

/// What the kernel can do, and how that is said in a posture.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Probed {
    /// Every mechanism that was tried.
    pub features: Vec<Feature>,
    /// What a plan needs to know.
    pub kernel: KernelSupport,
    /// The strongest owner mode.
    pub owner: OwnerMode,
}

impl Probed {
    /// The names of mechanisms that can be done without, and that a configuration may rule out.
    pub const DISPENSABLE: [&str; 5] = [
        "nftables-persist",
        "nftables-owner",
        "netdev-egress",
        "nftables-element-update",
        "conntrack-zones",
    ];

    /// The same as if the kernel did not have the mechanisms of these names, all of [`Self::DISPENSABLE`].
    #[must_use]
    pub fn without(mut self, names: &[String]) -> Self {
        for name in names {
            match name.as_str() {
                "nftables-persist" if self.owner == OwnerMode::OwnerPersist => {
                    self.owner = OwnerMode::Owner;
                }
                "nftables-owner" => self.owner = OwnerMode::None,
                "netdev-egress" => self.kernel.netdev_egress = false,
                "nftables-element-update" => self.kernel.element_update = false,
                "conntrack-zones" => self.kernel.conntrack_zones = false,
                _ => {}
            }
            for feature in self.features.iter_mut().filter(|feature| feature.name == *name) {
                feature.state = FeatureState::Degraded;
                "ruled out by kernel.without of monitor.toml".clone_into(&mut feature.reason);
            }
        }
        self
    }
}

/// Tries everything in a network namespace that vanishes afterwards.
///
/// # Errors
/// When no network namespace can be made (needs `CAP_SYS_ADMIN`).
pub fn probe() -> io::Result<Probed> {
    let worker = thread::Builder::new().name("probe".to_owned()).spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        set_loopback_up()?;
        Ok(probe_here())
    })?;
    match worker.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn probe_here() -> Probed {
    let mut features = Vec::new();
    let mut try_feature = |name: &str, missing: FeatureState, result: Result<String, String>| {
        let found = result.is_ok();
        let (state, reason) = match result {
            Ok(reason) => (FeatureState::Active, reason),
            Err(reason) => (missing, reason),
        };
        features.push(Feature { name: name.to_owned(), state, reason });
        found
    };
    let missing = FeatureState::Missing;
    let output = HookPoint::Output;
    try_feature("nftables", missing, hits(&output, ChainKind::Filter, vec![]));
    try_feature("nftables-nat", missing, redirect());
    try_feature("nftables-cgroup", missing, cgroup());
    try_feature("nflog", missing, log());
    let owner = try_feature("nftables-owner", missing, owner(OwnerMode::Owner));
    let persist = try_feature("nftables-persist", FeatureState::Degraded, owner_mode_persist());
    let realm = vec![Expression::Meta { key: MetaKey::RouteRealm, to: Register::FIRST }];
    let egress = HookPoint::Egress("lo".to_owned());
    let netdev_egress =
        try_feature("netdev-egress", missing, hits(&egress, ChainKind::Filter, realm));
    let element_update =
        try_feature("nftables-element-update", FeatureState::Degraded, element_update());
    let zone = vec![
        Expression::Load { to: Register::FIRST, value: 1_u16.to_ne_bytes().to_vec() },
        Expression::SetOriginalZone { from: Register::FIRST },
    ];
    let conntrack_zones = try_feature(
        "conntrack-zones",
        FeatureState::Degraded,
        hits(&output, ChainKind::Filter, zone).map_err(|error| {
            format!("{error}; DNS flows from before a job are looked for and forgotten instead")
        }),
    );
    Probed {
        features,
        kernel: KernelSupport { netdev_egress, element_update, conntrack_zones },
        owner: match (owner, persist) {
            (true, true) => OwnerMode::OwnerPersist,
            (true, false) => OwnerMode::Owner,
            (false, _) => OwnerMode::None,
        },
    }
}

/// A rule set of one chain with one rule.
fn scratch(
    owner: OwnerMode,
    point: &HookPoint,
    kind: ChainKind,
    expressions: Vec<Expression>,
) -> Result<RuleSet, String> {
    let name = TableName::for_job("probe").ok_or("no table name")?;
    let family = match point {
        HookPoint::Egress(_) => TableFamily::Netdev,
        _ => TableFamily::Inet,
    };
    let hook = Hook { kind, point: point.clone(), priority: 0, policy: ChainPolicy::Accept };
    let chain =
        Chain { name: "probe".to_owned(), hook: Some(hook), rules: vec![Rule(expressions)] };
    let table = Table { family, counters: vec![HITS], sets: Vec::new(), chains: vec![chain] };
    Ok(RuleSet {
        name,
        owner,
        tables: vec![table],
        grants: Vec::new(),
        element_update: false,
        gaps: Vec::new(),
    })
}

fn install(rules: &RuleSet) -> Result<NetfilterSocket, String> {
    let mut socket = NetfilterSocket::open_here().map_err(|error| error.to_string())?;
    let mut batch = Batch::new();
    for table in &rules.tables {
        add_all(&mut batch, rules, table, |_| (0, 0));
    }
    socket.apply(batch).map_err(describe)?;
    Ok(socket)
}

fn describe(Refused { what, message, source }: Refused) -> String {
    let message = message.map(|text| format!(" ({text})")).unwrap_or_default();
    format!("the kernel refused {what}: {source}{message}")
}

fn remove(socket: &mut NetfilterSocket, rules: &RuleSet) -> Result<(), Refused> {
    let mut batch = Batch::new();
    for table in &rules.tables {
        delete_table(&mut batch, table.family, rules.name.as_str());
    }
    socket.apply(batch)
}

/// Sends a datagram to ourselves.
fn send_one() -> io::Result<()> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    sender.send_to(b"probe", receiver.local_addr()?).map(drop)
}

/// Whether a packet meets `conditions`.
fn hits(
    point: &HookPoint,
    kind: ChainKind,
    mut conditions: Vec<Expression>,
) -> Result<String, String> {
    conditions.push(Expression::Count(HITS.to_owned()));
    conditions.push(Expression::Verdict(Verdict::Accept));
    let rules = scratch(OwnerMode::None, point, kind, conditions)?;
    let mut socket = install(&rules)?;
    let sent = send_one();
    let family = rules.tables.first().map_or(TableFamily::Inet, |table| table.family);
    let counted = list(
        &mut socket,
        kernel::GETOBJ,
        super::encode::family_number(family),
        rules.name.as_str(),
        |message| {
            let data = message.attributes()?.nested(4)?.ok_or_else(malformed)?;
            Ok(data.be64(2).unwrap_or_default())
        },
    );
    remove(&mut socket, &rules).map_err(describe)?;
    sent.map_err(|error| format!("no datagram could be sent: {error}"))?;
    match counted.map_err(|error| error.to_string())?.first() {
        Some(1..) => Ok("a packet met the rule".to_owned()),
        _ => Err("the kernel took the rule, and no packet met it".to_owned()),
    }
}

/// Whether a datagram to another port arrives at the one it is redirected to.
fn redirect() -> Result<String, String> {
    let text = |error: io::Error| error.to_string();
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(text)?;
    let port = receiver.local_addr().map_err(text)?.port();
    let expressions = vec![
        Expression::Meta { key: MetaKey::TransportProtocol, to: Register::FIRST },
        Expression::Compare { from: Register::FIRST, how: Comparison::Equal, with: vec![17] },
        Expression::Load { to: Register::FIRST, value: port.to_be_bytes().to_vec() },
        Expression::Redirect { port: Register::FIRST },
    ];
    let rules = scratch(OwnerMode::None, &HookPoint::Output, ChainKind::Nat, expressions)?;
    let mut socket = install(&rules)?;
    let arrived = (|| {
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        sender.send_to(b"probe", (Ipv4Addr::LOCALHOST, 53))?;
        receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
        receiver.recv_from(&mut [0; 8])
    })();
    remove(&mut socket, &rules).map_err(describe)?;
    arrived
        .map_err(|error| format!("the kernel took the rule, and redirected nothing: {error}"))?;
    Ok("a datagram was redirected".to_owned())
}

/// Whether the socket's cgroup is told by the inode number of its directory.
fn cgroup() -> Result<String, String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let mount = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4))
        .ok_or("cgroup v2 is not mounted")?;
    let inode = fs::metadata(mount).map_err(|error| error.to_string())?.ino();
    let conditions = vec![
        Expression::SocketCgroup { level: 0, to: Register::FIRST },
        Expression::Compare {
            from: Register::FIRST,
            how: Comparison::Equal,
            with: inode.to_ne_bytes().to_vec(),
        },
    ];
    hits(&HookPoint::Output, ChainKind::Filter, conditions)
}

fn log() -> Result<String, String> {
    let log = Expression::Log { group: 1, prefix: "probe".to_owned() };
    hits(&HookPoint::Output, ChainKind::Filter, vec![log])
}

/// Whether another socket is refused, as `flags owner` promises.
fn owner(mode: OwnerMode) -> Result<String, String> {
    let rules = scratch(mode, &HookPoint::Output, ChainKind::Filter, Vec::new())?;
    let mut ours = install(&rules)?;
    let mut other = NetfilterSocket::open_here().map_err(|error| error.to_string())?;
    match remove(&mut other, &rules) {
        Err(refused) if refused.source.raw_os_error() == Some(libc::EPERM) => {
            remove(&mut ours, &rules).map_err(describe)?;
            Ok("another process is refused".to_owned())
        }
        Err(refused) => Err(describe(refused)),
        Ok(()) => Err("the kernel took the flag, and let another process delete".to_owned()),
    }
}

/// Whether an owned table stays when its socket closes.
fn owner_mode_persist() -> Result<String, String> {
    let rules =
        scratch(OwnerMode::OwnerPersist, &HookPoint::Output, ChainKind::Filter, Vec::new())?;
    drop(install(&rules).map_err(|error| format!("{error}; kernel 6.9 has it"))?);
    let mut later = NetfilterSocket::open_here().map_err(|error| error.to_string())?;
    remove(&mut later, &rules).map_err(describe)?;
    Ok("an owned table outlives its socket".to_owned())
}

/// Whether adding an element again sets its timeout anew.
fn element_update() -> Result<String, String> {
    let mut rules = scratch(OwnerMode::None, &HookPoint::Output, ChainKind::Filter, Vec::new())?;
    for table in &mut rules.tables {
        table.sets.push(Set {
            name: "probe".to_owned(),
            kind: SetKind::Granted,
            key: vec![KeyField::Ipv4Address],
            limit: None,
            elements: BTreeSet::new(),
        });
    }
    let mut socket = install(&rules)?;
    for seconds in [10, 1000] {
        let mut batch = Batch::new();
        let timeout = Some(Duration::from_secs(seconds));
        let value = ElementValue { key: &[192, 0, 2, 1], end: None, timeout };
        add_elements(&mut batch, kernel::NFPROTO_INET, rules.name.as_str(), "probe", [value]);
        socket.apply(batch).map_err(describe)?;
    }
    let found = elements(&mut socket, kernel::NFPROTO_INET, rules.name.as_str(), "probe");
    remove(&mut socket, &rules).map_err(describe)?;
    let found = found.map_err(|error| error.to_string())?;
    let remaining = found.first().and_then(|element| element.remaining).unwrap_or_default();
    if remaining > Duration::from_secs(10) {
        Ok("adding again sets the timeout anew".to_owned())
    } else {
        Err("adding again changes nothing (before kernel 6.12); delete and add instead".to_owned())
    }
}
