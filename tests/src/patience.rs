//! Waiting for conditions instead of sleeping.

use anyhow::{Result, bail};
use std::thread;
use std::time::{Duration, Instant};

/// The environment variable that sets how many seconds a test waits for a condition before it fails.
pub const PATIENCE_VARIABLE: &str = "PORTCULLIS_TEST_PATIENCE_SECONDS";

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// How long a test waits for a condition: [`PATIENCE_VARIABLE`], or 30 s, which a busy machine with two cores needs.
pub fn patience() -> Duration {
    std::env::var(PATIENCE_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok())
        .map_or(Duration::from_secs(30), Duration::from_secs)
}

/// Waits until `condition` is true.
///
/// # Errors
/// When it is still false after [`patience`]; the error names `what` was waited for.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, || condition().then_some(()))
}

/// Waits until `look` finds something, and returns it.
///
/// # Errors
/// When there is still nothing after [`patience`]; the error names `what` was waited for.
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> Result<T> {
    wait_for_within(patience(), what, look)
}

/// Like [`wait_for`] with a patience of its own.
///
/// # Errors
/// When there is still nothing after `patience`.
pub fn wait_for_within<T>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if start.elapsed() >= patience {
            bail!(
                "waited {} s for this in vain: {what} (set {PATIENCE_VARIABLE} on a slow machine)",
                patience.as_secs()
            );
        }
        thread::sleep(INTERVAL);
    }
}
