//! When a job is looked at for reverse shells, and what is done with what is seen.
//!
//! Looking costs nothing worth measuring as long as there is no connection to another machine but the runner's own: then
//! only the socket table is read, every few seconds. With one, its processes are looked at when a connection is made, when a
//! program is executed, and once a second, at the [`Pace`] that it needs. Where the kernel's sensors can, they stop a shell
//! that has read something at the end of a connection, until it was looked at ([`held`]): looking alone comes a moment too
//! late for the first command.

mod held;
mod schedule;

use crate::caller::{ProcessKey, Worker};
use crate::cgroup::JobCgroup;
use crate::detect::monitor_tampering::{Tampering, TamperingFact, monitor_tampering};
use crate::detect::reverse_shell::flow::Flow;
use crate::detect::reverse_shell::{Certainty, Facts, Lead, leads, reverse_shell};
use crate::respond::Responder;
use crate::watch::attribution::ProcfsSensor;
use crate::watch::kernel::{JobStreams, WatchedJob};
use crate::watch::lifecycle::JobProcesses;
use crate::watch::shells::{Connections, ShellSensor, is_forked_copy, sample};
use crate::watch::sockets::SocketError;
use held::Held;
use portcullis_common::event::{DetectionType, Process};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::LockdownDetection;
use schedule::{Pace, Schedule};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often, while it has to be seen whether data flows.
const FLOW_TICK: Duration = Duration::from_millis(200);

/// How long a process that was forked and has executed nothing must hold the streams: a shell that is about to execute
/// another program holds that program's streams for less.
const FORKED_FOR: Duration = Duration::from_millis(100);

/// How long this sleeps at most, so that it is noticed when it slept for longer.
const WAKE: Duration = Duration::from_secs(1);

/// Waking up so much later than planned is no matter of load.
const SUSPENDED: Duration = Duration::from_secs(10);

/// The most leads that are kept in mind.
const LEAD_LIMIT: usize = 1_024;

/// Asks for a look. Never waits.
#[derive(Clone, Debug)]
pub struct LookSoon {
    queue: SyncSender<()>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// A connection was made since the last look.
    has_new_connection: AtomicBool,
    /// The last look saw a connection to another machine.
    any_remote: AtomicBool,
    /// Processes that are stopped until they are judged.
    held: Mutex<Vec<ProcessKey>>,
}

