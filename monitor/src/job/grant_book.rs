//! Which name opened which address: what lets an event say `registry.npmjs.org` instead of a number.
//!
//! Names come from our own resolver only, never from `/etc/hosts`, a reverse lookup or a TLS handshake: those can be
//! chosen by the job.

use crate::egress::grant::{Grant, GrantError, GrantSink};
use portcullis_common::endpoint::{PortRange, Protocol};
use portcullis_common::policy::Rule;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The most addresses that are remembered with a name. Beyond that events carry the address alone.
const MAX_ADDRESSES: usize = 65_536;

/// The most names that are remembered for one address, newest first. Content networks put many names on one address.
const MAX_NAMES_PER_ADDRESS: usize = 16;

/// A name that our resolver gave an address for, as a line of the book's file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct NamedAddress {
    /// The address.
    pub address: IpAddr,
    /// The name that was asked for.
    pub name: String,
    /// The names between `name` and the address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cname_chain: Vec<String>,
    /// What the name opened there; absent when it was answered only because the policy audits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<Opened>,
}

/// What a name opened at an address.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Opened {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The lowest port.
    pub first_port: u16,
    /// The highest port.
    pub last_port: u16,
    /// The endpoint responsible, as its author wrote it.
    pub rule: String,
}

impl Opened {
    /// Whether a call by a protocol, as events name it, to a port is what was opened.
    pub fn covers(&self, protocol: &str, port: Option<u16>) -> bool {
        match self.protocol.as_str() {
            "icmp" => matches!(protocol, "icmp" | "icmpv6"),
            own => {
                own == protocol
                    && port.is_some_and(|port| (self.first_port..=self.last_port).contains(&port))
            }
        }
    }
}

/// The names of a job's addresses; kept in a file beside the job's state, so that a restarted monitor knows them.
#[derive(Debug)]
pub struct GrantBook {
    kernel: Arc<dyn GrantSink>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The names of each address, the newest last.
    by_address: HashMap<IpAddr, Vec<Name>>,
    file: File,
}

/// A name of an address, in as few bytes as it takes: a job can have tens of thousands.
#[derive(Debug)]
struct Name {
    asked: Arc<str>,
    cname_chain: Box<[String]>,
    opened: Option<Opening>,
}

/// What a name opened.
#[derive(Debug)]
struct Opening {
    protocol: Protocol,
    ports: PortRange,
    /// The endpoint responsible.
    rule: Arc<Rule>,
}

impl Opening {
    fn covers(&self, protocol: &str, port: Option<u16>) -> bool {
        match self.protocol {
            Protocol::Icmp => matches!(protocol, "icmp" | "icmpv6"),
            _ => {
                protocol_name(self.protocol) == protocol
                    && port.is_some_and(|port| self.ports.contains(port))
            }
        }
    }

    /// Back from a line of the file; `None` for one that this version did not write.
    fn read(opened: &Opened) -> Option<Self> {
        let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp]
            .into_iter()
            .find(|protocol| protocol_name(*protocol) == opened.protocol)?;
        let text = opened.rule.as_str();
        let rule = Rule { endpoint: text.parse().ok()?, text: text.into(), policy: "".into() };
        let ports = PortRange::new(opened.first_port, opened.last_port)?;
        Some(Self { protocol, ports, rule: Arc::new(rule) })
    }
}

impl Name {
    /// Whether both say the same to a reader of events.
    fn is_same(&self, other: &Self) -> bool {
        let opened = |name: &Self| {
            let opening = name.opened.as_ref()?;
            Some((opening.protocol, opening.ports, Arc::clone(&opening.rule.text)))
        };
        self.asked == other.asked
            && self.cname_chain == other.cname_chain
            && opened(self) == opened(other)
    }

