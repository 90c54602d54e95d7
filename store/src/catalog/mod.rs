//! All policies and attachments in memory, as a value.
//!
//! A [`Snapshot`] is what the database held at one generation. Deciding about a change and resolving a job's policy are
//! functions of a snapshot, with the same checks and messages as a directory of policy files; writing is the database's, and
//! succeeds only while the snapshot is still true.

mod answers;
mod bundle;
mod change;
mod diff;
mod lint;

#[cfg(test)]
mod tests;

pub use answers::{AnswerError, PolicyAnswer};
pub use bundle::{export, import};
pub use change::{ChangeError, Expected, Plan, attach, delete, detach, put, rename};
pub use diff::diff;
pub use lint::lint;

use answers::Answers;
use jiff::Timestamp;
use portcullis_common::job_context::JobContext;
use portcullis_common::policy::{
    Attachment, EffectivePolicy, EndpointList, JsonPolicyDocument, PolicyDocument, PolicyErrors,
    PolicyRules, SourceDocument,
};
use portcullis_common::resolution::{Choice, HostDefaults, PolicySet, Resolution, ResolveError};
use portcullis_common::store_api::{LintFinding, Policy, PolicySummary};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One policy as it is stored.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its id, which survives renaming.
    pub id: String,
    /// Its newest version.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its newest version was written.
    pub updated_at: Timestamp,
    /// By whom.
    pub updated_by: String,
    /// The newest document, with everything that it is attached to as `attach`.
    pub source: Arc<SourceDocument>,
}

impl Entry {
    /// What it is attached to.
    pub fn attachments(&self) -> &[Attachment] {
        &self.source.document.attach
    }

    /// The document without `attach`, as versions hold it.
    pub fn document(&self) -> PolicyDocument {
        PolicyDocument { attach: Vec::new(), ..self.source.document.clone() }
    }

    /// All but the document.
    pub fn summary(&self) -> PolicySummary {
        let document = &self.source.document;
        PolicySummary {
            name: document.name.as_str().to_owned(),
            version: self.version,
            description: document.description.clone(),
            egress_policy: document.egress_policy,
            allowed: count(document.allowed_endpoints.as_ref()),
            denied: count(document.denied_endpoints.as_ref()),
            lockdown: document.lockdown_mode.as_ref().is_some_and(|mode| mode.enabled),
            attachments: document.attach.clone(),
            created_at: self.created_at,
            updated_at: self.updated_at,
            updated_by: self.updated_by.clone(),
        }
    }

    /// The policy as the API answers it.
    pub fn policy(&self) -> Policy {
        Policy { summary: self.summary(), document: JsonPolicyDocument(self.document()) }
    }
}

/// All policies at one generation.
#[derive(Clone, Debug)]
pub struct Snapshot {
    generation: i64,
    entries: BTreeMap<String, Entry>,
    set: Result<PolicySet, PolicyErrors>,
    /// Policies as they are answered, once they were asked for.
    answers: Arc<Answers>,
}

fn count(endpoints: Option<&EndpointList>) -> u64 {
    endpoints.map_or(0, |list| u64::try_from(list.0.len()).unwrap_or(u64::MAX))
}

impl Snapshot {
    /// The policies of a generation. Mistakes in them, which only an older program can have let in, show when a policy is
    /// to be resolved; everything else goes on, so that they can be mended.
    pub fn new(generation: i64, entries: impl IntoIterator<Item = Entry>) -> Self {
        let entries: BTreeMap<String, Entry> = entries
            .into_iter()
            .map(|entry| (entry.source.document.name.as_str().to_owned(), entry))
            .collect();
        let set = PolicySet::new(entries.values().map(|entry| Arc::clone(&entry.source)));
        Self { generation, entries, set, answers: Arc::default() }
    }

    /// The generation.
    pub const fn generation(&self) -> i64 {
        self.generation
    }

    /// The policies by name.
    pub const fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The policy with this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The policy that is attached to a target.
    pub fn attached_to(&self, target: &Attachment) -> Option<&str> {
        let named = |entry: &&Entry| entry.attachments().contains(target);
        match &self.set {
            Ok(set) => set.attached(target),
            Err(_) => {
                self.entries.values().find(named).map(|entry| entry.source.document.name.as_str())
            }
        }
    }

