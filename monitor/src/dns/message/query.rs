//! Reading a client's message.

use super::{
    CLASS_IN, HEADER, PLAIN_UDP_PAYLOAD, ResponseCode, UDP_PAYLOAD, read_u16, record_type,
};
use std::fmt::Write as _;
use std::ops::Range;

/// The longest message that is looked at. A query has at most 12 + 255 + 4 bytes, and an OPT record whose options (padding to
/// 468-byte blocks, cookies) are of no interest.
pub const MAXIMUM_QUERY: usize = 2048;

/// The longest name on the wire (RFC 1035 §2.3.4).
const MAXIMUM_NAME: usize = 255;

/// What a client's message is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parsed<'message> {
    /// A query to be judged.
    Query(Query<'message>),
    /// Something to be refused.
    Refused(Refused<'message>),
    /// A response, or too short to be answered: it gets silence.
    Drop,
}

/// A standard query with one question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Query<'message> {
    /// The client's id.
    pub id: u16,
    /// Whether the client wishes recursion; copied into the answer.
    pub recursion_desired: bool,
    /// The question.
    pub question: Question<'message>,
    /// The UDP payload size that the client announced, clamped to what we send; `None` without EDNS.
    pub edns: Option<u16>,
}

/// A message that is answered with an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused<'message> {
    /// The client's id.
    pub id: u16,
    /// The client's operation code, copied into the answer.
    pub opcode: u8,
    /// Whether the client wishes recursion; copied into the answer.
    pub recursion_desired: bool,
    /// The error.
    pub code: ResponseCode,
    /// The question, when it could be read.
    pub question: Option<Question<'message>>,
    /// Whether the client speaks EDNS.
    pub edns: bool,
}

/// A question of class IN, its name checked for form but not yet for its bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Question<'message> {
    /// Name, type and class as they stood in the message.
    wire: &'message [u8],
}

impl<'message> Question<'message> {
    /// Name, type and class as the client sent them.
    pub fn wire(&self) -> &'message [u8] {
        self.wire
    }

    /// The name as the client sent it, the root label included.
    fn name_wire(&self) -> &'message [u8] {
        self.wire.split_last_chunk::<4>().map_or(&[], |(name, _)| name)
    }

    /// The type asked for.
    pub fn query_type(&self) -> u16 {
        self.wire.len().checked_sub(4).and_then(|at| read_u16(self.wire, at)).unwrap_or(0)
    }

    fn labels(&self) -> impl Iterator<Item = &'message [u8]> {
        let mut rest = self.name_wire();
        std::iter::from_fn(move || {
            let (&length, tail) = rest.split_first().filter(|(length, _)| **length != 0)?;
            let (label, tail) = tail.split_at_checked(usize::from(length))?;
            rest = tail;
            Some(label)
        })
    }

    /// The name in lower case with dots between its labels, or `None` when a label holds a byte that is no letter, digit,
    /// hyphen or underscore: such a name could mean something else to whoever reads it as text.
    pub fn host_name(&self) -> Option<String> {
        let mut name = String::with_capacity(self.wire.len());
        for label in self.labels() {
            if !label.iter().all(|&byte| is_host_byte(byte)) {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        }
        Some(name)
    }

    /// The name for people: lower case, every unusual byte as `\DDD` (RFC 4343 §2.1), the root as `.`.
    pub fn escaped_name(&self) -> String {
        let mut name = String::with_capacity(self.wire.len());
        for label in self.labels() {
            if !name.is_empty() {
                name.push('.');
            }
            for &byte in label {
                if is_host_byte(byte) {
                    name.push(char::from(byte.to_ascii_lowercase()));
                } else {
                    // Writing to a String cannot fail.
                    let _ = write!(name, "\\{byte:03}");
                }
            }
        }
        if name.is_empty() { ".".to_owned() } else { name }
    }

    /// What equal questions have in common.
    pub fn cache_key(&self) -> CacheKey {
        let mut key = CacheKey { bytes: [0; MAXIMUM_NAME + 2], length: 0 };
        let (name, rest) = self.wire.split_at(self.wire.len().saturating_sub(4));
        let length = name.len() + 2;
        if let (Some(bytes), Some(query_type)) = (key.bytes.get_mut(..length), rest.get(..2)) {
            let (lower, kind) = bytes.split_at_mut(name.len());
            lower.copy_from_slice(name);
            // Length bytes are below 64 and so not touched.
            lower.make_ascii_lowercase();
            kind.copy_from_slice(query_type);
            key.length = length;
        }
        key
    }
}

/// The name of a question in lower case and its type, without an allocation.
#[derive(Clone, Copy, Debug)]
pub struct CacheKey {
    bytes: [u8; MAXIMUM_NAME + 2],
    length: usize,
}

