//! The one writer of a group that this node leads.
//!
//! Callers queue operations; one task forms an entry from everything that waits whenever fewer than
//! [`ENTRIES_IN_FLIGHT`] entries are under way, stamps it with log time and submits it. So an idle group proposes at
//! once, and a busy one gathers exactly what arrives while the disks work: no timer, no setting.
//!
//! Guarantees:
//! - Operations take effect in the order in which they were queued; those of one call are in one entry, next to each other.
//! - `NotLeader`, `NoLeader`, `Overloaded` and `TooLarge` mean that nothing was proposed. `OutcomeUnknown` means that the
//!   operations may take effect, now or later.
//! - At most [`QUEUED_OPERATIONS`] operations and [`QUEUED_BYTES`] bytes wait.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use parking_lot::Mutex;
use quorate_raft::{Committed, Group, Leadership, ProposeError};
use quorate_state::{Entry, LogTime, Operation, Reject, codec, control, shard};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::error::Error;
use crate::limits::{
    ENTRIES_IN_FLIGHT, ENTRY_BYTES, ENTRY_OPERATIONS, MATCHER_ROOM, OVERLOADED_RETRY_AFTER, QUEUED_BYTES,
    QUEUED_OPERATIONS,
};
use crate::log_clock::{LogClock, Reached};
use crate::metrics::{Metrics, ProposerMetrics};

/// A leader that has proposed nothing for so long proposes an entry without operations: the others learn what time it is, and
/// one that was restarted meanwhile begins from that when it comes to lead.
const IDLE_ENTRY: Duration = Duration::from_secs(60);
/// How long a failed entry waits for the news that the leadership is lost.
const FAILED_PAUSE: Duration = Duration::from_millis(10);

/// A command that a proposer can put into entries.
pub trait Proposable: Clone + Send + Sync + Sized + 'static {
    /// What apply answers to one operation.
    type Reply: Send + Sync + 'static;
    /// The value of the label `group` in metrics.
    const GROUP: &'static str;

    /// About how many bytes the command has when it is encoded.
    fn weight(&self) -> usize;
    /// The entry as the group's machine decodes it.
    fn encode(entry: &Entry<Self>) -> Result<Bytes, Error>;
}

impl Proposable for control::Command {
    type Reply = control::Reply;
    const GROUP: &'static str = "control";

    fn weight(&self) -> usize {
        fn tasks(tasks: &[control::NewTask]) -> usize {
            tasks.iter().map(|task| 96 + task.queue.len() + task.role.len() + task.payload.len()).sum()
        }
        match self {
            control::Command::Enqueue { tasks: new } => 32 + tasks(new),
            control::Command::Complete { result, children, .. } => 64 + result.len() + tasks(children),
            control::Command::Fail { error, .. } => 64 + error.len(),
            _ => 128,
        }
    }

    fn encode(entry: &Entry<Self>) -> Result<Bytes, Error> {
        codec::encode(entry).map_err(Error::internal)
    }
}

impl Proposable for shard::Command {
    type Reply = shard::Reply;
    const GROUP: &'static str = "shard";

    fn weight(&self) -> usize {
        match self {
            shard::Command::Upsert { points, .. } => {
                points.iter().map(|point| 48 + point.id.len() + 4 * point.vector.len() + point.payload.len()).sum()
            }
            shard::Command::Delete { ids, .. } => ids.iter().map(|id| 16 + id.len()).sum(),
            _ => 128,
        }
    }

    fn encode(entry: &Entry<Self>) -> Result<Bytes, Error> {
        codec::encode(entry).map_err(Error::internal)
    }
}

/// One reply per operation, in order. A machine answers a proposal with `quorate_raft::Reply::new` of exactly this type.
pub type Replies<C> = Vec<Result<<C as Proposable>::Reply, Reject>>;

/// What a queued call resolves to.
pub type Answer<C> = Result<Replies<C>, Error>;

/// Adds operations of the leader's own to entries as they are formed. Both methods are called by the proposer's task, in
/// log order, and must not block.
pub trait Matcher<C: Proposable = control::Command>: Send + Sync + 'static {
    /// An entry is being formed and holds `entry`, which is empty after a bare [`Proposer::wake`]. May push up to `room`
    /// operations, behind what is there.
    fn fill(&self, entry: &mut Vec<Operation<C>>, room: usize);

    /// The fate of what a `fill` pushed: once for each fill that pushed anything, in the same order.
    fn settled(&self, pushed: &[Operation<C>], outcome: Result<&[Result<C::Reply, Reject>], &Error>);
}

