//! The names of things in the replicated machines.

use std::fmt;

use crate::codec::{Decode, Encode};

/// A position in the log of the group whose machine is applied: the position of the entry that is being applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Position(pub u64);

/// Log time: microseconds since the Unix epoch as the log tells it. It never runs backwards: the time that an entry takes
/// effect at is the later of its own time and the time of the entry before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct LogTime(pub u64);

impl LogTime {
    /// This time plus `milliseconds`; stays at the end of time instead of wrapping around.
    pub fn plus_ms(self, milliseconds: u64) -> LogTime {
        LogTime(self.0.saturating_add(milliseconds.saturating_mul(1_000)))
    }

    /// This time minus `milliseconds`; stays at the epoch instead of wrapping around.
    pub fn minus_ms(self, milliseconds: u64) -> LogTime {
        LogTime(self.0.saturating_sub(milliseconds.saturating_mul(1_000)))
    }
}

/// The id of a request, minted by the client: a UUIDv7, whose first 48 bits are milliseconds since the Unix epoch. A request
/// that is sent again with the same id takes effect once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct RequestId(pub u128);

impl RequestId {
    /// The time in a UUIDv7. `None` for an id of another shape, for which nobody can tell how old it is.
    pub fn minted(self) -> Option<LogTime> {
        let version = (self.0 >> 76) & 0xf;
        (version == 7).then(|| LogTime(((self.0 >> 80) as u64).saturating_mul(1_000)))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A task: the position of the entry that enqueued it, shifted by 16 bits, with an ordinal within the entry. So a smaller id
/// is an older task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct TaskId(pub u64);

/// A session: one run of one agent. Numbered as tasks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct SessionId(pub u64);

/// A collection. Counted up, never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct CollectionId(pub u32);

/// A node: random, minted once by the node and kept in its data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct NodeId(pub u64);

/// A replica of one group on one node. Minted through the control log, never used again.
pub type ReplicaId = u64;

/// A shard, which is also the number of its Raft group: 1 and up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ShardId(pub u32);

/// The token of a grant: where in the log it was granted. Every later word about the attempt carries it, and only the newest
/// token of a task is listened to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Token {
    /// Position of the entry.
    pub position: u64,
    /// Which grant within the entry.
    pub ordinal: u32,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.position, self.ordinal)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for CollectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
