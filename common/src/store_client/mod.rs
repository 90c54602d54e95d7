//! Where policies come from. The only module of this crate that does I/O.

pub mod directory;
