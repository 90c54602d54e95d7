//! Baselines, and what is made of recorded runs: endpoints for policies, and trying a policy before it is in force.

use crate::event::Verdict;
use crate::policy::{EgressMode, JsonPolicyDocument};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whose runs.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "source")]
pub enum BaselineSource {
    /// One job of a workflow.
    Job {
        /// `owner/name`.
        repository: String,
        /// The workflow: `octo/hello/.github/workflows/ci.yml`.
        workflow: String,
        /// The key of the job in its workflow.
        job: String,
    },
    /// All jobs of a repository.
    Repository {
        /// `owner/name`.
        repository: String,
    },
    /// All jobs of an organization or user.
    Organization {
        /// The organization.
        organization: String,
    },
    /// All jobs on the hosts of a cluster.
    Cluster {
        /// The cluster.
        cluster: String,
    },
}

impl BaselineSource {
    /// The same with lower-case names of GitHub, which does not tell them apart by case.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        match &mut self {
            Self::Job { repository: name, .. }
            | Self::Repository { repository: name }
            | Self::Organization { organization: name } => name.make_ascii_lowercase(),
            Self::Cluster { .. } => {}
        }
        self
    }

    /// In words: `repository octo/hello`.
    pub fn words(&self) -> String {
        match self {
            Self::Job { repository, workflow, job } => {
                format!("job {job} of {workflow} in {repository}")
            }
            Self::Repository { repository } => format!("repository {repository}"),
            Self::Organization { organization } => format!("organization {organization}"),
            Self::Cluster { cluster } => format!("cluster {cluster}"),
        }
    }
}

/// How much a baseline has learned.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BaselineState {
    /// There were too few runs to say anything.
    Creating,
    /// The last runs called hardly anything new; a new endpoint of a job is a detection.
    Stable,
    /// The last runs kept calling something new.
    Unstable,
}

/// A baseline without its endpoints.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct BaselineSummary {
    /// Whose it is.
    #[serde(flatten)]
    pub source: BaselineSource,
    /// How much it has learned.
    pub state: BaselineState,
    /// Runs that it has learned from.
    pub runs: u64,
    /// How many of the last runs, as far as they are looked at, called something new.
    pub changed_runs: u64,
    /// Endpoints that were reached.
    pub endpoints: u64,
    /// The first call; absent while there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_seen: Option<Timestamp>,
    /// The last call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
}

/// `POST /policies/{name}/import-endpoints`: endpoints of a baseline, or those of a list.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImportEndpoints {
    /// The baseline; what it says was reached is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<BaselineSource>,
    /// Endpoints as text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// Of a baseline, only endpoints that were called in so many runs at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_runs: Option<u32>,
    /// Of a baseline, only endpoints that were called at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Only tell what would be added.
    pub dry_run: bool,
    /// Why; stands in the history.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// An endpoint that is not added, with the reason.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct LeftOutEndpoint {
    /// The endpoint as it was given.
    pub endpoint: String,
    /// Why it is left out.
    pub reason: String,
}

/// What an import of endpoints did, or would do.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ImportedEndpoints {
    /// The policy.
    pub policy: String,
    /// Whether nothing was written, because that was asked for.
    pub dry_run: bool,
    /// The policy's version afterwards; the newest one when nothing was written.
    pub version: u64,
    /// Endpoints that were added.
    pub added: Vec<String>,
    /// Endpoints that the policy, or what it extends, allows already.
    pub already_allowed: Vec<LeftOutEndpoint>,
    /// Endpoints that can't be added, or make no sense in this policy.
    pub left_out: Vec<LeftOutEndpoint>,
}

/// `POST /policies:from-baseline`: a new policy that allows what a baseline has.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFromBaseline {
    /// The name of the new policy.
    pub name: String,
    /// The baseline.
    pub baseline: BaselineSource,
    /// What happens to calls that it does not allow; absent: they are only recorded.
    #[serde(default)]
    pub egress_policy: EgressMode,
    /// What it is for.
    #[serde(default)]
    pub description: Option<String>,
    /// Only endpoints that were called in so many runs at least.
    #[serde(default)]
    pub min_runs: Option<u32>,
    /// Only endpoints that were called at this time or later.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Only tell what would be made.
    #[serde(default)]
    pub dry_run: bool,
    /// Why; stands in the history.
    #[serde(default)]
    pub comment: Option<String>,
}

/// A policy that was made of a baseline, or would be.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PolicyOfBaseline {
    /// The document.
    pub document: JsonPolicyDocument,
    /// Its version; absent when nothing was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// What the baseline has and the policy does not allow by itself, with the reason.
    pub left_out: Vec<LeftOutEndpoint>,
}

/// `POST /policies:dry-run`: a policy, judged against recorded runs.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DryRunRequest {
    /// A policy of the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// A document that need not be stored, YAML or JSON; what it extends is looked for in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Whose runs; absent: those of the targets that the stored policy is attached to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs_of: Option<BaselineSource>,
    /// Only GitHub's run of this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<u64>,
    /// Only the job of this id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// Only jobs that began at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The newest so many jobs; 1000 when it is not said, 10 000 at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs: Option<u32>,
}

/// Calls to one destination, as they were and as the policy judges them.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct DryRunCall {
    /// As an endpoint of the policy grammar, as far as it can say it.
    pub endpoint: String,
    /// Where a name led.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What became of the calls when they were made.
    pub recorded: Verdict,
    /// What would have become of them.
    pub verdict: Verdict,
    /// The rule responsible, or why there is none.
    pub rule: String,
    /// Calls.
    pub calls: u64,
    /// Jobs with such a call.
    pub jobs: u64,
    /// The first one.
    pub first_seen: Timestamp,
    /// The last one.
    pub last_seen: Timestamp,
}

/// An endpoint of a policy that no recorded call needed.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct UnusedEndpoint {
    /// As it is written.
    pub endpoint: String,
    /// The policy that it stands in.
    pub policy: String,
}

/// What a policy would have done.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct DryRun {
    /// The policy.
    pub policy: String,
    /// Its mode.
    pub mode: EgressMode,
    /// Whose runs, in words.
    pub runs_of: String,
    /// Runs that were looked at.
    pub runs: u64,
    /// Jobs that were looked at.
    pub jobs: u64,
    /// Calls that the policy allows.
    pub allowed: u64,
    /// Calls that it would have stopped.
    pub blocked: u64,
    /// Calls that only its audit mode would have let through.
    pub would_block: u64,
    /// Destinations that it does not allow, those with the most calls first.
    pub not_allowed: Vec<DryRunCall>,
    /// Destinations that were stopped and that it allows.
    pub newly_allowed: Vec<DryRunCall>,
    /// Its endpoints that no call needed.
    pub unused: Vec<UnusedEndpoint>,
    /// Entries of the three lists that were left out because there were too many.
    pub left_out: u64,
}
