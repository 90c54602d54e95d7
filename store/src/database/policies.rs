//! Policies, their versions and attachments.
//!
//! What is valid is decided elsewhere, on a snapshot in memory; here a set of changes is written if the snapshot is still
//! what the database holds, and not at all otherwise.

use super::audit::write_audit;
use super::{Database, DatabaseError, NewAuditEntry, read, signed, transaction, unsigned};

/// Counters that tell whether something changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Generations {
    /// Of policies and attachments.
    pub policies: i64,
    /// Of tokens, hosts and their credentials.
    pub identities: i64,
}

/// A policy without its document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyRow {
    /// Its id, which survives renaming.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its newest version.
    pub version: u64,
    /// When it was made.
    pub created_ms: i64,
    /// When its newest version was written.
    pub updated_ms: i64,
    /// By whom.
    pub updated_by: String,
}

/// The text of one version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredDocument {
    /// The policy's id.
    pub policy_id: String,
    /// The version.
    pub version: u64,
    /// The document, YAML.
    pub yaml: String,
}

/// One version of a policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VersionRow {
    /// The policy's name at that time.
    pub name: String,
    /// The version.
    pub version: u64,
    /// Who wrote it.
    pub author: String,
    /// Why.
    pub comment: Option<String>,
    /// When.
    pub created_ms: i64,
    /// The document, YAML.
    pub yaml: String,
}

/// One change of the policies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// A new version, of a policy that may be new itself or have a new name.
    Write {
        /// The policy's id.
        policy_id: String,
        /// Its name from now on.
        name: String,
        /// The version, the next one of this policy.
        version: u64,
        /// Whether the policy itself is new.
        is_new: bool,
        /// The document, YAML.
        yaml: String,
        /// Why.
        comment: Option<String>,
    },
    /// The policy is gone; its versions stay.
    Delete {
        /// The policy's id.
        policy_id: String,
    },
    /// The policy applies to a target that had none.
    Attach {
        /// The policy's id.
        policy_id: String,
        /// The kind of target.
        scope: &'static str,
        /// The target, normalised.
        target: String,
    },
    /// The target has no policy any more.
    Detach {
        /// The kind of target.
        scope: &'static str,
        /// The target, normalised.
        target: String,
    },
}

