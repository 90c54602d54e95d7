//! What this machine must have; a lack is an error that names the Debian package.

use anyhow::{Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// A program or module that a world needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prerequisite {
    /// The command that shows that it is there.
    probe: &'static [&'static str],
    package: &'static str,
}

impl Prerequisite {
    pub(super) const IP: Self = Self { probe: &["ip", "-Version"], package: "iproute2" };
    pub(super) const NFT: Self = Self { probe: &["nft", "--version"], package: "nftables" };
    pub(super) const BASH: Self = Self { probe: &["bash", "--version"], package: "bash" };
    pub(super) const GIT: Self = Self { probe: &["git", "--version"], package: "git" };
    pub(super) const CC: Self = Self { probe: &["gcc", "--version"], package: "gcc" };
    pub(super) const MAKE: Self = Self { probe: &["make", "--version"], package: "make" };
    pub(super) const PYTHON: Self =
        Self { probe: &["/usr/bin/python3", "--version"], package: "python3" };
    pub(super) const PIP: Self =
        Self { probe: &["/usr/bin/python3", "-m", "pip", "--version"], package: "python3-pip" };
    pub(super) const VENV: Self =
        Self { probe: &["/usr/bin/python3", "-c", "import ensurepip"], package: "python3-venv" };

    pub(super) const DOCKER: Self =
        Self { probe: &["/usr/sbin/dockerd", "--version"], package: "docker.io" };
    pub(super) const PODMAN: Self = Self { probe: &["podman", "--version"], package: "podman" };
    pub(super) const BUSYBOX: Self =
        Self { probe: &["/usr/bin/busybox", "true"], package: "busybox-static" };
    pub(super) const IPTABLES: Self =
        Self { probe: &["iptables", "--version"], package: "iptables" };

    fn is_there(self) -> bool {
        Command::new(self.probe[0])
            .args(&self.probe[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }
}

/// Refuses a machine on which a world can't be built.
pub(super) fn check(needed: &[Prerequisite]) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a test world needs root: it makes namespaces and cgroups of its own");
    }
    crate::cgroup::mount_point()?;
    if !Path::new("/proc/sys/net/ipv6").exists() {
        bail!("a test world needs a kernel with IPv6 (it may be unused on this machine)");
    }
    let missing: Vec<&str> = needed
        .iter()
        .filter(|prerequisite| !prerequisite.is_there())
        .map(|prerequisite| prerequisite.package)
        .collect();
    if !missing.is_empty() {
        bail!(
            "missing on this machine: {}; run `apt-get install {}`, or scripts/test, which installs everything in \
             scripts/test-packages.txt",
            missing.join(", "),
            missing.join(" ")
        );
    }
    Ok(())
}
