//! As much of GitHub as the runner stand-in talks to: the broker's long poll and the Worker's uploads.

use super::http::{Request, Response};
use super::web::Web;
use crate::patience::{patience, wait_for};
use crate::sync::{Stopped, lock};
use anyhow::Result;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The Listener's long poll goes here.
pub const BROKER_HOST: &str = "broker.actions.githubusercontent.com";

/// The Worker's logs and summaries go here.
pub const RESULTS_HOST: &str = "results-receiver.actions.githubusercontent.com";

/// Names of GitHub that the world's internet has.
pub const HOSTS: [&str; 9] = [
    "github.com",
    "api.github.com",
    "codeload.github.com",
    "objects.githubusercontent.com",
    "pipelines.actions.githubusercontent.com",
    "run.actions.githubusercontent.com",
    "token.actions.githubusercontent.com",
    BROKER_HOST,
    RESULTS_HOST,
];

/// GitHub, as the world has it.
#[derive(Clone, Debug)]
pub struct GitHub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    polls: Mutex<HashMap<String, Poll>>,
    changed: Condvar,
    uploads: Mutex<Vec<Request>>,
}

/// The long poll of one runner.
#[derive(Clone, Debug, Default)]
struct Poll {
    /// The connection on which it waits.
    connection: u64,
    /// Whether it waits now.
    waiting: bool,
    /// How often it has come.
    count: u64,
    /// How many answers it is owed.
    answers: u64,
}

impl GitHub {
    pub(crate) fn serve(web: &Web, stopped: Stopped) -> Self {
        let github = Self {
            shared: Arc::new(Shared {
                polls: Mutex::default(),
                changed: Condvar::new(),
                uploads: Mutex::default(),
            }),
        };
        let broker = github.clone();
        web.route(BROKER_HOST, "/message", move |request| broker.poll(request, &stopped));
        let results = github.clone();
        web.route(RESULTS_HOST, "/upload/", move |request| {
            lock(&results.shared.uploads).push(request.clone());
            Response::ok("{}")
        });
        github
    }

    /// What Workers have uploaded so far; the path names the runner and the step.
    pub fn uploads(&self) -> Vec<Request> {
        lock(&self.shared.uploads).clone()
    }

    /// The number of the connection on which this runner's Listener waits for messages; waits until it does.
    ///
    /// # Errors
    /// When it does not come.
    pub fn long_poll(&self, runner: &str) -> Result<u64> {
        wait_for(&format!("the long poll of {runner}"), || {
            lock(&self.shared.polls)
                .get(runner)
                .filter(|poll| poll.waiting)
                .map(|poll| poll.connection)
        })
    }

    /// Answers this runner's long poll and waits until it polls again: proof that data passes both ways. Returns the
    /// number of the connection on which it came again; it is the same as before when the connection has survived.
    ///
    /// # Errors
    /// When the answer does not get through, so that no new poll comes.
    pub fn long_poll_round_trip(&self, runner: &str) -> Result<u64> {
        self.long_poll(runner)?;
        let before = {
            let mut polls = lock(&self.shared.polls);
            let poll = polls.entry(runner.to_owned()).or_default();
            poll.answers += 1;
            poll.count
        };
        self.shared.changed.notify_all();
        wait_for(&format!("the next long poll of {runner}"), || {
            lock(&self.shared.polls)
                .get(runner)
                .filter(|poll| poll.count > before)
                .map(|poll| poll.connection)
        })
    }

    /// Holds the request until there is an answer or the world ends.
    fn poll(&self, request: &Request, stopped: &Stopped) -> Response {
        let runner = request.query.trim_start_matches("runner=").to_owned();
        let mut polls = lock(&self.shared.polls);
        let poll = polls.entry(runner.clone()).or_default();
        poll.connection = request.connection;
        poll.waiting = true;
        poll.count += 1;
        let mine = poll.count;
        loop {
            let poll = polls.entry(runner.clone()).or_default();
            if poll.count != mine {
                // The runner has begun anew on another connection.
                return Response::new(202, "");
            }
            if poll.answers > 0 {
                poll.answers -= 1;
                poll.waiting = false;
                return Response::ok("{}");
            }
            if stopped.is_set() {
                return Response::new(503, "");
            }
            // Looks up from time to time, because the end of the world notifies nobody.
            let pause = Duration::from_millis(100).min(patience());
            polls = self
                .shared
                .changed
                .wait_timeout(polls, pause)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
