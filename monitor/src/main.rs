//! `monitor`: the root daemon, one per host.
fn main() {}
