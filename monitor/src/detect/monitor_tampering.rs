//! Monitor-Tampering: the monitor was stopped, killed, or its state was changed by somebody else.

use super::{Finding, name};
use portcullis_common::event::{DetectionType, Process, RecordedDetection};
use std::path::PathBuf;

/// What was done to the monitor.
#[derive(Clone, Debug, PartialEq)]
pub enum Tampering {
    /// It was sent a signal that stops or ends it.
    Signal {
        /// The signal's name: `SIGKILL`.
        signal: String,
    },
    /// A file of its configuration, its state or its program was changed or removed.
    File {
        /// The file.
        path: PathBuf,
    },
    /// Something was mounted over a directory of it.
    Mount {
        /// The directory.
        path: PathBuf,
    },
    /// It did not run for a while although nothing had asked it to stop: it was stopped or frozen.
    Suspended {
        /// For how long, in seconds.
        seconds: u64,
    },
}

/// An act on the monitor.
#[derive(Clone, Debug, PartialEq)]
pub struct TamperingFact {
    /// What was done.
    pub tampering: Tampering,
    /// By whom, when that is known.
    pub process: Option<Process>,
    /// Whether the process is of a job; what an operator does on the host is the operator's business. Unknown counts as
    /// the job's: in doubt it is told.
    pub is_of_job: Option<bool>,
}

/// Judges an act.
pub fn monitor_tampering(fact: &TamperingFact) -> Option<Finding> {
    if fact.is_of_job == Some(false) {
        return None;
    }
    let who = fact.process.as_ref().map_or_else(|| "somebody".to_owned(), name);
    let evidence = match &fact.tampering {
        Tampering::Signal { signal } => format!("{who} sent {signal} to the monitor"),
        Tampering::File { path } => {
            format!("{who} changed {}, which is the monitor's", path.display())
        }
        Tampering::Mount { path } => {
            format!("{who} mounted something over {}, which is the monitor's", path.display())
        }
        Tampering::Suspended { seconds } => format!(
            "the monitor did not run for {seconds} s, so it was stopped or frozen; rules stayed in force, and what happened meanwhile was seen late or not at all"
        ),
    };
    let detection = DetectionType::Recorded(RecordedDetection::MonitorTampering);
    Some(Finding::new(detection, &evidence, fact.process.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::testing::process;

    fn fact(tampering: Tampering, is_of_job: Option<bool>) -> TamperingFact {
        TamperingFact { tampering, process: Some(process(7, "/usr/bin/kill")), is_of_job }
    }

    #[test]
    fn a_job_s_act_is_found_and_names_it() {
        for is_of_job in [Some(true), None] {
            let killed = fact(Tampering::Signal { signal: "SIGSTOP".to_owned() }, is_of_job);
            let found = monitor_tampering(&killed).unwrap();
            assert_eq!(found.evidence, "/usr/bin/kill (pid 7) sent SIGSTOP to the monitor");
        }
        let mounted = fact(Tampering::Mount { path: "/etc/portcullis".into() }, Some(true));
        assert!(monitor_tampering(&mounted).unwrap().evidence.contains("/etc/portcullis"));
    }

    #[test]
    fn what_the_operator_does_is_not() {
        let edited =
            fact(Tampering::File { path: "/etc/portcullis/monitor.toml".into() }, Some(false));
        assert_eq!(monitor_tampering(&edited), None);
    }
}