impl Database {
    /// All policies.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn policy_rows(&self) -> Result<Vec<PolicyRow>, DatabaseError> {
        const SQL: &str =
            "SELECT id, name, version, created_ms, updated_ms, updated_by FROM policies";
        let rows: Vec<(String, String, i64, i64, i64, String)> =
            read!(self, |pool| sqlx::query_as(SQL).fetch_all(pool).await?);
        Ok(rows
            .into_iter()
            .map(|(id, name, version, created_ms, updated_ms, updated_by)| PolicyRow {
                id,
                name,
                version: unsigned(version),
                created_ms,
                updated_ms,
                updated_by,
            })
            .collect())
    }

    /// All attachments: policy, kind of target, target.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn attachment_rows(&self) -> Result<Vec<(String, String, String)>, DatabaseError> {
        const SQL: &str = "SELECT policy_id, scope, target FROM attachments ORDER BY scope, target";
        Ok(read!(self, |pool| sqlx::query_as(SQL).fetch_all(pool).await?))
    }

    /// The newest documents of all policies.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn newest_documents(&self) -> Result<Vec<StoredDocument>, DatabaseError> {
        const SQL: &str = "SELECT v.policy_id, v.version, v.document FROM policy_versions v \
            JOIN policies p ON p.id = v.policy_id AND p.version = v.version";
        let rows: Vec<(String, i64, String)> =
            read!(self, |pool| sqlx::query_as(SQL).fetch_all(pool).await?);
        Ok(rows
            .into_iter()
            .map(|(policy_id, version, yaml)| StoredDocument {
                policy_id,
                version: unsigned(version),
                yaml,
            })
            .collect())
    }

    /// The newest document of one policy.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn newest_document(
        &self,
        policy_id: &str,
    ) -> Result<Option<StoredDocument>, DatabaseError> {
        const SQL: &str = "SELECT version, document FROM policy_versions WHERE policy_id = $1 \
            ORDER BY version DESC LIMIT 1";
        let row: Option<(i64, String)> =
            read!(self, |pool| sqlx::query_as(SQL).bind(policy_id).fetch_optional(pool).await?);
        Ok(row.map(|(version, yaml)| StoredDocument {
            policy_id: policy_id.to_owned(),
            version: unsigned(version),
            yaml,
        }))
    }

    /// Versions of a policy, the newest first, those before `before` only.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn versions(
        &self,
        policy_id: &str,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<VersionRow>, DatabaseError> {
        const SQL: &str = "SELECT name, version, author, comment, created_ms, document FROM policy_versions \
            WHERE policy_id = $1 AND version < $2 ORDER BY version DESC LIMIT $3";
        let rows: Vec<(String, i64, String, Option<String>, i64, String)> = read!(self, |pool| {
            sqlx::query_as(SQL)
                .bind(policy_id)
                .bind(before.map_or(i64::MAX, signed))
                .bind(i64::from(limit))
                .fetch_all(pool)
                .await?
        });
        Ok(rows
            .into_iter()
            .map(|(name, version, author, comment, created_ms, yaml)| VersionRow {
                name,
                version: unsigned(version),
                author,
                comment,
                created_ms,
                yaml,
            })
            .collect())
    }

    /// The version after the last that a policy of this name ever had, so that name and version never mean two things.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn next_version_of_name(&self, name: &str) -> Result<u64, DatabaseError> {
        let (last,): (i64,) = read!(self, |pool| {
            sqlx::query_as("SELECT COALESCE(MAX(version), 0) FROM policy_versions WHERE name = $1")
                .bind(name)
                .fetch_one(pool)
                .await?
        });
        Ok(unsigned(last) + 1)
    }

    /// Writes changes that were decided on the state of `generation`, all or none, and returns the new generation.
    ///
    /// # Errors
    /// [`DatabaseError::Stale`] when the policies have changed since; then nothing is written.
    pub async fn change_policies(
        &self,
        generation: i64,
        changes: &[Change],
        author: &str,
        now_ms: i64,
        audit: &[NewAuditEntry],
    ) -> Result<i64, DatabaseError> {
        transaction!(self, |transaction| {
            // First, so that PostgreSQL lets one writer in at a time.
            let next: Option<(i64,)> = sqlx::query_as(
                "UPDATE store_state SET policies = policies + 1 WHERE id = 1 AND policies = $1 RETURNING policies",
            )
            .bind(generation)
            .fetch_optional(&mut *transaction)
            .await?;
            let Some((next,)) = next else { return Err(DatabaseError::Stale) };
            for change in changes {
                match change {
                    Change::Write { policy_id, name, version, is_new, yaml, comment } => {
                        if *is_new {
                            sqlx::query(
                                "INSERT INTO policies (id, name, version, created_ms, updated_ms, updated_by) \
                                 VALUES ($1, $2, $3, $4, $4, $5)",
                            )
                            .bind(policy_id.as_str())
                            .bind(name.as_str())
                            .bind(signed(*version))
                            .bind(now_ms)
                            .bind(author)
                            .execute(&mut *transaction)
                            .await?;
                        } else {
                            sqlx::query(
                                "UPDATE policies SET name = $2, version = $3, updated_ms = $4, updated_by = $5 WHERE id = $1",
                            )
                            .bind(policy_id.as_str())
                            .bind(name.as_str())
                            .bind(signed(*version))
                            .bind(now_ms)
                            .bind(author)
                            .execute(&mut *transaction)
                            .await?;
                        }
                        sqlx::query(
                            "INSERT INTO policy_versions (policy_id, version, name, document, author, comment, created_ms) \
                             VALUES ($1, $2, $3, $4, $5, $6, $7)",
                        )
                        .bind(policy_id.as_str())
                        .bind(signed(*version))
                        .bind(name.as_str())
                        .bind(yaml.as_str())
                        .bind(author)
                        .bind(comment.as_deref())
                        .bind(now_ms)
                        .execute(&mut *transaction)
                        .await?;
                    }
                    Change::Delete { policy_id } => {
                        sqlx::query("DELETE FROM policies WHERE id = $1")
                            .bind(policy_id.as_str())
                            .execute(&mut *transaction)
                            .await?;
                    }
                    Change::Attach { policy_id, scope, target } => {
                        sqlx::query(
                            "INSERT INTO attachments (scope, target, policy_id, author, created_ms) VALUES ($1, $2, $3, $4, $5)",
                        )
                        .bind(*scope)
                        .bind(target.as_str())
                        .bind(policy_id.as_str())
                        .bind(author)
                        .bind(now_ms)
                        .execute(&mut *transaction)
                        .await?;
                    }
                    Change::Detach { scope, target } => {
                        sqlx::query("DELETE FROM attachments WHERE scope = $1 AND target = $2")
                            .bind(*scope)
                            .bind(target.as_str())
                            .execute(&mut *transaction)
                            .await?;
                    }
                }
            }
            write_audit!(transaction, audit);
            Ok(next)
        })
    }
}
