//! The shard map: who holds what.

use crate::codec::{Decode, Encode};
use crate::records::Record;
use crate::{NodeId, ReplicaId, ShardId};

/// What a replica is on its way to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ReplicaState {
    /// Placed; not a voter yet.
    Joining,
    /// A voter of its group.
    Voter,
    /// To be taken out of its group and deleted.
    Retiring,
}

/// One replica of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ReplicaRecord {
    /// Its id, minted for this shard and node.
    pub replica: ReplicaId,
    /// The node that holds it.
    pub node: NodeId,
    /// What it is.
    pub state: ReplicaState,
}

/// A shard and its replicas.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ShardRecord {
    /// The shard.
    pub shard: ShardId,
    /// Whether its group has been initialised: then nobody may initialise it again.
    pub initialized: bool,
    /// Its replicas, the oldest first; at most one on a node.
    pub replicas: Vec<ReplicaRecord>,
}

impl Record for ShardRecord {
    const TABLE: u8 = super::table::SHARD;
    type Key = ShardId;
}

impl ShardRecord {
    /// The replica with this id.
    pub fn replica(&self, replica: ReplicaId) -> Option<&ReplicaRecord> {
        self.replicas.iter().find(|held| held.replica == replica)
    }

    /// The replica on this node.
    pub fn replica_on(&self, node: NodeId) -> Option<&ReplicaRecord> {
        self.replicas.iter().find(|held| held.node == node)
    }

    pub(super) fn replica_mut(&mut self, replica: ReplicaId) -> Option<&mut ReplicaRecord> {
        self.replicas.iter_mut().find(|held| held.replica == replica)
    }
}
