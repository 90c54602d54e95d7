//! Values of single keys, checked.

use super::source::Source;
use super::tree::{Node, Value};
use crate::policy::PolicyName;
use crate::policy::document::{EndpointList, WrittenEndpoint};
use crate::policy::error::{ErrorList, did_you_mean, quoted};

/// What a node is, for "expected …, not …".
pub(super) fn describe(node: &Node) -> String {
    match &node.value {
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a mapping".to_owned(),
        Value::Scalar { .. } if node.is_null() => "nothing".to_owned(),
        Value::Scalar { text, .. } => quoted(text),
    }
}

/// Reads values and reports what is wrong with them.
#[derive(Debug)]
pub(super) struct Reader<'a, 'e> {
    source: &'a Source<'a>,
    errors: &'e mut ErrorList,
}

impl<'a, 'e> Reader<'a, 'e> {
    pub(super) const fn new(source: &'a Source<'a>, errors: &'e mut ErrorList) -> Self {
        Self { source, errors }
    }

    /// Reports a mistake; an empty key is none.
    pub(super) fn error(
        &mut self,
        offset: usize,
        key: &str,
        message: String,
        hint: impl Into<String>,
    ) {
        let key = (!key.is_empty()).then_some(key);
        self.errors.push(self.source.error(offset, key, message, hint));
    }

    /// The entries of a mapping whose keys are all known and stand once, kebab-case. `path` is the key of the mapping itself.
    pub(super) fn mapping(
        &mut self,
        node: Node,
        path: Option<&str>,
        known: &[&'static str],
    ) -> Option<Vec<(&'static str, Node)>> {
        let Value::Map(pairs) = node.value else {
            let message = format!("a mapping is expected, not {}", describe(&node));
            let hint = format!("write keys and values, such as `{}: …`", known[0]);
            self.error(node.offset, path.unwrap_or_default(), message, hint);
            return None;
        };
        let mut entries: Vec<(&'static str, Node, usize)> = Vec::new();
        for (key, value) in pairs {
            if self.errors.is_full() {
                return None;
            }
            let Value::Scalar { text, .. } = &key.value else {
                let message = format!("a key is expected, not {}", describe(&key));
                self.error(
                    key.offset,
                    path.unwrap_or_default(),
                    message,
                    "write the key as a plain word",
                );
                continue;
            };
            let name = text.replace('_', "-");
            let full = path.map_or_else(|| text.clone(), |path| format!("{path}.{text}"));
            let full = full.chars().take(80).collect::<String>().escape_debug().to_string();
            match known.iter().find(|known| **known == name) {
                Some(known) => match entries.iter().find(|(seen, ..)| seen == known) {
                    Some((_, _, first)) => {
                        let message = format!(
                            "the key stands twice, first in line {}",
                            self.source.place(*first).line
                        );
                        self.error(key.offset, &full, message, "keep one of them");
                    }
                    None => entries.push((known, value, key.offset)),
                },
                None if text == "<<" => {
                    let hint =
                        "put what is shared into a policy of its own and name it in `extends`";
                    self.error(
                        key.offset,
                        &full,
                        "YAML merge keys can't be used in a policy".to_owned(),
                        hint,
                    );
                }
                None => {
                    let hint = did_you_mean(&name, known.iter().copied());
                    self.error(key.offset, &full, "there is no such key".to_owned(), hint);
                }
            }
        }
        Some(entries.into_iter().map(|(key, value, _)| (key, value)).collect())
    }

    /// The entries of a list; nothing at all counts as an empty list.
    pub(super) fn list<'n>(&mut self, node: &'n Node, key: &str, expected: &str) -> &'n [Node] {
        match &node.value {
            Value::List(items) => items,
            _ if node.is_null() => &[],
            _ => {
                let message = format!("a list is expected, not {}", describe(node));
                self.error(node.offset, key, message, format!("write {expected}"));
                &[]
            }
        }
    }

    /// A text.
    pub(super) fn text<'n>(
        &mut self,
        node: &'n Node,
        key: &str,
        expected: &str,
    ) -> Option<&'n str> {
        match &node.value {
            Value::Scalar { text, .. } if !node.is_null() => Some(text),
            _ => {
                let message = format!("{expected} is expected, not {}", describe(node));
                self.error(
                    node.offset,
                    key,
                    message,
                    "write a value behind the key, or leave the key out",
                );
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, node: &Node, key: &str) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, plain: true }
                if matches!(text.as_str(), "true" | "True" | "TRUE") =>
            {
                Some(true)
            }
            Value::Scalar { text, plain: true }
                if matches!(text.as_str(), "false" | "False" | "FALSE") =>
            {
                Some(false)
            }
            _ => {
                let message = format!("`true` or `false` is expected, not {}", describe(node));
                self.error(node.offset, key, message, "write `true` or `false` without quotes");
                None
            }
        }
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        node: &Node,
        key: &str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let text = self.text(node, key, "a value")?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let hint = did_you_mean(text, words.iter().map(|(word, _)| *word));
            self.error(node.offset, key, format!("{} is no value of this key", quoted(text)), hint);
        }
        found
    }

    /// A policy's name.
    pub(super) fn policy_name(&mut self, node: &Node, key: &str) -> Option<PolicyName> {
        let text = self.text(node, key, "a policy's name")?;
        let name = text.parse().ok();
        if name.is_none() {
            let hint = "use 1 to 63 lower-case letters, digits and hyphens, the first no hyphen";
            self.error(node.offset, key, format!("{} is no policy name", quoted(text)), hint);
        }
        name
    }

    /// Endpoints: a list, or one text with white space between them; nothing at all is an empty list.
    pub(super) fn endpoints(&mut self, node: &Node, key: &str) -> Option<EndpointList> {
        let mut list = EndpointList::default();
        match &node.value {
            _ if node.is_null() => {}
            Value::List(items) => {
                for item in items {
                    if self.errors.is_full() {
                        return None;
                    }
                    let Some(text) = self.text(item, key, "an endpoint") else { continue };
                    list.0.extend(self.endpoint(text, item.offset, key));
                }
            }
            Value::Scalar { text, .. } => {
                let mut offset = node.offset;
                for word in text.split_whitespace() {
                    if self.errors.is_full() {
                        return None;
                    }
                    offset = self.source.find(word, offset);
                    list.0.extend(self.endpoint(word, offset, key));
                    offset += word.len();
                }
            }
            Value::Map(_) => {
                let hint = "write `- host:port` entries, quoted when they start with `*` or `[`";
                self.error(
                    node.offset,
                    key,
                    "a list of endpoints is expected, not a mapping".to_owned(),
                    hint,
                );
                return None;
            }
        }
        // It is kept for as long as the store.
        list.0.shrink_to_fit();
        Some(list)
    }

    fn endpoint(&mut self, text: &str, offset: usize, key: &str) -> Option<WrittenEndpoint> {
        WrittenEndpoint::new(text)
            .map_err(|error| {
                let at = self.source.find(text, offset) + error.column - 1;
                let message = format!("{}: {}", quoted(text), error.problem);
                self.error(at, key, message, error.hint);
            })
            .ok()
    }
}
