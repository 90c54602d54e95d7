//! Which servers to ask: what a Worker's `/etc/resolv.conf` says.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Name servers used at most: `MAXNS` of resolv.conf(5).
const MAXIMUM_SERVERS: usize = 3;

/// Search domains used at most; glibc had this limit until 2.26, and more would only slow every look-up down.
const MAXIMUM_SEARCH_DOMAINS: usize = 6;

/// The longest file that is read. Real ones have some hundred bytes.
const MAXIMUM_FILE: u64 = 64 * 1024;

/// The port of DNS.
const DNS_PORT: u16 = 53;

/// The addresses that systemd-resolved's stubs listen on (systemd-resolved.service(8)).
const RESOLVED_STUBS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];

/// What was found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SystemResolver {
    /// The servers, in order.
    pub upstreams: Vec<SocketAddr>,
    /// The `search` domains, lower case.
    pub search_domains: Vec<String>,
}

/// Why no upstream could be taken from the configuration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SystemResolverError {
    /// No `nameserver` line at all.
    #[error(
        "resolv.conf names no server that could be asked; add a `nameserver` line, or set `upstreams` under [dns] in monitor.toml"
    )]
    NoServer,
    /// systemd-resolved's stub, and its own list is not there.
    #[error(
        "resolv.conf points at systemd-resolved's stub ({stub}), and /run/systemd/resolve/resolv.conf names no server; set `upstreams` under [dns] in monitor.toml to what resolvectl(1) shows"
    )]
    Stub {
        /// The stub's address.
        stub: IpAddr,
    },
    /// Only servers on this machine: what they ask would come back to us.
    #[error(
        "resolv.conf names only {address}, a server on this machine; its own questions would be redirected back to it; set `upstreams` under [dns] in monitor.toml to the servers that it asks"
    )]
    Loopback {
        /// The first of them.
        address: IpAddr,
    },
}

/// [`from_resolv_conf_with_zones`] with the interfaces of the calling thread's network namespace.
///
/// # Errors
/// When there is no server that could be asked without asking ourselves.
pub fn from_resolv_conf(
    text: &str,
    resolved: Option<&str>,
) -> Result<SystemResolver, SystemResolverError> {
    let zone = |name: &str| nix::net::if_::if_nametoindex(name).ok();
    from_resolv_conf_with_zones(text, resolved, &zone)
}

/// Takes the upstreams from the text of a Worker's `/etc/resolv.conf`. When that points at systemd-resolved's stub,
/// `resolved` is used: the text of `/run/systemd/resolve/resolv.conf` below the same root, when it is there. `zone` gives
/// the index of the interface that a link-local server's address names; a server with an unknown one is left out.
///
/// # Errors
/// When there is no server that could be asked without asking ourselves.
pub fn from_resolv_conf_with_zones(
    text: &str,
    resolved: Option<&str>,
    zone: &dyn Fn(&str) -> Option<u32>,
) -> Result<SystemResolver, SystemResolverError> {
    let parse = |text: &str| parse(text, zone);
    let own = parse(text);
    let loopback = own.upstreams.iter().map(SocketAddr::ip).find(IpAddr::is_loopback);
    let stub = own.upstreams.iter().map(SocketAddr::ip).find(|address| is_stub(*address));
    let mut found = match stub {
        None => own,
        Some(stub) => {
            let real = resolved.map(parse).unwrap_or_default();
            if real.upstreams.iter().all(|upstream| upstream.ip().is_loopback()) {
                return Err(SystemResolverError::Stub { stub });
            }
            let search_domains = if own.search_domains.is_empty() {
                real.search_domains
            } else {
                own.search_domains
            };
            SystemResolver { upstreams: real.upstreams, search_domains }
        }
    };
    found.upstreams.retain(|upstream| !upstream.ip().is_loopback());
    found.upstreams.truncate(MAXIMUM_SERVERS);
    match (found.upstreams.is_empty(), loopback) {
        (false, _) => Ok(found),
        (true, Some(address)) => Err(SystemResolverError::Loopback { address }),
        (true, None) => Err(SystemResolverError::NoServer),
    }
}

fn is_stub(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if RESOLVED_STUBS.contains(&address))
}

/// Reads the lines that matter; what can't be understood is skipped, as resolvers do.
fn parse(text: &str, zone: &dyn Fn(&str) -> Option<u32>) -> SystemResolver {
    let mut found = SystemResolver::default();
    for line in text.lines() {
        // glibc takes comments only at the start of a line, but nothing sensible has `#` or `;` later.
        let line = line.split(['#', ';']).next().unwrap_or(line);
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().and_then(|text| server(text, zone));
                if let Some(server) = server.filter(|server| !found.upstreams.contains(server)) {
                    found.upstreams.push(server);
                }
            }
            // The last of these lines counts (resolv.conf(5)).
            Some("search" | "domain") => {
                found.search_domains = words
                    .map(|domain| domain.trim_matches('.').to_ascii_lowercase())
                    .filter(|domain| !domain.is_empty())
                    .take(MAXIMUM_SEARCH_DOMAINS)
                    .collect();
            }
            _ => {}
        }
    }
    found
}