impl Shared {
    fn take_held(&self) -> Vec<ProcessKey> {
        std::mem::take(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where looks are asked for; see [`LookSoon`].
#[derive(Debug)]
pub struct Looks {
    queue: Receiver<()>,
    shared: Arc<Shared>,
}

/// The two ends.
pub fn looks() -> (LookSoon, Looks) {
    // One that waits is as good as many.
    let (sender, receiver) = sync_channel(1);
    let shared = Arc::<Shared>::default();
    (LookSoon { queue: sender, shared: Arc::clone(&shared) }, Looks { queue: receiver, shared })
}

impl LookSoon {
    /// A connection was made or tried.
    pub fn connection(&self) {
        self.shared.has_new_connection.store(true, Ordering::Relaxed);
        self.ask();
    }

    /// A process of the job executed a program, or changed its streams.
    pub fn executed(&self) {
        if self.shared.any_remote.load(Ordering::Relaxed) {
            self.ask();
        }
    }

    /// A process of the job is stopped until it is judged.
    pub fn held(&self, process: ProcessKey) {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner).push(process);
        self.ask();
    }

    fn ask(&self) {
        // Full means that a look is asked for already; gone, that the job is over.
        let _ = self.queue.try_send(());
    }
}

/// Who follows the job's processes by descent.
#[derive(Clone, Debug)]
pub enum Descent {
    /// The sensors in the kernel.
    Kernel(Arc<WatchedJob>),
    /// The process connector; nobody when there is none.
    Connector(Arc<Mutex<Option<JobProcesses>>>),
}

impl Descent {
    fn pids(&self) -> Vec<u32> {
        match self {
            Self::Kernel(watched) => watched.pids(),
            Self::Connector(processes) => {
                let processes = processes.lock().unwrap_or_else(PoisonError::into_inner);
                processes.iter().flat_map(JobProcesses::pids).collect()
            }
        }
    }
}

/// What a watch needs of its job.
#[derive(Debug)]
pub struct Watched {
    /// The job's Worker.
    pub worker: Arc<Worker>,
    /// The job's group.
    pub group: Option<JobCgroup>,
    /// Socket tables and snapshots of processes.
    pub sensor: Arc<ProcfsSensor>,
    /// The job's processes by descent.
    pub processes: Descent,
    /// Where findings go.
    pub responder: Arc<Responder>,
}

/// Starts the thread; it ends with the job's Worker.
///
/// # Errors
/// When it can't be started.
pub fn start(watched: Watched, looks: Looks) -> io::Result<()> {
    thread::Builder::new()
        .name("shells".to_owned())
        .spawn(move || Watch::new(watched).run(&looks))
        .map(drop)
}

#[derive(Debug)]
struct Watch {
    watched: Watched,
    shells: ShellSensor,
    /// Leads by shell and connection, and when they were seen first.
    seen: HashMap<(ProcessKey, u64), Instant>,
    flows: HashMap<(ProcessKey, u64), Flow>,
    told: HashSet<(ProcessKey, u64)>,
    has_failed: bool,
    held: Option<Held>,
}

/// The kernel's sensors stop shells for the watch where they can, and where it ends the job: nothing is gained by stopping
/// what is only recorded.
fn streams(watched: &Watched) -> Option<JobStreams> {
    let Descent::Kernel(job) = &watched.processes else { return None };
    if !ends_the_job(watched) {
        return None;
    }
    let streams = job.streams().map_err(str::to_owned).and_then(|streams| {
        streams.begin().map_err(|error| with_causes(&error))?;
        Ok(streams)
    });
    streams
        .map_err(|reason| tracing::warn!(reason, "shells are not stopped before they are judged"))
        .ok()
}

/// Whether a reverse shell is the end of the job, or is recorded only.
fn ends_the_job(watched: &Watched) -> bool {
    watched.responder.would_lock_down(DetectionType::Lockdown(LockdownDetection::ReverseShell))
}

impl Watch {
    fn new(watched: Watched) -> Self {
        let worker = &watched.worker;
        let shells = ShellSensor::new(worker.key(), worker.listener(), watched.group.clone());
        Self {
            held: streams(&watched).map(Held::new),
            watched,
            shells,
            seen: HashMap::new(),
            flows: HashMap::new(),
            told: HashSet::new(),
            has_failed: false,
        }
    }

    fn run(mut self, looks: &Looks) {
        let mut schedule = Schedule::starting(Instant::now(), self.pace());
        while !self.watched.worker.has_exited().unwrap_or(true) {
            let now = Instant::now();
            let next = schedule.next(now);
            let wake = self.held_again(now).map_or(next, |held| held.min(next)).min(now + WAKE);
            let asked = looks.queue.recv_timeout(wake.saturating_duration_since(now));
            self.note_suspension(wake.elapsed());
            // Stopped processes wait for nothing else.
            self.judge_held(looks.shared.take_held());
            if self.watched.responder.is_locked_down() {
                return;
            }
            let now = Instant::now();
            match asked {
                Ok(()) if looks.shared.has_new_connection.swap(false, Ordering::Relaxed) => {
                    schedule.connection(now);
                }
                Ok(()) => schedule.ask(now),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if schedule.next(now) > now {
                continue;
            }
            let begin = Instant::now();
            let (again, any_remote) = match self.look() {
                Ok(seen) => seen,
                Err(error) => {
                    self.failed(&error);
                    (None, false)
                }
            };
            looks.shared.any_remote.store(any_remote, Ordering::Relaxed);
            if self.watched.responder.is_locked_down() {
                return;
            }
            schedule.looked(begin, Instant::now(), any_remote, again);
        }
    }

    /// How soon it has to be looked.
    fn pace(&self) -> Pace {
        if self.held.is_none() && ends_the_job(&self.watched) { Pace::HASTY } else { Pace::CALM }
    }

    /// The monitor woke up late: it was stopped or frozen. (The clock stands still while the machine sleeps.)
    fn note_suspension(&self, late: Duration) {
        if late < SUSPENDED {
            return;
        }
        let fact = TamperingFact {
            tampering: Tampering::Suspended { seconds: late.as_secs() },
            process: None,
            is_of_job: None,
        };
        if let Some(finding) = monitor_tampering(&fact) {
            self.watched.responder.answer(finding);
        }
    }

    /// Looks once. When it should be looked again soon, and whether there is any connection to another machine.
    fn look(&mut self) -> Result<(Option<Duration>, bool), SocketError> {
        let Some(connections) = self.connections()? else {
            self.seen.clear();
            self.flows.clear();
            return Ok((None, false));
        };
        self.find_held();
        let mut facts = self.facts(&connections)?;
        if leads(&facts).iter().any(|lead| self.is_new(lead)) {
            // What was read of several processes is not of one moment: it must be so twice.
            facts = self.facts(&connections)?;
        }
        let mut again = None;
        for lead in leads(&facts) {
            if self.told.contains(&(lead.shell, lead.socket)) {
                continue;
            }
            match self.judge(&lead, &connections)? {
                Judged::Sure => self.tell(&lead, &facts),
                Judged::LookAgain(after) => {
                    again = Some(again.map_or(after, |soonest: Duration| soonest.min(after)));
                }
            }
        }
        Ok((again, true))
    }

    /// The connections, when there is one to another machine.
    fn connections(&mut self) -> Result<Option<Connections>, SocketError> {
        let sensor = Arc::clone(&self.watched.sensor);
        // Before the look, so that a connection that is made meanwhile counts as one that was not seen.
        let made = self.held.as_ref().map(|held| held.streams.made());
        let connections = self.shells.connections(sensor.diagnostics())?;
        if connections.any_remote {
            return Ok(Some(connections));
        }
        if let (Some(held), Some(made), false) = (&self.held, made, connections.any_waiting) {
            held.streams.set_idle(made);
        }
        Ok(None)
    }

    fn facts(&mut self, connections: &Connections) -> Result<Facts, SocketError> {
        let followed: Vec<u32> = { self.watched.processes.pids() };
        self.shells.facts(connections, self.watched.sensor.diagnostics(), &followed)
    }

    /// Whether the lead is seen for the first time; then it is no more.
    fn is_new(&mut self, lead: &Lead) -> bool {
        let key = (lead.shell, lead.socket);
        let is_new = !self.told.contains(&key) && !self.seen.contains_key(&key);
        if is_new {
            self.seen.insert(key, Instant::now());
        }
        is_new
    }

    fn judge(&mut self, lead: &Lead, connections: &Connections) -> Result<Judged, SocketError> {
        if self.seen.len() > LEAD_LIMIT {
            self.seen.clear();
            self.flows.clear();
        }
        let key = (lead.shell, lead.socket);
        let now = Instant::now();
        let Some(first) = self.seen.get(&key).copied() else {
            // It was not there the first time.
            self.seen.insert(key, now);
            return Ok(Judged::LookAgain(Duration::ZERO));
        };
        if lead.certainty == Certainty::Structure {
            let held = now.duration_since(first);
            return Ok(if held >= FORKED_FOR || !is_forked_copy(lead.shell.pid) {
                Judged::Sure
            } else {
                Judged::LookAgain(FORKED_FOR.saturating_sub(held))
            });
        }
        if self.is_fed(lead) {
            return Ok(Judged::Sure);
        }
        let diagnostics = self.watched.sensor.diagnostics();
        let is_sure = match sample(lead, connections, diagnostics)? {
            None => false,
            Some(sample) => {
                if let Some(flow) = self.flows.get_mut(&key) {
                    flow.add(sample)
                } else {
                    let flow = if lead.certainty == Certainty::RepeatedFlow {
                        Flow::of_its_own(sample)
                    } else {
                        Flow::new(sample)
                    };
                    self.flows.insert(key, flow);
                    false
                }
            }
        };
        Ok(if is_sure { Judged::Sure } else { Judged::LookAgain(FLOW_TICK) })
    }

    fn tell(&mut self, lead: &Lead, facts: &Facts) {
        if self.told.len() > LEAD_LIMIT {
            self.told.clear();
        }
        self.told.insert((lead.shell, lead.socket));
        let inspected = self.watched.sensor.inspector().inspect(lead.shell);
        let process = inspected.map_or_else(
            || {
                let holder = facts.holders.iter().find(|holder| holder.key == lead.shell);
                Process {
                    pid: Some(lead.shell.pid),
                    start_time: Some(lead.shell.start_time),
                    exe: holder.map(|holder| holder.executable.clone()),
                    ..Process::default()
                }
            },
            |process| Process::clone(&process),
        );
        self.watched.responder.answer(reverse_shell(lead, &process));
    }

    /// Told once; the next look is tried all the same.
    fn failed(&mut self, error: &SocketError) {
        if !self.has_failed {
            tracing::error!(error = %with_causes(error), "reverse shells can't be looked for");
        }
        self.has_failed = true;
    }
}

enum Judged {
    Sure,
    LookAgain(Duration),
}
