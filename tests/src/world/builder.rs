//! Builds a world.

use super::prerequisites::Prerequisite;
use super::{
    RUNNER_USERS, Runner, RunnerHost, World, cleanup, engine, names, network, prerequisites,
};
use crate::attacker::Attacker;
use crate::binaries;
use crate::namespace::{MountNamespace, NetworkNamespace};
use crate::patience::wait_for;
use crate::server::certificates::Authority;
use crate::server::dns::NameServer;
use crate::server::github::GitHub;
use crate::server::web::Web;
use crate::server::{git, package_index};
use crate::sync::Stop;
use crate::zlib;
use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;

/// Makes the text of an accounts file: its name, and the line of the runner with this user and number.
type Accounts<'a> = dyn Fn(&str, &dyn Fn(u32, usize) -> String) -> Result<String> + 'a;

/// How many users are kept for one world.
const USERS_OF_A_WORLD: usize = 4;

/// What a world shall have.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a question of its own, answered by a method"
)]
pub struct Builder {
    runners: u32,
    is_same_user: bool,
    has_packages: bool,
    has_repository: bool,
    has_engine: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            runners: 1,
            is_same_user: false,
            has_packages: false,
            has_repository: false,
            has_engine: false,
        }
    }
}

impl Builder {
    /// How many runners the host has; one otherwise.
    #[must_use]
    pub fn runners(mut self, number: u32) -> Self {
        self.runners = number;
        self
    }

    /// All runners run as the same user; each as its own otherwise.
    #[must_use]
    pub fn same_user(mut self) -> Self {
        self.is_same_user = true;
        self
    }

    /// The package index has real packages and `exfil-helper`, whose installation sends the environment away.
    #[must_use]
    pub fn packages(mut self) -> Self {
        self.has_packages = true;
        self
    }

    /// The Git server has `zlib.git`: a real C library with its tests.
    #[must_use]
    pub fn repository(mut self) -> Self {
        self.has_repository = true;
        self
    }

    /// The runner host has a `/run` of its own and a group `docker` that runners are in, so that container engines can be
    /// started on it ([`World::docker`], [`World::podman`]).
    #[must_use]
    pub fn engine(mut self) -> Self {
        self.has_engine = true;
        self
    }

    /// Everything that the main job (`tests/jobs/main.yml`) needs.
    #[must_use]
    pub fn main_job(self) -> Self {
        self.packages().repository()
    }

    /// Builds the world and starts its servers.
    ///
    /// # Errors
    /// When something is missing on this machine; the error says what and how to get it.
    pub fn build(self) -> Result<World> {
        let mut needed = vec![Prerequisite::IP, Prerequisite::NFT, Prerequisite::BASH];
        if self.has_packages {
            needed.extend([Prerequisite::PYTHON, Prerequisite::PIP, Prerequisite::VENV]);
        }
        if self.has_repository {
            needed.extend([Prerequisite::GIT, Prerequisite::CC, Prerequisite::MAKE]);
        }
        if self.has_engine {
            needed.extend([
                Prerequisite::DOCKER,
                Prerequisite::PODMAN,
                Prerequisite::BUSYBOX,
                Prerequisite::IPTABLES,
            ]);
        }
        prerequisites::check(&needed)?;
        cleanup::remove_stale()?;
        let (id, directory) = cleanup::claim()?;
        // From here on a failure removes what is there: the guard becomes the world.
        let guard = cleanup::Guard::new(&id, &directory)?;
        let world = self.assemble(&id, &directory, &guard)?;
        guard.release();
        Ok(world)
    }

    fn assemble(&self, id: &str, directory: &Path, guard: &cleanup::Guard) -> Result<World> {
        let stop = Stop::new()?;
        let mut threads = Vec::new();
        let authority = Arc::new(Authority::new()?);
        let (users, lock) = self.users()?;
        let binds = self.lay_out(directory, &authority, &users)?;

        let runner_network = NetworkNamespace::create()?;
        let internet = NetworkNamespace::create()?;
        let attacker_network = NetworkNamespace::create()?;
        network::connect(&runner_network, &internet, &attacker_network)?;
        let (attacker, thread) = Attacker::new(attacker_network, &stop.stopped())?;
        threads.push(thread);
        network::connect_attacker(attacker.namespace())?;
        threads.extend(attacker.serve(&authority, &stop.stopped())?);

        let dns = NameServer::new();
        names::fill(&dns)?;
        let dns_addresses = [IpAddr::V4(network::DNS_V4), IpAddr::V6(network::DNS_V6)];
        threads.extend(dns.serve(&internet, &dns_addresses, &stop.stopped())?);
        let web = Web::new(Arc::clone(&authority));
        threads.extend(web.serve(&internet, &stop.stopped())?);
        let github = GitHub::serve(&web, stop.stopped());
        self.serve_inputs(directory, &web)?;

        let host = Arc::new(RunnerHost {
            directory: directory.to_owned(),
            network: runner_network,
            mount: MountNamespace::with_binds(&binds)?,
            cgroup: guard.cgroup().child("host")?,
            groups: if self.has_engine { vec![engine::DOCKER_GROUP] } else { Vec::new() },
        });
        let runners = users
            .iter()
            .enumerate()
            .map(|(index, uid)| {
                let name = format!("runner-{}", index + 1);
                Runner::install(Arc::clone(&host), guard.cgroup(), &name, *uid)
            })
            .collect::<Result<Vec<_>>>()?;
        let world = World {
            id: id.to_owned(),
            directory: directory.to_owned(),
            runners,
            host,
            internet,
            attacker,
            dns,
            web,
            github,
            cgroup: guard.cgroup().clone(),
            units: Mutex::default(),
            stop: Some(stop),
            threads,
            is_kept: false,
            _users: lock,
        };
        self.publish_inputs(&world)?;
        Ok(world)
    }

