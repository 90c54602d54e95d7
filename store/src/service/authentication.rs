//! Who calls: secrets are looked up by their hash, and remembered until anything about tokens or hosts changes.

use super::{Store, now};
use crate::database::{Caller, CredentialRow, DatabaseError, Generations};
use crate::identity::secret::{MAX_SECRET_BYTES, hash};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    uses: HashMap<String, (Arc<Caller>, i64)>,
}

/// A caller that is known.
#[derive(Clone, Debug)]
pub struct Authentication {
    /// Who it is.
    pub caller: Arc<Caller>,
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

impl Callers {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caller that was looked up before, if nothing has changed since; notes the use.
    fn known(
        &self,
        hash: &str,
        generation: i64,
        now_ms: i64,
    ) -> Result<Option<Arc<Caller>>, AuthenticationError> {
        let mut state = self.lock();
        if state.generation != generation {
            state.by_hash.clear();
            state.generation = generation;
        }
        let Some(row) = state.by_hash.get(hash) else { return Ok(None) };
        if row.is_over(now_ms) {
            return Err(AuthenticationError::Expired);
        }
        let caller = row.caller.clone();
        match state.uses.get_mut(hash) {
            Some((_, last_ms)) => *last_ms = now_ms,
            None => state.note_use(hash.to_owned(), caller.clone(), now_ms),
        }
        Ok(Some(caller))
    }

    /// Keeps what was looked up, and notes the use.
    fn remember(&self, hash: String, row: CredentialRow, generation: i64, now_ms: i64) {
        let mut state = self.lock();
        let caller = row.caller.clone();
        // What was looked up before a change must not be remembered as if it came after it.
        if state.generation == generation && state.by_hash.len() < MAX_REMEMBERED {
            state.by_hash.entry(hash.clone()).or_insert(row);
        }
        state.note_use(hash, caller, now_ms);
    }
}

impl Remembered {
    fn note_use(&mut self, hash: String, caller: Arc<Caller>, now_ms: i64) {
        if self.uses.len() < MAX_REMEMBERED {
            self.uses.insert(hash, (caller, now_ms));
        }
    }
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
        let now_ms = now().as_millisecond();
        if let Some(caller) = self.callers.known(&hash, generation, now_ms)? {
            return Ok(Authentication { caller, policies });
        }
        let caller = Box::pin(self.look_up(hash, generation, now_ms)).await?;
        Ok(Authentication { caller, policies })
    }

    /// Asks the database for a caller.
    async fn look_up(
        &self,
        hash: String,
        generation: i64,
        now_ms: i64,
    ) -> Result<Arc<Caller>, AuthenticationError> {
        let mut row = self.database.credential(&hash).await?.ok_or(AuthenticationError::Unknown)?;
        if row.is_over(now_ms) {
            return Err(AuthenticationError::Expired);
        }
        if let (Some(credential), Caller::Host { id, .. }) = (row.unused.take(), &*row.caller) {
            let old_end = (now() + ROTATION_GRACE).as_millisecond();
            self.database.confirm_credential(id, &credential, now_ms, old_end).await?;
        }
        let caller = row.caller.clone();
        self.callers.remember(hash, row, generation, now_ms);
        Ok(caller)
    }

    /// Writes down when callers were last heard of.
    ///
    /// # Errors
    /// When the database can't be used; then it is tried again with the next time.
    pub async fn flush_uses(&self) -> Result<(), DatabaseError> {
        let uses: Vec<(Arc<Caller>, i64)> =
            { std::mem::take(&mut self.callers.lock().uses).into_values().collect() };
        if uses.is_empty() {
            return Ok(());
        }
        self.database.note_use(&uses).await
    }
}
