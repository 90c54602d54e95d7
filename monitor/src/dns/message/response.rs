//! Building what goes back to the client.

use super::{CLASS_IN, HEADER, Query, Refused, ResponseCode, UDP_PAYLOAD, record_type};
use std::net::IpAddr;
use std::sync::Arc;

/// An Extended DNS Error (RFC 8914): tells a person why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExtendedError {
    /// The code of the IANA registry.
    pub code: u16,
    /// The text, cut at [`ExtendedError::MAXIMUM_TEXT`] bytes when written.
    pub text: Arc<str>,
}

impl ExtendedError {
    /// "Other": see the text.
    pub const OTHER: u16 = 0;
    /// "Blocked": by a policy of whoever operates the server.
    pub const BLOCKED: u16 = 15;
    /// "Network Error": upstream could not be reached.
    pub const NETWORK_ERROR: u16 = 23;
    /// The most text that is written; RFC 8914 §6 asks for short ones.
    pub const MAXIMUM_TEXT: usize = 200;

    fn text_bytes(&self) -> &[u8] {
        let end = self.text.floor_char_boundary(Self::MAXIMUM_TEXT);
        self.text.as_bytes().get(..end).unwrap_or(&[])
    }
}

/// Everything of an answer but what depends on who asked: built once, written for each client.
///
/// Owner names are compression pointers, so a body belongs to questions of one name length; equal questions have that.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Body {
    /// The code.
    pub code: ResponseCode,
    /// Answer records, then authority records.
    records: Box<[u8]>,
    /// Where in `records` TTLs stand.
    ttl_offsets: Box<[u16]>,
    answers: u16,
    authorities: u16,
    /// The explanation for clients that speak EDNS.
    pub extended_error: Option<ExtendedError>,
}

impl Body {
    /// An answer without records.
    pub fn empty(code: ResponseCode, extended_error: Option<ExtendedError>) -> Self {
        Self {
            code,
            records: Box::default(),
            ttl_offsets: Box::default(),
            answers: 0,
            authorities: 0,
            extended_error,
        }
    }

    /// Bytes on the heap.
    pub fn heap_size(&self) -> usize {
        self.records.len()
            + self.ttl_offsets.len() * 2
            + self.extended_error.as_ref().map_or(0, |error| error.text.len())
    }
}

/// Puts the records of a [`Body`] together.
#[derive(Debug)]
pub struct BodyBuilder {
    body: Vec<u8>,
    ttl_offsets: Vec<u16>,
    answers: u16,
    authorities: u16,
    /// The message offset at which `body` will stand.
    base: usize,
    /// The message offset of the name that the next answer record belongs to.
    owner: u16,
}

impl BodyBuilder {
    /// The most bytes of records: keeps every offset within a compression pointer's 14 bits.
    const MAXIMUM: usize = 0x3f00 - HEADER - 259;

    /// Starts the records of an answer to a question of `question_length` bytes on the wire (name, type, class).
    pub fn new(question_length: usize) -> Self {
        Self {
            body: Vec::new(),
            ttl_offsets: Vec::new(),
            answers: 0,
            authorities: 0,
            base: HEADER + question_length,
            owner: 12,
        }
    }

    fn pointer(&self) -> [u8; 2] {
        (0xc000 | self.owner).to_be_bytes()
    }

    /// Appends a record; `false`, and nothing appended, when there is no more room.
    fn push(&mut self, owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> bool {
        let length = owner.len() + 10 + data.len();
        let Ok(data_length) = u16::try_from(data.len()) else { return false };
        let Ok(ttl_offset) = u16::try_from(self.body.len() + owner.len() + 4) else { return false };
        if self.body.len() + length > Self::MAXIMUM {
            return false;
        }
        self.body.extend_from_slice(owner);
        self.body.extend_from_slice(&kind.to_be_bytes());
        self.body.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.ttl_offsets.push(ttl_offset);
        self.body.extend_from_slice(&ttl.to_be_bytes());
        self.body.extend_from_slice(&data_length.to_be_bytes());
        self.body.extend_from_slice(data);
        true
    }

    /// The current name is an alias of `target` (a checked host name), which further records belong to.
    pub fn alias(&mut self, target: &str, ttl: u32) -> bool {
        let data = wire_name(target);
        let pointer = self.pointer();
        if !self.push(&pointer, record_type::CNAME, ttl, &data) {
            return false;
        }
        self.answers += 1;
        match u16::try_from(self.base + self.body.len() - data.len()) {
            Ok(offset) => {
                self.owner = offset;
                true
            }
            Err(_) => false,
        }
    }

    /// An address of the current name.
    pub fn address(&mut self, address: IpAddr, ttl: u32) -> bool {
        match address {
            IpAddr::V4(address) => self.record(record_type::A, ttl, &address.octets()),
            IpAddr::V6(address) => self.record(record_type::AAAA, ttl, &address.octets()),
        }
    }

    /// Any record of the current name, its data without compression.
    pub fn record(&mut self, kind: u16, ttl: u32, data: &[u8]) -> bool {
        let pointer = self.pointer();
        let pushed = self.push(&pointer, kind, ttl, data);
        self.answers += u16::from(pushed);
        pushed
    }

    /// The zone's SOA record for a negative answer. Nothing can follow but the end.
    pub fn negative(&mut self, zone: &str, ttl: u32, data: &[u8]) -> bool {
        let pushed = self.push(&wire_name(zone), record_type::SOA, ttl, data);
        self.authorities += u16::from(pushed);
        pushed
    }

    /// The finished body.
    pub fn build(self, code: ResponseCode, extended_error: Option<ExtendedError>) -> Body {
        Body {
            code,
            records: self.body.into_boxed_slice(),
            ttl_offsets: self.ttl_offsets.into_boxed_slice(),
            answers: self.answers,
            authorities: self.authorities,
            extended_error,
        }
    }
}

/// A checked host name on the wire.
pub(crate) fn wire_name(name: &str) -> Vec<u8> {
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        // Labels of checked names have at most 63 bytes.
        wire.push(u8::try_from(label.len()).unwrap_or(0));
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}

/// What an answer takes from the query: id, flag, question with its letter case, EDNS.
#[derive(Clone, Copy, Debug)]
pub struct ReplyTo<'query> {
    id: u16,
    recursion_desired: bool,
    question: &'query [u8],
    edns: Option<u16>,
}

