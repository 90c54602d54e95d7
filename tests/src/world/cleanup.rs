//! Takes a world down, and takes down worlds whose tests were killed.

use super::{World, engine};
use crate::cgroup::{self, Cgroup};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where worlds lie, short because the path of a socket has 107 bytes at most. Not `/tmp`: the runner host has its own.
const PARENT: &str = "/var/tmp";

/// What the names of worlds begin with.
const PREFIX: &str = "portcullis-world-";

/// The file that names the process which holds a world that outlives its handle.
const HOLDER: &str = "holder";

/// Makes a directory that no other world has; its name tells whose it is: `<prefix><pid>-<start time>-<number>`.
pub(super) fn claim() -> Result<(String, PathBuf)> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let pid = std::process::id();
    let start = start_time(pid).context("can't read this process's start time")?;
    let id = format!("{PREFIX}{pid}-{start}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let directory = Path::new(PARENT).join(&id);
    fs::create_dir(&directory)
        .with_context(|| format!("can't make the world's directory {}", directory.display()))?;
    Ok((id, directory))
}

/// Removes worlds whose process is gone.
pub(super) fn remove_stale() -> Result<()> {
    let mut stale: Vec<String> = Vec::new();
    let places = [PathBuf::from(PARENT), cgroup::mount_point()?];
    for place in &places {
        for entry in fs::read_dir(place)?.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            if !stale.contains(&id) && is_stale(&id) {
                stale.push(id);
            }
        }
    }
    for id in stale {
        remove(&id)?;
    }
    Ok(())
}

/// Whether this is the name of a world whose process is gone.
fn is_stale(id: &str) -> bool {
    let Some(rest) = id.strip_prefix(PREFIX) else { return false };
    let numbers: Option<Vec<u64>> = rest.split('-').map(|number| number.parse().ok()).collect();
    let Some(&[pid, start, _]) = numbers.as_deref() else { return false };
    let is_alive =
        |pid: u64, start: u64| u32::try_from(pid).is_ok_and(|pid| start_time(pid) == Some(start));
    let holder = fs::read_to_string(Path::new(PARENT).join(id).join(HOLDER)).unwrap_or_default();
    let holder: Vec<u64> =
        holder.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let is_held = matches!(holder[..], [pid, start] if is_alive(pid, start));
    !is_alive(pid, start) && !is_held
}

/// Notes the process that holds a world which outlives its handle.
pub(super) fn hold(directory: &Path, pid: u32) -> Result<()> {
    let start = start_time(pid).context("the process that holds the world is gone")?;
    fs::write(directory.join(HOLDER), format!("{pid} {start}\n"))?;
    Ok(())
}

/// Ends every process of a world and removes its cgroups and files.
fn remove(id: &str) -> Result<()> {
    let directory = Path::new(PARENT).join(id);
    let mount_point = cgroup::mount_point()?;
    kill_strays(&directory);
    Cgroup::at(mount_point.join(id)).destroy()?;
    engine::remove_version_1_groups(id);
    let slice = mount_point.join("system.slice");
    for entry in fs::read_dir(&slice).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(&format!("-{id}.service")) {
            Cgroup::at(entry.path()).destroy()?;
        }
    }
    // Only when it is empty: it may be the machine's own.
    let _ = fs::remove_dir(&slice);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Kills the processes that left the world's cgroups: they are known by the world's mounts.
fn kill_strays(directory: &Path) {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let own_mount = format!("{name}/etc/resolv.conf ");
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        if mounts.contains(&own_mount) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Field 22 of `/proc/PID/stat`: with the pid it names one process for good.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Removes a world that is only half built.
#[derive(Debug)]
pub(super) struct Guard {
    id: String,
    cgroup: Cgroup,
    is_released: std::cell::Cell<bool>,
}

impl Guard {
    pub(super) fn new(id: &str, directory: &Path) -> Result<Self> {
        let cgroup = cgroup::mount_point().and_then(|mount| Cgroup::create(mount.join(id)));
        let cgroup = match cgroup {
            Ok(cgroup) => cgroup,
            Err(error) => {
                fs::remove_dir_all(directory)?;
                return Err(error);
            }
        };
        Ok(Self { id: id.to_owned(), cgroup, is_released: std::cell::Cell::new(false) })
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The world is complete and looks after itself.
    pub(super) fn release(self) {
        self.is_released.set(true);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.is_released.get() {
            report(remove(&self.id));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for runner in &self.runners {
            runner.stop();
        }
        // Server threads end first: git and its like are their children.
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if !self.is_kept {
            report(remove(&self.id));
        }
    }
}

/// A failed clean-up must not hide the failure of the test.
fn report(result: Result<()>) {
    if let Err(error) = result {
        let text = format!("the test world could not be removed: {error:#}\n");
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }
}
