//! Single enqueues, gathered over one stream.
//!
//! A call puts its request into a queue and waits for its own answer; no task is made for it. The stream to the leader
//! asks that queue for its next frame whenever it can write one, so what came while a frame was being written goes
//! together in the next. Answers come back by sequence number in any order. When the stream breaks, every call without
//! an answer goes back to its place in the queue and is sent again, with the same request id, on the next one.
//!
//! Invariant: a call is in exactly one of `waiting` and `unanswered` until it is answered or its caller has left.

use std::collections::{BTreeMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use quorate_api::v1::{self, ErrorReason, enqueue_answer::Outcome};
use quorate_api::{ApiError, limits};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::backoff::Backoff;
use crate::call::is_ours;
use crate::client::tasks;
use crate::error::Error;
use crate::nodes::{Address, Nodes, Route};

/// Calls without an answer are bounded by their size: callers beyond it wait before they are taken in.
const ROOM_KIB: usize = 64 << 10;
/// What a call costs beside its payload, in KiB.
const CALL_KIB: usize = 1;
/// A frame is closed at this size; one call may be larger.
const FRAME_BYTES: usize = 1 << 20;
/// A stream whose oldest call has had no answer for this long is given up.
const STALL: Duration = Duration::from_secs(3);
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Pauses between streams. Short to the end: one stream asks for all callers, and an election takes less than a second.
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const MOST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest pause beyond what a full node asks for.
const MOST_PAUSE: Duration = Duration::from_millis(500);
/// Hints followed without a pause.
const HOPS: u32 = 3;

/// Takes single enqueues in. The stream is opened with the first one.
pub(crate) struct Enqueuer {
    queue: Arc<Queue>,
    nodes: Arc<Nodes>,
    stop: CancellationToken,
}

struct Queue {
    state: Mutex<State>,
    room: Semaphore,
    /// Something waits while no stream is open.
    filled: Notify,
}

#[derive(Default)]
struct State {
    next_seq: u64,
    waiting: BTreeMap<u64, Call>,
    unanswered: BTreeMap<u64, Call>,
    /// The stream that may take calls; an older one ends.
    generation: u64,
    writer: Option<Waker>,
    /// The node has asked for a pause.
    paused: bool,
    /// The stream of today has answered a call, so it takes calls.
    answered: bool,
    pump_runs: bool,
    last: String,
}

struct Call {
    request: v1::EnqueueRequest,
    answer: oneshot::Sender<Result<u64, Error>>,
    maybe_applied: bool,
    refusal: Option<ApiError>,
    /// When it was last put into a frame.
    sent_at: Option<Instant>,
}

impl Call {
    /// Tells the caller of a refusal that no retry changes. It says nothing of an earlier try whose answer was lost.
    fn refuse(self, error: ApiError) {
        let error = if self.maybe_applied {
            Error::OutcomeUnknown { request_id: self.request.request_id, last: error.message }
        } else {
            Error::Refused(error)
        };
        // The caller may have left; then nobody wants it.
        let _ = self.answer.send(Err(error));
    }
}

impl Enqueuer {
    pub(crate) fn new(nodes: Arc<Nodes>, stop: CancellationToken) -> Self {
        let state = Mutex::new(State { last: "nothing was tried".into(), ..State::default() });
        let queue = Queue { state, room: Semaphore::new(ROOM_KIB), filled: Notify::new() };
        Self { queue: Arc::new(queue), nodes, stop }
    }

    /// Enqueues one call and waits for the id of its first task.
    pub(crate) async fn enqueue(&self, request: v1::EnqueueRequest, deadline: Instant) -> Result<u64, Error> {
        let cost = CALL_KIB + request.encoded_len() / 1_024;
        let cost = u32::try_from(cost.min(ROOM_KIB)).unwrap_or(u32::MAX);
        let Ok(Ok(_room)) = timeout_at(deadline, self.queue.room.acquire_many(cost)).await else {
            return Err(self.unreachable());
        };
        let mut maybe_applied = false;
        loop {
            let (ticket, answer) = self.queue.put(request.clone(), maybe_applied);
            self.start_pump();
            match timeout_at(deadline, answer).await {
                Ok(Ok(outcome)) => return outcome,
                // The runtime that drove the stream was shut down. This one drives the next.
                Ok(Err(_)) => maybe_applied = true,
                Err(_) => return Err(self.at_the_deadline(&ticket, &request.request_id)),
            }
        }
    }

    fn unreachable(&self) -> Error {
        Error::Unreachable { endpoints: self.nodes.names(), last: self.queue.state.lock().last.clone() }
    }

    fn at_the_deadline(&self, ticket: &Ticket<'_>, request_id: &str) -> Error {
        let mut state = self.queue.state.lock();
        let last = state.last.clone();
        #[cfg(feature = "planted")]
        if crate::planted::is("failed-on-timeout") {
            return Error::Unreachable { endpoints: self.nodes.names(), last };
        }
        match state.waiting.remove(&ticket.seq) {
            Some(call) if !call.maybe_applied => match call.refusal {
                Some(refusal) => Error::Refused(refusal),
                None => Error::Unreachable { endpoints: self.nodes.names(), last },
            },
            _ => Error::OutcomeUnknown { request_id: request_id.to_owned(), last },
        }
    }

    fn start_pump(&self) {
        let mut state = self.queue.state.lock();
        if state.pump_runs {
            return;
        }
        state.pump_runs = true;
        drop(state);
        let pump = Pump { queue: Arc::clone(&self.queue), nodes: Arc::clone(&self.nodes) };
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = pump.run() => {}
            }
        });
    }
}

