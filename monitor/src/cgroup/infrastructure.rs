//! Groups that are not a job's: systemd units and the monitor itself.

use super::CgroupError;
use super::group::{Cgroup, CgroupIdentity};
use super::job::MONITOR_PREFIX;
use super::mount::Hierarchy;
use crate::caller::{ProcFs, ProcessEntry, ProcessTable};
use std::os::unix::fs::MetadataExt;

/// How deep slices are nested at most: `system.slice/system-getty.slice/…` is 2.
const SLICE_DEPTH: u32 = 4;

/// The slice of the machine's own services.
const SYSTEM_SLICE: &str = "system.slice";

/// The slices of the system manager as they are now, in which systemd units run: those of `system.slice` first. Only directories
/// of root are looked into, and none of user sessions: their users could make a group of any name.
#[derive(Debug)]
pub struct Slices(Vec<Slice>);

#[derive(Debug)]
struct Slice {
    group: Cgroup,
    /// The names of the groups in it.
    names: Vec<String>,
}

impl Slices {
    /// Lists them.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn list(hierarchy: &Hierarchy) -> Result<Self, CgroupError> {
        let root = hierarchy.root()?;
        let mut slices = Self(Vec::new());
        if let Ok(system) = root.child(SYSTEM_SLICE) {
            slices.add(system, SLICE_DEPTH);
        }
        slices.add(root, SLICE_DEPTH);
        Ok(slices)
    }

    /// The group of a running systemd unit, such as `ssh.service`. `None` when it is not running, is a template, or is no unit
    /// name.
    pub fn find(&self, unit: &str) -> Option<CgroupIdentity> {
        if !is_unit_name(unit) {
            return None;
        }
        let named = self.0.iter().filter(|slice| slice.names.iter().any(|name| name == unit));
        let group =
            named.filter_map(|slice| slice.group.child(unit).ok()).find(is_owned_by_root)?;
        Some(group.identity().clone())
    }

    /// Adds a slice and those below it.
    fn add(&mut self, group: Cgroup, depth: u32) {
        let Ok(names) = group.child_names() else { return };
        let is_root = group.identity().level == 0;
        let is_slice = |name: &&String| {
            name.strip_suffix(".slice").is_some_and(|name| !name.starts_with("user"))
                // Listed before the root.
                && !(is_root && *name == SYSTEM_SLICE)
        };
        let below: Vec<Cgroup> = if depth == 0 {
            Vec::new()
        } else {
            let slices = names.iter().filter(is_slice);
            slices.filter_map(|name| group.child(name).ok()).filter(is_owned_by_root).collect()
        };
        self.0.push(Slice { group, names });
        for slice in below {
            self.add(slice, depth - 1);
        }
    }
}

/// Whether only root can make groups in it.
fn is_owned_by_root(group: &Cgroup) -> bool {
    std::fs::metadata(group.directory()).is_ok_and(|metadata| metadata.uid() == 0)
}

/// Whether it is the name of a unit that has processes; of a template (`getty@.service`) only instances run.
pub(super) fn is_unit_name(unit: &str) -> bool {
    let Some((name, kind)) = unit.rsplit_once('.') else { return false };
    matches!(kind, "service" | "scope" | "slice" | "socket" | "mount" | "swap")
        && !name.is_empty()
        && !name.ends_with('@')
        && unit.len() <= 255
        && unit.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte))
}

/// Where the monitor itself lives.
#[derive(Clone, Debug)]
pub struct MonitorGroup {
    /// The group.
    pub identity: CgroupIdentity,
    /// Whether it was made for the monitor, because the monitor shared a group with a runner or lived in the root.
    pub created: bool,
}

/// Makes sure that the monitor lives in a group that holds no runner, so that rules can tell them apart: stays where it
/// is, or moves itself into `portcullis-monitor-<pid>` below its present group.
///
/// # Errors
/// See [`CgroupError`].
pub fn enter_monitor_group(hierarchy: &Hierarchy) -> Result<MonitorGroup, CgroupError> {
    enter_group_of_own(hierarchy, std::process::id())
}

/// The same for any process.
pub(super) fn enter_group_of_own(
    hierarchy: &Hierarchy,
    own: u32,
) -> Result<MonitorGroup, CgroupError> {
    let current = hierarchy.group_of(own)?;
    let is_own = current
        .directory()
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(MONITOR_PREFIX));
    let shared =
        current.identity().level == 0 || holds_runner(&ProcFs, &current.processes_recursive()?);
    if is_own || !shared {
        return Ok(MonitorGroup { identity: current.identity().clone(), created: is_own });
    }
    let name = format!("{MONITOR_PREFIX}{own}");
    // A monitor with this pid that died before leaves an empty group of the name.
    let group = current.child(&name).or_else(|_| current.create_child(&name))?;
    if !group.add(own)? {
        return Err(CgroupError::Gone { pid: own });
    }
    Ok(MonitorGroup { identity: group.identity().clone(), created: true })
}

/// Whether one of the processes is part of a runner.
pub(super) fn holds_runner(table: &impl ProcessTable, pids: &[u32]) -> bool {
    pids.iter()
        .filter_map(|pid| table.process(*pid))
        .any(|entry: ProcessEntry| entry.is_named_listener() || entry.is_named_worker())
}
