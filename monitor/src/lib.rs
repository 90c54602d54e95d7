//! The monitor: puts a job's policy in force and records what the job does.
//!
//! Deciding and doing are apart: [`egress`] turns a policy into a rule set (a value), [`nftables`] applies one and
//! verifies what the kernel holds; [`dns`] judges names and answers; [`watch`] gathers facts, [`detect`] judges them,
//! [`respond`] answers what it finds, [`record`] writes down; [`protect`] makes the Worker itself harder to attack.

pub mod caller;
pub mod cgroup;
pub mod command;
pub mod config;
pub mod containers;
pub mod detect;
pub mod dns;
pub mod egress;
pub mod job;
pub mod network;
pub mod nftables;
pub mod panics;
pub mod protect;
pub mod record;
pub mod respond;
pub mod server;
pub mod service_manager;
pub mod store;
pub mod sys;
pub mod watch;
