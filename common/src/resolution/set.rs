//! Policies and their attachments, checked as a whole, and which of them applies to a job.

use super::{Considered, Identity, Resolution, ScopeKind};
use crate::diagnostic::Diagnostic;
use crate::job_context::JobContext;
use crate::policy::error::{ErrorList, did_you_mean};
use crate::policy::{
    Attachment, Completeness, EffectivePolicy, EgressMode, Library, Place, PolicyError,
    PolicyErrors, PolicyName, PolicyNameError, SourceDocument,
};
use crate::text::log_line;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

/// What a host says about the jobs it runs, from `monitor.toml`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HostDefaults {
    /// The cluster that the host belongs to.
    pub cluster: Option<String>,
    /// What a job gets that no policy is attached to.
    pub default_policy: DefaultPolicy,
}

/// The host's default policy. As text: `audit`, `block`, or the name of a policy.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum DefaultPolicy {
    /// The built-in policy that allows nothing and audits.
    #[default]
    Audit,
    /// The built-in policy that allows nothing and blocks.
    Block,
    /// A policy of the store.
    Named(String),
}

impl FromStr for DefaultPolicy {
    type Err = PolicyNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "audit" => Ok(Self::Audit),
            "block" => Ok(Self::Block),
            name => name.parse::<PolicyName>().map(|name| Self::Named(name.into())),
        }
    }
}

impl TryFrom<String> for DefaultPolicy {
    type Error = PolicyNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DefaultPolicy> for String {
    fn from(policy: DefaultPolicy) -> Self {
        match policy {
            DefaultPolicy::Audit => "audit".to_owned(),
            DefaultPolicy::Block => "block".to_owned(),
            DefaultPolicy::Named(name) => name,
        }
    }
}

/// All policies of a store with their attachments; at most one policy for each target.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    library: Library,
    /// Target → policy.
    attached: HashMap<Attachment, String>,
}

/// Which policy applies to a job, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Choice<'a> {
    /// The policy.
    pub policy: Chosen<'a>,
    /// The kind of target that matched.
    pub scope: ScopeKind,
    /// The target that matched, `default` for the host's default.
    pub target: String,
    /// Every target that was looked at, the most specific first.
    pub considered: Vec<Considered>,
}

/// A policy, by what it is found by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Chosen<'a> {
    /// One of the set, by its name. Only a host's default can name one that is not there.
    Named(&'a str),
    /// A built-in one.
    BuiltIn(EgressMode),
}

impl<'a> Chosen<'a> {
    /// A host's default.
    pub fn default_of(default: &'a DefaultPolicy) -> Self {
        match default {
            DefaultPolicy::Audit => Self::BuiltIn(EgressMode::Audit),
            DefaultPolicy::Block => Self::BuiltIn(EgressMode::Block),
            DefaultPolicy::Named(name) => Self::Named(name),
        }
    }

    /// The policy's name. No policy of a set has that of a built-in one.
    pub const fn name(&self) -> &'a str {
        match self {
            Self::Named(name) => name,
            Self::BuiltIn(EgressMode::Audit) => crate::policy::DEFAULT_AUDIT,
            Self::BuiltIn(EgressMode::Block) => crate::policy::DEFAULT_BLOCK,
        }
    }
}

/// Why no policy could be given to a job.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ResolveError {
    /// The host's default policy is not in the store.
    #[error("nothing is attached to this job, and the host's default policy `{}` is not in the store", log_line(.name, 80))]
    DefaultMissing {
        /// The name in the host's configuration.
        name: String,
        /// What to do.
        hint: String,
    },
    /// The policy can't be put in force.
    #[error(transparent)]
    Policy(#[from] PolicyErrors),
}

impl ResolveError {
    /// The error for a person.
    pub fn diagnostic(&self) -> Diagnostic {
        match self {
            Self::DefaultMissing { hint, .. } => Diagnostic::new(self.to_string(), hint.clone()),
            Self::Policy(errors) => errors.errors().first().map_or_else(
                || Diagnostic { message: self.to_string(), hint: None },
                PolicyError::diagnostic,
            ),
        }
    }
}

