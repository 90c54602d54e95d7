//! Kernel-side sensors: BPF programs, their loading, and what they saw, as values.
//!
//! Nothing here knows policies or decides anything; the one thing that the programs do by themselves is to end a process that
//! wants the memory of a guarded one ([`guard`]), and to stop one that may be a shell at the end of a connection until it was
//! judged ([`streams`]), and the first program of a container ([`containers`]), because nobody else could in time. [`lifecycle`] tells what processes of
//! jobs come, execute and go, [`network`] whose a job's calls are. The programs are C (`programs/`), compiled by `build.rs`.

pub mod containers;
pub mod event;
pub mod guard;
pub mod lifecycle;
pub mod network;
pub mod streams;

mod bytes;
mod object;
mod ring;

pub use containers::{ContainerHost, ContainerWatch};
pub use event::Event;
pub use guard::MemoryGuard;
pub use lifecycle::Lifecycle;
pub use network::{LoadedHooks, NetworkHooks};
pub use object::SensorError;
pub use streams::StreamGate;
