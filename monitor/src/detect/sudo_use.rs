//! Sudo-Use: a process of the job became root, or another user, by a setuid program or one with file capabilities.

use super::{Finding, name};
use portcullis_common::event::{DetectionType, Process, RecordedDetection};

/// The credentials of a process after an exec.
#[derive(Clone, Debug, PartialEq)]
pub struct Credentials {
    /// The process.
    pub process: Process,
    /// The user that the job runs as.
    pub job_uid: u32,
    /// The effective user id.
    pub effective_uid: u32,
    /// Whether the process that executed it was the job's user still: else the change was recorded before.
    pub parent_uid: Option<u32>,
}

/// Judges credentials.
pub fn sudo_use(credentials: &Credentials) -> Option<Finding> {
    let Credentials { process, job_uid, effective_uid, parent_uid } = credentials;
    // What root starts is root: only the step from the job's user is news.
    if *job_uid == 0 || effective_uid == job_uid || *parent_uid != Some(*job_uid) {
        return None;
    }
    let evidence = format!(
        "{} of user {job_uid} runs with the rights of user {effective_uid}: {:?}",
        name(process),
        process.argv
    );
    let detection = DetectionType::Recorded(RecordedDetection::SudoUse);
    Some(Finding::new(detection, &evidence, Some(process.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::testing::process;

    fn credentials(job_uid: u32, effective_uid: u32, parent_uid: u32) -> Credentials {
        let process = process(7, "/usr/bin/sudo");
        Credentials { process, job_uid, effective_uid, parent_uid: Some(parent_uid) }
    }

    #[test]
    fn the_step_to_another_user_is_found_once() {
        assert!(sudo_use(&credentials(1001, 0, 1001)).unwrap().evidence.contains("user 0"));
        assert!(sudo_use(&credentials(1001, 33, 1001)).is_some());
        // What sudo starts.
        assert_eq!(sudo_use(&credentials(1001, 0, 0)), None);
    }

    #[test]
    fn the_job_s_own_user_is_not() {
        assert_eq!(sudo_use(&credentials(1001, 1001, 1001)), None);
        assert_eq!(sudo_use(&credentials(0, 0, 0)), None);
    }
}
