//! Operations for control that were asked of a node which does not lead.
//!
//! They are gathered into frames in the same closed loop as the leader's entries: at most [`FRAMES_IN_FLIGHT`] frames are
//! under way, and a frame takes everything that waits by then. So a follower costs the leader one call for many
//! operations under load, and nothing waits when there is none.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use quorate_raft::{Leadership, NodeId};
use quorate_state::control::{Command, Reply};
use quorate_state::{Entry, LogTime, Operation, Reject, codec};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{ControlHandle, Inner};
use crate::error::{Error, ErrorReason};
use crate::limits::{ENTRY_BYTES, OVERLOADED_RETRY_AFTER, QUEUED_OPERATIONS};
use crate::peers::{CallHandler, Peers, kind};
use crate::proposer::Proposable as _;

const FRAMES_IN_FLIGHT: usize = 4;
const FRAME_OPERATIONS: usize = 1_024;
/// How long one frame may take. A retry is for the caller to decide, whose deadline may be longer.
const FRAME_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

type Outcome = Result<Result<Reply, Reject>, Error>;

struct Waiting {
    operation: Operation<Command>,
    answer: oneshot::Sender<Outcome>,
}

/// The way to the leader for the operations of this node. Its task ends when it is dropped.
pub(super) struct Forwarder {
    queue: mpsc::Sender<Waiting>,
}

impl Forwarder {
    fn start(control: &ControlHandle) -> Forwarder {
        let (queue, waiting) = mpsc::channel(QUEUED_OPERATIONS);
        tokio::spawn(run(Arc::downgrade(&control.inner), waiting));
        Forwarder { queue }
    }

    fn submit(&self, operation: Operation<Command>) -> Result<oneshot::Receiver<Outcome>, Error> {
        let (answer, receiver) = oneshot::channel();
        match self.queue.try_send(Waiting { operation, answer }) {
            Ok(()) => Ok(receiver),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Error::overloaded(OVERLOADED_RETRY_AFTER)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Error::shutting_down()),
        }
    }
}

