//! Clients that make one call and end, put down to who made it, by each backend.

use super::{Scratch, add_output_rules, within};
use crate::caller::testing::{FakeRunner, scratch_network_namespace};
use crate::caller::{ProcFs, ProcessKey, Worker, lineage};
use crate::cgroup::{Hierarchy, JobCgroup};
use crate::watch::attribution::{Attribution, AttributionSource, ProcessSensor, ProcfsSensor};
use crate::watch::flow::Flow;
use crate::watch::kernel::{BpfSensor, JobToWatch, KernelObserver, KernelSensors, Unusual};
use crate::watch::nflog::NflogGroup;
use portcullis_common::event::{FeatureState, Process};
use portcullis_monitor_bpf::event::{Access, Escape};
use std::collections::HashSet;
use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;

const CLIENTS: u32 = 100;

/// What a hundred short-lived clients of one kind came to.
#[derive(Debug, Default)]
struct Share {
    seen: u32,
    attributed: u32,
    step_known: u32,
    exiting: u32,
    user_known: u32,
    cgroup_known: u32,
}

/// A kind of client: what a shell has to do, its destination, and how many must be attributed by procfs. Those are lower
/// bounds for a machine whose processors are all busy; what was seen is printed.
struct Kind {
    what: &'static str,
    client: &'static str,
    port: u16,
    least: u32,
}

/// A TCP reset is delivered inside of `connect`, so nothing is left to look up; a drop that is refused after the look-up
/// keeps the evidence. A shell's `/dev/udp` is a connected socket.
const KINDS: [Kind; 7] = [
    Kind { what: "TCP, reset", client: TCP, port: 80, least: 0 },
    Kind { what: "TCP, dropped and refused", client: TCP, port: 81, least: 90 },
    Kind { what: "TCP, allowed", client: TCP, port: 82, least: 1 },
    Kind { what: "connected UDP, allowed", client: UDP, port: 83, least: 0 },
    Kind { what: "connected UDP, dropped", client: UDP, port: 84, least: 1 },
    Kind { what: "unconnected UDP, allowed", client: SENDTO, port: 85, least: 0 },
    Kind { what: "unconnected UDP, dropped", client: SENDTO, port: 86, least: 0 },
];

const TCP: &str = "bash -c 'echo x >/dev/tcp/127.0.0.1/PORT'";
const UDP: &str = "bash -c 'echo x >/dev/udp/127.0.0.1/PORT'";
const SENDTO: &str = "perl -MSocket -e 'socket(S,2,2,17); send(S,\"x\",0,sockaddr_in(PORT,inet_aton(\"127.0.0.1\")))'";

/// The runner, its job, and packets that are logged.
struct World {
    namespace: File,
    runner: FakeRunner,
    job: JobCgroup,
    worker: Worker,
    // Removed last, after everything in it.
    _scratch: Scratch,
}

impl World {
    fn new(name: &str) -> Self {
        let namespace = scratch_network_namespace();
        let scratch = Scratch::new(name);
        let runner = within(&namespace, FakeRunner::start);
        scratch.0.add(runner.listener.pid).unwrap();
        scratch.0.add(runner.worker.pid).unwrap();
        let job = JobCgroup::create(&Hierarchy::find().unwrap(), runner.worker, name).unwrap();
        let candidate = lineage(&ProcFs, runner.worker).unwrap().worker().unwrap().clone();
        let worker = Worker::open(&candidate).unwrap();
        Self { namespace, runner, job, worker, _scratch: scratch }
    }

    /// Makes clients of every kind; `judge` says what of a kind must hold.
    fn run(
        &mut self,
        procfs: &Arc<ProcfsSensor>,
        sensor: Arc<dyn ProcessSensor>,
        judge: impl Fn(&Kind, &Share),
    ) {
        let group = NflogGroup::bind(self.namespace.as_fd(), 1..=1).unwrap();
        add_output_rules(
            &self.namespace,
            &[
                "tcp dport 80 log group 1 reject with tcp reset",
                "tcp dport 81 log group 1 drop",
                "tcp dport 82 ct state new log group 1 accept",
                "udp dport { 83, 85 } log group 1 accept",
                "udp dport { 84, 86 } log group 1 drop",
            ],
        );
        // Somebody listens at the allowed ports.
        let _listener = within(&self.namespace, || TcpListener::bind("127.0.0.1:82").unwrap());
        let _sinks = within(&self.namespace, || {
            [83, 85].map(|port| UdpSocket::bind(("127.0.0.1", port)).unwrap())
        });
        let (report, reported) = mpsc::channel::<(Flow, Attribution)>();
        let sockets = Arc::clone(procfs);
        let reader = group
            .start(move |packet| {
                let attribution = sensor.attribute(&packet.flow());
                if packet.flow().destination.port() == 81 {
                    assert!(sockets.diagnostics().refuse(&packet.flow()).unwrap());
                }
                let _ = report.send((packet.flow(), attribution));
            })
            .unwrap();
        for kind in &KINDS {
            let client = kind.client.replace("PORT", &kind.port.to_string());
            let done = self.runner.ask(&format!(
                "for i in $(seq {CLIENTS}); do GITHUB_ACTION=__run_9 {client} 2>/dev/null; done; echo done"
            ));
            assert_eq!(done, "done");
            let share = self.share(kind, &reported);
            println!("{}: {share:?}", kind.what);
            judge(kind, &share);
        }
        assert_eq!(reader.losses().counts().missing, 0);
        drop(reader);
        self.job.end(Duration::from_secs(20)).unwrap();
    }

