//! The audit log: who changed what. Entries are written in the transaction of the change itself.

use super::{Database, DatabaseError, read, transaction};
use jiff::Timestamp;
use portcullis_common::store_api::AuditEntry;

/// An entry that is to be written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewAuditEntry {
    /// When, in milliseconds since 1970.
    pub time_ms: i64,
    /// Who: `token:ci`, `host:…`, `system`.
    pub actor: String,
    /// What: `policy.write`.
    pub action: &'static str,
    /// To what: `policy:node-build`.
    pub subject: String,
    /// More about it, in words.
    pub detail: Option<String>,
    /// Where the request came from.
    pub address: Option<String>,
}

/// Writes entries within the transaction of what they tell of.
macro_rules! write_audit {
    ($transaction:expr, $entries:expr) => {
        for entry in $entries {
            sqlx::query(
                "INSERT INTO audit_log (time_ms, actor, action, subject, detail, address) VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(entry.time_ms)
            .bind(entry.actor.as_str())
            .bind(entry.action)
            .bind(entry.subject.as_str())
            .bind(entry.detail.as_deref())
            .bind(entry.address.as_deref())
            .execute(&mut *$transaction)
            .await?;
        }
    };
}

pub(super) use write_audit;

/// What to read of the audit log.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Only entries older than this one.
    pub before: Option<i64>,
    /// Only what this actor did.
    pub actor: Option<String>,
    /// Only this action, or those that begin with it and a dot.
    pub action: Option<String>,
    /// Only what concerns this subject.
    pub subject: Option<String>,
}

type AuditRow = (i64, i64, String, String, String, Option<String>, Option<String>);

impl Database {
    /// Entries, the newest first.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn audit_log(
        &self,
        filter: &AuditFilter,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, DatabaseError> {
        const SQL: &str = "SELECT id, time_ms, actor, action, subject, detail, address FROM audit_log \
            WHERE id < $1 AND (CAST($2 AS TEXT) IS NULL OR actor = $2) \
            AND (CAST($3 AS TEXT) IS NULL OR action = $3 OR substr(action, 1, length($3) + 1) = $3 || '.') \
            AND (CAST($4 AS TEXT) IS NULL OR subject = $4) ORDER BY id DESC LIMIT $5";
        let rows: Vec<AuditRow> = read!(self, |pool| {
            sqlx::query_as(SQL)
                .bind(filter.before.unwrap_or(i64::MAX))
                .bind(filter.actor.as_deref())
                .bind(filter.action.as_deref())
                .bind(filter.subject.as_deref())
                .bind(i64::from(limit))
                .fetch_all(pool)
                .await?
        });
        rows.into_iter()
            .map(|(id, time, actor, action, subject, detail, address)| {
                Ok(AuditEntry { id, time: time_of(time)?, actor, action, subject, detail, address })
            })
            .collect()
    }

    /// Writes an entry that belongs to no other change, such as a failed sign-in.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn audit(&self, entry: &NewAuditEntry) -> Result<(), DatabaseError> {
        transaction!(self, |transaction| write_audit!(transaction, [entry]));
        Ok(())
    }
}

/// A time from the database.
pub(super) fn time_of(milliseconds: i64) -> Result<Timestamp, DatabaseError> {
    Timestamp::from_millisecond(milliseconds)
        .map_err(|error| DatabaseError::Corrupt(format!("the time {milliseconds}: {error}")))
}

/// A time from the database that may be absent.
pub(super) fn optional_time_of(
    milliseconds: Option<i64>,
) -> Result<Option<Timestamp>, DatabaseError> {
    milliseconds.map(time_of).transpose()
}
