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
    /// Now.
    pub created_ms: i64,
    /// When it ends.
    pub expires_ms: i64,
}

/// A session that goes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionRow {
    /// Who it is, with the role of this moment.
    pub caller: Caller,
    /// When it ends.
    pub expires_ms: i64,
}

type Row =
    (Option<String>, String, String, String, i64, Option<String>, Option<String>, Option<i64>);

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
        transaction!(self, |transaction| {
            sqlx::query(
                "INSERT INTO sessions (hash, token_id, subject, name, role, created_ms, expires_ms) VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(session.hash.as_str())
            .bind(token)
            .bind(subject.as_str())
            .bind(name.as_str())
            .bind(role.name())
            .bind(session.created_ms)
            .bind(session.expires_ms)
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
        const SQL: &str = "SELECT s.token_id, s.subject, s.name, s.role, s.expires_ms, t.name, t.role, t.expires_ms \
            FROM sessions s LEFT JOIN tokens t ON t.id = s.token_id WHERE s.hash = $1 AND s.expires_ms > $2";
        let row: Option<Row> = read!(self, |pool| {
            sqlx::query_as(SQL).bind(hash).bind(now_ms).fetch_optional(pool).await?
        });
        let Some((token, subject, name, role, expires_ms, token_name, token_role, token_end)) = row
        else {
            return Ok(None);
        };
        let caller = match (token, token_name, token_role) {
            (None, _, _) => Caller::Person { subject, name, role: role_of(&role)? },
            (Some(id), Some(name), Some(role)) if token_end.is_none_or(|end| end > now_ms) => {
                Caller::Token { id, name, role: role_of(&role)? }
            }
            _ => return Ok(None),
        };
        Ok(Some(SessionRow { caller, expires_ms }))
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
