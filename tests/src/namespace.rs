//! Network and mount namespaces that live as long as their handle: nothing is named below `/run/netns`, nothing is
//! mounted on this machine.

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// A network namespace, kept alive by an open file.
#[derive(Debug)]
pub struct NetworkNamespace {
    file: File,
}

impl NetworkNamespace {
    /// Makes an empty one, with its loopback device up.
    pub(crate) fn create() -> Result<Self> {
        let file = on_a_thread("new-netns", || {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("can't make a network namespace (needs root)")?;
            File::open("/proc/thread-self/ns/net").context("can't open the new network namespace")
        })?;
        let namespace = Self { file };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A path that names the namespace, for `ip`, `nsenter --net=` and the like, while this process lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }

    /// The namespace's inode number, as `/proc/PID/ns/net` shows it.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// Runs `work` on a thread inside the namespace. Sockets that it opens stay in the namespace, wherever they are
    /// used later.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_a_thread("in-netns", || {
            self.enter()?;
            Ok(work())
        })
    }

    /// Starts a thread that stays inside the namespace.
    pub(crate) fn spawn(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<thread::JoinHandle<()>> {
        let file = self.file.try_clone()?;
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if setns(file.as_fd(), CloneFlags::CLONE_NEWNET).is_ok() {
                    drop(file);
                    work();
                }
            })
            .context("can't start a thread")
    }

    /// Runs `ip` with `arguments` (separated by spaces) inside the namespace.
    ///
    /// # Errors
    /// With the text of `ip` when it fails.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        self.tool("ip", &arguments.split_whitespace().collect::<Vec<_>>(), None).map(drop)
    }

    /// Runs a program of this machine inside the namespace, as root, and returns what it wrote to its standard output.
    ///
    /// # Errors
    /// When it can't be started or fails; the error holds what it wrote to its standard error.
    pub fn tool(&self, program: &str, arguments: &[&str], input: Option<&str>) -> Result<String> {
        self.run(|| run_tool(program, arguments, input))?
    }

    /// Sets a value below `/proc/sys/net` of the namespace.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(name);
        self.run(|| std::fs::write(&path, value))?
            .with_context(|| format!("can't set {}", path.display()))
    }

    fn enter(&self) -> Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
            .context("can't enter a network namespace (needs root)")
    }
}

/// A mount namespace with files of its own in the place of some of the machine's.
#[derive(Debug)]
pub(crate) struct MountNamespace {
    file: File,
}

impl MountNamespace {
    /// A copy of this process's mount namespace in which every `(source, target)` is bind-mounted.
    pub(crate) fn with_binds(binds: &[(PathBuf, PathBuf)]) -> Result<Self> {
        let file = on_a_thread("new-mountns", || {
            unshare(CloneFlags::CLONE_NEWNS)
                .context("can't make a mount namespace (needs root)")?;
            let nothing = None::<&str>;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
                .context("can't make the mounts of a new mount namespace private")?;
            for (source, target) in binds {
                mount(Some(source), target, nothing, MsFlags::MS_BIND, nothing).with_context(
                    || format!("can't mount {} on {}", source.display(), target.display()),
                )?;
            }
            File::open("/proc/thread-self/ns/mnt").context("can't open the new mount namespace")
        })?;
        Ok(Self { file })
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
    }
}

/// Runs a program to its end and returns its standard output.
pub(crate) fn run_tool(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String> {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!("can't start `{program}`; scripts/test-packages.txt names its Debian package")
        })?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "`{program} {}` failed ({}): {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `work` on a thread that then ends, so that what it did to its namespaces touches nobody else.
fn on_a_thread<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, work)
            .context("can't start a thread")?
            .join()
            .map_err(|_| anyhow!("the thread `{name}` panicked"))?
    })
}
