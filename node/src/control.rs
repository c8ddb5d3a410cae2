//! The control group as the rest of the node sees it.
//!
//! [`ControlHandle`] gives reads of the replicated state, proposals at the leader, proposals that find the leader, and
//! what happened: the applied position and the effects of entries. It exists before the node belongs to a cluster; until
//! then there is no group, and proposals are refused with `NOT_INITIALIZED`.

mod forward;
mod machine;

use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use quorate_raft::{Group, Groups, Leadership, Machine, NodeId, Peer, ReplicaId, Table};
use quorate_state::control::{Command, Control, Effect, NodeRecord, Reply};
use quorate_state::{LogTime, Operation, Position, Reject};
use tokio::sync::{broadcast, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::error::{Error, ErrorReason};
use crate::log_clock::{Clock, Reached, Timed};
use crate::metrics::Metrics;
use crate::proposer::{Answer, Matcher, Proposer};

use forward::Forwarder;
pub use forward::Proposals;
use machine::ControlMachine;

/// What applying a batch of entries came to, told after their rows are readable.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The last position of the batch.
    pub at: Position,
    /// The effects of the entries, in order.
    pub effects: Arc<[Effect]>,
    /// A snapshot took the place of the state: what happened in between is not told; look at the state anew.
    pub reloaded: bool,
}

/// Batches that a slow subscriber may be behind before it is told that it lagged, and must look at the state anew.
const EFFECTS_KEPT: usize = 8_192;

/// The control state and the ways to change it. Cheap to clone.
#[derive(Clone)]
pub struct ControlHandle {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    groups: Groups,
    reached: Arc<Reached>,
    metrics: Arc<Metrics>,
    running: RwLock<Option<Running>>,
    leadership: watch::Sender<Leadership>,
    forwarder: Mutex<Option<Forwarder>>,
}

/// What there is once the group runs.
#[derive(Clone)]
struct Running {
    group: Group,
    proposer: Proposer<Command>,
    following: Following,
}

/// Passes on who leads a group. What the group says last, after it was let go of, must not be taken for news of the one that
/// comes after it.
#[derive(Clone)]
struct Following {
    follows: Arc<Mutex<bool>>,
    task: AbortHandle,
}

impl Following {
    /// `pass_on` says whether anybody listens.
    fn start(
        mut leadership: watch::Receiver<Leadership>,
        pass_on: impl Fn(Leadership) -> bool + Send + 'static,
    ) -> Following {
        let follows = Arc::new(Mutex::new(true));
        let still = follows.clone();
        let passes = move |now| {
            let follows = still.lock();
            *follows && pass_on(now)
        };
        let task = tokio::spawn(async move {
            loop {
                let now = leadership.borrow_and_update().clone();
                if !passes(now) || leadership.changed().await.is_err() {
                    return;
                }
            }
        });
        Following { follows, task: task.abort_handle() }
    }

    /// Nothing is passed on once this has returned, whatever the task is just at.
    fn end(&self) {
        *self.follows.lock() = false;
        self.task.abort();
    }
}

/// What the machine publishes.
struct Shared {
    state: RwLock<Control>,
    applied: watch::Sender<u64>,
    map: watch::Sender<u64>,
    effects: broadcast::Sender<Applied>,
}

