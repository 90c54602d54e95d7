//! Paths as values, and real groups below the machine's hierarchy, of names of this test's own.

use super::group::parse_proc_cgroup;
use super::infrastructure::{holds_runner, is_unit_name};
use super::job::descendants;
use super::mount::{Mount, directory_in, level, parse_mountinfo};
use super::*;
use crate::caller::testing::{FakeRunner, FakeTable, eventually};
use crate::caller::{ProcFs, ProcessKey};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn mount(root: &str, directory: &str) -> Mount {
    Mount { root: root.into(), directory: directory.into(), writable: true }
}

/// A group of this test's own below the topmost one; ended when dropped.
struct Scratch(Cgroup);

impl Scratch {
    fn new(name: &str) -> Self {
        let root = Hierarchy::find().unwrap().root().unwrap();
        Self(root.create_child(&format!("test-{name}-{}", std::process::id())).unwrap())
    }

    /// A runner that lives in the group.
    fn runner(&self) -> FakeRunner {
        let runner = FakeRunner::start();
        assert!(self.0.add(runner.listener.pid).unwrap());
        assert!(self.0.add(runner.worker.pid).unwrap());
        runner
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        assert!(self.0.wait_empty(PATIENCE).unwrap());
        self.0.remove().unwrap();
    }
}

#[test]
fn finds_v2_mounts_in_mountinfo() {
    let text = br"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,nosuid shared:9 master:3 - cgroup2 cgroup2 rw,nsdelegate
42 31 0:38 /a\040b /mnt/with\040space\134 ro,relatime - cgroup2 none rw
43 31 0:38 /.. /mnt/up rw - cgroup2 none ro
broken line
44 31 0:38 / /mnt/x rw -
";
    let writable = |mut mount: Mount, writable| {
        mount.writable = writable;
        mount
    };
    assert_eq!(
        parse_mountinfo(text),
        [
            mount("/", "/sys/fs/cgroup/unified"),
            writable(mount("/a b", "/mnt/with space\\"), false),
            writable(mount("/..", "/mnt/up"), false),
        ]
    );
}

#[test]
fn chooses_a_writable_mount_or_says_why_not() {
    let mut read_only = mount("/", "/ro");
    read_only.writable = false;
    let error = Hierarchy::choose(vec![read_only.clone()]).unwrap_err();
    assert!(matches!(error, CgroupError::ReadOnly { .. }), "{error}");
    assert!(error.to_string().contains("/ro"), "{error}");
    assert!(matches!(Hierarchy::choose(Vec::new()), Err(CgroupError::NoHierarchy)));
    let chosen =
        Hierarchy::choose(vec![mount("/deep/er", "/b"), read_only, mount("/", "/long/a")]).unwrap();
    assert_eq!(chosen.mount_point(), Path::new("/long/a"));
}

#[test]
fn maps_paths_to_directories_and_levels() {
    for (root, path, expected) in [
        ("/", "/", Some("/m")),
        ("/", "/a/b", Some("/m/a/b")),
        ("/a", "/a/b", Some("/m/b")),
        ("/a", "/ab", None),
        ("/..", "/../x", Some("/m/x")),
        ("/", "/../x", None),
        ("/..", "/../../x", None),
    ] {
        let found = directory_in(&mount(root, "/m"), Path::new(path));
        assert_eq!(found.as_deref(), expected.map(Path::new), "{root} {path}");
    }
    for (path, expected) in
        [("/", Some(0)), ("/a", Some(1)), ("/a/b", Some(2)), ("/../x", Some(0)), ("/..", None)]
    {
        assert_eq!(level(Path::new(path)), expected, "{path}");
    }
    assert_eq!(parse_proc_cgroup(b"9:name=systemd:/\n0::/x y\n").unwrap(), Path::new("/x y"));
    assert_eq!(parse_proc_cgroup(b"9:name=systemd:/\n"), None);
}

#[test]
fn descendants_are_found_in_a_snapshot() {
    let entries: Vec<_> = FakeTable::default()
        .with(10, 1, 0, "w")
        .with(20, 10, 0, "a")
        .with(30, 20, 0, "b")
        .with(5, 20, 0, "older than its parent: the pid was reused")
        .with(40, 1, 0, "other")
        .entries
        .into_values()
        .collect();
    let mut pids: Vec<u32> = descendants(&entries, ProcessKey { pid: 10, start_time: 10 })
        .into_iter()
        .map(|key| key.pid)
        .collect();
    pids.sort_unstable();
    assert_eq!(pids, [20, 30]);
}

