//! Integrations and the outbox of what they are told.

use super::audit::{optional_time_of, time_of, write_audit};
use super::{Database, DatabaseError, NewAuditEntry, read, signed, transaction, unsigned};
use portcullis_common::store_api::{Delivery, DeliveryState};
use sqlx::QueryBuilder;
use std::collections::HashMap;

/// An integration as it is stored: JSON in each of its three parts.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct IntegrationRow {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Where it tells.
    pub settings: String,
    /// What of that is secret.
    pub secrets: String,
    /// What it is told.
    pub selection: String,
    /// Whether it is told anything now.
    pub enabled: bool,
    /// When it was made.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it was changed last.
    pub updated_ms: i64,
}

/// What became of writing an integration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IntegrationWrite {
    /// It is written.
    Written,
    /// Another one has this name.
    NameTaken,
    /// There are as many as there may be.
    TooMany,
}

/// A delivery that this server holds.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct ClaimedDelivery {
    /// Its key.
    pub key: i64,
    /// Its id.
    pub id: String,
    /// What it tells, JSON.
    pub payload: String,
    /// Attempts, this one included.
    pub attempts: i64,
}

/// What became of an attempt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settled {
    /// What became of the delivery.
    pub state: DeliveryState,
    /// The next attempt, when it waits.
    pub due_ms: i64,
    /// Now.
    pub now_ms: i64,
    /// The status that was answered.
    pub status: Option<u16>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Which deliveries to read.
#[derive(Clone, Debug, Default)]
pub struct DeliveryFilter {
    /// Only older ones than this key.
    pub before: Option<i64>,
    /// Only of this integration.
    pub integration: Option<String>,
    /// Only in this state.
    pub state: Option<DeliveryState>,
}

#[derive(sqlx::FromRow)]
struct DeliveryRow {
    key: i64,
    id: String,
    integration: String,
    kind: String,
    state: String,
    created_ms: i64,
    due_ms: i64,
    attempts: i64,
    last_ms: Option<i64>,
    last_status: Option<i64>,
    last_error: Option<String>,
}

const COLUMNS: &str = "SELECT id, name, settings, secrets, selection, enabled, created_ms, created_by, updated_ms FROM integrations";

/// The state as it is stored.
pub const fn state_name(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Pending => "pending",
        DeliveryState::Delivered => "delivered",
        DeliveryState::Dead => "dead",
    }
}

/// A statement with what an integration is: `$1` to `$6` are its id, name, settings, secrets, selection, and whether it is on.
macro_rules! with_columns {
    ($row:expr, $sql:literal) => {
        sqlx::query($sql)
            .bind($row.id.as_str())
            .bind($row.name.as_str())
            .bind($row.settings.as_str())
            .bind($row.secrets.as_str())
            .bind($row.selection.as_str())
            .bind($row.enabled)
    };
}

