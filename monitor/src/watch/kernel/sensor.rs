//! Whose a flow is, by what the kernel's hooks saw when the call was made.

use super::WatchedJob;
use super::images::Caller;
use crate::caller::{ProcFs, ProcessKey};
use crate::watch::attribution::{Attribution, AttributionSource, ProcessSensor, ProcfsSensor};
use crate::watch::flow::{Flow, UDP};
use portcullis_common::event::Process;
use portcullis_monitor_bpf::event::ticks;
use portcullis_monitor_bpf::network::Owner;
use std::net::SocketAddr;
use std::sync::Arc;

/// The protocol number of raw sockets that bring their own header.
const ANY_PROTOCOL: u8 = 255;

/// The sensor of one job. What the hooks have not seen (sockets that are older than the job, processes outside of its
/// cgroup) is looked up as without them.
#[derive(Debug)]
pub struct BpfSensor {
    job: Arc<WatchedJob>,
    procfs: Arc<ProcfsSensor>,
}

impl BpfSensor {
    /// A sensor for a watched job.
    pub fn new(job: Arc<WatchedJob>, procfs: Arc<ProcfsSensor>) -> Self {
        Self { job, procfs }
    }

    /// Who made the call that a flow belongs to.
    fn caller(&self, flow: &Flow) -> Option<Caller> {
        let port = flow.source.port();
        let hooks = self.job.hooks.network().ok()?;
        if port == 0 {
            return None;
        }
        let seen = hooks.owner(flow.protocol, port, flow.destination).map(caller);
        let connected = (flow.protocol == UDP)
            .then(|| self.job.sensors.shared.images().flow(self.job.token, port, flow.destination))
            .flatten();
        latest(seen, connected)
    }

    /// Who made a raw socket that can have sent a packet.
    fn raw_caller(&self, flow: &Flow) -> Option<Caller> {
        let hooks = self.job.hooks.network().ok()?;
        if flow.source.port() != 0 {
            return None;
        }
        let of_protocol = hooks.raw_socket(flow.protocol).map(caller);
        of_protocol.or_else(|| hooks.raw_socket(ANY_PROTOCOL).map(caller))
    }

    fn attribution(&self, caller: Caller) -> Attribution {
        let known = self.job.sensors.shared.images().find(caller.pid, caller.time);
        // A process that the sensors did not see begin: one that was moved into the job's cgroup.
        let process = known.map(Arc::new).or_else(|| {
            let key = ProcFs.key(caller.pid)?;
            (key.start_time <= ticks(caller.time)).then(|| self.procfs.inspector().inspect(key))?
        });
        let source = match process {
            Some(_) => AttributionSource::Kernel,
            None => AttributionSource::UserOnly,
        };
        Attribution { process, uid: Some(caller.uid), cgroup: None, source }
    }
}

fn caller(owner: Owner) -> Caller {
    Caller { pid: owner.pid, uid: owner.uid, time: owner.time }
}

fn latest(one: Option<Caller>, other: Option<Caller>) -> Option<Caller> {
    one.into_iter().chain(other).max_by_key(|caller| caller.time)
}

impl ProcessSensor for BpfSensor {
    fn attribute(&self, flow: &Flow) -> Attribution {
        // What the call's process did before the call is in the ring already.
        self.job.sensors.lifecycle.drain();
        if let Some(caller) = self.caller(flow) {
            return self.attribution(caller);
        }
        let found = self.procfs.attribute(flow);
        match (&found.process, self.raw_caller(flow)) {
            (None, Some(caller)) => self.attribution(caller),
            _ => found,
        }
    }

    fn attribute_client(
        &self,
        protocol: u8,
        client: SocketAddr,
        likely_servers: &[SocketAddr],
    ) -> Attribution {
        self.job.sensors.lifecycle.drain();
        let port = client.port();
        let seen = self.job.hooks.network().ok().and_then(|hooks| hooks.client(protocol, port));
        let connected = (protocol == UDP)
            .then(|| self.job.sensors.shared.images().client(self.job.token, port))
            .flatten();
        match latest(seen.map(caller), connected) {
            Some(caller) => self.attribution(caller),
            None => self.procfs.attribute_client(protocol, client, likely_servers),
        }
    }

    fn process(&self, key: ProcessKey) -> Option<Process> {
        self.job.sensors.lifecycle.drain();
        let known = self.job.sensors.shared.images().find_process(key);
        known.or_else(|| self.procfs.process(key))
    }

    fn by_number(&self, pid: u32) -> Option<Process> {
        self.job.sensors.lifecycle.drain();
        let known = self.job.sensors.shared.images().find(pid, u64::MAX);
        known.or_else(|| self.procfs.by_number(pid))
    }

    fn remembers(&self) -> bool {
        true
    }
}
