//! Suppression rules, and what they do to detections that are there already.

use super::audit::{optional_time_of, time_of, write_audit};
use super::detections::{RULES, RuleRow, lock_suppressions, rule, scope_of};
use super::{Database, DatabaseError, DetectionFilter, NewAuditEntry, read, transaction, unsigned};
use crate::suppression::{Facts, Place, Rule};
use portcullis_common::store_api::{DetectionRecord, Suppression};

/// Detections that are looked at in one statement.
const AT_ONCE: i64 = 1000;

/// A rule that is to be stored.
#[derive(Clone, Debug)]
pub struct NewSuppression {
    /// The rule.
    pub rule: Rule,
    /// Why.
    pub reason: String,
    /// When it ends.
    pub expires_ms: Option<i64>,
    /// Now.
    pub now_ms: i64,
    /// Who makes it.
    pub actor: String,
}

#[derive(sqlx::FromRow)]
struct SuppressionRow {
    id: String,
    kind: String,
    scope: Option<String>,
    target: Option<String>,
    endpoint: Option<String>,
    process: Option<String>,
    reason: String,
    expires_ms: Option<i64>,
    created_ms: i64,
    created_by: String,
    suppressed: i64,
}

/// What rules look at, of a detection that is stored.
#[derive(sqlx::FromRow)]
struct Looked {
    key: i64,
    kind: String,
    cluster: String,
    organization: String,
    repository: String,
    workflow_path: String,
    endpoint: Option<String>,
    process: Option<String>,
}

impl Looked {
    fn facts(&self) -> Facts<'_> {
        Facts {
            kind: &self.kind,
            place: Place {
                cluster: &self.cluster,
                organization: &self.organization,
                repository: &self.repository,
                workflow: &self.workflow_path,
            },
            endpoint: self.endpoint.as_deref(),
            process: self.process.as_deref(),
        }
    }
}

/// Detections of a type that nothing suppresses and nobody resolved, in portions.
const OPEN: &str = "SELECT d.key, d.kind, j.cluster, j.organization, j.repository, j.workflow_path, d.endpoint, d.process \
    FROM detections d JOIN jobs j ON j.key = d.job \
    WHERE d.key > $1 AND d.kind = $2 AND d.suppressed_by IS NULL AND d.resolved_ms IS NULL ORDER BY d.key LIMIT $3";

/// Detections that a rule suppresses, in portions.
const SUPPRESSED: &str = "SELECT d.key, d.kind, j.cluster, j.organization, j.repository, j.workflow_path, d.endpoint, d.process \
    FROM detections d JOIN jobs j ON j.key = d.job WHERE d.key > $1 AND d.suppressed_by = $2 ORDER BY d.key LIMIT $3";

