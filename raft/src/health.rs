//! Why a group stops on this node, and what is noticed of its disk while it runs.

use std::io;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Why a group has stopped on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It was asked to: the node shuts down, or the replica is not wanted here any more.
    Wanted,
    /// What this replica has on disk is damaged. It is quarantined durably before this is said: it never votes, is never
    /// read from and is never started again. Says what was found.
    Damaged(String),
    /// Its machine or its disk had a fault that is no damage: the process must not go on as if nothing had happened.
    Fault(String),
}

/// Watches for damage of one replica. The first that is found counts.
#[derive(Default)]
pub(crate) struct Health {
    found: Mutex<Option<String>>,
    damaged: CancellationToken,
}

impl Health {
    /// Notes damage.
    pub(crate) fn damage(&self, reason: String) {
        let mut found = self.found.lock();
        if found.is_none() {
            *found = Some(reason);
            drop(found);
            self.damaged.cancel();
        }
    }

    /// Notes the damage that an error tells of, if it is one that does.
    pub(crate) fn judge(&self, what: &str, error: &io::Error) {
        if is_damage(error) {
            self.damage(format!("{what}: {error}"));
        }
    }

    /// The damage that was found.
    pub(crate) fn found(&self) -> Option<String> {
        self.found.lock().clone()
    }

    /// Returns when damage is found.
    pub(crate) async fn damaged(&self) {
        self.damaged.cancelled().await;
    }
}

/// Whether an error says that what was read is not what was written. Everything else (a full disk, a missing permission, a
/// device that does not answer) may pass, and says nothing about what is on the disk.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}
