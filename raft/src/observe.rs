//! A look at what a replica applies, for checkers of histories.

use std::fmt;
use std::sync::Arc;

use crate::ids::{GroupId, LogPosition, ReplicaId};

/// An entry that a replica is about to apply.
#[derive(Debug, Clone, Copy)]
pub struct Applying<'a> {
    /// The group.
    pub group: GroupId,
    /// Where the entry is in the log.
    pub at: LogPosition,
    /// The leader that proposed it.
    pub leader: ReplicaId,
    /// The proposal; `None` for an entry of Raft's own.
    pub payload: Option<&'a [u8]>,
}

/// Is told of every entry that a replica of the node applies, before its machine sees it, and again when it is replayed
/// after a restart. It must be short, for entries wait for it.
#[derive(Clone)]
pub struct Observer(Arc<dyn Fn(&Applying<'_>) + Send + Sync>);

impl Observer {
    /// Calls `tell` for each entry.
    pub fn new(tell: impl Fn(&Applying<'_>) + Send + Sync + 'static) -> Self {
        Observer(Arc::new(tell))
    }

    pub(crate) fn tell(&self, applying: &Applying<'_>) {
        (self.0)(applying);
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}
