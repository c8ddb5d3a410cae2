//! The leader loop: it exists only while this node leads control.
//!
//! It matches off the log and commits on the log. The proposer asks it for grants whenever it forms an entry; what the
//! entry came to arrives as effects, and only then does an agent get its task. Heartbeats and routes live in its
//! [`Roster`] alone and never enter the log.
//!
//! Invariants:
//! - An agent is told of a grant only after the grant is applied here.
//! - A heartbeat is acknowledged, and an attach answered, only while a quorum has acknowledged this leader within its lease.
//! - Nothing outlives the leadership: the relay streams end, and every node tells the next leader what its sessions hold.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_api::v1;
use quorate_raft::{Leadership, NodeId};
use quorate_state::control::{Command, Control, Effect, Reply, TaskState, TaskView};
use quorate_state::{LogTime, Operation, Reject, SessionId, TaskId};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::frames::{Down, Gone, SessionCancel, SessionGrant};
use super::link::Outbox;
use super::metrics::TaskMetrics;
use super::roster::{Delivery, LinkId, Roster};
use super::wire;
use crate::context::Context;
use crate::control::Applied;
use crate::error::{Error, ErrorReason};
use crate::proposer::Matcher;

/// How often the leader looks for sessions that are due and for grants that nothing else has asked for.
const TICK: Duration = Duration::from_millis(100);
/// Every how many ticks the gauges are set.
const GAUGE_TICKS: u64 = 20;
/// Batches of effects that are performed at once at most.
const EFFECT_BATCHES: usize = 64;

/// The leader's side of all sessions.
pub(super) struct Leader {
    pub(super) context: Context,
    pub(super) metrics: Arc<TaskMetrics>,
    book: Mutex<Book>,
    /// Cancelled when the leadership is lost.
    pub(super) over: CancellationToken,
}

/// What the leader keeps in memory.
pub(super) struct Book {
    pub(super) roster: Roster,
    links: HashMap<LinkId, Link>,
    next_link: u64,
}

struct Link {
    node: NodeId,
    outbox: Arc<Outbox>,
}

/// Frames for nodes, gathered under the book's lock and sent after it is released.
pub(super) type Posts = BTreeMap<LinkId, Down>;

impl Leader {
    pub(super) fn new(context: Context, metrics: Arc<TaskMetrics>) -> Leader {
        let now = Instant::now();
        let roster = context.control.read(|state| Roster::new(state, now));
        let book = Book { roster, links: HashMap::new(), next_link: 0 };
        Leader { context, metrics, book: Mutex::new(book), over: CancellationToken::new() }
    }

    /// Whether a quorum has acknowledged this leader within its lease, so that no other one has decided anything since.
    pub(super) fn is_confirmed(&self) -> bool {
        self.context.control.group().is_some_and(|group| group.lease_valid())
    }

    /// Runs `change` on the book, then sends what it wants sent.
    pub(super) fn with_book<R>(&self, change: impl FnOnce(&mut Book, &mut Posts) -> R) -> R {
        let mut posts = Posts::new();
        let result = change(&mut self.book.lock(), &mut posts);
        self.send(posts);
        result
    }

    pub(super) fn send(&self, posts: Posts) {
        if posts.is_empty() {
            return;
        }
        let book = self.book.lock();
        let sends: Vec<_> =
            posts.into_iter().filter_map(|(link, down)| Some((book.links.get(&link)?.outbox.clone(), down))).collect();
        drop(book);
        for (outbox, down) in sends {
            outbox.post(down);
        }
    }

    /// Takes a node's relay stream into the book.
    pub(super) fn add_link(&self, node: NodeId, outbox: Arc<Outbox>) -> LinkId {
        let mut book = self.book.lock();
        book.next_link += 1;
        let link = LinkId(book.next_link);
        book.links.insert(link, Link { node, outbox });
        link
    }

    /// The node's relay stream has ended.
    pub(super) fn remove_link(&self, link: LinkId) {
        let mut book = self.book.lock();
        book.links.remove(&link);
        book.roster.unlink(link);
    }

    /// Which node holds the stream of each session.
    pub(super) fn places(&self) -> Vec<(SessionId, NodeId)> {
        let sessions: Vec<SessionId> =
            self.context.control.read(|state| state.sessions().map(|view| view.id).collect());
        let book = self.book.lock();
        sessions
            .into_iter()
            .filter_map(|session| Some((session, book.links.get(&book.roster.route(session)?.link)?.node)))
            .collect()
    }

