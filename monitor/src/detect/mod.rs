//! Detections: pure functions from facts to findings. Watchers gather the facts, [`crate::respond`] answers the findings.
//!
//! One file for each type. What is a fact is what the kernel says: descriptors, sockets, credentials, files. Command lines
//! are evidence for a person, never a reason for a verdict, because a job writes them as it likes.

pub mod cgroup_escape;
pub mod fileless_execution;
pub mod memory_read;
pub mod monitor_tampering;
pub mod privileged_container;
pub mod reverse_shell;
pub mod source_overwritten;
pub mod sudo_use;

use portcullis_common::event::{DetectionType, Process};
use portcullis_common::text::log_line;

/// The longest evidence in bytes: it stands in an event, in a cell of the job's summary and in an annotation of GitHub,
/// which takes 4 096 characters.
pub const EVIDENCE_BYTES: usize = 2_000;

/// A fact that matches a detection type.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The type.
    pub detection: DetectionType,
    /// What was seen, in one line of words. It names the acting process itself, so that it can stand alone.
    pub evidence: String,
    /// Who did it.
    pub process: Option<Process>,
}

impl Finding {
    /// A finding whose evidence is made one bounded line, whatever a job put into the names in it.
    pub fn new(detection: DetectionType, evidence: &str, process: Option<Process>) -> Self {
        Self { detection, evidence: log_line(evidence, EVIDENCE_BYTES), process }
    }
}

/// A process in words: `/usr/bin/python3.11 (pid 4711)`.
pub fn name(process: &Process) -> String {
    let exe = process.exe.as_deref().unwrap_or("a process");
    match process.pid {
        Some(pid) => format!("{exe} (pid {pid})"),
        None => exe.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use portcullis_common::event::Process;

    /// A process of a job.
    pub(crate) fn process(pid: u32, exe: &str) -> Process {
        Process {
            pid: Some(pid),
            start_time: Some(u64::from(pid) * 10),
            exe: Some(exe.to_owned()),
            uid: Some(1001),
            ..Process::default()
        }
    }
}
