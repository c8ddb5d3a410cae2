//! The seam between the shard map and whatever serves a shard's replica on this node.

use async_trait::async_trait;
use quorate_raft::{Group, Machine, ReplicaId};
use quorate_state::ShardId;

/// Serves the shard replicas that the shard map places on this node. The supervisor calls it, one call at a time for
/// each shard, in the order `machine`, `started`, `stopping`, and `destroyed` if the replica is gone for good.
#[async_trait]
pub trait ShardHost: Send + Sync + 'static {
    /// The machine of a replica whose group is about to be started.
    fn machine(&self, shard: ShardId, replica: ReplicaId) -> Box<dyn Machine>;

    /// The replica's group runs and may become leader.
    async fn started(&self, shard: ShardId, group: Group);

    /// The group is about to be stopped: every handle of it (group, store, index) must be dropped on return.
    async fn stopping(&self, shard: ShardId);

    /// The replica is gone for good and its group is deleted: files that only it used must go too.
    async fn destroyed(&self, shard: ShardId);
}
