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
    /// Whether the same request can succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut(_) | Self::TooLarge(_) => true,
            Self::Refused(problem) => {
                problem.status >= 500 || problem.status == 429 || problem.status == 401
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
