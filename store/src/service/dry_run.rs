//! Trying a policy on what was recorded, and finding what of it nobody needs.
//!
//! Calls are judged by the monitor's own code ([`portcullis_common::judging`]), over what the jobs' destinations add up to,
//! which outlive the events. Names that were asked for and never called are no calls.

use super::Store;
use crate::catalog::Snapshot;
use crate::database::{DatabaseError, RecordedCalls, TrialFilter};
use jiff::Timestamp;
use portcullis_common::event::Verdict;
use portcullis_common::judging::github_hosts::github_hosts;
use portcullis_common::judging::{Call, CallJudge, CallVerdict};
use portcullis_common::policy::{
    EffectivePolicy, EgressMode, PolicyErrors, Rule, SourceDocument, parse_documents,
};
use portcullis_common::resolution::ScopeKind;
use portcullis_common::store_api::{
    BaselineSource, DryRun, DryRunCall, DryRunRequest, LintFinding, UnusedEndpoint,
};
use std::collections::HashSet;
use std::sync::Arc;

/// Jobs that a policy is tried on when nothing is said.
const USUAL_JOBS: u32 = 1000;

/// The most jobs that a policy is tried on.
const MAX_JOBS: u32 = 10_000;

/// The most destinations that are judged.
const MAX_DESTINATIONS: u32 = 100_000;

/// The most entries of each list of an answer.
const MAX_LISTED: usize = 2000;

/// Why a policy can't be tried.
#[derive(Debug, thiserror::Error)]
pub enum DryRunError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The policy, or another one, has mistakes.
    #[error("the policy can't be used as it is written")]
    Invalid(#[from] PolicyErrors),
    /// There is no such policy.
    #[error("there is no policy named `{0}`")]
    NotFound(String),
    /// Neither a policy nor a document, or both.
    #[error("say either a policy or a document")]
    NoPolicy,
    /// A document that is not one policy.
    #[error("{0} policies were sent, and one is expected")]
    NotOne(usize),
    /// Nothing says whose runs.
    #[error("whose runs? The policy is attached to nothing")]
    NoRuns,
    /// There is nothing to try it on.
    #[error("no job of {0} is recorded")]
    NothingRecorded(String),
}

impl Store {
    /// Judges a policy, stored or not, against recorded runs.
    ///
    /// # Errors
    /// When there is no such policy, it has mistakes, or nothing says whose runs.
    pub async fn dry_run(&self, request: &DryRunRequest) -> Result<DryRun, DryRunError> {
        let snapshot = self.snapshot().await?;
        let policy = policy_of(&snapshot, request)?;
        let mut filter = TrialFilter {
            run_id: request.run_id.map(|id| i64::try_from(id).unwrap_or(i64::MAX)),
            job_id: request.job_id.clone(),
            since_ms: request.since.map(Timestamp::as_millisecond),
            jobs: i64::from(request.jobs.unwrap_or(USUAL_JOBS).clamp(1, MAX_JOBS)),
            ..TrialFilter::default()
        };
        let is_named = request.run_id.is_some() || request.job_id.is_some();
        filter.sources = match &request.runs_of {
            Some(source) => vec![source.clone().normalised()],
            None if is_named => Vec::new(),
            None => attached(&snapshot, &policy.name),
        };
        if filter.sources.is_empty() && !is_named {
            return Err(DryRunError::NoRuns);
        }
        let words = match (&request.job_id, request.run_id) {
            (Some(id), _) => format!("job {id}"),
            (None, Some(run)) => format!("run {run}"),
            (None, None) => {
                filter.sources.iter().map(BaselineSource::words).collect::<Vec<_>>().join(", ")
            }
        };
        let (jobs, runs) = self.database.trial_jobs(&filter).await?;
        if jobs == 0 {
            return Err(DryRunError::NothingRecorded(words));
        }
        let calls = self.database.trial_calls(&filter, MAX_DESTINATIONS).await?;
        let mut tried = self.trial(&policy).judge_all(calls)?;
        tried.runs_of = words;
        (tried.jobs, tried.runs) = (jobs, runs);
        Ok(tried)
    }

