//! Container engines on the runner host: a Docker engine with its containerd, a containerd alone, and podman, by root and by
//! a runner's user, each with files of its own.
//!
//! They live in the host's namespaces, as on a machine. `/run` of the runner host is `<root>/run`, so that the engine's
//! socket and the plugin's are where the monitor below `--root` looks for them. Containers lie in cgroups of the world
//! and so end with it.

use super::command::{HostCommand, Process};
use super::{Runner, World, write_in_one_step};
use crate::namespace::run_tool;
use crate::patience::wait_for;
use crate::sync::lock;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::{SFlag, mknod};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

/// The group that may use the engine's socket. Nothing on a Debian system has this number (Debian policy, 9.2.2).
pub(super) const DOCKER_GROUP: u32 = 12_100;

/// The image that every engine of a world has: busybox, and curl because busybox resolves names in a way of its own.
pub const IMAGE: &str = "box";

/// The programs of [`IMAGE`].
pub const CONTAINER_TOOLS: &[&str] = &[
    "cat", "chmod", "chroot", "cp", "echo", "grep", "id", "ip", "ls", "mkdir", "mknod", "mount",
    "nc", "nslookup", "ping", "ping6", "seq", "sh", "sleep", "tail", "test", "tftp", "timeout",
    "touch", "true", "wget",
];

/// The networks of `docker0`; others are the engine's own choice.
const FIXED_V6: &str = "fd77:d0c::/64";

/// The subordinate ids of the runners' users: what nothing else on a Debian system has, a range for each (subuid(5)).
const FIRST_SUBORDINATE_ID: u32 = 1_879_048_192;
const SUBORDINATE_IDS: u32 = 65_536;

/// How a Docker engine is started.
#[derive(Clone, Debug, Default)]
pub struct DockerOptions {
    /// The names of its authorization plugins.
    pub authorization_plugins: Vec<String>,
    /// Further arguments of `dockerd`.
    pub arguments: Vec<String>,
    /// Listens where nobody looks for an engine; its clients have `DOCKER_HOST`, see [`Docker::host_variable`].
    pub is_hidden: bool,
}

/// A running Docker engine; it and its containers end with the handle.
#[derive(Debug)]
pub struct Docker {
    process: Process,
    log: Arc<Mutex<String>>,
    client: HostCommand,
    socket: PathBuf,
    host: String,
}

