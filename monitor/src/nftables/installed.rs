//! A job's tables in the kernel, from installation to removal.

use super::decode::FoundElement;
use super::encode::{
    ElementValue, add_all, add_elements, delete_elements, delete_table, family_number,
};
use super::error::InstallError;
use super::grants::{Additions, Ledger, LiveGrant, live, refusal};
use super::socket::{Batch, NetfilterSocket};
use super::verify::{list, live_elements, verify};
use super::wire::{kernel, malformed};
use crate::egress::grant::{Grant, GrantError, GrantSink};
use crate::egress::plan::UPSTREAM_PORTS;
use crate::egress::rule_set::{Element, HookPoint, RuleSet, TableFamily};
use crate::egress::target::TableName;
use crate::sys::namespace::in_network_namespace;
use nix::net::if_::if_nametoindex;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A named counter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Counter {
    /// Its name: [`crate::egress::log_prefix::RuleKind::counter`] or one of [`crate::egress::plan::counters`].
    pub name: String,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A job's tables in the kernel, and the netlink socket that owns them. Usable from several threads; each call blocks
/// for as long as the kernel needs.
///
/// Dropping it leaves the tables in force, unless the owner mode lets them vanish with the socket: the end of a job
/// calls [`Self::remove`].
pub struct InstalledTable {
    state: Mutex<State>,
}

impl fmt::Debug for InstalledTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.state().rules.name;
        formatter.debug_struct("InstalledTable").field("name", name).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    socket: NetfilterSocket,
    rules: RuleSet,
    ledger: Ledger,
}

/// What survives a replacement.
#[derive(Debug, Default)]
struct Live {
    counters: BTreeMap<(TableFamily, String), (u64, u64)>,
    elements: BTreeMap<String, Vec<FoundElement>>,
}

/// Which grants go on when tables are replaced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Keep {
    /// What the kernel holds: nobody else could change it, or nobody knows better.
    Everything,
    /// What the ledger knows of.
    OwnGrants,
}

impl InstalledTable {
    /// Puts `rules` in force in the network namespace: one transaction, read back, verified.
    ///
    /// # Errors
    /// When they are not in force; then nothing of them is. Tables of the same name that exist already are an error,
    /// and stay.
    pub fn install(namespace: BorrowedFd<'_>, rules: &RuleSet) -> Result<Self, InstallError> {
        let mut socket = open(namespace, rules)?;
        let mut batch = Batch::new();
        for table in &rules.tables {
            add_all(&mut batch, rules, table, |_| (0, 0));
        }
        socket.apply(batch)?;
        let installed = Self::new(socket, rules);
        if let Err(error) = installed.verify() {
            installed.remove()?;
            return Err(error);
        }
        Ok(installed)
    }

    /// Takes over the tables `name` that a monitor left behind (`OwnerMode::OwnerPersist` or `None`), or makes them
    /// anew when they are gone; live grants and counters stay. Between the two there is no moment without rules.
    ///
    /// # Errors
    /// When `rules` are not in force; what was there before still is.
    pub fn adopt(
        namespace: BorrowedFd<'_>,
        name: &TableName,
        rules: &RuleSet,
    ) -> Result<Self, InstallError> {
        let socket = open(namespace, rules)?;
        let adopted = Self::new(socket, rules);
        adopted.state().replace_tables(name, rules, Keep::Everything)?;
        Ok(adopted)
    }

    /// Goes on with the socket that an earlier monitor had in the same network namespace ([`Self::socket`]), which still owns
    /// the tables; live grants and counters stay.
    ///
    /// # Errors
    /// When `rules` are not in force; what was there before still is.
    pub fn resume(
        namespace: BorrowedFd<'_>,
        socket: OwnedFd,
        rules: &RuleSet,
    ) -> Result<Self, InstallError> {
        let socket = NetfilterSocket::resume(socket, namespace).map_err(InstallError::Socket)?;
        let resumed = Self::new(socket, rules);
        resumed.state().replace_tables(&rules.name, rules, Keep::Everything)?;
        Ok(resumed)
    }

