//! From any node to the replica that can do the work: writes to the shard's leader, reads to a replica that is near.
//!
//! A write is sent again, with the same request id, until it is answered or the deadline passes: a leader that moved, a
//! connection that broke and a lost leadership are not the caller's business. What is answered at the deadline says
//! whether the write may have been applied. A read goes to this node's own replica if there is one, else to the others in
//! turn.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_raft::{Leadership, NodeId};
use quorate_state::control::{CollectionState, Control, ReplicaState};
use quorate_state::shard::Command;
use quorate_state::{CollectionId, Operation, ShardId, codec};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::Inner;
use super::wire::{ShardCall, What, WriteAnswer};
use crate::error::{Error, ErrorReason};
use crate::peers::kind;

/// The longest that one attempt on one node may take; longer means that the node is gone or cut off.
const ATTEMPT: Duration = Duration::from_secs(2);
/// The longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_millis(160);
/// The first wait between two attempts.
const BACKOFF_MIN: Duration = Duration::from_millis(10);

/// Where a write may be proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Here,
    At(NodeId),
    Nowhere,
}

/// The collection that a call means: its number and the generation of its making.
type Meant = (CollectionId, u64);

/// The attempts at one call.
struct Attempts {
    is_write: bool,
    deadline: Instant,
    backoff: Duration,
    last: Option<Error>,
    /// Whether an attempt at a write may have had an effect.
    uncertain: bool,
    /// Since control was asked if the route is stale: up to where the answer holds.
    asked_control: Option<u64>,
}

impl Attempts {
    fn at_write(deadline: Instant) -> Attempts {
        let backoff = BACKOFF_MIN;
        Attempts { is_write: true, deadline, backoff, last: None, uncertain: false, asked_control: None }
    }

    fn at_read(deadline: Instant) -> Attempts {
        Attempts { is_write: false, ..Attempts::at_write(deadline) }
    }

    /// The end of the attempt that begins now.
    fn end(&self) -> Instant {
        self.deadline.min(Instant::now() + ATTEMPT)
    }

    /// Takes note of a failure. Returns what to answer if no other attempt can help.
    fn note(&mut self, error: Error) -> Result<(), Error> {
        // A write that was applied and whose answer is damaged ends as INTERNAL too.
        self.uncertain |= self.is_write && matches!(error.reason, ErrorReason::OutcomeUnknown | ErrorReason::Internal);
        // A replica whose rows or index are damaged does not speak for the others.
        let another_replica = !self.is_write && error.reason == ErrorReason::Internal;
        if !another_replica && !may_pass(error.reason) {
            return Err(self.last_word(error));
        }
        self.last = Some(error);
        Ok(())
    }

    /// What to answer when an attempt ended with `error` and there is no other: a refusal says that nothing was done only
    /// if no attempt before it may have done something.
    fn last_word(&self, error: Error) -> Error {
        if !self.uncertain {
            return error;
        }
        let message = format!("an attempt at the write was not confirmed, and the last one failed ({})", error.message);
        Error { retry_after: error.retry_after, ..Error::new(ErrorReason::OutcomeUnknown, message) }
    }

    /// How long to wait before the next attempt; nothing when that would be past the deadline.
    fn pause(&mut self, now: Instant) -> Option<Duration> {
        let pause = self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        (now + pause < self.deadline).then_some(pause)
    }

    /// What to answer when no time is left.
    fn failure(self, shard: ShardId) -> Error {
        let why = match self.last {
            Some(error) if error.reason == ErrorReason::Internal && !self.uncertain => return error,
            Some(error) => error.message,
            None => "no time was left to ask a replica".to_owned(),
        };
        if self.uncertain {
            let message = format!(
                "shard {} did not confirm the write in time, it may have been applied or not; retry with the same \
                 request id ({why})",
                shard.0
            );
            return Error::new(ErrorReason::OutcomeUnknown, message).with("shard", shard.0);
        }
        unavailable(shard, &why)
    }
}

