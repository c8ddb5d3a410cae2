//! The loop that runs the reconciliations of this node, round by round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_raft::ReplicaId;
use quorate_state::control::MemberRecord;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::formation::Formation;
use super::hosting::{Hosting, stop_control};
use super::placement;
use super::presence::Presence;
use super::shards::Shards;
use super::voters::Voters;
use super::{in_raft, in_state};
use crate::context::Context;

/// Between rounds while there is something to do.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Between rounds while there is not; changes of the map and of leadership wake it earlier.
const IDLE_PAUSE: Duration = Duration::from_millis(500);

/// The running loop.
pub struct Supervisor {
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Supervisor {
    /// Starts the replicas that are stored, then the loop. `removed` becomes true, once, when this node is a member no longer and has stopped its groups.
    pub fn start(
        context: Context,
        formation: Arc<Formation>,
        hosting: Arc<Hosting>,
        removed: watch::Sender<bool>,
    ) -> Supervisor {
        let stop = context.shutdown.child_token();
        let round = Round {
            context,
            formation,
            hosting,
            shards: Shards::default(),
            voters: Voters::default(),
            presence: Presence::new(),
            replica: None,
        };
        let task = tokio::spawn(run(round, removed, stop.clone()));
        Supervisor { stop, task: Mutex::new(Some(task)) }
    }

    /// Ends the loop, and waits until its last step is done.
    pub async fn stop(&self) {
        self.stop.cancel();
        if let Some(task) = self.task.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the supervisor's loop ended badly");
        }
    }
}

struct Round {
    context: Context,
    formation: Arc<Formation>,
    hosting: Arc<Hosting>,
    shards: Shards,
    voters: Voters,
    presence: Presence,
    /// The replica of control that `presence` has watched.
    replica: Option<ReplicaId>,
}

async fn run(mut round: Round, removed: watch::Sender<bool>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => return,
        () = round.hosting.start_stored() => {}
    }
    let mut map = round.context.control.map_changes();
    let mut leadership = round.context.control.leadership();
    let mut cases = round.context.quarantine.changes();
    loop {
        round.notice_replica();
        if round.context.control.group().is_some() && round.presence.is_removed(&round.context).await {
            round.farewell(&removed).await;
            return;
        }
        // Every step can be taken up again, so a stop need not wait for the end of a round.
        let busy = tokio::select! {
            () = stop.cancelled() => return,
            busy = round.once() => busy,
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(if busy { BUSY_PAUSE } else { IDLE_PAUSE }) => {}
            _ = map.changed() => {}
            _ = leadership.changed() => {}
            _ = cases.changed() => {}
        }
    }
}

impl Round {
    /// A new replica of control begins with an empty state: that this node is no member in it means nothing yet.
    fn notice_replica(&mut self) {
        let replica = self.context.control.group().map(|group| group.replica());
        if replica.is_some() && replica != self.replica {
            self.replica = replica;
            self.presence = Presence::new();
        }
    }

    async fn once(&mut self) -> bool {
        let context = &self.context;
        let mut busy = self.formation.heal().await;
        busy |= self.hosting.settle().await;
        let Some(group) = context.control.group() else { return busy };
        self.keep_contacts();
        busy |= self.hosting.reconcile().await;
        busy |= self.shards.reconcile(context, self.hosting.running()).await;
        if context.control.leads() {
            for outcome in [self.voters.reconcile(context, &group).await, placement::reconcile(context).await] {
                busy |= outcome.unwrap_or_else(|error| {
                    tracing::debug!(%error, "a step of the supervisor did not go through; trying again");
                    true
                });
            }
        }
        busy |= self.presence.announce(context).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "this node's record was not updated; trying again");
            false
        });
        self.observe();
        busy
    }

    /// Keeps the members' addresses where a damaged log does not take them along.
    fn keep_contacts(&self) {
        let me = in_state(self.context.node);
        let members = self.context.control.read(|control| {
            let members = control.member(me).map(|_| control.members());
            let contact = |member: &MemberRecord| (in_raft(member.node.node), member.node.peer_address.clone());
            members.map(|members| members.map(contact).collect::<BTreeMap<_, _>>())
        });
        if let (Some(cluster), Some(members)) = (self.context.groups.identity().cluster, members) {
            self.context.contacts.learn(cluster, members);
        }
    }

    fn observe(&self) {
        let metrics = &self.context.metrics;
        let running = self.hosting.running();
        let led = running.iter().filter(|(_, group)| group.leadership().borrow().mine).count();
        metrics.groups.set(running.len() as i64 + 1);
        metrics.groups_led.set(led as i64 + i64::from(self.context.control.leads()));
        metrics.members.set(self.context.control.read(|control| control.members().count()) as i64);
    }

    /// Stops serving: this node's replicas are nobody's any more.
    async fn farewell(&self, removed: &watch::Sender<bool>) {
        tracing::error!(
            node = %self.context.node,
            "this node was removed from its cluster and stops serving; to use this host again, start a node with an empty data directory and join"
        );
        self.hosting.stop().await;
        stop_control(&self.context).await;
        removed.send_replace(true);
    }
}
