//! Names as they come out of DNS messages.

use super::DnsName;

impl DnsName {
    /// The name `text` of a DNS message, lower case and without a trailing dot, as resolved answers carry them: labels of
    /// 1 to 63 letters, digits, hyphens and underscores, 253 bytes in all (RFC 1035 §2.3.4).
    ///
    /// Wider than what a policy may name, so that an alias such as `_lb.a-.example.net` can be recorded. `None` for
    /// everything else.
    pub fn from_answer(text: &str) -> Option<Self> {
        let well_formed = text.len() <= 253
            && text.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|byte| {
                        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte)
                    })
            });
        well_formed.then(|| Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_answers_carry_and_nothing_else() {
        for name in ["a", "_lb.a-.example.net", "xn--bcher-kva.example", "1.2.3.4"] {
            assert_eq!(DnsName::from_answer(name).as_ref().map(DnsName::as_str), Some(name));
        }
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(62)].join(".");
        for name in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "A.b",
            "a b",
            "a\0b",
            "bücher.example",
            &long_label,
            &long_name,
        ] {
            assert_eq!(DnsName::from_answer(name), None, "{name:?}");
        }
    }
}