    /// When a failed attempt may be followed by the next one: exponential, with jitter over the upper half.
    pub(super) fn retry_at(&self, task: TaskId) -> Option<LogTime> {
        let (failures, retry) =
            self.context.control.read(|state| state.task(task).map(|view| (view.failures, view.retry)))?;
        let pause_ms = backoff_ms(failures, u64::from(retry.backoff_ms), u64::from(retry.max_backoff_ms));
        Some(self.context.control.log_time().plus_ms(jitter(pause_ms)))
    }

    /// Sends committed attempts to their sessions' agents.
    pub(super) fn deliver(&self, deliveries: &[Delivery]) {
        if deliveries.is_empty() {
            return;
        }
        let views: Vec<Option<TaskView>> =
            self.context.control.read(|state| deliveries.iter().map(|delivery| state.task(delivery.task)).collect());
        let payloads = match self.payloads(deliveries) {
            Ok(payloads) => payloads,
            Err(error) => {
                self.cannot_read(&error);
                return;
            }
        };
        let now = self.context.control.log_time();
        let mut posts = Posts::new();
        for ((delivery, view), payload) in deliveries.iter().zip(views).zip(payloads) {
            let current = |view: &TaskView| view.state == TaskState::Granted && view.token == Some(delivery.token);
            let Some(view) = view.filter(current) else { continue };
            // The state may be ahead of the rows. Every granted task has the row of its payload, also an empty one; where
            // that is still to be written, the effect of the grant is still to come too, and delivers it.
            let Some(payload) = payload else { continue };
            self.observe_dispatch(&view, now);
            let grant = v1::Grant {
                task_id: delivery.task.0,
                token: Some(wire::token_to_wire(delivery.token)),
                queue: view.queue.to_string(),
                role: view.role.to_string(),
                payload,
                attempt: view.attempts,
                enqueued_at_us: wire::time_to_wire(view.created),
            };
            let item = SessionGrant { session: delivery.session.0, grant: Some(grant) };
            posts.entry(delivery.link).or_default().grants.push(item);
        }
        self.send(posts);
    }

