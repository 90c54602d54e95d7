//! The ring buffer that the programs write events to, and the thread that reads it.

use crate::event::Event;
use crate::object::SensorError;
use libbpf_rs::{MapCore, MapFlags, MapHandle, RingBuffer, RingBufferBuilder};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::fmt;
use std::io::{PipeWriter, pipe};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

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

    /// Hands over everything that has happened until now; how many events that were.
    pub(crate) fn drain(&self) -> i32 {
        let buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails only by what the handler returns, and ours returns 0.
        buffer.consume_raw()
    }
}

/// Bytes of events that may wait for each processor that makes some: about a thousand programs that are executed, which is what
/// a processor can do in half a second.
const BYTES_PER_PROCESSOR: u32 = 512 << 10;

/// The smallest and the largest ring. The monitor maps each byte of it twice, and both count as its memory.
const RING_LIMITS: (u32, u32) = (1 << 20, 16 << 20);

/// The size of the ring on a machine with so many processors: a power of two, as the kernel wants it.
pub(crate) fn ring_bytes(processors: usize) -> u32 {
    let (smallest, largest) = RING_LIMITS;
    let processors = u32::try_from(processors).unwrap_or(u32::MAX);
    let wanted = BYTES_PER_PROCESSOR.saturating_mul(processors).clamp(smallest, largest);
    wanted.next_power_of_two()
}

/// The processors of the machine that run. Not those that the monitor may use: a limit on its own time is none on the jobs'.
pub(crate) fn online_processors() -> usize {
    let listed = std::fs::read_to_string("/sys/devices/system/cpu/online");
    let listed = listed.ok().and_then(|list| count_processors(&list));
    listed.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// How many processors a list of the kernel names: `0-3,8`.
fn count_processors(list: &str) -> Option<usize> {
    list.trim()
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .sum()
}

/// How long the reader waits between two looks in a burst, and how near to one another wake-ups are that begin one.
const BATCH: Duration = Duration::from_millis(10);

/// Tells the programs whether the reader wants to be woken for every program that is executed.
#[derive(Debug)]
struct Wakefulness {
    map: MapHandle,
    is_awaiting: bool,
}

impl Wakefulness {
    fn set(&mut self, is_awaiting: bool) {
        if self.is_awaiting != is_awaiting {
            let value = u32::from(is_awaiting).to_ne_bytes();
            // A reader that can't say it is woken too often, or comes by itself.
            let _ = self.map.update(&0_u32.to_ne_bytes(), &value, MapFlags::ANY);
            self.is_awaiting = is_awaiting;
        }
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
    /// `waits` is the map by which the programs are told whether to wake the reader for what need not be answered at once.
    pub(crate) fn start(ring: Arc<Ring>, waits: MapHandle) -> Result<Self, SensorError> {
        let (stopped, stop) = pipe().map_err(SensorError::Events)?;
        let failed = |source: Errno| SensorError::Events(source.into());
        let waiting = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        // By edges: what was written without a wake-up must not end a wait, or the reader would look after every event.
        let edge = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, RING);
        waiting.add(ring.map.as_fd(), edge).map_err(failed)?;
        waiting.add(&stopped, EpollEvent::new(EpollFlags::EPOLLIN, STOPPED)).map_err(failed)?;
        let thread = Builder::new()
            .name("kernel-events".to_owned())
            .spawn(move || {
                // Open for as long as it is waited for.
                let _stopped = stopped;
                read(&ring, &waiting, &mut Wakefulness { map: waits, is_awaiting: false });
            })
            .map_err(SensorError::Events)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

const RING: u64 = 0;
const STOPPED: u64 = 1;

/// Drains the ring whenever it is woken. Wake-ups that follow each other at once are a burst: until one look finds nothing,
/// the reader then comes every [`BATCH`] by itself, and is woken only for what has to be answered.
fn read(ring: &Ring, waiting: &Epoll, wakefulness: &mut Wakefulness) {
    let mut events = [EpollEvent::empty(); 2];
    let mut woken: Option<Instant> = None;
    loop {
        let drained = ring.drain();
        let now = Instant::now();
        if drained == 0 {
            // What is written while the programs still think otherwise wakes nobody, so that it is looked once more.
            let timeout = if wakefulness.is_awaiting { None } else { Some(BATCH) };
            wakefulness.set(true);
            if wait(waiting, &mut events, timeout) {
                return;
            }
            continue;
        }
        if wakefulness.is_awaiting {
            let is_burst = woken.is_some_and(|before| now.duration_since(before) < BATCH);
            woken = Some(now);
            wakefulness.set(!is_burst);
        }
        let timeout = if wakefulness.is_awaiting { None } else { Some(BATCH) };
        if wait(waiting, &mut events, timeout) {
            return;
        }
    }
}

/// Waits for an event; whether it is the end.
fn wait(waiting: &Epoll, events: &mut [EpollEvent; 2], timeout: Option<Duration>) -> bool {
    let timeout = timeout.map_or(EpollTimeout::NONE, |timeout| {
        EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::NONE)
    });
    // An interrupted wait is a wait that is over.
    let count = waiting.wait(events, timeout).unwrap_or(0);
    events.iter().take(count).any(|event| event.data() == STOPPED)
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

#[cfg(test)]
mod tests {
    use super::{count_processors, ring_bytes};

    #[test]
    fn processors_are_counted_as_the_kernel_lists_them() {
        let counted = ["0\n", "0-3\n", "0-3,8,10-11\n", "", "3-1", "x"].map(count_processors);
        assert_eq!(counted, [Some(1), Some(4), Some(7), None, None, None]);
    }

    #[test]
    fn a_ring_grows_with_the_machine_and_has_bounds() {
        let mebibytes = [1, 2, 3, 4, 8, 24, 64, usize::MAX].map(|count| ring_bytes(count) >> 20);
        assert_eq!(mebibytes, [1, 1, 2, 2, 4, 16, 16, 16]);
    }
}
