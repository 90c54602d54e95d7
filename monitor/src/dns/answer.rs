//! What an upstream's message says about a question. Only records that belong to the question are taken: the chain of
//! aliases that starts at its name, and records of its type at the chain's end. Nothing else of the message is looked at.

use super::message::record_type;
use hickory_proto::op::{Message, ResponseCode as WireCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use std::net::IpAddr;

/// Aliases followed at most; 8 to 16 is what other resolvers follow.
pub const MAXIMUM_CHAIN: usize = 16;

/// Records of the answer section that are looked at.
const MAXIMUM_RECORDS: usize = 512;

/// What an answer's records are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Data {
    /// An address.
    Address(IpAddr),
    /// Anything else, its data encoded without compression.
    Other(Vec<u8>),
}

/// One step of a chain of aliases.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Alias {
    /// Where it leads: a checked host name, lower case.
    pub target: String,
    /// Seconds.
    pub ttl: u32,
}

/// A zone's SOA record, for how long the absence of something may be remembered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ZoneStart {
    /// The zone.
    pub zone: String,
    /// Seconds: the lesser of its TTL and its MINIMUM (RFC 2308 §5).
    pub ttl: u32,
    /// Its data, encoded without compression.
    pub data: Vec<u8>,
}

/// What is known about a question.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Findings {
    /// The aliases from the question's name on.
    pub chain: Vec<Alias>,
    /// The records of the question's type at the chain's end, with their TTLs in seconds.
    pub records: Vec<(Data, u32)>,
    /// Whether the name at the chain's end does not exist.
    pub name_missing: bool,
    /// Where absence was declared.
    pub zone: Option<ZoneStart>,
}

impl Findings {
    /// Whether the upstream stopped in the middle of a chain, so that its end has to be asked for.
    pub fn is_open_ended(&self) -> bool {
        !self.chain.is_empty()
            && self.records.is_empty()
            && !self.name_missing
            && self.zone.is_none()
    }

    /// The name at the chain's end, when there is a chain.
    pub fn end(&self) -> Option<&str> {
        self.chain.last().map(|alias| alias.target.as_str())
    }

    /// Adds what was found about the name at the chain's end.
    ///
    /// # Errors
    /// When the chain gets too long or leads in a circle.
    pub fn follow(&mut self, further: Self) -> Result<(), AnswerError> {
        for alias in &further.chain {
            if self.chain.iter().any(|known| known.target == alias.target) {
                return Err(AnswerError::Chain);
            }
        }
        self.chain.extend(further.chain);
        if self.chain.len() > MAXIMUM_CHAIN {
            return Err(AnswerError::Chain);
        }
        self.records = further.records;
        self.name_missing = further.name_missing;
        self.zone = further.zone;
        Ok(())
    }
}

/// Why an upstream's message is no answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AnswerError {
    /// It could not be decoded.
    #[error("its answer could not be decoded: {0}")]
    Malformed(String),
    /// It carries an error.
    #[error("it answered {0}")]
    Code(String),
    /// An alias leads to something that is no host name.
    #[error("an alias leads to a name that is no host name")]
    UnusualName,
    /// The aliases go in a circle or are too many.
    #[error("the chain of aliases has no end within {MAXIMUM_CHAIN} steps")]
    Chain,
}

impl AnswerError {
    /// Whether the upstream did not understand EDNS.
    pub fn is_format_error(&self) -> bool {
        matches!(self, Self::Code(code) if code == FORMAT_ERROR || code == NOT_IMPLEMENTED)
    }
}

const FORMAT_ERROR: &str = "FORMERR";
const NOT_IMPLEMENTED: &str = "NOTIMP";

/// Reads what `response` says about `name` (a checked host name, lower case) and `query_type`.
///
/// # Errors
/// When it is malformed, carries an error, or its chain of aliases is unusable.
pub fn read(response: &[u8], name: &str, query_type: u16) -> Result<Findings, AnswerError> {
    let message =
        Message::from_vec(response).map_err(|error| AnswerError::Malformed(error.to_string()))?;
    let name_missing = match message.metadata.response_code {
        WireCode::NoError => false,
        WireCode::NXDomain => true,
        WireCode::FormErr => return Err(AnswerError::Code(FORMAT_ERROR.to_owned())),
        WireCode::NotImp => return Err(AnswerError::Code(NOT_IMPLEMENTED.to_owned())),
        WireCode::ServFail => return Err(AnswerError::Code("SERVFAIL".to_owned())),
        WireCode::Refused => return Err(AnswerError::Code("REFUSED".to_owned())),
        other => return Err(AnswerError::Code(format!("code {}", u16::from(other)))),
    };
    let answers: Vec<(String, &Record)> = message
        .answers
        .iter()
        .take(MAXIMUM_RECORDS)
        .filter(|record| record.dns_class == DNSClass::IN)
        .filter_map(|record| Some((host_name(&record.name)?, record)))
        .collect();
    let chain =
        if query_type == record_type::CNAME { Vec::new() } else { aliases(&answers, name)? };
    let end = chain.last().map_or(name, |alias| alias.target.as_str());
    let wanted = RecordType::from(query_type);
    let records: Vec<(Data, u32)> = answers
        .iter()
        .filter(|(owner, record)| owner == end && record.record_type() == wanted)
        .filter_map(|(_, record)| Some((data(&record.data)?, record.ttl)))
        .collect();
    let zone = records.is_empty().then(|| zone_start(&message.authorities, end)).flatten();
    Ok(Findings { name_missing: name_missing && records.is_empty(), chain, records, zone })
}

