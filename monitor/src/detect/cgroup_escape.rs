//! Cgroup-Escape: a process of the job is in a group that is neither the job's nor below it.
//!
//! Moving needs root. A daemon that starts something for a job starts it in a group of its own; that is a process of the
//! daemon, not one that left, and only a sensor that follows descent can tell: it must not report such a process.

use super::{Finding, name};
use portcullis_common::event::{DetectionType, Process, RecordedDetection};
use std::path::PathBuf;

/// A process that descends from the job's Worker, and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    /// The process.
    pub process: Process,
    /// The job's group, as `/proc/PID/cgroup` has it.
    pub job: PathBuf,
    /// The process's group now.
    pub now: PathBuf,
    /// Who moved it, when that is known: itself, or another process.
    pub moved_by: Option<Process>,
}

/// Judges where a process is.
pub fn cgroup_escape(membership: &Membership) -> Option<Finding> {
    if membership.now.starts_with(&membership.job) {
        return None;
    }
    let by = match &membership.moved_by {
        Some(mover) if mover.pid != membership.process.pid => {
            format!("; it was moved by {}", name(mover))
        }
        _ => String::new(),
    };
    let evidence = format!(
        "{} left the job's cgroup for {}{by}; it is still the job's",
        name(&membership.process),
        membership.now.display()
    );
    let detection = DetectionType::Recorded(RecordedDetection::CgroupEscape);
    Some(Finding::new(detection, &evidence, Some(membership.process.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::testing::process;

    fn membership(now: &str) -> Membership {
        Membership {
            process: process(7, "/usr/bin/curl"),
            job: "/system.slice/runner.service/portcullis-1".into(),
            now: now.into(),
            moved_by: Some(process(8, "/usr/bin/tee")),
        }
    }

    #[test]
    fn outside_is_an_escape_and_names_the_mover() {
        for outside in ["/", "/system.slice/runner.service", "/system.slice/ssh.service"] {
            let found = cgroup_escape(&membership(outside)).unwrap();
            assert!(found.evidence.contains("/usr/bin/tee (pid 8)"), "{}", found.evidence);
        }
        // A name that only begins like the job's.
        assert!(cgroup_escape(&membership("/system.slice/runner.service/portcullis-12")).is_some());
    }

    #[test]
    fn groups_that_the_job_makes_below_its_own_are_its_own() {
        for inside in ["", "/init", "/a/b"] {
            let now = format!("/system.slice/runner.service/portcullis-1{inside}");
            assert_eq!(cgroup_escape(&membership(&now)), None);
        }
    }
}
