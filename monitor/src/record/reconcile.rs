//! The kernel's counters beside what was recorded.

use portcullis_common::event::RuleCounter;

/// What differs between the kernel's counters and the record, one sentence a rule; empty when all fits.
pub fn differences(counters: &[RuleCounter]) -> Vec<String> {
    counters.iter().filter_map(difference).collect()
}

fn difference(counter: &RuleCounter) -> Option<String> {
    let RuleCounter { rule, packets, recorded, .. } = counter;
    if packets > recorded {
        let missed = packets - recorded;
        return Some(format!(
            "{missed} of {packets} packets that the kernel judged by {rule:?} have no event: the queue of events overflowed or the monitor was not running"
        ));
    }
    if recorded > packets {
        return Some(format!(
            "{recorded} packets were recorded for {rule:?} but the kernel counted {packets}: its counters were reset during the job"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::differences;
    use portcullis_common::event::RuleCounter;

    fn counter(packets: u64, recorded: u64) -> RuleCounter {
        RuleCounter { rule: "blocked".to_owned(), packets, bytes: 0, recorded }
    }

    #[test]
    fn only_what_differs_is_told() {
        assert!(differences(&[counter(7, 7), counter(0, 0)]).is_empty());
        let told = differences(&[counter(7, 7), counter(9, 2), counter(1, 4)]);
        assert_eq!(told.len(), 2);
        assert!(told[0].starts_with("7 of 9 packets"), "{told:?}");
        assert!(told[1].contains("reset"), "{told:?}");
    }
}
