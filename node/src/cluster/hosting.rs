//! The groups that run on this node, brought in line with the shard map.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_raft::{Group, GroupConfig, GroupId, Groups, Member, MembershipError, OpenError, ReplicaId};
use quorate_state::ShardId;

use super::{group_of, in_state};
use crate::context::Context;
use crate::hosting::ShardHost;

/// Shards have slower timers than control: there are many of them, and an idle group costs by its heartbeat.
const SHARD_TIMERS_FACTOR: u64 = 3;
const BARRIER_TIMEOUT: Duration = Duration::from_secs(2);

/// Starts, stops and deletes the replicas of shards on this node.
pub struct Hosting {
    context: Context,
    host: Arc<dyn ShardHost>,
    running: Arc<Mutex<BTreeMap<ShardId, ReplicaId>>>,
}

/// What the shard map says about this node and one shard.
#[derive(Clone, PartialEq, Eq)]
struct Placed {
    replica: ReplicaId,
    /// The group has no data anywhere yet, and this replica is the one that makes it.
    to_initialize: bool,
}

impl Hosting {
    /// Nothing runs yet.
    pub fn new(context: Context, host: Arc<dyn ShardHost>) -> Hosting {
        Hosting { context, host, running: Arc::default() }
    }

    /// Starts the replicas that are stored here, before anything is known of the cluster. One that cannot be started does
    /// not keep the others from it; one that the cluster has forgotten meanwhile is deleted when that is certain.
    pub async fn start_stored(&self) {
        let stored = match self.context.groups.stored_groups() {
            Ok(stored) => stored,
            Err(error) => {
                tracing::error!(%error, "cannot tell which replicas are stored here");
                return;
            }
        };
        for (group, replica) in stored.into_iter().filter(|(group, _)| *group != GroupId::CONTROL) {
            let shard = ShardId(group.0);
            let started = self.start(shard, replica).await;
            self.report(shard, started);
        }
    }

    /// The shards whose groups run here.
    pub fn running(&self) -> Vec<(ShardId, Group)> {
        let running = self.running.lock();
        let group = |shard: &ShardId| self.context.groups.group(group_of(*shard)).map(|group| (*shard, group));
        running.keys().filter_map(group).collect()
    }

    /// Does what the shard map asks of this node. Says whether there was anything to do. One shard that cannot be
    /// served does not keep the others from it: what failed is logged and tried again in the next round.
    pub async fn reconcile(&self) -> bool {
        let mut placed = self.placed();
        let running = self.running.lock().clone();
        let strange =
            running.iter().any(|(shard, replica)| placed.get(shard).map(|placed| placed.replica) != Some(*replica));
        let young = placed.values().any(|placed| placed.to_initialize);
        if strange || young {
            // The state here may be behind, and what follows cannot be taken back: make sure.
            if self.context.control.read_barrier(BARRIER_TIMEOUT).await.is_err() {
                return false;
            }
            placed = self.placed();
        }
        let mut busy = false;
        for (shard, replica) in &running {
            if placed.get(shard).map(|placed| placed.replica) != Some(*replica) {
                busy = true;
                self.report(*shard, self.destroy(*shard).await);
            }
        }
        for (shard, placed) in placed {
            if !self.running.lock().contains_key(&shard) {
                busy = true;
                let started = self.start_placed(shard, placed.replica).await;
                self.report(shard, started);
            }
            if placed.to_initialize {
                busy |= self.initialize(shard, placed.replica).await;
            }
        }
        busy
    }

    /// Stops everything, deleting nothing.
    pub async fn stop(&self) {
        let running = std::mem::take(&mut *self.running.lock());
        for shard in running.into_keys() {
            self.host.stopping(shard).await;
            self.context.groups.stop_group(group_of(shard)).await;
        }
    }

    fn placed(&self) -> BTreeMap<ShardId, Placed> {
        let me = in_state(self.context.node);
        self.context.control.read(|control| {
            let mine = control.shards().filter_map(|shard| {
                let replica = shard.replica_on(me)?.replica;
                let first = shard.replicas.first().is_some_and(|first| first.replica == replica);
                Some((shard.shard, Placed { replica, to_initialize: first && !shard.initialized }))
            });
            mine.collect()
        })
    }

    fn report(&self, shard: ShardId, outcome: Result<(), OpenError>) {
        if let Err(error) = outcome {
            tracing::error!(%shard, %error, "a replica is not served here; trying again");
        }
    }

    /// Starts a replica that the map, read just now, places here. A stored log of another replica is one that the
    /// cluster has forgotten while this node was away.
    async fn start_placed(&self, shard: ShardId, replica: ReplicaId) -> Result<(), OpenError> {
        let stored = stored_replica(&self.context.groups, group_of(shard))?;
        if let Some(found) = stored.filter(|found| *found != replica) {
            if !self.still_placed(shard, replica).await {
                return Ok(());
            }
            tracing::info!(%shard, replica = found, "deleting a replica that the cluster has forgotten");
            self.context.groups.destroy_group(group_of(shard)).await?;
            self.host.destroyed(shard).await;
        }
        self.start(shard, replica).await
    }

    async fn still_placed(&self, shard: ShardId, replica: ReplicaId) -> bool {
        self.context.control.read_barrier(BARRIER_TIMEOUT).await.is_ok()
            && self.placed().get(&shard).is_some_and(|placed| placed.replica == replica)
    }

    async fn start(&self, shard: ShardId, replica: ReplicaId) -> Result<(), OpenError> {
        let machine = self.host.machine(shard, replica);
        let timers = Some(self.context.config.timers.timers().slower(SHARD_TIMERS_FACTOR));
        let groups = &self.context.groups;
        let group = groups.start_group_with(group_of(shard), replica, machine, GroupConfig { timers }).await?;
        self.running.lock().insert(shard, replica);
        let running = self.running.clone();
        self.context.watch_group(group.clone(), move || running.lock().get(&shard) == Some(&replica));
        self.host.started(shard, group).await;
        tracing::info!(%shard, replica, "serving a replica");
        Ok(())
    }

    async fn destroy(&self, shard: ShardId) -> Result<(), OpenError> {
        self.running.lock().remove(&shard);
        self.host.stopping(shard).await;
        self.context.groups.destroy_group(group_of(shard)).await?;
        self.host.destroyed(shard).await;
        tracing::info!(%shard, "deleted a replica that was retired");
        Ok(())
    }

    /// Makes the group of a shard that has none yet, with this replica as its only voter.
    async fn initialize(&self, shard: ShardId, replica: ReplicaId) -> bool {
        let Some(group) = self.context.groups.group(group_of(shard)) else { return false };
        let view = group.status();
        if !view.members.is_empty() || view.last_position > 0 {
            return false;
        }
        let member = Member { node: self.context.node, address: self.context.addresses.peer.clone() };
        match group.initialize(BTreeMap::from([(replica, member)])).await {
            // What this replica is told of its group can be a moment behind: it was initialised a round ago.
            Ok(()) | Err(MembershipError::Refused { .. }) => {}
            Err(error) => tracing::error!(%shard, %error, "a new shard could not be initialised; trying again"),
        }
        true
    }
}

/// The replica whose log of `group` is stored here.
pub(super) fn stored_replica(groups: &Groups, group: GroupId) -> Result<Option<ReplicaId>, OpenError> {
    Ok(groups.stored_groups()?.into_iter().find(|(stored, _)| *stored == group).map(|(_, replica)| replica))
}

/// Stops the control group here and lets go of it.
pub async fn stop_control(context: &Context) {
    context.control.detach();
    context.groups.stop_group(GroupId::CONTROL).await;
}
