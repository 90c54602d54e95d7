//! What was judged already.
//!
//! The kernel gives the number of a mount namespace again as soon as it is free, to the next container that is made: by its
//! number alone a container can't be told from one before it. As long as a process that was seen in it lives in it, it is the
//! same.

use crate::caller::ProcessKey;
use crate::watch::bounded::BoundedCache;
use std::collections::HashSet;

/// Mount namespaces that are remembered.
const REMEMBERED: usize = 8_192;

/// Processes by which one is known to be the same.
const WITNESSES: usize = 8;

/// Ways of being in one container that are remembered.
const WAYS: usize = 256;

/// The containers of which something was judged.
#[derive(Debug)]
pub(super) struct Known {
    containers: BoundedCache<String, Container>,
}

#[derive(Clone, Debug)]
struct Container {
    name: String,
    witnesses: Vec<ProcessKey>,
    judged: HashSet<String>,
}

impl Known {
    pub(super) fn new() -> Self {
        Self { containers: BoundedCache::new(REMEMBERED) }
    }

    /// Notes that a process was seen in the mount namespace `mounts` with these privileges. Whether they are to be judged, and
    /// a name of the container that no other gets. `is_there` says whether a process lives, in that mount namespace.
    pub(super) fn note(
        &mut self,
        mounts: &str,
        process: ProcessKey,
        privileges: &str,
        is_there: impl Fn(ProcessKey) -> bool,
    ) -> (bool, String) {
        let known = self.containers.get(mounts).cloned();
        let mut container = known
            .map(|mut known| {
                known.witnesses.retain(|witness| is_there(*witness));
                known
            })
            .filter(|known| !known.witnesses.is_empty())
            .unwrap_or_else(|| Container {
                name: format!("{mounts} of the process {process}"),
                witnesses: Vec::new(),
                judged: HashSet::new(),
            });
        if container.witnesses.len() < WITNESSES && !container.witnesses.contains(&process) {
            container.witnesses.push(process);
        }
        if container.judged.len() >= WAYS {
            container.judged.clear();
        }
        let is_new = container.judged.insert(privileges.to_owned());
        let name = container.name.clone();
        self.containers.insert(mounts.to_owned(), container);
        (is_new, name)
    }

    /// What was noted last could not be judged.
    pub(super) fn forget(&mut self, mounts: &str, privileges: &str) {
        if let Some(mut known) = self.containers.get(mounts).cloned() {
            known.judged.remove(privileges);
            self.containers.insert(mounts.to_owned(), known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "mnt:[4026533309]";

    fn process(pid: u32) -> ProcessKey {
        ProcessKey { pid, start_time: u64::from(pid) }
    }

    #[test]
    fn a_number_that_is_given_again_is_another_container() {
        let mut known = Known::new();
        let all = |_| true;
        let (is_new, first) = known.note(MOUNTS, process(1), "plain", all);
        assert!(is_new);
        assert_eq!(known.note(MOUNTS, process(2), "plain", all), (false, first.clone()));
        // Another way of being in it.
        assert_eq!(known.note(MOUNTS, process(3), "SYS_ADMIN", all), (true, first.clone()));
        // The first ones have ended, one that was seen lives.
        let last = |key: ProcessKey| key.pid == 3;
        assert_eq!(known.note(MOUNTS, process(4), "plain", last), (false, first.clone()));
        // All have ended: whatever has this number now is another one.
        let (is_new, second) = known.note(MOUNTS, process(5), "plain", |_| false);
        assert!(is_new && second != first, "{second}");
    }

    #[test]
    fn what_could_not_be_judged_is_judged_again() {
        let mut known = Known::new();
        assert!(known.note(MOUNTS, process(1), "plain", |_| true).0);
        known.forget(MOUNTS, "plain");
        assert!(known.note(MOUNTS, process(2), "plain", |_| true).0);
    }
}
