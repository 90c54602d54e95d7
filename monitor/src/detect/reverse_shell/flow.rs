//! Whether what a shell reads and writes is what a connection receives and sends: seen from one moment at which the shell
//! waits for input to the next.
//!
//! A relay can give a shell nothing that it did not receive. So whenever the shell has read although the connection received
//! nothing, the two have nothing to do with each other.

/// What a shell and a connection have moved so far, at a moment when the shell waits for its standard input.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sample {
    /// Bytes that the shell and its ended children have read (`rchar` of `/proc/PID/io`).
    pub shell_read: u64,
    /// Bytes that they have written (`wchar`).
    pub shell_wrote: u64,
    /// Bytes that the connection has received.
    pub received: u64,
    /// Bytes that the connection has sent and the peer has confirmed.
    pub sent: u64,
}

/// The score at which the two belong together.
const SURE: i32 = 2;

/// The same where the shell holds the connection itself: a script that speaks to a server by `exec 9<>/dev/tcp/…` makes
/// exchanges with it as well, but one or two, and reads its own text in between.
const SURE_OF_ITS_OWN: i32 = 6;

/// What an exchange counts for, and what a contradiction costs. One exchange is enough unless something spoke against it.
const EXCHANGE: i32 = 2;
const CONTRADICTION: i32 = -2;

/// How far contradictions add up: a terminal on which somebody types meanwhile must not hide a relay for ever.
const LOWEST: i32 = -6;

/// Samples of one shell and one connection.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    last: Sample,
    score: i32,
    sure: i32,
}

impl Flow {
    /// Begins with a first sample.
    pub const fn new(first: Sample) -> Self {
        Self { last: first, score: 0, sure: SURE }
    }

    /// The same for a shell that holds the connection itself.
    pub const fn of_its_own(first: Sample) -> Self {
        Self { last: first, score: 0, sure: SURE_OF_ITS_OWN }
    }

    /// Takes in the next sample; whether the shell and the connection belong together.
    pub fn add(&mut self, next: Sample) -> bool {
        let grew = |field: fn(&Sample) -> u64| field(&next) > field(&self.last);
        let has_read = grew(|sample| sample.shell_read);
        let has_received = grew(|sample| sample.received);
        if has_read && !has_received {
            self.score = (self.score + CONTRADICTION).max(LOWEST);
            self.last = next;
        } else if has_read
            && has_received
            && grew(|sample| sample.shell_wrote)
            && grew(|sample| sample.sent)
        {
            self.score += EXCHANGE;
            self.last = next;
        }
        // Else half of an exchange is on its way: the shell waits, and what it wrote or what it is to read is with the relay.
        self.score >= self.sure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn sample(received: u64, shell_read: u64, shell_wrote: u64, sent: u64) -> Sample {
        Sample { shell_read, shell_wrote, received, sent }
    }

    #[test]
    fn a_command_and_its_answer_are_an_exchange() {
        let mut flow = Flow::new(sample(0, 5000, 2, 2));
        assert!(!flow.add(sample(0, 5000, 2, 2)));
        assert!(flow.add(sample(3, 5003, 60, 60)));
    }

    #[test]
    fn a_script_that_asks_a_server_once_or_twice_is_none() {
        let mut flow = Flow::of_its_own(sample(0, 5000, 2, 2));
        assert!(!flow.add(sample(300, 5300, 60, 60)));
        assert!(!flow.add(sample(300, 5400, 60, 60)));
        assert!(!flow.add(sample(600, 5700, 120, 120)));
        let mut flow = Flow::of_its_own(sample(0, 5000, 2, 2));
        let commands =
            (1..=3).map(|step| flow.add(sample(step, 5000 + step, step * 60, step * 60)));
        assert_eq!(commands.collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn its_halves_may_be_seen_one_after_the_other() {
        let mut flow = Flow::new(sample(0, 5000, 0, 0));
        assert!(!flow.add(sample(3, 5000, 0, 0)));
        assert!(!flow.add(sample(3, 5003, 60, 0)));
        assert!(flow.add(sample(3, 5003, 60, 60)));
    }

    #[test]
    fn a_shell_that_is_told_what_to_do_by_its_parent_is_none() {
        // A test runner with workers that read their work from it, and a connection of its own.
        let mut flow = Flow::new(sample(0, 0, 0, 0));
        for step in 1..50 {
            assert!(!flow.add(sample(0, step * 100, step * 10, 0)));
        }
        // A coincidence, after that.
        assert!(!flow.add(sample(1000, 5000, 500, 100)));
    }

    #[test]
    fn a_busy_connection_beside_an_idle_shell_is_none() {
        let mut flow = Flow::new(sample(0, 5000, 2, 2));
        for step in 1..50 {
            assert!(!flow.add(sample(step * 1000, 5000, 2, 2 + step)));
        }
    }
}