    /// Which policy applies to a job, and why.
    ///
    /// # Errors
    /// When the default is needed and not there, or the policies have mistakes.
    pub fn resolve(
        &self,
        context: &JobContext,
        host: &HostDefaults,
    ) -> Result<Resolution, ResolveError> {
        let set = self.set.as_ref().map_err(|errors| ResolveError::Policy(errors.clone()))?;
        let mut resolution = set.resolve(context, host)?;
        self.number(&mut resolution.policy);
        Ok(resolution)
    }

    /// As [`Self::resolve`], with the policy as the text that hosts get, which is made once for all who ask.
    ///
    /// # Errors
    /// When the default is needed and not there, or the policies have mistakes.
    pub fn answer(
        &self,
        context: &JobContext,
        host: &HostDefaults,
    ) -> Result<PolicyAnswer, AnswerError> {
        let set = self.set.as_ref().map_err(|errors| ResolveError::Policy(errors.clone()))?;
        let Choice { policy: chosen, scope, target, considered } = set.choose(context, host);
        let policy = self.answers.get_or_make(chosen.name(), || {
            let mut policy = set.chosen_policy(chosen)?;
            self.number(&mut policy);
            Ok(policy)
        })?;
        Ok(PolicyAnswer { policy, scope, target, considered })
    }

    /// What a policy means once `extends` is followed; `None` when there is none of this name.
    ///
    /// # Errors
    /// When the policies have mistakes, or nothing says `egress-policy`.
    pub fn effective(&self, name: &str) -> Option<Result<EffectivePolicy, PolicyErrors>> {
        let set = match &self.set {
            Ok(set) => set,
            Err(errors) => return Some(Err(errors.clone())),
        };
        Some(set.library().effective(name)?.map(|mut policy| {
            self.number(&mut policy);
            policy
        }))
    }

    /// What a reviewer should know about a policy; `None` when there is none of this name.
    ///
    /// # Errors
    /// When the policies have mistakes, or nothing says `egress-policy`.
    pub fn lint(&self, name: &str) -> Option<Result<Vec<LintFinding>, PolicyErrors>> {
        match &self.set {
            Ok(set) => lint(set.library(), name),
            Err(errors) => Some(Err(errors.clone())),
        }
    }

    /// What a policy allows and denies once `extends` is followed, also of one that can only be extended.
    ///
    /// # Errors
    /// When the policies have mistakes.
    pub fn rules(&self, name: &str) -> Option<Result<PolicyRules, PolicyErrors>> {
        match &self.set {
            Ok(set) => set.library().rules(name),
            Err(errors) => Some(Err(errors.clone())),
        }
    }

    /// What a document would mean in the place of the policy of its name, which need not be there.
    ///
    /// # Errors
    /// When the policies would have mistakes with it.
    pub fn effective_with(
        &self,
        mut source: SourceDocument,
    ) -> Result<Option<EffectivePolicy>, PolicyErrors> {
        let name = source.document.name.as_str().to_owned();
        // Where it applies does not matter for what it means.
        source.document.attach.clear();
        source.attach_places.clear();
        let others = self.entries.iter().filter(|(other, _)| **other != name);
        let sources = others.map(|(_, entry)| Arc::clone(&entry.source));
        let set = PolicySet::new(sources.chain([Arc::new(source)]))?;
        set.library().effective(&name).transpose()
    }

    /// The policy and those that extend it, directly or by others.
    pub fn with_dependents(&self, name: &str) -> Vec<String> {
        let mut found = vec![name.to_owned()];
        let mut next = 0;
        while let Some(parent) = found.get(next).cloned() {
            next += 1;
            for (child, entry) in &self.entries {
                let extends = &entry.source.document.extends;
                if extends.iter().any(|name| name.as_str() == parent) && !found.contains(child) {
                    found.push(child.clone());
                }
            }
        }
        found
    }

    /// Gives a policy of the store its version: the number of the document, and where it extends others the content's
    /// hash behind it, for those can change without it: `7`, `7-1f0c5ad2a9b4`.
    fn number(&self, policy: &mut EffectivePolicy) {
        // The built-in policies are not in the store and keep their hash.
        let Some(entry) = self.entries.get(&policy.name) else { return };
        policy.version = if entry.source.document.extends.is_empty() {
            entry.version.to_string()
        } else {
            format!("{}-{}", entry.version, policy.version)
        };
    }
}
