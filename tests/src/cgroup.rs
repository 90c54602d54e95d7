//! Cgroups (version 2) of a world: one subtree, killed and removed as a whole.

use crate::patience::wait_until;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Where cgroup v2 is mounted, from `/proc/self/mountinfo` (man 5 `proc_pid_mountinfo`): the line whose file system
/// type is `cgroup2`.
///
/// # Errors
/// When it is mounted nowhere.
pub fn mount_point() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let found = text.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let target = left.split(' ').nth(4)?;
        right.starts_with("cgroup2 ").then(|| PathBuf::from(target.replace("\\040", " ")))
    });
    found.context(
        "cgroup v2 is not mounted on this machine: `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with \
         systemd.unified_cgroup_hierarchy=1",
    )
}

/// One cgroup below a world's own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path)
            .with_context(|| format!("can't make the cgroup {} (needs root)", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Makes a cgroup below this one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.0.join(name))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The processes in it and below it.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for directory in self.directories()? {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        Ok(found)
    }

    /// Kills everything in it and below it, waits until it is empty, and removes it.
    pub(crate) fn destroy(&self) -> Result<()> {
        if !self.0.exists() {
            return Ok(());
        }
        // A monitor under test may have frozen it, and a frozen process dies only when it is thawed on old kernels.
        for directory in self.directories()? {
            let _ = fs::write(directory.join("cgroup.freeze"), "0");
        }
        wait_until(&format!("{} has no processes and is removed", self.0.display()), || {
            let _ = fs::write(self.0.join("cgroup.kill"), "1");
            if let Ok(directories) = self.directories() {
                for directory in directories.iter().rev() {
                    let _ = fs::remove_dir(directory);
                }
            }
            !self.0.exists()
        })
    }

    /// This directory and all below it, parents first.
    fn directories(&self) -> Result<Vec<PathBuf>> {
        let mut found = vec![self.0.clone()];
        let mut next = 0;
        while let Some(directory) = found.get(next).cloned() {
            next += 1;
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if next > 1 && error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => bail!("can't read {}: {error}", directory.display()),
            };
            found.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        Ok(found)
    }
}
