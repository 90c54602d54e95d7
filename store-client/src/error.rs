//! Why the store did not do what was asked.

use crate::signature::SignatureError;
use portcullis_common::hook::with_causes;
use portcullis_common::store_api::Problem;
use std::time::Duration;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its address can't be understood.
    #[error("{0:?} is no address of a store; it must be such as https://portcullis.example.com")]
    Address(String),
    /// Requests can't be made at all.
    #[error("requests to the store can't be made: {0}")]
    Client(String),
    /// It could not be reached, or the connection broke.
    #[error("the store {store} can't be reached: {reason}")]
    Unreachable {
        /// Its address.
        store: String,
        /// Why.
        reason: String,
    },
    /// It took too long.
    #[error("the store did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It refused.
    #[error("the store refuses: {}", .0.detail)]
    Refused(Box<Problem>),
    /// Its answer can't be understood.
    #[error("the store's answer can't be understood: {0}")]
    NotUnderstood(String),
    /// Its answer is larger than any answer may be.
    #[error("the store's answer has more than {0} bytes")]
    TooLarge(usize),
    /// The signature of its answer is not good.
    #[error("the store's answer is not signed as it must be: {0}")]
    Signature(#[from] SignatureError),
    /// It answers something else than what was asked.
    #[error("the store's answer is not the one to this request: {0}")]
    AnotherAnswer(&'static str),
}

impl StoreError {
    /// Whether the store itself has looked at what was sent and will never take it. What something in front of it answers, or
    /// what can't be understood, says nothing about the store.
    pub fn is_final(&self) -> bool {
        /// 400, 409, 413, 422: wrong, contrary to what the store has, too large, not what can be processed (RFC 9110 §15.5).
        const FINAL: [u16; 4] = [400, 409, 413, 422];
        match self {
            Self::Refused(problem) => {
                problem.kind.starts_with(Problem::KIND_PREFIX) && FINAL.contains(&problem.status)
            }
            _ => false,
        }
    }

    /// The number of the event that the store expects, when it misses some.
    pub fn expected_seq(&self) -> Option<u64> {
        match self {
            Self::Refused(problem) => problem.expected_seq,
            _ => None,
        }
    }

    pub(crate) fn of(error: &reqwest::Error, store: &str, patience: Duration) -> Self {
        if error.is_timeout() {
            return Self::TimedOut(patience);
        }
        Self::Unreachable { store: store.to_owned(), reason: with_causes(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::StoreError;
    use portcullis_common::store_api::Problem;
    use std::time::Duration;

    #[test]
    fn only_the_store_itself_refuses_for_good() {
        let refused = |kind: &str, status| {
            StoreError::Refused(Box::new(Problem {
                kind: kind.to_owned(),
                status,
                ..Problem::default()
            }))
        };
        for status in [300, 302, 400, 401, 403, 404, 407, 408, 409, 413, 422, 425, 429, 500, 503] {
            let of_store = refused("urn:portcullis:problem:something", status);
            assert_eq!(of_store.is_final(), [400, 409, 413, 422].contains(&status), "{status}");
            assert!(!refused("about:blank", status).is_final(), "{status} of a proxy");
        }
        for error in [
            StoreError::NotUnderstood("<html>".to_owned()),
            StoreError::TimedOut(Duration::from_secs(1)),
            StoreError::TooLarge(1),
        ] {
            assert!(!error.is_final(), "{error}");
        }
    }
}
