//! DNS names, checked when made.

use super::error::{NameError, NameProblem};
use idna::AsciiDenyList;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest label in bytes (RFC 1035 §2.3.4).
pub const MAX_LABEL_BYTES: usize = 63;

/// The longest name in bytes as text: 255 bytes on the wire (RFC 1035 §2.3.4) less the first length byte and the root.
pub const MAX_NAME_BYTES: usize = 253;

/// A DNS name in lower-case A-label (punycode) form without a trailing dot, checked when made.
///
/// Labels consist of ASCII letters, digits, hyphens and underscores (`_dmarc`, `foo-.github.io` exist in the wild).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DnsName(Arc<str>);

impl DnsName {
    /// Makes a name from text: any letter case, Unicode or A-labels, with or without the trailing dot.
    ///
    /// # Errors
    /// When the text is no name that a host can have.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if !text.is_ascii() {
            // Places in the converted text say nothing about the text that was given.
            let at_start = |problem| NameError { offset: 0, problem };
            let ascii = idna::domain_to_ascii_cow(text.as_bytes(), AsciiDenyList::EMPTY)
                .map_err(|_| at_start(NameProblem::Idna))?;
            return Self::from_ascii(&ascii).map_err(|error| at_start(error.problem));
        }
        Self::from_ascii(text)
    }

    fn from_ascii(ascii: &str) -> Result<Self, NameError> {
        let name = ascii.strip_suffix('.').unwrap_or(ascii);
        if name.is_empty() {
            return Err(NameError { offset: 0, problem: NameProblem::Empty });
        }
        let mut offset = 0;
        for label in name.split('.') {
            check_label(label.as_bytes())
                .map_err(|error| NameError { offset: offset + error.offset, ..error })?;
            offset += label.len() + 1;
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(NameError { offset: MAX_NAME_BYTES, problem: NameProblem::TooLong });
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// Makes a name from the labels of a DNS message, the root label left out.
    ///
    /// A label is taken as it is on the wire: one that contains a dot is refused, never split.
    ///
    /// # Errors
    /// When a label has bytes that no host name has, or is too long, or there is none.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut name = String::new();
        for label in labels {
            check_label(label)
                .map_err(|error| NameError { offset: name.len() + error.offset, ..error })?;
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
            if name.len() > MAX_NAME_BYTES {
                return Err(NameError { offset: MAX_NAME_BYTES, problem: NameProblem::TooLong });
            }
        }
        if name.is_empty() {
            return Err(NameError { offset: 0, problem: NameProblem::Empty });
        }
        Ok(Self(name.into()))
    }

    /// The name as text: `registry.npmjs.org`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as text that can be kept at no cost.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// The labels, the most specific first: `registry`, `npmjs`, `org`.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// Whether this name lies below `parent` by at least one whole label.
    pub fn is_below(&self, parent: &Self) -> bool {
        self.0.strip_suffix(&*parent.0).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }

    /// Whether the last label reads as a number, which a resolver takes for an IPv4 address (WHATWG URL, "ends in a number").
    pub(super) fn ends_in_number(&self) -> bool {
        let Some(last) = self.labels().next_back() else { return false };
        last.bytes().all(|byte| byte.is_ascii_digit())
            || last
                .strip_prefix("0x")
                .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }

    /// Whether anybody can register names directly below this one, by the Public Suffix List (ICANN and private part).
    ///
    /// A top-level label that the list does not know, such as `internal` or `test`, is no public suffix here: it is
    /// how companies name their own networks.
    pub fn is_public_suffix(&self) -> bool {
        psl::suffix(self.0.as_bytes())
            .is_some_and(|suffix| suffix.is_known() && suffix == self.0.as_bytes())
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for DnsName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

/// Checks one label; the error's offset counts from the label's start.
fn check_label(label: &[u8]) -> Result<(), NameError> {
    let bad = label
        .iter()
        .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-' && *byte != b'_');
    match bad {
        _ if label.is_empty() => Err(NameError { offset: 0, problem: NameProblem::EmptyLabel }),
        Some(offset) => {
            Err(NameError { offset, problem: NameProblem::Character(char::from(label[offset])) })
        }
        None if label.len() > MAX_LABEL_BYTES => {
            Err(NameError { offset: MAX_LABEL_BYTES, problem: NameProblem::LabelTooLong })
        }
        None => Ok(()),
    }
}
