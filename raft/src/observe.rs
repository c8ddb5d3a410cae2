//! A look at what a replica does, for checkers of histories, and the places where they may end it.

use std::fmt;
use std::io;
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

/// The named places at which a test may end a node: between two steps that a crash can tear apart. They cost a look at an
/// `Option` where nobody observes, which is everywhere but in a simulation and in a program with planted bugs.
pub mod failpoint {
    /// What a batch of the log lowers is in the floor; the batch is not in the log.
    pub const FLOOR_LOWERED: &str = "floor_lowered";
    /// A batch of the log is durable; the floor does not say so, and nobody was answered.
    pub const BATCH_COMMITTED: &str = "batch_committed";
    /// The rows of a batch are in the state store; nobody was told that its entries are applied.
    pub const ROWS_WRITTEN: &str = "rows_written";
    /// A checkpoint is on disk; nobody has confirmed it.
    pub const CHECKPOINT_MADE: &str = "checkpoint_made";
    /// A confirmed checkpoint will outlive the process; openraft does not know of it, and nothing was purged.
    pub const CHECKPOINT_KEPT: &str = "checkpoint_kept";
    /// A whole snapshot was received; the state store is still the old one.
    pub const SNAPSHOT_RECEIVED: &str = "snapshot_received";
    /// The state store is the snapshot's; machine and log are still the old ones.
    pub const SNAPSHOT_PLACED: &str = "snapshot_placed";
    /// The state of a retired replica is gone, its log is not.
    pub const STATE_DESTROYED: &str = "state_destroyed";
    /// Control has its replica's log; the cluster is not adopted.
    pub const CONTROL_STARTED: &str = "control_started";
    /// The cluster is adopted; the group of a founder is not made, a joiner has read nothing.
    pub const CLUSTER_ADOPTED: &str = "cluster_adopted";
    /// The founder's group is made; its machine knows of no cluster.
    pub const GROUP_MADE: &str = "group_made";
    /// The cluster has admitted this node, which has stored nothing of it.
    pub const ADMITTED: &str = "admitted";

    /// All of them.
    pub const ALL: [&str; 12] = [
        FLOOR_LOWERED,
        BATCH_COMMITTED,
        ROWS_WRITTEN,
        CHECKPOINT_MADE,
        CHECKPOINT_KEPT,
        SNAPSHOT_RECEIVED,
        SNAPSHOT_PLACED,
        STATE_DESTROYED,
        CONTROL_STARTED,
        CLUSTER_ADOPTED,
        GROUP_MADE,
        ADMITTED,
    ];
}

type Tell = dyn Fn(&Applying<'_>) + Send + Sync;
type Ends = dyn Fn(&'static str) -> bool + Send + Sync;

/// Is told of every entry that a replica of the node applies, before its machine sees it, and again when it is replayed
/// after a restart. It must be short, for entries wait for it.
#[derive(Clone)]
pub struct Observer {
    tell: Arc<Tell>,
    ends: Option<Arc<Ends>>,
}

impl Observer {
    /// Calls `tell` for each entry.
    pub fn new(tell: impl Fn(&Applying<'_>) + Send + Sync + 'static) -> Self {
        Observer { tell: Arc::new(tell), ends: None }
    }

    /// Asks `ends` at each [`failpoint`] whether the node ends there. If so nothing that comes after that point happens: the
    /// simulation must let no disk take anything from then on, and kill the node.
    #[must_use]
    pub fn ending_at(self, ends: impl Fn(&'static str) -> bool + Send + Sync + 'static) -> Self {
        Observer { ends: Some(Arc::new(ends)), ..self }
    }

    pub(crate) fn tell(&self, applying: &Applying<'_>) {
        (self.tell)(applying);
    }

    fn ends(&self, point: &'static str) -> bool {
        self.ends.as_ref().is_some_and(|ends| ends(point))
    }
}

/// Passes a failpoint in blocking code, or ends there.
pub(crate) fn pass(observer: Option<&Observer>, point: &'static str) -> io::Result<()> {
    match observer {
        Some(observer) if observer.ends(point) => {
            Err(io::Error::new(io::ErrorKind::BrokenPipe, format!("the simulated node ends at {point}")))
        }
        _ => Ok(()),
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}