/// See [`ControlHandle::propose_anywhere`].
pub(super) async fn propose_anywhere(
    control: &ControlHandle,
    operation: Operation<Command>,
    deadline: Instant,
) -> Outcome {
    let mut leadership = control.leadership();
    let mut pause = FIRST_PAUSE;
    let mut maybe_applied = false;
    loop {
        leadership.mark_unchanged();
        let error = match timeout_at(deadline, propose_once(control, operation.clone())).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(error)) => error,
            Err(_) => return Err(Error::unknown()),
        };
        let unknown = error.reason == ErrorReason::OutcomeUnknown;
        maybe_applied |= unknown;
        let again = if unknown { operation.request.is_some() } else { is_about_leadership(&error) };
        // Without a group here another node is the one to ask, and sooner than this one can help.
        let again = again && control.group().is_some();
        let next_try = Instant::now() + pause;
        if !again || next_try >= deadline {
            return Err(if maybe_applied { Error::unknown() } else { error });
        }
        tokio::select! {
            () = sleep_until(next_try) => {}
            _ = leadership.changed() => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Another try may find a leader. An overloaded one is not asked again: its caller is to slow down.
fn is_about_leadership(error: &Error) -> bool {
    matches!(error.reason, ErrorReason::NotLeader | ErrorReason::NoLeader | ErrorReason::ShuttingDown)
}

async fn propose_once(control: &ControlHandle, operation: Operation<Command>) -> Outcome {
    if control.group().is_none() {
        return Err(control.absence());
    }
    if control.leads() {
        return one(control.propose(vec![operation]).await?);
    }
    let receiver = control.inner.forwarder.lock().get_or_insert_with(|| Forwarder::start(control)).submit(operation)?;
    receiver.await.unwrap_or_else(|_| Err(Error::unknown()))
}

fn one(replies: Vec<Result<Reply, Reject>>) -> Outcome {
    replies.into_iter().next().ok_or_else(|| Error::internal("an operation got no reply"))
}

async fn run(control: Weak<Inner>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut in_flight = FuturesUnordered::new();
    let mut gathered = Vec::new();
    let mut held = None;
    loop {
        tokio::select! {
            Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
            count = gather(&mut waiting, &mut gathered, &mut held), if in_flight.len() < FRAMES_IN_FLIGHT => {
                if count == 0 { break }
                let Some(inner) = control.upgrade() else { break };
                in_flight.push(send(ControlHandle { inner }, std::mem::take(&mut gathered)));
            }
        }
    }
    while in_flight.next().await.is_some() {}
}

/// Waits for one operation and takes what else is there, up to the size of a frame; 0 when the queue is closed. What does
/// not fit any more is held for the next frame. Cancellation loses nothing: nothing is awaited after the first one.
async fn gather(
    waiting: &mut mpsc::Receiver<Waiting>,
    gathered: &mut Vec<Waiting>,
    held: &mut Option<Waiting>,
) -> usize {
    let first = match held.take() {
        Some(first) => first,
        None => match waiting.recv().await {
            Some(first) => first,
            None => return 0,
        },
    };
    let mut bytes = first.operation.command.weight();
    gathered.push(first);
    while gathered.len() < FRAME_OPERATIONS {
        let Ok(next) = waiting.try_recv() else { break };
        bytes += next.operation.command.weight();
        if bytes > ENTRY_BYTES {
            *held = Some(next);
            break;
        }
        gathered.push(next);
    }
    gathered.len()
}

async fn send(control: ControlHandle, frame: Vec<Waiting>) {
    let (operations, answers): (Vec<_>, Vec<_>) =
        frame.into_iter().map(|waiting| (waiting.operation, waiting.answer)).unzip();
    let count = answers.len();
    match ask_leader(&control, operations).await {
        Ok(replies) if replies.len() == count => {
            for (answer, reply) in answers.into_iter().zip(replies) {
                // A caller that has gone does not need the answer.
                let _ = answer.send(Ok(reply));
            }
        }
        Ok(_) => fail(answers, &Error::internal("the leader's replies do not fit the frame")),
        Err(error) => fail(answers, &error),
    }
}

fn fail(answers: Vec<oneshot::Sender<Outcome>>, error: &Error) {
    for answer in answers {
        let _ = answer.send(Err(error.clone()));
    }
}

async fn ask_leader(
    control: &ControlHandle,
    operations: Vec<Operation<Command>>,
) -> Result<Vec<Result<Reply, Reject>>, Error> {
    if control.leads() {
        return control.propose(operations).await;
    }
    let leadership = control.leadership();
    let (leader, address) = control.leader().ok_or_else(Error::no_leader)?;
    if leader == control.inner.groups.identity().node {
        // This node leads but has not yet applied an entry of its own term.
        return Err(Error::no_leader());
    }
    let frame = codec::encode(&Entry { time: LogTime(0), operations }).map_err(Error::internal)?;
    let peers = Peers::new(control.inner.groups.clone(), control.clone());
    let call = peers.call_at(leader, &address, kind::CONTROL_PROPOSE, frame, FRAME_TIMEOUT);
    tokio::select! {
        answer = call => decode_replies(answer?),
        // The old leader may be cut off: its answer would come late or never.
        () = other_leader(leadership, leader) => Err(Error::unknown()),
    }
}

/// Resolves once another node leads.
async fn other_leader(mut leadership: watch::Receiver<Leadership>, leader: NodeId) {
    let other = |now: &Leadership| now.leader.as_ref().is_some_and(|(_, member)| member.node != leader);
    if leadership.wait_for(other).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Proposes what other nodes forward, in one entry for each frame.
pub struct Proposals {
    control: ControlHandle,
}

impl Proposals {
    pub(super) fn new(control: ControlHandle) -> Proposals {
        Proposals { control }
    }
}

#[async_trait]
impl CallHandler for Proposals {
    async fn call(&self, _from: NodeId, body: Bytes) -> Result<Bytes, Error> {
        let entry: Entry<Command> = codec::decode(&body).map_err(Error::internal)?;
        drop(body);
        let replies = timeout(FRAME_TIMEOUT, self.control.propose(entry.operations)).await;
        encode_replies(&replies.unwrap_or_else(|_| Err(Error::unknown()))?)
    }
}

fn encode_replies(replies: &[Result<Reply, Reject>]) -> Result<Bytes, Error> {
    let mut body = BytesMut::with_capacity(32 * replies.len());
    for reply in replies {
        let encoded = codec::encode(reply).map_err(Error::internal)?;
        body.put_u32_le(u32::try_from(encoded.len()).map_err(Error::internal)?);
        body.put(encoded);
    }
    Ok(body.freeze())
}

fn decode_replies(mut body: Bytes) -> Result<Vec<Result<Reply, Reject>>, Error> {
    let mut replies = Vec::new();
    while body.has_remaining() {
        let length = body.try_get_u32_le().map_err(Error::internal)? as usize;
        if length > body.remaining() {
            return Err(Error::internal("the leader's replies are cut off"));
        }
        replies.push(codec::decode(&body.split_to(length)).map_err(Error::internal)?);
    }
    Ok(replies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_arrive_in_order_with_their_refusals() {
        let replies = vec![Ok(Reply::Done), Err(Reject::NotInitialized), Ok(Reply::Cancelled)];
        let body = encode_replies(&replies).expect("small");
        assert_eq!(decode_replies(body.clone()), Ok(replies));
        assert!(decode_replies(body.slice(..body.len() - 1)).is_err());
    }
}
