//! One group on this node.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::ids::{GroupId, LogPosition, ReplicaId};
use crate::machine::{Reply, StateStore};
use crate::types::Member;

/// A proposal that is on the disks of a majority and applied here.
#[derive(Debug)]
pub struct Committed {
    /// Its place in the log.
    pub at: LogPosition,
    /// What the machine answered.
    pub reply: Reply,
}

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
    /// How far each replica is known to have the log. Only on the leader.
    pub matched: BTreeMap<ReplicaId, u64>,
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

/// A proposal that has its place in the order and waits to be committed and applied. Dropping it changes nothing
/// about the proposal.
pub struct Pending {}

impl Future for Pending {
    type Output = Result<Committed, ProposeError>;
    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> { unimplemented!() }
}

/// A group that runs on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group {}

impl Group {
    /// The largest payload of a proposal, in bytes.
    pub const MAX_PAYLOAD: usize = 8 << 20;

    /// The group.
    pub fn id(&self) -> GroupId { unimplemented!() }
    /// This node's replica of it.
    pub fn replica(&self) -> ReplicaId { unimplemented!() }
    /// Proposes, and waits until the proposal is committed and applied here.
    pub async fn propose(&self, payload: Bytes) -> Result<Committed, ProposeError> { unimplemented!() }
    /// Takes a place in the log order for the proposal and returns what to wait on, so that one caller can have many
    /// under way: the order in which calls of `submit` return is the order in the log. Waits only when the group's
    /// queue is full.
    pub async fn submit(&self, payload: Bytes) -> Result<Pending, ProposeError> { unimplemented!() }
    /// Who leads, and changes of it.
    pub fn leadership(&self) -> watch::Receiver<Leadership> { unimplemented!() }
    /// Whether this replica leads and a quorum has acknowledged it within the lease.
    pub fn lease_valid(&self) -> bool { unimplemented!() }
    /// A position such that a replica that has applied it sees everything acknowledged before this call. The leader
    /// confirms itself with a quorum, never by its lease; other replicas ask the leader. Calls at the same time share
    /// one round.
    pub async fn read_position(&self, timeout: Duration) -> Result<u64, ReadError> { unimplemented!() }
    /// Waits until `position` is applied here.
    pub async fn wait_applied(&self, position: u64, timeout: Duration) -> Result<(), ReadError> { unimplemented!() }
    /// The last position applied here.
    pub fn applied(&self) -> u64 { unimplemented!() }
    /// Makes a pristine group of these voters. Refused on a group that has a log.
    pub async fn initialize(&self, members: BTreeMap<ReplicaId, Member>) -> Result<(), MembershipError> { unimplemented!() }
    /// Adds a replica that receives the log and does not vote; returns when that is committed, not when it has
    /// caught up. Adding it again updates its address.
    pub async fn add_learner(&self, replica: ReplicaId, member: Member) -> Result<(), MembershipError> { unimplemented!() }
    /// Makes exactly these members the voters, through joint consensus, both steps. Calling it again finishes a joint
    /// membership that was left behind.
    pub async fn change_voters(&self, voters: BTreeSet<ReplicaId>, keep_as_learners: bool) -> Result<(), MembershipError> { unimplemented!() }
    /// Removes learners.
    pub async fn remove_learners(&self, replicas: BTreeSet<ReplicaId>) -> Result<(), MembershipError> { unimplemented!() }
    /// Hands leadership to a voter; returns when another replica leads.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), MembershipError> { unimplemented!() }
    /// The group as this replica sees it.
    pub fn status(&self) -> GroupView { unimplemented!() }
    /// The current state store. A snapshot replaces it, so fetch it for each use and do not keep it.
    pub fn store(&self) -> Arc<dyn StateStore> { unimplemented!() }
}
