//! The leader's end of one node's relay stream.
//!
//! A frame from the node is worked off at once: attaches and heartbeats against the roster, finishes as one call to the
//! proposer. Answers go into the node's [`Outbox`], where they gather while the stream is full, so a slow node holds up
//! nobody else and what waits for it is bounded by its sessions' slots and unacknowledged finishes.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use prost::Message as _;
use quorate_api::v1;
use quorate_raft::NodeId;
use quorate_state::control::{Command, Reply};
use quorate_state::{Operation, SessionId, TaskId, Token};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use super::attaching::Attaching;
use super::frames::{Attach, Attached, Down, Gathered as _, Gone, Place, SessionAck, SessionFinish, Up};
use super::leader::{Book, Leader, Posts, session_over};
use super::roster::{Attachment, Delivery, LinkId};
use super::wire;
use crate::error::{Error, ErrorReason};
use crate::limits::OVERLOADED_RETRY_AFTER;
use crate::proposer::Answer;

/// Frames of one node whose finishes are under way. Beyond it the node's stream is not read.
const FRAMES_IN_FLIGHT: usize = 64;
/// Renewals that wait for one node at most.
const BEATS_KEPT: usize = 65_536;

/// What waits to be sent to a node. Whoever has something for the node puts it here; only the node's own task sends, so
/// that what comes from several sides at one time (the answer to a finish, and the grant behind it) goes in one frame.
pub(super) struct Outbox {
    pending: Mutex<Down>,
    stream: mpsc::Sender<Bytes>,
    filled: Notify,
}

impl Outbox {
    fn new(stream: mpsc::Sender<Bytes>) -> Outbox {
        Outbox { pending: Mutex::new(Down::default()), stream, filled: Notify::new() }
    }

    /// Adds a frame's parts, which are sent at once or as soon as the stream takes them.
    pub(super) fn post(&self, down: Down) {
        self.add(down);
        self.filled.notify_one();
    }

    fn add(&self, down: Down) {
        let mut pending = self.pending.lock();
        pending.attached.extend(down.attached);
        pending.beats.extend(down.beats);
        // A node that does not read loses the oldest renewals, as it would by being cut off.
        let excess = pending.beats.len().saturating_sub(BEATS_KEPT);
        pending.beats.drain(..excess);
        pending.acks.extend(down.acks);
        pending.cancels.extend(down.cancels);
        pending.grants.extend(down.grants);
        pending.gone.extend(down.gone);
    }

    /// Sends what the stream takes. Returns whether something is left because it is full.
    fn flush(&self) -> bool {
        let mut pending = self.pending.lock();
        while !pending.is_empty() {
            match self.stream.try_reserve() {
                Ok(permit) => permit.send(pending.take_frame().unwrap_or_default()),
                Err(TrySendError::Full(())) => return true,
                // The other half of the stream ends as well, and the node's task with it.
                Err(TrySendError::Closed(())) => *pending = Down::default(),
            }
        }
        false
    }
}

/// Who is to be told what of one finish.
struct Ending {
    session: SessionId,
    seq: u64,
    task: TaskId,
    token: Token,
}

/// An answer that is to come, or why there is none.
pub(super) type Submitted = Result<oneshot::Receiver<Answer<Command>>, Error>;

/// The finishes of one frame that were proposed together.
struct Ended {
    finishes: Vec<SessionFinish>,
    answer: Answer<Command>,
}

/// Ends the link's part in the book, however the stream ends.
struct Registered<'a> {
    leader: &'a Leader,
    link: LinkId,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.leader.remove_link(self.link);
    }
}

/// Serves the relay stream of one node until either side ends or the leadership is lost.
pub(super) async fn serve(
    leader: Arc<Leader>,
    node: NodeId,
    mut inbound: mpsc::Receiver<Bytes>,
    outbound: mpsc::Sender<Bytes>,
) {
    let outbox = Arc::new(Outbox::new(outbound.clone()));
    let registered = Registered { leader: &leader, link: leader.add_link(node, outbox.clone()) };
    let link = registered.link;
    let mut under_way = FuturesUnordered::new();
    let mut attaching = Attaching::default();
    loop {
        while let Some(Some(ended)) = under_way.next().now_or_never() {
            if !acknowledge(&leader, &outbox, ended) {
                return;
            }
        }
        let stuck = outbox.flush();
        tokio::select! {
            biased;
            () = leader.over.cancelled() => return,
            Some(ended) = under_way.next(), if !under_way.is_empty() => {
                if !acknowledge(&leader, &outbox, ended) { return }
            }
            // Whoever else has something for this node is likely to be ready to run too, and goes first.
            () = outbox.filled.notified() => yield_now().await,
            reserved = outbound.reserve(), if stuck => if reserved.is_err() { return },
            ready = attaching.next(), if !attaching.is_empty() => {
                let Some(said) = ready else { return };
                for up in said {
                    under_way.extend(take_in(&leader, link, attaching.admit(&leader, up)));
                }
            }
            frame = inbound.recv(), if under_way.len() < FRAMES_IN_FLIGHT => {
                let Some(frame) = frame else { return };
                match Up::decode(frame) {
                    Ok(up) => under_way.extend(take_in(&leader, link, attaching.admit(&leader, up))),
                    Err(error) => {
                        tracing::error!(%node, %error, "a relay frame does not decode; closing the stream");
                        return;
                    }
                }
            }
        }
    }
}

