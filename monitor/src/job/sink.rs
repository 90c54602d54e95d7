//! Where the watchers' facts go: attributed, made into events, recorded.

use super::frames::FrameSenders;
use super::grant_book::GrantBook;
use super::observe::{dns_event, is_no_call, network_event, peer, protocol_name};
use super::shell_watch::LookSoon;
use crate::containers::Containers;
use crate::dns::{
    DnsDetection, DnsObservation, DnsObserver, DnsOutcome, Transport, UpstreamChange,
};
use crate::egress::grant::{Grant, GrantError, GrantSink};
use crate::egress::log_prefix::{LogPrefix, Path};
use crate::nftables::InstalledTable;
use crate::record::recorder::Recorder;
use crate::watch::attribution::{ProcessSensor, ProcfsSensor};
use crate::watch::flow;
use crate::watch::nflog::LoggedPacket;
use portcullis_common::event::{
    DetectionEvent, DetectionType, PolicyReference, Process, RecordedDetection, Verdict,
};
use portcullis_common::hook::with_causes;
use portcullis_common::policy::EffectivePolicy;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use std::{io, iter};

/// Observations of the resolver that wait to be recorded. Each is a few hundred bytes, and there only while it waits.
const WAITING_OBSERVATIONS: usize = 16_384;

/// How long observations wait in a burst. Being woken for each costs the client more than recording it does: the two share a
/// processor. As long as logged packets wait, so that a name stands before the call that followed from it.
const BURST_PAUSE: Duration = Duration::from_millis(2);

/// What is needed to make events of facts.
#[derive(Debug)]
pub struct EventContext {
    /// The servers that the job's programs believe to ask.
    pub dns_servers: Vec<SocketAddr>,
    /// Who did it.
    pub sensor: Arc<dyn ProcessSensor>,
    /// Sockets of the Worker's network namespace.
    pub sockets: Arc<ProcfsSensor>,
    /// Which name opened which address.
    pub book: Arc<GrantBook>,
    /// Where events go.
    pub recorder: Arc<Recorder>,
    /// The policy as it is enforced.
    pub policy: Arc<EffectivePolicy>,
    /// How events name it.
    pub reference: PolicyReference,
    /// Who has sent frames that bypass IP.
    pub frame_senders: FrameSenders,
    /// Asks for a look at the job's shells when a connection is made.
    pub look_soon: LookSoon,
    /// How containers are called.
    pub containers: Arc<Containers>,
}

impl EventContext {
    /// Records a packet that a rule logged.
    pub fn packet(&self, packet: &LoggedPacket) {
        let prefix: LogPrefix = match packet.prefix.parse() {
            Ok(prefix) => prefix,
            // The group is ours alone, but any root process can make a rule that logs to it.
            Err(error) => return tracing::warn!(error = %error, "a logged packet is not ours"),
        };
        if prefix.path == Path::Device {
            return self.frame(packet, &prefix);
        }
        self.look_soon.connection();
        let (address, port) = peer(&packet.headers, prefix.path);
        let name = self.book.find(address, &protocol_name(packet.headers.protocol), port);
        let process = self
            .sensor
            .attribute(&packet.flow())
            .to_process()
            .or_else(|| packet.uid.map(|uid| Process { uid: Some(uid), ..Process::default() }));
        if prefix.path == Path::Output && prefix.kind.verdict() == Verdict::Blocked {
            self.refuse(packet);
        }
        let mut event =
            network_event(&packet.headers, &prefix, name, process, &self.policy, &self.reference);
        if prefix.path == Path::Forward {
            event.container = self.containers.name_of(packet.headers.source);
        }
        self.recorder.network(event);
    }

    /// Ends a connection attempt whose packet was dropped, so that its program does not wait for minutes.
    fn refuse(&self, packet: &LoggedPacket) {
        if packet.headers.protocol != flow::TCP {
            return;
        }
        if let Err(error) = self.sockets.diagnostics().refuse(&packet.flow()) {
            tracing::debug!(error = %with_causes(&error), "a blocked connection attempt could not be ended");
        }
    }

    /// Remembers the name of addresses that were answered and not opened.
    fn learn(&self, outcome: &DnsOutcome) {
        for address in outcome.answered.iter() {
            if !outcome.granted.contains(address) {
                self.book.learn(*address, &outcome.name, &outcome.cname_chain);
            }
        }
    }

    fn observation(&self, observation: &DnsObservation) {
        let outcome = &observation.outcome;
        // Asked for again, perhaps from the cache: the newest name of its addresses.
        self.learn(outcome);
        let process = observation
            .process
            .as_deref()
            .cloned()
            .or_else(|| self.asker(observation.client, observation.transport));
        // What no process of this network asked came from a container's.
        let address = observation.client.ip().to_canonical();
        let container = (process.is_none() && !address.is_loopback())
            .then(|| self.containers.name_of(address))
            .flatten();
        let mut event = dns_event(observation, process, container, &self.reference);
        if is_no_call(outcome) && outcome.verdict == Verdict::Blocked {
            // Recorded as what it is, but no call of the job was stopped.
            event.verdict = Verdict::Allowed;
        }
        self.recorder.dns(event);
    }

    fn detection(&self, detection: &DnsDetection) {
        let process = detection
            .process
            .as_deref()
            .cloned()
            .or_else(|| self.asker(detection.client, detection.transport));
        let below = detection.below.as_deref().unwrap_or("all names");
        self.recorder.detection(DetectionEvent {
            detection: DetectionType::Recorded(RecordedDetection::DnsExfiltration),
            evidence: format!(
                "{} ({below}); the name that exceeded it: {}",
                detection.budget, detection.name
            ),
            is_lockdown: false,
            process,
        });
    }

