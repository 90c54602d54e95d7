//! What is removed when it is of no use any more.

use super::{Database, DatabaseError, transaction};

impl Database {
    /// Removes secrets that are over: enrolments, credentials that were replaced, OIDC tokens that expired by themselves.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn remove_expired(&self, now_ms: i64) -> Result<u64, DatabaseError> {
        transaction!(self, |transaction| {
            let mut removed = 0;
            for sql in [
                "DELETE FROM enrolments WHERE expires_ms <= $1 OR hosts_left <= 0",
                "DELETE FROM host_credentials WHERE expires_ms <= $1",
                "DELETE FROM used_id_tokens WHERE expires_ms <= $1",
            ] {
                let done = sqlx::query(sql).bind(now_ms).execute(&mut *transaction).await?;
                removed += done.rows_affected();
            }
            Ok(removed)
        })
    }
}
