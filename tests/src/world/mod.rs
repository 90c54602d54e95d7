//! A world of one test: built in namespaces, cgroups and a directory of its own, and gone without a trace with its
//! handle, also when the test panics. Several live side by side.

mod builder;
mod cleanup;
mod command;
mod engine;
mod monitor;
mod names;
pub mod network;
mod prerequisites;
mod runner;

use crate::attacker::Attacker;
use crate::binaries;
use crate::cgroup::{self, Cgroup};
use crate::namespace::{MountNamespace, NetworkNamespace};
use crate::patience::wait_until;
use crate::server::dns::NameServer;
use crate::server::git;
use crate::server::github::GitHub;
use crate::server::package_index;
use crate::server::web::Web;
use crate::sync::{Stop, lock};
use anyhow::{Context, Result, bail};
pub use builder::Builder;
pub use command::{HostCommand, Process};
pub use engine::{CONTAINER_TOOLS, Containerd, Docker, DockerOptions, IMAGE, Podman};
pub use monitor::{Monitor, MonitorOptions, MonitorPlace};
use nix::fcntl::Flock;
use portcullis_common::event::Event;
pub use runner::{Runner, RunningJob};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// The users that runners of a world run as; nothing on a Debian system has these ids (Debian policy, 9.2.2: adduser
/// gives 1000-59999 from the bottom).
pub const RUNNER_USERS: RangeInclusive<u32> = 12_001..=12_099;

/// Where programs are looked for; a runner as a service has the same.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A test world.
#[derive(Debug)]
pub struct World {
    id: String,
    directory: PathBuf,
    runners: Vec<Runner>,
    host: Arc<RunnerHost>,
    internet: NetworkNamespace,
    attacker: Attacker,
    dns: NameServer,
    web: Web,
    github: GitHub,
    cgroup: Cgroup,
    units: Mutex<Vec<Cgroup>>,
    stop: Option<Stop>,
    threads: Vec<JoinHandle<()>>,
    is_kept: bool,
    /// Its users are its own for as long as it lives.
    _users: Flock<File>,
}

/// The machine that the runners are on.
#[derive(Debug)]
pub(crate) struct RunnerHost {
    directory: PathBuf,
    network: NetworkNamespace,
    mount: MountNamespace,
    cgroup: Cgroup,
    /// Supplementary groups of runners.
    groups: Vec<u32>,
}

impl World {
    /// A world with one runner, unless told otherwise.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The world's own name, which its directory and its cgroup have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The world's directory, which everybody on the runner host can read. It is the same path for the test, for the
    /// monitor and for jobs. (`/tmp` is not: the runner host has its own.)
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The runners, from 0.
    ///
    /// # Panics
    /// When there is none with this number.
    pub fn runner(&self, number: usize) -> &Runner {
        &self.runners[number]
    }

    /// All runners.
    pub fn runners(&self) -> &[Runner] {
        &self.runners
    }

    /// The attacker's host.
    pub fn attacker(&self) -> &Attacker {
        &self.attacker
    }

    /// The internet's name server.
    pub fn dns(&self) -> &NameServer {
        &self.dns
    }

    /// The internet's web servers.
    pub fn web(&self) -> &Web {
        &self.web
    }

    /// GitHub, as the runners see it.
    pub fn github(&self) -> &GitHub {
        &self.github
    }

    /// The network namespace of the runner host.
    pub fn runner_network(&self) -> &NetworkNamespace {
        &self.host.network
    }

    /// The network namespace of the internet's router and servers.
    pub fn internet(&self) -> &NetworkNamespace {
        &self.internet
    }