/// The collection that a command is for, if it can be refused for meaning one that is not there.
fn written_to(command: &Command) -> Option<Meant> {
    match command {
        Command::Upsert { collection, generation, .. } | Command::Delete { collection, generation, .. } => {
            Some((*collection, *generation))
        }
        Command::PutCollection { .. } | Command::DropCollection { .. } => None,
    }
}

/// The same for a read.
fn read_from(what: &What) -> Option<Meant> {
    match what {
        What::Get(call) => Some((CollectionId(call.collection), call.generation)),
        What::Search(call) => Some((CollectionId(call.collection), call.generation)),
        What::Write(_) | What::Stats(_) => None,
    }
}

/// The shard does not answer; nothing was done.
pub(super) fn unavailable(shard: ShardId, why: &str) -> Error {
    let message = format!("shard {} does not answer now; retry, and look at `quorate cluster status` ({why})", shard.0);
    Error::new(ErrorReason::ShardUnavailable, message).with("shard", shard.0).retry_after(Duration::from_millis(200))
}

/// Whether another attempt, perhaps on another node, may succeed.
fn may_pass(reason: ErrorReason) -> bool {
    matches!(
        reason,
        ErrorReason::NotLeader
            | ErrorReason::NoLeader
            | ErrorReason::OutcomeUnknown
            | ErrorReason::ShardUnavailable
            | ErrorReason::StaleRoute
            | ErrorReason::NodeNotFound
            | ErrorReason::ShuttingDown
    )
}

