//! The Worker's uploads of logs and summaries to GitHub, beside the job as in the real one.

use crate::job::StepResult;
use crate::server::github::RESULTS_HOST;
use crate::stand_in::https::{Connection, Tls};
use anyhow::Result;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

/// A thread that uploads one thing after the other.
pub(super) struct Uploads {
    queue: Option<Sender<(String, Vec<u8>)>>,
    /// Returns how many failed.
    thread: Option<JoinHandle<u32>>,
    runner: String,
}

impl Uploads {
    pub(super) fn start(runner: &str) -> Result<Self> {
        // Without authorities every upload fails, as they do behind a gate that lets none pass.
        let tls = Tls::new().ok();
        let (queue, uploads) = mpsc::channel::<(String, Vec<u8>)>();
        let thread = thread::Builder::new().name("uploads".to_owned()).spawn(move || {
            let mut connection: Option<Connection> = None;
            let mut failed = 0;
            for (path, body) in uploads {
                // One that failed makes it likely that all do: they are counted and not tried for minutes.
                if failed == 0 && connection.is_none() {
                    connection =
                        tls.as_ref().and_then(|tls| Connection::open(tls, RESULTS_HOST).ok());
                }
                let status = connection
                    .as_mut()
                    .and_then(|connection| connection.request("POST", &path, &body).ok());
                if status != Some(200) {
                    failed += 1;
                    connection = None;
                }
            }
            failed
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread), runner: runner.to_owned() })
    }

    pub(super) fn send(&self, step: &str, result: &StepResult) {
        let step = if step.is_empty() { "hook" } else { step };
        let path = format!("/upload/{}/{step}", self.runner).replace([' ', '\r', '\n'], "_");
        if let (Some(queue), Ok(body)) = (&self.queue, serde_json::to_vec(result)) {
            // The thread ends after the queue.
            let _ = queue.send((path, body));
        }
    }

    /// Waits for all uploads; how many failed.
    pub(super) fn finish(&mut self) -> u32 {
        drop(self.queue.take());
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(0)
    }
}
