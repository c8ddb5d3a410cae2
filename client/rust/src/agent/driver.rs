//! Keeps one session alive over streams that come and go.

use std::sync::Arc;
use std::time::Duration;

use quorate_api::v1::work_request::Frame as Out;
use quorate_api::v1::work_response::Frame as In;
use quorate_api::v1::{self, ErrorReason, Grant, SessionOpened, WorkResponse};
use quorate_api::{ApiError, limits};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use uuid::Uuid;

use crate::agent::attempt::Attempt;
use crate::agent::handler::{Done, Key, Workshop};
use crate::agent::lease::Lease;
use crate::agent::outbox::Outbox;
use crate::agent::session::{Acknowledged, Running, Session};
use crate::agent::stats::{Count, Shared};
use crate::backoff::Backoff;
use crate::call::is_ours;
use crate::client::agents;
use crate::nodes::{Address, Nodes, Route};

const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pauses between tries to resume: short, because a lease runs.
const RESUME_FIRST: Duration = Duration::from_millis(20);
const RESUME_MOST: Duration = Duration::from_millis(200);
/// Pauses between tries to open: no lease runs yet.
const OPEN_FIRST: Duration = Duration::from_millis(20);
const OPEN_MOST: Duration = Duration::from_secs(1);

/// What the owner of the agent wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Run,
    Drain,
    Stop,
}

/// What the agent says about itself when it opens a session.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) roles: Vec<String>,
    pub(crate) slots: u32,
    pub(crate) ttl: Duration,
}

impl Spec {
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        limits::check_name("agent", &self.name)?;
        limits::check_size("roles", self.roles.len(), limits::ROLES)?;
        if self.roles.is_empty() {
            let none = ApiError::new(ErrorReason::InvalidArgument, "the agent has no role, so no task would fit");
            return Err(none.with("field", "roles"));
        }
        self.roles.iter().try_for_each(|role| limits::check_name("roles", role))?;
        limits::check_range("slots", self.slots.into(), 1, limits::SLOTS.into())?;
        limits::check_range("ttl_ms", ms(self.ttl), ms(limits::TTL_MIN), ms(limits::TTL_MAX))
    }
}

/// A stream that carries the session.
struct Stream {
    address: Address,
    outbox: Outbox,
    incoming: Streaming<WorkResponse>,
    attached_at: Instant,
}

/// Why a stream was not attached.
enum Refusal {
    /// The session does not live any more.
    Gone(String),
    /// Another try may succeed.
    Again(String),
}

/// Why a stream was left.
#[derive(Debug)]
enum Left {
    /// The session may live on another stream.
    Broken(String),
    /// The session is over, for the cluster or for us.
    Lost(String),
    /// The owner wanted it, and the session was closed.
    Closed,
}

/// The driver of one agent.
pub(crate) struct Driver {
    nodes: Nodes,
    spec: Spec,
    workshop: Workshop,
    done: mpsc::UnboundedReceiver<Done>,
    orders: watch::Receiver<Order>,
    shared: Arc<Shared>,
    avoid: Option<Address>,
}

impl Driver {
    pub(crate) fn new(
        nodes: Nodes,
        spec: Spec,
        workshop: Workshop,
        done: mpsc::UnboundedReceiver<Done>,
        orders: watch::Receiver<Order>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { nodes, spec, workshop, done, orders, shared, avoid: None }
    }

    /// Runs until the owner wants the end.
    pub(crate) async fn run(mut self) {
        while let Some((session, stream)) = self.open().await {
            self.shared.set_session(Some(session.id));
            let left = self.serve(session, stream).await;
            self.shared.set_session(None);
            self.shared.set_running(0);
            if let Left::Lost(why) = &left {
                tracing::warn!(agent = self.spec.name, %why, "the session was lost");
                self.shared.set_error(why);
            }
        }
        self.shared.set_ended();
    }

    /// The order in force. A handle that was dropped is an order to stop.
    fn order(&mut self) -> Order {
        if self.orders.has_changed().is_err() { Order::Stop } else { *self.orders.borrow_and_update() }
    }

