//! The orphan clean-up at the end of a job (Runner.Worker/JobExtension.cs, `FinalizeJob`).

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;

/// The variable by which processes of a job are known.
pub(super) const TRACKING_VARIABLE: &str = "RUNNER_TRACKING_ID";

/// The processes of the machine as `pid_name`, which is how the runner remembers them.
pub(super) fn snapshot() -> BTreeSet<String> {
    processes().into_iter().map(|(pid, name)| format!("{pid}_{name}")).collect()
}

/// Kills every process that was not there at the beginning and has the job's tracking id in its environment, as far as
/// that can be read; returns what it killed.
pub(super) fn clean_up(existing: &BTreeSet<String>, tracking_id: &str) -> Vec<String> {
    let wanted = format!("{TRACKING_VARIABLE}={tracking_id}");
    let own = Pid::this().as_raw();
    processes()
        .into_iter()
        .filter(|(pid, name)| *pid != own && !existing.contains(&format!("{pid}_{name}")))
        .filter(|(pid, _)| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|text| {
                text.split(|byte| *byte == 0).any(|pair| pair == wanted.as_bytes())
            })
        })
        .filter(|(pid, _)| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok())
        .map(|(pid, name)| format!("{pid} ({name})"))
        .collect()
}

fn processes() -> Vec<(i32, String)> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            Some((pid, name.trim_end().to_owned()))
        })
        .collect()
}
