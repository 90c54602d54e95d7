//! People who are signed in to the dashboard. Only hashes of their cookies come here.

use super::audit::write_audit;
use super::{Caller, Database, DatabaseError, NewAuditEntry, read, transaction};
use portcullis_common::store_api::Role;

/// A session that is to be stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewSession {
    /// The hash of the cookie's secret.
    pub hash: String,
    /// Who it is: a token or a person.
    pub caller: Caller,
    /// The person's groups that have a role; empty for tokens.
    pub groups: Vec<String>,
    /// Now.
    pub created_ms: i64,
    /// When it ends.
    pub expires_ms: i64,
}

/// A session that goes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionRow {
    /// Who it is: a token with the role of this moment, a person with the one of when the provider was asked last.
    pub caller: Caller,
    /// What the provider said last; `None` for tokens.
    pub vouched: Option<Vouched>,
    /// When it ends.
    pub expires_ms: i64,
}

/// What an identity provider said of a person.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Vouched {
    /// The groups that had a role.
    pub groups: Vec<String>,
    /// When.
    pub confirmed_ms: i64,
}

#[derive(sqlx::FromRow)]
struct Row {
    token_id: Option<String>,
    subject: String,
    name: String,
    role: String,
    expires_ms: i64,
    provider_groups: Option<String>,
    confirmed_ms: i64,
    token_name: Option<String>,
    token_role: Option<String>,
    token_end: Option<i64>,
}

impl Database {
    /// Stores a session.
    ///
    /// # Errors
    /// When the database can't be used, or a host is to have a session.
    pub async fn insert_session(
        &self,
        session: &NewSession,
        audit: &NewAuditEntry,
    ) -> Result<(), DatabaseError> {
        let (token, subject, name, role) = match &session.caller {
            Caller::Token { id, name, role } => (Some(id.as_str()), id, name, *role),
            Caller::Person { subject, name, role } => (None, subject, name, *role),
            Caller::Host { .. } => {
                return Err(DatabaseError::Corrupt("a session of a runner host".to_owned()));
            }
        };
        let groups = token.is_none().then(|| words(&session.groups));
        transaction!(self, |transaction| {
            sqlx::query(
                "INSERT INTO sessions (hash, token_id, subject, name, role, created_ms, expires_ms, provider_groups, confirmed_ms) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $6)",
            )
            .bind(session.hash.as_str())
            .bind(token)
            .bind(subject.as_str())
            .bind(name.as_str())
            .bind(role.name())
            .bind(session.created_ms)
            .bind(session.expires_ms)
            .bind(groups)
            .execute(&mut *transaction)
            .await?;
            write_audit!(transaction, [audit]);
        });
        Ok(())
    }

    /// The session whose cookie has this hash, unless it is over: also when its token was revoked or has ended.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn session(
        &self,
        hash: &str,
        now_ms: i64,
    ) -> Result<Option<SessionRow>, DatabaseError> {
        const SQL: &str = "SELECT s.token_id, s.subject, s.name, s.role, s.expires_ms, s.provider_groups, s.confirmed_ms, \
            t.name AS token_name, t.role AS token_role, t.expires_ms AS token_end \
            FROM sessions s LEFT JOIN tokens t ON t.id = s.token_id WHERE s.hash = $1 AND s.expires_ms > $2";
        let row: Option<Row> = read!(self, |pool| {
            sqlx::query_as(SQL).bind(hash).bind(now_ms).fetch_optional(pool).await?
        });
        let Some(row) = row else { return Ok(None) };
        let (caller, vouched) = match (row.token_id, row.token_name, row.token_role) {
            (None, ..) => {
                let groups = row.provider_groups.unwrap_or_default();
                let groups = serde_json::from_str(&groups)
                    .map_err(|_| DatabaseError::Corrupt("the groups of a session".to_owned()))?;
                let role = role_of(&row.role)?;
                let vouched = Vouched { groups, confirmed_ms: row.confirmed_ms };
                (Caller::Person { subject: row.subject, name: row.name, role }, Some(vouched))
            }
            (Some(id), Some(name), Some(role)) if row.token_end.is_none_or(|end| end > now_ms) => {
                (Caller::Token { id, name, role: role_of(&role)? }, None)
            }
            _ => return Ok(None),
        };
        Ok(Some(SessionRow { caller, vouched, expires_ms: row.expires_ms }))
    }

    /// Keeps what the provider says of a person whose session goes on. An entry of the audit log is written where there is one.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn confirm_session(
        &self,
        hash: &str,
        person: &Caller,
        vouched: &Vouched,
        audit: Option<&NewAuditEntry>,
    ) -> Result<(), DatabaseError> {
        let Caller::Person { subject, name, role } = person else {
            return Err(DatabaseError::Corrupt("a provider vouches for no person".to_owned()));
        };
        transaction!(self, |transaction| {
            let done = sqlx::query(
                "UPDATE sessions SET name = $3, role = $4, provider_groups = $5, confirmed_ms = $6 \
                 WHERE hash = $1 AND subject = $2 AND token_id IS NULL",
            )
            .bind(hash)
            .bind(subject.as_str())
            .bind(name.as_str())
            .bind(role.name())
            .bind(words(&vouched.groups))
            .bind(vouched.confirmed_ms)
            .execute(&mut *transaction)
            .await?;
            if done.rows_affected() > 0 {
                write_audit!(transaction, audit.as_slice());
            }
        });
        Ok(())
    }

    /// Ends a session.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn delete_session(
        &self,
        hash: &str,
        audit: &NewAuditEntry,
    ) -> Result<(), DatabaseError> {
        transaction!(self, |transaction| {
            let done = sqlx::query("DELETE FROM sessions WHERE hash = $1")
                .bind(hash)
                .execute(&mut *transaction)
                .await?;
            if done.rows_affected() > 0 {
                write_audit!(transaction, [audit]);
            }
        });
        Ok(())
    }
}

fn role_of(text: &str) -> Result<Role, DatabaseError> {
    text.parse().map_err(|_| DatabaseError::Corrupt(format!("the role {text:?}")))
}

/// A list of words as a column has it.
fn words(list: &[String]) -> String {
    serde_json::Value::from(list).to_string()
}