impl ControlHandle {
    /// A handle without a group.
    pub fn new(groups: Groups, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> ControlHandle {
        let shared = Arc::new(Shared {
            state: RwLock::new(Control::new()),
            applied: watch::Sender::new(0),
            map: watch::Sender::new(0),
            effects: broadcast::Sender::new(EFFECTS_KEPT),
        });
        let inner = Inner {
            shared,
            groups,
            reached: Reached::new(clock),
            metrics,
            running: RwLock::new(None),
            leadership: watch::Sender::new(Leadership::default()),
            forwarder: Mutex::new(None),
        };
        ControlHandle { inner: Arc::new(inner) }
    }

    /// The machine with which the control group is to be started.
    pub fn machine(&self) -> Box<dyn Machine> {
        let shared = self.inner.shared.clone();
        let machine = Box::new(ControlMachine::new(shared.clone()));
        Box::new(Timed::new(machine, self.inner.reached.clone(), move || shared.state.read().time()))
    }

    /// Takes the started group into use. Called once for each start of the group.
    pub fn attach(&self, group: Group) {
        let proposer = Proposer::start(group.clone(), self.inner.reached.clone(), self.inner.metrics.clone());
        let inner = Arc::downgrade(&self.inner);
        // Who hears that this node leads finds the group attached.
        let mut attached = self.inner.running.write();
        let following = Following::start(group.leadership(), move |now| {
            let Some(inner) = inner.upgrade() else { return false };
            inner.leadership.send_if_modified(|before| mem::replace(before, now.clone()) != now);
            true
        });
        *attached = Some(Running { group, proposer, following });
    }

    /// Lets go of the group, for a node that stops or was removed.
    pub fn detach(&self) {
        self.detach_if(|_| true);
    }

    /// Lets go of the group if its replica is this one, which is damaged. Who comes late, and finds its successor in its
    /// place, changes nothing.
    pub fn detach_replica(&self, replica: ReplicaId) {
        self.detach_if(|group| group.replica() == replica);
    }

    fn detach_if(&self, is_meant: impl FnOnce(&Group) -> bool) {
        let mut attached = self.inner.running.write();
        let Some(running) = attached.take_if(|running| is_meant(&running.group)) else { return };
        running.following.end();
        running.proposer.stop();
        *self.inner.forwarder.lock() = None;
        // Before anybody can attach another group, whose news must not be lost under this.
        self.inner.leadership.send_replace(Leadership::default());
    }

    /// Reads the state as applied here. Keep it short: entries wait for it. It may be a few entries ahead of the rows
    /// and of the effects.
    pub fn read<R>(&self, read: impl FnOnce(&Control) -> R) -> R {
        read(&self.inner.shared.state.read())
    }

    /// The group; `None` before this node belongs to a cluster.
    pub fn group(&self) -> Option<Group> {
        self.inner.running.read().as_ref().map(|running| running.group.clone())
    }

    /// Makes every read after it see all that was acknowledged before it was called, as long as the replica is the same. One that
    /// was damaged is made anew from nothing: see [`ControlHandle::read_since`], which takes the position that is returned.
    pub async fn read_barrier(&self, timeout: Duration) -> Result<u64, Error> {
        let group = self.group().ok_or_else(|| self.absence())?;
        let position = group.read_position(timeout).await?;
        group.wait_applied(position, timeout).await?;
        Ok(position)
    }

    /// As [`ControlHandle::read`], of a state that has all up to a position that a barrier has returned.
    ///
    /// # Errors
    /// `NO_LEADER` when the replica was made anew since and is behind it.
    pub fn read_since<R>(&self, position: u64, read: impl FnOnce(&Control) -> R) -> Result<R, Error> {
        // Looked at while the state is held: what replaces the state moves the position under the same lock.
        let found = self.read(|state| (*self.inner.shared.applied.borrow() >= position).then(|| read(state)));
        found.ok_or_else(|| {
            Error::new(ErrorReason::NoLeader, "this replica of control was made anew, and is behind the call")
        })
    }

    /// Proposes in one entry at this node, which must lead.
    /// They are queued when this is called, not when the future is first polled.
    pub fn propose(
        &self,
        operations: Vec<Operation<Command>>,
    ) -> impl Future<Output = Answer<Command>> + Send + 'static {
        let queued = self.submit(operations);
        async move { queued?.await.unwrap_or_else(|_| Err(Error::shutting_down())) }
    }

    /// Queues at this node, which must lead, and returns what resolves to the replies.
    pub fn submit(&self, operations: Vec<Operation<Command>>) -> Result<oneshot::Receiver<Answer<Command>>, Error> {
        self.proposer()?.submit(operations)
    }

    /// Proposes one operation wherever the leader is, following it until `deadline`. Without a request id an unknown
    /// outcome is returned as such; with one it is tried again under the same id.
    pub async fn propose_anywhere(
        &self,
        operation: Operation<Command>,
        deadline: Instant,
    ) -> Result<Result<Reply, Reject>, Error> {
        forward::propose_anywhere(self, operation, deadline).await
    }

