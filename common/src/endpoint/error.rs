//! What can be wrong with an endpoint's text.

use crate::text::log_line;
use std::fmt;

/// The longest hint in bytes.
const HINT_BYTES: usize = 400;

/// Why a text is no endpoint: where, what, and what to write instead.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{problem} (column {column})")]
pub struct EndpointError {
    /// The byte column within the text, from 1.
    pub column: usize,
    /// What is wrong.
    pub problem: EndpointProblem,
    /// What to do about it, in words for a person; one line, safe to print.
    pub hint: String,
}

impl EndpointError {
    /// Makes an error at byte `offset` (from 0).
    pub(super) fn at(offset: usize, problem: EndpointProblem, hint: impl Into<String>) -> Self {
        // A hint may repeat what was written.
        Self { column: offset + 1, problem, hint: log_line(&hint.into(), HINT_BYTES) }
    }
}

/// The kinds of mistake.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EndpointProblem {
    /// There is nothing.
    Empty,
    /// The text is longer than any endpoint can be.
    TooLong,
    /// A character that no endpoint has at this place.
    Character(char),
    /// A scheme other than `tcp`, `udp` and `icmp`.
    Scheme(String),
    /// The host is missing.
    NoHost,
    /// The host is no valid DNS name.
    Name(NameProblem),
    /// The host looks like an IPv4 address and is none.
    Ipv4(String),
    /// What stands in brackets is no IPv6 address or network.
    Ipv6(String),
    /// An IPv6 address without brackets.
    Unbracketed,
    /// A bracket that is not closed, or something else than a port behind it.
    Bracket,
    /// An IPv6 zone id such as `%eth0`.
    ZoneId,
    /// The prefix length is no number that fits the address.
    PrefixLength(String),
    /// Bits behind the prefix are set.
    HostBits(String),
    /// A `*` anywhere but as the whole first label.
    Wildcard,
    /// A wildcard that covers everything below a public suffix.
    PublicSuffix(String),
    /// The port is no number from 1 to 65535.
    Port(String),
    /// The last port of a range is below the first.
    PortOrder(u16, u16),
    /// A port behind `icmp://`.
    IcmpPort,
    /// A path, as in a URL.
    Path,
}

/// What can be wrong with a DNS name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NameProblem {
    /// There is nothing.
    Empty,
    /// Two dots in a row, or one at the start.
    EmptyLabel,
    /// A label is longer than 63 bytes.
    LabelTooLong,
    /// The whole name is longer than 253 bytes.
    TooLong,
    /// A character that no host name has.
    Character(char),
    /// The Unicode text has no form in the DNS.
    Idna,
}

impl fmt::Display for NameProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => formatter.write_str("the DNS name is empty"),
            Self::EmptyLabel => formatter.write_str("the DNS name has an empty label"),
            Self::LabelTooLong => {
                formatter.write_str("a label of the DNS name is longer than 63 bytes")
            }
            Self::TooLong => formatter.write_str("the DNS name is longer than 253 bytes"),
            Self::Character(character) => {
                write!(formatter, "`{}` can't be part of a DNS name", character.escape_default())
            }
            Self::Idna => {
                formatter.write_str("the name is not valid as an internationalized domain name")
            }
        }
    }
}

/// A text is no DNS name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{problem}")]
pub struct NameError {
    /// Byte offset within the text, from 0, as far as it is known.
    pub offset: usize,
    /// What is wrong.
    pub problem: NameProblem,
}

impl fmt::Display for EndpointProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => formatter.write_str("the endpoint is empty"),
            Self::TooLong => formatter.write_str("the endpoint is too long"),
            Self::Character(character) => {
                write!(formatter, "`{}` can't be part of an endpoint", character.escape_default())
            }
            Self::Scheme(scheme) => {
                write!(formatter, "`{}://` is no scheme of an endpoint", scheme.escape_default())
            }
            Self::NoHost => formatter.write_str("the host is missing"),
            Self::Name(problem) => problem.fmt(formatter),
            Self::Ipv4(text) => {
                write!(formatter, "`{}` is no IPv4 address", text.escape_default())
            }
            Self::Ipv6(text) => {
                write!(formatter, "`{}` is no IPv6 address", text.escape_default())
            }
            Self::Unbracketed => formatter.write_str("an IPv6 address must be written in brackets"),
            Self::Bracket => {
                formatter.write_str("the bracket must close right before the port or the end")
            }
            Self::ZoneId => formatter.write_str("an endpoint can't have an IPv6 zone id"),
            Self::PrefixLength(text) => {
                write!(formatter, "`/{}` is no prefix length here", text.escape_default())
            }
            Self::HostBits(text) => {
                write!(
                    formatter,
                    "`{}` has bits set behind its prefix length",
                    text.escape_default()
                )
            }
            Self::Wildcard => {
                formatter.write_str("`*` can only be the whole first label, as in `*.example.com`")
            }
            Self::PublicSuffix(suffix) => {
                write!(formatter, "`*.{suffix}` covers names that anybody can register")
            }
            Self::Port(text) => {
                write!(formatter, "`{}` is no port from 1 to 65535", text.escape_default())
            }
            Self::PortOrder(first, last) => {
                write!(formatter, "the port range {first}-{last} ends before it starts")
            }
            Self::IcmpPort => formatter.write_str("an `icmp://` endpoint has no port"),
            Self::Path => formatter.write_str("an endpoint has no path"),
        }
    }
}
