//! The client of the policy store's HTTP API: for the monitor, and for the operator's command line.
//!
//! A crate of its own beside `common`, because the hooks link `common` and must stay free of HTTP and asynchronous runtimes.

mod error;
mod host;
mod http;
mod operator;
pub mod signature;

pub use error::StoreError;
pub use host::{HostClient, enrol};
pub use http::Connection;
pub use operator::OperatorClient;
