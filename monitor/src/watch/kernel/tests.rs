//! The sensors in the kernel on real processes.

use super::*;
use crate::caller::testing::{FakeRunner, eventually};
use crate::cgroup::{Cgroup, Hierarchy};
use crate::sys::ptrace::Thread;
use portcullis_monitor_bpf::event::AccessWay;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What stands in the Worker's environment, and so in its memory.
const MARKER: &str = "marker-of-the-memory-tests";

/// Attempts of each technique.
const ATTEMPTS: u32 = 200;

/// A runner with a job, watched.
struct World {
    runner: FakeRunner,
    watched: WatchedJob,
    seen: Arc<Seen>,
    group: JobCgroup,
    parent: Cgroup,
    sensors: Arc<KernelSensors>,
    directory: tempfile::TempDir,
}

/// Everything that was told.
#[derive(Debug, Default)]
struct Seen {
    executed: Mutex<Vec<Process>>,
    unusual: Mutex<Vec<Unusual>>,
    escaped: Mutex<Vec<(Process, Escape, Option<Process>)>>,
    accessed: Mutex<Vec<(Process, Access)>>,
    signalled: Mutex<Vec<u32>>,
}

impl KernelObserver for Seen {
    fn held(&self, _process: ProcessKey) {}

    fn signalled(&self, _process: Process, signal: u32) {
        self.signalled.lock().unwrap().push(signal);
    }

    fn executed(&self, process: Process) {
        self.executed.lock().unwrap().push(process);
    }

    fn unusual(&self, execution: Unusual) {
        self.unusual.lock().unwrap().push(execution);
    }

    fn escaped(&self, process: Process, escape: Escape, mover: Option<Process>) {
        self.escaped.lock().unwrap().push((process, escape, mover));
    }

    fn accessed(&self, _: ProcessKey, process: Process, access: Access) {
        self.accessed.lock().unwrap().push((process, access));
    }
}

impl World {
    fn new(name: &str, is_reader_ended: bool) -> Self {
        let root = Hierarchy::find().unwrap().root().unwrap();
        let parent =
            root.create_child(&format!("test-kernel-{name}-{}", std::process::id())).unwrap();
        let runner = FakeRunner::start_with(&[("MARKER", MARKER)]);
        parent.add(runner.listener.pid).unwrap();
        parent.add(runner.worker.pid).unwrap();
        let group = JobCgroup::create(&Hierarchy::find().unwrap(), runner.worker, name).unwrap();
        let sensors = Arc::new(KernelSensors::start().unwrap());
        let seen = Arc::new(Seen::default());
        let job = JobToWatch {
            worker: runner.worker,
            listener: Some(runner.listener),
            is_reader_ended,
            not_judged: vec![parent.directory().to_owned()],
        };
        let observer = Arc::<Seen>::clone(&seen);
        let watched = sensors.watch(&job, &group, observer).unwrap();
        let directory = tempfile::tempdir().unwrap();
        Self { runner, watched, seen, group, parent, sensors, directory }
    }

    /// The attacker's program.
    fn reader(&self) -> PathBuf {
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/inputs/attacks/memory_reader.c");
        let program = self.directory.path().join("memory_reader");
        let mut compiler = Command::new("gcc");
        let status = compiler.args(["-O1", "-w", "-o"]).arg(&program).arg(source).status().unwrap();
        assert!(status.success());
        program
    }

    fn end(self) {
        self.group.end(Duration::from_secs(20)).unwrap();
        self.parent.kill().unwrap();
        assert!(self.parent.wait_empty(Duration::from_secs(20)).unwrap());
        self.parent.remove().unwrap();
    }
}

/// `name: obtained N of …`
fn obtained(reader: &Path, technique: &str, pid: u32, attempts: u32) -> (u32, String) {
    let output = Command::new(reader)
        .args([technique, &pid.to_string(), &attempts.to_string(), MARKER])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let count = text.split("obtained ").nth(1).and_then(|rest| rest.split(' ').next());
    let count = count.unwrap_or_else(|| panic!("{technique}: {text:?} {:?}", output.status));
    (count.parse().unwrap(), text)
}

