//! Whether a job can become root: what it can do then, no rule set withstands.

use nix::unistd::{Group, Uid, User};
use portcullis_common::event::{Feature, FeatureState};
use std::fs;
use std::path::Path;

/// Groups whose members can become root by a daemon or a device, without any setuid program.
const ROOT_EQUIVALENT_GROUPS: &[&str] =
    &["disk", "docker", "incus-admin", "incus", "lxd", "podman", "shadow"];

/// Groups whose members can become root by sudo, on the systems that have them.
const SUDO_GROUPS: &[&str] = &["admin", "sudo", "wheel"];

/// The most bytes of sudo's configuration that are read.
const MAX_SUDOERS_BYTES: u64 = 1024 * 1024;

/// What is known of the user that a job runs as.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JobUser {
    /// The user id.
    pub uid: u32,
    /// The user's name, when it has one.
    pub name: Option<String>,
    /// Names of its groups.
    pub groups: Vec<String>,
}

/// The feature `job-privileges`: active when nothing was found by which the job could become root. Sudo is no way when
/// setuid programs do not work for the job.
pub fn job_privileges(worker_pid: u32, root: &Path, has_no_new_privileges: bool) -> Feature {
    let way = job_user(worker_pid).map(|user| {
        let by_sudo = || way_by_sudo(&user, &sudoers(root)).filter(|_| !has_no_new_privileges);
        way_without_sudo(&user).or_else(by_sudo)
    });
    let (state, reason) = match way {
        Some(None) => (FeatureState::Active, "no way for the job to become root was found".to_owned()),
        Some(Some(way)) => (
            FeatureState::Degraded,
            format!("the job can become root ({way}): enforcement can be tampered with; tampering is recorded"),
        ),
        None => (
            FeatureState::Degraded,
            "the Worker's user could not be read, so it is not known whether the job can become root".to_owned(),
        ),
    };
    Feature { name: "job-privileges".to_owned(), state, reason }
}

/// How the user can become root without a setuid program, as far as groups tell.
fn way_without_sudo(user: &JobUser) -> Option<String> {
    if user.uid == 0 {
        return Some("it runs as root".to_owned());
    }
    group_of(user, ROOT_EQUIVALENT_GROUPS)
}

fn group_of(user: &JobUser, groups: &[&str]) -> Option<String> {
    let group = user.groups.iter().find(|group| groups.contains(&group.as_str()))?;
    Some(format!("its user is in the group {group}"))
}

/// How the user can become root by sudo, as far as groups and sudo's configuration tell.
fn way_by_sudo(user: &JobUser, sudoers: &str) -> Option<String> {
    if let Some(way) = group_of(user, SUDO_GROUPS) {
        return Some(way);
    }
    let rule = sudoers.lines().map(str::trim).find(|line| sudo_rule_covers(line, user))?;
    Some(format!("sudo's configuration has the rule {rule:?}"))
}

/// Whether a line of sudoers gives something to the user: its first word names it, a group of it, its id, or everybody.
fn sudo_rule_covers(line: &str, user: &JobUser) -> bool {
    let Some(who) = line.split_whitespace().next() else { return false };
    let by_group =
        who.strip_prefix('%').is_some_and(|name| user.groups.iter().any(|group| group == name));
    let by_id = who.strip_prefix('#').is_some_and(|id| id.parse() == Ok(user.uid));
    let is_rule = line.contains('=') && !line.starts_with("Defaults") && !line.contains("_Alias");
    is_rule && (by_group || by_id || who == "ALL" || user.name.as_deref() == Some(who))
}

fn job_user(worker_pid: u32) -> Option<JobUser> {
    let status =
        procfs::process::Process::new(i32::try_from(worker_pid).ok()?).ok()?.status().ok()?;
    let groups = status
        .groups
        .into_iter()
        .chain([status.rgid, status.egid])
        .filter_map(|gid| Group::from_gid(gid.into()).ok().flatten())
        .map(|group| group.name)
        .collect();
    let name = User::from_uid(Uid::from_raw(status.ruid)).ok().flatten().map(|user| user.name);
    Some(JobUser { uid: status.ruid, name, groups })
}

/// sudo's configuration on this host: the file and its usual directory.
fn sudoers(root: &Path) -> String {
    let mut text = read_bounded(&root.join("etc/sudoers"));
    let Ok(entries) = fs::read_dir(root.join("etc/sudoers.d")) else { return text };
    for entry in entries.flatten() {
        text.push('\n');
        text.push_str(&read_bounded(&entry.path()));
    }
    text
}

fn read_bounded(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() <= MAX_SUDOERS_BYTES => {
            fs::read_to_string(path).unwrap_or_default()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{JobUser, way_by_sudo, way_without_sudo};

    const SUDOERS: &str = "# comment ALL=(ALL)\nDefaults env_reset\nroot ALL=(ALL:ALL) ALL\n%ops ALL=(ALL) ALL\nrunner ALL=(ALL) NOPASSWD:ALL\n#1005 ALL=(ALL) ALL\n";

    fn way(uid: u32, name: &str, groups: &[&str]) -> Option<String> {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        let user = JobUser { uid, name: Some(name.to_owned()), groups };
        way_without_sudo(&user).or_else(|| way_by_sudo(&user, SUDOERS))
    }

    #[test]
    fn every_way_is_named() {
        assert_eq!(way(0, "root", &[]).unwrap(), "it runs as root");
        assert!(way(1000, "a", &["users", "docker"]).unwrap().contains("docker"));
        assert!(way(1000, "runner", &[]).unwrap().contains("NOPASSWD"));
        assert!(way(1000, "a", &["ops"]).unwrap().contains("%ops"));
        assert!(way(1005, "a", &[]).unwrap().contains("#1005"));
    }

    #[test]
    fn without_setuid_programs_only_daemons_and_devices_are_left() {
        let user = |group: &str| JobUser {
            uid: 1000,
            name: Some("runner".to_owned()),
            groups: vec![group.to_owned()],
        };
        assert_eq!(way_without_sudo(&user("sudo")), None);
        assert!(way_without_sudo(&user("docker")).is_some());
    }

    #[test]
    fn an_ordinary_user_has_none() {
        assert_eq!(way(1000, "build", &["build", "users"]), None);
    }
}
