//! Runner hosts: how they enrol, and their credentials. Only hashes of secrets come here.

use super::audit::{optional_time_of, time_of, write_audit};
use super::identity::count_identities;
use super::{Database, DatabaseError, NewAuditEntry, read, transaction};
use portcullis_common::store_api::{Enrolment, Heartbeat, Host};

/// Credentials of a host at most that it was given and has never used: answers that were lost.
const MAX_UNUSED: i64 = 8;

/// A credential of a host that is to be stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewCredential {
    /// Its id.
    pub id: String,
    /// The hash of its secret.
    pub hash: String,
    /// When it ends, in milliseconds since 1970.
    pub expires_ms: i64,
}

/// A host that enrols.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EnrolmentUse {
    /// The hash of the enrolment token.
    pub enrolment_hash: String,
    /// The host's id.
    pub host_id: String,
    /// What it calls itself.
    pub host_name: String,
    /// Its credential.
    pub credential: NewCredential,
    /// Now.
    pub now_ms: i64,
}

type HostRow =
    (String, String, String, i64, Option<i64>, Option<i64>, Option<String>, Option<String>);

impl Database {
    /// Stores an enrolment token.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn insert_enrolment(
        &self,
        enrolment: &Enrolment,
        hash: &str,
        audit: &NewAuditEntry,
    ) -> Result<(), DatabaseError> {
        transaction!(self, |transaction| {
            sqlx::query(
                "INSERT INTO enrolments (id, cluster, hash, hosts_left, created_by, created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(enrolment.id.as_str())
            .bind(enrolment.cluster.as_str())
            .bind(hash)
            .bind(i64::from(enrolment.hosts_left))
            .bind(enrolment.created_by.as_str())
            .bind(enrolment.created_at.as_millisecond())
            .bind(enrolment.expires_at.as_millisecond())
            .execute(&mut *transaction)
            .await?;
            write_audit!(transaction, [audit]);
        });
        Ok(())
    }

    /// Enrolment tokens that can still be used.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn enrolments(&self, now_ms: i64) -> Result<Vec<Enrolment>, DatabaseError> {
        const SQL: &str = "SELECT id, cluster, hosts_left, created_by, created_ms, expires_ms FROM enrolments \
            WHERE hosts_left > 0 AND expires_ms > $1 ORDER BY created_ms, id";
        let rows: Vec<(String, String, i64, String, i64, i64)> =
            read!(self, |pool| sqlx::query_as(SQL).bind(now_ms).fetch_all(pool).await?);
        rows.into_iter()
            .map(|(id, cluster, left, created_by, created, expires)| {
                Ok(Enrolment {
                    id,
                    cluster,
                    hosts_left: u32::try_from(left).unwrap_or_default(),
                    created_by,
                    created_at: time_of(created)?,
                    expires_at: time_of(expires)?,
                })
            })
            .collect()
    }

    /// Removes an enrolment token; says whether there was one.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn delete_enrolment(
        &self,
        id: &str,
        audit: &NewAuditEntry,
    ) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            let deleted = sqlx::query("DELETE FROM enrolments WHERE id = $1")
                .bind(id)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            if deleted > 0 {
                write_audit!(transaction, [audit]);
            }
            Ok(deleted > 0)
        })
    }

    /// Enrols a host and returns its cluster; `None` when the enrolment token is none, used up or over.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn enrol(
        &self,
        host: &EnrolmentUse,
        audit: &NewAuditEntry,
    ) -> Result<Option<String>, DatabaseError> {
        transaction!(self, |transaction| {
            let cluster: Option<(String,)> = sqlx::query_as(
                "UPDATE enrolments SET hosts_left = hosts_left - 1 \
                 WHERE hash = $1 AND hosts_left > 0 AND expires_ms > $2 RETURNING cluster",
            )
            .bind(host.enrolment_hash.as_str())
            .bind(host.now_ms)
            .fetch_optional(&mut *transaction)
            .await?;
            let Some((cluster,)) = cluster else { return Ok(None) };
            sqlx::query(
                "INSERT INTO hosts (id, name, cluster, enrolled_ms) VALUES ($1, $2, $3, $4)",
            )
            .bind(host.host_id.as_str())
            .bind(host.host_name.as_str())
            .bind(cluster.as_str())
            .bind(host.now_ms)
            .execute(&mut *transaction)
            .await?;
            sqlx::query(
                "INSERT INTO host_credentials (id, host_id, hash, created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(host.credential.id.as_str())
            .bind(host.host_id.as_str())
            .bind(host.credential.hash.as_str())
            .bind(host.now_ms)
            .bind(host.credential.expires_ms)
            .execute(&mut *transaction)
            .await?;
            count_identities!(transaction);
            write_audit!(transaction, [audit]);
            Ok(Some(cluster))
        })
    }

    /// Gives a host a new credential. Its others go on until the new one is used: the host may never have got the answer.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn rotate_credential(
        &self,
        host_id: &str,
        new: &NewCredential,
        now_ms: i64,
        audit: &NewAuditEntry,
    ) -> Result<(), DatabaseError> {
        transaction!(self, |transaction| {
            sqlx::query("DELETE FROM host_credentials WHERE host_id = $1 AND expires_ms <= $2")
                .bind(host_id)
                .bind(now_ms)
                .execute(&mut *transaction)
                .await?;
            sqlx::query(
                "DELETE FROM host_credentials WHERE host_id = $1 AND used_ms IS NULL AND id NOT IN \
                 (SELECT id FROM host_credentials WHERE host_id = $1 AND used_ms IS NULL ORDER BY created_ms DESC, id DESC LIMIT $2)",
            )
            .bind(host_id)
            .bind(MAX_UNUSED - 1)
            .execute(&mut *transaction)
            .await?;
            sqlx::query(
                "INSERT INTO host_credentials (id, host_id, hash, created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(new.id.as_str())
            .bind(host_id)
            .bind(new.hash.as_str())
            .bind(now_ms)
            .bind(new.expires_ms)
            .execute(&mut *transaction)
            .await?;
            count_identities!(transaction);
            write_audit!(transaction, [audit]);
        });
        Ok(())
    }

    /// Notes that a credential has arrived, because it was used. The host's others end at `old_expire_ms`, and those that
    /// never arrived at once.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn confirm_credential(
        &self,
        host_id: &str,
        credential_id: &str,
        now_ms: i64,
        old_expire_ms: i64,
    ) -> Result<(), DatabaseError> {
        transaction!(self, |transaction| {
            let confirmed = sqlx::query(
                "UPDATE host_credentials SET used_ms = $2 WHERE id = $1 AND used_ms IS NULL",
            )
            .bind(credential_id)
            .bind(now_ms)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            if confirmed > 0 {
                sqlx::query("DELETE FROM host_credentials WHERE host_id = $1 AND used_ms IS NULL")
                    .bind(host_id)
                    .execute(&mut *transaction)
                    .await?;
                sqlx::query(
                    "UPDATE host_credentials SET expires_ms = $3 WHERE host_id = $1 AND id <> $2 \
                     AND (expires_ms IS NULL OR expires_ms > $3)",
                )
                .bind(host_id)
                .bind(credential_id)
                .bind(old_expire_ms)
                .execute(&mut *transaction)
                .await?;
                count_identities!(transaction);
            }
        });
        Ok(())
    }

    /// All hosts, those that were revoked too, the oldest first.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn hosts(&self) -> Result<Vec<Host>, DatabaseError> {
        const SQL: &str = "SELECT id, name, cluster, enrolled_ms, last_seen_ms, revoked_ms, version, kernel \
            FROM hosts ORDER BY enrolled_ms, id";
        let rows: Vec<HostRow> = read!(self, |pool| sqlx::query_as(SQL).fetch_all(pool).await?);
        rows.into_iter()
            .map(|(id, name, cluster, enrolled, seen, revoked, version, kernel)| {
                Ok(Host {
                    id,
                    name,
                    cluster,
                    enrolled_at: time_of(enrolled)?,
                    last_seen_at: optional_time_of(seen)?,
                    revoked_at: optional_time_of(revoked)?,
                    version,
                    kernel,
                })
            })
            .collect()
    }

    /// Notes what a host's monitor says of itself. Hosts say the same again and again, so it is looked at first: nothing is
    /// written then.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn note_heartbeat(
        &self,
        id: &str,
        said: &Heartbeat,
        now_ms: i64,
    ) -> Result<(), DatabaseError> {
        const SQL: &str = "SELECT version, kernel FROM hosts WHERE id = $1";
        let known: Option<(Option<String>, Option<String>)> =
            read!(self, |pool| sqlx::query_as(SQL).bind(id).fetch_optional(pool).await?);
        if known.is_some_and(|(version, kernel)| {
            version.as_ref() == Some(&said.version) && kernel == said.kernel
        }) {
            return Ok(());
        }
        transaction!(self, |transaction| {
            sqlx::query(
                "UPDATE hosts SET version = $2, kernel = $3, last_seen_ms = $4 WHERE id = $1",
            )
            .bind(id)
            .bind(said.version.as_str())
            .bind(said.kernel.as_deref())
            .bind(now_ms)
            .execute(&mut *transaction)
            .await?;
        });
        Ok(())
    }

    /// Ends all credentials of a host; says whether it had any.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn revoke_host(
        &self,
        id: &str,
        now_ms: i64,
        audit: &NewAuditEntry,
    ) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            let revoked = sqlx::query(
                "UPDATE hosts SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL",
            )
            .bind(id)
            .bind(now_ms)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            if revoked > 0 {
                sqlx::query("DELETE FROM host_credentials WHERE host_id = $1")
                    .bind(id)
                    .execute(&mut *transaction)
                    .await?;
                count_identities!(transaction);
                write_audit!(transaction, [audit]);
            }
            Ok(revoked > 0)
        })
    }
}
