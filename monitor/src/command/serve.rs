//! `monitor serve`: the daemon itself.

use crate::config::{Config, Paths};
use crate::containers::authorization;
use crate::job::host::Host;
use crate::job::registry::Registry;
use crate::panics::on_panic;
use crate::server::{self, listener::Listener};
use crate::service_manager::ServiceManager;
use crate::sys::activation::take_passed;
use crate::sys::memory;
use anyhow::Context;
use nix::sys::signal::SigSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// Threads that run the jobs' tasks. Most of the work is the kernel's; what blocks has threads of its own.
const RUNTIME_THREADS: usize = 2;

/// Threads at most for what blocks: a job has a handful of blocking steps in its life.
const BLOCKING_THREADS: usize = 64;

/// Serves until SIGTERM or SIGINT. The jobs that run then keep their rules; the next monitor takes them over.
///
/// # Errors
/// When the configuration can't be used or the socket can't be had.
pub fn serve(paths: &Paths, detach: bool) -> anyhow::Result<()> {
    // Whoever starts us, a hook under a runner for one, may block the signals that end us.
    SigSet::empty().thread_set_mask().context("the signal mask could not be cleared")?;
    if detach {
        // A session of our own: the runner must not find us among its hook's children.
        nix::unistd::setsid().context("a session of its own could not be made")?;
    }
    let passed = take_passed();
    memory::keep_little();
    // Nobody but root may look into this process, or make it dump what it holds.
    nix::sys::prctl::set_dumpable(false).context("the monitor's memory could not be closed")?;
    let config = Config::load(paths)?;
    let listener = Listener::open(paths, config.docker.authorization_plugin, passed.listeners)?;
    make_private_directories(paths)?;
    let host = Arc::new(Host::open(paths.clone(), ServiceManager::of_this_process(passed.kept))?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_io()
        .enable_time()
        .thread_name("monitor")
        .build()
        .context("the runtime could not be started")?;
    let containers = Arc::clone(&host.containers);
    containers.start(runtime.handle()).context("the watcher of containers could not be started")?;
    let registry = Arc::new(Registry::new(Arc::clone(&host), runtime.handle().clone()));
    let jobs = Arc::downgrade(&registry);
    on_panic(move |what| {
        if let Some(registry) = jobs.upgrade() {
            registry.note_gap(&what);
        }
    });
    registry.adopt_all();
    host.resume_uploads();
    runtime.block_on(async {
        let socket = UnixListener::from_std(listener.socket.try_clone()?)?;
        if let Some(plugin) = &listener.docker_plugin {
            let plugin = UnixListener::from_std(plugin.try_clone()?)?;
            tokio::spawn(authorization::serve(containers, plugin));
        }
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        if let Err(error) = host.service_manager.ready() {
            tracing::warn!(error = %error, "systemd could not be told that the monitor is ready");
        }
        tracing::info!(socket = %paths.socket().display(), version = env!("CARGO_PKG_VERSION"), "the monitor listens");
        tokio::select! {
            () = server::run(socket, registry) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        anyhow::Ok(())
    })?;
    tracing::info!("the monitor stops; the rules of running jobs stay");
    runtime.shutdown_background();
    Ok(())
}

/// The directories that hold events and policies are root's alone; what leads to them stays as open as it is on every host.
fn make_private_directories(paths: &Paths) -> anyhow::Result<()> {
    for directory in [paths.jobs(), paths.spool(), paths.last_known_good()] {
        let made = directory
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| DirBuilder::new().recursive(true).mode(0o700).create(&directory));
        made.with_context(|| format!("{} can't be made", directory.display()))?;
    }
    Ok(())
}
