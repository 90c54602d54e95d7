//! Input that is wrong by mistake or on purpose: hooks outside a runner, hostile values, hostile peers of the socket, a
//! monitor that does not answer or is not there; and what the monitor's commands say.

mod life;

use anyhow::{Context, Result, ensure};
use life::{
    BLOCK, EXFILTRATE, Gate, Puppet, assert_nothing_left, call, job_groups, our_tables, wait_gone,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis_common::wire::{Explained, HostCheck, Status};
use portcullis_tests::job::StepKind;
use portcullis_tests::{JobOutcome, World, wait_until};
use std::fs;
use std::time::{Duration, Instant};

fn gate(runners: u32) -> Result<Gate> {
    Gate::up(World::builder().runners(runners).build()?, &[("block", BLOCK)])
}

/// Hooks that nobody but a runner should call.
#[test]
fn hooks_outside_a_runner_refuse() -> Result<()> {
    let gate = gate(1)?;
    let bin = gate.world.root().join("opt/portcullis/bin");
    let run = |hook: &str,
               arguments: &[&str],
               environment: &[(&str, &str)]|
     -> Result<(Option<i32>, String)> {
        let mut command = gate
            .world
            .command(bin.join(hook))
            .args(["--socket".as_ref(), gate.world.socket().as_os_str()])
            .args(arguments)
            .user(12_150);
        for (name, value) in environment {
            command = command.env(name, value);
        }
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code(), text))
    };
    let whole = [
        ("GITHUB_REPOSITORY", "octo/hello"),
        ("GITHUB_REPOSITORY_OWNER", "octo"),
        ("GITHUB_WORKFLOW_REF", "octo/hello/.github/workflows/ci.yml@refs/heads/main"),
        ("GITHUB_WORKFLOW", "CI"),
        ("GITHUB_JOB", "build"),
        ("GITHUB_RUN_ID", "1"),
        ("GITHUB_RUN_ATTEMPT", "1"),
        ("GITHUB_REF", "refs/heads/main"),
        ("GITHUB_SHA", "ffac537e6cbbf934b08745a378932722df287a53"),
        ("GITHUB_EVENT_NAME", "push"),
        ("GITHUB_ACTOR", "octocat"),
        ("GITHUB_SERVER_URL", "https://github.com"),
        ("RUNNER_NAME", "nobody"),
    ];
    let (status, text) = run("pre-job", &[], &[])?;
    ensure!(status == Some(64) && text.contains("GITHUB_") && text.contains("hint"), "{text}");
    let (status, text) = run("pre-job", &[], &whole)?;
    ensure!(status == Some(2) && text.contains("Runner.Worker"), "{status:?} {text}");
    let (status, text) = run("post-job", &[], &whole)?;
    ensure!(status == Some(2) && text.contains("no policy was bound"), "{status:?} {text}");
    for hook in ["pre-job", "post-job"] {
        let (status, text) = run(hook, &["--nonsense"], &whole)?;
        ensure!(status == Some(64) && text.contains("--nonsense"), "{text}");
        let (status, text) = run(hook, &["--help"], &[])?;
        ensure!(status == Some(0) && text.contains("Exit status"), "{text}");
        let (status, text) = run(hook, &["--version"], &[])?;
        ensure!(status == Some(0) && text.starts_with(hook), "{text}");
        let (status, text) = run(hook, &["--json"], &whole)?;
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        ensure!(status == Some(2) && answer["answer"] == "refused", "{text}");
    }
    assert_nothing_left(&gate.world)
}