    fn share(&self, kind: &Kind, reported: &mpsc::Receiver<(Flow, Attribution)>) -> Share {
        let mut share = Share::default();
        let mut flows = HashSet::new();
        while share.seen < CLIENTS {
            let (flow, attribution) = reported.recv_timeout(Duration::from_secs(20)).unwrap();
            // A SYN that is sent again is the same call; a UDP port that is picked again is not.
            let is_tcp = kind.client == TCP;
            if flow.destination.port() != kind.port || (is_tcp && !flows.insert(flow)) {
                continue;
            }
            share.seen += 1;
            share.user_known += u32::from(attribution.uid == Some(0));
            share.cgroup_known += u32::from(attribution.cgroup == Some(self.job.identity().id));
            // A remembered one may be that of an earlier client that had the same port.
            let is_certain =
                matches!(attribution.source, AttributionSource::Socket | AttributionSource::Kernel);
            let Some(process) = attribution.process.filter(|_| is_certain) else { continue };
            assert_eq!(process.ancestors.last().unwrap().pid, self.runner.worker.pid);
            if process.argv.is_empty() {
                // It was exiting: only who it was is known.
                share.exiting += 1;
                continue;
            }
            share.attributed += 1;
            let port = kind.port.to_string();
            assert!(
                process.argv.iter().any(|word| word.contains(&port)),
                "the wrong one: {process:?}"
            );
            share.step_known += u32::from(process.step.as_deref() == Some("__run_9"));
            assert!(process.step.as_deref().is_none_or(|step| step == "__run_9"));
        }
        share
    }
}

#[test]
fn procfs_finds_many_of_them() {
    let mut world = World::new("share-procfs");
    let sensor = Arc::new(ProcfsSensor::new(&world.worker, Some(world.job.clone())).unwrap());
    let processes = Arc::<ProcfsSensor>::clone(&sensor);
    world.run(&sensor, processes, |kind, share| {
        assert!(share.attributed >= kind.least, "{}: {share:?}", kind.what);
        // The kernel remembers the cgroup even of a connection that its owner has closed.
        let least = if kind.client == TCP && kind.port != 80 { 90 } else { kind.least };
        assert!(share.cgroup_known >= least, "{}: {share:?}", kind.what);
    });
}

#[derive(Debug)]
struct Nobody;

impl KernelObserver for Nobody {
    fn held(&self, _process: ProcessKey) {}

    fn signalled(&self, _process: Process, _signal: u32) {}

    fn executed(&self, _: Process) {}
    fn unusual(&self, _: Unusual) {}
    fn escaped(&self, _: Process, _: Escape, _: Option<Process>) {}
    fn accessed(&self, _: ProcessKey, _: Process, _: Access) {}
}

#[test]
fn the_kernel_tells_all_of_them() {
    let mut world = World::new("share-bpf");
    let procfs = Arc::new(ProcfsSensor::new(&world.worker, Some(world.job.clone())).unwrap());
    let sensors = Arc::new(KernelSensors::start().unwrap());
    let job = JobToWatch {
        worker: world.runner.worker,
        listener: Some(world.runner.listener),
        is_reader_ended: false,
        not_judged: Vec::new(),
    };
    let watched = Arc::new(sensors.watch(&job, &world.job, Arc::new(Nobody)).unwrap());
    let features = [sensors.features(), watched.features()].concat();
    assert!(features.iter().all(|feature| feature.state == FeatureState::Active), "{features:?}");
    let sensor = BpfSensor::new(Arc::clone(&watched), Arc::clone(&procfs));
    world.run(&procfs, Arc::new(sensor), |kind, share| {
        let all = (share.attributed, share.step_known, share.user_known);
        assert_eq!(all, (CLIENTS, CLIENTS, CLIENTS), "{}: {share:?}", kind.what);
    });
    assert_eq!(watched.end(), 0);
}
