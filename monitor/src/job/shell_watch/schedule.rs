//! When a job is looked at: soon after a connection was made, when somebody asks, a second after the last look when nothing
//! happens, and not so often that looking takes more than its share of a processor, unless a look takes very long.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often a job with a connection to another machine is looked at when nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// How long a job is not looked at, at most, to keep looking within its share: a look at a host with many sockets, or with too
/// few processors, takes long, and a shell that lives for longer than this is to be seen all the same.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// How much is spent on seeing a shell soon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Looks after a connection was made: the program that made it puts it onto a shell's streams a moment later.
    after_connection: &'static [Duration],
    /// The least time between looks that something else asks for.
    rest: Duration,
    /// How often a job without a connection to another machine is looked at when nothing happens: it may be handed one, which
    /// nobody tells.
    alone: Duration,
    /// Looking takes at most one part in so many of a processor,
    share: u32,
    /// but for as long as this it may take all of one, after a time in which it took less: what follows a connection is
    /// looked at at once.
    burst: Duration,
}

impl Pace {
    /// Where only a look can end a job before a shell's peer has sent its first command.
    pub(super) const HASTY: Self = Self {
        after_connection: &[
            Duration::ZERO,
            Duration::from_millis(3),
            Duration::from_millis(10),
            Duration::from_millis(30),
            Duration::from_millis(100),
            Duration::from_millis(300),
        ],
        rest: Duration::ZERO,
        alone: TICK,
        share: 20,
        burst: Duration::from_millis(200),
    };

    /// Where a shell is only recorded, or where the kernel stops it until it was judged.
    pub(super) const CALM: Self = Self {
        after_connection: &[
            Duration::from_millis(3),
            Duration::from_millis(50),
            Duration::from_millis(300),
        ],
        rest: Duration::from_millis(100),
        alone: Duration::from_secs(5),
        share: 400,
        burst: Duration::from_millis(4),
    };
}

/// When it is looked next.
#[derive(Debug)]
pub(super) struct Schedule {
    /// Looks that something asks for.
    asked: BTreeSet<Instant>,
    /// The look that nothing asks for. Each look puts it off, so that a job that has made many connections is not looked at
    /// more often for the rest of its life.
    regular: Instant,
    /// When the last look ended.
    last: Option<Instant>,
    pace: Pace,
    budget: Budget,
}

impl Schedule {
    /// The first look is due at once.
    pub(super) fn starting(now: Instant, pace: Pace) -> Self {
        let budget = Budget::full(now, pace);
        Self { asked: BTreeSet::new(), regular: now, last: None, pace, budget }
    }

    /// When the next look may begin, as things stand.
    pub(super) fn next(&self, now: Instant) -> Instant {
        let wanted = self.asked.first().map_or(self.regular, |first| self.regular.min(*first));
        wanted.max(self.budget.not_before(now))
    }

    /// A connection was made or tried.
    pub(super) fn connection(&mut self, now: Instant) {
        self.asked.extend(self.pace.after_connection.iter().map(|after| now + *after));
    }

    /// Something else happened that asks for a look.
    pub(super) fn ask(&mut self, now: Instant) {
        let rested = self.last.map_or(now, |last| last + self.pace.rest);
        self.asked.insert(now.max(rested));
    }

    /// A look took this time, saw a connection to another machine or none, and wants another look after `again`.
    pub(super) fn looked(
        &mut self,
        begin: Instant,
        end: Instant,
        any_remote: bool,
        again: Option<Duration>,
    ) {
        let usual = if any_remote { TICK } else { self.pace.alone };
        self.asked.retain(|asked| *asked > begin);
        self.budget.spend(begin, end);
        self.regular = end + again.unwrap_or(usual);
        self.last = Some(end);
    }
}

/// The time that looking may take: it grows with the time that passes, and is spent by looks.
#[derive(Clone, Copy, Debug)]
struct Budget {
    /// What was left at `at`; less than nothing counts as `debt`.
    left: Duration,
    debt: Duration,
    at: Instant,
    pace: Pace,
}

impl Budget {
    const fn full(at: Instant, pace: Pace) -> Self {
        Self { left: pace.burst, debt: Duration::ZERO, at, pace }
    }

    /// Takes in a look.
    fn spend(&mut self, begin: Instant, end: Instant) {
        let earned = begin.saturating_duration_since(self.at) / self.pace.share;
        let has = (self.left + earned.saturating_sub(self.debt)).min(self.pace.burst);
        let owes = self.debt.saturating_sub(earned);
        let cost = end.saturating_duration_since(begin) + owes;
        self.left = has.saturating_sub(cost);
        self.debt = cost.saturating_sub(has).min(LONGEST_REST / self.pace.share);
        self.at = end;
    }