/// A server's address: IPv4, IPv6, or IPv6 with a zone (`fe80::1%eth0`, `fe80::1%2`).
fn server(text: &str, zone: &dyn Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    if let Some((address, interface)) = text.split_once('%') {
        let address = address.parse().ok()?;
        let index = match interface.parse() {
            Ok(index) => index,
            Err(_) => zone(interface)?,
        };
        return Some(SocketAddrV6::new(address, DNS_PORT, 0, index).into());
    }
    let address: IpAddr = text.parse().ok()?;
    // `0.0.0.0` and `::` mean this host.
    (!address.is_unspecified() && !address.is_multicast())
        .then(|| SocketAddr::new(address, DNS_PORT))
}

/// Reads a small text file that a job may have put there: a file of any other kind (a FIFO would block, a device would not
/// end) or one that is too long is an error; bytes that are not UTF-8 are replaced.
///
/// # Errors
/// When it can't be opened or read, is no regular file, or is longer than 64 KiB.
pub fn read_bounded(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAXIMUM_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAXIMUM_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 64 KiB"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, resolved: Option<&str>, expected: Result<&[&str], &str>) {
        let zone = |name: &str| (name == "eth0").then_some(7);
        let found = from_resolv_conf_with_zones(text, resolved, &zone);
        let servers = found
            .as_ref()
            .map(|found| found.upstreams.iter().map(ToString::to_string).collect::<Vec<_>>())
            .map_err(ToString::to_string);
        match (servers, expected) {
            (Ok(servers), Ok(expected)) => assert_eq!(servers, expected, "{text:?}"),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            (servers, expected) => panic!("{text:?}: {servers:?} is not {expected:?}"),
        }
    }

    #[test]
    fn servers_are_taken_in_order() {
        check(
            "# made by hand\nnameserver 10.0.0.53\n  nameserver\t2001:db8::53 \nnameserver fe80::1%eth0\nnameserver 9.9.9.9\n",
            None,
            Ok(&["10.0.0.53:53", "[2001:db8::53]:53", "[fe80::1%7]:53"]),
        );
        check(
            "nameserver fe80::1%3\nnameserver fe80::2%nowhere\nnameserver x\nnameserver 0.0.0.0\nnameserver\nnameserver 10.0.0.1 # twice\nnameserver 10.0.0.1",
            None,
            Ok(&["[fe80::1%3]:53", "10.0.0.1:53"]),
        );
    }

    #[test]
    fn the_stub_of_resolved_is_looked_through() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.internal\n";
        check(stub, Some("nameserver 10.0.0.2\nsearch x\n"), Ok(&["10.0.0.2:53"]));
        check(stub, None, Err("resolvectl"));
        check(stub, Some("# nothing"), Err("resolvectl"));
        let found = from_resolv_conf(stub, Some("nameserver 10.0.0.2")).unwrap();
        assert_eq!(found.search_domains, ["corp.internal"]);
    }

    #[test]
    fn servers_on_this_machine_are_no_upstreams() {
        check("nameserver 127.0.0.1", None, Err("redirected back"));
        check("nameserver ::1", None, Err("redirected back"));
        check("nameserver 127.0.0.1\nnameserver 10.0.0.1", None, Ok(&["10.0.0.1:53"]));
        check("", None, Err("`nameserver` line"));
        check("search a b", None, Err("`nameserver` line"));
    }

    #[test]
    fn search_domains_are_normalized() {
        let text = "domain old\nnameserver 10.0.0.1\nsearch Default.SVC.cluster.local. . b\n";
        let found = from_resolv_conf(text, None).unwrap();
        assert_eq!(found.search_domains, ["default.svc.cluster.local", "b"]);
    }

    #[test]
    fn only_small_regular_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resolv.conf");
        std::fs::write(&file, b"nameserver 10.0.0.1\n\xff").unwrap();
        assert_eq!(read_bounded(&file).unwrap(), "nameserver 10.0.0.1\n\u{fffd}");
        assert!(read_bounded(directory.path()).is_err());
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read_bounded(&fifo).is_err());
        assert!(read_bounded(Path::new("/dev/zero")).is_err());
        std::fs::write(&file, vec![b'#'; 70_000]).unwrap();
        assert!(read_bounded(&file).is_err());
    }
}
