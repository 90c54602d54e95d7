//! Policies as the text that hosts get.
//!
//! A policy of ten thousand endpoints is put together, numbered and written as JSON once, not for each job that asks for it.
//! What is remembered belongs to one snapshot, which never changes: a change of the policies makes a new one, which remembers
//! nothing yet.

use portcullis_common::policy::EffectivePolicy;
use portcullis_common::resolution::{Considered, ResolveError, ScopeKind};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The most bytes of text that are remembered.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// What applies to a job, with the policy as text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyAnswer {
    /// The policy that applies, as JSON.
    pub policy: Arc<str>,
    /// The kind of target that matched.
    pub scope: ScopeKind,
    /// The target that matched, `default` for the host's default.
    pub target: String,
    /// Every target that was looked at, the most specific first.
    pub considered: Vec<Considered>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// No policy can be given to the job.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The policy can't be written.
    #[error("the policy can't be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// The texts by the policies' names.
#[derive(Debug, Default)]
pub(super) struct Answers {
    remembered: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    texts: HashMap<String, Arc<str>>,
    bytes: usize,
}

impl Answers {
    /// The text of a policy, remembered or made. Several may make the same at the same time; it is the same text.
    ///
    /// # Errors
    /// `make`'s, which are not remembered; or when what it made can't be written.
    pub(super) fn get_or_make(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<EffectivePolicy, ResolveError>,
    ) -> Result<Arc<str>, AnswerError> {
        if let Some(text) = self.lock().texts.get(name) {
            return Ok(Arc::clone(text));
        }
        let text: Arc<str> = serde_json::to_string(&make()?)?.into();
        self.lock().insert(name, &text);
        Ok(text)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn insert(&mut self, name: &str, text: &Arc<str>) {
        let bytes = name.len() + text.len();
        if bytes > MAX_BYTES || self.texts.contains_key(name) {
            return;
        }
        if self.bytes + bytes > MAX_BYTES {
            // What is asked for often comes back at once; which it is need not be kept track of.
            *self = Self::default();
        }
        self.bytes += bytes;
        self.texts.insert(name.to_owned(), Arc::clone(text));
    }
}

#[cfg(test)]
mod tests {
    use super::{AnswerError, Answers, MAX_BYTES, Remembered};
    use portcullis_common::policy::{EffectivePolicy, EgressMode};
    use portcullis_common::resolution::ResolveError;
    use std::sync::Arc;

    #[test]
    fn a_text_is_made_once_and_a_failure_is_not_remembered() {
        let answers = Answers::default();
        let missing = || ResolveError::DefaultMissing { name: "p".to_owned(), hint: String::new() };
        let error = answers.get_or_make("p", || Err(missing())).unwrap_err();
        assert!(matches!(error, AnswerError::Resolve(found) if found == missing()));
        let policy = EffectivePolicy::built_in(EgressMode::Block);
        let text = answers.get_or_make("p", || Ok(policy.clone())).unwrap();
        assert_eq!(serde_json::from_str::<EffectivePolicy>(&text).unwrap(), policy);
        let again = answers.get_or_make("p", || Err(missing())).unwrap();
        assert!(Arc::ptr_eq(&text, &again));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut remembered = Remembered::default();
        let third: Arc<str> = "x".repeat(MAX_BYTES / 3).into();
        for name in ["a", "b", "a", "c", "d"] {
            remembered.insert(name, &third);
            assert!(remembered.bytes <= MAX_BYTES);
            assert!(remembered.texts.contains_key(name));
        }
        let kept = remembered.bytes;
        remembered.insert("whole", &"x".repeat(MAX_BYTES).into());
        assert_eq!((remembered.bytes, remembered.texts.contains_key("whole")), (kept, false));
    }
}
