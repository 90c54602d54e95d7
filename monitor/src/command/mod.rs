//! The subcommands of `monitor`.

pub mod check;
pub mod explain;
pub mod serve;
pub mod status;
