//! Who is told what: a pure choice over what happened and what each integration asks for.

use crate::suppression::Place;
use portcullis_common::event::Verdict;
use portcullis_common::store_api::{Notification, NotificationKind, Selection};

/// An integration as far as it is chosen by.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// What it asks for.
    pub selection: Selection,
    /// Whether it also takes batches of raw events.
    pub takes_events: bool,
}

impl Candidate {
    fn is_concerned(&self, place: &Place<'_>) -> bool {
        let scopes = &self.selection.scopes;
        scopes.is_empty() || scopes.iter().any(|scope| place.is_in(scope))
    }

    /// Whether it takes raw events of any job.
    pub const fn takes_events(&self) -> bool {
        self.takes_events
    }

    /// Whether it takes the raw events of a job there.
    pub fn takes_events_of(&self, place: &Place<'_>) -> bool {
        self.takes_events && self.is_concerned(place)
    }

    /// The notification as this integration gets it; `None` when it asks for no such thing.
    pub fn told(&self, notification: &Notification) -> Option<Notification> {
        let place = Place {
            cluster: &notification.cluster,
            organization: &notification.organization,
            repository: &notification.repository,
            workflow: &notification.workflow,
        };
        let selection = &self.selection;
        match notification.kind {
            NotificationKind::Test => Some(notification.clone()),
            NotificationKind::Detection => {
                let kind = notification.detection.as_deref().unwrap_or_default();
                let is_asked = selection.detections
                    && (selection.detection_types.is_empty()
                        || selection.detection_types.iter().any(|asked| asked == kind))
                    && (notification.is_lockdown || !selection.lockdown_only);
                (is_asked && self.is_concerned(&place)).then(|| notification.clone())
            }
            NotificationKind::Calls => {
                let calls: Vec<_> = notification
                    .calls
                    .iter()
                    .filter(|call| wants(selection, call.verdict))
                    .cloned()
                    .collect();
                (!calls.is_empty() && self.is_concerned(&place))
                    .then(|| Notification { calls, ..notification.clone() })
            }
        }
    }

    /// Whether it asks for calls at all.
    pub const fn wants_calls(&self) -> bool {
        self.selection.blocked_calls || self.selection.would_block_calls
    }
}

const fn wants(selection: &Selection, verdict: Verdict) -> bool {
    match verdict {
        Verdict::Allowed => false,
        Verdict::Blocked => selection.blocked_calls,
        Verdict::WouldBlock => selection.would_block_calls,
    }
}

#[cfg(test)]
mod tests {
    use super::Candidate;
    use crate::notify::sample;
    use portcullis_common::event::Verdict;
    use portcullis_common::policy::Attachment;
    use portcullis_common::resolution::ScopeKind;
    use portcullis_common::store_api::{NotificationKind, Selection, ToldCall};

    fn candidate(selection: Selection) -> Candidate {
        Candidate { id: "i".to_owned(), selection, takes_events: false }
    }

    #[test]
    fn only_what_is_asked_for_is_told() {
        let detection = sample(NotificationKind::Detection);
        let types = |kind: &str| Selection {
            detection_types: vec![kind.to_owned()],
            ..Selection::default()
        };
        let scope = |scope, target| Selection {
            scopes: vec![Attachment::new(scope, target).unwrap()],
            ..Selection::default()
        };
        for (selection, expected) in [
            (Selection::default(), true),
            (Selection { detections: false, ..Selection::default() }, false),
            (types("Reverse-Shell"), true),
            (types("Sudo-Use"), false),
            (Selection { lockdown_only: true, ..Selection::default() }, true),
            (scope(ScopeKind::Repository, "octo/hello"), true),
            (scope(ScopeKind::Organization, "other"), false),
        ] {
            assert_eq!(
                candidate(selection.clone()).told(&detection).is_some(),
                expected,
                "{selection:?}"
            );
        }
        let mut recorded = detection;
        recorded.is_lockdown = false;
        let lockdown = Selection { lockdown_only: true, ..Selection::default() };
        assert!(candidate(lockdown).told(&recorded).is_none());
    }

    #[test]
    fn calls_are_told_by_verdict() {
        let mut calls = sample(NotificationKind::Calls);
        let call = |verdict| ToldCall {
            endpoint: "a.test:443".to_owned(),
            verdict,
            process: None,
            calls: 1,
        };
        calls.calls = vec![call(Verdict::Blocked), call(Verdict::WouldBlock)];
        assert!(candidate(Selection::default()).told(&calls).is_none());
        let blocked = Selection { blocked_calls: true, ..Selection::default() };
        let told = candidate(blocked).told(&calls).unwrap();
        assert_eq!(told.calls, [call(Verdict::Blocked)]);
    }
}
