//! One group on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, ForwardToLeader, InitializeError, RaftError};
use openraft::impls::OneshotResponder;
use openraft::raft::ClientWriteResult;
use openraft::{ChangeMembers, Instant as _, Raft};
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::apply::{Adapter, Applied};
use crate::blocking::Blocking;
use crate::checkpoints::Checkpoints;
use crate::followers::Followers;
use crate::health::{Health, Stop};
use crate::ids::{GroupId, LogPosition, ReplicaId};
use crate::log::{GroupLogReader, LogStore};
use crate::machine::{Reply, StateStore, StateStores};
use crate::proto;
use crate::reads::Read;
use crate::snapshot::Receiving;
use crate::timers::Timers;
use crate::transport::Links;
use crate::types::{Member, Proposal, TC, position_of};

/// A proposal that is on the disks of a majority and applied here.
#[derive(Debug)]
pub struct Committed {
    /// Its place in the log.
    pub at: LogPosition,
    /// What the machine answered.
    pub reply: Reply,
}

/// For what happens within the process.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who leads, as this replica sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The current term.
    pub term: u64,
    /// The leader of the term, if it is known.
    pub leader: Option<(ReplicaId, Member)>,
    /// This replica leads, and has applied an entry of its own term, hence everything before it.
    pub mine: bool,
}

/// A replica's view of its group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupView {
    /// The current term.
    pub term: u64,
    /// The leader, if it is known.
    pub leader: Option<(ReplicaId, Member)>,
    /// Who votes; while `joint`, the union of both sets.
    pub voters: BTreeSet<ReplicaId>,
    /// A change of voters is under way, or was left behind by a leader that died: finish it with
    /// [`Group::change_voters`].
    pub joint: bool,
    /// All members, learners too.
    pub members: BTreeMap<ReplicaId, Member>,
    /// The last position in the local log.
    pub last_position: u64,
    /// The last position applied here.
    pub applied: u64,
    /// The last position known to be committed.
    pub committed: u64,
    /// The last position that was purged from the local log.
    pub purged: u64,
    /// How far each replica is known to have the log. Only on the leader.
    pub matched: BTreeMap<ReplicaId, u64>,
    /// How long ago the leader sent what each other replica has answered last; `None` if it has not answered this leader
    /// yet. Only on the leader.
    pub heard: BTreeMap<ReplicaId, Option<Duration>>,
}

/// Why a proposal was not confirmed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// Not proposed: another replica leads. Nothing was written.
    #[error("this replica does not lead; propose on the leader")]
    NotLeader {
        /// The leader, if it is known.
        leader: Option<(ReplicaId, Member)>,
    },
    /// The leadership was lost while the proposal was under way: it may be applied, now or later.
    #[error("leadership was lost; the proposal may or may not be applied: ask again with the same request id")]
    Unknown,
    /// The group has stopped on this node. A proposal under way may still be applied by the others.
    #[error("the group has stopped on this node")]
    Stopped,
    /// The payload exceeds [`Group::MAX_PAYLOAD`]. Nothing was written.
    #[error("a proposal of {bytes} bytes exceeds the limit of {limit}; split it")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

/// Why a read could not be ordered after what came before it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// No leader is known, or it could not be reached or could not reach a majority. Ask again.
    #[error("no leader with a majority could be asked; try again")]
    NoLeader,
    /// The time was over.
    #[error("the read position was not reached in time; try again or allow more time")]
    TimedOut,
    /// The group has stopped on this node.
    #[error("the group has stopped on this node")]
    Stopped,
}

/// Why a change of members was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MembershipError {
    /// Another replica leads.
    #[error("this replica does not lead; ask the leader")]
    NotLeader {
        /// The leader, if it is known.
        leader: Option<(ReplicaId, Member)>,
    },
    /// Another change is not finished.
    #[error("another change of members is under way; wait for it")]
    Busy,
    /// The change makes no sense: what and why.
    #[error("refused: {reason}")]
    Refused {
        /// What and why.
        reason: String,
    },
    /// Leadership was lost or the time was over: the change may or may not be made. Look at [`Group::status`].
    #[error("the outcome is unknown; look at the members before trying again")]
    Unknown,
    /// The group has stopped on this node.
    #[error("the group has stopped on this node")]
    Stopped,
}

