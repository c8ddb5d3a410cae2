//! The one record of things that there is one of: where the log is, and the counters.

use crate::codec::{Decode, Encode};
use crate::records::{Only, Record};
use crate::{LogTime, Position, ReplicaId};

/// See the module. Written with every entry.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct MetaRecord {
    pub(super) cluster: Option<u64>,
    /// Of the last entry.
    pub(super) position: Position,
    /// Of the last entry.
    pub(super) time: LogTime,
    /// Counts the changes of members and of the shard map.
    pub(super) epoch: u64,
    /// The replica id that is minted next.
    pub(super) next_replica: ReplicaId,
    /// The collection id that is given next.
    pub(super) next_collection: u32,
    /// Requests minted before it are refused: their replies may be forgotten.
    pub(super) horizon: LogTime,
}

impl MetaRecord {
    pub(super) const BEFORE_FIRST: MetaRecord = MetaRecord {
        cluster: None,
        position: Position(0),
        time: LogTime(0),
        epoch: 0,
        next_replica: 1,
        next_collection: 1,
        horizon: LogTime(0),
    };
}

impl Record for MetaRecord {
    const TABLE: u8 = super::table::META;
    type Key = Only;
}