    /// Gives the internet an address, on which its web servers answer, and sockets can be bound. Addresses in
    /// `198.51.100.0/24` and `2001:db8:1::/64` have web servers without it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        network::add_address(&self.internet, address)
    }

    /// The certificate of the world's authority, a PEM file that jobs get by `SSL_CERT_FILE` and the like.
    pub fn authority_file(&self) -> PathBuf {
        self.directory.join("authority.pem")
    }

    /// A program to be started on the runner host as root, in the world's own cgroup.
    pub fn command(&self, program: impl AsRef<OsStr>) -> HostCommand {
        self.host.command(program)
    }

    /// A program to be started on the attacker's host as root.
    pub fn attacker_command(&self, program: impl AsRef<OsStr>) -> HostCommand {
        HostCommand::new(program)
            .network(self.attacker.namespace().path())
            .cgroup(&self.host.cgroup)
            .env("PATH", PATH)
    }

    /// A program to be started on the internet's host, where its servers are, as root.
    pub fn internet_command(&self, program: impl AsRef<OsStr>) -> HostCommand {
        HostCommand::new(program)
            .network(self.internet.path())
            .cgroup(&self.host.cgroup)
            .env("PATH", PATH)
    }

    /// As [`Self::internet_command`], with the files and the name server of the runner host.
    pub fn internet_command_with_names(&self, program: impl AsRef<OsStr>) -> HostCommand {
        self.host.command(program).network(self.internet.path())
    }

    /// The world's part of the cgroup tree.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Makes the cgroup of a systemd service of this machine, `system.slice/<unit>` at the root of the cgroup tree, for
    /// programs that are infrastructure and not a job's. The unit's name is made unique: it holds `name` and the
    /// world's id. Returns the name and the cgroup.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create_unit(&self, name: &str) -> Result<(String, Cgroup)> {
        let unit = format!("{name}-{}.service", self.id);
        let unit_cgroup = Cgroup::create(cgroup::mount_point()?.join("system.slice").join(&unit))?;
        lock(&self.units).push(unit_cgroup.clone());
        Ok((unit, unit_cgroup))
    }

    /// The root directory of the product on this host: the monitor's `--root`.
    pub fn root(&self) -> PathBuf {
        self.host.root()
    }

    /// Where policies lie.
    pub fn policies(&self) -> PathBuf {
        self.root().join("etc/portcullis/policies")
    }

    /// The monitor's socket.
    pub fn socket(&self) -> PathBuf {
        self.host.socket()
    }

    /// Writes a policy file, in one step as an operator's tool would.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_policy(&self, name: &str, document: &str) -> Result<()> {
        write_in_one_step(&self.policies().join(format!("{name}.yaml")), document)
    }

    /// Writes `monitor.toml`.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_configuration(&self, text: &str) -> Result<()> {
        write_in_one_step(&self.root().join("etc/portcullis/monitor.toml"), text)
    }

    /// Writes the two hook scripts, puts the programs that they start in place, and names the scripts in the `.env` of
    /// every runner. Listeners that run already are started anew, as an operator would.
    ///
    /// # Errors
    /// When the programs are not built or files can't be written.
    pub fn install_hooks(&self) -> Result<()> {
        let started = self.write_hook("pre-job")?;
        let completed = self.write_hook("post-job")?;
        for runner in &self.runners {
            runner.set_hooks(Some(&started), Some(&completed))?;
        }
        Ok(())
    }

    /// Starts `monitor serve` and waits for its socket.
    ///
    /// # Errors
    /// When it is not built, ends, or does not come; the error holds what it wrote.
    pub fn monitor(&self, options: MonitorOptions) -> Result<Monitor> {
        Monitor::start(Arc::clone(&self.host), options)
    }

    /// Starts a Docker engine on the runner host, with the image [`IMAGE`].
    ///
    /// # Errors
    /// When the world was built without [`Builder::engine`], or the engine does not come; the error holds what it wrote.
    pub fn docker(&self, options: &DockerOptions) -> Result<Docker> {
        Docker::start(self, options)
    }

    /// Prepares podman on the runner host, with the image [`IMAGE`]; it has no daemon.
    ///
    /// # Errors
    /// When the image can't be made.
    pub fn podman(&self) -> Result<Podman> {
        Podman::prepare(self)
    }

    /// Prepares podman for the user of a runner, as `rootless-podman`, with the image [`IMAGE`].
    ///
    /// # Errors
    /// When the image can't be made.
    pub fn rootless_podman(&self, runner: usize) -> Result<Podman> {
        Podman::prepare_rootless(self, self.runner(runner))
    }

    /// Starts a containerd that belongs to no Docker engine; its containers have the files of [`IMAGE`].
    ///
    /// # Errors
    /// When the world was built without [`Builder::engine`], or it does not come.
    pub fn containerd(&self) -> Result<Containerd> {
        Containerd::start(self)
    }

    /// A program of the product, put into `<root>/opt/portcullis/bin`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn install_program(&self, name: &str) -> Result<PathBuf> {
        self.host.install_program(name)
    }

    /// The ids of the jobs that the monitor has spooled events of, in the order of their names.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn job_ids(&self) -> Result<Vec<String>> {
        let spool = self.root().join("var/lib/portcullis/spool");
        let mut ids: Vec<String> = match fs::read_dir(&spool) {
            Ok(entries) => entries
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => bail!("can't read {}: {error}", spool.display()),
        };
        ids.sort();
        Ok(ids)
    }

    /// The events of a job, from the spool. A last line without an end is being written and left out.
    ///
    /// # Errors
    /// When there are none, or a line is no event.
    pub fn events(&self, job_id: &str) -> Result<Vec<Event>> {
        let path = self.root().join("var/lib/portcullis/spool").join(job_id).join("events.ndjson");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("can't read the events {}", path.display()))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| {
                serde_json::from_str(line).with_context(|| format!("this is no event: {line}"))
            })
            .collect()
    }

    /// Publishes the files of a directory as the Git repository `https://git.test/<name>.git`.
    ///
    /// # Errors
    /// When git fails.
    pub fn publish_repository(&self, name: &str, source: &Path) -> Result<()> {
        git::publish(&self.directory.join("git"), name, source)
    }

    /// Publishes a source distribution on the package index.
    ///
    /// # Errors
    /// When it can't be packed.
    pub fn publish_package(&self, name: &str, version: &str, source: &Path) -> Result<()> {
        package_index::pack_source(&self.directory.join("packages"), name, version, source)
    }

    /// Leaves the runner host, its network and its files behind when the handle goes, to look around, and says how to
    /// enter. Servers end all the same. What is left is removed by the next world on this machine once the processes of
    /// this one are gone.
    ///
    /// # Errors
    /// When the process that holds the namespaces can't be started.
    pub fn keep(&mut self) -> Result<String> {
        let mut holder = self.command("sleep").arg("infinity").spawn(
            std::process::Stdio::null(),
            std::process::Stdio::null(),
            std::process::Stdio::null(),
        )?;
        let pid = holder.pid();
        wait_until("the holder has entered the world", || {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("sleep"))
        })?;
        anyhow::ensure!(holder.is_running(), "the process that holds the world has ended");
        cleanup::hold(&self.directory, pid)?;
        // The handle would end it.
        std::mem::forget(holder);
        self.is_kept = true;
        Ok(format!(
            "nsenter --target {pid} --net --mount    # the runner host; files: {}; `kill {pid}` ends it",
            self.directory.display()
        ))
    }

    fn write_hook(&self, program: &str) -> Result<PathBuf> {
        let binary = self.host.install_program(program)?;
        let path = self.root().join("opt/portcullis/hooks").join(format!("{program}.sh"));
        let script = format!(
            "#!/bin/bash\nexec {} --socket {}\n",
            binary.display(),
            self.socket().display()
        );
        write_in_one_step(&path, &script)?;
        Ok(path)
    }
}

