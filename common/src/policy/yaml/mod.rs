//! Policy files: YAML, one policy or several separated by `---`.
//!
//! The text is read into trees that remember places, and each tree is read key by key, so that one run reports every
//! mistake with its place and its remedy. JSON is read by the same way, being YAML.

mod read;
mod source;
mod tree;
mod value;

#[cfg(test)]
mod tests;

use super::PolicyDocument;
use super::error::{ErrorList, Place, PolicyError, PolicyErrors};
use source::Source;

/// The largest policy file in bytes; a larger one is refused unread. 1 MiB holds some 30 000 endpoints.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;

/// A document with the places that later checks report.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SourceDocument {
    /// The document.
    pub document: PolicyDocument,
    /// Where its name stands.
    pub name_place: Place,
    /// Where each entry of `extends` stands.
    pub extends_places: Vec<Place>,
    /// Where each entry of `attach` stands.
    pub attach_places: Vec<Place>,
}

impl SourceDocument {
    /// A document that comes from no file; `origin` stands for the file in messages.
    pub fn without_places(document: PolicyDocument, origin: &str) -> Self {
        let place = Place::file(origin);
        Self {
            extends_places: vec![place.clone(); document.extends.len()],
            attach_places: vec![place.clone(); document.attach.len()],
            name_place: place,
            document,
        }
    }
}

/// Reads every policy of one file. `file` is what messages call it.
///
/// # Errors
/// Everything that is wrong with the file, up to a bound; nothing of it can be used then.
pub fn parse_documents(file: &str, bytes: &[u8]) -> Result<Vec<SourceDocument>, PolicyErrors> {
    let text = decode(file, bytes)?;
    let source = Source::new(file, text);
    let mut errors = ErrorList::default();
    let mut documents = Vec::new();
    for root in tree::documents(&source, &mut errors) {
        if errors.is_full() {
            break;
        }
        if !root.is_null() {
            documents.extend(read::document(&source, root, &mut errors));
        }
    }
    if documents.is_empty() && errors.len() == 0 {
        errors.push(PolicyError {
            place: Place::file(file),
            key: None,
            message: "there is no policy in this file".to_owned(),
            hint: "write at least `name:` and `egress-policy:`, or remove the file".to_owned(),
        });
    }
    errors.finish(documents)
}

/// The text without a byte order mark.
fn decode<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str, PolicyError> {
    if bytes.len() > MAX_FILE_BYTES {
        return Err(too_large(file, bytes.len() as u64));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let offset = error.valid_up_to();
            let valid = std::str::from_utf8(&bytes[..offset]).unwrap_or_default();
            Err(PolicyError {
                place: Source::new(file, valid).place(offset),
                key: None,
                message: format!("byte {offset} (0x{:02x}) is not UTF-8", bytes[offset]),
                hint: "save the file as UTF-8".to_owned(),
            })
        }
    }
}

/// The error for a file of `size` bytes, which is too large.
pub(crate) fn too_large(file: &str, size: u64) -> PolicyError {
    PolicyError {
        place: Place::file(file),
        key: None,
        message: format!("the file has {size} bytes; a policy file has at most {MAX_FILE_BYTES}"),
        hint: "split it into several files, or name networks instead of single addresses"
            .to_owned(),
    }
}
