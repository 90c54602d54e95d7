//! Fileless-Execution: a program that is no file of any file system (`memfd_create`), or whose file was removed before it
//! ran, so that nobody can look at it afterwards.

use super::{Finding, name};
use portcullis_common::event::{DetectionType, Process, RecordedDetection};

/// What an executed program is.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// The process after the exec.
    pub process: Process,
    /// Hard links of the executable: none when no name leads to it.
    pub links: u64,
    /// The file system's type lies in memory and has no names of its own (`memfd`, an unnamed file of a tmpfs).
    pub is_memfd: bool,
}

/// Where `runc` and `crun` keep their own sealed copy: they execute themselves from a memfd by design (CVE-2019-5736).
const SELF_CLONING_RUNTIMES: &[&str] = &["runc_cloned:", "crun_cloned:", "lxc-", "libcrun"];

/// Judges an execution. A file that is removed *while* it runs (a package that replaces itself) had a link when it was
/// executed.
pub fn fileless_execution(execution: &Execution) -> Option<Finding> {
    let exe = execution.process.exe.as_deref().unwrap_or_default();
    let is_runtime = SELF_CLONING_RUNTIMES
        .iter()
        .any(|name| exe.strip_prefix("/memfd:").is_some_and(|memfd| memfd.starts_with(name)));
    // Only the root of a container engine makes these; an unprivileged job that uses the name gains nothing but silence.
    if is_runtime && execution.process.uid == Some(0) {
        return None;
    }
    let what = if execution.is_memfd {
        "from memory (memfd)"
    } else if execution.links == 0 {
        "whose file had been removed"
    } else {
        return None;
    };
    let evidence = format!(
        "{} executed a program {what}: {:?}",
        name(&execution.process),
        execution.process.argv
    );
    let detection = DetectionType::Recorded(RecordedDetection::FilelessExecution);
    Some(Finding::new(detection, &evidence, Some(execution.process.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::testing::process;

    fn execution(exe: &str, links: u64, is_memfd: bool, uid: u32) -> Execution {
        let process = Process { uid: Some(uid), ..process(7, exe) };
        Execution { process, links, is_memfd }
    }

    #[test]
    fn what_has_no_file_is_found() {
        let memfd = fileless_execution(&execution("/memfd:x (deleted)", 0, true, 1001)).unwrap();
        assert!(memfd.evidence.contains("memfd"), "{}", memfd.evidence);
        let removed = fileless_execution(&execution("/tmp/x (deleted)", 0, false, 1001)).unwrap();
        assert!(removed.evidence.contains("removed"), "{}", removed.evidence);
        // The name alone is no excuse.
        let forged = execution("/memfd:runc_cloned:/proc/self/exe (deleted)", 0, true, 1001);
        assert!(fileless_execution(&forged).is_some());
    }

    #[test]
    fn files_and_container_runtimes_are_not() {
        assert_eq!(fileless_execution(&execution("/usr/bin/gcc", 1, false, 1001)), None);
        let runc = execution("/memfd:runc_cloned:/proc/self/exe (deleted)", 0, true, 0);
        assert_eq!(fileless_execution(&runc), None);
    }
}
