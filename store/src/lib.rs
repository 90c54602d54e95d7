//! The policy store: the server that holds policies, answers runners and takes in what happened, and the operator's
//! command line.
//!
//! [`database`] alone knows SQL; [`catalog`] decides about policies as values; [`service`] keeps what is in memory true to
//! the database; [`notify`] tells people and programs; [`api`] is HTTP, one file per group of endpoints; [`dashboard`] are pages
//! for people, made of the API's answers; [`serve`] starts and stops the server.

pub mod api;
pub mod catalog;
pub mod command;
pub mod configuration;
pub mod dashboard;
pub mod database;
pub mod identity;
pub mod metrics;
pub mod notify;
pub mod serve;
pub mod service;
pub mod suppression;
mod tls;
