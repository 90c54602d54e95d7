//! Frames that bypass IP: what is recorded of them.

use super::observe::network_event;
use super::sink::EventContext;
use crate::egress::log_prefix::LogPrefix;
use crate::watch::attribution::Attribution;
use crate::watch::bounded::BoundedCache;
use crate::watch::frame::Frame;
use crate::watch::nflog::LoggedPacket;
use portcullis_common::event::{
    DetectionEvent, DetectionType, Process, RecordedDetection, Verdict,
};
use std::sync::{Mutex, PoisonError};

/// How many senders are remembered.
const MAXIMUM_SENDERS: usize = 256;

/// Who has sent frames that bypass IP.
#[derive(Debug)]
pub struct FrameSenders(Mutex<BoundedCache<Sender, ()>>);

/// A process by pid and start time; `None` for all that are not known.
type Sender = Option<(Option<u32>, Option<u64>)>;

impl Default for FrameSenders {
    fn default() -> Self {
        Self(Mutex::new(BoundedCache::new(MAXIMUM_SENDERS)))
    }
}

impl FrameSenders {
    /// Remembers the sender; whether it is a new one.
    fn is_new(&self, process: Option<&Process>) -> bool {
        let sender = process.map(|process| (process.pid, process.start_time));
        let mut senders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = senders.get(&sender).is_none();
        senders.insert(sender, ());
        is_new
    }
}

impl EventContext {
    /// Records a frame on its way out below IP, and once for each process that it sends such frames at all.
    pub(super) fn frame(&self, packet: &LoggedPacket, prefix: &LogPrefix) {
        let process = self.frame_sender(packet).to_process();
        let mut event = network_event(
            &packet.headers,
            prefix,
            None,
            process.clone(),
            &self.policy,
            &self.reference,
        );
        if let Some(frame) = packet.frame.filter(|frame| frame.headers.is_none()) {
            event.protocol = frame.protocol();
            event.bytes = None;
        }
        if self.frame_senders.is_new(process.as_ref()) {
            self.recorder.detection(DetectionEvent {
                detection: DetectionType::Recorded(RecordedDetection::RawFrames),
                evidence: evidence(packet, event.verdict),
                is_lockdown: false,
                process,
            });
        }
        self.recorder.network(event);
    }

    fn frame_sender(&self, packet: &LoggedPacket) -> Attribution {
        let by_socket = self.sockets.attribute_frame(packet.output_interface, packet.uid);
        match &packet.frame {
            // No packet socket is there: an interface was tied to the uplink below IP, say, so that the packet has a socket of
            // another kind.
            Some(Frame { headers: Some(headers), .. }) if by_socket.process.is_none() => {
                let by_flow = self.sensor.attribute(&headers.flow());
                if by_flow.process.is_some() { by_flow } else { by_socket }
            }
            _ => by_socket,
        }
    }
}

/// What was seen of a frame, in words.
fn evidence(packet: &LoggedPacket, verdict: Verdict) -> String {
    let address = |bytes: [u8; 6]| bytes.map(|byte| format!("{byte:02x}")).join(":");
    let frame = packet.frame.map_or_else(
        || format!("a packet to {}", packet.headers.destination),
        |frame| {
            format!(
                "a frame of type {:#06x} from {} to {}",
                frame.ether_type,
                address(frame.source),
                address(frame.destination)
            )
        },
    );
    let interface =
        packet.output_interface.map(|index| format!(" by interface {index}")).unwrap_or_default();
    let outcome = match verdict {
        Verdict::Blocked => "it was stopped at the uplink",
        Verdict::Allowed | Verdict::WouldBlock => "it left, because the policy audits",
    };
    format!(
        "{frame}{interface} did not come from the kernel's IP stack (a packet socket, a macvlan); {outcome}"
    )
}
