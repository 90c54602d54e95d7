//! pre-job
fn main() {}