    /// Opens a session, on whatever node takes it. `None` if the owner wants the end before.
    async fn open(&mut self) -> Option<(Session, Stream)> {
        let mut backoff = Backoff::new(OPEN_FIRST, OPEN_MOST);
        let mut tries = 0;
        while self.order() == Order::Run {
            let sent_at = Instant::now();
            let open = v1::OpenSession {
                // A new id each time: the lease counts from this very request, so an older one must not answer it.
                request_id: Uuid::now_v7().to_string(),
                agent: self.spec.name.clone(),
                roles: self.spec.roles.clone(),
                slots: self.spec.slots,
                ttl_ms: ms(self.spec.ttl),
            };
            let address = self.nodes.pick(Route::Spread, self.avoid.as_ref());
            let mut orders = self.orders.clone();
            let attached = tokio::select! {
                attached = attach(&self.nodes, &address, Out::Open(open)) => attached,
                _ = orders.changed() => continue,
            };
            match attached {
                Ok((stream, opened)) => {
                    self.avoid = None;
                    self.shared.add(Count::Sessions, 1);
                    let ttl = if opened.ttl_ms == 0 { self.spec.ttl } else { Duration::from_millis(opened.ttl_ms) };
                    tracing::info!(agent = self.spec.name, session = opened.session_id, %address, "session opened");
                    return Some((Session::new(opened.session_id, Lease::opened(ttl, sent_at)), stream));
                }
                Err(Refusal::Gone(why) | Refusal::Again(why)) => {
                    tracing::debug!(agent = self.spec.name, %why, "no session yet");
                    self.shared.set_error(&why);
                    self.avoid = Some(address);
                }
            }
            tries += 1;
            if tries >= self.nodes.count() {
                let _ = timeout(backoff.next(), self.orders.changed()).await;
            }
        }
        None
    }

    /// Carries the session over as many streams as it takes, until it is over.
    async fn serve(&mut self, mut session: Session, mut stream: Stream) -> Left {
        loop {
            let left = self.attached(&mut session, stream).await;
            let why = match left {
                Left::Broken(why) => why,
                Left::Lost(why) => {
                    self.shared.add(Count::Lost, session.running());
                    return Left::Lost(why);
                }
                Left::Closed => return Left::Closed,
            };
            tracing::debug!(agent = self.spec.name, session = session.id, %why, "the stream broke");
            self.shared.set_error(&why);
            match self.resume(&mut session).await {
                Ok(resumed) => stream = resumed,
                Err(left) => {
                    self.shared.add(Count::Lost, session.running());
                    return left;
                }
            }
        }
    }

    /// Finds a node that carries the session on. Ends with the lease at the latest.
    async fn resume(&mut self, session: &mut Session) -> Result<Stream, Left> {
        let mut backoff = Backoff::new(RESUME_FIRST, RESUME_MOST);
        let expires = session.lease.expires_at();
        let expired = || Left::Lost("the lease ran out while no node carried the session on".into());
        loop {
            if Instant::now() >= expires {
                return Err(expired());
            }
            if self.order() == Order::Stop {
                return Err(Left::Closed);
            }
            let address = self.nodes.pick(Route::Spread, self.avoid.as_ref());
            session.attachment += 1;
            let frame = Out::Resume(v1::ResumeSession {
                session_id: session.id,
                attachment: session.attachment,
                holding: session.holding(),
            });
            let mut orders = self.orders.clone();
            let attached = tokio::select! {
                attached = timeout_at(expires, attach(&self.nodes, &address, frame)) => attached,
                _ = orders.changed() => continue,
            };
            let Ok(attached) = attached else { return Err(expired()) };
            match attached {
                Ok((stream, opened)) => {
                    self.avoid = None;
                    self.resumed(session, &stream, &opened);
                    return Ok(stream);
                }
                Err(Refusal::Gone(why)) => return Err(Left::Lost(why)),
                Err(Refusal::Again(why)) => {
                    tracing::debug!(agent = self.spec.name, session = session.id, %why, "not resumed yet");
                    self.shared.set_error(&why);
                    self.avoid = Some(address);
                }
            }
            sleep_until(expires.min(Instant::now() + backoff.next())).await;
        }
    }

    fn resumed(&mut self, session: &mut Session, stream: &Stream, opened: &SessionOpened) {
        self.shared.add(Count::Resumes, 1);
        for token in &opened.lost {
            // A finish whose acknowledgement was lost may be among them; it is sent again and answered by itself.
            if session.drop_token(token) {
                self.shared.add(Count::Lost, 1);
            }
        }
        self.shared.set_running(session.running());
        for finish in session.resend_all() {
            stream.outbox.finish(finish);
        }
        session.next_beat = stream.attached_at;
    }

