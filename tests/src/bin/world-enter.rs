//! Enters namespaces and a cgroup of a test world, takes on a user, and becomes another program. The process id stays
//! the same, so that whoever started it holds the program itself.

use anyhow::{Context, Result};
use clap::Parser;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Enters a test world and becomes another program.
#[derive(Debug, Parser)]
struct Arguments {
    /// A network namespace.
    #[arg(long)]
    network: Option<PathBuf>,
    /// A mount namespace.
    #[arg(long)]
    mount: Option<PathBuf>,
    /// The directory of a cgroup (version 2).
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// A user id; its group id and first supplementary group have the same number.
    #[arg(long)]
    user: Option<u32>,
    /// Further supplementary groups of the user.
    #[arg(long)]
    group: Vec<u32>,
    /// The working directory.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(cgroup) = &arguments.cgroup {
        std::fs::write(cgroup.join("cgroup.procs"), "0")
            .with_context(|| format!("can't enter the cgroup {}", cgroup.display()))?;
    }
    let open = |path: &Option<PathBuf>| path.as_ref().map(File::open).transpose();
    // Both are opened first: in the other mount namespace the paths may mean something else.
    let network = open(&arguments.network).context("can't open the network namespace")?;
    let mount = open(&arguments.mount).context("can't open the mount namespace")?;
    if let Some(network) = network {
        setns(network.as_fd(), CloneFlags::CLONE_NEWNET)
            .context("can't enter the network namespace")?;
    }
    if let Some(mount) = mount {
        setns(mount.as_fd(), CloneFlags::CLONE_NEWNS).context("can't enter the mount namespace")?;
    }
    if let Some(user) = arguments.user {
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        let groups: Vec<Gid> =
            [gid].into_iter().chain(arguments.group.iter().copied().map(Gid::from_raw)).collect();
        setgroups(&groups)?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    if let Some(directory) = &arguments.directory {
        std::env::set_current_dir(directory)
            .with_context(|| format!("can't change to {}", directory.display()))?;
    }
    let program = arguments.command.first().context("no program is named")?;
    let error = Command::new(program).args(&arguments.command[1..]).exec();
    Err(error).with_context(|| format!("can't start {}", program.display()))
}