type SharedMatcher<C> = Arc<dyn Matcher<C>>;

struct Call<C: Proposable> {
    operations: Vec<Operation<C>>,
    bytes: usize,
    answer: oneshot::Sender<Answer<C>>,
}

struct Queue<C: Proposable> {
    calls: VecDeque<Call<C>>,
    operations: usize,
    bytes: usize,
}

struct Shared<C: Proposable> {
    group: Group,
    leadership: watch::Receiver<Leadership>,
    reached: Arc<Reached>,
    metrics: Arc<Metrics>,
    measured: ProposerMetrics,
    queue: Mutex<Queue<C>>,
    matcher: Mutex<Option<SharedMatcher<C>>>,
    log_clock: Mutex<Option<LogClock>>,
    wake: Notify,
    stopped: AtomicBool,
}

/// The handle of a group's proposer. Clones share it; its task ends by [`Proposer::stop`] or with the last clone.
pub struct Proposer<C: Proposable> {
    shared: Arc<Shared<C>>,
    _alive: Arc<Alive<C>>,
}

impl<C: Proposable> Clone for Proposer<C> {
    fn clone(&self) -> Self {
        Proposer { shared: self.shared.clone(), _alive: self._alive.clone() }
    }
}

/// Held by handles only, so that the task, which holds `Shared`, ends when no handle is left.
struct Alive<C: Proposable>(Arc<Shared<C>>);

impl<C: Proposable> Drop for Alive<C> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl<C: Proposable> Proposer<C> {
    /// Starts the proposer of `group` on the current runtime. `reached` is that of the group's machine.
    pub fn start(group: Group, reached: Arc<Reached>, metrics: Arc<Metrics>) -> Proposer<C> {
        let shared = Arc::new(Shared {
            leadership: group.leadership(),
            group,
            reached,
            measured: metrics.proposer(C::GROUP),
            metrics,
            queue: Mutex::new(Queue { calls: VecDeque::new(), operations: 0, bytes: 0 }),
            matcher: Mutex::new(None),
            log_clock: Mutex::new(None),
            wake: Notify::new(),
            stopped: AtomicBool::new(false),
        });
        tokio::spawn(run(shared.clone()));
        Proposer { _alive: Arc::new(Alive(shared.clone())), shared }
    }

    /// Proposes the operations in one entry and waits for their replies. Dropping the future takes nothing back.
    /// They are queued when this is called, not when the future is first polled.
    pub fn propose(&self, operations: Vec<Operation<C>>) -> impl Future<Output = Answer<C>> + Send + 'static {
        let queued = self.submit(operations);
        async move { queued?.await.unwrap_or_else(|_| Err(Error::shutting_down())) }
    }

    /// Queues the operations at once, so that a caller's order is kept, and returns what resolves to their replies.
    pub fn submit(&self, operations: Vec<Operation<C>>) -> Result<oneshot::Receiver<Answer<C>>, Error> {
        self.shared.submit(operations)
    }

    /// Sets who adds operations to the entries, or nobody. What an earlier matcher pushed is settled with that one.
    pub fn set_matcher(&self, matcher: Option<Arc<dyn Matcher<C>>>) {
        *self.shared.matcher.lock() = matcher;
        self.wake();
    }

    /// Has an entry formed even if nothing is queued, by the matcher alone.
    pub fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Operations and bytes that wait.
    pub fn queued(&self) -> (usize, usize) {
        let queue = self.shared.queue.lock();
        (queue.operations, queue.bytes)
    }

    /// The log time that an entry formed now would be stamped with; before this node leads, the time reached.
    pub fn log_time(&self) -> LogTime {
        self.shared.stamp()
    }

    /// The group.
    pub fn group(&self) -> &Group {
        &self.shared.group
    }

    /// Refuses what waits and what comes, and ends the task once the entries in flight are answered.
    pub fn stop(&self) {
        self.shared.stop();
    }
}

impl<C: Proposable> Shared<C> {
    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Why nothing can be proposed here now, if so.
    fn refusal(&self) -> Option<Error> {
        if self.is_stopped() {
            return Some(Error::shutting_down());
        }
        let leadership = self.leadership.borrow();
        if leadership.mine {
            return None;
        }
        // A leader that has not yet applied an entry of its own term answers in a moment.
        let leader = leadership.leader.as_ref().filter(|(replica, _)| *replica != self.group.replica());
        Some(Error::not_leader(leader.map(|(_, member)| (member.node, member.address.clone()))))
    }