/// The chain of aliases from `name` on.
fn aliases(answers: &[(String, &Record)], name: &str) -> Result<Vec<Alias>, AnswerError> {
    let mut chain: Vec<Alias> = Vec::new();
    loop {
        let current = chain.last().map_or(name, |alias| alias.target.as_str());
        let next = answers.iter().find_map(|(owner, record)| match &record.data {
            RData::CNAME(target) if owner == current => Some((target, record.ttl)),
            _ => None,
        });
        let Some((target, ttl)) = next else { return Ok(chain) };
        let target = host_name(&target.0).ok_or(AnswerError::UnusualName)?;
        if chain.len() == MAXIMUM_CHAIN
            || target == name
            || chain.iter().any(|alias| alias.target == target)
        {
            return Err(AnswerError::Chain);
        }
        chain.push(Alias { target, ttl });
    }
}

/// A record's data as it is passed on; `None` for what can't be encoded.
fn data(data: &RData) -> Option<Data> {
    match data {
        RData::A(address) => Some(Data::Address(address.0.into())),
        RData::AAAA(address) => Some(Data::Address(address.0.into())),
        other => encode(other).map(Data::Other),
    }
}

/// Record data without compression, which would point into a message that is not there.
fn encode(data: &RData) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_canonical_form(true);
    data.emit(&mut encoder).ok()?;
    Some(bytes)
}

/// The SOA record of a zone that `end` lies in.
fn zone_start(authorities: &[Record], end: &str) -> Option<ZoneStart> {
    authorities.iter().take(MAXIMUM_RECORDS).find_map(|record| {
        let RData::SOA(soa) = &record.data else { return None };
        let zone = host_name(&record.name)?;
        let encloses = zone.is_empty()
            || end == zone
            || end.strip_suffix(&zone).is_some_and(|rest| rest.ends_with('.'));
        (encloses && record.dns_class == DNSClass::IN).then_some(())?;
        Some(ZoneStart { zone, ttl: record.ttl.min(soa.minimum), data: encode(&record.data)? })
    })
}

/// A name in lower case with dots between its labels; `None` when a byte is no host name's.
fn host_name(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name {
        if !label.iter().all(|&byte| super::message::is_host_byte(byte)) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{MessageType, OpCode};
    use proptest::prelude::*;

    /// A response with these answers: owner, and the alias or address it has.
    fn response(records: &[(String, Result<String, [u8; 4]>)]) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        let name = |text: &str| Name::from_ascii(format!("{text}.")).unwrap();
        for (owner, data) in records {
            let data = match data {
                Ok(alias) => RData::CNAME(hickory_proto::rr::rdata::CNAME(name(alias))),
                Err([a, b, c, d]) => RData::A(hickory_proto::rr::rdata::A::new(*a, *b, *c, *d)),
            };
            message.add_answer(Record::from_rdata(name(owner), 60, data));
        }
        message.to_vec().unwrap()
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes, "ok.test", record_type::A);
        }

        /// Whatever an upstream puts into its answer: each address taken belongs to a name that the question leads to.
        #[test]
        fn only_what_the_question_leads_to_is_taken(
            records in prop::collection::vec(
                ("[a-f]", prop::result::maybe_err("[a-f]", any::<[u8; 4]>())),
                0..12,
            ),
        ) {
            let bytes = response(&records);
            let Ok(findings) = read(&bytes, "a", record_type::A) else { return Ok(()) };
            let mut name = "a".to_owned();
            for alias in &findings.chain {
                prop_assert!(records.contains(&(name.clone(), Ok(alias.target.clone()))));
                name.clone_from(&alias.target);
            }
            for (data, _) in &findings.records {
                let Data::Address(IpAddr::V4(address)) = data else { panic!("an IPv4 address") };
                prop_assert!(records.contains(&(name.clone(), Err(address.octets()))));
            }
        }
    }
}
