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
    /// Its replicas, the oldest first. A node has at most one that is kept; beside it, or alone, there may be retiring ones: a
    /// replica that was damaged is replaced on its node before its group has forgotten it.
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

    /// The replica on this node: the one that is kept, else the newest of those that are to go.
    pub fn replica_on(&self, node: NodeId) -> Option<&ReplicaRecord> {
        let newest = || self.replicas.iter().rev().find(|held| held.node == node);
        self.kept_on(node).or_else(newest)
    }

    /// The replica on this node that is not to go.
    pub fn kept_on(&self, node: NodeId) -> Option<&ReplicaRecord> {
        self.replicas.iter().find(|held| held.node == node && held.state != ReplicaState::Retiring)
    }

    /// Whether another replica than this one votes.
    pub(super) fn votes_without(&self, replica: ReplicaId) -> bool {
        self.replicas.iter().any(|held| held.replica != replica && held.state == ReplicaState::Voter)
    }

    pub(super) fn replica_mut(&mut self, replica: ReplicaId) -> Option<&mut ReplicaRecord> {
        self.replicas.iter_mut().find(|held| held.replica == replica)
    }
}