impl Docker {
    pub(super) fn start(world: &World, options: &DockerOptions) -> Result<Self> {
        let directory = &world.host.directory;
        let image = directory.join("image");
        ensure!(image.exists(), "the world was built without `engine()`");
        let configuration = directory.join("daemon.json");
        let plugins = serde_json::json!({ "authorization-plugins": options.authorization_plugins });
        write_in_one_step(&configuration, &plugins.to_string())?;
        let name = if options.is_hidden { "engine/docker.sock" } else { "docker.sock" };
        let socket = world.root().join("run").join(name);
        fs::create_dir_all(world.root().join("run/engine"))?;
        let host = format!("unix:///run/{name}");
        let service = world.cgroup.child("docker.service")?;
        let mut process = world
            .command("/usr/sbin/dockerd")
            .cgroup(&service)
            .arg("--data-root")
            .arg(directory.join("docker"))
            .arg("--config-file")
            .arg(&configuration)
            .args(["--host", &host, "--pidfile", "/run/docker.pid"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--cgroup-parent", &format!("/{}/docker", world.id)])
            .args(["--ipv6", "--fixed-cidr-v6", FIXED_V6, "--ip6tables", "--experimental"])
            .args(&options.arguments)
            .spawn(Stdio::null(), Stdio::null(), Stdio::piped())?;
        let log = Arc::<Mutex<String>>::default();
        if let Some(errors) = process.child().stderr.take() {
            read_into(errors, Arc::clone(&log))?;
        }
        let client = world.command("docker").env("DOCKER_HOST", &host);
        let mut docker = Self { process, log, client, socket, host };
        docker.wait_until_ready()?;
        let pack =
            format!("tar -C '{}' -c . | docker import - {IMAGE} >/dev/null", image.display());
        let sh = world.command("sh").env("DOCKER_HOST", &docker.host);
        sh.args(["-c", &pack]).text().context("the image can't be made")?;
        Ok(docker)
    }

    /// The engine's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What `DOCKER_HOST` must be for its clients.
    pub fn host_variable(&self) -> &str {
        &self.host
    }

    /// The engine's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What the engine has written so far.
    pub fn log(&self) -> String {
        lock(&self.log).clone()
    }

    /// The docker command as root, outside of any job.
    pub fn command(&self) -> HostCommand {
        self.client.clone()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let found = wait_for("the Docker engine to answer", || {
            if !self.process.is_running() {
                return Some(false);
            }
            let version = self.client.clone().args(["version", "--format", "{{.Server.Version}}"]);
            version.output().is_ok_and(|output| output.status.success()).then_some(true)
        });
        match found {
            Ok(true) => Ok(()),
            Ok(false) => bail!("the Docker engine ended at its start:\n{}", self.log()),
            Err(error) => Err(error.context(self.log())),
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It asks its containerd to end; containers and what else is left end with the world's cgroup.
        let _ = self.process.signal(nix::sys::signal::Signal::SIGTERM);
        let _ =
            crate::patience::wait_until("the Docker engine to end", || !self.process.is_running());
    }
}

/// Podman with storage of its own.
#[derive(Clone, Debug)]
pub struct Podman {
    client: HostCommand,
}

/// Where podman keeps what.
struct PodmanFiles {
    /// The command's name in the path of jobs.
    name: &'static str,
    storage: PathBuf,
    networks: PathBuf,
    /// What vanishes with the machine's next start.
    state: PathBuf,
}

impl Podman {
    /// Root's.
    pub(super) fn prepare(world: &World) -> Result<Self> {
        let files = PodmanFiles {
            name: "podman",
            storage: world.host.directory.join("podman"),
            networks: world.host.directory.join("cni"),
            state: PathBuf::from("/run/podman"),
        };
        Self::with(world, &files, world.command("sh"))
    }

    /// That of a runner's user, without any right of root's.
    pub(super) fn prepare_rootless(world: &World, runner: &Runner) -> Result<Self> {
        let home = runner.directory().join("home");
        let files = PodmanFiles {
            name: "rootless-podman",
            storage: home.join("podman"),
            networks: home.join("cni"),
            // It takes no path of more than 50 characters.
            state: PathBuf::from(format!("/tmp/podman-{}", runner.uid())),
        };
        Self::with(world, &files, world.command("sh").user(runner.uid()).env("HOME", &home))
    }

    /// `shell` makes the image.
    fn with(world: &World, files: &PodmanFiles, shell: HostCommand) -> Result<Self> {
        let directory = &world.host.directory;
        // A machine without CAP_SYS_RESOURCE refuses podman's default limits.
        let configuration = directory.join(files.name).with_extension("conf");
        let text = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n[engine]\ncgroup_manager = \
             \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n[network]\nnetwork_config_dir = \"{}\"\n",
            files.networks.display()
        );
        write_in_one_step(&configuration, &text)?;
        let script = directory.join("bin").join(files.name);
        let state = files.state.display();
        let text = format!(
            "#!/bin/sh\nexport CONTAINERS_CONF='{}' XDG_RUNTIME_DIR='{state}'\nmkdir -p '{state}' && exec /usr/bin/podman --root '{}' \
             --runroot '{state}' --tmpdir '{state}-tmp' --storage-driver vfs \"$@\"\n",
            configuration.display(),
            files.storage.display()
        );
        write_in_one_step(&script, &text)?;
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
        let pack = format!(
            "tar -C '{}' -c . | '{}' import - localhost/{IMAGE}",
            directory.join("image").display(),
            script.display()
        );
        shell.args(["-c", &pack]).text().context("podman's image can't be made")?;
        Ok(Self { client: world.command(&script) })
    }

    /// The podman command as root, outside of any job. In the path of jobs it is `podman`.
    pub fn command(&self) -> HostCommand {
        self.client.clone()
    }
}

/// A containerd that no Docker engine has started; it and its containers end with the world.
#[derive(Debug)]
pub struct Containerd {
    process: Process,
    address: PathBuf,
    image: PathBuf,
}

impl Containerd {
    pub(super) fn start(world: &World) -> Result<Self> {
        let directory = world.host.directory.join("containerd");
        let image = world.host.directory.join("image");
        ensure!(image.exists(), "the world was built without `engine()`");
        fs::create_dir_all(&directory)?;
        let address = PathBuf::from("/run/containerd/containerd.sock");
        let configuration = directory.join("config.toml");
        // Its plugin for Kubernetes wants networks of its own.
        let text = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
        write_in_one_step(&configuration, text)?;
        let service = world.cgroup.child("containerd.service")?;
        let process = world
            .command("/usr/bin/containerd")
            .cgroup(&service)
            .arg("--config")
            .arg(&configuration)
            .arg("--root")
            .arg(directory.join("root"))
            .args(["--state", "/run/containerd", "--address"])
            .arg(&address)
            .spawn(Stdio::null(), Stdio::null(), Stdio::null())?;
        let mut containerd = Self { process, address, image };
        let client = world.command("ctr").arg("--address").arg(&containerd.address);
        let found = wait_for("containerd to answer", || {
            if !containerd.process.is_running() {
                return Some(false);
            }
            let version = client.clone().arg("version").output();
            version.is_ok_and(|output| output.status.success()).then_some(true)
        })?;
        ensure!(found, "containerd ended at its start");
        Ok(containerd)
    }

    /// A shell's words that run `command` in a new container of [`IMAGE`]'s files, with `options` of `ctr run`.
    pub fn run(&self, world: &World, name: &str, options: &str, command: &str) -> String {
        format!(
            "ctr --address {} run --rm --rootfs --cgroup /{}/{name} {options} {} {}-{name} {command}",
            self.address.display(),
            world.id,
            self.image.display(),
            world.id,
        )
    }
}

/// What rootless engines need of the runner host: subordinate ids for the runners' users, and the device by which
/// slirp4netns makes an interface. Returns what is mounted where.
pub(super) fn for_rootless_engines(
    directory: &Path,
    users: &[u32],
) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut ranges = Vec::new();
    for index in 0..u32::try_from(users.len())? {
        let first = FIRST_SUBORDINATE_ID + SUBORDINATE_IDS * index;
        writeln!(ranges, "runner-{}:{first}:{SUBORDINATE_IDS}", index + 1)?;
    }
    let mut binds = Vec::new();
    for file in ["subuid", "subgid"] {
        let source = directory.join("etc").join(file);
        fs::write(&source, &ranges)?;
        let target = Path::new("/etc").join(file);
        // Without the file there is no `newuidmap` that would read it.
        if target.exists() {
            binds.push((source, target));
        }
    }
    let device = Path::new("/dev/net/tun");
    if let Ok(metadata) = fs::metadata(device) {
        let source = directory.join("tun");
        let everybody = nix::sys::stat::Mode::from_bits_truncate(0o666);
        mknod(&source, SFlag::S_IFCHR, everybody, metadata.rdev())?;
        fs::set_permissions(&source, PermissionsExt::from_mode(0o666))?;
        binds.push((source, device.to_owned()));
    }
    Ok(binds)
}

/// Makes the root directory of [`IMAGE`].
pub(super) fn lay_out(directory: &Path) -> Result<()> {
    let image = directory.join("image");
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "var/run"] {
        fs::create_dir_all(image.join(name))?;
    }
    fs::copy("/usr/bin/busybox", image.join("bin/busybox"))
        .context("can't copy busybox; install busybox-static")?;
    for tool in CONTAINER_TOOLS {
        symlink("busybox", image.join("bin").join(tool))?;
    }
    copy_program(&image, Path::new("/usr/bin/curl"))?;
    fs::write(image.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nbuild:x:1000:1000::/:/bin/sh\n")?;
    Ok(())
}

/// Copies a program with its libraries, each to the place that it has on this machine.
fn copy_program(image: &Path, program: &Path) -> Result<()> {
    let program_name = program.display().to_string();
    let listed = run_tool("ldd", &[&program_name], None)?;
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
    for file in libraries.chain([program]) {
        let target = image.join(file.strip_prefix("/").unwrap_or(file));
        fs::create_dir_all(target.parent().context("a file without a directory")?)?;
        fs::copy(file, &target).with_context(|| format!("can't copy {}", file.display()))?;
    }
    Ok(())
}

/// Removes the world's groups in the hierarchies of cgroup version 1, which engines make where they are mounted: that of
/// its name, and those of containers that are called after it. They have no processes any more.
pub(super) fn remove_version_1_groups(id: &str) {
    let of_containers = format!("{id}-");
    let is_of_world = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name == id || name.starts_with(&of_containers)
    };
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let groups = fs::read_dir(hierarchy.path()).into_iter().flatten().flatten();
        let mut directories: Vec<PathBuf> =
            groups.map(|entry| entry.path()).filter(is_of_world).collect();
        let mut next = 0;
        while let Some(directory) = directories.get(next).cloned() {
            next += 1;
            let children = fs::read_dir(directory).into_iter().flatten().flatten();
            directories.extend(children.map(|entry| entry.path()).filter(|path| path.is_dir()));
        }
        for directory in directories.iter().rev() {
            // There is none in most hierarchies.
            let _ = fs::remove_dir(directory);
        }
    }
}

fn read_into(stream: impl Read + Send + 'static, log: Arc<Mutex<String>>) -> Result<()> {
    std::thread::Builder::new().name("engine-log".to_owned()).spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            lock(&log).extend([line.as_str(), "\n"]);
        }
    })?;
    Ok(())
}