/// Values that GitHub would not send, and some that it might.
#[test]
fn hostile_values_are_refused_or_stay_text() -> Result<()> {
    let gate = gate(1)?;
    let long = "x".repeat(100_000);
    let mut cases: Vec<(&str, Option<String>)> = Vec::new();
    for name in ["GITHUB_REPOSITORY", "GITHUB_WORKFLOW_REF", "GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT"]
    {
        cases.push((name, None));
        cases.push((name, Some(String::new())));
        cases.push((name, Some("octo/hello\n::stop-commands::forged\n\u{1b}[31m".to_owned())));
        cases.push((name, Some(long.clone())));
    }
    cases.push(("GITHUB_REPOSITORY", Some("../../etc/passwd".to_owned())));
    cases.push(("GITHUB_REPOSITORY", Some("octo/hello/more".to_owned())));
    cases.push(("GITHUB_RUN_ID", Some("-1".to_owned())));
    cases.push(("GITHUB_RUN_ID", Some("99999999999999999999999".to_owned())));
    for (name, value) in cases {
        let shown: String = value.as_deref().unwrap_or("(absent)").chars().take(60).collect();
        let mut job = gate.job("echo $((6 * 7)) ordinary steps");
        match value {
            None => job.context.without.push(name.to_owned()),
            Some(value) => drop(job.context.variables.insert(name.to_owned(), value)),
        }
        let result = gate.run(&job)?;
        let hook = result.step_of_kind(StepKind::StartedHook).context("no started hook")?;
        let context = || format!("{name}={shown:?}: {:?}\n{}", hook.exit_code, hook.log);
        ensure!(hook.exit_code == Some(64), "{}", context());
        ensure!(hook.log.len() < 20_000, "{} bytes: {}", hook.log.len(), context());
        ensure!(!hook.log.contains('\u{1b}'), "{}", context());
        ensure!(!hook.log.lines().any(|line| line.starts_with("::stop-commands")), "{}", context());
        ensure!(result.outcome == JobOutcome::Failure, "{}", context());
        ensure!(!result.log().contains("42 ordinary steps"), "{}", context());
        assert_nothing_left(&gate.world)?;
    }
    // The twins: values of people that look odd and are right.
    let mut odd = gate.job(&call("ok.test"));
    odd.context.workflow = "Build \u{2192} \"test\" | `deploy` %0A é".to_owned();
    odd.context.git_ref = "refs/heads/feature/ünï-code#1".to_owned();
    odd.context.variables.insert("GITHUB_UNRELATED".to_owned(), long.clone());
    for number in 0..9 {
        odd.context.variables.insert(format!("GITHUB_UNRELATED_{number}"), long.clone());
    }
    let result = gate.run(&odd)?;
    ensure!(
        result.outcome == JobOutcome::Success,
        "{}",
        result.log().chars().take(4000).collect::<String>()
    );
    assert_nothing_left(&gate.world)
}

/// Without a gate the same values reach a step byte for byte, and the attack its goal, so that these tests can fail.
#[test]
fn without_a_gate_hostile_values_and_attacks_arrive() -> Result<()> {
    let world = World::builder().build()?;
    let canary = portcullis_tests::Canary::generate()?;
    let hostile = "octo/hello\n::stop-commands::forged\n\u{1b}[31m";
    let long = "x".repeat(100_000);
    let script = format!(
        "printf %s \"$GITHUB_REPOSITORY\" >value; printf %s \"$GITHUB_RUN_ID\" >long\n{EXFILTRATE}"
    );
    let mut job = portcullis_tests::Job::script(&script).secret("S", canary.as_str());
    job.context.variables.insert("GITHUB_REPOSITORY".to_owned(), hostile.to_owned());
    job.context.variables.insert("GITHUB_RUN_ID".to_owned(), long.clone());
    let result = world.runner(0).run(&job)?;
    let place = world.runner(0).directory().join("_work/hello/hello");
    let read = |name: &str| {
        fs::read_to_string(place.join(name)).with_context(|| format!("{name}: {}", result.log()))
    };
    ensure!(read("value")? == hostile, "{:?}", read("value")?);
    ensure!(read("long")? == long);
    ensure!(world.attacker().saw(&canary)?, "{}", result.log());
    Ok(())
}

/// What a job of another user does to the monitor's socket.
const HOSTILE_PEERS: &str = r#"
cat >"$RUNNER_TEMP/peers.py" <<'END'
import os, random, resource, socket, sys, time
kind, path, place = sys.argv[1], sys.argv[2], sys.argv[3]
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held, made = [], 0
random.seed(7)
while not os.path.exists(place + "/stop"):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(1)
    try:
        s.connect(path)
        s.setblocking(False)
        if kind == "half":
            s.send(b'{"version":1,"request":"sta')
        elif kind == "bytes":
            s.send(random.randbytes(random.randrange(1, 4000)) + b"\n")
        elif kind == "long":
            s.send(b"{" * 200000)
        elif kind == "deaf":
            s.send(b'{"version":1,"request":"status"}\n')
        made += 1
    except OSError:
        time.sleep(0.001)
    held.append(s)
    if len(held) > 400:
        held.pop(0).close()
    open(place + "/made." + kind, "w").write(str(made)) if made % 100 == 0 else None
END
for kind in silent half bytes long deaf; do
    python3 "$RUNNER_TEMP/peers.py" $kind "$SOCKET" "$PUPPET" >/dev/null 2>&1 &
done
"#;

