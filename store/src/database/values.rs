//! Between what Rust says and what columns hold: numbers for verdicts, words for enumerations, times.

use super::DatabaseError;
use jiff::Timestamp;
use portcullis_common::event::Verdict;

/// Adds ` AND column = value` to a query where there is a value.
macro_rules! and_equal {
    ($query:expr, $column:literal, $value:expr) => {
        if let Some(value) = $value {
            $query.push(concat!(" AND ", $column, " = ")).push_bind(value);
        }
    };
}

pub(super) use and_equal;

/// The number that stands for a verdict.
pub const fn verdict_code(verdict: Verdict) -> i16 {
    match verdict {
        Verdict::Allowed => 0,
        Verdict::Blocked => 1,
        Verdict::WouldBlock => 2,
    }
}

/// The verdict that a number stands for.
pub fn verdict_name(code: i16) -> Option<Verdict> {
    [Verdict::Allowed, Verdict::Blocked, Verdict::WouldBlock]
        .into_iter()
        .find(|verdict| verdict_code(*verdict) == code)
}

/// The verdict of a row.
pub(super) fn verdict_of(code: i16) -> Result<Verdict, DatabaseError> {
    verdict_name(code).ok_or_else(|| DatabaseError::Corrupt(format!("the verdict {code}")))
}

pub(super) fn microseconds(time: i64) -> Result<Timestamp, DatabaseError> {
    Timestamp::from_microsecond(time)
        .map_err(|error| DatabaseError::Corrupt(format!("the time {time}: {error}")))
}

/// A pattern for `LIKE … ESCAPE '!'` that finds the text anywhere, whatever is in it.
pub(super) fn containing(text: &str) -> String {
    let escaped = text.replace('!', "!!").replace('%', "!%").replace('_', "!_");
    format!("%{escaped}%")
}

/// A value that serializes as one word, as that word.
pub(super) fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// The value that serializes as this word.
pub(super) fn from_word<T: serde::de::DeserializeOwned>(word: &str) -> Result<T, DatabaseError> {
    serde_json::from_value(serde_json::Value::String(word.to_owned()))
        .map_err(|_| DatabaseError::Corrupt(format!("the word {word:?}")))
}
