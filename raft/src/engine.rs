//! The seams below the log writer: a store of log records that can make a batch durable at once, and the file of the floor.

use std::io;

use bytes::Bytes;

use crate::ids::GroupId;

/// One change of the log database.
#[derive(Debug, Clone)]
pub enum LogChange {
    /// Puts the record (envelope with chained CRC) of an entry.
    Append {
        /// The group.
        group: GroupId,
        /// The position.
        position: u64,
        /// The encoded record.
        record: Bytes,
    },
    /// Deletes the records at `from` and after.
    Truncate {
        /// The group.
        group: GroupId,
        /// First position to go.
        from: u64,
    },
    /// Deletes the records up to and with `upto`.
    Purge {
        /// The group.
        group: GroupId,
        /// Last position to go.
        upto: u64,
    },
    /// Puts a mark (vote, committed, purged, replica id) of a group.
    Mark {
        /// The group.
        group: GroupId,
        /// Which mark.
        kind: MarkKind,
        /// Its encoding.
        value: Bytes,
    },
    /// Deletes all of a group.
    Destroy {
        /// The group.
        group: GroupId,
    },
}

/// The single values kept for each group beside its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum MarkKind {
    /// The last vote.
    Vote = 1,
    /// The last committed position that was saved.
    Committed = 2,
    /// The last purged position with the CRC of its record, from which the chain goes on.
    Purged = 3,
    /// The replica id that owns this log.
    Replica = 4,
}

/// A log database. One writer calls `commit`; readers may call the rest at any time.
pub trait LogEngine: Send + Sync + 'static {
    /// Applies all changes atomically, in order, and makes them durable before it returns. An error is final: the
    /// caller ends the process, because after a failed fsync the kernel has forgotten which pages were dirty.
    fn commit(&self, changes: &[LogChange]) -> io::Result<()>;
    /// Records in `from..to`, in order, at most about `max_bytes` (at least one if there is one).
    fn read(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<(u64, Bytes)>>;
    /// The last record of a group.
    fn last(&self, group: GroupId) -> io::Result<Option<(u64, Bytes)>>;
    /// A mark of a group.
    fn mark(&self, group: GroupId, kind: MarkKind) -> io::Result<Option<Bytes>>;
    /// Groups that have anything stored.
    fn groups(&self) -> io::Result<Vec<GroupId>>;
    /// Moves what is durable only in a write-ahead log, and read from memory, to where it is read from the disk. An error is
    /// final only for who calls `commit` after it.
    fn spill(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The file of the floor: two slots that are written in turn, so that one of them is whole at any time.
///
/// The floor says what the log database must hold; [`log`](crate::log) says how it is used.
pub trait FloorFile: Send + Sync + 'static {
    /// The bytes of both slots. A slot that was never written is empty or all zero.
    fn read(&self) -> io::Result<[Vec<u8>; 2]>;
    /// Puts `bytes` at the beginning of a slot and makes that durable before it returns. What the slot held behind them may
    /// stay. An error is final, as with [`LogEngine::commit`].
    fn write(&self, slot: usize, bytes: &[u8]) -> io::Result<()>;
}
