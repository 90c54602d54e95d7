//! The monitor: puts a job's policy in force and records what the job does.
//!
//! Deciding and doing are apart: [`egress`] turns a policy into a rule set (a value), [`nftables`] applies one and
//! verifies what the kernel holds; [`dns`] judges names and answers; [`watch`] gathers facts, [`record`] writes them down.

pub mod caller;
pub mod cgroup;
pub mod command;
pub mod config;
pub mod dns;
pub mod egress;
pub mod job;
pub mod network;
pub mod nftables;
pub mod record;
pub mod server;
pub mod sys;
pub mod watch;
