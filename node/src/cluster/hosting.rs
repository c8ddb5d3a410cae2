//! The groups that run on this node, brought in line with the shard map.
//!
//! A replica that is quarantined is replaced here: the map is asked for a successor on the same node, and only when it names
//! one are the old log and state deleted. A crash in between leaves a quarantined replica, for which the map names a
//! successor already, or none of the two, for which [`Hosting::reconcile`] starts the successor as any new replica.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use quorate_api::v1::GroupStatus;
use quorate_raft::{
    Group, GroupConfig, GroupId, Groups, Member, MembershipError, NodeId, OpenError, ReplicaId, StoredReplica,
};
use quorate_state::control::{Command, Control, ReplicaRecord, ReplicaState};
use quorate_state::{Operation, ShardId};
use tokio::time::Instant;

use super::{group_of, in_raft, in_state, new_request, report};
use crate::context::Context;
use crate::error::Error;
use crate::hosting::ShardHost;
use crate::quarantine::{Case, Stage};

/// Shards have slower timers than control: there are many of them, and an idle group costs by its heartbeat. With more than
/// twice those of control, writes would wait longer than a second or so for another leader.
const SHARD_TIMERS_FACTOR: u64 = 2;
const BARRIER_TIMEOUT: Duration = Duration::from_secs(2);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a replica must have been out of service before the majority of its group is counted on without it: what it
/// acknowledged before is no part of a lease any more.
const COUNTED_OUT: Duration = Duration::from_millis(1_500);

/// Starts, stops, replaces and deletes the replicas of shards on this node.
pub struct Hosting {
    context: Context,
    host: Arc<dyn ShardHost>,
    running: Arc<Mutex<BTreeMap<ShardId, ReplicaId>>>,
    /// Starts and ends of replicas, one at a time: the supervisor and the comparison of states both ask for them.
    turn: tokio::sync::Mutex<()>,
}

/// What the shard map says about this node and one shard.
#[derive(Clone, PartialEq, Eq)]
struct Placed {
    replica: ReplicaId,
    state: ReplicaState,
    /// The group has no data anywhere yet, and this replica is the one that makes it.
    to_initialize: bool,
}

