//! Whose a container is: pure.
//!
//! A container that an engine makes is a child of the engine, not of who asked for it. What tells is its cgroup, the time,
//! and who is connected to the engine.

use portcullis_common::event::EnforcementScope;

/// What is known of a container from the point of view of one job.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct View {
    /// The container's cgroup is the job's, or below it, or its processes descend from the job's.
    pub is_its_own: bool,
    /// It was started since the job was bound.
    pub is_younger: bool,
    /// A process of the job is connected to the engine now.
    pub is_caller: bool,
    /// The engine says that the container was made before the job was bound: it was started again.
    pub is_restarted: bool,
    /// Whose containers are the job's.
    pub scope: EnforcementScope,
}

/// Whose a container is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// That of the job with this index.
    Job(usize),
    /// Some job's, and it can't be told whose.
    Unknown,
    /// No job's: it was there before, or its engine started it again by itself.
    Nobody,
}

/// Whose the container is, from the views of all running jobs.
pub fn owner(views: &[View]) -> Owner {
    if let Some(index) = views.iter().position(|view| view.is_its_own) {
        return Owner::Job(index);
    }
    let candidates: Vec<usize> = views
        .iter()
        .enumerate()
        .filter(|(_, view)| view.is_younger && (!view.is_restarted || view.is_caller))
        .map(|(index, _)| index)
        .collect();
    let is_host = |index: &&usize| {
        views.get(**index).is_some_and(|view| view.scope == EnforcementScope::Host)
    };
    if let Some(index) = candidates.iter().find(is_host) {
        // The machine has one runner, and this is its job.
        return Owner::Job(*index);
    }
    let mut callers =
        candidates.iter().filter(|index| views.get(**index).is_some_and(|view| view.is_caller));
    match (callers.next(), callers.next()) {
        (Some(index), None) => Owner::Job(*index),
        _ if candidates.is_empty() => Owner::Nobody,
        _ => Owner::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_common::event::EnforcementScope::{Host, Job};

    const VIEW: View = View {
        is_its_own: false,
        is_younger: true,
        is_caller: false,
        is_restarted: false,
        scope: Job,
    };

    #[test]
    fn one_runner_has_what_is_started_while_its_job_runs() {
        let host = View { scope: Host, ..VIEW };
        assert_eq!(owner(&[host]), Owner::Job(0));
        assert_eq!(owner(&[View { is_younger: false, ..host }]), Owner::Nobody);
        // Started again: by the engine, or by the job.
        assert_eq!(owner(&[View { is_restarted: true, ..host }]), Owner::Nobody);
        assert_eq!(owner(&[View { is_restarted: true, is_caller: true, ..host }]), Owner::Job(0));
    }

    #[test]
    fn of_several_runners_the_one_that_asks_has_it() {
        let caller = View { is_caller: true, ..VIEW };
        assert_eq!(owner(&[VIEW, caller]), Owner::Job(1));
        assert_eq!(owner(&[caller, caller]), Owner::Unknown);
        assert_eq!(owner(&[VIEW, VIEW]), Owner::Unknown);
        assert_eq!(owner(&[View { is_younger: false, ..caller }, VIEW]), Owner::Unknown);
        assert_eq!(owner(&[View { is_younger: false, ..VIEW }; 2]), Owner::Nobody);
        assert_eq!(owner(&[caller, View { is_its_own: true, ..VIEW }]), Owner::Job(1));
        assert_eq!(owner(&[]), Owner::Nobody);
    }
}
