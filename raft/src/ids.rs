//! The names of things that take part in consensus.

use std::fmt;

/// A Raft group: 0 is control, 1 and up are shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The group that holds the task queue, the agents, the members and the shard map.
    pub const CONTROL: GroupId = GroupId(0);
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::CONTROL { f.write_str("control") } else { write!(f, "shard-{}", self.0) }
    }
}

/// One replica of one group on one node: what openraft calls a node id. Minted through the control log, never reused.
pub type ReplicaId = u64;

/// A node: random, minted once and kept in its data directory. Host names and addresses are only labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A cluster: random, minted by `cluster init`, carried in every message between peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A place in a group's log. Ordered by term, then position, as Raft orders logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogPosition {
    /// The term in which the entry was proposed.
    pub term: u64,
    /// The position in the log, from 0 or 1 up without holes.
    pub position: u64,
}
