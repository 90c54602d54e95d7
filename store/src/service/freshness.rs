//! What is in memory is compared with the database before it is used, by one query for all requests that wait for it.
//!
//! A request must not be answered by what was true before it came: a policy that was changed by another replica a moment ago
//! counts. So it needs a look that *began* after it came. Looks go one after the other, and each serves everybody who
//! was there when it began: under load the number of queries does not grow with the number of requests. Where it is known that
//! nothing was written since the last look, as with a file that nobody else has open, that one serves as well.

use crate::database::{Counters, Database, DatabaseError, Generations, Mark};
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long the pool has to do after no connection for looks could be opened.
const REOPEN_PAUSE: Duration = Duration::from_secs(5);

/// Looks at the database's counters.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Who came since the last look began.
    waiting: Vec<oneshot::Sender<Generations>>,
    /// Whether somebody sees to those who wait.
    is_looking: bool,
    /// What the last look saw, while it can be known that another one would see the same.
    known: Option<(Mark, Generations)>,
    /// While nobody looks.
    connection: Option<Counters>,
    /// When there was none to be had.
    not_opened: Option<Instant>,
    /// How many looks have begun.
    #[cfg(test)]
    looks: u64,
}

impl Freshness {
    /// The counters as they were at some time after this was called.
    pub(super) async fn look(&self, database: &Database) -> Result<Generations, DatabaseError> {
        let known = lock(&self.state).known;
        if let Some((mark, seen)) = known
            && database.is_unchanged_since(mark)
        {
            return Ok(seen);
        }
        // Apart, so that those who need not wait don't carry around what waiting takes.
        Box::pin(self.look_anew(database)).await
    }

    async fn look_anew(&self, database: &Database) -> Result<Generations, DatabaseError> {
        let (tell, told) = oneshot::channel();
        let is_first = {
            let mut state = lock(&self.state);
            state.waiting.push(tell);
            !std::mem::replace(&mut state.is_looking, true)
        };
        if is_first {
            // A task of its own: a request that is given up must not take the others' look with it.
            let turn = Turn { state: Arc::clone(&self.state), is_over: false };
            tokio::spawn(turn.serve(database.clone()));
        }
        match told.await {
            Ok(seen) => Ok(seen),
            // The connection failed, or there is none: each asks for itself, by the pool, and learns of an error itself.
            Err(_) => database.generations().await,
        }
    }