impl PolicySet {
    /// Checks documents and their attachments as a whole.
    ///
    /// # Errors
    /// Everything that is wrong with them, up to a bound; see [`Library::new`]. Two policies for one target are an error
    /// that names both places.
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
        let documents: Vec<Arc<SourceDocument>> = documents.into_iter().collect();
        let mut errors = ErrorList::default();
        let mut first_places: HashMap<&Attachment, (&str, &Place)> = HashMap::new();
        for source in &documents {
            let name = source.document.name.as_str();
            for (index, target) in source.document.attach.iter().enumerate() {
                let place = source.attach_places.get(index).unwrap_or(&source.name_place);
                match first_places.get(target) {
                    None => {
                        first_places.insert(target, (name, place));
                    }
                    Some((first_name, first_place)) => errors.push(PolicyError {
                        place: place.clone(),
                        key: Some("attach".to_owned()),
                        message: format!(
                            "the {target} has a policy already: `{first_name}`, attached in {first_place}"
                        ),
                        hint: "remove one of the two; a target has at most one policy, `extends` unites several".to_owned(),
                    }),
                }
            }
        }
        let attached = first_places
            .into_iter()
            .map(|(target, (name, _))| (target.clone(), name.to_owned()))
            .collect();
        match Library::check(documents, completeness) {
            Ok(library) => errors.finish(Self { library, attached }),
            Err(more) => {
                errors.extend(more);
                errors.finish(Self::default())
            }
        }
    }

    /// The policies.
    pub const fn library(&self) -> &Library {
        &self.library
    }

    /// The attachments, target and policy, in no order.
    pub fn attachments(&self) -> impl Iterator<Item = (&Attachment, &str)> {
        self.attached.iter().map(|(target, policy)| (target, policy.as_str()))
    }

    /// The policy that is attached to a target.
    pub fn attached(&self, target: &Attachment) -> Option<&str> {
        self.attached.get(target).map(String::as_str)
    }

    /// Which policy applies to a job on a host, and why. The identity is [`Identity::Asserted`]; a store that verified a
    /// token says so afterwards.
    ///
    /// # Errors
    /// When the host's default is needed and not there, or the policy never says `egress-policy`.
    pub fn resolve(
        &self,
        context: &JobContext,
        host: &HostDefaults,
    ) -> Result<Resolution, ResolveError> {
        let Choice { policy, scope, target, considered } = self.choose(context, host);
        let policy = self.chosen_policy(policy)?;
        Ok(Resolution { policy, scope, target, identity: Identity::Asserted, considered })
    }

    /// Which policy applies to a job on a host, and why, without putting the policy together.
    pub fn choose<'a>(&'a self, context: &JobContext, host: &'a HostDefaults) -> Choice<'a> {
        let mut considered = Vec::with_capacity(5);
        // The kind of target that wins, where it stands in the list, and its policy.
        let mut chosen: Option<(ScopeKind, usize, &'a str)> = None;
        let organization = context.repository.split('/').next().unwrap_or_default();
        let targets = [
            (ScopeKind::Workflow, Some(context.workflow_path())),
            (ScopeKind::Repository, Some(context.repository.as_str())),
            (ScopeKind::Organization, Some(organization)),
            (ScopeKind::Cluster, host.cluster.as_deref()),
        ];
        for (scope, target) in targets {
            let (target, policy, reason) = match target.map(|text| Attachment::new(scope, text)) {
                None => ("-".to_owned(), None, "this host belongs to no cluster".to_owned()),
                Some(Err(error)) => {
                    let reason = format!("no policy can be attached to it: {error}");
                    (error.target, None, reason)
                }
                Some(Ok(attachment)) => {
                    let policy = self.attached.get(&attachment).map(String::as_str);
                    let reason = match (policy, &chosen) {
                        (None, _) => format!("no policy is attached to this {scope}"),
                        (Some(_), None) => {
                            format!("it is attached to this {scope}, and to nothing more specific")
                        }
                        (Some(_), Some((winner, ..))) => {
                            format!(
                                "it is attached to this {scope}, but the {winner}'s policy is more specific"
                            )
                        }
                    };
                    (attachment.into_target(), policy, reason)
                }
            };
            let wins = chosen.is_none() && policy.is_some();
            if let Some(policy) = policy.filter(|_| wins) {
                chosen = Some((scope, considered.len(), policy));
            }
            considered.push(Considered {
                scope,
                target,
                policy: policy.map(str::to_owned),
                reason,
                chosen: wins,
            });
        }
        considered.push(considered_default(host, chosen.as_ref().map(|(scope, ..)| *scope)));
        match chosen {
            Some((scope, place, name)) => {
                let target = considered.get(place).map(|winner| winner.target.clone());
                let target = target.unwrap_or_default();
                Choice { policy: Chosen::Named(name), scope, target, considered }
            }
            None => Choice {
                policy: Chosen::default_of(&host.default_policy),
                scope: ScopeKind::Default,
                target: DEFAULT_TARGET.to_owned(),
                considered,
            },
        }
    }

    /// The policy that was chosen.
    ///
    /// # Errors
    /// When it is not in the store, or never says `egress-policy`.
    pub fn chosen_policy(&self, chosen: Chosen<'_>) -> Result<EffectivePolicy, ResolveError> {
        match chosen {
            Chosen::BuiltIn(egress) => Ok(EffectivePolicy::built_in(egress)),
            Chosen::Named(name) => self.by_name(name),
        }
    }

    /// The host's default policy.
    ///
    /// # Errors
    /// When it is not in the store, or can't be put in force. A host that starts asks for it to learn so early.
    pub fn default_policy(&self, default: &DefaultPolicy) -> Result<EffectivePolicy, ResolveError> {
        self.chosen_policy(Chosen::default_of(default))
    }

    fn by_name(&self, name: &str) -> Result<EffectivePolicy, ResolveError> {
        match self.library.effective(name) {
            Some(policy) => Ok(policy?),
            None => Err(ResolveError::DefaultMissing {
                name: name.to_owned(),
                hint: format!(
                    "set `policy` in `[defaults]` of monitor.toml; {}",
                    did_you_mean(name, ["audit", "block"].into_iter().chain(self.library.names()))
                ),
            }),
        }
    }
}

/// The target of a resolution that fell to the host's default.
const DEFAULT_TARGET: &str = "default";

/// The host's default as the last that was looked at; `winner` is what won over it.
fn considered_default(host: &HostDefaults, winner: Option<ScopeKind>) -> Considered {
    let policy = match &host.default_policy {
        DefaultPolicy::Audit => crate::policy::DEFAULT_AUDIT,
        DefaultPolicy::Block => crate::policy::DEFAULT_BLOCK,
        DefaultPolicy::Named(name) => name,
    };
    Considered {
        scope: ScopeKind::Default,
        target: DEFAULT_TARGET.to_owned(),
        policy: Some(policy.to_owned()),
        reason: match winner {
            None => "nothing is attached to this job, so the host's default applies".to_owned(),
            Some(scope) => format!("the host's default is not needed: the {scope} has a policy"),
        },
        chosen: winner.is_none(),
    }
}
