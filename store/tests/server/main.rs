//! The store's server as its callers see it, on SQLite and on PostgreSQL.
//!
//! Each test starts a server of its own on a port of its own; [`on_both`] runs it on either database.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![expect(
    unreachable_pub,
    reason = "a test program exports nothing; `pub` says what modules share"
)]

mod access;
mod archive;
mod audit;
mod bad_input;
mod baselines;
mod bundles;
mod command_answers;
mod command_line;
mod compatibility;
mod dashboard;
mod fault_table;
mod faults;
mod hosts;
mod identity;
mod injection;
mod insights;
mod learned_commands;
mod migrations;
mod notifications;
mod observability;
mod openapi;
mod outbox;
mod policies;
mod processes;
mod resolution;
mod runs;
mod scale;
mod sign_in;
mod support;
mod suppressions;

/// Makes a test of an asynchronous function for each database.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test] fn $name() { $crate::support::run($crate::support::Backend::Sqlite, super::$name); })+
        }
        mod postgresql {
            $(#[test] fn $name() { $crate::support::run($crate::support::Backend::Postgres, super::$name); })+
        }
    };
}