    /// Endpoints of a policy that no job under it, or under one that extends it, has called since a time. Nothing is said
    /// while no job ran.
    ///
    /// # Errors
    /// When there is no such policy or it has mistakes.
    pub async fn unused_endpoints(
        &self,
        name: &str,
        days: u32,
        now: Timestamp,
    ) -> Result<Vec<LintFinding>, DryRunError> {
        let snapshot = self.snapshot().await?;
        let not_found = || DryRunError::NotFound(name.to_owned());
        let policy = snapshot.effective(name).ok_or_else(not_found)??;
        let since = now - std::time::Duration::from_hours(24).saturating_mul(days);
        let filter = TrialFilter {
            policies: snapshot.with_dependents(name),
            since_ms: Some(since.as_millisecond()),
            jobs: i64::from(MAX_JOBS),
            ..TrialFilter::default()
        };
        let (jobs, _) = self.database.trial_jobs(&filter).await?;
        if jobs == 0 {
            return Ok(Vec::new());
        }
        let calls = self.database.trial_calls(&filter, MAX_DESTINATIONS).await?;
        let tried = self.trial(&policy).judge_all(calls)?;
        Ok(tried
            .unused
            .into_iter()
            .map(|unused| LintFinding {
                rule: "unused-endpoint".to_owned(),
                message: format!(
                    "`{}` was called by none of the {jobs} jobs of the last {days} days",
                    unused.endpoint
                ),
                endpoint: Some(unused.endpoint),
                hint: "remove it, if no job that runs more seldom needs it".to_owned(),
            })
            .collect())
    }

    fn trial<'a>(&self, policy: &'a EffectivePolicy) -> Trial<'a> {
        // A server name that is none leaves the list empty; the configuration is checked when the server starts.
        let hosts = github_hosts(self.configuration.github.server()).unwrap_or_default();
        Trial { policy, judge: CallJudge::new(policy, &hosts) }
    }
}

/// The targets of a policy, as sources of runs.
fn attached(snapshot: &Snapshot, name: &str) -> Vec<BaselineSource> {
    let targets = snapshot.get(name).map(|entry| entry.attachments().to_vec()).unwrap_or_default();
    targets
        .iter()
        .filter_map(|target| {
            let text = target.target().to_ascii_lowercase();
            match target.scope() {
                ScopeKind::Cluster => {
                    Some(BaselineSource::Cluster { cluster: target.target().to_owned() })
                }
                ScopeKind::Organization => {
                    Some(BaselineSource::Organization { organization: text })
                }
                ScopeKind::Repository => Some(BaselineSource::Repository { repository: text }),
                // A workflow's runs are those of the repository that it lies in; all its jobs count.
                ScopeKind::Workflow => Some(BaselineSource::Job {
                    repository: text.splitn(3, '/').take(2).collect::<Vec<_>>().join("/"),
                    workflow: target.target().to_owned(),
                    job: String::new(),
                }),
                ScopeKind::Default => None,
            }
        })
        .collect()
}

/// The policy that is tried, with what it extends.
fn policy_of(snapshot: &Snapshot, request: &DryRunRequest) -> Result<EffectivePolicy, DryRunError> {
    match (&request.policy, &request.document) {
        (Some(name), None) => {
            let effective = snapshot.effective(name);
            Ok(effective.ok_or_else(|| DryRunError::NotFound(name.clone()))??)
        }
        (None, Some(text)) => {
            let mut documents: Vec<SourceDocument> = parse_documents("policy", text.as_bytes())?;
            if documents.len() != 1 {
                return Err(DryRunError::NotOne(documents.len()));
            }
            let document = documents.remove(0);
            let name = document.document.name.to_string();
            let effective = snapshot.effective_with(document)?;
            effective.ok_or(DryRunError::NotFound(name))
        }
        _ => Err(DryRunError::NoPolicy),
    }
}

/// A policy that is tried.
#[derive(Debug)]
struct Trial<'a> {
    policy: &'a EffectivePolicy,
    judge: CallJudge,
}

