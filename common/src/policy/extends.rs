//! `extends`: from documents to the policy that is in force.
//!
//! The documents of a policy are visited depth-first: the document itself, then each entry of its `extends` in listed
//! order, each followed by its own `extends` before the next; a document that was visited before is not visited
//! again (so a diamond counts once, where it was met first). Of every key but `allowed-endpoints` and `denied-endpoints`
//! the first visited document that has the key wins, as a whole: a `lockdown-mode` is not merged with another.
//! The endpoints of all visited documents are united in that order. `name`, `description` and `attach` are never inherited.

use super::error::{ErrorList, PolicyError, PolicyErrors, did_you_mean};
use super::{DEFAULT_AUDIT, DEFAULT_BLOCK, EffectivePolicy, PolicyDocument, Rule, SourceDocument};
use crate::endpoint::Endpoint;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// The longest chain of `extends`, and the most documents that one policy can consist of.
const MAX_CHAIN: usize = 32;
const MAX_DOCUMENTS: usize = 256;

/// Documents by name, each name once, every `extends` resolvable.
#[derive(Clone, Debug, Default)]
pub struct Library {
    documents: BTreeMap<String, Arc<SourceDocument>>,
}

/// Whether all documents of a store are there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Completeness {
    /// All of them.
    Whole,
    /// Some could not be read, so a name that is missing is no mistake of its own.
    Partial,
}

/// Why a walk ended.
enum Failure {
    /// A name that no document has.
    Missing(PolicyError),
    /// Anything else.
    Other(PolicyError),
}

/// A walk along `extends`.
struct Walk<'a> {
    library: &'a Library,
    /// The names from the policy itself down to the current document.
    chain: Vec<&'a str>,
    /// What was visited, in order.
    visited: Vec<&'a SourceDocument>,
    seen: HashSet<&'a str>,
}

/// What a policy allows and denies, without its mode.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PolicyRules {
    /// What may be reached.
    pub allowed: Vec<Arc<Rule>>,
    /// What must not be reached; wins over `allowed`.
    pub denied: Vec<Arc<Rule>>,
}

impl Library {
    /// Checks documents as a whole.
    ///
    /// # Errors
    /// Names that stand twice or belong to the built-in policies, missing names, cycles and sizes of `extends`, and
    /// attached policies that never say `egress-policy`.
    pub fn new(
        documents: impl IntoIterator<Item = impl Into<Arc<SourceDocument>>>,
    ) -> Result<Self, PolicyErrors> {
        Self::check(documents.into_iter().map(Into::into), Completeness::Whole)
    }

    /// As [`Self::new`], also for what could be read of a store that is broken elsewhere.
    pub(crate) fn check(
        documents: impl IntoIterator<Item = Arc<SourceDocument>>,
        completeness: Completeness,
    ) -> Result<Self, PolicyErrors> {
        let mut errors = ErrorList::default();
        let mut library = Self::default();
        for source in documents {
            let name = source.document.name.as_str().to_owned();
            if name == DEFAULT_AUDIT || name == DEFAULT_BLOCK {
                let message = format!("`{name}` is the name of a built-in policy");
                errors.push(name_error(&source, message, "choose another name"));
            } else if let Some(first) = library.documents.get(&name) {
                let message = format!(
                    "there are two policies named `{name}`; the first is in {}",
                    first.name_place
                );
                errors.push(name_error(&source, message, "rename one of them"));
            } else {
                library.documents.insert(name, source);
            }
        }
        for source in library.documents.values() {
            if errors.is_full() {
                break;
            }
            match library.visit(source) {
                Err(Failure::Missing(_)) if completeness == Completeness::Partial => {}
                // Every policy that leads to one mistake meets it; it is reported once.
                Err(Failure::Missing(error) | Failure::Other(error)) => {
                    if !errors.has_place(&error) {
                        errors.push(error);
                    }
                }
                Ok(visited) => {
                    let says = visited.iter().any(|source| source.document.egress_policy.is_some());
                    if !says && !source.document.attach.is_empty() {
                        errors.push(silent_error(source));
                    }
                }
            }
        }
        errors.finish(library)
    }