impl Database {
    /// All rules, the newest first.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn suppressions(&self, now_ms: i64) -> Result<Vec<Suppression>, DatabaseError> {
        let rows: Vec<SuppressionRow> = read!(self, |pool| {
            sqlx::query_as(
                "SELECT id, kind, scope, target, endpoint, process, reason, expires_ms, created_ms, created_by, \
                 (SELECT COUNT(*) FROM detections d WHERE d.suppressed_by = suppressions.id) AS suppressed \
                 FROM suppressions ORDER BY created_ms DESC, id DESC",
            )
            .fetch_all(pool)
            .await?
        });
        rows.into_iter()
            .map(|row| {
                let is_over = row.expires_ms.is_some_and(|end| end <= now_ms);
                Ok(Suppression {
                    scope: scope_of(row.scope.as_deref(), row.target.as_deref())?,
                    expires_at: optional_time_of(row.expires_ms)?,
                    created_at: time_of(row.created_ms)?,
                    state: if is_over { "expired" } else { "active" }.to_owned(),
                    suppressed: unsigned(row.suppressed),
                    id: row.id,
                    kind: row.kind,
                    endpoint: row.endpoint,
                    process: row.process,
                    reason: row.reason,
                    created_by: row.created_by,
                })
            })
            .collect()
    }

    /// What a rule would suppress of what is there: how many, and the newest of them.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn preview_suppression(
        &self,
        rule: &Rule,
        examples: usize,
    ) -> Result<(u64, Vec<DetectionRecord>), DatabaseError> {
        let (mut after, mut keys) = (0, Vec::new());
        loop {
            let rows: Vec<Looked> = read!(self, |pool| {
                sqlx::query_as(OPEN)
                    .bind(after)
                    .bind(rule.kind.as_str())
                    .bind(AT_ONCE)
                    .fetch_all(pool)
                    .await?
            });
            let Some(last) = rows.last() else { break };
            after = last.key;
            keys.extend(rows.iter().filter(|row| rule.matches(&row.facts())).map(|row| row.key));
        }
        let mut shown = Vec::new();
        for key in keys.iter().rev().take(examples) {
            let filter = DetectionFilter { key: Some(*key), ..DetectionFilter::default() };
            shown.extend(self.detections(&filter, 1).await?.into_iter().map(|(_, record)| record));
        }
        Ok((u64::try_from(keys.len()).unwrap_or(u64::MAX), shown))
    }

    /// Stores a rule, and suppresses what is there already; says how many that are.
    ///
    /// # Errors
    /// When the database can't be used; then nothing is changed.
    pub async fn insert_suppression(
        &self,
        new: &NewSuppression,
        audit: &NewAuditEntry,
    ) -> Result<u64, DatabaseError> {
        transaction!(self, |transaction| {
            lock_suppressions!(transaction);
            let rule = &new.rule;
            sqlx::query(
                "INSERT INTO suppressions (id, kind, scope, target, endpoint, process, reason, expires_ms, created_ms, created_by) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            )
            .bind(rule.id.as_str())
            .bind(rule.kind.as_str())
            .bind(rule.scope.as_ref().map(|scope| scope.scope().to_string()))
            .bind(rule.scope.as_ref().map(|scope| scope.target().to_owned()))
            .bind(rule.endpoint.as_deref())
            .bind(rule.process.as_deref())
            .bind(new.reason.as_str())
            .bind(new.expires_ms)
            .bind(new.now_ms)
            .bind(new.actor.as_str())
            .execute(&mut *transaction)
            .await?;
            let (mut after, mut count) = (0, 0_u64);
            loop {
                let rows: Vec<Looked> = sqlx::query_as(OPEN)
                    .bind(after)
                    .bind(rule.kind.as_str())
                    .bind(AT_ONCE)
                    .fetch_all(&mut *transaction)
                    .await?;
                let Some(last) = rows.last() else { break };
                after = last.key;
                for row in rows.iter().filter(|row| rule.matches(&row.facts())) {
                    sqlx::query("UPDATE detections SET suppressed_by = $2 WHERE key = $1")
                        .bind(row.key)
                        .bind(rule.id.as_str())
                        .execute(&mut *transaction)
                        .await?;
                    count += 1;
                }
            }
            write_audit!(transaction, [audit]);
            Ok(count)
        })
    }

    /// Removes a rule. What it suppressed is new again, unless another rule that is in force suppresses it, too. Says how
    /// many are new again; `None` when there is no such rule.
    ///
    /// # Errors
    /// When the database can't be used; then nothing is changed.
    pub async fn delete_suppression(
        &self,
        id: &str,
        now_ms: i64,
        audit: &NewAuditEntry,
    ) -> Result<Option<u64>, DatabaseError> {
        transaction!(self, |transaction| {
            lock_suppressions!(transaction);
            let removed = sqlx::query("DELETE FROM suppressions WHERE id = $1")
                .bind(id)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            if removed == 0 {
                return Ok(None);
            }
            let rows: Vec<RuleRow> =
                sqlx::query_as(RULES).bind(now_ms).fetch_all(&mut *transaction).await?;
            let rules = rows.into_iter().map(rule).collect::<Result<Vec<_>, _>>()?;
            let (mut after, mut count) = (0, 0_u64);
            loop {
                let rows: Vec<Looked> = sqlx::query_as(SUPPRESSED)
                    .bind(after)
                    .bind(id)
                    .bind(AT_ONCE)
                    .fetch_all(&mut *transaction)
                    .await?;
                let Some(last) = rows.last() else { break };
                after = last.key;
                for row in &rows {
                    let other = rules.iter().find(|rule| rule.matches(&row.facts()));
                    sqlx::query("UPDATE detections SET suppressed_by = $2 WHERE key = $1")
                        .bind(row.key)
                        .bind(other.map(|rule| rule.id.as_str()))
                        .execute(&mut *transaction)
                        .await?;
                    count += u64::from(other.is_none());
                }
            }
            write_audit!(transaction, [audit]);
            Ok(Some(count))
        })
    }
}