    /// When the next look may begin.
    fn not_before(&self, now: Instant) -> Instant {
        now.max(self.at + self.debt * self.pace.share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks until `until`, each of which takes `cost`; how many there were.
    fn run(schedule: &mut Schedule, now: &mut Instant, until: Instant, cost: Duration) -> u32 {
        let mut looks = 0;
        loop {
            let next = schedule.next(*now);
            if next >= until {
                *now = until;
                return looks;
            }
            schedule.looked(next, next + cost, true, None);
            *now = next + cost;
            looks += 1;
        }
    }

    #[test]
    fn a_job_of_many_connections_is_looked_at_once_a_second_afterwards() {
        let begin = Instant::now();
        let mut schedule = Schedule::starting(begin, Pace::HASTY);
        let (mut now, cost) = (begin, Duration::from_micros(100));
        for connection in 1..1_000 {
            schedule.connection(now);
            run(&mut schedule, &mut now, begin + Duration::from_millis(10) * connection, cost);
        }
        // What the last connections ask for.
        let quiet = now + Duration::from_secs(2);
        run(&mut schedule, &mut now, quiet, cost);
        let looks = run(&mut schedule, &mut now, quiet + Duration::from_mins(1), cost);
        assert!((59..=60).contains(&looks), "{looks} looks in a minute");
    }

    #[test]
    fn a_connection_is_looked_at_at_once_and_again() {
        let begin = Instant::now();
        let mut schedule = Schedule::starting(begin, Pace::HASTY);
        let mut now = begin;
        run(&mut schedule, &mut now, begin + Duration::from_millis(500), Duration::ZERO);
        schedule.connection(now);
        assert_eq!(schedule.next(now), now);
        let until = now + Duration::from_millis(400);
        assert_eq!(run(&mut schedule, &mut now, until, Duration::from_micros(100)), 6);
        // What takes longer to see is looked at when the look says.
        schedule.looked(now, now, true, Some(Duration::from_millis(5)));
        assert_eq!(schedule.next(now), now + Duration::from_millis(5));
        schedule.ask(now);
        assert_eq!(schedule.next(now), now);
    }

    #[test]
    fn a_job_without_connections_is_looked_at_now_and_then() {
        for (pace, looks) in [(Pace::HASTY, 60), (Pace::CALM, 12)] {
            let begin = Instant::now();
            let mut schedule = Schedule::starting(begin, pace);
            let (mut now, mut found) = (begin, 0);
            while now < begin + Duration::from_mins(1) {
                schedule.looked(now, now, false, None);
                now = schedule.next(now);
                found += 1;
            }
            assert_eq!(found, looks);
        }
    }

    #[test]
    fn executions_one_after_the_other_ask_for_a_look_now_and_then() {
        let begin = Instant::now();
        let mut schedule = Schedule::starting(begin, Pace::CALM);
        let (mut now, mut looks) = (begin, 0);
        for execution in 1..=1_000 {
            schedule.ask(now);
            let next = begin + Duration::from_millis(1) * execution;
            looks += run(&mut schedule, &mut now, next, Duration::from_micros(100));
        }
        assert!((8..=11).contains(&looks), "{looks} looks in a second");
    }

    #[test]
    fn a_look_that_takes_long_does_not_put_the_next_one_off_for_long() {
        for pace in [Pace::HASTY, Pace::CALM] {
            let begin = Instant::now();
            let mut schedule = Schedule::starting(begin, pace);
            let (mut now, cost) = (begin, Duration::from_millis(500));
            let looks = run(&mut schedule, &mut now, begin + Duration::from_mins(1), cost);
            assert!(looks >= 35, "{looks} looks in a minute");
        }
    }

    #[test]
    fn looking_is_bounded_in_the_long_run_and_quick_at_first() {
        for (pace, share) in [(Pace::HASTY, 20), (Pace::CALM, 400)] {
            let begin = Instant::now();
            let mut budget = Budget::full(begin, pace);
            let look = Duration::from_millis(1);
            let (mut now, mut looks) = (begin, 0_u32);
            while now < begin + Duration::from_mins(1) {
                now = budget.not_before(now);
                budget.spend(now, now + look);
                now += look;
                looks += 1;
                if looks == 3 {
                    assert!(now - begin < pace.burst, "the first looks follow each other at once");
                }
            }
            let bound = Duration::from_mins(1) / share;
            let took = look * looks;
            assert!(took <= bound + pace.burst * 2, "{took:?} in a minute");
            assert!(took >= bound * 9 / 10, "{took:?} in a minute");
        }
    }
}