    /// The attempts stay with their sessions, and go out when these attach to the next leader.
    fn cannot_read(&self, error: &io::Error) {
        let reason = format!("this node leads and cannot read the payloads of granted tasks: {error}");
        tracing::error!("{reason}");
        self.over.cancel();
        // A damaged replica goes out of service by itself, and one that is being taken out is closed. Otherwise this node would
        // lead on without being able to hand out what it grants.
        if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotConnected) {
            self.context.fault.send_replace(Some(reason));
        }
    }

    pub(super) fn payloads(&self, deliveries: &[Delivery]) -> io::Result<Vec<Option<bytes::Bytes>>> {
        let keys: Vec<_> = deliveries.iter().map(|delivery| Control::task_payload_key(delivery.task)).collect();
        let Some(&(table, _)) = keys.first() else { return Ok(Vec::new()) };
        let keys: Vec<&[u8]> = keys.iter().map(|(_, key)| key.as_slice()).collect();
        self.context.control.rows(table, &keys)
    }

    fn observe_dispatch(&self, view: &TaskView, now: LogTime) {
        if view.attempts == 1 {
            self.metrics.dispatched(seconds_between(view.created, now));
        }
    }

    /// Does what a batch of entries asks for.
    fn perform(&self, batches: &[Option<Applied>]) {
        let now = Instant::now();
        let mut deliveries = Vec::new();
        let mut finished = Vec::new();
        let wake = self.with_book(|book, posts| {
            let mut wake = false;
            for batch in batches {
                // Without a batch some were missed; then, as after a snapshot, only the state itself tells.
                let Some(batch) = batch.as_ref().filter(|batch| !batch.reloaded) else {
                    let missing = self.context.control.read(|state| book.roster.resynchronise(state, now));
                    deliveries.extend(missing);
                    wake = true;
                    continue;
                };
                for effect in batch.effects.iter() {
                    self.note(effect, now, book, posts, &mut finished);
                    deliveries.extend(book.roster.observe(effect));
                    wake |= asks_for_grants(effect, &book.roster);
                }
            }
            wake && book.roster.has_idle()
        });
        if wake {
            self.context.control.wake_matcher();
        }
        self.deliver(&deliveries);
        self.count_finished(&finished);
    }

    /// What an effect asks for before the roster takes it in.
    fn note(
        &self,
        effect: &Effect,
        now: Instant,
        book: &mut Book,
        posts: &mut Posts,
        finished: &mut Vec<(TaskId, TaskState)>,
    ) {
        match *effect {
            Effect::Granted { .. } => self.metrics.granted(),
            Effect::Finished { task, state } => finished.push((task, state)),
            Effect::AttemptLost { session, task, token } => {
                self.metrics.attempt_lost();
                if let Some(route) = book.roster.route(session) {
                    let cancel = v1::CancelAttempt { task_id: task.0, token: Some(wire::token_to_wire(token)) };
                    let item = SessionCancel { session: session.0, cancel: Some(cancel) };
                    posts.entry(route.link).or_default().cancels.push(item);
                }
            }
            Effect::SessionOpened { session } => {
                if let Some(view) = self.context.control.read(|state| state.session(session)) {
                    book.roster.admit(&view, now);
                }
            }
            Effect::SessionEnded { session } => {
                if let Some(route) = book.roster.route(session) {
                    posts.entry(route.link).or_default().gone.push(session_over(session));
                }
            }
            _ => {}
        }
    }

    fn count_finished(&self, finished: &[(TaskId, TaskState)]) {
        if finished.is_empty() {
            return;
        }
        let now = self.context.control.log_time();
        self.context.control.read(|state| {
            for &(task, end) in finished {
                self.metrics.finished(end);
                if let (TaskState::Completed, Some(view)) = (end, state.task(task)) {
                    self.metrics.completed_after(seconds_between(view.created, now));
                }
            }
        });
    }

    /// Looks after what no event announces: silent sessions, due retries, and slots that a lost proposal left free.
    fn tick(&self) {
        let now = Instant::now();
        let log_time = self.context.control.log_time();
        let (expired, idle) = self.with_book(|book, _| (book.roster.due(now), book.roster.has_idle()));
        #[cfg(feature = "planted")]
        let expired = self.end_silently(expired);
        let (due, ready) = self
            .context
            .control
            .read(|state| (state.next_due().is_some_and(|due| due <= log_time), state.roles_ready().next().is_some()));
        let mut operations: Vec<Operation<Command>> =
            expired.iter().map(|&session| Operation::new(Command::ExpireSession { session })).collect();
        if !expired.is_empty() {
            self.metrics.expired(expired.len());
            tracing::info!(sessions = expired.len(), "sessions fell silent: expiring them");
        }
        if due {
            operations.push(Operation::new(Command::Tick));
        }
        if operations.is_empty() {
            if idle && ready {
                self.context.control.wake_matcher();
            }
            return;
        }
        for part in operations.chunks(1_000) {
            // The answers come as effects, and what is refused or lost is due again at a later tick.
            if let Err(error) = self.context.control.submit(part.to_vec()) {
                tracing::debug!(%error, "cannot propose what is due; trying again");
            }
        }
    }

    /// How long until a waiting task is due, if one is due before the next tick.
    fn until_due(&self) -> Option<Duration> {
        let due = self.context.control.read(|state| state.next_due())?;
        let wait = due.0.saturating_sub(self.context.control.log_time().0);
        // A tick that is under way is not proposed again at once.
        Some(Duration::from_micros(wait).max(Duration::from_millis(5))).filter(|wait| *wait < TICK)
    }

    fn set_gauges(&self) {
        let sessions = self.book.lock().roster.len();
        self.context.control.read(|state| {
            let ready: Vec<_> = state.queues().map(|counts| (counts.queue, counts.ready)).collect();
            self.metrics.set_gauges(sessions, ready.iter().map(|(queue, ready)| (&**queue, *ready)));
        });
    }

    async fn run(&self, leadership: &mut watch::Receiver<Leadership>, mut effects: broadcast::Receiver<Applied>) {
        let term = leadership.borrow().term;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0_u64;
        let mut batches = Vec::new();
        loop {
            let due = self.until_due();
            tokio::select! {
                biased;
                () = self.context.shutdown.cancelled() => return,
                () = self.over.cancelled() => return,
                changed = leadership.changed() => {
                    let now = leadership.borrow();
                    if changed.is_err() || !now.mine || now.term != term { return }
                }
                received = effects.recv() => {
                    match received {
                        Ok(applied) => batches.push(Some(applied)),
                        Err(RecvError::Lagged(_)) => batches.push(None),
                        Err(RecvError::Closed) => return,
                    }
                    while batches.len() < EFFECT_BATCHES {
                        match effects.try_recv() {
                            Ok(applied) => batches.push(Some(applied)),
                            Err(TryRecvError::Lagged(_)) => batches.push(None),
                            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                        }
                    }
                    self.perform(&batches);
                    batches.clear();
                }
                _ = ticks.tick() => {
                    count += 1;
                    self.tick();
                    if count % GAUGE_TICKS == 1 { self.set_gauges() }
                }
                () = sleep(due.unwrap_or(TICK)), if due.is_some() => self.tick(),
            }
        }
    }
}

