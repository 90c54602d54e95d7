//! When a delivery that failed is tried again.

use aws_lc_rs::rand::fill;
use std::time::Duration;

/// The longest time that a target may ask for by `Retry-After`.
const MAX_ASKED: Duration = Duration::from_hours(24);

/// The pause before the next attempt, after `attempts` of them; `None` when it is given up. A target that asks for a longer
/// pause gets it. `share` is a random number from 0 to 1: up to a fifth is added, so that what failed together does not
/// come again together.
pub(super) fn next(
    schedule: &[u32],
    attempts: u32,
    asked: Option<Duration>,
    share: f64,
) -> Option<Duration> {
    let index = usize::try_from(attempts).ok()?.checked_sub(1)?;
    let pause = Duration::from_secs((*schedule.get(index)?).into());
    let pause = pause.max(asked.unwrap_or_default().min(MAX_ASKED));
    Some(pause.mul_f64(1.0 + 0.2 * share.clamp(0.0, 1.0)))
}

/// A random number from 0 to 1; 0 when the system has none, which only costs the spreading.
pub(super) fn share() -> f64 {
    let mut bytes = [0; 2];
    if fill(&mut bytes).is_err() {
        return 0.0;
    }
    f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::next;
    use std::time::Duration;

    #[test]
    fn pauses_follow_the_schedule_and_end() {
        let schedule = [5, 60];
        let seconds = |attempts, asked: Option<u64>, share| {
            next(&schedule, attempts, asked.map(Duration::from_secs), share)
                .map(|pause| pause.as_secs_f64())
        };
        assert_eq!(seconds(1, None, 0.0), Some(5.0));
        assert_eq!(seconds(2, None, 1.0), Some(72.0));
        assert_eq!(seconds(3, None, 0.0), None);
        assert_eq!(seconds(1, Some(30), 0.0), Some(30.0));
        assert_eq!(seconds(1, Some(1), 0.0), Some(5.0));
        assert_eq!(seconds(1, Some(u64::MAX), 0.0), Some(86400.0));
        assert_eq!(next(&[], 1, None, 0.0), None);
    }
}
