//! post-job
fn main() {}
