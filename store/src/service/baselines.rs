//! Baselines for people: which there are, what they hold, and policies made of them.

use super::{Store, WriteRequest};
use crate::catalog::{self, ChangeError, Expected, Snapshot};
use crate::database::{BaselineFilter, DatabaseError, EndpointFilter};
use portcullis_common::endpoint::Endpoint;
use portcullis_common::policy::{
    EndpointList, JsonPolicyDocument, PolicyDocument, PolicyErrors, PolicyName, PolicyNameError,
    SourceDocument, WrittenEndpoint, parse_documents,
};
use portcullis_common::store_api::{
    BaselineSource, BaselineSummary, DestinationSummary, ImportEndpoints, ImportedEndpoints,
    LeftOutEndpoint, PolicyFromBaseline, PolicyOfBaseline,
};
use std::collections::BTreeSet;

/// The most endpoints of a baseline that become a policy; a policy file of 1 MiB holds some 30 000.
pub const MAX_ENDPOINTS: u32 = 30_000;

/// Why endpoints can't be taken into a policy.
#[derive(Debug, thiserror::Error)]
pub enum EndpointsError {
    /// The change is not possible.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The name is no name of a policy.
    #[error(transparent)]
    Name(#[from] PolicyNameError),
    /// The policies have mistakes.
    #[error("the policies have mistakes")]
    Invalid(#[from] PolicyErrors),
    /// Nothing was ever learned of the source.
    #[error("there is no baseline of {0}")]
    NoBaseline(String),
    /// Neither a baseline nor endpoints, or both.
    #[error("say either a baseline or endpoints")]
    NoSource,
    /// The document can't be written.
    #[error("the policy can't be written: {0}")]
    Unwritable(String),
}

/// Endpoints to take, and those that can't be.
#[derive(Debug, Default)]
struct Candidates {
    /// As they were given, and what they mean.
    good: Vec<(String, Endpoint)>,
    bad: Vec<LeftOutEndpoint>,
}

impl Store {
    /// How much a baseline has learned; `None` when there is none.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn baseline(
        &self,
        source: &BaselineSource,
    ) -> Result<Option<BaselineSummary>, DatabaseError> {
        let Some(key) = self.database.baseline_key(source).await? else { return Ok(None) };
        let filter = BaselineFilter::default();
        let found = self.database.baselines(Some(key), &filter, self.thresholds(), 1).await?;
        Ok(found.into_iter().next().map(|(_, summary)| summary))
    }

    /// Baselines, the oldest first, each with its key, which is the cursor.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn baselines(
        &self,
        filter: &BaselineFilter,
        limit: u32,
    ) -> Result<Vec<(i64, BaselineSummary)>, DatabaseError> {
        self.database.baselines(None, filter, self.thresholds(), limit).await
    }