/// A group that runs: what its tasks, the transport and [`Group`] share.
pub(crate) struct Running {
    pub(crate) id: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) raft: Raft<TC, Adapter>,
    pub(crate) applied: Arc<Applied>,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) log: GroupLogReader,
    pub(crate) states: Arc<dyn StateStores>,
    pub(crate) links: Arc<Links>,
    pub(crate) timers: Timers,
    pub(crate) blocking: Blocking,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) reads: mpsc::UnboundedSender<Read>,
    /// A read waits for the next heartbeat.
    pub(crate) hurry: Arc<AtomicBool>,
    /// Who follows it while it leads.
    pub(crate) followers: Arc<Followers>,
    /// Until then it votes for nobody and does not campaign: it may have answered another leader in its last life.
    pub(crate) rests_until: Option<Instant>,
    /// What has arrived of a snapshot.
    pub(crate) receiving: tokio::sync::Mutex<Option<Receiving>>,
    /// What is noticed of its disk.
    pub(crate) health: Arc<Health>,
    /// Ends the tasks of the group.
    pub(crate) stop: CancellationToken,
    /// Cancelled when the core has ended, wanted or not.
    pub(crate) core_ended: CancellationToken,
    /// Set before `ended`.
    pub(crate) outcome: OnceLock<Stop>,
    /// Cancelled when the group has stopped and it is known why.
    pub(crate) ended: CancellationToken,
    /// Told when the database handles are gone. Taken by whoever stops the group.
    pub(crate) released: parking_lot::Mutex<Option<oneshot::Receiver<()>>>,
}

impl Running {
    /// Whether this replica is the leader, as openraft sees it now.
    pub(crate) fn leads(&self) -> bool {
        self.raft.is_leader()
    }

    /// The term in which it leads, if a majority follows by what was sent when `counts` says.
    fn followed(&self, counts: impl Fn(Instant) -> bool) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (term, membership) = (metrics.current_term, metrics.membership_config.membership());
        let followed = metrics.state.is_leader() && self.followers.are_majority(self.replica, term, membership, counts);
        followed.then_some(term)
    }

    /// Whether it still keeps what it may have promised to another leader before it was restarted.
    pub(crate) fn rests(&self) -> bool {
        self.rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// The term in which it leads, as openraft sees it now.
    pub(crate) fn leads_in(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.state.is_leader().then_some(metrics.current_term)
    }

    /// Whether it leads, votes, and a majority owes it its votes still.
    fn lease_valid(&self) -> bool {
        let lease = self.timers.lease();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let (term, membership) = (metrics.current_term, metrics.membership_config.membership());
        // By openraft's times, which are the earlier ones of a beat, this replica itself refuses its vote to others.
        let keeps = metrics.last_quorum_acked.as_ref().is_some_and(|at| at.elapsed() < lease)
            || membership.voter_ids().eq([self.replica]);
        // A sole voter that is left behind campaigns without asking for its promise.
        let votes = membership.voter_ids().any(|voter| voter == self.replica);
        let follow = |sent: Instant| sent.elapsed() < lease;
        metrics.state.is_leader()
            && votes
            && keeps
            && !self.followers.is_forfeited(term)
            && self.followers.are_majority(self.replica, term, membership, follow)
    }

    /// Waits until a majority has answered, as followers of `term`, what was sent since `asked`. False if it does not come to
    /// that within a lease of the question.
    pub(crate) async fn is_followed_since(&self, term: u64, asked: Instant) -> bool {
        let end = asked + self.timers.lease();
        while self.leads_in() == Some(term) && Instant::now() < end {
            let news = self.followers.news();
            if self.followed(|sent| sent >= asked) == Some(term) {
                return true;
            }
            // The end of the leadership is no news of followers.
            let _ = tokio::time::timeout(Duration::from_millis(self.timers.heartbeat_ms), news).await;
        }
        false
    }

    pub(crate) fn view(&self) -> GroupView {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let position = |at: &Option<crate::types::LogId>| at.map_or(0, |at| at.index);
        let matched = metrics.replication.iter().flatten();
        let heard = metrics.heartbeat.iter().flatten().filter(|(replica, _)| **replica != self.replica);
        GroupView {
            term: metrics.current_term,
            leader: metrics.current_leader.and_then(|leader| Some((leader, membership.get_node(&leader)?.clone()))),
            voters: membership.voter_ids().collect(),
            joint: membership.get_joint_config().len() > 1,
            members: membership.nodes().map(|(replica, member)| (*replica, member.clone())).collect(),
            last_position: metrics.last_log_index.unwrap_or(0),
            applied: *self.applied.position.borrow(),
            committed: position(&metrics.local_committed),
            purged: position(&metrics.purged),
            matched: matched.map(|(replica, at)| (*replica, position(at))).collect(),
            heard: heard.map(|(replica, at)| (*replica, at.as_ref().map(|at| at.elapsed()))).collect(),
        }
    }

    /// Shuts the core down and waits until nothing holds the database any more.
    pub(crate) async fn shut_down(&self, why: Stop) {
        if self.close().await {
            self.end(why);
        }
    }

    /// The same without saying so. False if another one did it, and has said so.
    async fn close(&self) -> bool {
        self.stop.cancel();
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(group = %self.id, %error, "the core of the group had failed");
        }
        self.applied.close_store();
        self.checkpoints.close();
        let released = self.released.lock().take();
        let Some(released) = released else {
            self.ended.cancelled().await;
            return false;
        };
        // An error is the news: the sender was dropped with the last holder.
        let _ = released.await;
        true
    }

    /// Says that the group has stopped. The first reason counts.
    fn end(&self, why: Stop) {
        self.leadership.send_replace(Leadership::default());
        self.outcome.get_or_init(|| why);
        self.ended.cancel();
    }

    /// What openraft says of its end.
    fn fault(&self) -> Stop {
        let metrics = self.raft.metrics();
        let state = metrics.borrow_watched().running_state.clone();
        Stop::Fault(state.err().map_or_else(|| "its core has ended".to_owned(), |fatal| fatal.to_string()))
    }
}