/// 10 000 connections and more of one user, while another user's job comes and goes.
#[test]
fn hostile_peers_of_the_socket_hold_nobody_up() -> Result<()> {
    let mut gate = gate(2)?;
    for runner in gate.world.runners() {
        runner.start()?;
    }
    let monitor = gate.monitor.pid();
    // The first job has the sensors loaded.
    let first = gate.world.runner(0).run(&gate.job("true"))?;
    ensure!(first.outcome == JobOutcome::Success, "{}", first.log());
    gate.monitor.wait_until_idle()?;
    let before = fs::read_dir(format!("/proc/{monitor}/fd"))?.count();
    let mut puppet = Puppet::start_in(&gate.world, 1, "octo/other", &gate.canary)?;
    puppet.run(&format!("SOCKET={}\n{HOSTILE_PEERS}", gate.world.socket().display()))?;
    let descriptors = || fs::read_dir(format!("/proc/{monitor}/fd")).map_or(0, Iterator::count);
    let mut worst = Duration::ZERO;
    let total = |puppet: &mut Puppet<'_>| -> Result<u64> {
        let done = puppet.run("cat \"$PUPPET\"/made.* 2>/dev/null | sed 's/$/\\n/'; true")?;
        Ok(done.output.split_whitespace().filter_map(|text| text.parse::<u64>().ok()).sum())
    };
    loop {
        let started = Instant::now();
        let script = format!("{EXFILTRATE}\n{}", call("ok.test"));
        let result = gate.world.runner(0).run(&gate.job(&script))?;
        ensure!(result.outcome == JobOutcome::Success, "{}\n{}", result.log(), gate.monitor.log());
        for kind in [StepKind::StartedHook, StepKind::CompletedHook] {
            let took = result.hook_ms(kind).context("no hook")?;
            worst = worst.max(Duration::from_secs_f64(took / 1e3));
        }
        ensure!(started.elapsed() < Duration::from_mins(1));
        if total(&mut puppet)? >= 10_000 {
            break;
        }
    }
    // How long it takes is the machine's matter; a hook that is held up by others ends after 30 s, and fails its job.
    ensure!(
        worst < portcullis_tests::patience::patience(),
        "a hook took {worst:?}\n{}",
        gate.monitor.log()
    );
    puppet.run("touch \"$PUPPET/stop\"; wait")?;
    let result = puppet.finish()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    gate.monitor.wait_until_idle()?;
    ensure!(gate.monitor.is_running() && gate.monitor.pid() == monitor);
    // The sensors have some, which stay; a connection has one.
    wait_until("the connections to be closed", || descriptors() <= before + 8)?;
    // The second runner's job is unattached, so audited; the first one's is not.
    assert_nothing_left(&gate.world)
}

/// A monitor that does not answer: hooks end in bounded time, and say why.
#[test]
fn hooks_end_when_the_monitor_does_not_answer() -> Result<()> {
    let gate = gate(1)?;
    let mut puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let bin = gate.world.root().join("opt/portcullis/bin");
    let socket = gate.world.socket();
    gate.monitor.signal(Signal::SIGSTOP)?;
    let started = Instant::now();
    puppet.begin(&format!(
        "{pre} --socket {socket} >\"$PUPPET/pre\" 2>&1 & pre=$!
         {post} --socket {socket} >\"$PUPPET/post\" 2>&1 & post=$!
         {EXFILTRATE}
         wait $pre; echo pre $?; wait $post; echo post $?; cat \"$PUPPET/pre\" \"$PUPPET/post\"",
        pre = bin.join("pre-job").display(),
        post = bin.join("post-job").display(),
        socket = socket.display(),
    ))?;
    let done = portcullis_tests::wait_for_within(Duration::from_mins(1), "the hooks", || {
        puppet.wait().ok()
    })?;
    let took = started.elapsed();
    gate.monitor.signal(Signal::SIGCONT)?;
    ensure!(done.output.contains("pre 2") && done.output.contains("post 2"), "{done:?}");
    assert_eq!(done.output.matches("did not answer within 30 s").count(), 2, "{done:?}");
    ensure!(took < Duration::from_secs(45), "{took:?}");
    assert_eq!(our_tables(&gate.world)?.len(), 2);
    let result = puppet.finish()?;
    ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
    gate.monitor.wait_until_idle()?;
    gate.assert_contained(&result)
}

