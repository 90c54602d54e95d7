//! The source ports of all resolvers of this process: an answer may be on its way to each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which ports resolvers ask upstreams from, in whatever network namespace.
#[derive(Clone, Debug, Default)]
pub struct SourcePorts {
    /// How many sockets there are of each port: UDP, TCP and network namespaces have ports of their own.
    sockets: Arc<Mutex<BTreeMap<u16, usize>>>,
}

/// Ports of one resolver, for as long as this lives.
#[derive(Debug)]
pub struct RegisteredPorts {
    all: SourcePorts,
    ports: Vec<u16>,
}

impl SourcePorts {
    /// Notes the ports of a resolver. To be called before it asks for the first time.
    pub fn register(&self, ports: impl IntoIterator<Item = u16>) -> RegisteredPorts {
        let ports: Vec<u16> = ports.into_iter().collect();
        let mut sockets = self.lock();
        for port in &ports {
            *sockets.entry(*port).or_default() += 1;
        }
        drop(sockets);
        RegisteredPorts { all: self.clone(), ports }
    }

    /// The ports that are in use now.
    pub fn in_use(&self) -> BTreeSet<u16> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, usize>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RegisteredPorts {
    fn drop(&mut self) {
        let mut sockets = self.all.lock();
        for port in &self.ports {
            if let Some(count) = sockets.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    sockets.remove(port);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SourcePorts;

    #[test]
    fn a_port_is_in_use_while_a_resolver_has_it() {
        let all = SourcePorts::default();
        let first = all.register([1000, 1000, 2000]);
        let second = all.clone().register([2000, 3000]);
        assert_eq!(Vec::from_iter(all.in_use()), [1000, 2000, 3000]);
        drop(first);
        assert_eq!(Vec::from_iter(all.in_use()), [2000, 3000]);
        drop(second);
        assert!(all.in_use().is_empty());
    }
}
