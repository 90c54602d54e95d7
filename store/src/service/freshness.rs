//! What is in memory is compared with the database before it is used, by one query for all requests that wait for it.
//!
//! A request must not be answered by what was true before it came: a policy that was changed by another replica a moment ago
//! counts. So it needs a look that *began* after it came. Looks go one after the other, and each serves everybody who
//! was there when it began: under load the number of queries does not grow with the number of requests.

use crate::database::{Database, DatabaseError, Generations};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// Looks at the database's counters.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    /// How many looks have begun.
    begun: AtomicU64,
    /// The last look that is done, and what it saw; held during a look.
    done: Mutex<Option<(u64, Generations)>>,
}

impl Freshness {
    /// The counters as they were at some time after this was called.
    pub(super) async fn look(&self, database: &Database) -> Result<Generations, DatabaseError> {
        let needed = self.begun.load(Ordering::SeqCst) + 1;
        let mut done = self.done.lock().await;
        if let Some((look, seen)) = *done
            && look >= needed
        {
            return Ok(seen);
        }
        let look = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let seen = database.generations().await?;
        *done = Some((look, seen));
        Ok(seen)
    }
}