    /// Endpoints of a baseline, by name; none when nothing was learned of it.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn baseline_endpoints(
        &self,
        source: &BaselineSource,
        filter: &EndpointFilter,
        limit: u32,
    ) -> Result<Vec<DestinationSummary>, DatabaseError> {
        match self.database.baseline_key(source).await? {
            None => Ok(Vec::new()),
            Some(key) => self.database.baseline_endpoints(Some(key), filter, limit).await,
        }
    }

    /// Adds endpoints of a baseline or a list to a policy, or tells what would be added. What the policy allows already, also
    /// by what it extends, is not added again.
    ///
    /// # Errors
    /// When there is no such policy or baseline, or the policy would be invalid with the endpoints.
    pub async fn import_endpoints(
        &self,
        name: &str,
        request: &ImportEndpoints,
        expected: Expected,
        write: &WriteRequest,
    ) -> Result<ImportedEndpoints, EndpointsError> {
        let (candidates, of) = match (&request.baseline, request.endpoints.is_empty()) {
            (Some(source), true) => {
                let source = source.clone().normalised();
                let filter = EndpointFilter {
                    reached_only: true,
                    min_runs: request.min_runs,
                    since_us: request.since.map(jiff::Timestamp::as_microsecond),
                    ..EndpointFilter::default()
                };
                (
                    self.candidates(&source, &filter).await?,
                    format!("the baseline of {}", source.words()),
                )
            }
            (None, false) => (listed(&request.endpoints), "a list".to_owned()),
            _ => return Err(EndpointsError::NoSource),
        };
        let default_comment = format!("endpoints of {of}");
        let comment = request.comment.as_deref().unwrap_or(&default_comment);
        let first_version = self.database.next_version_of_name(name).await?;
        let decide = |snapshot: &Snapshot, now| -> Result<_, EndpointsError> {
            let (source, mut outcome) = extended(snapshot, name, &candidates)?;
            outcome.dry_run = request.dry_run;
            if request.dry_run || outcome.added.is_empty() {
                let entries = snapshot.entries().clone();
                return Ok((catalog::Plan { changes: Vec::new(), entries }, outcome));
            }
            let plan = catalog::put(
                snapshot,
                name,
                source,
                expected,
                first_version,
                Some(comment),
                &write.actor,
                now,
            )?;
            Ok((plan, outcome))
        };
        let record =
            ("policy.import-endpoints", format!("policy:{name}"), Some(comment.to_owned()));
        let (snapshot, mut outcome) = self.change(write, record, decide).await?;
        outcome.version = snapshot.get(name).map_or(0, |entry| entry.version);
        Ok(outcome)
    }

    /// Makes a policy that allows what a baseline has, or tells what it would be.
    ///
    /// # Errors
    /// When there is a policy of this name, no such baseline, or the name is none.
    pub async fn policy_from_baseline(
        &self,
        request: &PolicyFromBaseline,
        write: &WriteRequest,
    ) -> Result<PolicyOfBaseline, EndpointsError> {
        let name: PolicyName = request.name.parse()?;
        let source = request.baseline.clone().normalised();
        let filter = EndpointFilter {
            reached_only: true,
            min_runs: request.min_runs,
            since_us: request.since.map(jiff::Timestamp::as_microsecond),
            ..EndpointFilter::default()
        };
        let Candidates { good, bad } = self.candidates(&source, &filter).await?;
        let endpoints = good.into_iter().map(|(_, endpoint)| WrittenEndpoint::from(endpoint));
        let document = PolicyDocument {
            description: request
                .description
                .clone()
                .or_else(|| Some(format!("Made of the baseline of {}.", source.words()))),
            egress_policy: Some(request.egress_policy),
            allowed_endpoints: Some(EndpointList(endpoints.collect())),
            ..PolicyDocument::new(name.clone())
        };
        let mut made = PolicyOfBaseline {
            document: JsonPolicyDocument(document.clone()),
            version: None,
            left_out: bad,
        };
        let source_document = as_source(&document)?;
        let default_comment = format!("made of the baseline of {}", source.words());
        let comment = request.comment.as_deref().unwrap_or(&default_comment);
        let first_version = self.database.next_version_of_name(&name).await?;
        let decide = |snapshot: &Snapshot, now| -> Result<_, EndpointsError> {
            if snapshot.get(&name).is_some() {
                return Err(ChangeError::Exists { name: name.to_string() }.into());
            }
            let mut plan = catalog::put(
                snapshot,
                &name,
                source_document.clone(),
                Expected::Nothing,
                first_version,
                Some(comment),
                &write.actor,
                now,
            )?;
            if request.dry_run {
                plan.changes.clear();
            }
            Ok((plan, ()))
        };
        let record = ("policy.write", format!("policy:{name}"), Some(comment.to_owned()));
        let (snapshot, ()) = self.change(write, record, decide).await?;
        made.version = snapshot.get(&name).filter(|_| !request.dry_run).map(|entry| entry.version);
        Ok(made)
    }

    /// What a baseline says was reached, as endpoints of a policy.
    async fn candidates(
        &self,
        source: &BaselineSource,
        filter: &EndpointFilter,
    ) -> Result<Candidates, EndpointsError> {
        let key = self.database.baseline_key(source).await?;
        let key = key.ok_or_else(|| EndpointsError::NoBaseline(source.words()))?;
        let found = self.database.baseline_endpoints(Some(key), filter, MAX_ENDPOINTS + 1).await?;
        let mut texts: Vec<String> = found.into_iter().map(|item| item.endpoint).collect();
        texts.dedup();
        let mut candidates = listed(&texts);
        let most = usize::try_from(MAX_ENDPOINTS).unwrap_or(usize::MAX);
        for (text, _) in candidates.good.split_off(most.min(candidates.good.len())) {
            let reason = format!("a policy of a baseline has at most {MAX_ENDPOINTS} endpoints");
            candidates.bad.push(LeftOutEndpoint { endpoint: text, reason });
        }
        Ok(candidates)
    }
}

