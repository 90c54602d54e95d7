//! Whose a session is, and what it allows at this moment.

use super::Store;
use crate::database::{Caller, DatabaseError};
use crate::identity::sign_in::Confirmation;

/// A session that goes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LiveSession {
    /// Who it is, with the role of this moment.
    pub caller: Caller,
    /// Whether the provider has to be asked again; tokens are always [`Confirmation::Fresh`].
    pub confirmation: Confirmation,
}

impl Store {
    /// The session whose cookie has this hash. A token that was revoked has none; neither has a person whose groups have no role
    /// in this server's configuration any more, or whose provider is no longer the one of it.
    ///
    /// # Errors
    /// When the database can't be used.
    pub async fn session(
        &self,
        hash: &str,
        now_ms: i64,
    ) -> Result<Option<LiveSession>, DatabaseError> {
        let Some(row) = self.database.session(hash, now_ms).await? else { return Ok(None) };
        let Some(vouched) = &row.vouched else {
            return Ok(Some(LiveSession { caller: row.caller, confirmation: Confirmation::Fresh }));
        };
        let Caller::Person { subject, name, .. } = row.caller else { return Ok(None) };
        let standing =
            self.sign_in.as_ref().and_then(|provider| provider.standing(&subject, vouched, now_ms));
        Ok(standing.map(|(role, confirmation)| LiveSession {
            caller: Caller::Person { subject, name, role },
            confirmation,
        }))
    }
}