/// Waits for damage or the end of the core, and draws the consequences: a damaged replica is marked in the floor before it
/// lets go of anything, and stops.
pub(crate) async fn run_health(group: Arc<Running>, log: LogStore, directory: Arc<Directory>) {
    if is_stopped(&group.stop, &group.health, &group.core_ended).await {
        // Whoever stops it says why.
        return;
    }
    let Some(reason) = group.health.found() else {
        return group.end(group.fault());
    };
    tracing::error!(group = %group.id, replica = group.replica, reason, "a replica is damaged and quarantined");
    let why = match log.quarantine(group.id, group.replica, &reason).await {
        Ok(()) => Stop::Damaged(reason),
        Err(error) => Stop::Fault(format!("it is damaged ({reason}) and could not be quarantined: {error}")),
    };
    if group.close().await {
        directory.remove_this(&group);
        group.end(why);
    }
}

/// Waits until a group is stopped, damaged, or its core ends. True in the first case, whatever came of it by then: the core of a
/// group that is stopped ends too, and that is no fault.
async fn is_stopped(stop: &CancellationToken, health: &Health, core_ended: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => true,
        () = health.damaged() => false,
        () = core_ended.cancelled() => false,
    }
}

/// Follows openraft and the machine, and says when leadership changes, until the group stops.
pub(crate) async fn run_leadership(group: Arc<Running>) {
    let mut server = group.raft.server_metrics();
    let mut applied = group.applied.leader.subscribe();
    loop {
        let now = {
            let server = server.borrow_and_update();
            let applied = *applied.borrow_and_update();
            let leader_id = server.vote.leader_id;
            let member = |leader: &ReplicaId| server.membership_config.membership().get_node(leader).cloned();
            let leader = server.current_leader.filter(|_| server.vote.committed);
            let caught_up = applied == Some(leader_id);
            #[cfg(feature = "planted")]
            let caught_up = caught_up || crate::planted::is("premature-lead");
            Leadership {
                term: leader_id.term,
                leader: leader.and_then(|leader| Some((leader, member(&leader)?))),
                mine: server.state.is_leader() && server.vote.committed && caught_up,
            }
        };
        group.leadership.send_if_modified(|leadership| {
            let changed = *leadership != now;
            *leadership = now;
            changed
        });
        let ended = tokio::select! {
            changed = server.changed() => changed.is_err(),
            changed = applied.changed() => changed.is_err(),
        };
        if ended {
            // The core has stopped, wanted or not: nobody here leads any more.
            group.leadership.send_replace(Leadership::default());
            group.core_ended.cancel();
            return;
        }
    }
}

