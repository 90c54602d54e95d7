//! `monitor.toml` and the paths below the root directory.

use crate::nftables::Probed;
use portcullis_common::policy::FailureMode;
use portcullis_common::resolution::DefaultPolicy;
use serde::Deserialize;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// The largest `monitor.toml` that is read.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// Units of a machine that are not the job: they keep the machine reachable, on time and on its network.
/// `monitor.toml` adds to this list.
pub const INFRASTRUCTURE_UNITS: &[&str] = &[
    "ssh.service",
    "sshd.service",
    "systemd-networkd.service",
    "NetworkManager.service",
    "dhcpcd.service",
    "networking.service",
    "systemd-timesyncd.service",
    "chrony.service",
    "chronyd.service",
    "ntp.service",
    "walinuxagent.service",
    "waagent.service",
    "google-guest-agent.service",
    "google-osconfig-agent.service",
    "amazon-ssm-agent.service",
    "snap.amazon-ssm-agent.amazon-ssm-agent.service",
    "qemu-guest-agent.service",
    "open-vm-tools.service",
    "cloud-init.service",
];

/// Where things are. All paths lie below one root, so that tests and several instances don't meet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// The paths below `root`; `/` on a real host.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `path`, an absolute path of a real host, below the root. `..` can't lead out of it.
    pub fn at(&self, path: &str) -> PathBuf {
        let inside =
            Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
        inside.fold(self.root.clone(), |at, part| at.join(part))
    }

    /// `/etc/portcullis/monitor.toml`.
    pub fn config(&self) -> PathBuf {
        self.at("/etc/portcullis/monitor.toml")
    }

    /// `/run/portcullis`, readable by everybody: it holds the socket.
    pub fn run(&self) -> PathBuf {
        self.at("/run/portcullis")
    }

    /// The socket that the hooks talk to.
    pub fn socket(&self) -> PathBuf {
        self.at(portcullis_common::wire::SOCKET_PATH)
    }

    /// One directory a running job: what is needed to take it over after a restart.
    pub fn jobs(&self) -> PathBuf {
        self.at("/run/portcullis/jobs")
    }

    /// One directory a job: its events and its report, until they are uploaded or too old.
    pub fn spool(&self) -> PathBuf {
        self.at("/var/lib/portcullis/spool")
    }

    /// The host's credential for the served store, as it was renewed last.
    pub fn renewed_credential(&self) -> PathBuf {
        self.at("/var/lib/portcullis/credential")
    }

    /// The sockets of other services that are closed to jobs: one file for each job and kind of service.
    pub fn closed_sockets(&self) -> PathBuf {
        self.at("/run/portcullis/closed-sockets")
    }

    /// The policy of the last successful resolution, by target.
    pub fn last_known_good(&self) -> PathBuf {
        self.at("/var/lib/portcullis/last-known-good")
    }
}

/// The host's configuration.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The cluster that this host belongs to.
    pub cluster: Option<String>,
    /// Where policies are.
    pub store: StoreConfig,
    /// What a job gets that nothing is attached to, and when things fail.
    pub defaults: DefaultsConfig,
    /// The resolver.
    pub dns: DnsConfig,
    /// What of the kernel is not used.
    pub kernel: KernelConfig,
    /// Who did what.
    pub sensors: SensorsConfig,
    /// The Docker engine of this host.
    pub docker: DockerConfig,
    /// What of this machine is not the job.
    pub infrastructure: InfrastructureConfig,
    /// Which GitHub the runners belong to.
    pub github: GithubConfig,
}

/// `[store]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StoreConfig {
    /// `file:///etc/portcullis/policies`, or the address of a server.
    pub url: String,
    /// The credential for a server; readable by root only.
    pub credential_file: String,
    /// Certificates, PEM, that are trusted beside the system's when a server is asked.
    pub ca_file: Option<String>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: "file:///etc/portcullis/policies".to_owned(),
            credential_file: "/etc/portcullis/credential".to_owned(),
            ca_file: None,
        }
    }
}

/// `[defaults]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DefaultsConfig {
    /// `audit`, `block`, or the name of a policy: what an unattached job gets.
    pub policy: String,
    /// What happens when no policy can be had or put in force, unless the policy itself says.
    pub on_failure: FailureMode,
    /// Whose traffic is the job's.
    pub scope: ScopeConfig,
}

impl Default for DefaultsConfig {
    fn default() -> Self {
        Self {
            policy: "audit".to_owned(),
            on_failure: FailureMode::default(),
            scope: ScopeConfig::default(),
        }
    }
}

