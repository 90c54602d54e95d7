//! The subcommands of `monitor`.

pub mod check;
pub mod explain;
pub mod serve;
pub mod status;

/// The most bytes that one value takes in a line for a person.
const SHOWN_BYTES: usize = 512;
