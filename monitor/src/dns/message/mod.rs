//! DNS messages as values: reading what a client sent, building what goes upstream, building what goes back.
//!
//! Clients' messages are read by a parser that knows one shape only, a standard query with one question and at most one
//! OPT record (RFC 1035 §4.1, RFC 6891 §6.1), and refuses every other byte. Messages from upstream are read with
//! `hickory-proto` (see [`super::answer`]).

mod outgoing;
mod query;
mod response;

#[cfg(test)]
mod tests;

pub(crate) use outgoing::is_truncated;
pub use outgoing::{BuildError, Match, OutgoingQuery};
pub(crate) use query::is_host_byte;
pub use query::{CacheKey, MAXIMUM_QUERY, Parsed, Query, Question, Refused, parse};
pub(crate) use response::wire_name;
pub use response::{Body, BodyBuilder, ExtendedError, ReplyTo, write_refusal, write_response};

/// Types of records that this resolver treats specially (IANA "Resource Record (RR) TYPEs").
pub mod record_type {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// A name server.
    pub const NS: u16 = 2;
    /// An alias.
    pub const CNAME: u16 = 5;
    /// The start of a zone.
    pub const SOA: u16 = 6;
    /// A pointer from an address to a name.
    pub const PTR: u16 = 12;
    /// A mail exchanger.
    pub const MX: u16 = 15;
    /// Text.
    pub const TXT: u16 = 16;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// The place of a service.
    pub const SRV: u16 = 33;
    /// EDNS.
    pub const OPT: u16 = 41;
    /// Service binding.
    pub const SVCB: u16 = 64;
    /// Service binding of HTTPS.
    pub const HTTPS: u16 = 65;
    /// The first of the types that are no data but questions about transfers and the like (RFC 6895 §3.1).
    pub const FIRST_META: u16 = 128;
    /// The last of them.
    pub const LAST_META: u16 = 255;
    /// Certification authority authorization.
    pub const CAA: u16 = 257;
}

/// The class of the internet.
pub const CLASS_IN: u16 = 1;

/// The length of a message's header.
pub const HEADER: usize = 12;

/// The UDP payload size that we announce and keep to: what fits an IPv6 packet of 1280 bytes (DNS flag day 2020).
pub const UDP_PAYLOAD: u16 = 1232;

/// The largest UDP answer to a client without EDNS (RFC 1035 §4.2.1).
pub const PLAIN_UDP_PAYLOAD: u16 = 512;

/// Response codes (IANA "DNS RCODEs").
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ResponseCode {
    /// No error.
    NoError,
    /// The query could not be understood.
    FormErr,
    /// The answer could not be found out.
    ServFail,
    /// The name does not exist.
    NxDomain,
    /// The kind of query is not implemented.
    NotImp,
    /// The query is refused.
    Refused,
    /// The version of EDNS is not known.
    BadVers,
}

impl ResponseCode {
    /// The number, twelve bits; the upper eight go into the OPT record.
    pub const fn number(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::FormErr => 1,
            Self::ServFail => 2,
            Self::NxDomain => 3,
            Self::NotImp => 4,
            Self::Refused => 5,
            Self::BadVers => 16,
        }
    }

    /// The mnemonic.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        }
    }
}

/// The two bytes at `offset` as a number, when they are there.
pub(crate) fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    let pair = bytes.get(offset..offset.checked_add(2)?)?;
    Some(u16::from_be_bytes(pair.try_into().ok()?))
}