/// The groups that run on this node.
#[derive(Default)]
pub(crate) struct Directory {
    groups: RwLock<BTreeMap<GroupId, Arc<Running>>>,
}

impl Directory {
    pub(crate) fn get(&self, group: GroupId) -> Option<Arc<Running>> {
        self.groups.read().get(&group).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Running>> {
        self.groups.read().values().cloned().collect()
    }

    pub(crate) fn insert(&self, running: Arc<Running>) {
        self.groups.write().insert(running.id, running);
    }

    pub(crate) fn remove(&self, group: GroupId) -> Option<Arc<Running>> {
        self.groups.write().remove(&group)
    }

    /// Removes a group unless another life of it is here already.
    pub(crate) fn remove_this(&self, group: &Arc<Running>) {
        let mut groups = self.groups.write();
        if groups.get(&group.id).is_some_and(|found| Arc::ptr_eq(found, group)) {
            groups.remove(&group.id);
        }
    }

    /// The group that a message is for, if its replica is the one that is here.
    pub(crate) fn route(&self, route: Option<&proto::Route>) -> Result<Arc<Running>, String> {
        let route = route.ok_or("a message without a route")?;
        let id = GroupId(route.group);
        match self.groups.read().get(&id) {
            None => Err(format!("group {id} does not run here")),
            Some(group) if group.replica != route.to => {
                Err(format!("group {id} has replica {:016x} here, not {:016x}", group.replica, route.to))
            }
            Some(group) => Ok(group.clone()),
        }
    }
}

/// A proposal that has its place in the order and waits to be committed and applied. Dropping it changes nothing
/// about the proposal.
pub struct Pending {
    group: Group,
    outcome: oneshot::Receiver<ClientWriteResult<TC>>,
}

impl Future for Pending {
    type Output = Result<Committed, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome).poll(cx).map(|outcome| match outcome {
            Ok(Ok(written)) => Ok(Committed { at: position_of(&written.log_id), reply: written.data }),
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                Err(ProposeError::NotLeader { leader: self.group.leader_of(forward) })
            }
            // The entry was in the log, or the core stopped with it in hand.
            Ok(Err(_)) | Err(_) => Err(ProposeError::Unknown),
        })
    }
}

/// A group that runs on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    running: Arc<Running>,
}

impl Group {
    /// The largest payload of a proposal, in bytes.
    pub const MAX_PAYLOAD: usize = 8 << 20;

    pub(crate) fn new(running: Arc<Running>) -> Self {
        Group { running }
    }

    /// The group.
    pub fn id(&self) -> GroupId {
        self.running.id
    }

    /// This node's replica of it.
    pub fn replica(&self) -> ReplicaId {
        self.running.replica
    }

    /// Proposes, and waits until the proposal is committed and applied here.
    pub async fn propose(&self, payload: Bytes) -> Result<Committed, ProposeError> {
        self.submit(payload).await?.await
    }

    /// Takes a place in the log order for the proposal and returns what to wait on, so that one caller can have many
    /// under way: the order in which calls of `submit` return is the order in the log. Waits only when the group's
    /// queue is full.
    pub async fn submit(&self, payload: Bytes) -> Result<Pending, ProposeError> {
        if payload.len() > Self::MAX_PAYLOAD {
            return Err(ProposeError::TooLarge { bytes: payload.len(), limit: Self::MAX_PAYLOAD });
        }
        let (responder, outcome) = OneshotResponder::new_pair();
        let submitted = self.running.raft.client_write_ff(Proposal(payload), Some(responder));
        submitted.await.map_err(|_| ProposeError::Stopped)?;
        Ok(Pending { group: self.clone(), outcome })
    }

