//! The subcommands of `monitor`.

pub mod check;
pub mod explain;
pub mod serve;
pub mod status;

/// The most bytes that one value takes in a line for a person.
const SHOWN_BYTES: usize = 512;

/// The most lines of a text for a person: the mistakes of a whole store are told at once.
const SHOWN_LINES: usize = 200;

/// A text of several lines, each made safe to print; what comes after [`SHOWN_LINES`] is counted.
fn shown_lines(text: &str) -> String {
    let mut lines: Vec<String> = text
        .lines()
        .take(SHOWN_LINES)
        .map(|line| portcullis_common::text::log_line(line, SHOWN_BYTES))
        .collect();
    let more = text.lines().count().saturating_sub(lines.len());
    if more > 0 {
        lines.push(format!("… and {more} more lines"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::{SHOWN_LINES, shown_lines};

    #[test]
    fn the_mistakes_of_a_store_stay_on_lines_of_their_own() {
        assert_eq!(
            shown_lines("a.yaml:2:1: wrong\n\nhint: right\u{1b}[31m"),
            "a.yaml:2:1: wrong\n\nhint: right\\x1b[31m"
        );
        let shown = shown_lines(&"x\n".repeat(SHOWN_LINES + 7));
        assert!(shown.ends_with("\n… and 7 more lines"), "{shown}");
    }
}