    fn submit(&self, operations: Vec<Operation<C>>) -> Result<oneshot::Receiver<Answer<C>>, Error> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        if operations.is_empty() || operations.len() > ENTRY_OPERATIONS - MATCHER_ROOM {
            return Err(Error::invalid(
                "operations",
                format!("a call has 1 to {} operations, not {}", ENTRY_OPERATIONS - MATCHER_ROOM, operations.len()),
            ));
        }
        let bytes = operations.iter().map(|operation| 24 + operation.command.weight()).sum();
        let (answer, receiver) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.operations + operations.len() > QUEUED_OPERATIONS || queue.bytes + bytes > QUEUED_BYTES {
                self.measured.shed_operations.inc_by(operations.len() as u64);
                return Err(Error::overloaded(OVERLOADED_RETRY_AFTER));
            }
            queue.operations += operations.len();
            queue.bytes += bytes;
            self.measured.queued_operations.add(operations.len() as i64);
            queue.calls.push_back(Call { operations, bytes, answer });
        }
        self.wake.notify_one();
        Ok(receiver)
    }

    fn take_all(&self) -> VecDeque<Call<C>> {
        let mut queue = self.queue.lock();
        self.measured.queued_operations.sub(queue.operations as i64);
        (queue.operations, queue.bytes) = (0, 0);
        std::mem::take(&mut queue.calls)
    }

    /// Takes what fits into one entry, and always at least one call if there is one.
    fn take_entry(&self) -> Vec<Call<C>> {
        let mut queue = self.queue.lock();
        let (mut taken, mut operations, mut bytes) = (Vec::new(), 0, 0);
        while let Some(call) = queue.calls.front() {
            operations += call.operations.len();
            bytes += call.bytes;
            if !taken.is_empty() && (operations > ENTRY_OPERATIONS - MATCHER_ROOM || bytes > ENTRY_BYTES) {
                break;
            }
            let Some(call) = queue.calls.pop_front() else { break };
            queue.operations -= call.operations.len();
            self.measured.queued_operations.sub(call.operations.len() as i64);
            queue.bytes -= call.bytes;
            taken.push(call);
        }
        taken
    }

    fn stamp(&self) -> LogTime {
        self.log_clock.lock().as_mut().map_or_else(|| self.reached.time(), LogClock::stamp)
    }

    fn refuse_all(&self) {
        let Some(refusal) = self.refusal() else { return };
        for call in self.take_all() {
            // A caller that has gone does not need the answer.
            let _ = call.answer.send(Err(refusal.clone()));
        }
    }
}

/// An entry under way: who is to be told.
struct Flight<C: Proposable> {
    callers: Vec<(usize, oneshot::Sender<Answer<C>>)>,
    matched: Option<(Vec<Operation<C>>, SharedMatcher<C>)>,
    since: Instant,
}

impl<C: Proposable> Flight<C> {
    fn fail(self, error: &Error) {
        for (_, caller) in self.callers {
            let _ = caller.send(Err(error.clone()));
        }
        if let Some((pushed, matcher)) = self.matched {
            matcher.settled(&pushed, Err(error));
        }
    }

    fn land(self, outcome: Result<Committed, ProposeError>, measured: &ProposerMetrics) {
        let replies = match outcome {
            Ok(committed) => committed.reply.downcast::<Replies<C>>(),
            Err(error) => return self.fail(&error.into()),
        };
        let expected = self.callers.iter().map(|(count, _)| count).sum::<usize>()
            + self.matched.as_ref().map_or(0, |(pushed, _)| pushed.len());
        let Some(mut replies) = replies.filter(|replies| replies.len() == expected) else {
            return self.fail(&Error::internal("the machine's replies do not fit the entry"));
        };
        measured.entry_seconds.observe(self.since.elapsed().as_secs_f64());
        if let Some((pushed, matcher)) = self.matched {
            let matched = replies.split_off(replies.len() - pushed.len());
            matcher.settled(&pushed, Ok(&matched));
        }
        let mut replies = replies.into_iter();
        for (count, caller) in self.callers {
            let _ = caller.send(Ok(replies.by_ref().take(count).collect()));
        }
    }
}

type InFlight<C> = FuturesOrdered<BoxFuture<'static, (Flight<C>, Result<Committed, ProposeError>)>>;

/// A leader whose proposer has died would go on leading and answer nobody. The process ends, and another node leads.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

async fn run<C: Proposable>(shared: Arc<Shared<C>>) {
    let _guard = AbortOnPanic;
    let mut leadership = shared.leadership.clone();
    while !shared.is_stopped() {
        let mine = leadership.borrow_and_update().mine;
        if mine {
            lead(&shared, &mut leadership).await;
            continue;
        }
        shared.refuse_all();
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { break },
            () = shared.wake.notified() => {}
        }
    }
    shared.stopped.store(true, Ordering::Release);
    shared.refuse_all();
}

