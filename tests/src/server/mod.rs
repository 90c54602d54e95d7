//! The servers of the world's internet.

pub mod certificates;
pub mod dns;
pub mod git;
pub mod github;
pub mod http;
pub mod id_tokens;
pub mod object_store;
pub mod package_index;
pub(crate) mod tcp;
pub(crate) mod tls;
pub mod web;