    /// Ends the connection.
    pub(super) async fn close(&self) {
        let connection = lock(&self.state).connection.take();
        if let Some(connection) = connection {
            connection.close().await;
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks until nobody waits. There is at most one at a time.
struct Turn {
    state: Arc<Mutex<State>>,
    is_over: bool,
}

impl Turn {
    async fn serve(mut self, database: Database) {
        let mut connection = lock(&self.state).connection.take();
        loop {
            // Requests that are there already get to wait for the same look.
            tokio::task::yield_now().await;
            let waiting = {
                let mut state = lock(&self.state);
                if state.waiting.is_empty() {
                    state.is_looking = false;
                    state.connection = connection;
                    self.is_over = true;
                    return;
                }
                #[cfg(test)]
                {
                    state.looks += 1;
                }
                take(&mut state.waiting)
            };
            let Some(mut looking) = connection.take() else {
                // Nobody waits for the connection; the pool has others.
                drop(waiting);
                connection = self.open(&database).await;
                continue;
            };
            let mark = database.mark();
            match looking.read().await {
                Ok(seen) => {
                    lock(&self.state).known = mark.map(|mark| (mark, seen));
                    for tell in waiting {
                        // Whoever gave up needs no answer.
                        let _ = tell.send(seen);
                    }
                    connection = Some(looking);
                }
                Err(error) => {
                    tracing::debug!(error = %error, "the connection for looks failed, and is made anew");
                }
            }
        }
    }

    async fn open(&self, database: &Database) -> Option<Counters> {
        if lock(&self.state).not_opened.is_some_and(|time| time.elapsed() < REOPEN_PAUSE) {
            return None;
        }
        match Counters::open(database).await {
            Ok(connection) => Some(connection),
            Err(error) => {
                lock(&self.state).not_opened = Some(Instant::now());
                tracing::warn!(error = %error, "there is no connection for looking at the database's counters; the pool's are used");
                None
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over {
            // It was cut off by a panic, or by the end of the program: those who wait ask for themselves.
            let mut state = lock(&self.state);
            state.is_looking = false;
            state.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Freshness, lock};
    use crate::database::{Database, NewAuditEntry, StoredToken};
    use portcullis_common::store_api::Role;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};
    use tempfile::TempDir;

    async fn database() -> (TempDir, Database) {
        let directory = tempfile::tempdir().unwrap();
        let database = open(&directory).await;
        (directory, database)
    }

    async fn open(directory: &TempDir) -> Database {
        let url = format!("sqlite:{}", directory.path().join("store.db").display());
        Database::open(&url, 4).await.unwrap()
    }

    /// Changes the database without telling [`Freshness`].
    async fn change(database: &Database, number: i64) {
        let token = StoredToken {
            id: number.to_string(),
            name: format!("token {number}"),
            role: Role::Viewer,
            hash: number.to_string(),
            created_ms: 0,
            created_by: "test".to_owned(),
            expires_ms: None,
        };
        let audit = NewAuditEntry {
            time_ms: 0,
            actor: "test".to_owned(),
            action: "token.create",
            subject: token.name.clone(),
            detail: None,
            address: None,
        };
        database.insert_token(&token, &audit).await.unwrap();
    }

    /// Changes are made by the same server, or by `another` one with the same file.
    async fn no_answer_is_older(another: bool) {
        const CHANGES: i64 = 50;
        let (directory, database) = database().await;
        let writer = if another { open(&directory).await } else { database.clone() };
        let freshness = Arc::new(Freshness::default());
        // The first leads to the connection, which the second waits for: opening one beside somebody who writes without pause
        // can take SQLite longer than a request waits.
        freshness.look(&database).await.unwrap();
        let start = freshness.look(&database).await.unwrap().identities;
        let written = Arc::new(AtomicI64::new(0));
        let askers: Vec<_> = (0..16)
            .map(|_| {
                let (freshness, written) = (Arc::clone(&freshness), Arc::clone(&written));
                let database = database.clone();
                tokio::spawn(async move {
                    loop {
                        let before = written.load(Ordering::SeqCst);
                        let seen = freshness.look(&database).await.unwrap().identities - start;
                        assert!(seen >= before, "{seen} was seen after {before} had been written");
                        if before == CHANGES {
                            return;
                        }
                    }
                })
            })
            .collect();
        for number in 1..=CHANGES {
            change(&writer, number).await;
            written.store(number, Ordering::SeqCst);
        }
        for asker in askers {
            asker.await.unwrap();
        }
        freshness.close().await;
        writer.close().await;
        database.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_answer_is_older_than_its_request() {
        no_answer_is_older(false).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_answer_is_older_than_a_change_of_another_process() {
        no_answer_is_older(true).await;
    }

    #[tokio::test]
    async fn while_nothing_is_written_one_look_is_enough() {
        let (directory, database) = database().await;
        let freshness = Freshness::default();
        let looks = async || {
            let before = lock(&freshness.state).looks;
            for _ in 0..10 {
                freshness.look(&database).await.unwrap();
            }
            lock(&freshness.state).looks - before
        };
        // The first leads to the connection.
        freshness.look(&database).await.unwrap();
        assert_eq!(looks().await, 1);
        let seen = freshness.look(&database).await.unwrap().identities;
        change(&database, 1).await;
        assert_eq!(
            (looks().await, freshness.look(&database).await.unwrap().identities),
            (1, seen + 1)
        );
        let _other = open(&directory).await;
        assert_eq!(looks().await, 10, "another one may write without our knowing");
    }

    #[tokio::test]
    async fn all_who_are_there_share_a_look() {
        let (_directory, database) = database().await;
        let freshness = Arc::new(Freshness::default());
        freshness.look(&database).await.unwrap();
        let before = lock(&freshness.state).looks;
        let askers: Vec<_> = (0..64)
            .map(|_| {
                let (freshness, database) = (Arc::clone(&freshness), database.clone());
                tokio::spawn(async move { freshness.look(&database).await.unwrap() })
            })
            .collect();
        for asker in askers {
            asker.await.unwrap();
        }
        assert_eq!(lock(&freshness.state).looks - before, 1);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_the_others_their_look() {
        let (_directory, database) = database().await;
        let freshness = Arc::new(Freshness::default());
        freshness.look(&database).await.unwrap();
        let asked = || {
            let (freshness, database) = (Arc::clone(&freshness), database.clone());
            tokio::spawn(async move { freshness.look(&database).await })
        };
        let (first, second) = (asked(), asked());
        tokio::task::yield_now().await;
        first.abort();
        assert!(second.await.unwrap().is_ok());
        assert!(asked().await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn without_a_connection_of_its_own_the_pool_answers() {
        let (_directory, database) = database().await;
        let freshness = Freshness::default();
        change(&database, 1).await;
        lock(&freshness.state).not_opened = Some(std::time::Instant::now());
        let seen = freshness.look(&database).await.unwrap();
        assert_eq!(seen, database.generations().await.unwrap());
        assert!(lock(&freshness.state).connection.is_none());
        database.close().await;
        assert!(freshness.look(&database).await.is_err());
    }
}