impl Database {
    /// All integrations, by name.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn integrations(&self) -> Result<Vec<IntegrationRow>, DatabaseError> {
        Ok(read!(self, |pool| {
            let mut query = QueryBuilder::new(COLUMNS);
            query.push(" ORDER BY name");
            query.build_query_as().fetch_all(pool).await?
        }))
    }

    /// An integration.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn integration(&self, id: &str) -> Result<Option<IntegrationRow>, DatabaseError> {
        Ok(read!(self, |pool| {
            let mut query = QueryBuilder::new(COLUMNS);
            query.push(" WHERE id = ").push_bind(id.to_owned());
            query.build_query_as().fetch_optional(pool).await?
        }))
    }

    /// Deliveries that wait and that were given up, by integration.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn delivery_counts(&self) -> Result<HashMap<String, (u64, u64)>, DatabaseError> {
        let rows: Vec<(String, i64, i64)> = read!(self, |pool| {
            sqlx::query_as(
                "SELECT integration, CAST(SUM(CASE WHEN state = 'pending' THEN 1 ELSE 0 END) AS BIGINT), \
                 CAST(SUM(CASE WHEN state = 'dead' THEN 1 ELSE 0 END) AS BIGINT) FROM deliveries \
                 WHERE state <> 'delivered' GROUP BY integration",
            )
            .fetch_all(pool)
            .await?
        });
        Ok(rows
            .into_iter()
            .map(|(id, pending, dead)| (id, (unsigned(pending), unsigned(dead))))
            .collect())
    }

    /// Stores a new integration, unless there are `max` already.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn insert_integration(
        &self,
        row: &IntegrationRow,
        max: i64,
        audit: &NewAuditEntry,
    ) -> Result<IntegrationWrite, DatabaseError> {
        transaction!(self, |transaction| {
            let (count,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM integrations")
                .fetch_one(&mut *transaction)
                .await?;
            if count >= max {
                return Ok(IntegrationWrite::TooMany);
            }
            let inserted = with_columns!(
                row,
                "INSERT INTO integrations (id, name, settings, secrets, selection, enabled, created_ms, created_by, updated_ms) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (name) DO NOTHING"
            )
            .bind(row.created_ms)
            .bind(row.created_by.as_str())
            .bind(row.updated_ms)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            if inserted == 0 {
                return Ok(IntegrationWrite::NameTaken);
            }
            write_audit!(transaction, [audit]);
            Ok(IntegrationWrite::Written)
        })
    }

    /// Changes an integration that was read when it was last changed at `read_ms`.
    ///
    /// # Errors
    /// When the database can't be used, or somebody else changed it meanwhile.
    pub async fn update_integration(
        &self,
        row: &IntegrationRow,
        read_ms: i64,
        audit: &NewAuditEntry,
    ) -> Result<IntegrationWrite, DatabaseError> {
        transaction!(self, |transaction| {
            let taken: Option<(i64,)> = sqlx::query_as(
                "SELECT CAST(1 AS BIGINT) FROM integrations WHERE name = $1 AND id <> $2",
            )
            .bind(row.name.as_str())
            .bind(row.id.as_str())
            .fetch_optional(&mut *transaction)
            .await?;
            if taken.is_some() {
                return Ok(IntegrationWrite::NameTaken);
            }
            // Secrets that are kept belong to what was read: nothing else may have come in between.
            let updated = with_columns!(
                row,
                "UPDATE integrations SET name = $2, settings = $3, secrets = $4, selection = $5, enabled = $6, updated_ms = $7 \
                 WHERE id = $1 AND updated_ms = $8"
            )
            .bind(row.updated_ms)
            .bind(read_ms)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            if updated == 0 {
                return Err(DatabaseError::Stale);
            }
            write_audit!(transaction, [audit]);
            Ok(IntegrationWrite::Written)
        })
    }

    /// Removes an integration with all its deliveries; says whether there was such a one.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn delete_integration(
        &self,
        id: &str,
        audit: &NewAuditEntry,
    ) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            let removed = sqlx::query("DELETE FROM integrations WHERE id = $1")
                .bind(id)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            if removed == 0 {
                return Ok(false);
            }
            sqlx::query("DELETE FROM deliveries WHERE integration = $1")
                .bind(id)
                .execute(&mut *transaction)
                .await?;
            write_audit!(transaction, [audit]);
            Ok(true)
        })
    }

    /// The integrations that something waits for and nobody holds.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn due_integrations(&self, now_ms: i64) -> Result<Vec<String>, DatabaseError> {
        let rows: Vec<(String,)> = read!(self, |pool| {
            sqlx::query_as(
                "SELECT i.id FROM integrations i WHERE i.enabled AND EXISTS (SELECT 1 FROM deliveries d \
                 WHERE d.integration = i.id AND d.state = 'pending' AND d.due_ms <= $1 AND d.lease_ms <= $1)",
            )
            .bind(now_ms)
            .fetch_all(pool)
            .await?
        });
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// Takes deliveries of an integration that are due, the oldest first, until `lease_ms`: no other server gets them before.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn claim_deliveries(
        &self,
        integration: &str,
        holder: &str,
        (now_ms, lease_ms): (i64, i64),
        limit: u32,
    ) -> Result<Vec<ClaimedDelivery>, DatabaseError> {
        let mut claimed: Vec<ClaimedDelivery> = transaction!(self, |transaction| {
            // Two servers that choose the same rows: the second waits for the first, and then finds them leased by the outer
            // condition, which PostgreSQL looks at again.
            sqlx::query_as(
                "UPDATE deliveries SET lease_ms = $3, holder = $4, attempts = attempts + 1, last_ms = $2 \
                 WHERE key IN (SELECT key FROM deliveries WHERE integration = $1 AND state = 'pending' AND due_ms <= $2 \
                 AND lease_ms <= $2 ORDER BY due_ms, key LIMIT $5) AND state = 'pending' AND due_ms <= $2 AND lease_ms <= $2 \
                 RETURNING key, id, payload, attempts",
            )
            .bind(integration)
            .bind(now_ms)
            .bind(lease_ms)
            .bind(holder)
            .bind(i64::from(limit))
            .fetch_all(&mut *transaction)
            .await?
        });
        claimed.sort_by_key(|delivery| delivery.key);
        Ok(claimed)
    }

    /// Says what became of a delivery that this server holds; says whether it still held it.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn settle_delivery(
        &self,
        key: i64,
        holder: &str,
        settled: &Settled,
    ) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            let done = sqlx::query(
                "UPDATE deliveries SET state = $3, due_ms = $4, lease_ms = 0, holder = NULL, last_ms = $5, last_status = $6, \
                 last_error = $7 WHERE key = $1 AND holder = $2",
            )
            .bind(key)
            .bind(holder)
            .bind(state_name(settled.state))
            .bind(settled.due_ms)
            .bind(settled.now_ms)
            .bind(settled.status.map(i64::from))
            .bind(settled.error.as_deref())
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            Ok(done > 0)
        })
    }

    /// Stores a delivery that was made already: somebody tried the integration.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn insert_tried_delivery(
        &self,
        integration: &str,
        id: &str,
        payload: &str,
        settled: &Settled,
        audit: &NewAuditEntry,
    ) -> Result<(), DatabaseError> {
        transaction!(self, |transaction| {
            sqlx::query(
                "INSERT INTO deliveries (id, integration, kind, payload, state, created_ms, due_ms, lease_ms, attempts, last_ms, \
                 last_status, last_error) VALUES ($1, $2, 'test', $3, $4, $5, $5, 0, 1, $5, $6, $7)",
            )
            .bind(id)
            .bind(integration)
            .bind(payload)
            .bind(state_name(settled.state))
            .bind(settled.now_ms)
            .bind(settled.status.map(i64::from))
            .bind(settled.error.as_deref())
            .execute(&mut *transaction)
            .await?;
            write_audit!(transaction, [audit]);
        });
        Ok(())
    }

    /// Deliveries, the newest first, each with its key.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn deliveries(
        &self,
        filter: &DeliveryFilter,
        limit: u32,
    ) -> Result<Vec<(i64, Delivery)>, DatabaseError> {
        let rows: Vec<DeliveryRow> = read!(self, |pool| {
            let mut query = QueryBuilder::new(
                "SELECT key, id, integration, kind, state, created_ms, due_ms, attempts, last_ms, last_status, last_error \
                 FROM deliveries WHERE key < ",
            );
            query.push_bind(filter.before.unwrap_or(i64::MAX));
            if let Some(integration) = &filter.integration {
                query.push(" AND integration = ").push_bind(integration.clone());
            }
            if let Some(state) = filter.state {
                query.push(" AND state = ").push_bind(state_name(state));
            }
            query.push(" ORDER BY key DESC LIMIT ").push_bind(i64::from(limit));
            query.build_query_as().fetch_all(pool).await?
        });
        rows.into_iter().map(|row| Ok((row.key, shown(row)?))).collect()
    }

    /// Tries a delivery that was given up again, as if it were new; says whether there is such a one.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn retry_delivery(
        &self,
        id: &str,
        now_ms: i64,
        audit: &NewAuditEntry,
    ) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            let done = sqlx::query(
                "UPDATE deliveries SET state = 'pending', due_ms = $2, lease_ms = 0, attempts = 0 WHERE id = $1 AND state = 'dead'",
            )
            .bind(id)
            .bind(now_ms)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            if done == 0 {
                return Ok(false);
            }
            write_audit!(transaction, [audit]);
            Ok(true)
        })
    }

    /// The texts of a job's events in a range of numbers, and the numbers.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn event_lines(
        &self,
        job_id: &str,
        (first, last): (u64, u64),
    ) -> Result<Vec<String>, DatabaseError> {
        let rows: Vec<(String,)> = read!(self, |pool| {
            sqlx::query_as(
                "SELECT e.body FROM events e JOIN jobs j ON j.key = e.job WHERE j.id = $1 AND e.seq BETWEEN $2 AND $3 ORDER BY e.seq",
            )
            .bind(job_id)
            .bind(signed(first))
            .bind(signed(last))
            .fetch_all(pool)
            .await?
        });
        Ok(rows.into_iter().map(|(body,)| body).collect())
    }
}

fn shown(row: DeliveryRow) -> Result<Delivery, DatabaseError> {
    let state = [DeliveryState::Pending, DeliveryState::Delivered, DeliveryState::Dead]
        .into_iter()
        .find(|state| state_name(*state) == row.state)
        .ok_or_else(|| DatabaseError::Corrupt(format!("delivery {}: its state", row.id)))?;
    Ok(Delivery {
        next_attempt_at: (state == DeliveryState::Pending)
            .then(|| time_of(row.due_ms))
            .transpose()?,
        id: row.id,
        integration: row.integration,
        kind: row.kind,
        state,
        created_at: time_of(row.created_ms)?,
        attempts: u32::try_from(row.attempts).unwrap_or(u32::MAX),
        last_attempt_at: optional_time_of(row.last_ms)?,
        last_status: row.last_status.and_then(|status| u16::try_from(status).ok()),
        last_error: row.last_error,
    })
}
