//! Where container engines listen.

use crate::caller::{ProcFs, ProcessTable};
use crate::containers::facts::is_called;
use crate::watch::inodes::socket_inodes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

/// Where engines listen that have not been started yet, or not by a program of a known name.
pub(super) const USUAL_SOCKETS: &[&str] = &[
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/buildkit/buildkitd.sock",
    "/run/snap.docker/docker.sock",
];

/// Programs that make containers for others.
const ENGINES: &[&str] = &["dockerd", "containerd", "podman", "crio", "buildkitd"];

/// Ports on which engines listen by custom (Docker, with and without TLS).
pub const USUAL_PORTS: [u16; 2] = [2375, 2376];

/// `accept` flag of `/proc/net/unix` (`__SO_ACCEPTCON`).
const LISTENING: u32 = 0x1_0000;

/// The sockets that running engines listen on: those with a path, and abstract ones.
pub(super) fn listening() -> (BTreeSet<PathBuf>, Vec<String>) {
    let (mut paths, mut abstracts) = (BTreeSet::new(), Vec::new());
    for pid in engines() {
        let listed = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
        let names: BTreeMap<u64, &str> = listed.lines().filter_map(listener).collect();
        for inode in socket_inodes(pid) {
            match names.get(&u64::from(inode)) {
                Some(name) if name.starts_with('@') => abstracts.push((*name).to_owned()),
                // As the engine sees it: it may live in another mount namespace.
                Some(name) => {
                    paths.extend(fs::canonicalize(name).ok().filter(|path| path.exists()));
                }
                None => {}
            }
        }
    }
    (paths, abstracts)
}

/// The TCP ports by which engines can be asked: the usual ones, and those that running engines listen on.
pub fn engine_ports() -> Vec<u16> {
    let mut ports = USUAL_PORTS.to_vec();
    for pid in engines() {
        let inodes = socket_inodes(pid);
        for table in ["tcp", "tcp6"] {
            let listed = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            let listening = listed.lines().filter_map(tcp_listener);
            ports.extend(
                listening
                    .filter(|(inode, _)| inodes.iter().any(|own| u64::from(*own) == *inode))
                    .map(|(_, port)| port),
            );
        }
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Inode and port of a listening socket in a line of `/proc/net/tcp` (proc(5)).
fn tcp_listener(line: &str) -> Option<(u64, u16)> {
    /// `TCP_LISTEN`.
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, _, LISTEN, _, _, _, _, _, inode, ..] = fields.as_slice() else { return None };
    let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    Some((inode.parse().ok()?, port))
}

/// Root's processes that are engines by their program.
fn engines() -> Vec<u32> {
    let is_engine = |pid: &u32| {
        is_called(*pid, ENGINES)
            && ProcFs.process(*pid).is_some_and(|process| {
                let name = process.executable_name().and_then(|name| name.to_str());
                process.uid == 0 && name.is_some_and(|name| ENGINES.contains(&name))
            })
    };
    ProcFs.pids().into_iter().filter(is_engine).collect()
}

/// Inode and name of a listening socket in a line of `/proc/net/unix` (proc(5)).
fn listener(line: &str) -> Option<(u64, &str)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, _, _, flags, _, _, inode, name] = fields.as_slice() else { return None };
    let is_listening = u32::from_str_radix(flags, 16).ok()? & LISTENING != 0;
    let name = line.get(line.rfind(name)?..)?;
    is_listening.then_some((inode.parse().ok()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_read() {
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/docker.sock";
        assert_eq!(listener(line), Some((12345, "/run/docker.sock")));
        let connected =
            "0000000000000000: 00000003 00000000 00000000 0001 03 12345 /run/docker.sock";
        assert_eq!(listener(connected), None);
        let tcp = "   0: 0100007F:0947 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        assert_eq!(tcp_listener(tcp), Some((4711, 2375)));
        assert_eq!(listener("Num RefCount Protocol Flags Type St Inode Path"), None);
    }
}
