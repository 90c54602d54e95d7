//! Building the query that goes upstream: nothing of the client's message but the name's letters is in it.

use super::{HEADER, UDP_PAYLOAD, read_u16};
use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};

/// A query of our own: a random id, random letter case (draft-vixie-dnsext-dns0x20: each letter is one more bit that a forged
/// answer has to guess), our own OPT record without options, no DO, no client subnet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutgoingQuery {
    bytes: Vec<u8>,
    question_length: usize,
}

/// How a message relates to a query of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Match {
    /// A response with our id and exactly our question.
    Exact,
    /// The same, but for the letters' case: forged, or from a server that does not keep it.
    LetterCase,
    /// Not an answer to this query.
    Foreign,
}

/// A name could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("the question could not be encoded")]
pub struct BuildError(#[from] ProtoError);

impl OutgoingQuery {
    /// Builds a query for `name` (a checked host name, lower case).
    ///
    /// # Errors
    /// When the name does not fit a DNS message; a name from a checked question does.
    pub fn build(name: &str, query_type: u16, with_edns: bool) -> Result<Self, BuildError> {
        let labels = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
        let mut encoded = Name::from_labels(labels)?;
        encoded.randomize_label_case();
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(encoded, RecordType::from(query_type)));
        if with_edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD);
            message.set_edns(edns);
        }
        let bytes = message.to_vec()?;
        let length = name.len() + if name.is_empty() { 1 } else { 2 };
        Ok(Self { bytes, question_length: length + 4 })
    }

    /// The message to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its id.
    pub fn id(&self) -> u16 {
        read_u16(&self.bytes, 0).unwrap_or(0)
    }

    /// Gives it another random id, because this one is in use.
    pub fn renew_id(&mut self) {
        if let Some(id) = self.bytes.first_chunk_mut::<2>() {
            *id = Message::query().metadata.id.to_be_bytes();
        }
    }

    /// How a message relates to this query.
    pub fn compare(&self, response: &[u8]) -> Match {
        let question = HEADER..HEADER + self.question_length;
        let is_response = response.get(..2) == self.bytes.get(..2)
            && response.get(2).is_some_and(|flags| flags & 0xf8 == 0x80)
            && read_u16(response, 4) == Some(1);
        match (response.get(question.clone()), self.bytes.get(question)) {
            (Some(theirs), Some(ours)) if is_response && theirs == ours => Match::Exact,
            (Some(theirs), Some(ours)) if is_response && theirs.eq_ignore_ascii_case(ours) => {
                Match::LetterCase
            }
            _ => Match::Foreign,
        }
    }
}

/// Whether a message from upstream is cut (TC).
pub(crate) fn is_truncated(response: &[u8]) -> bool {
    response.get(2).is_some_and(|flags| flags & 0x02 != 0)
}