/// Where the hook runs as root and no monitor is there, it starts one that outlives the job.
#[test]
fn a_hook_that_is_root_starts_the_monitor() -> Result<()> {
    let world = World::builder().build()?;
    world.write_policy("block", BLOCK)?;
    world.install_hooks()?;
    let program = world.install_program("monitor")?;
    for name in ["pre-job", "post-job"] {
        let hook = world.root().join(format!("opt/portcullis/hooks/{name}.sh"));
        let script = format!(
            "#!/bin/bash\nexec sudo -n {} --socket {}\n",
            world.root().join("opt/portcullis/bin").join(name).display(),
            world.socket().display()
        );
        fs::write(hook, script)?;
    }
    let monitors = || -> Vec<i32> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    };
    let canary = portcullis_tests::Canary::generate()?;
    let script = format!("{EXFILTRATE}\n{}", call("ok.test"));
    let job = portcullis_tests::Job::script(&script).secret("S", canary.as_str());
    let mut first = None;
    for _ in 0..2 {
        let result = world.runner(0).run(&job)?;
        ensure!(result.outcome == JobOutcome::Success, "{}", result.log());
        let hook = result.step_of_kind(StepKind::StartedHook).context("no started hook")?;
        ensure!(hook.log.contains("policy hello-block"), "{}", hook.log);
        ensure!(hook.duration_ms < 4_000.0, "its streams were kept open: {} ms", hook.duration_ms);
        ensure!(result.orphans.is_empty(), "{:?}", result.orphans);
        let running = monitors();
        ensure!(running.len() == 1, "{running:?}");
        ensure!(*first.get_or_insert(running[0]) == running[0], "another one was started");
        wait_until("nothing to be left of the job", || {
            our_tables(&world).is_ok_and(|left| left.is_empty())
                && job_groups(world.runner(0)).iter().all(|name| name.contains("monitor"))
        })?;
        ensure!(monitors() == running, "the monitor did not outlive the job");
    }
    let pid = first.context("no monitor")?;
    let environment = fs::read(format!("/proc/{pid}/environ"))?;
    ensure!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));
    for descriptor in 0..3 {
        assert_eq!(
            fs::read_link(format!("/proc/{pid}/fd/{descriptor}"))?.to_str(),
            Some("/dev/null")
        );
    }
    world.attacker().assert_untouched(&canary)?;
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    wait_gone(u32::try_from(pid)?)
}

/// `status`, `check` and `explain`, for programs and for people.
#[test]
fn the_monitors_commands_tell_what_is_in_force() -> Result<()> {
    let gate = gate(1)?;
    let puppet = Puppet::start(&gate, 0, "octo/hello")?;
    let worker = puppet.job.worker_pid()?;
    let ask = |arguments: &[&str]| gate.monitor.subcommand(arguments).text();

    let text = ask(&["status", "--json"])?;
    let status: Status = serde_json::from_str(&text)?;
    assert_eq!(status.jobs.len(), 1, "{text}");
    assert_eq!(
        (status.jobs[0].worker_pid, status.jobs[0].policy.as_str()),
        (worker, "hello-block")
    );
    let value: serde_json::Value = serde_json::from_str(&text)?;
    for key in [
        "id",
        "worker_pid",
        "policy",
        "version",
        "scope",
        "mode",
        "posture",
        "grants",
        "events",
        "blocked",
        "detections",
    ] {
        ensure!(!value["jobs"][0][key].is_null(), "{key}: {text}");
    }
    let text = ask(&["status"])?;
    ensure!(text.contains("hello-block") && text.contains(&worker.to_string()), "{text}");

    let check: HostCheck = serde_json::from_str(&ask(&["check", "--json"])?)?;
    for name in ["nftables", "cgroup-v2", "policies", "configuration"] {
        ensure!(check.features.iter().any(|feature| feature.name == name), "{name}: {check:#?}");
    }
    ensure!(ask(&["check"])?.contains("would be enforced"));

    let explained: Explained = serde_json::from_str(&ask(&["explain", "octo/hello", "--json"])?)?;
    assert_eq!(explained.policy, "hello-block");
    ensure!(explained.considered.iter().any(|considered| considered.chosen), "{explained:#?}");
    let other: Explained = serde_json::from_str(&ask(&[
        "explain",
        "octo/other",
        ".github/workflows/x.yml",
        "--json",
    ])?)?;
    ensure!(other.policy != "hello-block" && other.considered.len() >= 3, "{other:#?}");
    ensure!(ask(&["explain", "octo/hello"])?.contains("=>"));

    let usage = gate.monitor.subcommand(&["explain"]).output()?;
    assert_eq!(usage.status.code(), Some(64));
    let second = gate.monitor.subcommand(&["serve"]).output()?;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(second.status.code() == Some(1) && said.contains("another monitor runs"), "{said}");
    puppet.finish()?;
    gate.monitor.wait_until_idle()?;
    ensure!(ask(&["status"])?.contains("no jobs"));
    Ok(())
}