impl Inner {
    /// Has `operation` proposed by the shard's leader and answers what it came to. The operation must be safe to be
    /// proposed twice: it carries a request id, or it is idempotent by itself. `STALE_ROUTE` means that nothing was done
    /// and that this node knows by now that the collection is gone.
    pub(super) async fn write(
        &self,
        shard: ShardId,
        operation: &Operation<Command>,
        deadline: Instant,
    ) -> Result<WriteAnswer, Error> {
        let mut encoded: Option<Bytes> = None;
        let meant = written_to(&operation.command);
        let mut attempts = Attempts::at_write(deadline);
        let mut hinted = false;
        loop {
            let end = attempts.end();
            let target = self.leader_of(shard);
            let outcome = match target {
                Target::Here => match timeout_at(end, self.propose_here(shard, operation.clone())).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(Error::unknown()),
                },
                Target::At(node) => {
                    if encoded.is_none() {
                        encoded = Some(codec::encode(operation).map_err(|error| Error::internal(error.to_string()))?);
                    }
                    let what = What::Write(encoded.clone().unwrap_or_default());
                    tokio::select! {
                        outcome = self.call(node, shard, what, end) => outcome,
                        () = self.led_by_another(shard, node) => Err(Error::unknown()),
                    }
                }
                Target::Nowhere => Err(Error::no_leader()),
            };
            match outcome {
                Ok(answer) => {
                    if let Target::At(node) = target {
                        self.hints.lock().insert(shard, node);
                    }
                    return Ok(answer);
                }
                Err(error) => {
                    // A hint is followed at once, unless it only follows another: two nodes may name each other.
                    hinted = self.learn(shard, &error) && !hinted;
                    self.note(&mut attempts, meant, error).await?;
                    let Some(pause) = attempts.pause(Instant::now()) else { return Err(attempts.failure(shard)) };
                    if !hinted {
                        self.wait_for_leader(shard, pause).await;
                    }
                }
            }
        }
    }

    /// Asks a replica of the shard, this node's own first, until one answers. `STALE_ROUTE` is as for a write, and
    /// `INTERNAL` means that the index of every replica is damaged, or of the last that was asked in time.
    pub(super) async fn ask<A: Message + Default>(
        &self,
        shard: ShardId,
        what: &What,
        deadline: Instant,
    ) -> Result<A, Error> {
        let meant = read_from(what);
        let mut attempts = Attempts::at_read(deadline);
        loop {
            let readers = self.readers(shard);
            let mut damaged = 0;
            for node in &readers {
                let (node, end) = (*node, attempts.end());
                let outcome = if node == self.context.node {
                    timeout_at(end, self.answer_here(shard, what.clone(), end))
                        .await
                        .unwrap_or_else(|_| Err(unavailable(shard, "the replica was too slow")))
                        .and_then(|bytes| A::decode(bytes).map_err(|error| Error::internal(error.to_string())))
                } else {
                    self.call(node, shard, what.clone(), end).await
                };
                match outcome {
                    Ok(answer) => return Ok(answer),
                    Err(error) => {
                        damaged += usize::from(error.reason == ErrorReason::Internal);
                        self.note(&mut attempts, meant, error).await?;
                    }
                }
                if Instant::now() >= deadline {
                    break;
                }
            }
            if damaged > 0 && damaged == readers.len() {
                return Err(attempts.failure(shard));
            }
            let Some(pause) = attempts.pause(Instant::now()) else { return Err(attempts.failure(shard)) };
            self.wait_for_leader(shard, pause).await;
        }
    }

    /// Takes note of a failed attempt. Returns what to answer if no other can help.
    async fn note(&self, attempts: &mut Attempts, meant: Option<Meant>, error: Error) -> Result<(), Error> {
        if let Some(meant) = meant.filter(|_| error.reason == ErrorReason::StaleRoute)
            && self.is_gone(meant, attempts).await
        {
            return Err(attempts.last_word(error));
        }
        attempts.note(error)
    }

    /// A shard does not have the collection: whether that is so because it is deleted. Else the replica is behind, and
    /// will have it. What this node knows may be old, so control is asked, once for a call.
    async fn is_gone(&self, (id, generation): Meant, attempts: &mut Attempts) -> bool {
        let control = &self.context.control;
        let since = match attempts.asked_control {
            Some(position) => position,
            None => {
                let left = attempts.end().saturating_duration_since(Instant::now());
                control.read_barrier(left).await.unwrap_or_else(|error| {
                    tracing::debug!(%error, "whether a collection is gone is told by what this node knows");
                    // The position at which it was made: who is not there yet knows nothing of it.
                    generation
                })
            }
        };
        attempts.asked_control = Some(since);
        let is_gone = control.read_since(since, |control| {
            let found = control.collection_by_id(id).filter(|found| found.state != CollectionState::Deleting);
            found.is_none_or(|found| found.generation != generation)
        });
        // Who knows nothing any more does not know that it is gone.
        is_gone.unwrap_or(false)
    }

    /// Sends one call to one node.
    async fn call<A: Message + Default>(
        &self,
        node: NodeId,
        shard: ShardId,
        what: What,
        end: Instant,
    ) -> Result<A, Error> {
        let budget = end.saturating_duration_since(Instant::now());
        let budget_ms = u64::try_from(budget.as_millis()).unwrap_or(u64::MAX).max(1);
        let frame = ShardCall { shard: shard.0, budget_ms, what: Some(what) }.encode_to_vec();
        let answer = self.context.peers.call(node, kind::SHARD_CALL, frame.into(), budget).await?;
        A::decode(answer).map_err(|error| Error::internal(format!("node {node} answered what is no answer: {error}")))
    }

    /// Returns when this node's replica learns that the lead has gone to another node. Does not return where there is no
    /// replica.
    async fn led_by_another(&self, shard: ShardId, node: NodeId) {
        match self.running(shard) {
            Some(running) => leads_no_more(running.group.leadership(), node).await,
            None => std::future::pending().await,
        }
    }

    /// Where the shard's leader is, as far as this node can tell: it leads itself, or a node was named by a refusal or
    /// answered the last write, or this node's replica knows, or any replica may know.
    fn leader_of(&self, shard: ShardId) -> Target {
        let here = self.context.node;
        let hint = self.hints.lock().remove(&shard).filter(|node| *node != here);
        let leadership = self.running(shard).map(|running| running.group.leadership().borrow().clone());
        let leadership = leadership.unwrap_or_default();
        if leadership.mine {
            return Target::Here;
        }
        if let Some(node) = hint {
            return Target::At(node);
        }
        match leadership.leader {
            // Elected, and not yet ready to lead.
            Some((_, member)) if member.node == here => Target::Nowhere,
            Some((_, member)) => Target::At(member.node),
            None => self.readers(shard).into_iter().find(|node| *node != here).map_or(Target::Nowhere, Target::At),
        }
    }

    /// Keeps the leader that a refusal named, for the next attempt. Whether it named one.
    fn learn(&self, shard: ShardId, error: &Error) -> bool {
        let named = error.metadata.get("leader_node").and_then(|node| u64::from_str_radix(node, 16).ok());
        match named.filter(|_| error.reason == ErrorReason::NotLeader) {
            Some(node) => {
                self.hints.lock().insert(shard, NodeId(node));
                true
            }
            None => false,
        }
    }

    /// Waits until the leadership of the shard changes, as far as this node sees it, or for `pause`.
    async fn wait_for_leader(&self, shard: ShardId, pause: Duration) {
        let end = Instant::now() + pause;
        match self.running(shard) {
            Some(running) => {
                let mut leadership = running.group.leadership();
                leadership.mark_unchanged();
                if let Ok(Err(_)) = timeout_at(end, leadership.changed()).await {
                    // The group stops here; its other replicas are asked after the pause.
                    tokio::time::sleep_until(end).await;
                }
            }
            None => tokio::time::sleep_until(end).await,
        }
    }

    /// The nodes that can answer reads of the shard: this one first, the others in turn.
    fn readers(&self, shard: ShardId) -> Vec<NodeId> {
        let mut nodes = self.context.control.read(|control| holders(control, shard));
        let turn = self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if !nodes.is_empty() {
            let by = turn % nodes.len();
            nodes.rotate_left(by);
        }
        if let Some(here) = nodes.iter().position(|node| *node == self.context.node) {
            if self.running(shard).is_some() {
                nodes[..=here].rotate_right(1);
            } else {
                nodes.remove(here);
            }
        }
        nodes
    }
}

