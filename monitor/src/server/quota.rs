//! How many connections there may be, in all and of one user.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts connections.
#[derive(Clone, Debug)]
pub(super) struct Quota {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    left: usize,
    per_user: usize,
    users: HashMap<u32, usize>,
}

/// The right to one connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    state: Arc<Mutex<State>>,
    uid: u32,
}

impl Quota {
    /// At most `total` connections, at most `per_user` of one user.
    pub(super) fn new(total: usize, per_user: usize) -> Self {
        let state = State { left: total, per_user, users: HashMap::new() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Takes one connection for the user; `None` when there is none left.
    pub(super) fn take(&self, uid: u32) -> Option<Permit> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let per_user = state.per_user;
        if state.left == 0 {
            return None;
        }
        let held = state.users.entry(uid).or_default();
        if *held >= per_user {
            return None;
        }
        *held += 1;
        state.left -= 1;
        Some(Permit { state: Arc::clone(&self.state), uid })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left += 1;
        let uid = self.uid;
        if let Some(held) = state.users.get_mut(&uid) {
            *held -= 1;
            if *held == 0 {
                state.users.remove(&uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Quota;

    #[test]
    fn one_user_can_not_keep_the_others_out() {
        let quota = Quota::new(3, 2);
        let first = quota.take(1000).unwrap();
        let _second = quota.take(1000).unwrap();
        assert!(quota.take(1000).is_none());
        let _other = quota.take(1001).unwrap();
        assert!(quota.take(1002).is_none(), "the total holds too");
        drop(first);
        assert!(quota.take(1002).is_some());
    }
}