    /// Removes tables that an earlier monitor left in `namespace` and that nobody owns any more; that there are none is no
    /// error.
    ///
    /// # Errors
    /// When the kernel refused.
    pub fn remove_left_behind(
        namespace: BorrowedFd<'_>,
        name: &TableName,
    ) -> Result<(), InstallError> {
        let mut socket = NetfilterSocket::open(namespace).map_err(InstallError::Socket)?;
        for family in [TableFamily::Inet, TableFamily::Netdev] {
            remove_table(&mut socket, family, name)?;
        }
        Ok(())
    }

    /// The same for tables that are owned by a socket of an earlier monitor.
    ///
    /// # Errors
    /// When the kernel refused.
    pub fn remove_kept(
        namespace: BorrowedFd<'_>,
        socket: OwnedFd,
        name: &TableName,
    ) -> Result<(), InstallError> {
        let mut socket =
            NetfilterSocket::resume(socket, namespace).map_err(InstallError::Socket)?;
        for family in [TableFamily::Inet, TableFamily::Netdev] {
            remove_table(&mut socket, family, name)?;
        }
        Ok(())
    }

    fn new(socket: NetfilterSocket, rules: &RuleSet) -> Self {
        let state = State { socket, rules: rules.clone(), ledger: Ledger::default() };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The kernel's state is changed by transactions, so that a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads everything back and compares it.
    ///
    /// # Errors
    /// [`InstallError::Mismatch`] with the first difference when the kernel holds something else.
    pub fn verify(&self) -> Result<(), InstallError> {
        let State { socket, rules, .. } = &mut *self.state();
        verify(socket, rules)
    }

    /// Replaces everything atomically; live grants and counters stay.
    ///
    /// # Errors
    /// When the new rules are not in force; then the old ones are. On [`InstallError::Mismatch`] the new ones are, but
    /// not as meant.
    pub fn replace(&self, rules: &RuleSet) -> Result<(), InstallError> {
        let mut state = self.state();
        let old = state.rules.name.clone();
        state.replace_tables(&old, rules, Keep::Everything)
    }

    /// Puts everything in force anew after somebody else changed it, atomically. Grants that we made are open for as long
    /// as they were to be, also when their set or table is gone; what others put among them is not.
    ///
    /// # Errors
    /// As [`Self::replace`].
    pub fn restore(&self, rules: &RuleSet) -> Result<(), InstallError> {
        let mut state = self.state();
        let old = state.rules.name.clone();
        state.replace_tables(&old, rules, Keep::OwnGrants)
    }

    /// Opens or prolongs all of `grants`, or none; a grant never shortens another. Takes some microseconds.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn add_grants(&self, grants: &[Grant]) -> Result<(), GrantError> {
        let State { socket, rules, ledger } = &mut *self.state();
        let now = Instant::now();
        let additions = Additions::of(grants, rules, ledger, now)?;
        socket.apply(additions.batch(rules)).map_err(|refused| refusal(refused, rules))?;
        let limit: usize =
            rules.grants.iter().filter_map(|sets| usize::try_from(sets.limit).ok()).sum();
        additions.done(ledger, now, limit);
        Ok(())
    }

    /// Every open grant.
    ///
    /// # Errors
    /// When the kernel's answer can't be read.
    pub fn list_grants(&self) -> Result<Vec<LiveGrant>, InstallError> {
        let State { socket, rules, .. } = &mut *self.state();
        let mut grants = Vec::new();
        for sets in &rules.grants {
            let mut read = |set| {
                live_elements(socket, kernel::NFPROTO_INET, rules.name.as_str(), set)
                    .map_err(InstallError::Answer)
            };
            grants.extend(live(sets, &read(&sets.granted)?, &read(&sets.active)?));
        }
        Ok(grants)
    }

