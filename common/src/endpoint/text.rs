//! From an endpoint to its canonical text, and to and from serialized data as that text.

use super::{DEFAULT_PORT, DnsName, Endpoint, Host, PortRange, Protocol};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            formatter.write_str("*")
        } else if self.is_single() {
            write!(formatter, "{}", self.first)
        } else {
            write!(formatter, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(formatter),
            Self::Wildcard(name) => write!(formatter, "*.{name}"),
            Self::Address(IpAddr::V4(address)) => address.fmt(formatter),
            Self::Address(IpAddr::V6(address)) => write!(formatter, "[{address}]"),
            Self::Network(ipnet::IpNet::V4(network)) => network.fmt(formatter),
            Self::Network(ipnet::IpNet::V6(network)) => write!(formatter, "[{network}]"),
        }
    }
}

/// The canonical text: no scheme for TCP, the port always, `*` for every port.
impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Icmp => return write!(formatter, "icmp://{}", self.host),
            Protocol::Tcp => {}
            Protocol::Udp => formatter.write_str("udp://")?,
        }
        write!(formatter, "{}:{}", self.host, self.ports)
    }
}

impl Endpoint {
    /// A TCP endpoint on port 443, as `host` alone would be written.
    pub const fn https(host: Host) -> Self {
        Self { protocol: Protocol::Tcp, host, ports: DEFAULT_PORT }
    }
}

/// Serializes as text and back, and describes the text to JSON Schema.
macro_rules! as_text {
    ($type:ty, $name:literal, $schema:tt) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

as_text!(Endpoint, "Endpoint", {
    "type": "string",
    "description": "What is allowed or denied: `[tcp://|udp://|icmp://]HOST[:PORT[-PORT]|:*]`. No scheme is TCP, no port is 443. HOST is a DNS name, `*.name` (any number of labels below it), an address or a network; IPv6 in brackets.",
    "examples": ["github.com:443", "*.npmjs.org:443", "10.20.0.0/16:5432", "[2001:db8::7]:8443", "udp://time.example.com:123", "icmp://192.0.2.1"],
    "minLength": 1,
    "maxLength": 1100,
    "pattern": "^(([Tt][Cc][Pp]|[Uu][Dd][Pp]|[Ii][Cc][Mm][Pp])://)?(\\[[0-9A-Fa-f:.]+(/[0-9]{1,3})?\\]|[^\\s/:\\[\\]]+(/[0-9]{1,2})?)(:(\\*|[0-9]{1,5}(-[0-9]{1,5})?))?$"
});

as_text!(DnsName, "DnsName", {
    "type": "string",
    "description": "A DNS name.",
    "minLength": 1,
    "maxLength": 253
});