/// A caller's place in the queue. Leaving early gives it up.
struct Ticket<'a> {
    queue: &'a Queue,
    seq: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        if state.waiting.remove(&self.seq).is_none() {
            state.unanswered.remove(&self.seq);
        }
    }
}

impl Queue {
    fn put(
        &self,
        request: v1::EnqueueRequest,
        maybe_applied: bool,
    ) -> (Ticket<'_>, oneshot::Receiver<Result<u64, Error>>) {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        let seq = state.next_seq;
        state.next_seq += 1;
        state.waiting.insert(seq, Call { request, answer, maybe_applied, refusal: None, sent_at: None });
        let writer = state.writer.take();
        drop(state);
        match writer {
            Some(writer) => writer.wake(),
            None => self.filled.notify_one(),
        }
        (Ticket { queue: self, seq }, receiver)
    }

    /// A new stream begins: only its writer may take calls from now on.
    fn begin(self: &Arc<Self>) -> Frames {
        let mut state = self.state.lock();
        state.generation += 1;
        state.paused = false;
        state.answered = false;
        Frames { queue: Arc::clone(self), generation: state.generation, gathered: false }
    }

    /// The stream is over: what it did not answer waits again, in the old order. A stream that was refused before it
    /// answered anything took no call.
    fn end(&self, why: String, refused: bool) {
        let mut state = self.state.lock();
        state.generation += 1;
        state.last = why;
        let taken = !refused || state.answered;
        let mut lost = std::mem::take(&mut state.unanswered);
        for call in lost.values_mut() {
            call.maybe_applied |= taken;
            #[cfg(feature = "planted")]
            if crate::planted::is("fresh-request-id") {
                call.request.request_id = uuid::Uuid::now_v7().to_string();
            }
        }
        state.waiting.append(&mut lost);
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    fn is_idle(&self) -> bool {
        self.state.lock().waiting.is_empty()
    }

    fn pause(&self, paused: bool) {
        let mut state = self.state.lock();
        state.paused = paused;
        let writer = if paused { None } else { state.writer.take() };
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// When the oldest call without an answer was sent.
    fn oldest_sent(&self) -> Option<Instant> {
        self.state.lock().unanswered.first_key_value().and_then(|(_, call)| call.sent_at)
    }

    /// No node will take any call: tell all callers.
    fn refuse_all(&self, error: &ApiError) {
        for call in std::mem::take(&mut self.state.lock().waiting).into_values() {
            call.refuse(error.clone());
        }
    }

    /// Hands the answers out under one lock. Returns what the stream has to do about refusals that a retry may change.
    fn answer(&self, answers: Vec<v1::EnqueueAnswer>) -> Option<ApiError> {
        let mut again: Option<ApiError> = None;
        let mut state = self.state.lock();
        state.answered = true;
        for answer in answers {
            let Some(mut call) = state.unanswered.remove(&answer.seq) else { continue };
            let outcome = match answer.outcome {
                Some(Outcome::Response(response)) => {
                    response.task_ids.first().copied().ok_or_else(|| empty("it names no task"))
                }
                Some(Outcome::Error(error)) => Err(ApiError::from(error)),
                None => Err(empty("it has no outcome")),
            };
            match outcome {
                // What belongs to no cluster says nothing of the cluster.
                Err(error) if error.is_retryable() || error.reason == ErrorReason::NotInitialized => {
                    call.maybe_applied |= error.reason == ErrorReason::OutcomeUnknown;
                    state.last.clone_from(&error.message);
                    call.refusal = Some(error.clone());
                    state.waiting.insert(answer.seq, call);
                    // Of several the one that names the leader says most.
                    if again.as_ref().is_none_or(|kept| kept.leader_address().is_none()) {
                        again = Some(error);
                    }
                }
                Err(error) => call.refuse(error),
                Ok(task) => {
                    // The caller may have left; then nobody wants it.
                    let _ = call.answer.send(Ok(task));
                }
            }
        }
        again
    }
}

fn empty(what: &str) -> ApiError {
    ApiError::new(ErrorReason::Internal, format!("an answer of the enqueue stream is damaged: {what}"))
}

/// The request side of a stream. It is polled when there is room to write.
struct Frames {
    queue: Arc<Queue>,
    generation: u64,
    /// Everybody who was ready to run has had the chance to add a call.
    gathered: bool,
}

impl futures::Stream for Frames {
    type Item = v1::EnqueueStreamRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let queue = Arc::clone(&self.queue);
        let mut state = queue.state.lock();
        if state.generation != self.generation {
            return Poll::Ready(None);
        }
        if state.paused || state.waiting.is_empty() {
            state.writer = Some(context.waker().clone());
            self.gathered = false;
            return Poll::Pending;
        }
        if !self.gathered {
            // One turn of the scheduler: the first caller of a burst must not travel alone.
            self.gathered = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.gathered = false;
        Poll::Ready(Some(state.next_frame()))
    }
}

impl State {
    fn next_frame(&mut self) -> v1::EnqueueStreamRequest {
        let mut calls = Vec::with_capacity(self.waiting.len().min(limits::FRAME_ITEMS));
        let mut bytes = 0;
        let now = Some(Instant::now());
        while calls.len() < limits::FRAME_ITEMS && bytes < FRAME_BYTES {
            let Some(entry) = self.waiting.first_entry() else { break };
            let size = entry.get().request.encoded_len();
            if bytes > 0 && bytes + size > FRAME_BYTES {
                break;
            }
            bytes += size;
            let (seq, mut call) = entry.remove_entry();
            call.sent_at = now;
            calls.push(v1::EnqueueCall { seq, request: Some(call.request.clone()) });
            self.unanswered.insert(seq, call);
        }
        v1::EnqueueStreamRequest { calls }
    }
}

/// Keeps one stream open while there is something to send.
struct Pump {
    queue: Arc<Queue>,
    nodes: Arc<Nodes>,
}

/// Why a stream is over.
enum End {
    /// Another node leads; go there at once.
    Leads,
    /// The node cannot serve; try another one after a pause.
    Elsewhere(String),
    /// As `Elsewhere`, but calls were answered before, so the pauses start anew.
    Broke(String),
    /// The node refuses the stream for a reason that no retry there changes.
    Refused(ApiError),
}

impl Drop for Pump {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.pump_runs = false;
        state.generation += 1;
        // Their callers see that nobody will answer, and start the next pump.
        state.waiting.clear();
        state.unanswered.clear();
    }
}

impl Pump {
    async fn run(self) {
        let mut backoff = Backoff::new(FIRST_BACKOFF, MOST_BACKOFF);
        let mut avoid = None;
        let mut hops = 0;
        let mut refusing = HashSet::new();
        loop {
            while self.queue.is_idle() {
                self.queue.filled.notified().await;
            }
            let address = self.nodes.pick(Route::Leader, avoid.as_ref());
            let end = self.stream(&address).await;
            avoid = Some(Arc::clone(&address));
            let refused = matches!(end, End::Refused(_));
            let mut for_all = None;
            let (why, pause) = match end {
                End::Leads => {
                    hops += 1;
                    let pause = if hops <= HOPS { Duration::ZERO } else { backoff.next() };
                    ("the leader is another node".into(), pause)
                }
                End::Elsewhere(why) => {
                    hops = hops.saturating_add(1);
                    let first_round = (hops as usize) < self.nodes.count();
                    (why, if first_round { Duration::ZERO } else { backoff.next() })
                }
                End::Refused(error) => {
                    hops = hops.saturating_add(1);
                    let why = error.message.clone();
                    self.nodes.failed(&address);
                    refusing.insert(address);
                    // One that is made anew belongs to no cluster for a while; the others may only be out of reach.
                    if self.nodes.are_all(&refusing) {
                        for_all = Some(error);
                        hops = 0;
                        refusing.clear();
                    }
                    let first_round = (hops as usize) < self.nodes.count();
                    (why, if first_round { Duration::ZERO } else { backoff.next() })
                }
                End::Broke(why) => {
                    hops = 0;
                    refusing.clear();
                    backoff.reset();
                    (why, Duration::ZERO)
                }
            };
            tracing::debug!(%why, ?pause, "the enqueue stream ended");
            self.queue.end(why, refused);
            if let Some(error) = for_all {
                self.queue.refuse_all(&error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// One stream, from opening to its end.
    async fn stream(&self, address: &Address) -> End {
        let channel = match self.nodes.channel(address).await {
            Ok(channel) => channel,
            Err(why) => {
                self.nodes.failed(address);
                return End::Elsewhere(why);
            }
        };
        let mut client = tasks(channel);
        let frames = self.queue.begin();
        let mut answers = match timeout(OPEN_TIMEOUT, client.enqueue_stream(frames)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return self.on_status(address, &status, false),
            Err(_) => {
                self.nodes.failed(address);
                return End::Elsewhere(format!("{address}: the stream was not opened within {OPEN_TIMEOUT:?}"));
            }
        };
        self.nodes.answered(address);
        self.read(address, &mut answers).await
    }

    async fn read(&self, address: &Address, answers: &mut tonic::Streaming<v1::EnqueueStreamResponse>) -> End {
        let mut served = false;
        let mut pauses = Backoff::new(FIRST_BACKOFF, MOST_PAUSE);
        let mut resume_at: Option<Instant> = None;
        let mut quiet_since = Instant::now();
        let check = tokio::time::sleep(STALL);
        tokio::pin!(check);
        loop {
            tokio::select! {
                message = answers.message() => match message {
                    Ok(Some(message)) => {
                        quiet_since = Instant::now();
                        let Some(error) = self.queue.answer(message.answers) else {
                            served = true;
                            pauses.reset();
                            continue;
                        };
                        if error.reason != ErrorReason::Overloaded {
                            return self.on_refusal(address, &error, served);
                        }
                        // The node is whole, only full: all calls of this stream wait.
                        let delay = error.retry_after.unwrap_or_default() + pauses.next();
                        self.queue.pause(true);
                        let until = Instant::now() + delay;
                        resume_at = Some(until);
                        check.as_mut().reset(until);
                    }
                    Ok(None) => return self.on_status(address, &Status::unavailable("the stream was closed"), served),
                    Err(status) => return self.on_status(address, &status, served),
                },
                () = &mut check => {
                    let now = Instant::now();
                    if resume_at.is_some_and(|at| at <= now) {
                        resume_at = None;
                        quiet_since = now;
                        self.queue.pause(false);
                    }
                    // The clock of a stall runs from the last answer, or from the oldest call if that is younger.
                    let stalls_at = self.queue.oldest_sent().map_or(now, |sent| sent.max(quiet_since)) + STALL;
                    if stalls_at <= now {
                        self.nodes.failed(address);
                        return End::Elsewhere(format!("{address}: no answer for {STALL:?}"));
                    }
                    check.as_mut().reset(resume_at.unwrap_or(stalls_at));
                }
            }
        }
    }

    fn on_status(&self, address: &Address, status: &Status, served: bool) -> End {
        let error = ApiError::from(status);
        if is_ours(status) || !error.is_retryable() {
            return self.on_refusal(address, &error, served);
        }
        self.nodes.failed(address);
        let why = format!("{address}: {}", error.message);
        if served { End::Broke(why) } else { End::Elsewhere(why) }
    }

    fn on_refusal(&self, address: &Address, error: &ApiError, served: bool) -> End {
        if error.reason == ErrorReason::NotLeader {
            self.nodes.does_not_lead(address);
            let hinted = error.leader_address().and_then(|leader| self.nodes.hint(leader));
            if hinted.is_some_and(|leader| leader != *address) {
                return End::Leads;
            }
        }
        if !error.is_retryable() {
            return End::Refused(error.clone());
        }
        if error.reason == ErrorReason::ShuttingDown {
            self.nodes.failed(address);
        }
        let why = format!("{address}: {}", error.message);
        if served { End::Broke(why) } else { End::Elsewhere(why) }
    }
}