    /// Who leads, and changes of it.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.running.leadership.subscribe()
    }

    /// Whether this replica leads and a quorum has acknowledged it within the lease.
    pub fn lease_valid(&self) -> bool {
        self.running.lease_valid()
    }

    /// A position such that a replica that has applied it sees everything acknowledged before this call. The leader
    /// confirms itself with a quorum, never by its lease; other replicas ask the leader. Calls at the same time share
    /// one round.
    pub async fn read_position(&self, timeout: Duration) -> Result<u64, ReadError> {
        let deadline = Instant::now() + timeout;
        let mut leadership = self.leadership();
        loop {
            let asked = tokio::time::timeout_at(deadline, self.ask_position(false)).await;
            match asked.unwrap_or(Err(ReadError::TimedOut)) {
                Err(ReadError::NoLeader) if Instant::now() < deadline => {}
                other => return other,
            }
            // An election takes a few heartbeats; nothing is gained by asking faster.
            let pause = Duration::from_millis(self.running.timers.heartbeat_ms / 2);
            let wake = (Instant::now() + pause).min(deadline);
            let _ = tokio::time::timeout_at(wake, leadership.changed()).await;
        }
    }

    /// One round, here or at the leader.
    pub(crate) async fn ask_position(&self, here_only: bool) -> Result<u64, ReadError> {
        let (reply, position) = oneshot::channel();
        self.running.reads.send(Read { here_only, reply }).map_err(|_| ReadError::Stopped)?;
        position.await.map_err(|_| ReadError::Stopped)?
    }

    /// Waits until `position` is applied here.
    pub async fn wait_applied(&self, position: u64, timeout: Duration) -> Result<(), ReadError> {
        #[cfg(feature = "planted")]
        if crate::planted::is("early-read") {
            return Ok(());
        }
        let mut applied = self.running.applied.position.subscribe();
        tokio::select! {
            waited = tokio::time::timeout(timeout, applied.wait_for(|applied| *applied >= position)) => match waited {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(ReadError::Stopped),
                Err(_) => Err(ReadError::TimedOut),
            },
            () = self.running.ended.cancelled() => Err(ReadError::Stopped),
        }
    }

    /// The last position applied here.
    pub fn applied(&self) -> u64 {
        *self.running.applied.position.borrow()
    }

    /// Makes a pristine group of these voters. Refused on a group that has a log.
    pub async fn initialize(&self, members: BTreeMap<ReplicaId, Member>) -> Result<(), MembershipError> {
        match self.running.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(error))) => {
                Err(MembershipError::Refused { reason: format!("the group has been made already: {error}") })
            }
            Err(RaftError::APIError(error)) => Err(MembershipError::Refused { reason: error.to_string() }),
            Err(RaftError::Fatal(_)) => Err(MembershipError::Stopped),
        }
    }

    /// Adds a replica that receives the log and does not vote; returns when that is committed, not when it has
    /// caught up. Adding it again with another address changes the address.
    pub async fn add_learner(&self, replica: ReplicaId, member: Member) -> Result<(), MembershipError> {
        let known = self.status().members.get(&replica).cloned();
        match known {
            Some(known) if known == member => Ok(()),
            Some(known) if known.node != member.node => Err(MembershipError::Refused {
                reason: format!("replica {replica:016x} is on node {}, and a replica never moves", known.node),
            }),
            // The replica stays on its node, only the label of the address changes, so the two never coexist.
            Some(_) => self.change(ChangeMembers::SetNodes(BTreeMap::from([(replica, member)])), true).await,
            None => self.change(ChangeMembers::AddNodes(BTreeMap::from([(replica, member)])), true).await,
        }
    }

    /// Makes exactly these members the voters, through joint consensus, both steps. Calling it again finishes a joint
    /// membership that was left behind. Voters that are dropped stay as learners if `keep_as_learners`.
    pub async fn change_voters(
        &self,
        voters: BTreeSet<ReplicaId>,
        keep_as_learners: bool,
    ) -> Result<(), MembershipError> {
        self.change(ChangeMembers::ReplaceAllVoters(voters), keep_as_learners).await
    }

    /// Removes learners.
    pub async fn remove_learners(&self, replicas: BTreeSet<ReplicaId>) -> Result<(), MembershipError> {
        self.change(ChangeMembers::RemoveNodes(replicas), true).await
    }

    async fn change(&self, change: ChangeMembers<ReplicaId, Member>, retain: bool) -> Result<(), MembershipError> {
        let error = match self.running.raft.change_membership(change, retain).await {
            Err(error) => error,
            Ok(written) => {
                // The answer may be ahead of the metrics, and whoever made the change shall find it in the status.
                let at = Some(written.log_id);
                let seen = self.running.raft.wait(Some(PATIENCE));
                let seen =
                    seen.metrics(|metrics| *metrics.membership_config.log_id() >= at, "a change of members").await;
                return seen.map(drop).map_err(|_| MembershipError::Stopped);
            }
        };
        Err(match error {
            RaftError::Fatal(_) => MembershipError::Stopped,
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                MembershipError::NotLeader { leader: self.leader_of(forward) }
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(
                ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
            )) => MembershipError::Busy,
            RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
                MembershipError::Refused { reason: error.to_string() }
            }
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(_) | ClientWriteError::PreconditionFailed(_)) => {
                MembershipError::Unknown
            }
        })
    }

    /// Hands leadership to a voter; returns when another replica leads.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), MembershipError> {
        let view = self.status();
        if !view.voters.contains(&to) {
            return Err(MembershipError::Refused { reason: format!("replica {to:016x} is not a voter") });
        }
        if !self.running.leads() {
            return Err(MembershipError::NotLeader { leader: view.leader });
        }
        if to == self.running.replica {
            return Ok(());
        }
        let mut leadership = self.leadership();
        // The successor is elected while the others still owe this one their votes.
        let _handing_over = self.running.followers.forfeit(view.term);
        self.running.raft.trigger().transfer_leader(to).await.map_err(|_| MembershipError::Stopped)?;
        let here = self.running.replica;
        let patience = Duration::from_millis(4 * self.running.timers.election_max_ms);
        let moved = leadership.wait_for(|now| now.leader.as_ref().is_some_and(|(leader, _)| *leader != here));
        match tokio::time::timeout(patience, moved).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(MembershipError::Stopped),
            Err(_) => Err(MembershipError::Unknown),
        }
    }

    /// Returns when the group has stopped on this node, and why.
    pub async fn stopped(&self) -> Stop {
        self.running.ended.cancelled().await;
        self.running.outcome.get().cloned().unwrap_or(Stop::Wanted)
    }

    /// The hashes of the state at the last positions, of at most 64, that are multiples of
    /// [`GroupsConfig::hash_every`](crate::GroupsConfig::hash_every): (position, hash), ascending. Starts anew when the group
    /// starts and when a snapshot replaces the state.
    pub fn hashes(&self) -> Vec<(u64, u64)> {
        self.running.applied.hashes.noted()
    }

    /// The last applied position with the hash of the state there. Both are of one moment.
    pub fn hash(&self) -> Option<(u64, u64)> {
        self.running.applied.hashes.current()
    }

    /// Tells the replica that a majority of the voters has at `position` the state that this one has or had there, which has
    /// this hash. Checkpoints up to there count from then on: they may be sent, and the log may be purged below them.
    ///
    /// # Errors
    /// Those of the disk; the next call tries again.
    pub async fn agree(&self, position: u64, hash: u64) -> io::Result<()> {
        self.running.checkpoints.agree(position, hash).await
    }

    /// Whether [`Group::agree`] has been told of the last applied position, and no checkpoint waits for it.
    pub fn is_agreed(&self) -> bool {
        self.running.checkpoints.agreed() == self.hash() && !self.running.checkpoints.has_candidate()
    }

    /// The group as this replica sees it.
    pub fn status(&self) -> GroupView {
        self.running.view()
    }

    /// The current state store. A snapshot replaces it, so fetch it for each use and do not keep it.
    pub fn store(&self) -> Arc<dyn StateStore> {
        self.running.applied.store.read().clone()
    }

    /// What openraft knows of the leader, or else what this replica does.
    fn leader_of(&self, forward: ForwardToLeader<TC>) -> Option<(ReplicaId, Member)> {
        match (forward.leader_id, forward.leader_node) {
            (Some(leader), Some(member)) => Some((leader, member)),
            _ => self.running.leadership.borrow().leader.clone().filter(|(leader, _)| *leader != self.running.replica),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chaos suite found it (`leave`): the node of a replica that was deleted as it should be ended itself, now and then.
    #[tokio::test]
    async fn the_end_of_a_core_that_was_stopped_is_no_fault() {
        // Often: what is not in order is chosen by chance.
        for _ in 0..64 {
            let (stop, core_ended) = (CancellationToken::new(), CancellationToken::new());
            stop.cancel();
            core_ended.cancel();
            assert!(is_stopped(&stop, &Health::default(), &core_ended).await);
            assert!(!is_stopped(&CancellationToken::new(), &Health::default(), &core_ended).await);
        }
    }
}