/// Leads whenever control makes this node its leader, until the node stops. `current` is where the rest finds the leader.
pub(super) async fn run(context: Context, metrics: Arc<TaskMetrics>, current: watch::Sender<Option<Arc<Leader>>>) {
    let mut leadership = context.control.leadership();
    loop {
        if leadership.borrow_and_update().mine {
            // Subscribing comes first: what is applied between the two is seen twice, which does no harm.
            let effects = context.control.effects();
            let leader = Arc::new(Leader::new(context.clone(), metrics.clone()));
            context.control.set_matcher(Some(Arc::new(Matching(leader.clone()))));
            current.send_replace(Some(leader.clone()));
            leader.run(&mut leadership, effects).await;
            current.send_replace(None);
            context.control.set_matcher(None);
            leader.over.cancel();
            metrics.set_gauges(0, std::iter::empty());
            if leader.context.shutdown.is_cancelled() {
                return;
            }
            // A leader that gave up while it still leads begins anew.
            if leadership.borrow().mine {
                sleep(TICK).await;
                continue;
            }
        }
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            changed = leadership.changed() => if changed.is_err() { return },
        }
    }
}

/// The leader as the proposer sees it.
struct Matching(Arc<Leader>);

impl Matcher for Matching {
    fn fill(&self, entry: &mut Vec<Operation<Command>>, room: usize) {
        if self.0.over.is_cancelled() {
            return;
        }
        #[cfg(feature = "planted")]
        let before = entry.len();
        let mut book = self.0.book.lock();
        self.0.context.control.read(|state| book.roster.fill(entry, room, state));
        drop(book);
        #[cfg(feature = "planted")]
        self.0.grant_early(&entry[before..]);
    }

    fn settled(&self, _pushed: &[Operation<Command>], outcome: Result<&[Result<Reply, Reject>], &Error>) {
        let granted: Option<Vec<bool>> = outcome.ok().map(|replies| replies.iter().map(Result::is_ok).collect());
        let freed = self.0.book.lock().roster.settle(granted.as_deref());
        // After an unknown outcome the next tick looks again, so that a lost quorum is not hammered.
        if freed && granted.is_some() {
            self.0.context.control.wake_matcher();
        }
    }
}

fn asks_for_grants(effect: &Effect, roster: &Roster) -> bool {
    match effect {
        Effect::TasksReady { roles } => roles.iter().any(|role| roster.has_idle_for(role)),
        Effect::AttemptEnded { .. } | Effect::AttemptLost { .. } => true,
        _ => false,
    }
}

/// Tells a node that the session is over, whichever stream it has.
pub(super) fn session_over(session: SessionId) -> Gone {
    let error = Error::new(ErrorReason::SessionNotFound, format!("session {session} is over"));
    Gone { session: session.0, attachment: u64::MAX, error: Some(error.to_wire()) }
}

/// The pause after the failure that follows `failures` earlier ones, in milliseconds: doubled each time, bounded.
fn backoff_ms(failures: u32, first_ms: u64, longest_ms: u64) -> u64 {
    first_ms.saturating_mul(1_u64.checked_shl(failures.min(32)).unwrap_or(u64::MAX)).min(longest_ms)
}

/// A random time in the upper half of the pause, so that tasks that failed together do not come back together.
fn jitter(pause_ms: u64) -> u64 {
    rand::random_range(pause_ms / 2..=pause_ms)
}

fn seconds_between(from: LogTime, to: LogTime) -> f64 {
    Duration::from_micros(to.0.saturating_sub(from.0)).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_up_to_its_bound() {
        let pauses: Vec<u64> = (0..5).map(|failures| backoff_ms(failures, 500, 3_000)).collect();
        assert_eq!(pauses, vec![500, 1_000, 2_000, 3_000, 3_000]);
        assert_eq!(backoff_ms(u32::MAX, 500, 60_000), 60_000);
        assert_eq!(backoff_ms(3, 0, 60_000), 0);
    }

    #[test]
    fn jitter_stays_in_the_upper_half() {
        for _ in 0..1_000 {
            assert!((250..=500).contains(&jitter(500)));
        }
        assert_eq!(jitter(0), 0);
    }
}
