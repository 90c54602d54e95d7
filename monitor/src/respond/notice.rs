//! What a runner is told of the death of its Worker.

use crate::caller::Worker;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

/// Writes to the Worker's standard error: the Listener makes it the annotation of a job whose Worker dies
/// (actions/runner, JobDispatcher.cs). Never blocks.
///
/// # Errors
/// When the Worker has no standard error that can be written to, or its pipe is full.
pub fn tell_runner(worker: &Worker, message: &str) -> io::Result<()> {
    let path = format!("/proc/{}/fd/2", worker.pid());
    // A full pipe must not hold the monitor.
    let opened = fs::OpenOptions::new()
        .write(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path);
    opened?.write_all(format!("Portcullis: {message}\n").as_bytes())
}