/// Takes one frame in and proposes its finishes, if it has any. The proposal is queued before the next frame is read, so
/// that the order of frames is kept.
fn take_in(leader: &Arc<Leader>, link: LinkId, up: Up) -> Option<impl Future<Output = Ended> + use<>> {
    let finishes = receive(leader, link, up)?;
    let first = submit(leader, &finishes);
    Some(end(leader.clone(), finishes, first))
}

/// Takes one frame in. Returns its finishes, which are still to be proposed.
fn receive(leader: &Leader, link: LinkId, up: Up) -> Option<Vec<SessionFinish>> {
    let now = Instant::now();
    let control = &leader.context.control;
    let renews = !up.beats.is_empty() && leader.is_confirmed();
    #[cfg(feature = "planted")]
    let renews = renews || crate::planted::is("cut-off-renewals");
    let (missing, closing) = leader.with_book(|book, posts| {
        let mut missing = Vec::new();
        for attach in &up.attaches {
            missing.extend(attach_session(leader, book, posts, link, attach, now));
        }
        for beat in up.beats {
            let current = book.roster.beat(link, SessionId(beat.session), beat.attachment, beat.draining, now);
            if current && renews {
                posts.entry(link).or_default().beats.push(beat);
            }
        }
        for finish in &up.finishes {
            book.roster.heard(link, SessionId(finish.session), now);
        }
        let mut closing = Vec::new();
        for Place { session, attachment } in up.closes {
            let session = SessionId(session);
            if let Some(attachment) = book.roster.close(link, session, attachment, now) {
                closing.push(Operation::new(Command::CloseSession { session, attachment }));
            }
        }
        for Place { session, attachment } in up.detaches {
            book.roster.detach(link, SessionId(session), attachment);
        }
        (missing, closing)
    });
    if !up.attaches.is_empty() {
        control.wake_matcher();
    }
    leader.deliver(&missing);
    if !closing.is_empty()
        && let Err(error) = control.submit(closing)
    {
        // The session's stream is going away too, so it expires instead.
        tracing::debug!(%error, "cannot propose to close sessions");
    }
    (!up.finishes.is_empty()).then_some(up.finishes)
}

/// Attaches one session. Returns the attempts that its agent never got.
fn attach_session(
    leader: &Leader,
    book: &mut Book,
    posts: &mut Posts,
    link: LinkId,
    attach: &Attach,
    now: Instant,
) -> Vec<Delivery> {
    let session = SessionId(attach.session);
    if !book.roster.knows(session)
        && let Some(view) = leader.context.control.read(|state| state.session(session))
    {
        book.roster.admit(&view, now);
    }
    let holding: Vec<Token> = attach.holding.iter().map(wire::token_from_wire).collect();
    match book.roster.attach(link, session, attach.attachment, &holding, now) {
        Attachment::Current { ttl, lost, missing, displaced } => {
            if let Some(route) = displaced {
                let gone = Gone { session: session.0, attachment: route.attachment, error: None };
                posts.entry(route.link).or_default().gone.push(gone);
            }
            posts.entry(link).or_default().attached.push(Attached {
                session: session.0,
                attachment: attach.attachment,
                ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
                lost: lost.into_iter().map(wire::token_to_wire).collect(),
            });
            missing
        }
        Attachment::Superseded { attachment } => {
            let gone = Gone { session: session.0, attachment: attachment - 1, error: None };
            posts.entry(link).or_default().gone.push(gone);
            Vec::new()
        }
        Attachment::Ending => Vec::new(),
        Attachment::Unknown => {
            posts.entry(link).or_default().gone.push(session_over(session));
            Vec::new()
        }
    }
}

