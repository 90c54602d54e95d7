//! The runner stand-in: how jobs end, and what is left of them, as `actions/runner` does it.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use portcullis_tests::{Job, JobOutcome, StepKind, StepOutcome, World, wait_until};
use std::fs;
use std::path::Path;

#[test]
fn orphans_are_known_by_their_tracking_id() -> Result<()> {
    let world = World::builder().build()?;
    let job = Job::script(
        "sleep 1001 </dev/null >/dev/null 2>&1 & echo tracked $!\n\
         RUNNER_TRACKING_ID= sleep 1002 </dev/null >/dev/null 2>&1 & echo untracked $!\n\
         # Until then it is a copy of the shell, which is tracked.\n\
         until [ \"$(cat /proc/$!/comm)\" = sleep ]; do :; done",
    );
    let result = world.runner(0).run(&job)?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    let pid = |word: &str| {
        let line = result.steps[0].log.lines().find_map(|line| line.strip_prefix(word));
        line.map(|pid| pid.trim().to_owned()).context("no pid")
    };
    let (tracked, untracked) = (pid("tracked ")?, pid("untracked ")?);
    assert_eq!(result.orphans, [format!("{tracked} (sleep)")]);
    wait_until("the orphan to go", || !Path::new("/proc").join(&tracked).join("exe").exists())?;
    assert!(Path::new("/proc").join(&untracked).join("exe").exists());
    Ok(())
}

#[test]
fn a_killed_worker_fails_the_job_and_its_own_words_are_the_annotation() -> Result<()> {
    let world = World::builder().build()?;
    let runner = world.runner(0);
    let hook = runner.write_script("hook.sh", "echo hook\n")?;
    runner.set_hooks(None, Some(&hook))?;
    let job = Job::default().step("echo done").step("echo $$; echo here; exec sleep 1003");
    for reason in ["", "policy build: lockdown, Reverse-Shell\nsecond line\n"] {
        let running = runner.begin(&job)?;
        running.wait_for_line("here")?;
        let worker = running.worker_pid()?;
        fs::write(format!("/proc/{worker}/fd/1"), "[WORKER 2026-11-21] trace\n")?;
        if !reason.is_empty() {
            fs::write(format!("/proc/{worker}/fd/2"), reason)?;
        }
        running.signal_worker(Signal::SIGKILL)?;
        let lines = running.lines();
        let result = running.wait()?;
        assert_eq!(result.outcome, JobOutcome::Failure);
        assert_eq!(result.worker_exit_code, 137);
        let outcomes: Vec<StepOutcome> = result.steps.iter().map(|step| step.outcome).collect();
        assert_eq!(outcomes, [StepOutcome::Success, StepOutcome::Unfinished], "no completed hook");
        let messages: Vec<&str> =
            result.annotations.iter().map(|annotation| annotation.message.as_str()).collect();
        let expected: &[&str] = if reason.is_empty() { &[] } else { &[reason.trim_end()] };
        assert_eq!(messages, expected);
        assert!(result.orphans.is_empty(), "no orphan clean-up");
        let pid = lines.iter().find(|line| line.parse::<u32>().is_ok()).context("no pid")?;
        assert!(Path::new("/proc").join(pid).join("exe").exists(), "the step's process stays");
    }
    Ok(())
}

#[test]
fn a_hook_that_leaves_its_output_open_costs_five_seconds() -> Result<()> {
    let world = World::builder().build()?;
    let runner = world.runner(0);
    let hook = runner.write_script("hook.sh", "sleep 1004 & echo daemon $!\n")?;
    let quick = runner.write_script("quick.sh", "sleep 1005 </dev/null >/dev/null 2>&1 &\n")?;
    runner.set_hooks(Some(&hook), Some(&quick))?;
    let result = world.runner(0).run(&Job::script("pgrep -x sleep | xargs echo alive"))?;
    assert_eq!(result.outcome, JobOutcome::Success, "{}", result.log());
    let started = result.hook_ms(StepKind::StartedHook).context("no hook")?;
    let completed = result.hook_ms(StepKind::CompletedHook).context("no hook")?;
    assert!((5_000.0..15_000.0).contains(&started), "{started}");
    assert!(completed < 4_000.0, "{completed}");
    // The runner gives up the streams, not the process.
    let daemon = result.steps[0].log.lines().find_map(|line| line.strip_prefix("daemon "));
    let daemon = daemon.context("no daemon")?;
    assert!(result.steps[1].log.contains(daemon), "{}", result.log());
    Ok(())
}

#[test]
fn a_cancelled_job_still_runs_what_always_runs() -> Result<()> {
    use StepKind::{CompletedHook, Main};
    use StepOutcome::{Cancelled, Skipped, Success};
    let world = World::builder().build()?;
    let runner = world.runner(0);
    let hook = runner.write_script("hook.sh", "echo hook\n")?;
    runner.set_hooks(None, Some(&hook))?;
    let job = Job::from_yaml(
        "steps:\n- {name: a, run: 'echo here; exec sleep 1006'}\n- {name: b, run: echo b}\n\
         - {name: c, if: always(), run: echo c}\n- {name: d, if: failure(), run: echo d}\n",
    )?;
    let running = runner.begin(&job)?;
    running.wait_for_line("here")?;
    running.cancel()?;
    let result = running.wait()?;
    assert_eq!(result.outcome, JobOutcome::Cancelled);
    assert_eq!(
        result.course(),
        [
            (Main, "a", Cancelled),
            (Main, "b", Skipped),
            (Main, "c", Success),
            (Main, "d", Skipped),
            (CompletedHook, "Complete runner", Success),
        ]
    );
    Ok(())
}

#[test]
fn a_shutdown_of_the_runner_skips_the_completed_hook() -> Result<()> {
    use StepKind::{CompletedHook, Main};
    use StepOutcome::{Cancelled, Skipped};
    let world = World::builder().build()?;
    let runner = world.runner(0);
    let hook = runner.write_script("hook.sh", "echo hook\n")?;
    runner.set_hooks(None, Some(&hook))?;
    let job = Job::from_yaml(
        "steps:\n- {name: a, run: 'echo here; exec sleep 1007'}\n- {name: b, if: always(), run: echo b}\n",
    )?;
    let running = runner.begin(&job)?;
    running.wait_for_line("here")?;
    running.shut_down_runner()?;
    let result = running.wait()?;
    assert_eq!(result.outcome, JobOutcome::Failure);
    assert_eq!(
        result.course(),
        [(Main, "a", Cancelled), (Main, "b", Skipped), (CompletedHook, "Complete runner", Skipped)]
    );
    Ok(())
}
