//! One job after the other on one runner: what is left of the last one disturbs the next one in nothing.

mod life;

use anyhow::{Context, Result, ensure};
use life::{BLOCK, Gate, assert_nothing_left, call, detections};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use portcullis_common::event::{DetectionType, EnforcementScope, RecordedDetection};
use portcullis_tests::{JobOutcome, World, wait_until};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};
use tempfile::TempDir;

/// Opcodes and sizes of the FUSE protocol, version 7.31 (`linux/fuse.h`).
const FUSE_INIT: u32 = 26;
const IN_HEADER_BYTES: usize = 40;
const OUT_HEADER_BYTES: u32 = 16;
const INIT_OUT_BYTES: u32 = 64;

/// A file system whose server takes every question and answers none but the first: whoever asks it something waits in the
/// kernel, and no signal ends that. Answers with errors once it is dropped.
struct DeafFileSystem {
    /// Where jobs see it, and not below a world, whose end would look into it and wait, too.
    place: TempDir,
    server: Option<JoinHandle<std::io::Result<()>>>,
}

impl DeafFileSystem {
    fn mount() -> Result<Self> {
        let place = TempDir::with_prefix_in("portcullis-deaf-", "/var/tmp")?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("deaf"), place.path(), Some("fuse"), flags, Some(options.as_str()))
            .context("FUSE can't be mounted")?;
        let server = thread::spawn(move || serve(device));
        Ok(Self { place, server: Some(server) })
    }
}

/// Until the kernel says that the file system is not mounted any more.
fn serve(mut device: File) -> std::io::Result<()> {
    let mut request = vec![0_u8; 1 << 17];
    loop {
        let length = match device.read(&mut request) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(()),
            Err(error) => return Err(error),
        };
        if length < IN_HEADER_BYTES || request[4..8] != FUSE_INIT.to_ne_bytes() {
            continue;
        }
        let mut answer = Vec::new();
        answer.extend((OUT_HEADER_BYTES + INIT_OUT_BYTES).to_ne_bytes());
        answer.extend(0_u32.to_ne_bytes());
        answer.extend(&request[8..16]);
        for field in [7_u32, 31, 0, 0, 0, 4_096, 1] {
            answer.extend(field.to_ne_bytes());
        }
        answer.resize((OUT_HEADER_BYTES + INIT_OUT_BYTES) as usize, 0);
        device.write_all(&answer)?;
    }
}

impl Drop for DeafFileSystem {
    fn drop(&mut self) {
        // Forced: every question that waits gets an error.
        let unmounted = umount2(self.place.path(), MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        if let (Ok(()), Some(server)) = (unmounted, self.server.take()) {
            let _ = server.join();
        }
    }
}

/// A process of the last job that can't be killed holds its end up; the next job works, and is judged by its own policy.
#[test]
fn a_job_starts_while_the_last_one_can_not_end() -> Result<()> {
    let other = "name: other\negress-policy: block\nallowed-endpoints: ['other.test:443']\nattach: [{repository: octo/other}]\n";
    for scope in ["host", "job"] {
        // First: a world's namespaces see what is mounted when they are made.
        let deaf = DeafFileSystem::mount()?;
        let world = World::builder().build()?;
        world.write_configuration(&format!("[defaults]\nscope = \"{scope}\"\n"))?;
        let gate = Gate::up(world, &[("block", BLOCK), ("other", other)])?;
        // Goes before the world, which can't end while a process hangs in it.
        let deaf = deaf;
        let stuck = format!(
            "cat {}/file >/dev/null 2>&1 & {}",
            deaf.place.path().display(),
            call("ok.test")
        );
        let first = gate.world.runner(0).run(&gate.job(&stuck))?;
        ensure!(first.outcome == JobOutcome::Success, "{}", first.log());
        // `ok.test` is what only the last job's policy allows.
        let script = format!("{}\nif {}; then exit 9; fi", call("other.test"), call("ok.test"));
        let next = gate.world.runner(0).run(&gate.job(&script).repository("octo/other"))?;
        ensure!(next.outcome == JobOutcome::Success, "{}\n{}", next.log(), gate.monitor.log());
        let status = gate.monitor.status()?;
        let last = status.jobs.iter().find(|job| job.policy == "hello-block");
        let last =
            last.with_context(|| format!("it was killed, this shows nothing: {status:?}"))?;
        ensure!(last.scope == EnforcementScope::Job, "{last:?}");
        wait_until("the second job's end", || {
            gate.monitor.status().is_ok_and(|status| status.jobs.len() == 1)
        })?;
        drop(deaf);
        gate.monitor.wait_until_idle()?;
        assert_nothing_left(&gate.world)?;
        for id in gate.world.job_ids()? {
            let events = gate.world.events(&id)?;
            let tampering = DetectionType::Recorded(RecordedDetection::FirewallTampering);
            let of_ours = detections(&events).find(|found| found.detection == tampering);
            ensure!(of_ours.is_none(), "our own change of the rules: {of_ours:?}");
        }
    }
    Ok(())
}

/// One after the other, as fast as a runner can: no look-up of an honest job fails because of the rules of the last one.
#[test]
fn jobs_that_follow_at_once_have_their_own_rules() -> Result<()> {
    let gate = Gate::up(World::builder().build()?, &[("block", BLOCK)])?;
    for _ in 0..8 {
        let result = gate.world.runner(0).run(&gate.job(&call("ok.test")))?;
        ensure!(result.outcome == JobOutcome::Success, "{}\n{}", result.log(), gate.monitor.log());
    }
    gate.monitor.wait_until_idle()?;
    for id in gate.world.job_ids()? {
        let events = gate.world.events(&id)?;
        ensure!(detections(&events).next().is_none(), "{:?}", detections(&events).next());
    }
    assert_nothing_left(&gate.world)
}