fn endings(finishes: &[SessionFinish]) -> impl Iterator<Item = (Ending, &v1::finish::Outcome)> {
    finishes.iter().filter_map(|item| {
        let finish = item.finish.as_ref()?;
        let ending = Ending {
            session: SessionId(item.session),
            seq: finish.seq,
            task: TaskId(finish.task_id),
            token: wire::token_from_wire(finish.token.as_ref()?),
        };
        Some((ending, finish.outcome.as_ref()?))
    })
}

fn submit(leader: &Leader, finishes: &[SessionFinish]) -> Submitted {
    let operations = endings(finishes).map(|(ending, outcome)| {
        let Ending { task, token, .. } = ending;
        Operation::new(match outcome {
            v1::finish::Outcome::Completed(completed) => Command::Complete {
                task,
                token,
                result: completed.result.to_vec(),
                children: completed.children.iter().map(wire::task_from_wire).collect(),
            },
            v1::finish::Outcome::Failed(failed) => Command::Fail {
                task,
                token,
                error: failed.error.clone(),
                permanent: failed.permanent,
                retry_at: leader.retry_at(task),
            },
        })
    });
    leader.context.control.submit(operations.collect())
}

/// Waits for the answer to finishes.
async fn end(leader: Arc<Leader>, finishes: Vec<SessionFinish>, first: Submitted) -> Ended {
    #[cfg(feature = "planted")]
    if crate::planted::is("early-acknowledge") && first.is_ok() {
        let answer = Ok(vec![Ok(Reply::Completed { children: Vec::new() }); finishes.len()]);
        return Ended { finishes, answer };
    }
    let answer = settle(first, || submit(&leader, &finishes)).await;
    Ended { finishes, answer }
}

/// Waits for the answer to what was submitted. While the proposer sheds, it is submitted again, and the frame waits here and
/// with it, in the end, the node.
pub(super) async fn settle(mut submitted: Submitted, again: impl Fn() -> Submitted) -> Answer<Command> {
    loop {
        match submitted {
            Ok(receiver) => return receiver.await.unwrap_or_else(|_| Err(Error::shutting_down())),
            Err(error) if error.reason == ErrorReason::Overloaded => {
                sleep(error.retry_after.unwrap_or(OVERLOADED_RETRY_AFTER)).await;
                submitted = again();
            }
            Err(error) => return Err(error),
        }
    }
}

/// Passes the answers on. Returns false if the node must send the finishes again, to whoever leads then.
fn acknowledge(leader: &Leader, outbox: &Outbox, ended: Ended) -> bool {
    let Ended { finishes, answer } = ended;
    let replies = match answer {
        Ok(replies) => replies.into_iter().map(|reply| reply.map_err(Error::from)).collect::<Vec<_>>(),
        Err(error) if is_final(&error) => vec![Err(error); finishes.len()],
        Err(error) => {
            tracing::debug!(%error, "finishes could not be proposed; the node is to send them again");
            reopen(leader, &finishes);
            return false;
        }
    };
    let mut acks = Vec::with_capacity(finishes.len());
    for ((ending, _), reply) in endings(&finishes).zip(replies) {
        match reply {
            Ok(Reply::Failed { .. }) => leader.metrics.attempt_failed(),
            Ok(_) => {}
            Err(_) => leader.with_book(|book, _| book.roster.reopen(ending.task, ending.token)),
        }
        let ack = Some(finish_ack(ending.seq, reply));
        let token = Some(wire::token_to_wire(ending.token));
        acks.push(SessionAck { session: ending.session.0, ack, token });
    }
    outbox.add(Down { acks, ..Down::default() });
    true
}

/// Whether sending the same again would only give the same answer.
fn is_final(error: &Error) -> bool {
    matches!(error.reason, ErrorReason::TooLarge | ErrorReason::InvalidArgument | ErrorReason::Internal)
}

fn reopen(leader: &Leader, finishes: &[SessionFinish]) {
    leader.with_book(|book, _| {
        for (ending, _) in endings(finishes) {
            book.roster.reopen(ending.task, ending.token);
        }
    });
}

fn finish_ack(seq: u64, reply: Result<Reply, Error>) -> v1::FinishAck {
    match reply {
        Ok(Reply::Completed { children }) => {
            v1::FinishAck { seq, error: None, child_ids: children.into_iter().map(|task| task.0).collect() }
        }
        Ok(_) => v1::FinishAck { seq, error: None, child_ids: Vec::new() },
        Err(error) => v1::FinishAck { seq, error: Some(error.to_wire()), child_ids: Vec::new() },
    }
}
