//! Who calls: secrets are looked up by their hash, and remembered until anything about tokens or hosts changes.

use super::{Store, now};
use crate::database::{Caller, CredentialRow, DatabaseError, Generations};
use crate::identity::secret::{MAX_SECRET_BYTES, hash};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a host's credential goes on after the one that replaces it was used: for what is under way.
const ROTATION_GRACE: Duration = Duration::from_mins(10);

/// The most secrets that are remembered. Wrong ones are not.
const MAX_REMEMBERED: usize = 10_000;

/// Secrets that were looked up, and whose use is to be noted.
#[derive(Debug, Default)]
pub(super) struct Callers {
    state: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    generation: i64,
    by_hash: HashMap<String, CredentialRow>,
    /// When each caller was heard of, in milliseconds, until it is written down.
    uses: HashMap<String, (Caller, i64)>,
}

/// A caller that is known.
#[derive(Clone, Debug)]
pub struct Authentication {
    /// Who it is.
    pub caller: Caller,
    /// The generation of the policies when the caller was looked up: what it asks for needs no second look.
    pub policies: i64,
}

/// Why nobody is known by a secret.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticationError {
    /// There is no such secret.
    #[error("the token is not known; it may have been revoked")]
    Unknown,
    /// It is over.
    #[error("the token has expired")]
    Expired,
    /// It can't be looked up.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Store {
    /// Whom a secret belongs to.
    ///
    /// # Errors
    /// When it belongs to nobody, is over, or can't be looked up.
    pub async fn authenticate(&self, secret: &str) -> Result<Authentication, AuthenticationError> {
        if secret.len() > MAX_SECRET_BYTES {
            return Err(AuthenticationError::Unknown);
        }
        let hash = hash(secret);
        let Generations { identities: generation, policies } =
            self.freshness.look(&self.database).await?;
        let known = {
            let mut state = self.callers.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.generation != generation {
                state.by_hash.clear();
                state.generation = generation;
            }
            state.by_hash.get(&hash).cloned()
        };
        let mut row = match known {
            Some(row) => row,
            None => self.database.credential(&hash).await?.ok_or(AuthenticationError::Unknown)?,
        };
        let now_ms = now().as_millisecond();
        if row.expires_ms.is_some_and(|end| end <= now_ms) {
            return Err(AuthenticationError::Expired);
        }
        if let (Some(credential), Caller::Host { id, .. }) = (row.unused.take(), &row.caller) {
            let old_end = (now() + ROTATION_GRACE).as_millisecond();
            self.database.confirm_credential(id, &credential, now_ms, old_end).await?;
        }
        let caller = row.caller.clone();
        let mut state = self.callers.state.lock().unwrap_or_else(PoisonError::into_inner);
        // What was looked up before a change must not be remembered as if it came after it.
        if state.generation == generation && state.by_hash.len() < MAX_REMEMBERED {
            state.by_hash.entry(hash.clone()).or_insert(row);
        }
        if state.uses.len() < MAX_REMEMBERED {
            state.uses.insert(hash, (caller.clone(), now_ms));
        }
        drop(state);
        Ok(Authentication { caller, policies })
    }

    /// Writes down when callers were last heard of.
    ///
    /// # Errors
    /// When the database can't be used; then it is tried again with the next time.
    pub async fn flush_uses(&self) -> Result<(), DatabaseError> {
        let uses: Vec<(Caller, i64)> = {
            let mut state = self.callers.state.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut state.uses).into_values().collect()
        };
        if uses.is_empty() {
            return Ok(());
        }
        self.database.note_use(&uses).await
    }
}