    /// Back from a line of the file; `None` for one that this version did not write.
    fn read(line: NamedAddress) -> Option<Self> {
        let opened = match &line.opened {
            None => None,
            Some(opened) => Some(Opening::read(opened)?),
        };
        Some(Self { asked: line.name.into(), cname_chain: line.cname_chain.into(), opened })
    }

    /// As it is told, and written to the file.
    fn at(&self, address: IpAddr) -> NamedAddress {
        NamedAddress {
            address,
            name: self.asked.to_string(),
            cname_chain: self.cname_chain.to_vec(),
            opened: self.opened.as_ref().map(|opening| Opened {
                protocol: protocol_name(opening.protocol).to_owned(),
                first_port: opening.ports.first(),
                last_port: opening.ports.last(),
                rule: opening.rule.text.to_string(),
            }),
        }
    }
}

impl GrantBook {
    /// Opens the book in `directory`, reading what an earlier monitor wrote there; grants go on to `kernel`.
    ///
    /// # Errors
    /// When the file can't be opened or read.
    pub fn open(directory: &Path, kernel: Arc<dyn GrantSink>) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            .open(directory.join("names.ndjson"))?;
        let mut state = State { by_address: HashMap::new(), file };
        let reader = BufReader::new(state.file.try_clone()?).take(64 * 1024 * 1024);
        for line in reader.lines() {
            // A line that a crash left unfinished names one address less; the address itself is in the kernel.
            if let Ok(line) = serde_json::from_str::<NamedAddress>(&line?)
                && let address = line.address
                && let Some(name) = Name::read(line)
            {
                state.remember(address, name);
            }
        }
        Ok(Self { kernel, state: Mutex::new(state) })
    }

    /// Remembers a name that was answered without opening anything.
    pub fn learn(&self, address: IpAddr, name: &str, cname_chain: &[String]) {
        let name = Name { asked: name.into(), cname_chain: cname_chain.into(), opened: None };
        self.lock().add(address, name);
    }

    /// The name that opened `protocol` and `port` at `address`, the newest; or, when none did, the newest name that was
    /// answered with this address.
    pub fn find(&self, address: IpAddr, protocol: &str, port: Option<u16>) -> Option<NamedAddress> {
        let state = self.lock();
        let names = state.by_address.get(&address)?;
        let opens =
            |name: &&Name| name.opened.as_ref().is_some_and(|opened| opened.covers(protocol, port));
        let newest_first = || names.iter().rev();
        newest_first().find(opens).or_else(|| newest_first().next()).map(|name| name.at(address))
    }

    /// A grant like the one that opened the ports at the address, for addresses that are still in use.
    pub fn grant_again(
        &self,
        address: IpAddr,
        protocol: Protocol,
        ports: PortRange,
        lifetime: Duration,
    ) -> Option<Grant> {
        let state = self.lock();
        let opened_it = |opening: &Opening| opening.protocol == protocol && opening.ports == ports;
        let name = state
            .by_address
            .get(&address)?
            .iter()
            .rev()
            .find(|name| name.opened.as_ref().is_some_and(opened_it))?;
        Some(Grant {
            address,
            protocol,
            ports,
            name: name.asked.parse().ok()?,
            cname_chain: Vec::new(),
            rule: Arc::clone(&name.opened.as_ref()?.rule),
            lifetime,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GrantSink for GrantBook {
    fn grant(&self, grants: &[Grant]) -> Result<(), GrantError> {
        // The book first: a packet can be on its way as soon as the kernel knows the address.
        let mut state = self.lock();
        for grant in grants {
            state.add(grant.address, name_of(grant));
        }
        drop(state);
        self.kernel.grant(grants)
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp => "icmp",
    }
}

fn name_of(grant: &Grant) -> Name {
    Name {
        asked: grant.name.shared(),
        cname_chain: grant.cname_chain.iter().map(|name| name.as_str().to_owned()).collect(),
        opened: Some(Opening {
            protocol: grant.protocol,
            ports: grant.ports,
            rule: Arc::clone(&grant.rule),
        }),
    }
}

impl State {
    /// Remembers a name and writes it down when it is new.
    fn add(&mut self, address: IpAddr, name: Name) {
        let known = self.by_address.get(&address);
        if known.is_some_and(|names| names.iter().any(|known| known.is_same(&name))) {
            return;
        }
        if let Ok(mut line) = serde_json::to_vec(&name.at(address)) {
            line.push(b'\n');
            // Without the line a restarted monitor knows the address but not the name: worth a word, not a failure.
            if let Err(error) = self.file.write_all(&line) {
                tracing::warn!(error = %error, "the name of an address could not be kept for a restart");
            }
        }
        self.remember(address, name);
    }

    fn remember(&mut self, address: IpAddr, name: Name) {
        if self.by_address.len() >= MAX_ADDRESSES && !self.by_address.contains_key(&address) {
            return;
        }
        // Most addresses have one name for ever.
        let names = self.by_address.entry(address).or_insert_with(|| Vec::with_capacity(1));
        if names.len() >= MAX_NAMES_PER_ADDRESS {
            names.remove(0);
        }
        names.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::{GrantBook, MAX_NAMES_PER_ADDRESS};
    use crate::egress::grant::{Grant, GrantError, GrantSink};
    use portcullis_common::endpoint::{Endpoint, PortRange, Protocol};
    use portcullis_common::policy::Rule;
    use std::net::IpAddr;
    use std::sync::Arc;
    use std::time::Duration;

    #[derive(Debug)]
    struct Kernel;

    impl GrantSink for Kernel {
        fn grant(&self, _: &[Grant]) -> Result<(), GrantError> {
            Ok(())
        }
    }

    fn grant(name: &str, port: u16) -> Grant {
        let text = format!("{name}:{port}");
        Grant {
            address: "192.0.2.7".parse().unwrap(),
            protocol: Protocol::Tcp,
            ports: PortRange::single(port).unwrap(),
            name: name.parse().unwrap(),
            cname_chain: vec!["edge.cdn.test".parse().unwrap()],
            rule: Arc::new(Rule {
                endpoint: text.parse::<Endpoint>().unwrap(),
                text: text.into(),
                policy: "p".into(),
            }),
            lifetime: Duration::from_mins(1),
        }
    }

    fn name_at(book: &GrantBook, port: u16) -> Option<String> {
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        book.find(address, "tcp", Some(port)).map(|entry| entry.name)
    }

    #[test]
    fn the_name_that_opened_the_port_is_found_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let book = GrantBook::open(directory.path(), Arc::new(Kernel)).unwrap();
        book.grant(&[grant("a.test", 443), grant("b.test", 8443)]).unwrap();
        book.learn("198.51.100.1".parse().unwrap(), "c.test", &[]);
        for book in [book, GrantBook::open(directory.path(), Arc::new(Kernel)).unwrap()] {
            assert_eq!(name_at(&book, 443).unwrap(), "a.test");
            assert_eq!(name_at(&book, 8443).unwrap(), "b.test");
            let learnt = book.find("198.51.100.1".parse().unwrap(), "udp", Some(1)).unwrap();
            assert_eq!((learnt.name.as_str(), learnt.opened), ("c.test", None));
            assert!(book.find("198.51.100.2".parse().unwrap(), "tcp", Some(443)).is_none());
        }
    }

    #[test]
    fn one_address_with_many_names_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let book = GrantBook::open(directory.path(), Arc::new(Kernel)).unwrap();
        for number in 0..=MAX_NAMES_PER_ADDRESS {
            book.grant(&[grant(&format!("n{number}.test"), 443)]).unwrap();
        }
        let names: usize = book.lock().by_address.values().map(Vec::len).sum();
        assert_eq!(names, MAX_NAMES_PER_ADDRESS);
        assert_eq!(name_at(&book, 443).unwrap(), format!("n{MAX_NAMES_PER_ADDRESS}.test"));
    }
}
