//! What a person sees of long work: one line on standard error that is written over, and only on a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// How often the line is written.
const PAUSE: Duration = Duration::from_millis(200);

/// Work before this is not worth a line.
const PATIENCE: Duration = Duration::from_millis(700);

/// A line of progress.
#[derive(Debug)]
pub(super) struct Progress {
    what: &'static str,
    total: Option<u64>,
    is_shown: bool,
    started: Instant,
    written: Option<Instant>,
}

impl Progress {
    /// Progress in so many things.
    pub(super) fn new(what: &'static str, total: Option<u64>) -> Self {
        let is_shown = std::io::stderr().is_terminal();
        Self { what, total, is_shown, started: Instant::now(), written: None }
    }

    /// So many are done.
    pub(super) fn set(&mut self, done: u64) {
        self.write(&line(self.what, done, self.total));
    }

    fn write(&mut self, text: &str) {
        let now = Instant::now();
        let is_due = match self.written {
            None => now - self.started >= PATIENCE,
            Some(written) => now - written >= PAUSE,
        };
        if !self.is_shown || !is_due {
            return;
        }
        self.written = Some(now);
        // The line is a courtesy; a standard error that is closed stops nothing.
        let _ = write!(std::io::stderr(), "\r{text}");
    }

    /// Takes the line away.
    pub(super) fn finish(self) {
        if self.written.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Waits for one answer that may take long, and tells how long it has been.
pub(super) async fn waiting<T>(what: &'static str, answer: impl Future<Output = T>) -> T {
    let mut progress = Progress::new(what, None);
    let mut answer = std::pin::pin!(answer);
    let mut pause = tokio::time::interval(PAUSE);
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer,
            _ = pause.tick() => {
                let seconds = progress.started.elapsed().as_secs();
                progress.write(&format!("{what}, {seconds} s"));
            }
        }
    };
    progress.finish();
    answer
}

fn line(what: &str, done: u64, total: Option<u64>) -> String {
    match total {
        Some(total) if total > 0 => {
            format!("{done} of {total} {what} ({} %)", done.saturating_mul(100) / total)
        }
        _ => format!("{done} {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn progress_says_how_far() {
        assert_eq!(line("jobs", 5, Some(20)), "5 of 20 jobs (25 %)");
        assert_eq!(line("events", 7, None), "7 events");
    }
}