/// Texts as endpoints, each meaning once.
fn listed(texts: &[String]) -> Candidates {
    let mut candidates = Candidates::default();
    let mut seen = BTreeSet::new();
    for text in texts {
        match text.parse::<Endpoint>() {
            Ok(endpoint) => {
                if seen.insert(endpoint.clone()) {
                    candidates.good.push((text.clone(), endpoint));
                }
            }
            Err(error) => {
                let reason = if text.starts_with("from ") || text.starts_with("frame ") {
                    "no endpoint of a policy can name it".to_owned()
                } else {
                    format!("{error}; {}", error.hint)
                };
                candidates.bad.push(LeftOutEndpoint { endpoint: text.clone(), reason });
            }
        }
    }
    candidates
}

/// The policy's document with the endpoints that it does not allow yet.
fn extended(
    snapshot: &Snapshot,
    name: &str,
    candidates: &Candidates,
) -> Result<(SourceDocument, ImportedEndpoints), EndpointsError> {
    let unknown = || ChangeError::NotFound { name: name.to_owned() };
    let entry = snapshot.get(name).ok_or_else(unknown)?;
    let rules = snapshot.rules(name).ok_or_else(unknown)??;
    let mut outcome = ImportedEndpoints {
        policy: name.to_owned(),
        dry_run: true,
        version: entry.version,
        added: Vec::new(),
        already_allowed: Vec::new(),
        left_out: candidates.bad.clone(),
    };
    let mut document = entry.document();
    let mut allowed = document.allowed_endpoints.take().unwrap_or_default();
    for (text, endpoint) in &candidates.good {
        let left_out = |reason: String| LeftOutEndpoint { endpoint: text.clone(), reason };
        if let Some(rule) = rules.denied.iter().find(|rule| rule.endpoint.includes(endpoint)) {
            outcome
                .left_out
                .push(left_out(format!("`{}` of policy `{}` denies it", rule.text, rule.policy)));
        } else if let Some(rule) =
            rules.allowed.iter().find(|rule| rule.endpoint.includes(endpoint))
        {
            outcome
                .already_allowed
                .push(left_out(format!("`{}` of policy `{}` allows it", rule.text, rule.policy)));
        } else {
            allowed.0.push(WrittenEndpoint::from(endpoint.clone()));
            outcome.added.push(endpoint.to_string());
        }
    }
    document.allowed_endpoints = Some(allowed);
    Ok((as_source(&document)?, outcome))
}

/// A document as if its author had sent it: the same checks, the same bounds.
fn as_source(document: &PolicyDocument) -> Result<SourceDocument, EndpointsError> {
    let yaml = document.to_yaml().map_err(|error| EndpointsError::Unwritable(error.to_string()))?;
    let mut documents = parse_documents("policy", yaml.as_bytes())?;
    if documents.len() == 1 {
        return Ok(documents.remove(0));
    }
    Err(EndpointsError::Unwritable("it is not one document".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::listed;

    #[test]
    fn each_meaning_is_taken_once() {
        let texts = ["a.test:443", "A.test", "from 192.0.2.1:22", "*.com", "udp://a.test:443"]
            .map(str::to_owned);
        let candidates = listed(&texts);
        let good: Vec<&str> = candidates.good.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(good, ["a.test:443", "udp://a.test:443"]);
        assert_eq!(candidates.bad.len(), 2);
        assert_eq!(candidates.bad[0].reason, "no endpoint of a policy can name it");
    }
}
