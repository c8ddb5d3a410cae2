//! A resource outside of the cluster that is guarded by tokens, as the user of one is told to guard it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::event::{Operation, Phase, Token};
use crate::history::Process;

/// For each task the newest token that was seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Resource(Arc<Mutex<HashMap<u64, Token>>>);

impl Resource {
    /// Lets an effect of that token through unless a newer one was seen.
    fn take(&self, task: u64, token: Token) -> bool {
        let mut newest = self.0.lock();
        let seen = newest.entry(task).or_insert(token);
        if token < *seen {
            return false;
        }
        *seen = token;
        true
    }

    /// Makes an effect and records it. `held` is asked after the effect has begun: a lease that is held then was held when
    /// it began.
    pub(super) fn effect(&self, process: &mut Process, task: u64, token: Token, held: impl FnOnce() -> bool) {
        let operation = |held| Operation::Effect { task, token: token.to_string(), held };
        process.invoke(operation(false), None);
        let held = held();
        if self.take(task, token) {
            process.ok(operation(held));
        } else {
            process.end(Phase::Fail, operation(held), Some("a newer token was seen".into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_token_is_refused_for_its_own_task_only() {
        let resource = Resource::default();
        let token = |position| Token { position, ordinal: 0 };
        assert!(resource.take(1, token(5)));
        assert!(resource.take(1, token(5)));
        assert!(resource.take(1, token(7)));
        assert!(!resource.take(1, token(5)));
        assert!(resource.take(2, token(5)));
    }
}