    /// The last applied position, and its changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.shared.applied.subscribe()
    }

    /// The position of the last change of the members or of the shard map, and its changes.
    pub fn map_changes(&self) -> watch::Receiver<u64> {
        self.inner.shared.map.subscribe()
    }

    /// What entries come to from now on, on every node. A receiver that lagged must look at the state anew.
    pub fn effects(&self) -> broadcast::Receiver<Applied> {
        self.inner.shared.effects.subscribe()
    }

    /// One row of the state store; `None` also before there is a group.
    pub fn row(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.group().map_or(Ok(None), |group| group.store().get(table, key))
    }

    /// Many rows of one table, in the order of the keys; all `None` before there is a group.
    pub fn rows(&self, table: Table, keys: &[&[u8]]) -> io::Result<Vec<Option<Bytes>>> {
        self.group().map_or_else(|| Ok(vec![None; keys.len()]), |group| group.store().get_many(table, keys))
    }

    /// Who leads, and changes of it. Lives as long as the handle; nobody leads before there is a group.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// Whether this node leads now.
    pub fn leads(&self) -> bool {
        self.inner.leadership.borrow().mine
    }

    /// The node that leads and its peer address, if one is known.
    pub fn leader(&self) -> Option<(NodeId, String)> {
        let leadership = self.inner.leadership.borrow();
        leadership.leader.as_ref().map(|(_, member)| (member.node, member.address.clone()))
    }

    /// The leader as a member: its client address is the hint for clients.
    pub fn leader_hint(&self) -> Option<NodeRecord> {
        let (node, _) = self.leader()?;
        self.read(|state| state.member(quorate_state::NodeId(node.0)).map(|member| member.node.clone()))
    }

    /// A handle on the leader, unless it is this node or none is known.
    pub fn peer_of_leader(&self) -> Option<(NodeId, Peer)> {
        let (node, address) = self.leader()?;
        let groups = &self.inner.groups;
        (node != groups.identity().node).then(|| (node, groups.peer(node, &address)))
    }

    /// Whether this node leads, with the leader's client address as a hint if another one does.
    pub fn refusal(&self) -> Error {
        if self.group().is_none() {
            return self.absence();
        }
        Error::not_leader(self.leader_hint().map(|hint| (NodeId(hint.node.0), hint.client_address)))
    }

    /// Why there is no group: the node belongs to no cluster yet, or its replica is out of service.
    pub fn absence(&self) -> Error {
        match self.inner.groups.identity().cluster {
            Some(_) => Error::control_away(),
            None => Error::not_initialized(),
        }
    }

    /// The peer address of a member.
    pub fn member_address(&self, node: NodeId) -> Option<String> {
        self.read(|state| state.member(quorate_state::NodeId(node.0)).map(|member| member.node.peer_address.clone()))
    }

    /// Sets who adds operations to the entries that this node forms as leader.
    pub fn set_matcher(&self, matcher: Option<Arc<dyn Matcher>>) {
        if let Ok(proposer) = self.proposer() {
            proposer.set_matcher(matcher);
        }
    }

    /// Has an entry formed even if nothing is queued, by the matcher alone. Cheap.
    pub fn wake_matcher(&self) {
        if let Ok(proposer) = self.proposer() {
            proposer.wake();
        }
    }

    /// The log time now, on the leader; elsewhere the time that this replica has reached.
    pub fn log_time(&self) -> LogTime {
        self.proposer().map_or_else(|_| self.read(Control::time), |proposer| proposer.log_time())
    }

    /// Answers the operations that other nodes forward.
    pub fn proposals(&self) -> Proposals {
        Proposals::new(self.clone())
    }

    fn proposer(&self) -> Result<Proposer<Command>, Error> {
        self.inner.running.read().as_ref().map(|running| running.proposer.clone()).ok_or_else(|| self.absence())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// So often who passes something on lets others go first: time enough for an end that does not wait.
    const TURNS: usize = 10_000;

    /// Otherwise the last word of a group that was let go of could be taken for news of the one that comes after it.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_end_waits_for_what_is_being_passed_on_and_nothing_is_after_it() {
        let said = watch::Sender::new(Leadership::default());
        let (begin, begun) = mpsc::channel();
        let passed = Arc::new(AtomicUsize::new(0));
        let counted = passed.clone();
        let following = Following::start(said.subscribe(), move |_| {
            // Nobody listens any more once the test has seen what it wants.
            let _ = begin.send(());
            (0..TURNS).for_each(|_| thread::yield_now());
            counted.fetch_add(1, Ordering::SeqCst);
            true
        });
        begun.recv().expect("what is so at the start is passed on too");
        following.end();
        assert_eq!(passed.load(Ordering::SeqCst), 1, "it was waited for");
        said.send_replace(Leadership { term: 7, ..Leadership::default() });
        drop(said);
        while !following.task.is_finished() {
            tokio::task::yield_now().await;
        }
        assert_eq!(passed.load(Ordering::SeqCst), 1, "nothing comes after it");
    }
}