impl<'query> ReplyTo<'query> {
    /// What `query`'s answer needs.
    pub fn new(query: &Query<'query>) -> Self {
        Self {
            id: query.id,
            recursion_desired: query.recursion_desired,
            question: query.question.wire(),
            edns: query.edns,
        }
    }

    /// The same with the question kept elsewhere.
    pub fn with_question<'kept>(&self, question: &'kept [u8]) -> ReplyTo<'kept> {
        ReplyTo {
            id: self.id,
            recursion_desired: self.recursion_desired,
            question,
            edns: self.edns,
        }
    }

    /// The largest answer over UDP.
    pub fn udp_limit(&self) -> usize {
        usize::from(self.edns.unwrap_or(super::PLAIN_UDP_PAYLOAD))
    }
}

/// Response, recursion available.
const FLAGS: u16 = 0x8080;
const RECURSION_DESIRED: u16 = 0x0100;
const TRUNCATED: u16 = 0x0200;

/// Writes the answer `body`, `age` seconds after it was built, into `out` (emptied first). An answer longer than `limit` is
/// cut to its question and marked, so that the client asks again over TCP.
pub fn write_response(out: &mut Vec<u8>, to: &ReplyTo<'_>, body: &Body, age: u32, limit: usize) {
    out.clear();
    let opt = to.edns.map_or(0, |_| opt_length(body.extended_error.as_ref()));
    let fits = HEADER + to.question.len() + body.records.len() + opt <= limit;
    let (answers, authorities) = if fits { (body.answers, body.authorities) } else { (0, 0) };
    let flags = FLAGS
        | if to.recursion_desired { RECURSION_DESIRED } else { 0 }
        | if fits { 0 } else { TRUNCATED }
        | (body.code.number() & 0xf);
    let counts = [1, answers, authorities, u16::from(to.edns.is_some())];
    write_header(out, to.id, flags, counts);
    out.extend_from_slice(to.question);
    if fits {
        let start = out.len();
        out.extend_from_slice(&body.records);
        for &offset in &body.ttl_offsets {
            let at = start + usize::from(offset);
            if let Some(ttl) = out.get_mut(at..at + 4).and_then(|bytes| bytes.first_chunk_mut()) {
                *ttl = u32::from_be_bytes(*ttl).saturating_sub(age).to_be_bytes();
            }
        }
    }
    if to.edns.is_some() {
        write_opt(out, body.code, body.extended_error.as_ref());
    }
}

/// Writes the answer to a message that is no query, into `out` (emptied first).
pub fn write_refusal(out: &mut Vec<u8>, refused: &Refused<'_>) {
    out.clear();
    let flags = FLAGS
        | (u16::from(refused.opcode) << 11)
        | if refused.recursion_desired { RECURSION_DESIRED } else { 0 }
        | (refused.code.number() & 0xf);
    let question = refused.question.map_or(&[] as &[u8], |question| question.wire());
    let counts = [u16::from(!question.is_empty()), 0, 0, u16::from(refused.edns)];
    write_header(out, refused.id, flags, counts);
    out.extend_from_slice(question);
    if refused.edns {
        write_opt(out, refused.code, None);
    }
}

fn write_header(out: &mut Vec<u8>, id: u16, flags: u16, counts: [u16; 4]) {
    for field in [id, flags].into_iter().chain(counts) {
        out.extend_from_slice(&field.to_be_bytes());
    }
}

/// The code of the Extended DNS Error option.
const EXTENDED_ERROR_OPTION: u16 = 15;

fn opt_length(error: Option<&ExtendedError>) -> usize {
    11 + error.map_or(0, |error| 6 + error.text_bytes().len())
}

fn write_opt(out: &mut Vec<u8>, code: ResponseCode, error: Option<&ExtendedError>) {
    out.push(0);
    out.extend_from_slice(&record_type::OPT.to_be_bytes());
    out.extend_from_slice(&UDP_PAYLOAD.to_be_bytes());
    let [_, extended] = (code.number() >> 4).to_be_bytes();
    // Version 0, no flags.
    out.extend_from_slice(&[extended, 0, 0, 0]);
    let text = error.map_or(&[] as &[u8], ExtendedError::text_bytes);
    // At most MAXIMUM_TEXT bytes.
    let text_length = u16::try_from(text.len()).unwrap_or(0);
    match error {
        None => out.extend_from_slice(&[0, 0]),
        Some(error) => {
            for field in [6 + text_length, EXTENDED_ERROR_OPTION, 2 + text_length, error.code] {
                out.extend_from_slice(&field.to_be_bytes());
            }
            out.extend_from_slice(text);
        }
    }
}
