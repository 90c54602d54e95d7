//! From text to an endpoint: `[tcp://|udp://|icmp://]HOST[:PORT[-PORT]|:*]`.

use super::error::{EndpointError, EndpointProblem, NameProblem};
use super::{DEFAULT_PORT, DnsName, Endpoint, Host, PortRange, Protocol};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The longest endpoint text in bytes: a Unicode name of 253 characters at 4 bytes each, with room for the rest.
pub const MAX_ENDPOINT_BYTES: usize = 1100;

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            let hint = "write a host and a port, such as `github.com:443`";
            return Err(EndpointError::at(0, EndpointProblem::Empty, hint));
        }
        if text.len() > MAX_ENDPOINT_BYTES {
            let hint = format!(
                "an endpoint has at most {MAX_ENDPOINT_BYTES} bytes; write several endpoints as a list"
            );
            return Err(EndpointError::at(MAX_ENDPOINT_BYTES, EndpointProblem::TooLong, hint));
        }
        let space = text.char_indices().find(|(_, c)| c.is_whitespace() || c.is_control());
        if let Some((offset, character)) = space {
            let hint = "leave out white space and control characters; write one endpoint an entry";
            return Err(EndpointError::at(offset, EndpointProblem::Character(character), hint));
        }
        let (protocol, start) = scheme(text)?;
        let rest = &text[start..];
        let (host, port) = split_port(rest, start)?;
        let ports = match (protocol, port) {
            (Protocol::Icmp, None) => PortRange::ALL,
            (Protocol::Icmp, Some((offset, _))) => {
                let hint = format!("write `icmp://{host}`");
                return Err(EndpointError::at(offset, EndpointProblem::IcmpPort, hint));
            }
            (_, None) => DEFAULT_PORT,
            (_, Some((offset, port))) => parse_ports(port, offset)?,
        };
        Ok(Self { protocol, host: parse_host(host, start)?, ports })
    }
}

/// The scheme, and where the host starts.
fn scheme(text: &str) -> Result<(Protocol, usize), EndpointError> {
    let Some((scheme, rest)) = text.split_once("://") else { return Ok((Protocol::Tcp, 0)) };
    let protocol = match scheme.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "icmp" => Protocol::Icmp,
        other => {
            let host = rest.split(['/', ':', '?', '#']).next().unwrap_or(rest);
            let hint = match other {
                "https" => format!("endpoints are no URLs; write `{host}:443`"),
                "http" => format!("endpoints are no URLs; write `{host}:80`"),
                "ssh" => format!("endpoints are no URLs; write `{host}:22`"),
                _ => "use `tcp://`, `udp://`, `icmp://`, or none for TCP".to_owned(),
            };
            return Err(EndpointError::at(0, EndpointProblem::Scheme(scheme.to_owned()), hint));
        }
    };
    Ok((protocol, scheme.len() + "://".len()))
}

/// The host, and the port's text with where it begins.
type HostAndPort<'a> = (&'a str, Option<(usize, &'a str)>);

/// Splits `HOST[:PORT]`; `start` is where `rest` begins in the whole text, as is the offset that is returned.
fn split_port(rest: &str, start: usize) -> Result<HostAndPort<'_>, EndpointError> {
    let (host, port_at) = if rest.starts_with('[') {
        let hint = "write it like `[2001:db8::7]:443` or `[2001:db8::/32]:443`";
        let Some(close) = rest.find(']') else {
            return Err(EndpointError::at(start, EndpointProblem::Bracket, hint));
        };
        let behind = &rest[close + 1..];
        if let Some(prefix) = behind.strip_prefix('/') {
            let hint = format!("write the prefix length inside: `[{}/…]`", &rest[1..close]);
            let end = prefix.find(':').unwrap_or(prefix.len());
            let problem = EndpointProblem::PrefixLength(prefix[..end].to_owned());
            return Err(EndpointError::at(start + close + 1, problem, hint));
        }
        if !behind.is_empty() && !behind.starts_with(':') {
            return Err(EndpointError::at(start + close + 1, EndpointProblem::Bracket, hint));
        }
        (&rest[..=close], (!behind.is_empty()).then_some(close + 1))
    } else {
        let colon = rest.find(':');
        if rest.matches(':').count() > 1 {
            let hint = match rest.parse::<Ipv6Addr>() {
                Ok(address) => format!("write `[{address}]:443`"),
                Err(_) => "write an IPv6 address like `[2001:db8::7]:443`, and only one port or range of ports"
                    .to_owned(),
            };
            return Err(EndpointError::at(start, EndpointProblem::Unbracketed, hint));
        }
        (&rest[..colon.unwrap_or(rest.len())], colon)
    };
    if host.is_empty() {
        let hint = "write a DNS name, an address or a network before the port";
        return Err(EndpointError::at(start, EndpointProblem::NoHost, hint));
    }
    Ok((host, port_at.map(|at| (start + at + 1, &rest[at + 1..]))))
}

/// The ports behind the colon; `offset` is where `text` begins.
fn parse_ports(text: &str, offset: usize) -> Result<PortRange, EndpointError> {
    if text == "*" {
        return Ok(PortRange::ALL);
    }
    if let Some(slash) = text.find('/') {
        let hint = "endpoints name hosts and ports; leave out what follows";
        return Err(EndpointError::at(offset + slash, EndpointProblem::Path, hint));
    }
    let (first, last) = match text.split_once('-') {
        None => {
            let port = parse_port(text, offset)?;
            (port, port)
        }
        Some((first, last)) => {
            (parse_port(first, offset)?, parse_port(last, offset + first.len() + 1)?)
        }
    };
    PortRange::new(first, last).ok_or_else(|| {
        let hint = format!("write `{last}-{first}`");
        EndpointError::at(offset, EndpointProblem::PortOrder(first, last), hint)
    })
}

