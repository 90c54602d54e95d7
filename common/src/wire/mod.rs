//! The monitor's socket: JSON lines, one request a connection, the protocol's version in the first message.

mod codec;

#[cfg(test)]
mod tests;

pub use codec::{
    DecodeError, MAX_ID_TOKEN_BYTES, decode_answer, decode_request, encode_answer, encode_request,
};

use crate::diagnostic::Diagnostic;
use crate::event::{EnforcementScope, Feature, Posture};
use crate::job_context::JobContext;
use crate::policy::EgressMode;
use crate::report::Report;
use crate::resolution::{Considered, Identity, ScopeKind};
use crate::text::log_line;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of the protocol.
pub const PROTOCOL_VERSION: u32 = 1;

/// The longest request in bytes, newline included. A context has a dozen short fields; an OIDC token is below 4 KiB.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The longest answer in bytes, newline included; the report is cut to fit.
pub const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Where the monitor listens, below the root directory.
pub const SOCKET_PATH: &str = "/run/portcullis/monitor.sock";

/// The first and only message of a client.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Request {
    /// [`PROTOCOL_VERSION`] of the client.
    pub version: u32,
    /// What it asks for.
    #[serde(flatten)]
    pub call: Call,
}

/// How a job asks GitHub for an OIDC token, from `ACTIONS_ID_TOKEN_REQUEST_URL` and `ACTIONS_ID_TOKEN_REQUEST_TOKEN` of a
/// hook's environment. `Debug` does not show the token.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub struct IdTokenRequest {
    /// Where to ask.
    pub url: String,
    /// With which bearer token.
    pub token: String,
}

impl fmt::Debug for IdTokenRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("IdTokenRequest").finish_non_exhaustive()
    }
}

/// The requests. `Debug` does not show the token.
#[derive(Clone, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Call {
    /// Bind a policy to the caller's Worker; the first call of a Worker wins.
    StartJob {
        /// The job as the hook sees it.
        context: JobContext,
        /// A GitHub OIDC token, when the job has `id-token: write`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id_token: Option<String>,
        /// How to ask GitHub for one. The monitor does, for a hook has no HTTP client, and knows the store's audience not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id_token_request: Option<IdTokenRequest>,
    },
    /// Ask for the report of the caller's job.
    FinishJob {},
    /// All jobs of this host.
    Status {},
    /// Which policy would apply, and why.
    Explain {
        /// The job to explain.
        context: JobContext,
    },
}

impl fmt::Debug for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StartJob { context, id_token, id_token_request } => formatter
                .debug_struct("StartJob")
                .field("context", context)
                .field("id_token", &id_token.as_ref().map(|_| "[redacted]"))
                .field("id_token_request", id_token_request)
                .finish(),
            Self::FinishJob {} => formatter.write_str("FinishJob"),
            Self::Status {} => formatter.write_str("Status"),
            Self::Explain { context } => {
                formatter.debug_struct("Explain").field("context", context).finish()
            }
        }
    }
}

/// The monitor's answer, one line.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// To `start-job`.
    Started(Started),
    /// To `finish-job`.
    Finished {
        /// What happened in the job.
        report: Box<Report>,
        /// The report as GitHub-flavoured Markdown, below 1 MiB (the runner's limit for a step summary).
        markdown: String,
    },
    /// To `status`.
    Status(Status),
    /// To `explain`.
    Explained(Explained),
    /// The request was refused or failed.
    Refused(Refusal),
}

/// What is in force for a job that has just been bound.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Started {
    /// The job's id.
    pub job_id: String,
    /// The policy's name.
    pub policy: String,
    /// Its version.
    pub policy_version: String,
    /// The kind of target that matched.
    pub scope: ScopeKind,
    /// The target that matched.
    pub target: String,
    /// How sure the store is of the job's identity.
    pub identity: Identity,
    /// Audit or block.
    pub mode: EgressMode,
    /// How many endpoints the policy allows.
    pub endpoints: u64,
    /// What is really in force.
    pub posture: Posture,
    /// Milliseconds from the request to the verified rule set.
    pub applied_ms: f64,
}

/// Why a request got no answer of its own.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The request could not be read.
    BadRequest,
    /// The client speaks another version of the protocol.
    UnsupportedVersion,
    /// The caller is no descendant of a Runner.Worker, or not one that is bound.
    NotARunnerJob,
    /// The caller's Worker is bound already, to another context.
    AlreadyBound,
    /// The policy could not be had or put in force and the failure mode is `closed`.
    NotEnforced,
    /// The policy says that this job does not run.
    Denied,
    /// The monitor has too much to do.
    Busy,
}

/// A refusal, in words for a person.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Refusal {
    /// The kind, for programs.
    pub kind: RefusalKind,
    /// What happened.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The answer to `status`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// The running jobs.
    pub jobs: Vec<JobStatus>,
    /// The infrastructure units that are exempt on this host, with whether their cgroup was found.
    #[serde(default)]
    pub infrastructure: Vec<InfrastructureUnit>,
}

/// One running job.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct JobStatus {
    /// The job's id.
    pub id: String,
    /// The pid of its Runner.Worker in the monitor's pid namespace.
    pub worker_pid: u32,
    /// The policy's name.
    pub policy: String,
    /// Its version.
    pub version: String,
    /// Whose traffic is the job's.
    pub scope: EnforcementScope,
    /// Audit or block.
    pub mode: EgressMode,
    /// What is really in force.
    pub posture: Posture,
    /// Addresses that are open now.
    pub grants: u64,
    /// Events recorded so far.
    pub events: u64,
    /// Calls stopped so far.
    pub blocked: u64,
    /// Detections so far.
    pub detections: u64,
}

/// A unit of the machine that is not the job.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct InfrastructureUnit {
    /// The unit: `ssh.service`.
    pub unit: String,
    /// Whether its cgroup exists on this host.
    pub found: bool,
}

/// The answer to `explain`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Explained {
    /// The policy that would apply.
    pub policy: String,
    /// Its version.
    pub policy_version: String,
    /// The kind of target that matched.
    pub scope: ScopeKind,
    /// The target that matched.
    pub target: String,
    /// Audit or block.
    pub mode: EgressMode,
    /// Every target that was looked at, the most specific first.
    pub considered: Vec<Considered>,
}

/// The answer of `monitor check --json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct HostCheck {
    /// The mechanisms of this host, as probed.
    pub features: Vec<Feature>,
    /// What a job would get here.
    pub posture: Posture,
}

impl Refusal {
    /// A refusal with a remedy.
    pub fn new(kind: RefusalKind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: Some(hint.into()) }
    }

    /// The refusal for a person; the text of another process is made safe to print.
    pub fn diagnostic(&self) -> Diagnostic {
        Diagnostic {
            message: log_line(&self.message, 4096),
            hint: self.hint.as_ref().map(|hint| log_line(hint, 4096)),
        }
    }
}
