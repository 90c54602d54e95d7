//! Tokens of people, and whom a secret belongs to. Only hashes of secrets come here.

use super::audit::{optional_time_of, time_of, write_audit};
use super::{Database, DatabaseError, NewAuditEntry, read, transaction, unsigned};
use portcullis_common::job_context::JobContext;
use portcullis_common::store_api::{Role, Token};
use std::sync::Arc;

/// A token that is to be stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredToken {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// The hash of its secret.
    pub hash: String,
    /// Who makes it.
    pub created_by: String,
    /// Now.
    pub created_ms: i64,
    /// When it ends.
    pub expires_ms: Option<i64>,
}

/// Whom a secret belongs to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Caller {
    /// A token.
    Token {
        /// Its id.
        id: String,
        /// Whose it is.
        name: String,
        /// What it allows.
        role: Role,
    },
    /// A runner host.
    Host {
        /// Its id.
        id: String,
        /// What it calls itself.
        name: String,
        /// The cluster it belongs to.
        cluster: String,
    },
    /// A person whom an identity provider vouches for; only by a session, never by a secret of the API.
    Person {
        /// Who it is for good: the provider's issuer and subject.
        subject: String,
        /// What people call the person: an e-mail address, a name.
        name: String,
        /// What the person may do.
        role: Role,
    },
}

impl Caller {
    /// What the caller may do.
    pub const fn role(&self) -> Role {
        match self {
            Self::Token { role, .. } | Self::Person { role, .. } => *role,
            Self::Host { .. } => Role::Runner,
        }
    }

    /// Who it is, for the record: `token:ci`, `host:01a2…`, `person:ann@example.com`.
    pub fn actor(&self) -> String {
        match self {
            Self::Token { name, .. } => format!("token:{name}"),
            Self::Host { id, .. } => format!("host:{id}"),
            Self::Person { name, .. } => format!("person:{name}"),
        }
    }
}

/// What is known of a secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CredentialRow {
    /// Whose it is.
    pub caller: Arc<Caller>,
    /// When it ends.
    pub expires_ms: Option<i64>,
    /// The id of a host's credential that was never used before: its first use ends those that it replaces.
    pub unused: Option<String>,
}

impl CredentialRow {
    /// Whether it has ended.
    pub fn is_over(&self, now_ms: i64) -> bool {
        self.expires_ms.is_some_and(|end| end <= now_ms)
    }
}

/// Says that who may do what has changed.
macro_rules! count_identities {
    ($transaction:expr) => {
        sqlx::query("UPDATE store_state SET identities = identities + 1 WHERE id = 1")
            .execute(&mut *$transaction)
            .await?
    };
}

pub(super) use count_identities;

type TokenRow = (String, String, String, i64, String, Option<i64>, Option<i64>);
type HostCredentialRow = (String, String, String, Option<i64>, String, Option<i64>);

/// What tells the jobs of an attempt apart: legs of a matrix share run and key, and differ by their runner.
pub fn job_of_token(context: &JobContext) -> String {
    format!(
        "{}/{}/{}/{}/{}",
        context.repository.to_ascii_lowercase(),
        context.run_id,
        context.run_attempt,
        context.job,
        context.runner_name
    )
}