impl RunnerHost {
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> HostCommand {
        let mut command = HostCommand::new(program)
            .network(self.network.path())
            .mount(self.mount.path())
            .cgroup(&self.cgroup)
            .env("HOME", "/root");
        for (name, value) in self.environment() {
            command = command.env(name, value);
        }
        command
    }

    /// What every process on the host has in its environment.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let authority = self.directory.join("authority.pem").display().to_string();
        let mut environment = vec![
            ("PATH", format!("{}:{PATH}", self.directory.join("bin").display())),
            ("LANG", "C.UTF-8".to_owned()),
            ("PIP_INDEX_URL", format!("https://{}/simple/", package_index::INDEX_HOST)),
            ("PIP_DISABLE_PIP_VERSION_CHECK", "1".to_owned()),
            ("PIP_CONFIG_FILE", "/dev/null".to_owned()),
        ];
        for name in
            ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "REQUESTS_CA_BUNDLE"]
        {
            environment.push((name, authority.clone()));
        }
        environment
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root().join("run/portcullis/monitor.sock")
    }

    pub(crate) fn install_program(&self, name: &str) -> Result<PathBuf> {
        let target = self.root().join("opt/portcullis/bin").join(name);
        install(&binaries::find(name)?, &target)?;
        Ok(target)
    }
}

/// Puts a program in place, by a hard link where that is possible because test builds are large.
pub(crate) fn install(program: &Path, target: &Path) -> Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let _ = fs::remove_file(target);
    if fs::hard_link(program, target).is_err() {
        fs::copy(program, target)
            .with_context(|| format!("can't copy {} to {}", program.display(), target.display()))?;
    }
    Ok(())
}

/// Writes a file beside its place and moves it there, so that nobody reads half of it.
fn write_in_one_step(path: &Path, text: &str) -> Result<()> {
    let parent = path.parent().context("the file has no directory")?;
    fs::create_dir_all(parent)?;
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(parent)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode)?;
    file.persist(path).with_context(|| format!("can't write {}", path.display()))?;
    Ok(())
}