    /// Serves the session on one stream until that is left.
    async fn attached(&mut self, session: &mut Session, mut stream: Stream) -> Left {
        let timer = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(timer);
        loop {
            let now = Instant::now();
            if let Some(left) = due(session, &stream, now) {
                self.avoid = Some(Arc::clone(&stream.address));
                return left;
            }
            match self.order() {
                Order::Stop => return close(stream).await,
                Order::Drain if session.is_idle() => return close(stream).await,
                Order::Drain if !session.draining => {
                    session.draining = true;
                    session.next_beat = now;
                    continue;
                }
                Order::Drain | Order::Run => {}
            }
            let wake_at = wake_at(session, &stream);
            // Firing early costs one round; setting the timer for every frame would cost more.
            if timer.is_elapsed() || timer.deadline() > wake_at {
                timer.as_mut().reset(wake_at);
            }
            let left = tokio::select! {
                biased;
                () = &mut timer => None,
                _ = self.orders.changed() => None,
                message = stream.incoming.message() => self.on_message(session, &stream, message),
                Some(done) = self.done.recv() => {
                    self.on_done(session, &stream, done);
                    while let Ok(done) = self.done.try_recv() {
                        self.on_done(session, &stream, done);
                    }
                    None
                }
            };
            self.shared.set_running(session.running());
            if let Some(left) = left {
                self.avoid = Some(Arc::clone(&stream.address));
                return left;
            }
        }
    }

    fn on_message(
        &mut self,
        session: &mut Session,
        stream: &Stream,
        message: Result<Option<WorkResponse>, Status>,
    ) -> Option<Left> {
        match message {
            Ok(Some(response)) => self.on_frame(session, stream, response.frame?),
            Ok(None) => Some(Left::Broken(format!("{}: the stream was closed", stream.address))),
            Err(status) => Some(match refusal(&self.nodes, &stream.address, &status) {
                Refusal::Gone(why) => Left::Lost(why),
                Refusal::Again(why) => Left::Broken(why),
            }),
        }
    }

    fn on_frame(&mut self, session: &mut Session, stream: &Stream, frame: In) -> Option<Left> {
        match frame {
            In::HeartbeatAck(ack) => session.lease.acknowledged(ack.seq),
            In::Grants(batch) => {
                for grant in batch.grants {
                    self.on_grant(session, grant);
                }
            }
            In::Acks(batch) => {
                let now = Instant::now();
                for ack in batch.acks {
                    let answer = session.acknowledged(ack, now);
                    if let Some(left) = self.on_ack(session, stream, answer) {
                        return Some(left);
                    }
                }
            }
            In::Cancel(cancel) => {
                let token = cancel.token.unwrap_or_default();
                let key = Key { task_id: cancel.task_id, position: token.position, ordinal: token.ordinal };
                if session.drop_attempt(&key) {
                    self.shared.add(Count::Cancelled, 1);
                }
            }
            In::Gone(gone) => {
                let why = gone.error.map_or_else(String::new, |error| error.message);
                return Some(Left::Lost(format!("{}: the session is gone: {why}", stream.address)));
            }
            // Only the first frame of a stream opens; a second one says nothing new.
            In::Opened(_) => {}
        }
        None
    }

    fn on_grant(&mut self, session: &mut Session, grant: Grant) {
        let token = grant.token.unwrap_or_default();
        let key = Key { task_id: grant.task_id, position: token.position, ordinal: token.ordinal };
        // While draining it stays unstarted; closing the session gives it back.
        if session.draining || session.knows(&key) {
            return;
        }
        let cancelled = CancellationToken::new();
        let attempt = Attempt {
            task_id: grant.task_id,
            queue: grant.queue,
            role: grant.role,
            payload: grant.payload,
            number: grant.attempt,
            enqueued_at_us: grant.enqueued_at_us,
            token: (token.position, token.ordinal),
            cancelled: cancelled.clone(),
        };
        let abort = self.workshop.start(key, attempt);
        session.started(key, Running { abort, cancelled });
        self.shared.add(Count::Started, 1);
    }

    fn on_ack(&mut self, session: &Session, stream: &Stream, ack: Acknowledged) -> Option<Left> {
        match ack {
            Acknowledged::Completed { task_id, children } => {
                self.shared.add(Count::Completed, 1);
                if let Some(tell) = &self.workshop.completed {
                    tell(task_id, &children);
                }
            }
            Acknowledged::Failed => self.shared.add(Count::Failed, 1),
            Acknowledged::Refused(error) => {
                tracing::warn!(agent = self.spec.name, session = session.id, %error, "an outcome was refused");
                self.shared.add(Count::Refused, 1);
            }
            Acknowledged::Instead(failure) => stream.outbox.finish(failure),
            Acknowledged::Gone(error) => return Some(Left::Lost(error.message)),
            Acknowledged::Later | Acknowledged::Unknown => {}
        }
        None
    }