    /// The documents by name.
    pub fn documents(&self) -> impl Iterator<Item = &SourceDocument> {
        self.documents.values().map(AsRef::as_ref)
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.documents.keys().map(String::as_str)
    }

    /// The document with this name.
    pub fn get(&self, name: &str) -> Option<&SourceDocument> {
        self.documents.get(name).map(AsRef::as_ref)
    }

    /// What the policy with this name means once `extends` is followed; `None` when there is none.
    ///
    /// # Errors
    /// When nothing says `egress-policy`: a policy that is put in force must not owe its mode to an omission.
    pub fn effective(&self, name: &str) -> Option<Result<EffectivePolicy, PolicyErrors>> {
        let source = self.documents.get(name)?;
        let visited = match self.visit(source) {
            Ok(visited) => visited,
            Err(Failure::Missing(error) | Failure::Other(error)) => return Some(Err(error.into())),
        };
        Some(unite(source, &visited).map_err(PolicyErrors::from))
    }

    /// What the policy with this name allows and denies once `extends` is followed, also when nothing says `egress-policy`,
    /// so that it can only be extended. `None` when there is none.
    ///
    /// # Errors
    /// When `extends` can't be followed.
    pub fn rules(&self, name: &str) -> Option<Result<PolicyRules, PolicyErrors>> {
        let source = self.documents.get(name)?;
        let visited = match self.visit(source) {
            Ok(visited) => visited,
            Err(Failure::Missing(error) | Failure::Other(error)) => return Some(Err(error.into())),
        };
        let documents = || visited.iter().map(|source| &source.document);
        Some(Ok(PolicyRules {
            allowed: rules(documents(), |document| document.allowed_endpoints.as_ref()),
            denied: rules(documents(), |document| document.denied_endpoints.as_ref()),
        }))
    }

    fn visit<'a>(&'a self, source: &'a SourceDocument) -> Result<Vec<&'a SourceDocument>, Failure> {
        let mut walk =
            Walk { library: self, chain: Vec::new(), visited: Vec::new(), seen: HashSet::new() };
        walk.enter(source)?;
        Ok(walk.visited)
    }

    /// The error for a cycle, the same wherever the walk entered it: it starts at the first name by alphabet, and stands
    /// at the entry that leads back there.
    fn cycle_error(&self, cycle: &[&str], entry: &SourceDocument) -> PolicyError {
        let start = (0..cycle.len()).min_by_key(|index| cycle[*index]).unwrap_or(0);
        let names = [&cycle[start..], &cycle[..start]].concat();
        let first = names.first().copied().unwrap_or_default();
        let closing = names.last().and_then(|last| self.get(last)).unwrap_or(entry);
        let index = closing.document.extends.iter().position(|name| name.as_str() == first);
        let message = format!(
            "the policies extend each other in a circle: `{}` → `{first}`",
            names.join("` → `")
        );
        extends_error(closing, index.unwrap_or(0), message, "remove one of these entries")
    }
}

impl<'a> Walk<'a> {
    /// Visits a document and what it extends. The depth of the recursion is bounded by [`MAX_CHAIN`].
    fn enter(&mut self, source: &'a SourceDocument) -> Result<(), Failure> {
        let name = source.document.name.as_str();
        self.seen.insert(name);
        self.visited.push(source);
        self.chain.push(name);
        for (index, parent) in source.document.extends.iter().enumerate() {
            if let Some(start) = self.chain.iter().position(|name| *name == parent.as_str()) {
                return Err(Failure::Other(self.library.cycle_error(&self.chain[start..], source)));
            }
            if self.seen.contains(parent.as_str()) {
                continue;
            }
            let Some(next) = self.library.documents.get(parent.as_str()) else {
                let chain = self.chain.join("` → `");
                let message =
                    format!("there is no policy named `{parent}`: `{chain}` → `{parent}`");
                let hint = did_you_mean(parent, self.library.names());
                return Err(Failure::Missing(extends_error(source, index, message, &hint)));
            };
            if self.chain.len() >= MAX_CHAIN || self.visited.len() >= MAX_DOCUMENTS {
                let message = format!(
                    "policy `{}` extends more than {MAX_DOCUMENTS} policies, or more than {MAX_CHAIN} in a row",
                    self.chain[0]
                );
                return Err(Failure::Other(extends_error(
                    source,
                    index,
                    message,
                    "unite some of them",
                )));
            }
            self.enter(next)?;
        }
        self.chain.pop();
        Ok(())
    }
}