    fn asker(&self, client: SocketAddr, transport: Transport) -> Option<Process> {
        let protocol = match transport {
            Transport::Udp => flow::UDP,
            Transport::Tcp => flow::TCP,
        };
        self.sensor.attribute_client(protocol, client, &self.dns_servers).to_process()
    }
}

/// The resolver's observer: a bounded queue and a thread that attributes and records.
#[derive(Debug)]
pub struct DnsSink {
    context: Arc<EventContext>,
    queue: Sender<Observed>,
    waiting: Arc<AtomicUsize>,
    lost: AtomicU64,
    recorder: Thread,
    notices: tokio::sync::mpsc::Sender<String>,
}

#[derive(Debug)]
enum Observed {
    Query(Box<DnsObservation>),
    Detection(Box<DnsDetection>),
    /// Answered when everything before it was recorded.
    Flush(SyncSender<()>),
}

impl DnsSink {
    /// Starts the thread. It ends when the sink is dropped. What changes the job's posture is told to `notices`.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn start(
        context: Arc<EventContext>,
        notices: tokio::sync::mpsc::Sender<String>,
    ) -> io::Result<Self> {
        // Not one with places that are made beforehand: for most jobs they would stay empty.
        let (queue, observed) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let (events, left) = (Arc::clone(&context), Arc::clone(&waiting));
        let recorder = thread::Builder::new()
            .name("dns-events".to_owned())
            .spawn(move || record(&events, &observed, &left))?
            .thread()
            .clone();
        Ok(Self { context, queue, waiting, lost: AtomicU64::new(0), recorder, notices })
    }

    /// How many observations there was no room for.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until everything observed so far is recorded.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.send(Observed::Flush(done)).is_ok() {
            self.recorder.unpark();
            // An error means that the thread is gone, and with it what waited.
            let _ = wait.recv();
        }
    }

    fn put(&self, observed: Observed) {
        let is_full = self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_OBSERVATIONS;
        if is_full || self.queue.send(observed).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn record(context: &EventContext, observed: &Receiver<Observed>, waiting: &AtomicUsize) {
    in_bursts(observed, BURST_PAUSE, |observed| {
        if !matches!(observed, Observed::Flush(_)) {
            waiting.fetch_sub(1, Ordering::Relaxed);
        }
        match observed {
            Observed::Query(observation) => context.observation(&observation),
            Observed::Detection(detection) => context.detection(&detection),
            // Nobody waits any more when this fails.
            Observed::Flush(done) => drop(done.send(())),
        }
    });
}

/// Hands what is sent to `take` until nobody can send any more. In a burst, when something came less than twice the pause
/// after what came before it, the next waits until the pause is over or the thread is unparked.
fn in_bursts<T>(queue: &Receiver<T>, pause: Duration, mut take: impl FnMut(T)) {
    let mut woken: Option<Instant> = None;
    while let Ok(first) = queue.recv() {
        let now = Instant::now();
        let before = woken.replace(now);
        for one in iter::once(first).chain(queue.try_iter()) {
            take(one);
        }
        if before.is_some_and(|before| now.duration_since(before) < 2 * pause) {
            thread::park_timeout(pause);
        }
    }
}

impl DnsObserver for DnsSink {
    fn asker(&self, client: SocketAddr, transport: Transport) -> Option<Arc<Process>> {
        self.context.asker(client, transport).map(Arc::new)
    }

    fn answers(&self, outcome: &DnsOutcome) {
        self.context.learn(outcome);
    }

    fn observe(&self, observation: DnsObservation) {
        self.put(Observed::Query(Box::new(observation)));
    }

    fn detect(&self, detection: DnsDetection) {
        self.put(Observed::Detection(Box::new(detection)));
    }

    fn upstream_changed(&self, change: UpstreamChange) {
        let state = if change.reachable { "answers again" } else { "does not answer" };
        let notice = format!("the DNS server {} {state}: {}", change.upstream, change.reason);
        tracing::warn!(upstream = %change.upstream, "{notice}");
        if self.notices.try_send(notice).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The kernel's side of grants: the resolver starts before the rules exist, because the rules name its ports.
#[derive(Debug, Default)]
pub struct LateTable {
    table: OnceLock<Arc<InstalledTable>>,
}

impl LateTable {
    /// The rules are in the kernel now.
    pub fn set(&self, table: Arc<InstalledTable>) {
        // Set once by the one who made it; a second table would be a bug, and the first stays.
        let _ = self.table.set(table);
    }
}

impl GrantSink for LateTable {
    fn grant(&self, grants: &[Grant]) -> Result<(), GrantError> {
        match self.table.get() {
            Some(table) => table.grant(grants),
            None => Err(GrantError::Kernel(io::Error::other("the rules are not installed yet"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::in_bursts;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn in_a_burst_things_wait_until_somebody_can_t() {
        const PAUSE: Duration = Duration::from_hours(1);
        let (queue, queued) = channel();
        let (taken, take) = channel();
        let reader =
            thread::spawn(move || in_bursts(&queued, PAUSE, |one| taken.send(one).unwrap()));
        queue.send(0).unwrap();
        assert_eq!(take.recv().unwrap(), 0, "the first does not wait");
        // Until one is not taken at once.
        let waits = (1..1_000_000)
            .find(|number| {
                queue.send(*number).unwrap();
                take.recv_timeout(Duration::from_millis(20)).is_err()
            })
            .unwrap();
        reader.thread().unpark();
        assert_eq!(take.recv().unwrap(), waits);
        drop(queue);
        reader.thread().unpark();
        reader.join().unwrap();
    }
}