impl Hosting {
    /// Nothing runs yet.
    pub fn new(context: Context, host: Arc<dyn ShardHost>) -> Hosting {
        Hosting { context, host, running: Arc::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Starts the replicas that are stored here, before anything is known of the cluster. One that cannot be started does
    /// not keep the others from it; one that the cluster has forgotten meanwhile is deleted when that is certain.
    pub async fn start_stored(&self) {
        for StoredReplica { group, replica, quarantined } in self.context.groups.stored_groups() {
            match quarantined {
                _ if group == GroupId::CONTROL => {}
                Some(reason) => self.context.quarantine.known(group, known(replica), &reason),
                None => {
                    let shard = ShardId(group.0);
                    let started = self.start(shard, replica).await;
                    self.report(shard, started);
                }
            }
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
        let cases = self.cases();
        let strange =
            running.iter().any(|(shard, replica)| placed.get(shard).map(|placed| placed.replica) != Some(*replica));
        let young = placed.values().any(|placed| placed.to_initialize);
        let quarantined = cases.values().any(|case| case.stage == Stage::Quarantined);
        if strange || young || quarantined {
            // The state here may be behind, and what follows cannot be taken back: make sure.
            let Ok(since) = self.context.control.read_barrier(BARRIER_TIMEOUT).await else { return false };
            // Nor may a replica of control that was made anew a moment ago, and knows no shard, have the last word.
            let Ok(sure) = self.placed_since(since) else { return false };
            placed = sure;
        }
        let mut busy = false;
        for (shard, case) in &cases {
            busy |= self.attend(*shard, case, placed.get(shard)).await;
        }
        for (shard, replica) in &running {
            let wanted = placed.get(shard).map(|placed| placed.replica) == Some(*replica);
            if !wanted && self.running.lock().get(shard) == Some(replica) {
                busy = true;
                self.report(*shard, self.destroy(*shard).await);
            }
        }
        let mut control_answers = true;
        for (shard, placed) in placed {
            if self.is_to_start(shard) && self.may_start(shard, placed.replica, &mut control_answers).await {
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

    /// Makes the quarantine of replicas durable that were found damaged, and lets go of them. Says whether that went through
    /// for any of them.
    pub async fn settle(&self) -> bool {
        let found: Vec<ShardId> =
            self.cases().into_iter().filter(|(_, case)| case.stage == Stage::Found).map(|(shard, _)| shard).collect();
        let mut any = false;
        for shard in found {
            let settled = self.settle_one(shard).await;
            any |= settled.is_ok();
            self.report(shard, settled);
        }
        any
    }

    /// Takes a replica out of service at once and for good: its state is not that of the majority.
    pub async fn condemn(&self, shard: ShardId, replica: ReplicaId, reason: &str) {
        self.context.quarantine.found(group_of(shard), replica, reason);
        let settled = self.settle_one(shard).await;
        self.report(shard, settled);
    }

    /// Stops a group whose replicas disagree without a majority. Nothing is deleted; the next start of the node looks again.
    pub async fn halt(&self, shard: ShardId, replica: ReplicaId, reason: &str) {
        let _turn = self.turn.lock().await;
        self.context.quarantine.halted(group_of(shard), replica, reason);
        self.running.lock().remove(&shard);
        self.host.stopping(shard).await;
        self.context.groups.stop_group(group_of(shard)).await;
    }

    async fn settle_one(&self, shard: ShardId) -> Result<(), OpenError> {
        let _turn = self.turn.lock().await;
        let group = group_of(shard);
        let found = self.context.quarantine.case(group).filter(|case| case.stage == Stage::Found);
        let Some((replica, reason)) = found.and_then(|case| Some((case.replica?, case.reason))) else { return Ok(()) };
        self.running.lock().remove(&shard);
        self.host.stopping(shard).await;
        self.context.groups.quarantine(group, replica, &reason).await?;
        self.context.quarantine.settled(group, replica);
        Ok(())
    }

    fn cases(&self) -> BTreeMap<ShardId, Case> {
        let cases = self.context.quarantine.cases().into_iter();
        cases.filter(|(group, _)| *group != GroupId::CONTROL).map(|(group, case)| (ShardId(group.0), case)).collect()
    }

    /// Whether nothing runs that should, and no case forbids it.
    fn is_to_start(&self, shard: ShardId) -> bool {
        let case = self.context.quarantine.case(group_of(shard));
        let clear = case.is_none_or(|case| matches!(case.stage, Stage::Succeeded(_)));
        clear && !self.running.lock().contains_key(&shard)
    }

    /// Does the next step for a replica that is out of service; `placed` is what the map, read just now, says.
    async fn attend(&self, shard: ShardId, case: &Case, placed: Option<&Placed>) -> bool {
        let quarantine = &self.context.quarantine;
        let group = group_of(shard);
        match (case.stage, placed) {
            (Stage::Found | Stage::Halted, _) => false,
            (Stage::Succeeded(successor), Some(placed)) if placed.replica == successor => {
                if placed.state == ReplicaState::Voter {
                    quarantine.healed(group);
                }
                true
            }
            (Stage::Succeeded(_), _) => {
                quarantine.dropped(group);
                true
            }
            (Stage::Quarantined, None) => {
                let deleted = self.destroy(shard).await;
                if deleted.is_ok() {
                    quarantine.dropped(group);
                }
                self.report(shard, deleted);
                true
            }
            (Stage::Quarantined, Some(placed)) if case.replica.is_none() => {
                quarantine.identified(group, placed.replica);
                true
            }
            (Stage::Quarantined, Some(placed)) if case.replica != Some(placed.replica) => {
                // The successor's id is in the map, so the old log and state are of no use to anybody any more.
                let deleted = self.destroy(shard).await;
                if deleted.is_ok() {
                    quarantine.succeeded(group, placed.replica);
                }
                self.report(shard, deleted);
                true
            }
            (Stage::Quarantined, Some(placed)) if placed.state == ReplicaState::Retiring => false,
            #[cfg(feature = "planted")]
            (Stage::Quarantined, Some(placed)) if crate::planted::is("reused-replica") => {
                let deleted = self.destroy(shard).await;
                quarantine.dropped(group);
                self.report(shard, deleted);
                self.report(shard, self.start(shard, placed.replica).await);
                true
            }
            (Stage::Quarantined, Some(placed)) => self.ask_for_successor(shard, placed.replica, case).await,
        }
    }

    /// Has the map name a replica that takes the place of a quarantined one. Only where the group gets on without it: what is
    /// on this disk may be the last of its kind, damaged or not.
    async fn ask_for_successor(&self, shard: ShardId, replica: ReplicaId, case: &Case) -> bool {
        let group = group_of(shard);
        if case.out_since.elapsed() < COUNTED_OUT {
            return true;
        }
        if !self.is_led_elsewhere(shard).await {
            let why = format!(
                "shard {shard} has no majority of healthy replicas without this one, so nothing is deleted here: start the \
                 other nodes that hold it, or restore the shard from a backup"
            );
            self.context.quarantine.held_up(group, Some(why));
            return false;
        }
        let command = Command::ReplaceReplica { shard, node: in_state(self.context.node), replica };
        let operation = Operation { request: new_request(&self.context), command };
        match self.context.control.propose_anywhere(operation, Instant::now() + PROPOSE_TIMEOUT).await {
            Ok(Ok(_)) => {
                self.context.quarantine.held_up(group, None);
                true
            }
            Ok(Err(reject)) => {
                self.context.quarantine.held_up(group, Some(reject.to_string()));
                false
            }
            Err(error) => {
                tracing::debug!(%shard, %error, "a quarantined replica is not replaced yet; trying again");
                false
            }
        }
    }

    /// Whether a node that holds the shard says that it leads it with a majority.
    async fn is_led_elsewhere(&self, shard: ShardId) -> bool {
        let here = self.context.node;
        let holders: BTreeSet<NodeId> = self.context.control.read(|control| {
            let replicas = control.shard(shard).map(|record| record.replicas.clone()).unwrap_or_default();
            replicas.iter().map(|replica| in_raft(replica.node)).filter(|node| *node != here).collect()
        });
        let asked = holders.into_iter().map(|node| async move {
            let Ok(found) = report::fetch(&self.context, node).await else { return false };
            let leads = |group: &GroupStatus| group.group == shard.0 && group.leader_node_id == node.to_string();
            found.shards.iter().any(leads)
        });
        join_all(asked).await.contains(&true)
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
        self.context.control.read(|control| placed_on(self.context.node, control))
    }

    /// The same by a state that has all up to a position that a barrier has returned.
    fn placed_since(&self, position: u64) -> Result<BTreeMap<ShardId, Placed>, Error> {
        self.context.control.read_since(position, |control| placed_on(self.context.node, control))
    }

    fn report(&self, shard: ShardId, outcome: Result<(), OpenError>) {
        if let Err(error) = outcome {
            tracing::error!(%shard, %error, "a replica is not served here; trying again");
        }
    }

    /// Whether a replica may be started that the map places here: one that is stored just goes on. Everything else cannot be
    /// taken back, and the state here may be behind: after a crash in the middle of a deletion it can still name the replica
    /// that was deleted, which has voted and must never come back empty.
    async fn may_start(&self, shard: ShardId, replica: ReplicaId, control_answers: &mut bool) -> bool {
        if stored_replica(&self.context.groups, group_of(shard)).is_some_and(|found| found.replica == replica) {
            return true;
        }
        // A round waits once where nobody leads, and not for each shard.
        if !*control_answers {
            return false;
        }
        let Ok(since) = self.context.control.read_barrier(BARRIER_TIMEOUT).await else {
            *control_answers = false;
            return false;
        };
        self.placed_since(since).is_ok_and(|placed| placed.get(&shard).is_some_and(|placed| placed.replica == replica))
    }

    /// Starts a replica that [may be started](Hosting::may_start). A stored log of another replica is one that the cluster has
    /// forgotten while this node was away.
    async fn start_placed(&self, shard: ShardId, replica: ReplicaId) -> Result<(), OpenError> {
        let stored = stored_replica(&self.context.groups, group_of(shard));
        if stored.as_ref().is_some_and(|found| found.replica == replica) {
            return self.start(shard, replica).await;
        }
        match stored {
            Some(found) => {
                tracing::info!(%shard, replica = found.replica, "deleting a replica that the cluster has forgotten");
                self.destroy(shard).await?;
            }
            None if self.was_lost(replica) => {
                let reason = "its log is gone, and with it all that said how far it went";
                self.context.quarantine.known(group_of(shard), Some(replica), reason);
                return Ok(());
            }
            None => {}
        }
        self.start(shard, replica).await
    }

    /// Whether a replica without a log may have had one. Replica ids are counted up, and this node's replica of control is
    /// older than what was placed here, unless it was replaced meanwhile: then the disk has lost more than that.
    fn was_lost(&self, replica: ReplicaId) -> bool {
        self.context.control.group().is_some_and(|control| replica < control.replica())
    }

    /// Starts a replica. One that turns out to be damaged becomes a case, which is no error.
    async fn start(&self, shard: ShardId, replica: ReplicaId) -> Result<(), OpenError> {
        let _turn = self.turn.lock().await;
        let machine = self.host.machine(shard, replica);
        let timers = Some(self.context.config.timers.timers().slower(SHARD_TIMERS_FACTOR));
        let groups = &self.context.groups;
        let started = groups.start_group_with(group_of(shard), replica, machine, GroupConfig { timers }).await;
        let group = match started {
            Ok(group) => group,
            Err(error) => {
                self.host.stopping(shard).await;
                if !error.is_damage() {
                    return Err(error);
                }
                self.context.quarantine.found(group_of(shard), replica, &error.to_string());
                return Ok(());
            }
        };
        self.running.lock().insert(shard, replica);
        self.context.watch_group(group.clone());
        self.host.started(shard, group).await;
        tracing::info!(%shard, replica, "serving a replica");
        Ok(())
    }

    /// Deletes all that is stored of a shard here.
    async fn destroy(&self, shard: ShardId) -> Result<(), OpenError> {
        let _turn = self.turn.lock().await;
        self.running.lock().remove(&shard);
        self.host.stopping(shard).await;
        self.context.groups.destroy_group(group_of(shard)).await?;
        self.host.destroyed(shard).await;
        tracing::info!(%shard, "deleted a replica that has no place here any more");
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
pub(super) fn stored_replica(groups: &Groups, group: GroupId) -> Option<StoredReplica> {
    groups.stored_groups().into_iter().find(|stored| stored.group == group)
}

/// The replica id that a log says, if it still says one.
pub(super) fn known(replica: ReplicaId) -> Option<ReplicaId> {
    (replica != 0).then_some(replica)
}

/// Stops the control group here and lets go of it.
pub async fn stop_control(context: &Context) {
    context.control.detach();
    context.groups.stop_group(GroupId::CONTROL).await;
}

/// The replicas that the map places on a node.
fn placed_on(node: NodeId, control: &Control) -> BTreeMap<ShardId, Placed> {
    let me = in_state(node);
    let mine = control.shards().filter_map(|shard| {
        let ReplicaRecord { replica, state, .. } = *shard.replica_on(me)?;
        let first = shard.replicas.first().is_some_and(|first| first.replica == replica);
        Some((shard.shard, Placed { replica, state, to_initialize: first && !shard.initialized }))
    });
    mine.collect()
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use quorate_raft::Machine;
    use quorate_state::control::Reply as ControlReply;

    use super::*;
    use crate::testing::{Stage as Scene, Still, on_stage};

    #[async_trait]
    impl ShardHost for Still {
        fn machine(&self, _: ShardId, _: ReplicaId) -> Box<dyn Machine> {
            Box::new(Still)
        }
        async fn started(&self, _: ShardId, _: Group) {}
        async fn stopping(&self, _: ShardId) {}
        async fn destroyed(&self, _: ShardId) {}
    }

    fn hosting(scene: &Scene) -> Hosting {
        Hosting::new(scene.context.clone(), Arc::new(Still))
    }

    /// Has the map place a replica of a shard on this node, whose group has been made.
    async fn place(scene: &Scene, shard: u32) -> ReplicaId {
        let shard = ShardId(shard);
        scene.run(Command::ShardInitialized { shard }).await;
        match scene.run(Command::PlaceReplica { shard, node: in_state(scene.context.node) }).await {
            ControlReply::Replica { replica } => replica,
            other => panic!("{other:?}"),
        }
    }

    /// What the map says of a replica of shard 1.
    fn named(scene: &Scene, replica: ReplicaId) -> Option<ReplicaState> {
        scene.context.control.read(|control| Some(control.shard(ShardId(1))?.replica(replica)?.state))
    }

    fn served(hosting: &Hosting) -> Vec<(ShardId, ReplicaId)> {
        hosting.running().into_iter().map(|(shard, group)| (shard, group.replica())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_quarantine_that_did_not_go_through_is_for_the_next_round_and_holds_up_no_other() {
        on_stage(async |scene| {
            let hosting = hosting(&scene);
            let quarantine = &scene.context.quarantine;
            let stages = || [1, 2, 3].map(|shard| quarantine.case(GroupId(shard)).map(|case| case.stage));
            assert!(!hosting.settle().await, "nothing was found");
            quarantine.found(GroupId(1), 5, "bit-rot");
            assert!(!hosting.settle().await, "there is no such replica");
            assert_eq!(stages(), [Some(Stage::Found), None, None]);
            hosting.start(ShardId(2), 6).await.expect("a new replica");
            quarantine.found(GroupId(2), 6, "bit-rot");
            quarantine.found(GroupId(3), 7, "bit-rot");
            assert!(hosting.settle().await, "one of them went through");
            assert_eq!(stages(), [Some(Stage::Found), Some(Stage::Quarantined), Some(Stage::Found)]);
            assert!(!hosting.settle().await, "it is settled, and the others still are not");
            assert_eq!(served(&hosting), []);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_waits_once_for_a_control_that_does_not_answer_and_goes_on_with_what_is_stored() {
        on_stage(async |scene| {
            scene.found(4).await;
            let hosting = hosting(&scene);
            let stored = place(&scene, 2).await;
            assert!(hosting.reconcile().await);
            assert_eq!(served(&hosting), [(ShardId(2), stored)], "control has answered");
            hosting.stop().await;
            for shard in [1, 3, 4] {
                place(&scene, shard).await;
            }
            scene.lose_majority().await;
            let asked = Instant::now();
            assert!(hosting.reconcile().await);
            assert_eq!(served(&hosting), [(ShardId(2), stored)], "nobody says that the map is still right");
            let waited = asked.elapsed();
            assert!((BARRIER_TIMEOUT..2 * BARRIER_TIMEOUT).contains(&waited), "{waited:?}");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_in_which_control_answers_starts_all_that_the_map_names() {
        on_stage(async |scene| {
            scene.found(2).await;
            let hosting = hosting(&scene);
            let placed = [place(&scene, 1).await, place(&scene, 2).await];
            let mut control_answers = true;
            assert!(!hosting.may_start(ShardId(1), placed[1], &mut control_answers).await, "the map names another");
            assert!(control_answers);
            assert!(hosting.reconcile().await);
            assert_eq!(served(&hosting), [(ShardId(1), placed[0]), (ShardId(2), placed[1])]);
            hosting.stop().await;
            control_answers = false;
            assert!(hosting.may_start(ShardId(1), placed[0], &mut control_answers).await, "it is stored");
            hosting.destroy(ShardId(1)).await.expect("deleted");
            assert!(!hosting.may_start(ShardId(1), placed[0], &mut control_answers).await, "it is not asked again");
        })
        .await;
    }

    /// As `node/tests/cluster/deleting.rs` on real disks.
    #[tokio::test(start_paused = true)]
    async fn a_deleted_replica_is_not_started_again_by_a_map_that_names_it_and_that_nobody_confirms() {
        on_stage(async |scene| {
            scene.found(1).await;
            let hosting = hosting(&scene);
            let replica = place(&scene, 1).await;
            assert!(hosting.reconcile().await);
            hosting.destroy(ShardId(1)).await.expect("deleted");
            scene.lose_majority().await;
            assert!(!hosting.reconcile().await);
            assert_eq!(named(&scene, replica), Some(ReplicaState::Joining), "the map is behind");
            assert_eq!(served(&hosting), []);
            assert_eq!(stored_replica(&scene.context.groups, GroupId(1)), None);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_is_deleted_once_the_map_gives_its_place_to_another() {
        on_stage(async |scene| {
            scene.found(1).await;
            let hosting = hosting(&scene);
            let shard = ShardId(1);
            let replica = place(&scene, 1).await;
            let other = scene.admit_other().await;
            let ControlReply::Replica { replica: elsewhere } =
                scene.run(Command::PlaceReplica { shard, node: other }).await
            else {
                panic!("no replica");
            };
            for replica in [replica, elsewhere] {
                scene.run(Command::ReplicaJoined { shard, replica }).await;
            }
            assert!(hosting.reconcile().await);
            assert!(!hosting.reconcile().await);
            assert_eq!((served(&hosting), named(&scene, replica)), (vec![(shard, replica)], Some(ReplicaState::Voter)));

            let replace = Command::ReplaceReplica { shard, node: in_state(scene.context.node), replica };
            let ControlReply::Replica { replica: successor } = scene.run(replace).await else { panic!("no replica") };
            assert!(hosting.reconcile().await);
            assert_eq!(
                (named(&scene, replica), named(&scene, successor)),
                (Some(ReplicaState::Retiring), Some(ReplicaState::Joining))
            );
            assert_eq!(served(&hosting), [(shard, successor)]);
            let stored = stored_replica(&scene.context.groups, GroupId(1)).map(|stored| stored.replica);
            assert_eq!(stored, Some(successor), "nothing is left of the old one");
            scene.run(Command::ForgetReplica { shard, replica }).await;
            assert!(!hosting.reconcile().await);
            assert_eq!((named(&scene, replica), served(&hosting)), (None, vec![(shard, successor)]));
        })
        .await;
    }
}
