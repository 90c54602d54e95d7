//! Requests that leave the store for addresses that people gave: they reach the internet and what the configuration allows
//! beside it, never the store's own host, its network or a cloud's metadata service.
//!
//! The address that is looked at is the one that is connected to: names are resolved by [`Guard`] when a connection is made,
//! and what it leaves out can't be connected to, whatever a name server answers the next time. Redirects are not followed, and
//! no proxy is asked, which would resolve names by itself.

use crate::configuration::NotificationConfiguration;
use ipnet::IpNet;
use portcullis_common::address::special_use;
use portcullis_common::hook::with_causes;
use reqwest::Client;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use url::{Host, Url};

/// How long connecting may take, name resolution included.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Why a request does not leave.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ClientError {
    /// The address can't be used at all.
    #[error("the address can't be used: {0}")]
    Address(&'static str),
    /// It leads somewhere that is not allowed.
    #[error(
        "{address} is not on the internet ({usage}), and no network of `allowed-networks` has it"
    )]
    Special {
        /// The address.
        address: IpAddr,
        /// What it is for.
        usage: &'static str,
    },
    /// Plain HTTP is for networks that are allowed.
    #[error("plain HTTP goes to addresses of `allowed-networks` alone, and {0} is none")]
    PlainHttp(IpAddr),
}

/// Which addresses may be connected to.
#[derive(Clone, Debug)]
struct Guard {
    allowed: Arc<[IpNet]>,
    /// Whether only `allowed` may be reached, not the internet.
    only_allowed: bool,
}

impl Guard {
    fn check(&self, address: IpAddr) -> Result<(), ClientError> {
        if self.allowed.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        match special_use(address) {
            _ if self.only_allowed => Err(ClientError::PlainHttp(address)),
            Some(usage) => Err(ClientError::Special { address, usage }),
            None => Ok(()),
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let mut refused = None;
            let mut reachable = Vec::with_capacity(found.len());
            for address in found {
                match guard.check(address.ip()) {
                    Ok(()) => reachable.push(address),
                    Err(error) => refused = Some(error),
                }
            }
            match refused {
                Some(error) if reachable.is_empty() => Err(error.into()),
                _ => Ok(Box::new(reachable.into_iter()) as Addrs),
            }
        })
    }
}

/// Makes requests.
#[derive(Clone, Debug)]
pub struct Outgoing {
    https: (Client, Guard),
    http: Option<(Client, Guard)>,
}

impl Outgoing {
    /// A client after the configuration; `authorities` are trusted beside the system's.
    ///
    /// # Errors
    /// When TLS can't be set up.
    pub fn new(
        configuration: &NotificationConfiguration,
        authorities: &[reqwest::Certificate],
    ) -> Result<Self, reqwest::Error> {
        let allowed: Arc<[IpNet]> = configuration.allowed_networks.clone().into();
        let make = |only_allowed| {
            let guard = Guard { allowed: Arc::clone(&allowed), only_allowed };
            let mut builder = Client::builder()
                .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .connect_timeout(CONNECT_PATIENCE)
                .timeout(configuration.timeout())
                // Every request looks at the address anew: what was changed in the configuration or in a name's zone counts.
                .pool_max_idle_per_host(0)
                .https_only(!only_allowed)
                .dns_resolver(Arc::new(guard.clone()));
            for authority in authorities {
                builder = builder.add_root_certificate(authority.clone());
            }
            Ok((builder.build()?, guard))
        };
        let http = configuration.allow_http.then(|| make(true)).transpose()?;
        Ok(Self { https: make(false)?, http })
    }

    /// The client for an address, if that may be asked. An address that is written as a number never gets to a resolver, so
    /// it is looked at here.
    ///
    /// # Errors
    /// When it may not.
    pub fn client(&self, url: &Url) -> Result<&Client, ClientError> {
        let (client, guard) = match (url.scheme(), &self.http) {
            ("https", _) => &self.https,
            ("http", Some(http)) => http,
            ("http", None) => {
                return Err(ClientError::Address("plain HTTP is not allowed by `allow-http`"));
            }
            _ => return Err(ClientError::Address("it is neither https nor http")),
        };
        match url.host() {
            None => return Err(ClientError::Address("it has no host")),
            Some(Host::Ipv4(address)) => guard.check(address.into())?,
            Some(Host::Ipv6(address)) => guard.check(address.into())?,
            Some(Host::Domain(_)) => {}
        }
        Ok(client)
    }
}

