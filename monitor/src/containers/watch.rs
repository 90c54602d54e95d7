//! Finds containers as the kernel shows them, whatever engine made them.
//!
//! The sensors in the kernel tell when a program is executed in a container, and stop what a job makes by itself until it was
//! judged; without them the process connector tells, a moment later; where there is neither, a new cgroup tells that a
//! container is being made, and all processes are looked at twice a second. The thread sleeps when nothing happens, but for a
//! look at all processes every now and then ([`super::source`]), for what becomes a container without executing anything.

use super::Containers;
use super::WatchedJob;
use super::asked::{Program, Work};
use super::groups::Groups;
use super::judging::{Judge, Judged};
use super::sockets::Sockets;
use super::source::Pace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// When processes are looked at after something happened where nobody tells of programs, in milliseconds: a runtime needs 50 to
/// 500 until a container's program runs.
const AFTER: [u64; 8] = [0, 10, 30, 60, 120, 250, 400, 700];

/// How often it is looked at what is in the making.
const MAKING: Duration = Duration::from_millis(50);

/// How often it is looked whether a service has opened a socket where none has one by custom. In the usual directories it is
/// told at once.
const SOCKETS: Duration = Duration::from_secs(5);

/// Starts the thread.
pub(super) fn start(containers: Arc<Containers>) -> io::Result<()> {
    let wake = containers.asked.open()?;
    std::thread::Builder::new().name("containers".to_owned()).spawn(move || {
        Watcher {
            judge: Judge::new(Arc::clone(&containers)),
            containers,
            wake,
            groups: None,
            sockets: None,
            looks: Vec::new(),
            looked: Instant::now(),
            kept_up: Instant::now(),
        }
        .run();
    })?;
    Ok(())
}

struct Watcher {
    containers: Arc<Containers>,
    judge: Judge,
    wake: UnixStream,
    /// Where nobody tells of programs.
    groups: Option<Groups>,
    /// The directories of services' sockets that are closed to a job.
    sockets: Option<(BTreeSet<PathBuf>, Sockets)>,
    /// Looks that are due.
    looks: Vec<Instant>,
    /// The last look at all processes.
    looked: Instant,
    /// The last look at services' sockets.
    kept_up: Instant,
}

impl Watcher {
    fn run(mut self) {
        loop {
            let pace = self.containers.source.lock().unwrap_or_else(PoisonError::into_inner).pace();
            self.watch_groups(pace);
            let (work, is_socket) = self.wait(self.next(pace));
            let jobs = self.containers.jobs();
            if jobs.is_empty() {
                // What waits in `work` goes on when it is dropped.
                self.judge.rest();
                (self.groups, self.sockets, self.looks) = (None, None, Vec::new());
                continue;
            }
            self.keep_up(&jobs, is_socket || work.all);
            self.look(work, &jobs, pace);
        }
    }

    fn look(&mut self, work: Work, jobs: &[Arc<WatchedJob>], pace: Pace) {
        for program in work.programs {
            match program {
                Program::Contained(mut program) => {
                    let (process, container) = (program.process, program.container);
                    let judged = self.judge.process(process.pid, Some(&mut program), jobs);
                    // The next program in this container is told, too.
                    if judged != Judged::Done {
                        self.containers.forget(&container);
                    }
                }
                Program::Executed(pid) => {
                    self.judge.process(pid, None, jobs);
                }
            }
        }
        let now = Instant::now();
        if work.any && pace.is_blind {
            self.looks.extend(AFTER.iter().map(|after| now + Duration::from_millis(*after)));
        }
        let is_due = self.looks.iter().any(|look| *look <= now);
        self.looks.retain(|look| *look > now);
        // Many at a time come to one look each ten milliseconds.
        self.looks.sort_unstable();
        self.looks.dedup_by_key(|look| look.saturating_duration_since(now).as_millis() / 10);
        let is_time = pace.interval.is_none_or(|interval| self.looked + interval <= now);
        if work.all || is_due || is_time {
            self.judge.all(jobs, work.wake_stopped);
            self.looked = now;
        }
        self.judge.making(jobs);
    }

    /// When it is looked next, if nothing happens.
    fn next(&self, pace: Pace) -> Option<Instant> {
        let now = Instant::now();
        let interval = pace.interval.map(|interval| self.looked + interval);
        let making = self.judge.is_waiting().then(|| now + MAKING);
        let sockets = self.sockets.as_ref().map(|_| self.kept_up + SOCKETS);
        self.looks.iter().copied().chain(interval).chain(making).chain(sockets).min()
    }

    /// Waits until something happens, or until `next`. What is to be done, and whether an engine may have made a socket.
    fn wait(&mut self, next: Option<Instant>) -> (Work, bool) {
        let timeout = next.map_or(PollTimeout::NONE, |next| {
            let limit = next.saturating_duration_since(Instant::now());
            // Not a little too early.
            PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let groups = self.groups.as_ref().map(Groups::descriptor);
        let sockets = self.sockets.as_ref().map(|(_, sockets)| sockets.descriptor());
        let mut descriptors: Vec<PollFd<'_>> = [Some(self.wake.as_fd()), groups, sockets]
            .into_iter()
            .flatten()
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        // Interrupted or not: what is there is read below.
        let _ = poll(&mut descriptors, timeout);
        let mut buffer = [0; 256];
        while matches!((&self.wake).read(&mut buffer), Ok(length) if length > 0) {}
        let mut work = self.containers.asked.take();
        work.any |= self.groups.as_mut().is_some_and(Groups::take);
        let is_socket = self.sockets.as_mut().is_some_and(|(_, sockets)| sockets.take());
        (work, is_socket)
    }

    /// Watches cgroups as long as nobody tells of programs.
    fn watch_groups(&mut self, pace: Pace) {
        if !pace.is_blind {
            self.groups = None;
        } else if self.groups.is_none() {
            let root = self.containers.hierarchy.as_ref().map(|all| all.mount_point().to_owned());
            self.groups = root.and_then(|root| {
                Groups::watch(&root)
                    .inspect_err(
                        |error| tracing::warn!(%error, "new cgroups are not noticed at once"),
                    )
                    .ok()
            });
        }
    }

    /// Closes what services have opened to jobs that may not use them.
    fn keep_up(&mut self, jobs: &[Arc<WatchedJob>], is_asked: bool) {
        let wanting: Vec<_> = jobs
            .iter()
            .map(|job| (&job.keep_up, job.keep_up.directories()))
            .filter(|(_, directories)| !directories.is_empty())
            .collect();
        if wanting.is_empty() {
            self.sockets = None;
            return;
        }
        let directories: BTreeSet<PathBuf> =
            wanting.iter().flat_map(|(_, directories)| directories.clone()).collect();
        if self.sockets.as_ref().is_none_or(|(watched, _)| *watched != directories) {
            self.sockets = Sockets::watch(&directories)
                .inspect_err(
                    |error| tracing::warn!(%error, "services' sockets are not noticed at once"),
                )
                .ok()
                .map(|sockets| (directories, sockets));
        } else if !is_asked && self.kept_up.elapsed() < SOCKETS {
            return;
        }
        for (keep_up, _) in wanting {
            keep_up.run();
        }
        self.kept_up = Instant::now();
    }
}
