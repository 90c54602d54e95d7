//! A YAML stream as trees that remember where each node stands.

use super::source::Source;
use crate::policy::error::{ErrorList, PolicyError};
use crate::text::log_line;
use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use std::collections::HashMap;

/// The deepest nesting of lists and mappings; a policy needs 3.
const MAX_DEPTH: usize = 16;

/// How much aliases may repeat in one file, in bytes of text plus one for each node.
const ALIAS_BUDGET: usize = 256 * 1024;

/// A node and where it starts.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Byte offset in the source.
    pub(super) offset: usize,
    /// What it is.
    pub(super) value: Value,
}

/// The kinds of node.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Text; `plain` when it stands without quotes and may mean a number, a boolean or nothing.
    Scalar { text: String, plain: bool },
    /// A list.
    List(Vec<Node>),
    /// A mapping, in order, duplicates included.
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// Whether it is the absence of a value: nothing, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What it costs to copy: bytes of text plus one for each node.
    fn weight(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { text, .. } => text.len(),
            Value::List(nodes) => nodes.iter().map(Self::weight).sum(),
            Value::Map(pairs) => pairs.iter().map(|(k, v)| k.weight() + v.weight()).sum(),
        }
    }
}

/// The root of every document of the stream that has one. Mistakes go to `errors`; a document with one yields no tree.
pub(super) fn documents(source: &Source<'_>, errors: &mut ErrorList) -> Vec<Node> {
    let mut parser = Parser::new_from_str(source.text);
    let mut builder = Builder::new(source);
    let mut roots = Vec::new();
    while let Some(next) = parser.next() {
        let outcome = match next {
            Ok((Event::DocumentEnd, _)) => {
                roots.extend(builder.root.take());
                builder.reset();
                Ok(())
            }
            Ok((event, span)) => builder.take(event, span),
            Err(error) => Err(syntax_error(source, &error)),
        };
        if let Err(error) = outcome {
            errors.push(error);
            builder.reset();
            if !parser.proceed_next_document().unwrap_or(false) {
                break;
            }
        }
    }
    roots
}

/// A list or mapping that is not complete yet.
#[derive(Debug)]
struct Open {
    offset: usize,
    anchor: usize,
    items: Vec<Node>,
    is_map: bool,
}

/// Builds the tree of one document after the other.
#[derive(Debug)]
struct Builder<'a> {
    source: &'a Source<'a>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    spent: usize,
    root: Option<Node>,
}

impl<'a> Builder<'a> {
    fn new(source: &'a Source<'a>) -> Self {
        Self { source, open: Vec::new(), anchors: HashMap::new(), spent: 0, root: None }
    }

    /// Forgets the document, not what aliases have cost.
    fn reset(&mut self) {
        self.open.clear();
        self.anchors.clear();
        self.root = None;
    }

    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), PolicyError> {
        let offset = span.start.byte_offset().unwrap_or(0);
        if let Some(tag) = event.tag() {
            let message = format!(
                "the YAML tag `{}` can't be used in a policy",
                log_line(&tag.original(), 64)
            );
            return Err(self.source.error(offset, None, message, "leave the tag out"));
        }
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let value = Value::Scalar { text: text.into_owned(), plain };
                self.add(Node { offset, value }, anchor);
            }
            Event::SequenceStart(_, anchor, _) => self.begin(offset, anchor, false)?,
            Event::MappingStart(_, anchor, _) => self.begin(offset, anchor, true)?,
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open { offset, anchor, items, is_map }) = self.open.pop() {
                    let value = if is_map { Value::Map(pairs(items)) } else { Value::List(items) };
                    self.add(Node { offset, value }, anchor);
                }
            }
            Event::Alias(anchor) => {
                let node = self.alias(offset, anchor)?;
                self.add(node, 0);
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, offset: usize, anchor: usize, is_map: bool) -> Result<(), PolicyError> {
        if self.open.len() >= MAX_DEPTH {
            let message = format!("lists and mappings are nested more than {MAX_DEPTH} deep");
            let hint = "a policy has no deeper nesting than `attach` and `lockdown-mode`";
            return Err(self.source.error(offset, None, message, hint));
        }
        self.open.push(Open { offset, anchor, items: Vec::new(), is_map });
        Ok(())
    }

    /// A copy of what the anchor names, within the budget.
    fn alias(&mut self, offset: usize, anchor: usize) -> Result<Node, PolicyError> {
        let Some(node) = self.anchors.get(&anchor) else {
            let message = "the alias refers to a node that contains it".to_owned();
            return Err(self.source.error(offset, None, message, "write the value out"));
        };
        self.spent += node.weight();
        if self.spent > ALIAS_BUDGET {
            let message =
                format!("aliases repeat more than {} KiB of this file", ALIAS_BUDGET / 1024);
            let hint = "put what is shared into a policy of its own and name it in `extends`";
            return Err(self.source.error(offset, None, message, hint));
        }
        Ok(node.clone())
    }

    fn add(&mut self, node: Node, anchor: usize) {
        if anchor != 0 {
            // A copy that is never used costs as much as the text itself; nested anchors are bounded by MAX_DEPTH.
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            Some(parent) => parent.items.push(node),
            None => self.root = Some(node),
        }
    }
}

/// Keys and values, which the parser gives in turn.
fn pairs(items: Vec<Node>) -> Vec<(Node, Node)> {
    let mut items = items.into_iter();
    std::iter::from_fn(|| Some((items.next()?, items.next()?))).collect()
}

/// What the parser says about text that is no YAML.
fn syntax_error(source: &Source<'_>, error: &ScanError) -> PolicyError {
    let offset = error.marker().byte_offset().unwrap_or(0);
    let message = format!("this is not valid YAML: {}", log_line(&error.info(), 200));
    let hint = "check indentation, quotes and brackets here and in the line above; quote a value that starts with `*`, `[`, `&` or `@`";
    source.error(offset, None, message, hint)
}