    /// The users of the runners, and what keeps other worlds of this machine from having the same: a monitor tells jobs of
    /// the same user apart by less.
    fn users(&self) -> Result<(Vec<u32>, Flock<File>)> {
        let directory = Path::new("/var/tmp/portcullis-users");
        fs::create_dir_all(directory)?;
        wait_for("users that no other world has", || {
            RUNNER_USERS.step_by(USERS_OF_A_WORLD).find_map(|first| {
                let file = File::create(directory.join(first.to_string())).ok()?;
                let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
                let last = first + self.runners;
                let users = (first..last).map(|uid| if self.is_same_user { first } else { uid });
                Some((users.collect(), lock))
            })
        })
    }

    /// Makes the world's files; returns what is mounted where on the runner host.
    fn lay_out(
        &self,
        directory: &Path,
        authority: &Authority,
        users: &[u32],
    ) -> Result<Vec<(PathBuf, PathBuf)>> {
        for name in
            ["etc", "git", "packages", "root/etc/portcullis/policies", "root/run", "runners"]
        {
            fs::create_dir_all(directory.join(name))?;
        }
        fs::write(directory.join("authority.pem"), authority.pem())?;
        let tmp = directory.join("tmp");
        fs::create_dir(&tmp)?;
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777))?;
        install_sudo(directory)?;

        let etc = directory.join("etc");
        let accounts = |file: &str, line: &dyn Fn(u32, usize) -> String| -> Result<String> {
            let mut text = fs::read_to_string(Path::new("/etc").join(file))?;
            let mut added = Vec::new();
            for (index, uid) in users.iter().enumerate() {
                if !added.contains(uid) {
                    added.push(*uid);
                    text.push_str(&line(*uid, index + 1));
                }
            }
            Ok(text)
        };
        let home = |number: usize| directory.join(format!("runners/runner-{number}/home"));
        let files = [
            (
                "resolv.conf",
                format!("nameserver {}\nnameserver {}\n", network::DNS_V4, network::DNS_V6),
            ),
            (
                "hosts",
                "127.0.0.1 localhost\n::1 localhost ip6-localhost\n192.0.2.10 runner-host\n"
                    .to_owned(),
            ),
            (
                "passwd",
                accounts("passwd", &|uid, number| {
                    format!("runner-{number}:x:{uid}:{uid}::{}:/bin/bash\n", home(number).display())
                })?,
            ),
            ("group", self.groups(&accounts, users)?),
            ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
        ];
        let mut binds = vec![(tmp, PathBuf::from("/tmp"))];
        for (name, text) in files {
            let source = etc.join(name);
            fs::write(&source, text)
                .with_context(|| format!("can't write {}", source.display()))?;
            // A link (as systemd-resolved makes of resolv.conf) would lead the mount to a file that may not exist.
            let target = Path::new("/etc").join(name);
            let target = fs::canonicalize(&target)
                .with_context(|| format!("this machine has no {}", target.display()))?;
            binds.push((source, target));
        }
        if self.has_engine {
            engine::lay_out(directory)?;
            binds.push((directory.join("root/run"), PathBuf::from("/run")));
            binds.extend(engine::for_rootless_engines(directory, users)?);
        }
        Ok(binds)
    }

    /// `/etc/group`: a group for each runner, and `docker` with all of them.
    fn groups(&self, accounts: &Accounts<'_>, users: &[u32]) -> Result<String> {
        let mut text = accounts("group", &|uid, number| format!("runner-{number}:x:{uid}:\n"))?;
        if self.has_engine {
            // The machine may have a group of this name, which is not the world's.
            text = text
                .lines()
                .filter(|line| !line.starts_with("docker:"))
                .fold(String::new(), |text, line| text + line + "\n");
            let names: Vec<String> =
                (1..=users.len()).map(|number| format!("runner-{number}")).collect();
            text += "docker:x:";
            text += &engine::DOCKER_GROUP.to_string();
            text += ":";
            text += &names.join(",");
            text += "\n";
        }
        Ok(text)
    }

    fn serve_inputs(&self, directory: &Path, web: &Web) -> Result<()> {
        git::serve(web, directory.join("git"));
        let mut packages = vec![directory.join("packages")];
        if self.has_packages {
            packages.push(package_index::real_packages(&target_directory()?)?);
        }
        package_index::serve(web, packages);
        Ok(())
    }

    fn publish_inputs(&self, world: &World) -> Result<()> {
        let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs");
        if self.has_packages {
            world.publish_package("exfil-helper", "1.0.0", &inputs.join("exfil-helper"))?;
        }
        if self.has_repository {
            world.publish_repository("zlib", &zlib::sources()?)?;
        }
        Ok(())
    }
}

/// A `sudo` without a password. It refuses everybody but the users of runners, because it lies open on this machine.
fn install_sudo(directory: &Path) -> Result<()> {
    let bin = directory.join("bin");
    fs::create_dir(&bin)?;
    let sudo = bin.join("sudo");
    fs::copy(binaries::find("world-sudo")?, &sudo).context("can't install the world's sudo")?;
    fs::set_permissions(&sudo, fs::Permissions::from_mode(0o4755))?;
    Ok(())
}

/// Cargo's target directory, which holds what is downloaded once.
fn target_directory() -> Result<PathBuf> {
    let binaries = binaries::find("world-enter")?;
    let directory = binaries.parent().and_then(Path::parent);
    directory.map(Path::to_owned).context("the programs lie in no target directory")
}
