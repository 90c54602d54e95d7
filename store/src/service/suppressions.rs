//! Suppression rules, and the states of detections.

use super::integrations::{NotifyError, is_detection_type, unknown_type};
use super::{Store, WriteRequest, now};
use crate::database::{DetectionFilter, DetectionState, NewSuppression};
use crate::suppression::Rule;
use portcullis_common::store_api::{
    DetectionRecord, Suppression, SuppressionPreview, WriteDetectionState, WriteSuppression,
};
use std::time::Duration;
use uuid::Uuid;

/// Detections that a preview shows.
const MAX_EXAMPLES: usize = 20;

/// The longest text of a rule in bytes.
const MAX_TEXT_BYTES: usize = 1000;

/// The longest reason in bytes.
const MAX_REASON_BYTES: usize = 2000;

/// The rule that was written, with a new id.
fn read(written: &WriteSuppression) -> Result<Rule, NotifyError> {
    if !is_detection_type(&written.kind) {
        return Err(unknown_type(&written.kind));
    }
    for text in [&written.endpoint, &written.process].into_iter().flatten() {
        if text.is_empty() || text.len() > MAX_TEXT_BYTES || text.chars().any(char::is_control) {
            return Err(NotifyError::invalid(
                "an endpoint or process of the rule can't be used",
                "leave it out for any, or write 1 to 1000 visible characters; `*` stands for any characters",
            ));
        }
    }
    Ok(Rule {
        id: Uuid::now_v7().simple().to_string(),
        kind: written.kind.clone(),
        scope: written.scope.clone(),
        endpoint: written.endpoint.clone(),
        process: written.process.clone(),
    })
}

fn check_text(text: &str, what: &'static str, hint: &'static str) -> Result<(), NotifyError> {
    let is_good = text.len() <= MAX_REASON_BYTES
        && !text.chars().any(|letter| letter.is_control() && letter != '\n');
    if is_good { Ok(()) } else { Err(NotifyError::invalid(what, hint)) }
}

impl Store {
    /// All suppression rules, the newest first.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn suppressions(&self) -> Result<Vec<Suppression>, NotifyError> {
        Ok(self.database.suppressions(now().as_millisecond()).await?)
    }

    /// What a rule would suppress of what is there.
    ///
    /// # Errors
    /// When the rule makes no sense, or the database can't be used.
    pub async fn preview_suppression(
        &self,
        written: &WriteSuppression,
    ) -> Result<SuppressionPreview, NotifyError> {
        let rule = read(written)?;
        let (count, examples) = self.database.preview_suppression(&rule, MAX_EXAMPLES).await?;
        Ok(SuppressionPreview { count, examples })
    }

    /// Makes a rule, which also suppresses what is there already.
    ///
    /// # Errors
    /// When the rule makes no sense, or the database can't be used.
    pub async fn create_suppression(
        &self,
        request: &WriteRequest,
        written: &WriteSuppression,
    ) -> Result<Suppression, NotifyError> {
        let rule = read(written)?;
        if written.reason.trim().is_empty() {
            return Err(NotifyError::invalid(
                "the reason is missing",
                "say why these detections are accepted; others read it later",
            ));
        }
        check_text(
            &written.reason,
            "the reason can't be used",
            "write at most 2000 bytes of text",
        )?;
        if written.expires_in_seconds == Some(0) {
            return Err(NotifyError::invalid(
                "the rule would be over at once",
                "say after how many seconds it ends, or leave that out",
            ));
        }
        let now = now();
        let expires_at =
            written.expires_in_seconds.map(|seconds| now + Duration::from_secs(seconds.into()));
        let new = NewSuppression {
            reason: written.reason.clone(),
            expires_ms: expires_at.map(jiff::Timestamp::as_millisecond),
            now_ms: now.as_millisecond(),
            actor: request.actor.clone(),
            rule,
        };
        let id = new.rule.id.clone();
        let entry = request.entry(
            "suppression.create",
            format!("suppression:{id}"),
            Some(format!("{}: {}", written.kind, written.reason)),
        );
        self.database.insert_suppression(&new, &entry).await?;
        self.suppressions()
            .await?
            .into_iter()
            .find(|rule| rule.id == id)
            .ok_or(NotifyError::NotFound("the rule was removed again at once"))
    }

    /// Removes a rule; says how many detections are new again.
    ///
    /// # Errors
    /// When there is no such rule, or the database can't be used.
    pub async fn delete_suppression(
        &self,
        request: &WriteRequest,
        id: &str,
    ) -> Result<u64, NotifyError> {
        let entry = request.entry("suppression.delete", format!("suppression:{id}"), None);
        self.database
            .delete_suppression(id, now().as_millisecond(), &entry)
            .await?
            .ok_or(NotifyError::NotFound("there is no such suppression rule"))
    }

    /// A detection.
    ///
    /// # Errors
    /// When there is no such one, or the database can't be used.
    pub async fn detection(&self, id: &str) -> Result<DetectionRecord, NotifyError> {
        let filter = DetectionFilter { id: Some(id.to_owned()), ..DetectionFilter::default() };
        let found = self.database.detections(&filter, 1).await?.into_iter().next();
        found.map(|(_, record)| record).ok_or(NotifyError::NotFound("there is no such detection"))
    }

    /// Resolves a detection, or opens it again.
    ///
    /// # Errors
    /// When there is no such one, the state is none that a person gives, or the database can't be used.
    pub async fn set_detection_state(
        &self,
        request: &WriteRequest,
        id: &str,
        written: &WriteDetectionState,
    ) -> Result<DetectionRecord, NotifyError> {
        let (is_resolved, action) = match written.state.as_str() {
            "resolved" => (true, "detection.resolve"),
            "new" => (false, "detection.reopen"),
            _ => {
                return Err(NotifyError::invalid(
                    "a person makes a detection `resolved` or `new`",
                    "`suppressed` is what rules make it; see POST /suppressions",
                ));
            }
        };
        let comment = written.comment.clone().filter(|comment| !comment.trim().is_empty());
        if let Some(comment) = &comment {
            check_text(comment, "the comment can't be used", "write at most 2000 bytes of text")?;
        }
        let entry = request.entry(action, format!("detection:{id}"), comment.clone());
        let state = DetectionState {
            is_resolved,
            comment: comment.filter(|_| is_resolved),
            actor: request.actor.clone(),
            now_ms: now().as_millisecond(),
        };
        if !self.database.set_detection_state(id, &state, &entry).await? {
            return Err(NotifyError::NotFound("there is no such detection"));
        }
        self.detection(id).await
    }
}