/// One port: digits only, no sign, no leading zero.
fn parse_port(text: &str, offset: usize) -> Result<u16, EndpointError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain).ok_or_else(|| {
        let hint = "write a port like `:443`, a range like `:8000-8100`, or `:*` for all ports";
        EndpointError::at(offset, EndpointProblem::Port(text.to_owned()), hint)
    })
}

/// The host; `start` is where it begins.
fn parse_host(text: &str, start: usize) -> Result<Host, EndpointError> {
    if let Some(inner) = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        return parse_ipv6(inner, start + 1);
    }
    if let Some((address, prefix)) = text.split_once('/') {
        let Ok(address) = address.parse::<Ipv4Addr>() else {
            let hint = format!("endpoints name hosts and ports; write `{address}:443`");
            return Err(EndpointError::at(start + address.len(), EndpointProblem::Path, hint));
        };
        let offset = start + text.len() - prefix.len();
        return network(address.into(), prefix, offset, text);
    }
    if let Some(name) = text.strip_prefix("*.") {
        let offset = start + 2;
        let name = parse_name(name, offset)?;
        if name.is_public_suffix() {
            let hint = format!("name the domain below it, as in `*.example.{name}`");
            let problem = EndpointProblem::PublicSuffix(name.as_str().to_owned());
            return Err(EndpointError::at(start, problem, hint));
        }
        return Ok(Host::Wildcard(name));
    }
    if let Some(star) = text.find('*') {
        let hint = "write `*.example.com` for every name below example.com; there is no endpoint for every name";
        return Err(EndpointError::at(start + star, EndpointProblem::Wildcard, hint));
    }
    match text.parse::<Ipv4Addr>() {
        Ok(address) => Ok(Host::Address(address.into())),
        Err(_) => parse_name(text, start).map(Host::Name),
    }
}

/// A DNS name that does not pass for an IPv4 address; `start` is where it begins.
fn parse_name(text: &str, start: usize) -> Result<DnsName, EndpointError> {
    let name = DnsName::new(text).map_err(|error| {
        let (problem, hint) = match error.problem {
            NameProblem::Character('*') => (EndpointProblem::Wildcard, "write `*.example.com`"),
            NameProblem::Character('%') => {
                (EndpointProblem::Name(error.problem), "percent-encoding is not decoded; write the name itself")
            }
            NameProblem::Character('@') => {
                (EndpointProblem::Name(error.problem), "leave out the user; write host and port only")
            }
            problem => (
                EndpointProblem::Name(problem),
                "write a DNS name such as `registry.npmjs.org`, labels of letters, digits, `-` and `_` joined by dots",
            ),
        };
        EndpointError::at(start + error.offset, problem, hint)
    })?;
    if name.ends_in_number() {
        let hint = "write four numbers from 0 to 255 without leading zeros, such as `192.0.2.7`";
        let problem = EndpointProblem::Ipv4(name.as_str().to_owned());
        return Err(EndpointError::at(start, problem, hint));
    }
    Ok(name)
}

/// What stands between brackets: an IPv6 address or network; `start` is where it begins.
fn parse_ipv6(text: &str, start: usize) -> Result<Host, EndpointError> {
    if let Some(zone) = text.find('%') {
        let hint = "leave out the zone; an endpoint holds on every interface";
        return Err(EndpointError::at(start + zone, EndpointProblem::ZoneId, hint));
    }
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let Ok(parsed) = address.parse::<Ipv6Addr>() else {
        let hint = "brackets are for IPv6 addresses and networks, such as `[2001:db8::7]:443`";
        let problem = EndpointProblem::Ipv6(address.to_owned());
        return Err(EndpointError::at(start, problem, hint));
    };
    match prefix {
        None => Ok(Host::Address(IpAddr::V6(parsed).to_canonical())),
        Some(prefix) => network(parsed.into(), prefix, start + address.len() + 1, text),
    }
}

/// A network without host bits; a network of one address becomes that address. `offset` is where `prefix` begins.
fn network(
    address: IpAddr,
    prefix: &str,
    offset: usize,
    written: &str,
) -> Result<Host, EndpointError> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let plain = prefix == "0" || !prefix.starts_with('0');
    let digits = plain && prefix.bytes().all(|byte| byte.is_ascii_digit());
    let length = prefix.parse::<u8>().ok().filter(|length| digits && *length <= longest);
    let network = length.and_then(|length| IpNet::new(address, length).ok()).ok_or_else(|| {
        let hint = format!("write a prefix length from 0 to {longest}");
        EndpointError::at(offset, EndpointProblem::PrefixLength(prefix.to_owned()), hint)
    })?;
    if network != network.trunc() {
        let hint = match address {
            IpAddr::V4(_) => {
                format!("write `{}`, or `{address}` for the one address", network.trunc())
            }
            IpAddr::V6(_) => {
                format!("write `[{}]`, or `[{address}]` for the one address", network.trunc())
            }
        };
        let problem = EndpointProblem::HostBits(written.to_owned());
        return Err(EndpointError::at(offset, problem, hint));
    }
    Ok(Host::from_network(network))
}
