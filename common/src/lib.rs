//! The pure core of Portcullis: what a policy says, which one applies, and what is recorded about a job.
//!
//! Nothing here does I/O except [`store_client`], which reads policies from where they live.

pub mod address;
pub mod diagnostic;
pub mod endpoint;
pub mod event;
pub mod hook;
pub mod job_context;
pub mod judging;
pub mod policy;
pub mod report;
pub mod resolution;
pub mod schema;
pub mod store_api;
pub mod store_client;
pub mod text;
pub mod wire;