/// `scope` of `[defaults]`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum ScopeConfig {
    /// Everything that leaves the machine.
    Host,
    /// The job's cgroup and its runner's user.
    Job,
    /// `host` where one runner is registered, `job` where there are several.
    #[default]
    Auto,
}

/// `[dns]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DnsConfig {
    /// The servers that the resolver asks; empty: those of the Worker's own `/etc/resolv.conf`.
    pub upstreams: Vec<SocketAddr>,
    /// A name keeps its addresses open for at least so many seconds, whatever its TTL says.
    pub grant_floor_seconds: u32,
    /// And for so many more after that, and after the last packet to them.
    pub grant_grace_seconds: u32,
    /// Whether the system bus is closed to jobs of several runners: systemd-resolved resolves over it for whoever asks, and is
    /// not judged then.
    pub close_system_bus: bool,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            grant_floor_seconds: 60,
            grant_grace_seconds: 300,
            close_system_bus: false,
        }
    }
}

/// `[kernel]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KernelConfig {
    /// Mechanisms that are not used although the kernel has them, by the names of `monitor check`.
    pub without: Vec<String>,
}

/// `[sensors]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SensorsConfig {
    /// How it is found out who does what.
    pub backend: SensorBackend,
}

/// `backend` of `[sensors]`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum SensorBackend {
    /// BPF where the kernel allows it, procfs and netlink otherwise.
    #[default]
    Auto,
    /// BPF; a host without it is not served.
    Bpf,
    /// Procfs and netlink alone.
    Procfs,
}

/// `[docker]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DockerConfig {
    /// Whether the engine asks the monitor before it makes containers: `authorization-plugins` of its `daemon.json` must
    /// have `portcullis` as well, and then needs the monitor for everything it does.
    pub authorization_plugin: bool,
    /// Whether containers that a job started go on running when it ends, as on a machine that jobs deploy to. Nobody judges
    /// what they send then.
    pub keep_containers: bool,
}

/// `[infrastructure]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct InfrastructureConfig {
    /// Units beside [`INFRASTRUCTURE_UNITS`].
    pub units: Vec<String>,
}

/// `[github]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct GithubConfig {
    /// `github.com` or the host name of a GitHub Enterprise Server.
    pub server: String,
}

impl Default for GithubConfig {
    fn default() -> Self {
        Self { server: "github.com".to_owned() }
    }
}

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{} can't be read", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no configuration.
    #[error("{} is no configuration that can be used", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong.
        source: Box<toml::de::Error>,
    },
    /// A value is of the right type but makes no sense.
    #[error("{}: {what}", .path.display())]
    Senseless {
        /// The file.
        path: PathBuf,
        /// Key, value and remedy.
        what: String,
    },
    /// Somebody other than the monitor's own user can change what the monitor obeys.
    #[error("{} can be changed by others than root; chown root and chmod go-w it", .path.display())]
    ChangeableByOthers {
        /// The file or directory.
        path: PathBuf,
    },
}

impl Config {
    /// Reads `monitor.toml`; a missing file means the defaults.
    ///
    /// # Errors
    /// When the file can't be read, has a key that does not exist or a value that makes no sense, or can be changed by
    /// others than root.
    pub fn load(paths: &Paths) -> Result<Self, ConfigError> {
        let path = paths.config();
        let unreadable = |source| ConfigError::Unreadable { path: path.clone(), source };
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(unreadable(error)),
        };
        refuse_what_others_can_change(&path)?;
        if !metadata.is_file() || metadata.len() > MAX_CONFIG_BYTES {
            return Err(unreadable(io::Error::other("not a regular file of at most 1 MiB")));
        }
        let text = fs::read_to_string(&path).map_err(unreadable)?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Invalid {
            path: path.clone(),
            source: Box::new(source),
        })?;
        config.check().map_err(|what| ConfigError::Senseless { path, what })?;
        Ok(config)
    }

    /// The directory of policies, when the store is one.
    pub fn policy_directory(&self, paths: &Paths) -> Option<PathBuf> {
        self.store.url.strip_prefix("file://").map(|path| paths.at(path))
    }

    /// What a job gets that no policy is attached to.
    pub fn default_policy(&self) -> DefaultPolicy {
        match self.defaults.policy.as_str() {
            "audit" => DefaultPolicy::Audit,
            "block" => DefaultPolicy::Block,
            name => DefaultPolicy::Named(name.to_owned()),
        }
    }

    /// All infrastructure units: the built-in list and the configured ones.
    pub fn infrastructure_units(&self) -> Vec<String> {
        let configured = self.infrastructure.units.iter().map(String::as_str);
        let mut units: Vec<String> =
            INFRASTRUCTURE_UNITS.iter().copied().chain(configured).map(str::to_owned).collect();
        units.sort();
        units.dedup();
        units
    }

    fn check(&self) -> Result<(), String> {
        if !self.store.url.starts_with("file:///") && !self.store.url.starts_with("https://") {
            return Err(format!(
                "store.url is {:?}; it must be file:///a/directory or https://a.server",
                self.store.url
            ));
        }
        if let Some(unit) = self.infrastructure.units.iter().find(|unit| !is_unit_name(unit)) {
            return Err(format!(
                "infrastructure.units has {unit:?}; name a unit such as \"ssh.service\", not a path"
            ));
        }
        let is_known = |name: &&String| Probed::DISPENSABLE.contains(&name.as_str());
        if let Some(name) = self.kernel.without.iter().find(|name| !is_known(name)) {
            return Err(format!(
                "kernel.without has {name:?}; what can be done without is {}",
                Probed::DISPENSABLE.join(", ")
            ));
        }
        if self.dns.grant_grace_seconds == 0 {
            return Err(
                "dns.grant-grace-seconds is 0; an address must stay open for at least a second after its name's TTL, or programs connect too late"
                    .to_owned(),
            );
        }
        if self.github.server.is_empty() || self.github.server.contains(['/', ':', '*']) {
            return Err(format!(
                "github.server is {:?}; it must be a host name such as \"github.com\"",
                self.github.server
            ));
        }
        Ok(())
    }
}