impl Trial<'_> {
    fn judge_all(&self, calls: Vec<RecordedCalls>) -> Result<DryRun, DatabaseError> {
        let mut tried = DryRun {
            policy: self.policy.name.clone(),
            mode: self.policy.egress,
            runs_of: String::new(),
            runs: 0,
            jobs: 0,
            allowed: 0,
            blocked: 0,
            would_block: 0,
            not_allowed: Vec::new(),
            newly_allowed: Vec::new(),
            unused: Vec::new(),
            left_out: 0,
        };
        let mut used: HashSet<*const Rule> = HashSet::new();
        for recorded in calls {
            let address = recorded.address.as_deref().and_then(|text| text.parse().ok());
            let judged = Call::of_destination(&recorded.endpoint, address)
                .map(|call| self.judge.judge(&call));
            let (verdict, rule) = self.outcome(&recorded, judged, &mut used);
            let was_stopped = recorded.verdict == Verdict::Blocked;
            let list = match verdict {
                Verdict::Allowed => {
                    tried.allowed += recorded.calls;
                    was_stopped.then_some(&mut tried.newly_allowed)
                }
                Verdict::Blocked => {
                    tried.blocked += recorded.calls;
                    Some(&mut tried.not_allowed)
                }
                Verdict::WouldBlock => {
                    tried.would_block += recorded.calls;
                    Some(&mut tried.not_allowed)
                }
            };
            match list {
                Some(list) if list.len() < MAX_LISTED => {
                    list.push(call(recorded, verdict, rule)?);
                }
                Some(_) => tried.left_out += 1,
                None => {}
            }
        }
        for rule in &self.policy.allowed {
            if used.contains(&Arc::as_ptr(rule)) {
                continue;
            }
            if tried.unused.len() < MAX_LISTED {
                let (endpoint, policy) = (rule.text.to_string(), rule.policy.to_string());
                tried.unused.push(UnusedEndpoint { endpoint, policy });
            } else {
                tried.left_out += 1;
            }
        }
        Ok(tried)
    }

    fn outcome(
        &self,
        recorded: &RecordedCalls,
        judged: Option<CallVerdict>,
        used: &mut HashSet<*const Rule>,
    ) -> (Verdict, String) {
        let not_allowed = match self.policy.egress {
            EgressMode::Audit => Verdict::WouldBlock,
            EgressMode::Block => Verdict::Blocked,
        };
        match judged {
            Some(CallVerdict::Allowed(rules)) => {
                let text = rules.first().map(|rule| rule.text.to_string()).unwrap_or_default();
                used.extend(rules.iter().map(Arc::as_ptr));
                (Verdict::Allowed, text)
            }
            Some(CallVerdict::Denied(rule)) => (Verdict::Blocked, rule.text.to_string()),
            Some(CallVerdict::SpecialUse(usage)) => (
                not_allowed,
                format!("its name leads to a {usage} address, which the policy does not name"),
            ),
            Some(CallVerdict::NotListed) => (not_allowed, "no endpoint allows it".to_owned()),
            // A protocol without ports or names: what was decided without an endpoint stays as it was.
            None if recorded.verdict == Verdict::Allowed => {
                (Verdict::Allowed, "no endpoint can name it".to_owned())
            }
            None => (not_allowed, "no endpoint can name it".to_owned()),
        }
    }
}

fn call(
    recorded: RecordedCalls,
    verdict: Verdict,
    rule: String,
) -> Result<DryRunCall, DatabaseError> {
    let time = |microseconds: i64| {
        Timestamp::from_microsecond(microseconds)
            .map_err(|error| DatabaseError::Corrupt(format!("a time: {error}")))
    };
    Ok(DryRunCall {
        first_seen: time(recorded.first_us)?,
        last_seen: time(recorded.last_us)?,
        endpoint: recorded.endpoint,
        address: recorded.address,
        recorded: recorded.verdict,
        verdict,
        rule,
        calls: recorded.calls,
        jobs: recorded.jobs,
    })
}