#[test]
fn names() {
    for (name, expected) in [
        ("ssh.service", true),
        ("getty@tty1.service", true),
        ("getty@.service", false),
        ("../../x.service", false),
        ("x/y.service", false),
        (".service", false),
        ("ssh", false),
        ("ssh.timer", false),
    ] {
        assert_eq!(is_unit_name(name), expected, "{name}");
    }
    let table = FakeTable::default().with(7, 1, 0, "/r/Runner.Listener").with(8, 1, 0, "/bin/sh");
    assert!(holds_runner(&table, &[8, 7]) && !holds_runner(&table, &[8, 9]));
}

#[test]
fn a_job_is_moved_with_everything_below_it_and_ended() {
    let hierarchy = Hierarchy::find().unwrap();
    let scratch = Scratch::new("move");
    let mut runner = scratch.runner();
    let child = runner.start_child("bash -c 'sleep 1000 & sleep 1001 & wait'");
    let grandchildren = eventually("grandchildren", || {
        let entries: Vec<_> = crate::caller::ProcessTable::pids(&ProcFs)
            .into_iter()
            .filter_map(|pid| crate::caller::ProcessTable::process(&ProcFs, pid))
            .collect();
        let found = descendants(&entries, child);
        (found.len() == 2).then_some(found)
    });

    let job = JobCgroup::create(&hierarchy, runner.worker, "01-ab").unwrap();
    let identity = job.identity().clone();
    assert_eq!(identity.path, scratch.0.identity().path.join("portcullis-01-ab"));
    assert_eq!(identity.level, scratch.0.identity().level + 1);
    assert!(job.contains(runner.worker.pid) && job.contains(child.pid));
    assert!(grandchildren.iter().all(|key| job.contains(key.pid)));
    assert!(!job.contains(runner.listener.pid) && !job.contains(std::process::id()));
    assert_eq!(job.processes().unwrap().len(), 4);
    // What starts later is inside by itself, also in a group that the job makes.
    let later = runner.start_child("sleep 1002");
    assert!(job.contains(later.pid));
    let own_group = job.group().create_child("made-by-the-job").unwrap();
    let deeper = own_group.create_child("deeper").unwrap();
    deeper.add(later.pid).unwrap();
    assert!(job.contains(later.pid));
    assert!(job.processes().unwrap().contains(&later.pid));

    // A second job of the same id is refused, the first one is untouched.
    assert!(JobCgroup::create(&hierarchy, runner.worker, "../x").is_err());
    assert!(JobCgroup::open_existing(&hierarchy, &identity).is_ok());
    let other = CgroupIdentity { id: identity.id + 1, ..identity.clone() };
    assert!(JobCgroup::open_existing(&hierarchy, &other).is_err());

    assert!(!job.wait_empty(Duration::from_millis(30)).unwrap());
    job.freeze().unwrap();
    let killed = job.end(PATIENCE).unwrap();
    assert_eq!(killed.len(), 5);
    assert!(!job.group().exists());
    assert!(!ProcFs.is_alive(later) && !ProcFs.is_alive(child));
    assert!(job.wait_empty(Duration::ZERO).unwrap(), "a removed group is empty");
    assert!(job.end(PATIENCE).unwrap().is_empty(), "ending twice is no error");
}

#[test]
fn a_worker_that_is_gone_leaves_no_group() {
    let scratch = Scratch::new("gone");
    let runner = scratch.runner();
    let wrong = ProcessKey { pid: runner.worker.pid, start_time: 1 };
    let error = JobCgroup::create(&Hierarchy::find().unwrap(), wrong, "02").unwrap_err();
    assert!(matches!(error, CgroupError::Gone { .. }), "{error}");
    assert!(scratch.0.child_names().unwrap().is_empty());
}

#[test]
fn known_descendants_are_moved_unless_their_pid_is_somebody_elses_now() {
    let scratch = Scratch::new("known");
    let mut runner = scratch.runner();
    let child = runner.start_child("sleep 1000");
    let hierarchy = Hierarchy::find().unwrap();
    let job = JobCgroup::create_empty(&hierarchy, runner.worker, "04").unwrap();
    let recycled = ProcessKey { pid: runner.listener.pid, start_time: 1 };
    job.adopt(runner.worker, &[recycled, child]).unwrap();
    assert!(job.contains(runner.worker.pid) && job.contains(child.pid));
    assert!(!job.contains(runner.listener.pid));
    job.group().kill_one_by_one().unwrap();
    assert!(job.wait_empty(PATIENCE).unwrap());
    job.remove().unwrap();
}