    /// The counters of all tables.
    ///
    /// # Errors
    /// When the kernel's answer can't be read.
    pub fn counters(&self) -> Result<Vec<Counter>, InstallError> {
        let State { socket, rules, .. } = &mut *self.state();
        let mut found = Vec::new();
        for table in &rules.tables {
            found.extend(
                read_counters(socket, table.family, &rules.name).map_err(InstallError::Answer)?,
            );
        }
        Ok(found)
    }

    /// Sets the source ports of the resolver's upstream sockets.
    ///
    /// # Errors
    /// When the kernel refused; then the old ones are in force.
    pub fn set_upstream_ports(&self, ports: &[u16]) -> Result<(), InstallError> {
        let State { socket, rules, .. } = &mut *self.state();
        let wanted: BTreeSet<Element> = ports
            .iter()
            .map(|port| Element { key: port.to_be_bytes().to_vec(), end: None })
            .collect();
        let name = rules.name.clone();
        let sets = rules.tables.iter_mut().flat_map(|table| &mut table.sets);
        for set in sets.filter(|set| set.name == UPSTREAM_PORTS) {
            let mut batch = Batch::new();
            let (table, family) = (name.as_str(), kernel::NFPROTO_INET);
            let gone = set.elements.difference(&wanted).map(ElementValue::from);
            delete_elements(&mut batch, family, table, UPSTREAM_PORTS, gone);
            let new = wanted.difference(&set.elements).map(ElementValue::from);
            add_elements(&mut batch, family, table, UPSTREAM_PORTS, new);
            socket.apply(batch)?;
            set.elements.clone_from(&wanted);
        }
        Ok(())
    }

    /// Our netlink port id, by which the kernel names the owner of the tables.
    pub fn port_id(&self) -> u32 {
        self.state().socket.port_id()
    }

    /// The name of the tables.
    pub fn name(&self) -> TableName {
        self.state().rules.name.clone()
    }

    /// Another descriptor of the netlink socket, to be kept by systemd over a restart of the monitor
    /// ([`Self::resume`]).
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn socket(&self) -> io::Result<OwnedFd> {
        self.state().socket.socket().as_fd().try_clone_to_owned()
    }

    /// Removes the tables; that they are gone already is no error.
    ///
    /// # Errors
    /// When the kernel refused.
    pub fn remove(&self) -> Result<(), InstallError> {
        let State { socket, rules, .. } = &mut *self.state();
        for table in &rules.tables {
            remove_table(socket, table.family, &rules.name)?;
        }
        Ok(())
    }
}

fn remove_table(
    socket: &mut NetfilterSocket,
    family: TableFamily,
    name: &TableName,
) -> Result<(), InstallError> {
    let mut batch = Batch::new();
    delete_table(&mut batch, family, name.as_str());
    socket.removes(name.as_str());
    match socket.apply(batch) {
        Err(refused) if refused.source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => Ok(other?),
    }
}

impl State {
    /// Deletes the tables `old` and makes those of `rules`, in one transaction.
    fn replace_tables(
        &mut self,
        old: &TableName,
        rules: &RuleSet,
        keep: Keep,
    ) -> Result<(), InstallError> {
        let existing = existing_tables(&mut self.socket, old).map_err(InstallError::Answer)?;
        let mut live =
            read_live(&mut self.socket, old, &existing, rules).map_err(InstallError::Answer)?;
        let now = Instant::now();
        if keep == Keep::OwnGrants {
            for sets in &rules.grants {
                // A packet prolongs what was granted once, so that these may have ended in the ledger.
                let used = live.elements.entry(sets.active.clone()).or_default();
                used.retain(|element| {
                    let knows = |set: &str| self.ledger.knows(set, &element.key);
                    knows(&sets.granted) || knows(&sets.active)
                });
                live.elements.insert(sets.granted.clone(), self.ledger.open(&sets.granted, now));
            }
        }
        let mut batch = Batch::new();
        for family in &existing {
            delete_table(&mut batch, *family, old.as_str());
        }
        for table in &rules.tables {
            add_all(&mut batch, rules, table, |counter| {
                live.counters.get(&(table.family, counter.to_owned())).copied().unwrap_or_default()
            });
        }
        for (set, elements) in &live.elements {
            let values = elements.iter().map(|element| ElementValue {
                key: &element.key,
                end: None,
                timeout: element.remaining,
            });
            add_elements(&mut batch, kernel::NFPROTO_INET, rules.name.as_str(), set, values);
        }
        self.socket.apply(batch)?;
        self.rules = rules.clone();
        if keep == Keep::Everything {
            self.ledger = Ledger::default();
        }
        for (set, elements) in &live.elements {
            self.ledger.note(set, elements, now);
        }
        verify(&mut self.socket, &self.rules)
    }
}