/// The nodes with a replica that has the shard's data: those that only join may be far behind, and are a last resort.
fn holders(control: &Control, shard: ShardId) -> Vec<NodeId> {
    let Some(record) = control.shard(shard) else { return Vec::new() };
    let with = |wanted: fn(&ReplicaState) -> bool| {
        record.replicas.iter().filter(move |replica| wanted(&replica.state)).map(|replica| NodeId(replica.node.0))
    };
    let mut nodes: Vec<NodeId> = with(|state| *state == ReplicaState::Voter).collect();
    if nodes.is_empty() {
        nodes.extend(with(|state| *state != ReplicaState::Voter));
    }
    nodes
}

/// Returns when the lead goes to another node than `node`: that one may never answer any more, as it has lost the lead and
/// perhaps the network with it. What was known before counts for nothing: the call may go to `node` because that said so.
async fn leads_no_more(mut leadership: watch::Receiver<Leadership>, node: NodeId) {
    leadership.mark_unchanged();
    while leadership.changed().await.is_ok() {
        if leadership.borrow_and_update().leader.as_ref().is_some_and(|(_, member)| member.node != node) {
            return;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use quorate_raft::Member;
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn a_failure_at_the_deadline_says_whether_the_write_may_have_been_applied() {
        let shard = ShardId(4);
        let mut attempts = Attempts::at_write(Instant::now() + Duration::from_secs(1));
        attempts.note(Error::no_leader()).expect("another attempt may help");
        let error = attempts.failure(shard);
        assert_eq!(error.reason, ErrorReason::ShardUnavailable);
        assert_eq!(error.metadata["shard"], "4");

        let mut attempts = Attempts::at_write(Instant::now() + Duration::from_secs(1));
        attempts.note(Error::unknown()).expect("another attempt may help");
        attempts.note(Error::no_leader()).expect("another attempt may help");
        assert_eq!(attempts.failure(shard).reason, ErrorReason::OutcomeUnknown);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_when_another_node_leads() {
        let led_by = |node: u64| Leadership {
            leader: Some((node, Member { node: NodeId(node), address: String::new() })),
            ..Leadership::default()
        };
        let (known, leadership) = watch::channel(led_by(1));
        let call = leads_no_more(leadership, NodeId(2));
        tokio::pin!(call);
        let brief = Duration::from_millis(1);
        assert!(timeout(brief, &mut call).await.is_err(), "what was known before the call counts for nothing");
        known.send_replace(Leadership::default());
        known.send_replace(led_by(2));
        assert!(timeout(brief, &mut call).await.is_err());
        known.send_replace(led_by(3));
        assert!(timeout(brief, &mut call).await.is_ok());
    }

    #[test]
    fn attempts_pause_longer_each_time_and_end_before_the_deadline() {
        let mut now = Instant::now();
        let deadline = now + Duration::from_millis(800);
        let mut attempts = Attempts::at_write(deadline);
        let mut pauses = Vec::new();
        while let Some(pause) = attempts.pause(now) {
            pauses.push(pause);
            now += pause;
        }
        assert!(pauses.is_sorted() && now < deadline);
        assert_eq!((pauses.first(), pauses.last()), (Some(&BACKOFF_MIN), Some(&BACKOFF_MAX)));
    }

    #[test]
    fn a_refusal_that_no_other_node_can_lift_ends_the_attempts() {
        let mut attempts = Attempts::at_write(Instant::now());
        let refusal = Error::invalid("vector", "planted");
        assert_eq!(attempts.note(refusal.clone()), Err(refusal));
        assert!(!may_pass(ErrorReason::Overloaded), "shedding must reach the caller");
    }

    #[test]
    fn a_refusal_after_an_attempt_without_an_answer_does_not_say_that_nothing_was_done() {
        let shed = Error::overloaded(Duration::from_millis(70));
        let refusals = [shed.clone(), Error::internal("planted"), Error::new(ErrorReason::RequestExpired, "planted")];
        for refusal in refusals {
            let mut attempts = Attempts::at_write(Instant::now());
            attempts.note(Error::unknown()).expect("another attempt may help");
            let error = attempts.note(refusal.clone()).expect_err("no other attempt helps");
            assert_eq!((error.reason, error.retry_after), (ErrorReason::OutcomeUnknown, refusal.retry_after));
        }
        let mut attempts = Attempts::at_write(Instant::now());
        attempts.note(Error::no_leader()).expect("another attempt may help");
        assert_eq!(attempts.note(shed.clone()), Err(shed), "nothing was proposed");
    }

    #[test]
    fn a_write_whose_answer_is_damaged_may_have_been_applied() {
        let mut attempts = Attempts::at_write(Instant::now());
        let error = attempts.note(Error::internal("planted")).expect_err("no other attempt helps");
        assert_eq!(error.reason, ErrorReason::OutcomeUnknown);
        assert!(error.message.contains("planted"), "{error}");
    }

    #[test]
    fn a_read_passes_over_a_damaged_replica_and_tells_of_it_in_the_end() {
        let mut attempts = Attempts::at_read(Instant::now());
        attempts.note(Error::unknown()).expect("another attempt may help");
        let damaged = Error::internal("planted");
        attempts.note(damaged.clone()).expect("another replica may be whole");
        let refusal = Error::invalid("vector", "planted");
        assert_eq!(attempts.note(refusal.clone()), Err(refusal), "a read has no effect that could be unknown");
        assert_eq!(attempts.failure(ShardId(4)), damaged);
    }
}
