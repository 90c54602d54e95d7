//! Which container has an address, for the events of what comes from it.
//!
//! A container can send with any source address, so that its name in an event is evidence, never a reason for a verdict.

use super::{Containers, facts, identity};
use crate::caller::{ProcFs, ProcessTable};
use crate::network::interfaces;
use crate::watch::bounded::BoundedCache;
use std::collections::HashSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Addresses that are remembered.
const REMEMBERED_ADDRESSES: usize = 4_096;

/// How long an address stands for a container without another look.
const FRESH: Duration = Duration::from_secs(2);

/// The shortest time between two looks at all network namespaces.
const PAUSE: Duration = Duration::from_millis(100);

/// The most network namespaces that are looked into at a time.
const NAMESPACE_LIMIT: usize = 256;

/// Names by address.
#[derive(Debug)]
pub(super) struct Names {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    known: BoundedCache<IpAddr, (String, Instant)>,
    /// Addresses that no container had when it was looked.
    absent: BoundedCache<IpAddr, Instant>,
    looked: Option<Instant>,
}

impl Default for Names {
    fn default() -> Self {
        let known = BoundedCache::new(REMEMBERED_ADDRESSES);
        let absent = BoundedCache::new(REMEMBERED_ADDRESSES);
        Self { state: Mutex::new(State { known, absent, looked: None }) }
    }
}

impl Names {
    /// Notes whose an address is.
    pub(super) fn note(&self, address: IpAddr, name: String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.known.insert(address, (name, Instant::now()));
    }

    /// Notes that no container has the address.
    fn note_absent(&self, address: IpAddr) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.absent.insert(address, Instant::now());
    }

    /// The name, and whether it is time to look again.
    fn find(&self, address: IpAddr) -> (Option<String>, bool) {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.known.get(&address).cloned();
        let seen = known.as_ref().map(|(_, seen)| *seen);
        let seen = seen.or_else(|| state.absent.get(&address).copied());
        let is_fresh = seen.is_some_and(|seen| now.duration_since(seen) < FRESH);
        let may_look = state.looked.is_none_or(|looked| now.duration_since(looked) >= PAUSE);
        if !is_fresh && may_look {
            state.looked = Some(now);
        }
        (known.map(|(name, _)| name), !is_fresh && may_look)
    }
}

impl Containers {
    /// The container that has this address, in words: `busy_bell (0123456789ab, image alpine:3)`.
    pub fn name_of(&self, address: IpAddr) -> Option<String> {
        let (known, is_time) = self.names.find(address);
        if !is_time {
            return known;
        }
        self.look_at_addresses();
        let found = self.names.find(address).0;
        if found.is_none() {
            self.names.note_absent(address);
        }
        found.or(known)
    }

    /// Looks into every network namespace that a container's process is in.
    fn look_at_addresses(&self) {
        let mut seen: HashSet<std::path::PathBuf> = HashSet::new();
        for pid in
            [1, std::process::id()].into_iter().chain(self.jobs().iter().map(|job| job.worker.pid))
        {
            seen.extend(fs::read_link(format!("/proc/{pid}/ns/net")));
        }
        let hosts: Vec<String> = self
            .jobs()
            .iter()
            .map(|job| job.reference.namespaces().name("net").to_owned())
            .collect();
        for pid in ProcFs.pids() {
            let path = format!("/proc/{pid}/ns/net");
            let Ok(namespace) = fs::read_link(&path) else { continue };
            if seen.contains(&namespace) || seen.len() > NAMESPACE_LIMIT {
                continue;
            }
            let Some(group) = facts::cgroup_of(pid) else { continue };
            let by_group = identity::id_in_path(&group).map(str::to_owned);
            let Some(id) = by_group.or_else(|| facts::id_by_maker(pid)) else { continue };
            // Engines of other networks give the same addresses.
            let maker = facts::maker_network(pid);
            if maker.is_none_or(|maker| !hosts.contains(&maker)) {
                continue;
            }
            // Only now: another process of the same namespace may be in a container when this one is not.
            seen.insert(namespace);
            let Ok(links) = File::open(&path).and_then(|namespace| interfaces(namespace.as_fd()))
            else {
                continue;
            };
            let name = identity::in_words(Some(&id), self.description(&id).as_deref());
            for link in links.iter().filter(|link| !link.is_loopback) {
                for address in &link.addresses {
                    self.names.note(*address, name.clone());
                }
            }
        }
    }
}