/// What went wrong with a request, without its address, which may be a secret.
pub(super) fn told(error: reqwest::Error) -> String {
    with_causes(&error.without_url())
}

#[cfg(test)]
mod tests {
    use super::{ClientError, Outgoing};
    use crate::configuration::NotificationConfiguration;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn outgoing(allowed: &[&str]) -> Outgoing {
        let configuration = NotificationConfiguration {
            allowed_networks: allowed.iter().map(|text| text.parse().unwrap()).collect(),
            allow_http: true,
            ..NotificationConfiguration::default()
        };
        Outgoing::new(&configuration, &[]).unwrap()
    }

    #[test]
    fn numbers_are_looked_at_however_they_are_written() {
        let outgoing = outgoing(&["10.9.0.0/16"]);
        for (url, allowed) in [
            ("https://203.0.113.7/x", true),
            ("https://[2001:db8::1]/x", true),
            ("https://10.9.1.1/x", true),
            ("http://10.9.1.1/x", true),
            ("http://203.0.113.7/x", false),
            ("https://127.0.0.1/x", false),
            ("https://2130706433/x", false),
            ("https://0x7f.1/x", false),
            ("https://0177.0.0.1./x", false),
            ("https://[::1]/x", false),
            ("https://[::ffff:127.0.0.1]/x", false),
            ("https://[::ffff:203.0.113.7]/x", false),
            ("https://[64:ff9b::7f00:1]/x", false),
            ("https://169.254.169.254/latest/meta-data", false),
            ("https://[fd00:ec2::254]/x", false),
            ("https://[fe80::1]/x", false),
            ("https://10.8.0.1/x", false),
            ("https://192.168.1.1/x", false),
            ("https://100.100.100.200/x", false),
            ("https://0.0.0.0/x", false),
            ("https://255.255.255.255/x", false),
        ] {
            let checked = outgoing.client(&url.parse().unwrap());
            assert_eq!(checked.is_ok(), allowed, "{url}");
        }
    }

    /// A server on loopback that counts its visitors and sends them on to itself.
    fn server() -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let visitors = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&visitors);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]);
                let answer = format!(
                    "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://localhost:{port}/again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        (port, visitors)
    }

    #[tokio::test]
    async fn names_are_looked_at_when_they_are_resolved() {
        let (port, visitors) = server();
        // A name is no number: nothing is known of it before it is resolved.
        let url = format!("http://localhost:{port}/").parse().unwrap();
        let refusing = outgoing(&["10.9.0.0/16"]);
        let error = refusing.client(&url).unwrap().get(url.clone()).send().await.unwrap_err();
        let told = super::told(error);
        assert!(
            told.contains("plain HTTP goes to addresses of `allowed-networks` alone"),
            "{told}"
        );
        let over_tls = format!("https://localhost:{port}/").parse().unwrap();
        let error = refusing.client(&over_tls).unwrap().get(over_tls.clone()).send().await;
        let told = super::told(error.unwrap_err());
        assert!(told.contains("is not on the internet (loopback)"), "{told}");
        assert!(!told.contains(&port.to_string()), "the address is no part of it: {told}");
        assert_eq!(visitors.load(Ordering::SeqCst), 0, "nobody was connected to");
        // Where it is allowed it is reached, and where it points then is not followed.
        let allowing = outgoing(&["127.0.0.0/8", "::1/128"]);
        let answer = allowing.client(&url).unwrap().get(url.clone()).send().await.unwrap();
        assert_eq!(answer.status(), 307);
        assert_eq!(visitors.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn only_http_is_spoken() {
        let outgoing = Outgoing::new(&NotificationConfiguration::default(), &[]).unwrap();
        for url in ["ftp://example.com/", "file:///etc/passwd", "http://example.com/", "unix:/x"] {
            let refused = outgoing.client(&url.parse().unwrap());
            assert!(matches!(refused, Err(ClientError::Address(_))), "{url}");
        }
    }
}
