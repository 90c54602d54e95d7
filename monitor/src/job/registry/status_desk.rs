//! The answers to `status`, which everybody on the host may ask for as often as they like.
//!
//! An answer reads the rules of every job back from the kernel, and holds up who opens addresses meanwhile. So one is made at
//! a time, everybody who asked before it was begun gets it, and then there is a rest.

use portcullis_common::wire::Status;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After an answer there is a rest of so many times what it took: answers take at most a tenth of a processor.
const REST: u32 = 9;

/// The longest rest: an answer is for somebody who waits.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Where answers are made, one for all who wait.
#[derive(Debug, Default)]
pub(super) struct StatusDesk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many answers were begun, and how many of them are there.
    begun: u64,
    made: u64,
    latest: Option<Status>,
    /// Nothing is begun before.
    not_before: Option<Instant>,
}

impl State {
    fn is_busy(&self) -> bool {
        self.begun > self.made
    }
}

impl StatusDesk {
    /// An answer that was begun after this was called, made by `make` or by somebody else's.
    pub(super) fn answer(&self, make: impl FnOnce() -> Status) -> Status {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = state.begun + 1;
        loop {
            if let (true, Some(latest)) = (state.made >= wanted, &state.latest) {
                return latest.clone();
            }
            let rest = state.not_before.map(|at| at.saturating_duration_since(Instant::now()));
            state = match rest.filter(|rest| !rest.is_zero()) {
                _ if state.is_busy() => {
                    self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
                }
                Some(rest) => {
                    self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0
                }
                None => break,
            };
        }
        state.begun += 1;
        drop(state);
        let made = Made { desk: self, begun: Instant::now(), status: None };
        made.finish(make())
    }
}

/// An answer in the making: when that panics, the next who waits makes one.
struct Made<'a> {
    desk: &'a StatusDesk,
    begun: Instant,
    status: Option<Status>,
}

impl Made<'_> {
    fn finish(mut self, status: Status) -> Status {
        self.status = Some(status.clone());
        status
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let mut state = self.desk.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.made = state.begun;
        state.latest = self.status.take();
        let rest = (self.begun.elapsed() * REST).min(LONGEST_REST);
        state.not_before = Some(Instant::now() + rest);
        drop(state);
        self.desk.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_REST, REST, StatusDesk};
    use portcullis_common::wire::{InfrastructureUnit, Status};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    fn status(number: usize) -> Status {
        let unit = InfrastructureUnit { unit: number.to_string(), found: true };
        Status { jobs: Vec::new(), infrastructure: vec![unit] }
    }

    fn number(status: &Status) -> &str {
        &status.infrastructure[0].unit
    }

    #[test]
    fn all_who_wait_get_one_answer_that_was_begun_after_they_asked() {
        let (desk, made) = (StatusDesk::default(), AtomicUsize::new(0));
        let (has_begun, may_go_on) = (Barrier::new(2), Barrier::new(2));
        let barrier = Barrier::new(9);
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                desk.answer(|| {
                    has_begun.wait();
                    may_go_on.wait();
                    status(made.fetch_add(1, Ordering::SeqCst))
                })
            });
            has_begun.wait();
            let others: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        desk.answer(|| status(made.fetch_add(1, Ordering::SeqCst)))
                    })
                })
                .collect();
            barrier.wait();
            may_go_on.wait();
            assert_eq!(number(&first.join().unwrap()), "0");
            for other in others {
                // One that came late has one of its own; none has what was begun before it asked.
                assert_ne!(number(&other.join().unwrap()), "0");
            }
        });
        assert!(made.load(Ordering::SeqCst) <= 9);
    }

    #[test]
    fn a_panic_costs_one_answer() {
        let desk = StatusDesk::default();
        let failed = catch_unwind(AssertUnwindSafe(|| desk.answer(|| panic!("on purpose"))));
        assert!(failed.is_err());
        assert_eq!(number(&desk.answer(|| status(7))), "7");
    }

    #[test]
    fn answers_leave_most_of_the_time_to_others() {
        let desk = StatusDesk::default();
        let mut times = Vec::new();
        for _ in 0..4 {
            desk.answer(|| {
                let begun = Instant::now();
                thread::sleep(Duration::from_millis(1));
                times.push((begun, Instant::now()));
                status(0)
            });
        }
        for pair in times.windows(2) {
            let [(begun, ended), (next, _)] = pair else { continue };
            let rest = (ended.duration_since(*begun) * REST).min(LONGEST_REST);
            assert!(next.duration_since(*ended) >= rest);
        }
    }
}