/// Opens a socket in `namespace`, where every uplink of `rules` must be.
fn open(namespace: BorrowedFd<'_>, rules: &RuleSet) -> Result<NetfilterSocket, InstallError> {
    let chains = rules.tables.iter().flat_map(|table| &table.chains);
    let devices: Vec<&str> = chains
        .filter_map(|chain| match &chain.hook.as_ref()?.point {
            HookPoint::Egress(device) => Some(device.as_str()),
            _ => None,
        })
        .collect();
    let (socket, missing) = in_network_namespace(namespace, || {
        let missing = devices.iter().find(|device| if_nametoindex(**device).is_err());
        (NetfilterSocket::open_here(), missing)
    })
    .map_err(InstallError::Socket)?;
    if let Some(missing) = missing {
        return Err(InstallError::NoInterface((*missing).to_owned()));
    }
    socket.map_err(InstallError::Socket)
}

const FAMILIES: [TableFamily; 2] = [TableFamily::Inet, TableFamily::Netdev];

fn existing_tables(socket: &mut NetfilterSocket, name: &TableName) -> io::Result<Vec<TableFamily>> {
    let mut found = Vec::new();
    for family in FAMILIES {
        let tables =
            list(socket, kernel::GETTABLE, family_number(family), name.as_str(), |_| Ok(()))?;
        if !tables.is_empty() {
            found.push(family);
        }
    }
    Ok(found)
}

fn read_live(
    socket: &mut NetfilterSocket,
    old: &TableName,
    existing: &[TableFamily],
    rules: &RuleSet,
) -> io::Result<Live> {
    let mut live = Live::default();
    for family in existing {
        for Counter { name, packets, bytes } in read_counters(socket, *family, old)? {
            live.counters.insert((*family, name), (packets, bytes));
        }
    }
    if !existing.contains(&TableFamily::Inet) {
        return Ok(live);
    }
    for set in rules.grants.iter().flat_map(|sets| [&sets.granted, &sets.active]) {
        match live_elements(socket, kernel::NFPROTO_INET, old.as_str(), set) {
            Ok(mut found) => {
                // One that ends while we look is not opened again; one without an end is none of ours.
                found.retain(|element| element.remaining.is_some_and(|left| !left.is_zero()));
                live.elements.insert(set.clone(), found);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(live)
}

fn read_counters(
    socket: &mut NetfilterSocket,
    family: TableFamily,
    table: &TableName,
) -> io::Result<Vec<Counter>> {
    list(socket, kernel::GETOBJ, family_number(family), table.as_str(), |message| {
        let attributes = message.attributes()?;
        let data = attributes.nested(4)?.ok_or_else(malformed)?;
        Ok(Counter {
            name: attributes.text(2).ok_or_else(malformed)?,
            bytes: data.be64(1).unwrap_or_default(),
            packets: data.be64(2).unwrap_or_default(),
        })
    })
}

impl GrantSink for InstalledTable {
    fn grant(&self, grants: &[Grant]) -> Result<(), GrantError> {
        self.add_grants(grants)
    }
}