fn techniques(reader: &Path) -> Vec<String> {
    let output = Command::new(reader).arg("list").output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn state(pid: u32) -> char {
    procfs::process::Process::new(i32::try_from(pid).unwrap()).unwrap().stat().unwrap().state
}

#[test]
fn nothing_of_a_guarded_memory_is_obtained() {
    let world = World::new("guard", true);
    let reader = world.reader();
    let worker = world.runner.worker.pid;
    for technique in techniques(&reader) {
        let (count, text) = obtained(&reader, &technique, worker, ATTEMPTS);
        print!("{text}");
        assert_eq!(count, 0, "{text}");
        if text.contains("impossible with this kernel") {
            continue;
        }
        let told = eventually("every attempt is told", || {
            let told = world.seen.accessed.lock().unwrap();
            let of_technique = told.iter().filter(|(process, _)| process.argv[1] == technique);
            let told: Vec<_> = of_technique.cloned().collect();
            (told.len() >= ATTEMPTS as usize).then_some(told)
        });
        for (process, access) in told {
            assert_eq!(process.exe.as_deref(), reader.to_str(), "{technique}");
            assert!(access.is_ended && access.target == worker, "{technique}: {access:?}");
        }
        eventually("the target goes on", || (!matches!(state(worker), 'T' | 't')).then_some(()));
    }
    for target in [world.runner.listener.pid, std::process::id()] {
        for technique in ["open", "vm-read"] {
            let (count, text) = obtained(&reader, technique, target, 20);
            assert_eq!(count, 0, "{text}");
            // The marker may be nowhere in this memory: what counts is that each reader was ended.
            eventually("every attempt is told", || {
                let told = world.seen.accessed.lock().unwrap();
                let ended = told.iter().filter(|(process, access)| {
                    process.argv[1] == technique && access.target == target && access.is_ended
                });
                (ended.count() >= 20).then_some(())
            });
        }
    }
    world.end();
}

#[test]
fn a_reader_is_only_told_where_nobody_is_to_be_ended() {
    let world = World::new("told", false);
    let reader = world.reader();
    let worker = world.runner.worker.pid;
    for (technique, way) in [
        ("open", AccessWay::MemoryFile),
        ("vm-read", AccessWay::VmRead),
        ("attach", AccessWay::Ptrace),
        ("getfd", AccessWay::Descriptor),
        ("perf", AccessWay::Perf),
        ("uring", AccessWay::IoUring),
    ] {
        let (count, text) = obtained(&reader, technique, worker, 1);
        assert_eq!(count, 1, "{text}");
        eventually(technique, || {
            let told = world.seen.accessed.lock().unwrap();
            told.iter().any(|(_, access)| access.way == way && !access.is_ended).then_some(())
        });
    }
    world.end();
}

/// The monitor attaches to the Worker when it is bound: that the kernel tells it of stops is no signal of the job.
#[test]
fn stops_of_who_is_traced_are_no_signals_of_the_job() {
    let mut world = World::new("tracer", true);
    let traced = world.runner.ask("sleep 1000 & echo $!").parse().unwrap();
    thread::scope(|scope| {
        // The tracer's thread alone may go on with what it traces.
        scope.spawn(|| {
            let thread = Thread::seize(traced).unwrap().unwrap();
            thread.interrupt().unwrap();
            thread.wait(Duration::from_secs(20)).unwrap();
            thread.detach().unwrap();
        });
    });
    // The twin, which comes later: a signal that the job does send.
    let done = world.runner.ask(&format!("/bin/kill -CONT {}; echo $?", std::process::id()));
    assert_eq!(done, "0");
    eventually("the signal is told", || {
        let told = world.seen.signalled.lock().unwrap();
        told.contains(&libc::SIGCONT.unsigned_abs()).then_some(())
    });
    let told = world.seen.signalled.lock().unwrap().clone();
    assert!(!told.contains(&libc::SIGCHLD.unsigned_abs()), "{told:?}");
    world.end();
}

/// What looks at processes all day, and debuggers of one's own.
#[test]
fn looking_and_debugging_go_on() {
    let mut world = World::new("twins", true);
    let reader = world.reader();
    let worker = world.runner.worker.pid;
    for benign in [
        "ps auxe >/dev/null".to_owned(),
        "pgrep -f Runner >/dev/null".to_owned(),
        format!("cat /proc/{worker}/maps /proc/{worker}/environ /proc/{worker}/cmdline >/dev/null"),
        "strace -f -o /dev/null true".to_owned(),
        "gdb -batch -ex run true >/dev/null 2>&1".to_owned(),
        format!(
            "sleep 1000 & until [ \"$(cat /proc/$!/comm)\" = sleep ]; do :; done; {} open $! 3 {MARKER} | grep -q 'obtained 3'; s=$?; kill %1; [ $s = 0 ]",
            reader.display()
        ),
    ] {
        let done = world.runner.ask(&format!("{{ {benign}; }} </dev/null; echo $?"));
        assert_eq!(done, "0", "{benign}");
    }
    world.sensors.lifecycle.drain();
    assert!(world.seen.accessed.lock().unwrap().is_empty());
    world.end();
}

#[test]
fn programs_are_told_with_their_step() {
    let mut world = World::new("exec", false);
    let step = "GITHUB_ACTION=__run_7 bash -c 'env -u GITHUB_ACTION sh -c \"cd /tmp; /bin/true one two\"; true'";
    world.runner.ask(&format!("{step}; echo done"));
    let told = eventually("the program is told", || {
        let told = world.seen.executed.lock().unwrap();
        told.iter().find(|process| process.argv == ["/bin/true", "one", "two"]).cloned()
    });
    let real = std::fs::canonicalize("/bin/true").unwrap();
    assert_eq!(told.exe.as_deref(), real.to_str());
    assert_eq!((told.cwd.as_deref(), told.step.as_deref()), (Some("/tmp"), Some("__run_7")));
    assert_eq!(told.ancestors.last().unwrap().pid, world.runner.worker.pid);
    assert!(told.ancestors.len() >= 2, "{told:?}");
    assert_eq!(world.watched.end(), 0);
    world.end();
}

#[test]
fn programs_without_a_file_and_other_users_are_told() {
    let mut world = World::new("unusual", false);
    let fileless = "python3 -c 'import os; f=os.memfd_create(\"x\"); os.write(f,open(\"/bin/true\",\"rb\").read()); os.execv(f\"/proc/self/fd/{f}\",[\"x\"])'";
    world.runner.ask(&format!("{fileless}; echo done"));
    let told = eventually("the program without a file", || {
        world.seen.unusual.lock().unwrap().iter().find(|unusual| unusual.links == 0).cloned()
    });
    assert_eq!(told.process.exe.as_deref(), Some("/memfd:x"));
    world.runner.ask("setpriv --reuid 12345 --clear-groups true; echo done");
    let told = eventually("the other user", || {
        world
            .seen
            .unusual
            .lock()
            .unwrap()
            .iter()
            .find(|other| other.effective_uid == 12345)
            .cloned()
    });
    assert_eq!((told.uid_before, told.process.uid), (Some(0), Some(12345)));
    world.end();
}

/// C4: each way out of the job's cgroup is told, with who did it; what descends from it is still followed.
#[test]
fn whoever_leaves_the_cgroup_is_told() {
    let mut world = World::new("escape", false);
    let outside = world.parent.directory().to_owned();
    let script = format!(
        "bash -c 'echo $$ > {}/cgroup.procs; bash -c \"exec sleep 0.01\"; true'; echo done",
        outside.display()
    );
    assert_eq!(world.runner.ask(&script), "done");
    let (process, escape, mover) =
        eventually("the move is told", || world.seen.escaped.lock().unwrap().first().cloned());
    assert_eq!(escape.cgroup, world.parent.identity().id);
    assert_eq!((mover.unwrap().pid, escape.is_birth), (process.pid, false));
    // It can make no socket there, and what never left can.
    let socket = "perl -MSocket -e \"exit(socket(S,2,2,17)?0:7)\"";
    let escaping =
        format!("bash -c 'echo $$ > {}/cgroup.procs; {socket}; echo $?'", outside.display());
    assert_eq!(world.runner.ask(&escaping), "7");
    assert_eq!(world.runner.ask(&format!("{socket}; echo $?")), "0");
    eventually("its child is followed", || {
        let told = world.seen.executed.lock().unwrap();
        told.iter().any(|process| process.argv == ["sleep", "0.01"]).then_some(())
    });

    // clone3(CLONE_INTO_CGROUP), by hand: 435, struct clone_args of 88 bytes.
    let born = format!(
        "python3 -c 'import ctypes,os,struct,signal\nd=os.open(\"{}\",os.O_RDONLY)\na=ctypes.create_string_buffer(struct.pack(\"11Q\",0x200000000,0,0,0,signal.SIGCHLD,0,0,0,0,0,d))\np=ctypes.CDLL(None).syscall(435,a,88)\nif p==0: os._exit(0)\nos.waitpid(p,0)'; echo done",
        outside.display()
    );
    assert_eq!(world.runner.ask(&born), "done");
    eventually("the birth is told", || {
        let told = world.seen.escaped.lock().unwrap();
        told.iter().any(|(_, escape, _)| escape.is_birth).then_some(())
    });
    let count = world.seen.escaped.lock().unwrap().len();
    // A group of the job's own making is inside.
    let inside = format!(
        "mkdir {0}/own; bash -c 'echo $$ > {0}/own/cgroup.procs; sleep 0.01'; echo done",
        world.group.group().directory().display()
    );
    assert_eq!(world.runner.ask(&inside), "done");
    world.sensors.lifecycle.drain();
    assert_eq!(world.seen.escaped.lock().unwrap().len(), count);
    world.end();
}
