//! The ring buffer that the programs write events to, and the thread that reads it.

use crate::event::Event;
use crate::object::SensorError;
use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt;
use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

/// The ring; whoever wants to know what has happened so far can read it.
#[derive(Debug)]
pub(crate) struct Ring {
    /// The map, for waiting.
    map: MapHandle,
    /// The reader's side.
    buffer: Mutex<RingBuffer<'static>>,
}

impl Ring {
    /// Hands each event of `map` to `handle`, in order.
    pub(crate) fn new(
        map: MapHandle,
        mut handle: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, SensorError> {
        let failed = |source| SensorError::Map { map: "events", source };
        let mut builder = RingBufferBuilder::new();
        let read = move |bytes: &[u8]| {
            // Root can write to any map; bytes that are no event are none of ours.
            if let Some(event) = Event::parse(bytes) {
                handle(event);
            }
            0
        };
        builder.add(&map, read).map_err(failed)?;
        let buffer = builder.build().map_err(failed)?;
        Ok(Self { map, buffer: Mutex::new(buffer) })
    }

    /// Hands over everything that has happened until now.
    pub(crate) fn drain(&self) {
        let buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails only by what the handler returns, and ours returns 0.
        let _ = buffer.consume();
    }
}

/// The thread that drains the ring when it is woken. Dropping it ends the thread.
pub(crate) struct RingReader {
    /// Closed to end the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for RingReader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RingReader").finish_non_exhaustive()
    }
}

impl RingReader {
    pub(crate) fn start(ring: Arc<Ring>) -> Result<Self, SensorError> {
        let (stopped, stop) = pipe().map_err(SensorError::Events)?;
        let thread = Builder::new()
            .name("kernel-events".to_owned())
            .spawn(move || read(&ring, &stopped))
            .map_err(SensorError::Events)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

fn read(ring: &Ring, stopped: &PipeReader) {
    loop {
        ring.drain();
        let mut waiting = [
            PollFd::new(ring.map.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        // An interrupted wait is a wait that is over.
        let _ = poll(&mut waiting, PollTimeout::NONE);
        if waiting[1].any().unwrap_or(false) {
            return;
        }
    }
}

impl Drop for RingReader {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the handler was reported by the thread itself.
            let _ = thread.join();
        }
    }
}
