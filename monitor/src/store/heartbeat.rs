//! Tells the store that this monitor is there, and what it is: people see which hosts are silent, and which are out of date.

use portcullis_common::hook::with_causes;
use portcullis_common::store_api::Heartbeat;
use portcullis_store_client::HostClient;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

/// How often. Jobs are heard of by themselves; this is for hosts that have none.
const PAUSE: Duration = Duration::from_mins(5);

/// How soon after a failure it is tried again; the pause grows to [`PAUSE`].
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Where the kernel says its release.
const KERNEL_RELEASE: &str = "/proc/sys/kernel/osrelease";

/// Says so for as long as the monitor runs. A store that can't be told costs nothing: jobs don't wait for it.
pub(super) async fn run(client: Arc<HostClient>) {
    let heartbeat = Heartbeat {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: fs::read_to_string(KERNEL_RELEASE).ok().map(|release| release.trim().to_owned()),
    };
    let mut pause = RETRY_PAUSE;
    loop {
        match client.heartbeat(&heartbeat).await {
            Ok(()) => pause = PAUSE,
            Err(error) => {
                // A store that is older than this monitor knows no heartbeats; one that is away is logged by uploads.
                tracing::debug!(error = %with_causes(&error), "the store was not told that this monitor is there");
                pause = (pause * 2).min(PAUSE);
            }
        }
        tokio::time::sleep(pause).await;
    }
}