impl Database {
    /// Stores a token.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn insert_token(
        &self,
        token: &StoredToken,
        audit: &NewAuditEntry,
    ) -> Result<(), DatabaseError> {
        transaction!(self, |transaction| {
            sqlx::query(
                "INSERT INTO tokens (id, name, role, hash, created_ms, created_by, expires_ms) VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(token.id.as_str())
            .bind(token.name.as_str())
            .bind(token.role.name())
            .bind(token.hash.as_str())
            .bind(token.created_ms)
            .bind(token.created_by.as_str())
            .bind(token.expires_ms)
            .execute(&mut *transaction)
            .await?;
            count_identities!(transaction);
            write_audit!(transaction, [audit]);
        });
        Ok(())
    }

    /// Stores the first admin's token, unless there is a token already; says whether it did.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn insert_first_token(
        &self,
        token: &StoredToken,
        audit: &NewAuditEntry,
    ) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            // Also the lock that keeps a second replica from doing the same.
            count_identities!(transaction);
            let inserted = sqlx::query(
                "INSERT INTO tokens (id, name, role, hash, created_ms, created_by, expires_ms) \
                 SELECT CAST($1 AS TEXT), CAST($2 AS TEXT), CAST($3 AS TEXT), CAST($4 AS TEXT), CAST($5 AS BIGINT), CAST($6 AS TEXT), CAST($7 AS BIGINT) \
                 WHERE NOT EXISTS (SELECT 1 FROM tokens)",
            )
            .bind(token.id.as_str())
            .bind(token.name.as_str())
            .bind(token.role.name())
            .bind(token.hash.as_str())
            .bind(token.created_ms)
            .bind(token.created_by.as_str())
            .bind(token.expires_ms)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
            if inserted > 0 {
                write_audit!(transaction, [audit]);
            }
            Ok(inserted > 0)
        })
    }

    /// All tokens, the oldest first.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn tokens(&self) -> Result<Vec<Token>, DatabaseError> {
        const SQL: &str = "SELECT id, name, role, created_ms, created_by, expires_ms, last_used_ms \
            FROM tokens ORDER BY created_ms, id";
        let rows: Vec<TokenRow> = read!(self, |pool| sqlx::query_as(SQL).fetch_all(pool).await?);
        rows.into_iter()
            .map(|(id, name, role, created, created_by, expires, used)| {
                Ok(Token {
                    id,
                    name,
                    role: role_of(&role)?,
                    created_at: time_of(created)?,
                    created_by,
                    expires_at: optional_time_of(expires)?,
                    last_used_at: optional_time_of(used)?,
                })
            })
            .collect()
    }

    /// Removes a token; says whether there was one.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn delete_token(
        &self,
        id: &str,
        audit: &NewAuditEntry,
    ) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            let deleted = sqlx::query("DELETE FROM tokens WHERE id = $1")
                .bind(id)
                .execute(&mut *transaction)
                .await?
                .rows_affected();
            if deleted > 0 {
                count_identities!(transaction);
                write_audit!(transaction, [audit]);
            }
            Ok(deleted > 0)
        })
    }

    /// Whom the secret with this hash belongs to.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn credential(&self, hash: &str) -> Result<Option<CredentialRow>, DatabaseError> {
        const SQL: &str = "SELECT h.id, h.name, h.cluster, c.expires_ms, c.id, c.used_ms FROM host_credentials c \
            JOIN hosts h ON h.id = c.host_id WHERE c.hash = $1 AND h.revoked_ms IS NULL";
        let token: Option<(String, String, String, Option<i64>)> = read!(self, |pool| {
            sqlx::query_as("SELECT id, name, role, expires_ms FROM tokens WHERE hash = $1")
                .bind(hash)
                .fetch_optional(pool)
                .await?
        });
        if let Some((id, name, role, expires_ms)) = token {
            let caller = Caller::Token { id, name, role: role_of(&role)? };
            return Ok(Some(CredentialRow { caller: caller.into(), expires_ms, unused: None }));
        }
        let host: Option<HostCredentialRow> =
            read!(self, |pool| sqlx::query_as(SQL).bind(hash).fetch_optional(pool).await?);
        Ok(host.map(|(id, name, cluster, expires_ms, credential, used_ms)| CredentialRow {
            caller: Caller::Host { id, name, cluster }.into(),
            expires_ms,
            unused: used_ms.is_none().then_some(credential),
        }))
    }

    /// Notes when callers were last heard of.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn note_use(&self, uses: &[(Arc<Caller>, i64)]) -> Result<(), DatabaseError> {
        transaction!(self, |transaction| {
            for (caller, time) in uses {
                let (sql, id) = match &**caller {
                    Caller::Token { id, .. } => {
                        ("UPDATE tokens SET last_used_ms = $2 WHERE id = $1", id)
                    }
                    Caller::Host { id, .. } => {
                        ("UPDATE hosts SET last_seen_ms = $2 WHERE id = $1", id)
                    }
                    // A person has no row of its own: the session and the audit log say when.
                    Caller::Person { .. } => continue,
                };
                sqlx::query(sql).bind(id.as_str()).bind(*time).execute(&mut *transaction).await?;
            }
        });
        Ok(())
    }

    /// Notes that an OIDC token was presented for a job, and which workflow it says the job is of. `false` when it was
    /// presented for another job before.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn claim_id_token(
        &self,
        hash: &str,
        job: &str,
        job_workflow_ref: Option<&str>,
        expires_ms: i64,
    ) -> Result<bool, DatabaseError> {
        transaction!(self, |transaction| {
            sqlx::query(
                "INSERT INTO used_id_tokens (hash, job, job_workflow_ref, expires_ms) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (hash) DO NOTHING",
            )
            .bind(hash)
            .bind(job)
            .bind(job_workflow_ref)
            .bind(expires_ms)
            .execute(&mut *transaction)
            .await?;
            let (holder,): (String,) =
                sqlx::query_as("SELECT job FROM used_id_tokens WHERE hash = $1")
                    .bind(hash)
                    .fetch_one(&mut *transaction)
                    .await?;
            Ok(holder == job)
        })
    }

    /// A setting; the first value that anybody proposes stays.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn setting_or_insert(
        &self,
        name: &str,
        value: &str,
    ) -> Result<String, DatabaseError> {
        transaction!(self, |transaction| {
            sqlx::query(
                "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
            )
            .bind(name)
            .bind(value)
            .execute(&mut *transaction)
            .await?;
            let (value,): (String,) = sqlx::query_as("SELECT value FROM settings WHERE name = $1")
                .bind(name)
                .fetch_one(&mut *transaction)
                .await?;
            Ok(value)
        })
    }

    /// How many tokens and hosts there are.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn identity_counts(&self) -> Result<(u64, u64), DatabaseError> {
        let (tokens, hosts): (i64, i64) = read!(self, |pool| {
            sqlx::query_as(
                "SELECT (SELECT COUNT(*) FROM tokens), (SELECT COUNT(*) FROM hosts WHERE revoked_ms IS NULL)",
            )
            .fetch_one(pool)
            .await?
        });
        Ok((unsigned(tokens), unsigned(hosts)))
    }
}

fn role_of(text: &str) -> Result<Role, DatabaseError> {
    text.parse().map_err(|_| DatabaseError::Corrupt(format!("the role {text:?}")))
}