impl CacheKey {
    /// The bytes to compare.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }
}

/// Whether `byte` may stand in a label that is asked for: letters, digits, hyphen (RFC 1123 §2.1) and the underscore of
/// service names (RFC 8552).
pub(crate) fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// The header's fields that matter.
struct Header {
    id: u16,
    flags: u16,
    counts: [u16; 4],
}

impl Header {
    const RESPONSE: u16 = 0x8000;
    const TRUNCATED: u16 = 0x0200;
    const RECURSION_DESIRED: u16 = 0x0100;

    fn read(message: &[u8]) -> Option<Self> {
        Some(Self {
            id: read_u16(message, 0)?,
            flags: read_u16(message, 2)?,
            counts: [
                read_u16(message, 4)?,
                read_u16(message, 6)?,
                read_u16(message, 8)?,
                read_u16(message, 10)?,
            ],
        })
    }

    fn opcode(&self) -> u8 {
        // Four bits fit.
        u8::try_from((self.flags >> 11) & 0xf).unwrap_or(0)
    }

    fn refused(&self, code: ResponseCode) -> Refused<'static> {
        Refused {
            id: self.id,
            opcode: self.opcode(),
            recursion_desired: self.flags & Self::RECURSION_DESIRED != 0,
            code,
            question: None,
            edns: false,
        }
    }
}

/// Reads a client's message.
///
/// Silence for what is no query; NOTIMP for other operations; FORMERR for every message that is not exactly one question
/// and at most one OPT record; BADVERS for an unknown EDNS version; REFUSED for classes other than IN.
pub fn parse(message: &[u8]) -> Parsed<'_> {
    let Some(header) = Header::read(message) else { return Parsed::Drop };
    if header.flags & Header::RESPONSE != 0 {
        return Parsed::Drop;
    }
    if header.opcode() != 0 {
        return Parsed::Refused(header.refused(ResponseCode::NotImp));
    }
    let form_error = Parsed::Refused(header.refused(ResponseCode::FormErr));
    let [1, 0, 0, additional @ (0 | 1)] = header.counts else { return form_error };
    if header.flags & Header::TRUNCATED != 0 || message.len() > MAXIMUM_QUERY {
        return form_error;
    }
    let Some(range) = question_range(message) else { return form_error };
    let after = range.end;
    let (Some(wire), Some(rest)) = (message.get(range), message.get(after..)) else {
        return form_error;
    };
    let question = Question { wire };
    let edns = match (additional, rest) {
        (0, []) => None,
        (1, _) => match OptRecord::read(rest) {
            Some(opt) => Some(opt),
            None => return form_error,
        },
        _ => return form_error,
    };
    let refused = |code| {
        Parsed::Refused(Refused {
            question: Some(question),
            edns: edns.is_some(),
            ..header.refused(code)
        })
    };
    if edns.as_ref().is_some_and(|opt| opt.version != 0) {
        return refused(ResponseCode::BadVers);
    }
    if read_u16(wire, wire.len().saturating_sub(2)) != Some(CLASS_IN) {
        return refused(ResponseCode::Refused);
    }
    Parsed::Query(Query {
        id: header.id,
        recursion_desired: header.flags & Header::RECURSION_DESIRED != 0,
        question,
        edns: edns.map(|opt| opt.payload.clamp(PLAIN_UDP_PAYLOAD, UDP_PAYLOAD)),
    })
}

/// Where name, type and class of the first question stand. Compression has nothing to point at in a first name, so a pointer
/// is an error; so are the extended label types (RFC 6891 §5).
fn question_range(message: &[u8]) -> Option<Range<usize>> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => at += length,
            _ => return None,
        }
        if at - HEADER >= MAXIMUM_NAME {
            return None;
        }
    }
    let end = at + 4;
    (end <= message.len()).then_some(HEADER..end)
}

/// What matters of an OPT record.
struct OptRecord {
    payload: u16,
    version: u8,
}

impl OptRecord {
    /// Reads an OPT record that fills `bytes` exactly, its options well-formed.
    fn read(bytes: &[u8]) -> Option<Self> {
        const FIXED: usize = 11;
        if *bytes.first()? != 0 || read_u16(bytes, 1)? != record_type::OPT {
            return None;
        }
        let payload = read_u16(bytes, 3)?;
        let version = *bytes.get(6)?;
        let length = usize::from(read_u16(bytes, 9)?);
        if bytes.len() != FIXED + length {
            return None;
        }
        let mut options = bytes.get(FIXED..)?;
        while !options.is_empty() {
            let length = usize::from(read_u16(options, 2)?);
            options = options.get(4 + length..)?;
        }
        Some(Self { payload, version })
    }
}