/// Proposes until leadership is lost or the proposer is stopped, and answers everything that was in flight by then.
async fn lead<C: Proposable>(shared: &Arc<Shared<C>>, leadership: &mut watch::Receiver<Leadership>) {
    *shared.log_clock.lock() = Some(LogClock::new(&shared.reached, shared.metrics.clone()));
    let mut in_flight = InFlight::<C>::new();
    let mut idle = pin!(sleep(IDLE_ENTRY));
    loop {
        while in_flight.len() < ENTRIES_IN_FLIGHT {
            let Some((entry, flight)) = form(shared) else { break };
            if !launch(shared, entry, flight, &mut in_flight).await {
                break;
            }
            idle.as_mut().reset(Instant::now() + IDLE_ENTRY);
        }
        tokio::select! {
            biased;
            Some((flight, outcome)) = in_flight.next(), if !in_flight.is_empty() => {
                let failed = outcome.is_err();
                flight.land(outcome, &shared.measured);
                if failed && !still_leads(leadership).await { break }
            }
            () = shared.wake.notified(), if in_flight.len() < ENTRIES_IN_FLIGHT => {}
            () = &mut idle => {
                let entry = Entry { time: shared.stamp(), operations: Vec::new() };
                let flight = Flight { callers: Vec::new(), matched: None, since: Instant::now() };
                launch(shared, entry, flight, &mut in_flight).await;
                idle.as_mut().reset(Instant::now() + IDLE_ENTRY);
            }
            changed = leadership.changed() => {
                if changed.is_err() || !leadership.borrow().mine { break }
            }
        }
        if shared.is_stopped() {
            break;
        }
    }
    *shared.log_clock.lock() = None;
    shared.refuse_all();
    while let Some((flight, outcome)) = in_flight.next().await {
        flight.land(outcome, &shared.measured);
    }
}

/// After an entry has failed the leadership is mostly about to be lost. Until that is known here the next entries would
/// fail as fast as they are formed, so the news gets a moment to arrive.
async fn still_leads(leadership: &mut watch::Receiver<Leadership>) -> bool {
    let changed = timeout(FAILED_PAUSE, leadership.changed()).await;
    !matches!(changed, Ok(Err(_))) && leadership.borrow().mine
}

/// Makes an entry of what waits and what the matcher adds; `None` if there is nothing.
fn form<C: Proposable>(shared: &Shared<C>) -> Option<(Entry<C>, Flight<C>)> {
    let calls = shared.take_entry();
    let mut operations = Vec::with_capacity(calls.iter().map(|call| call.operations.len()).sum());
    let mut callers = Vec::with_capacity(calls.len());
    for call in calls {
        callers.push((call.operations.len(), call.answer));
        operations.extend(call.operations);
    }
    let matched = shared.matcher.lock().clone().and_then(|matcher| {
        let before = operations.len();
        let room = (ENTRY_OPERATIONS - before).min(MATCHER_ROOM);
        matcher.fill(&mut operations, room);
        assert!(operations.len() <= before + room, "a matcher keeps to the room it is given");
        (operations.len() > before).then(|| (operations[before..].to_vec(), matcher))
    });
    if operations.is_empty() {
        return None;
    }
    shared.measured.entries.inc();
    shared.measured.entry_operations.observe(operations.len() as f64);
    Some((Entry { time: shared.stamp(), operations }, Flight { callers, matched, since: Instant::now() }))
}

/// Encodes the entry and gives it its place in the log. Returns false if the group has stopped: a matcher would fill one
/// entry after another for it, and the end of the leadership would never be seen.
async fn launch<C: Proposable>(
    shared: &Shared<C>,
    entry: Entry<C>,
    flight: Flight<C>,
    in_flight: &mut InFlight<C>,
) -> bool {
    let payload = match C::encode(&entry) {
        Ok(payload) => payload,
        Err(error) => {
            flight.fail(&error);
            return true;
        }
    };
    drop(entry);
    if payload.len() > Group::MAX_PAYLOAD {
        flight.fail(&Error::too_large("the call", Group::MAX_PAYLOAD, payload.len()));
        return true;
    }
    match shared.group.submit(payload).await {
        Ok(pending) => {
            in_flight.push_back(Box::pin(async move { (flight, pending.await) }));
            true
        }
        Err(error) => {
            flight.fail(&error.into());
            false
        }
    }
}