    fn on_done(&mut self, session: &mut Session, stream: &Stream, (key, outcome): Done) {
        // The lease may have ended while this thread was not scheduled: look again before speaking for the session.
        let is_live = Instant::now() < session.lease.expires_at();
        match session.finish(key, outcome) {
            Some(finish) if is_live => stream.outbox.finish(finish),
            _ => self.shared.add(Count::Refused, 1),
        }
    }
}

/// Does what time demands: gives the session or the stream up, sends the heartbeat, sends finishes again.
fn due(session: &mut Session, stream: &Stream, now: Instant) -> Option<Left> {
    if now >= session.lease.expires_at() {
        return Some(Left::Lost("the lease ran out: no heartbeat was acknowledged in time".into()));
    }
    if now >= doubtful_at(session, stream) {
        return Some(Left::Broken(format!("{}: heartbeats are not acknowledged", stream.address)));
    }
    if now >= session.next_beat {
        let seq = session.lease.beat(now);
        stream.outbox.send(Out::Heartbeat(v1::Heartbeat { seq, draining: session.draining }));
        session.next_beat = now + session.lease.interval();
    }
    for finish in session.resend_due(now) {
        stream.outbox.finish(finish);
    }
    None
}

/// A node that was only just found gets at least one heartbeat's time to prove itself.
fn doubtful_at(session: &Session, stream: &Stream) -> Instant {
    session.lease.doubtful_at().max(stream.attached_at + session.lease.interval())
}

fn wake_at(session: &Session, stream: &Stream) -> Instant {
    let soonest = session.next_beat.min(session.lease.expires_at()).min(doubtful_at(session, stream));
    session.resend_at().map_or(soonest, |at| at.min(soonest))
}

/// Gives running attempts back and waits a moment for the node to hear it.
async fn close(stream: Stream) -> Left {
    let Stream { outbox, mut incoming, .. } = stream;
    outbox.send(Out::Close(v1::CloseSession {}));
    drop(outbox);
    // What still comes concerns attempts that were given back.
    let _ = timeout(CLOSE_TIMEOUT, async { while let Ok(Some(_)) = incoming.message().await {} }).await;
    Left::Closed
}

/// Opens a stream whose first frame opens or resumes a session.
async fn attach(nodes: &Nodes, address: &Address, first: Out) -> Result<(Stream, SessionOpened), Refusal> {
    let channel = match nodes.channel(address).await {
        Ok(channel) => channel,
        Err(why) => {
            nodes.failed(address);
            return Err(Refusal::Again(why));
        }
    };
    let (outbox, frames) = Outbox::new(first);
    let opening = async {
        let mut incoming = agents(channel).work(frames).await?.into_inner();
        let first = incoming.message().await?;
        Ok::<_, Status>((incoming, first.and_then(|response| response.frame)))
    };
    let opened = timeout(OPEN_TIMEOUT, opening).await;
    let opened = opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("the session was not confirmed in time")));
    match opened {
        Ok((incoming, Some(In::Opened(opened)))) => {
            nodes.answered(address);
            let stream = Stream { address: Arc::clone(address), outbox, incoming, attached_at: Instant::now() };
            Ok((stream, opened))
        }
        Ok((_, Some(In::Gone(gone)))) => {
            Err(Refusal::Gone(gone.error.map_or_else(|| "the session is gone".into(), |error| error.message)))
        }
        Ok(_) => {
            nodes.failed(address);
            Err(Refusal::Again(format!("{address}: the stream ended before the session was confirmed")))
        }
        Err(status) => Err(refusal(nodes, address, &status)),
    }
}

fn refusal(nodes: &Nodes, address: &Address, status: &Status) -> Refusal {
    let error = ApiError::from(status);
    let why = format!("{address}: {}", error.message);
    if error.reason == ErrorReason::SessionNotFound {
        return Refusal::Gone(why);
    }
    if !is_ours(status) || error.reason == ErrorReason::ShuttingDown {
        nodes.failed(address);
    }
    Refusal::Again(why)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
