//! The messages of the policy store's HTTP API (`/api/v1`): what the server answers and its clients send.
//!
//! JSON with `snake_case` keys. Types only: who may send what, and what becomes of it, is the server's.

mod baselines;
mod identity;
mod insights;
mod integrations;
mod policies;
mod problem;
mod processes;
mod resolution;
mod runs;
mod suppressions;

pub use baselines::{
    BaselineSource, BaselineState, BaselineSummary, DryRun, DryRunCall, DryRunRequest,
    ImportEndpoints, ImportedEndpoints, LeftOutEndpoint, PolicyFromBaseline, PolicyOfBaseline,
    UnusedEndpoint,
};
pub use identity::{
    AuditEntry, CreateEnrolment, CreateToken, CreatedSecret, Credential, Enrol, Enrolled,
    Enrolment, Heartbeat, Host, PublicKey, Role, Token,
};
pub use insights::{HostState, Summary, SummaryHour, Timeline, TimelinePart};
pub use integrations::{
    Delivery, DeliveryState, Integration, MessageFormat, Notification, NotificationKind, Secret,
    Selection, Target, ToldCall, WriteIntegration, WriteTarget,
};
pub use policies::{
    AttachRequest, AttachedPolicy, Endpoints, ImportOutcome, ImportedPolicy, LintFinding, Policy,
    PolicyCounts, PolicyDiff, PolicySummary, PolicyVersion, RenamePolicy, RestorePolicy,
};
pub use problem::{Problem, ProblemDetail};
pub use processes::{Execution, ProcessCall, ProcessNode, ProcessTree};
pub use resolution::{ResolveRequest, Resolved, SIGNATURE_HEADER};
pub use runs::{
    Accepted, DestinationSummary, DetectionRecord, JobRecord, NewJob, RecordedEvent, Run, RunJobs,
};
pub use suppressions::{Suppression, SuppressionPreview, WriteDetectionState, WriteSuppression};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the API begins.
pub const API_ROOT: &str = "/api/v1";

/// The most items that one page of a list holds; what a client asks beyond is cut to it.
pub const MAX_PAGE: u32 = 1000;

/// One page of a list.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Pass this as `cursor` to get the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// The only page.
    pub const fn whole(items: Vec<T>) -> Self {
        Self { items, next_cursor: None }
    }
}