#[test]
fn killing_without_cgroup_kill_ends_a_fork_chain() {
    let scratch = Scratch::new("oldkill");
    let mut runner = scratch.runner();
    let job = JobCgroup::create(&Hierarchy::find().unwrap(), runner.worker, "03").unwrap();
    runner.tell("f() { sleep 0.001; f & }; f; f; f");
    runner.start_child("sleep 1000");
    job.group().kill_one_by_one().unwrap();
    assert!(job.wait_empty(PATIENCE).unwrap());
    job.remove().unwrap();
}

#[test]
fn waiting_ends_when_the_last_process_does() {
    let scratch = Scratch::new("wait");
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    scratch.0.add(child.id()).unwrap();
    assert!(scratch.0.is_populated().unwrap());
    let group = scratch.0.clone();
    let waiter = std::thread::spawn(move || group.wait_empty(PATIENCE).unwrap());
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(waiter.join().unwrap());
    assert!(!scratch.0.is_populated().unwrap());
    assert!(!scratch.0.add(child.id()).unwrap(), "a process that is gone can't be moved");
}

#[test]
fn stale_groups_of_dead_jobs_are_found() {
    let scratch = Scratch::new("stale");
    let active = scratch.0.create_child("portcullis-active").unwrap();
    let dead = scratch.0.create_child("portcullis-dead").unwrap();
    scratch.0.create_child("portcullis-monitor-17").unwrap();
    scratch.0.create_child("somebody-else").unwrap();
    let mut left_over = Command::new("sleep").arg("1000").spawn().unwrap();
    dead.add(left_over.id()).unwrap();
    let stale = stale_job_groups(&scratch.0, &[active.identity().clone()]).unwrap();
    assert_eq!(stale.len(), 1);
    assert_eq!(stale[0].end(PATIENCE).unwrap(), [left_over.id()]);
    left_over.wait().unwrap();
    assert!(!dead.exists() && active.exists());
    let again = scratch.0.create_child("portcullis-dead").unwrap();
    assert!(again.exists() && !dead.exists(), "a new group of the same name is another one");
}

#[test]
fn units_are_found_by_name() {
    // There is no systemd here: its layout is made by hand, at the top where systemd has it.
    let hierarchy = Hierarchy::find().unwrap();
    let top = Scratch::new("units");
    let slice =
        hierarchy.root().unwrap().create_child(&format!("t{}.slice", std::process::id())).unwrap();
    let nested = slice.create_child("t-x.slice").unwrap();
    let service = nested.create_child("portcullis-test.service").unwrap();
    service.create_child("hidden.slice").unwrap().create_child("forged.service").unwrap();
    let slices = Slices::list(&hierarchy).unwrap();
    let found = slices.find("portcullis-test.service");
    let forged = slices.find("forged.service");
    slice.remove().unwrap();
    drop(top);
    assert_eq!(found.as_ref(), Some(service.identity()));
    assert_eq!(forged, None, "groups inside a service are its own business");
    assert_eq!(slices.find("absent.service"), None);
}

#[test]
fn a_monitor_that_shares_a_runner_s_group_gets_its_own() {
    // Runs in a process of its own: the test's process must not be moved.
    let scratch = Scratch::new("monitor");
    let _runner = scratch.runner();
    let hierarchy = Hierarchy::find().unwrap();
    let mut monitor = Command::new("sleep").arg("1000").spawn().unwrap();
    scratch.0.add(monitor.id()).unwrap();
    let entered = infrastructure::enter_group_of_own(&hierarchy, monitor.id()).unwrap();
    assert!(entered.created);
    assert_eq!(entered.identity.level, scratch.0.identity().level + 1);
    assert_eq!(hierarchy.group_of(monitor.id()).unwrap().identity(), &entered.identity);
    let again = infrastructure::enter_group_of_own(&hierarchy, monitor.id()).unwrap();
    assert_eq!(again.identity, entered.identity);
    monitor.kill().unwrap();
    monitor.wait().unwrap();
}
