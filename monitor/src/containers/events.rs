//! What a Docker engine tells of its containers: a container that is made with privileges is found before it runs, and its
//! name and addresses are known before its first packet.

use super::engine::Engine;
use super::facts::describe;
use super::identity::{Description, in_words};
use super::judging::{callers, is_caller};
use super::ownership::{Owner, View, owner};
use super::{Containers, WatchedJob};
use crate::detect::privileged_container::json::Json;
use crate::detect::privileged_container::request::{
    NamedPath, named_paths, privileges_of_configuration,
};
use crate::detect::privileged_container::{HostPath, JobOwn, Privilege, Subject, finding};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Pause between two attempts to reach an engine: it may be started later, or again.
const PAUSE: Duration = Duration::from_secs(1);

/// For how many seconds events may be on their way. What is told twice is answered once.
const OVERLAP: i64 = 5;

/// Events that are looked into at a time. The engine drops the events of whoever does not read them.
const AT_A_TIME: usize = 64;

/// Listens to an engine for as long as the monitor lives, while there are jobs.
pub(super) async fn listen(containers: Arc<Containers>, engine: Engine) {
    let under_way = Arc::new(Semaphore::new(AT_A_TIME));
    // What happened while nobody listened is told when somebody listens again.
    let mut heard = 0;
    loop {
        let came = containers.job_came.notified();
        if containers.jobs().is_empty() {
            came.await;
        }
        let first = containers.jobs().iter().map(|job| job.started.as_second()).min();
        if engine.is_there()
            && let Some(first) = first
            && let Ok(mut events) = engine.events(first.max(heard)).await
        {
            while let Some(event) = events.next().await {
                heard = jiff::Timestamp::now().as_second() - OVERLAP;
                // Never closed.
                let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else { return };
                let (containers, engine) = (Arc::clone(&containers), engine.clone());
                tokio::spawn(async move {
                    happened(&containers, &engine, &event).await;
                    drop(permit);
                });
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn happened(containers: &Arc<Containers>, engine: &Engine, event: &Json) {
    let action = event.texts(&["Action"]).first().copied().unwrap_or_default();
    let is_made = action == "create";
    let is_started = action == "start";
    if !is_made && !is_started && !action.starts_with("exec_") {
        return;
    }
    containers.asked.something_happened();
    if !is_made && !is_started {
        return;
    }
    let Some(id) = event.texts(&["Actor", "ID"]).first().copied() else { return };
    let Some(json) = engine.container_in_the_end(id).await else { return };
    let description = containers.remember(Description::from_json(&json));
    let words = in_words(Some(id), Some(&description));
    for address in addresses(&json) {
        containers.names.note(address, words.clone());
    }
    if is_made {
        let containers = Arc::clone(containers);
        // Answering a finding may take as long as a job takes to die.
        let answered = tokio::task::spawn_blocking(move || judge(&containers, &json, &description));
        if let Err(error) = answered.await {
            tracing::error!(%error, "a container's description could not be judged");
        }
    }
}

/// The addresses of a container that runs.
fn addresses(json: &Json) -> Vec<IpAddr> {
    let settings = json.all_at(&["NetworkSettings", "Networks"]);
    let networks = settings.into_iter().filter_map(|networks| match networks {
        Json::Object(networks) => Some(networks),
        _ => None,
    });
    networks
        .flatten()
        .flat_map(|(_, network)| {
            [network.texts(&["IPAddress"]), network.texts(&["GlobalIPv6Address"])].concat()
        })
        .filter_map(|address| address.parse().ok())
        .collect()
}

fn judge(containers: &Containers, json: &Json, description: &Description) {
    let jobs = containers.jobs();
    let paths = on_host(&named_paths(json, &["HostConfig"]));
    let is_concerning = |job: &Arc<WatchedJob>| !privileges(json, &paths, &job.own).is_empty();
    if !jobs.iter().any(is_concerning) {
        return;
    }
    let callers = callers();
    let views: Vec<View> = jobs
        .iter()
        .map(|job| View {
            is_its_own: false,
            is_younger: description.created.is_none_or(|created| created >= job.started),
            is_caller: is_caller(job, callers.as_deref()),
            is_restarted: false,
            scope: job.scope(),
        })
        .collect();
    let (concerned, is_certain): (Vec<_>, bool) = match owner(&views) {
        Owner::Job(index) => (jobs.get(index).into_iter().collect(), true),
        Owner::Unknown => (jobs.iter().collect(), false),
        Owner::Nobody => return,
    };
    for job in concerned {
        let privileges = privileges(json, &paths, &job.own);
        let subject = Subject {
            container: in_words(Some(&description.id), Some(description)),
            process: None,
            what: if is_certain { "was made" } else { "(it can't be told for which job) was made" }
                .to_owned(),
        };
        if let Some(finding) = finding(subject, &privileges) {
            containers.answer(job, &description.id, &privileges, finding, is_certain);
        }
    }
}

/// What a container has of the host by its description. An engine on a host with cgroup version 1 writes the host's cgroup
/// namespace into every one, though nobody asked for it; it shows names, no more.
fn privileges(json: &Json, paths: &[HostPath], own: &JobOwn) -> Vec<Privilege> {
    let mut found = privileges_of_configuration(json, &["HostConfig"], paths, own);
    found.retain(|privilege| *privilege != Privilege::HostNamespace("cgroup"));
    found
}

/// The paths as they are on this host. Symbolic links are followed, as the engine does when it mounts; of a path that is not
/// there yet, the part that is.
pub(super) fn on_host(named: &[NamedPath]) -> Vec<HostPath> {
    named
        .iter()
        .map(|named| {
            let path = resolve(&named.path);
            // Whose a directory is that the engine will make says who could have made it.
            let existing = path
                .ancestors()
                .find(|ancestor| ancestor.exists())
                .unwrap_or_else(|| Path::new("/"));
            let metadata = fs::metadata(existing).ok();
            describe(path.clone(), named.read_only, metadata.as_ref())
        })
        .collect()
}

fn resolve(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(resolved) = fs::canonicalize(ancestor) {
            let rest = path.strip_prefix(ancestor).unwrap_or_else(|_| Path::new(""));
            return if rest.as_os_str().is_empty() { resolved } else { resolved.join(rest) };
        }
    }
    path.to_owned()
}