/// Unites documents in the order they were visited.
fn unite(
    source: &SourceDocument,
    visited: &[&SourceDocument],
) -> Result<EffectivePolicy, PolicyError> {
    let first = |flag: fn(&PolicyDocument) -> Option<bool>| {
        visited.iter().find_map(|source| flag(&source.document)).unwrap_or(false)
    };
    let documents = || visited.iter().map(|source| &source.document);
    let mut policy = EffectivePolicy {
        name: source.document.name.as_str().to_owned(),
        version: String::new(),
        egress: documents()
            .find_map(|document| document.egress_policy)
            .ok_or_else(|| silent_error(source))?,
        allowed: rules(documents(), |document| document.allowed_endpoints.as_ref()),
        denied: rules(documents(), |document| document.denied_endpoints.as_ref()),
        fail_on_block: first(|document| document.fail_on_block),
        disable_sudo: first(|document| document.disable_sudo),
        disable_sudo_and_containers: first(|document| document.disable_sudo_and_containers),
        disable_file_monitoring: first(|document| document.disable_file_monitoring),
        disable_telemetry: first(|document| document.disable_telemetry),
        on_failure: documents().find_map(|document| document.on_failure),
        lockdown: documents()
            .find_map(|document| document.lockdown_mode.clone())
            .unwrap_or_default(),
    };
    policy.version = policy.content_version();
    Ok(policy)
}

/// The endpoints of several documents, each meaning once, where it is mentioned first.
fn rules<'a>(
    documents: impl Iterator<Item = &'a PolicyDocument>,
    list: fn(&PolicyDocument) -> Option<&super::EndpointList>,
) -> Vec<Arc<Rule>> {
    let mut seen: HashSet<&Endpoint> = HashSet::new();
    let mut rules = Vec::new();
    for document in documents {
        let policy: Arc<str> = document.name.as_str().into();
        for written in list(document).into_iter().flat_map(|list| &list.0) {
            if seen.insert(written.endpoint()) {
                rules.push(Arc::new(Rule {
                    endpoint: written.endpoint().clone(),
                    text: written.shared_text(),
                    policy: Arc::clone(&policy),
                }));
            }
        }
    }
    rules.shrink_to_fit();
    rules
}

fn name_error(source: &SourceDocument, message: String, hint: &str) -> PolicyError {
    PolicyError {
        place: source.name_place.clone(),
        key: Some("name".to_owned()),
        message,
        hint: hint.to_owned(),
    }
}

fn extends_error(
    source: &SourceDocument,
    index: usize,
    message: String,
    hint: &str,
) -> PolicyError {
    PolicyError {
        place: source.extends_places.get(index).unwrap_or(&source.name_place).clone(),
        key: Some("extends".to_owned()),
        message,
        hint: hint.to_owned(),
    }
}

/// The error for a policy that would be put in force and whose mode nobody wrote down.
fn silent_error(source: &SourceDocument) -> PolicyError {
    PolicyError {
        place: source.name_place.clone(),
        key: Some("egress-policy".to_owned()),
        message: format!(
            "neither policy `{}` nor what it extends says `egress-policy`",
            source.document.name
        ),
        hint: "add `egress-policy: block`, or `egress-policy: audit` to only record".to_owned(),
    }
}