fn is_unit_name(unit: &str) -> bool {
    let is_plain =
        |character: char| character.is_ascii_alphanumeric() || "-_.@:\\".contains(character);
    unit.contains('.') && !unit.starts_with('.') && unit.chars().all(is_plain)
}

/// Refuses a file or directory that others than root (or the user that the monitor runs as) can change, because what
/// stands in it decides what is enforced.
///
/// # Errors
/// When it can be changed by others or can't be looked at.
pub fn refuse_what_others_can_change(path: &Path) -> Result<(), ConfigError> {
    let metadata = fs::metadata(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let own = nix::unistd::geteuid().as_raw();
    let trusted_owner = metadata.uid() == 0 || metadata.uid() == own;
    if !trusted_owner || metadata.mode() & 0o022 != 0 {
        return Err(ConfigError::ChangeableByOthers { path: path.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Config, ConfigError, Paths, ScopeConfig};
    use portcullis_common::policy::FailureMode;
    use std::error::Error;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::below(directory.path());
        fs::create_dir_all(paths.config().parent().unwrap()).unwrap();
        fs::write(paths.config(), text).unwrap();
        fs::set_permissions(paths.config(), Permissions::from_mode(0o644)).unwrap();
        Config::load(&paths)
    }

    #[test]
    fn the_documented_example_is_read() {
        let config = load(include_str!("../../docs/examples/monitor.toml")).unwrap();
        assert_eq!(config.cluster.as_deref(), Some("prod-linux"));
        assert_eq!(config.defaults.scope, ScopeConfig::Auto);
        assert_eq!(config.defaults.on_failure, FailureMode::Closed);
        assert!(config.infrastructure_units().contains(&"ssh.service".to_owned()));
    }

    #[test]
    fn nothing_configured_means_the_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::load(&Paths::below(directory.path())).unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.defaults.policy, "audit");
    }

    #[test]
    fn errors_name_the_place_and_the_remedy() {
        let unknown = load("[defaults]\nscoop = \"host\"\n").unwrap_err();
        let cause = unknown.source().unwrap().to_string();
        assert!(cause.contains("line 2") && cause.contains("scoop"), "{cause}");
        let url = load("[store]\nurl = \"policies\"\n").unwrap_err().to_string();
        assert!(url.contains("file:///"), "{url}");
        let unit = load("[infrastructure]\nunits = [\"../../x\"]\n").unwrap_err().to_string();
        assert!(unit.contains("ssh.service"), "{unit}");
    }

    #[test]
    fn a_file_that_others_can_change_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::below(directory.path());
        fs::create_dir_all(paths.config().parent().unwrap()).unwrap();
        fs::write(paths.config(), "").unwrap();
        fs::set_permissions(paths.config(), Permissions::from_mode(0o666)).unwrap();
        let error = Config::load(&paths).unwrap_err();
        assert!(matches!(error, ConfigError::ChangeableByOthers { .. }), "{error}");
    }

    #[test]
    fn no_path_leads_out_of_the_root() {
        let paths = Paths::below("/srv/a");
        assert_eq!(paths.at("/etc/../../b"), PathBuf::from("/srv/a/etc/b"));
        assert_eq!(paths.socket(), PathBuf::from("/srv/a/run/portcullis/monitor.sock"));
    }
}
