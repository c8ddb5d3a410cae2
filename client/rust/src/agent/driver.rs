//! Keeps one session alive over streams that come and go.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use quorate_api::v1::work_request::Frame as Out;
use quorate_api::v1::work_response::Frame as In;
use quorate_api::v1::{self, ErrorReason, Grant, SessionOpened, WorkResponse};
use quorate_api::{ApiError, limits};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::attempt::Attempt;
use crate::agent::handler::{Done, Key, Workshop};
use crate::agent::lease::Lease;
use crate::agent::search::{Answer, Search};
use crate::agent::session::{Acknowledged, Running, Session};
use crate::agent::stats::{Count, Shared};
use crate::agent::stream::{CLOSE_TIMEOUT, Refusal, Stream};
use crate::backoff::Backoff;
use crate::nodes::{Address, Nodes, Route};

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

/// Why the session is over.
#[derive(Debug)]
enum Left {
    /// For the cluster or for us, against the owner's will.
    Lost(String),
    /// The owner wanted it.
    Closed,
}

/// The driver of one agent.
pub(crate) struct Driver {
    nodes: Arc<Nodes>,
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
        Self { nodes: Arc::new(nodes), spec, workshop, done, orders, shared, avoid: None }
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
                attached = Stream::attach(&self.nodes, &address, Out::Open(open)) => attached,
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

    /// Serves the session, over as many streams as it takes, until it is over.
    async fn serve(&mut self, mut session: Session, stream: Stream) -> Left {
        let session = &mut session;
        let mut stream = Some(stream);
        let mut search = Search::new();
        let timer = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(timer);
        loop {
            let now = Instant::now();
            if now >= session.lease.expires_at() {
                let why = "the lease ran out: no heartbeat was acknowledged in time".to_owned();
                return self.lost(session, stream.as_ref(), why);
            }
            match self.order() {
                Order::Stop => return self.give_back(session, stream).await,
                Order::Drain if session.is_idle() && stream.is_some() => return self.give_back(session, stream).await,
                Order::Drain if !session.draining => {
                    session.draining = true;
                    session.next_beat = now;
                }
                Order::Drain | Order::Run => {}
            }
            if let Some(stream) = &stream {
                speak(session, stream, now);
            }
            if ask_at(session, stream.as_ref(), &search).is_some_and(|at| at <= now) {
                self.ask(session, stream.as_ref(), &mut search);
            }
            let wake_at = wake_at(session, stream.as_ref(), &search);
            // Firing early costs one round; setting the timer for every frame would cost more.
            if timer.is_elapsed() || timer.deadline() > wake_at {
                timer.as_mut().reset(wake_at);
            }
            let over = tokio::select! {
                biased;
                () = &mut timer => None,
                _ = self.orders.changed() => None,
                (address, answer) = search.answer() => {
                    self.on_answer(session, &mut stream, &mut search, address, answer)
                }
                said = next(&mut stream, &self.nodes) => self.on_said(session, &mut stream, &mut search, said),
                Some(done) = self.done.recv() => {
                    self.on_done(session, stream.as_ref(), done);
                    while let Ok(done) = self.done.try_recv() {
                        self.on_done(session, stream.as_ref(), done);
                    }
                    None
                }
            };
            self.shared.set_running(session.running());
            if let Some(why) = over {
                return self.lost(session, stream.as_ref(), why);
            }
        }
    }

    fn lost(&mut self, session: &Session, stream: Option<&Stream>, why: String) -> Left {
        self.shared.add(Count::Lost, session.running());
        if let Some(stream) = stream {
            self.avoid = Some(Arc::clone(&stream.address));
        }
        Left::Lost(why)
    }

    /// Ends the session and gives its attempts back. The word ends it at once, with most of its lease to come, so it is
    /// said only when no handler runs any more. Where one cannot be stopped, or there is no stream, the session lives until
    /// it expires.
    async fn give_back(&mut self, session: &mut Session, stream: Option<Stream>) -> Left {
        let stopped = session.running() == 0 || {
            session.drop_all();
            timeout(CLOSE_TIMEOUT, self.workshop.idle()).await.is_ok()
        };
        if let Some(stream) = stream.filter(|_| stopped) {
            stream.close().await;
        }
        Left::Closed
    }

    /// Asks the next node to carry the session on.
    fn ask(&mut self, session: &mut Session, stream: Option<&Stream>, search: &mut Search) {
        let in_doubt = stream.map(|stream| &stream.address);
        let mut address = self.nodes.pick(Route::Spread, self.avoid.as_ref().or(in_doubt));
        // A node has one stream of a session: the one in doubt would end for another that is no better.
        if in_doubt == Some(&address) {
            address = self.nodes.pick(Route::Spread, in_doubt);
        }
        session.attachment += 1;
        let resume =
            v1::ResumeSession { session_id: session.id, attachment: session.attachment, holding: session.holding() };
        search.ask(Arc::clone(&self.nodes), address, Out::Resume(resume));
    }

    /// What the node that was asked to carry the session on says. Returns why the session is over, if it is.
    fn on_answer(
        &mut self,
        session: &mut Session,
        stream: &mut Option<Stream>,
        search: &mut Search,
        address: Address,
        answer: Answer,
    ) -> Option<String> {
        match answer {
            Ok((found, opened)) => {
                self.avoid = None;
                *search = Search::new();
                self.resumed(session, &found, &opened);
                // Until now the session had the stream that was in doubt; here that one ends.
                *stream = Some(found);
            }
            Err(Refusal::Gone(why)) => return Some(why),
            Err(Refusal::Again(why)) => {
                tracing::debug!(agent = self.spec.name, session = session.id, %why, "not resumed yet");
                self.shared.set_error(&why);
                self.avoid = Some(address);
                for grant in search.refused() {
                    self.start(session, grant);
                }
            }
        }
        None
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

    /// What the node says on the session's stream. Returns why the session is over, if it is.
    fn on_said(
        &mut self,
        session: &mut Session,
        stream: &mut Option<Stream>,
        search: &mut Search,
        said: Result<WorkResponse, Refusal>,
    ) -> Option<String> {
        match said {
            Ok(response) => self.on_frame(session, stream.as_ref()?, search, response.frame?),
            Err(Refusal::Gone(why)) => Some(why),
            Err(Refusal::Again(why)) => {
                tracing::debug!(agent = self.spec.name, session = session.id, %why, "the stream broke");
                self.shared.set_error(&why);
                self.avoid = stream.take().map(|stream| stream.address);
                None
            }
        }
    }

    fn on_frame(&mut self, session: &mut Session, stream: &Stream, search: &mut Search, frame: In) -> Option<String> {
        match frame {
            In::HeartbeatAck(ack) => session.lease.acknowledged(ack.seq),
            In::Grants(batch) => {
                for grant in batch.grants {
                    if let Some(grant) = search.postpone(grant) {
                        self.start(session, grant);
                    }
                }
            }
            In::Acks(batch) => {
                let now = Instant::now();
                for ack in batch.acks {
                    let answer = session.acknowledged(ack, now);
                    if let Some(why) = self.on_ack(session, stream, answer) {
                        return Some(why);
                    }
                }
            }
            In::Cancel(cancel) => {
                let key = Key::new(cancel.task_id, cancel.token);
                if session.drop_attempt(&key) || search.forget(&key) {
                    self.shared.add(Count::Cancelled, 1);
                }
            }
            In::Gone(gone) => {
                let why = gone.error.map_or_else(String::new, |error| error.message);
                return Some(format!("{}: the session is gone: {why}", stream.address));
            }
            // Only the first frame of a stream opens; a second one says nothing new.
            In::Opened(_) => {}
        }
        None
    }

    fn start(&mut self, session: &mut Session, grant: Grant) {
        let key = Key::new(grant.task_id, grant.token);
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
            token: (key.position, key.ordinal),
            cancelled: cancelled.clone(),
        };
        let abort = self.workshop.start(key, attempt);
        session.started(key, Running { abort, cancelled });
        self.shared.add(Count::Started, 1);
    }

    fn on_ack(&mut self, session: &Session, stream: &Stream, ack: Acknowledged) -> Option<String> {
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
            Acknowledged::Gone(error) => return Some(error.message),
            Acknowledged::Later | Acknowledged::Unknown => {}
        }
        None
    }

    /// What is finished while there is no stream is said on the next one.
    fn on_done(&mut self, session: &mut Session, stream: Option<&Stream>, (key, outcome): Done) {
        // The lease may have ended while this thread was not scheduled: look again before speaking for the session.
        let is_live = Instant::now() < session.lease.expires_at();
        match (session.finish(key, outcome), stream) {
            (Some(finish), Some(stream)) if is_live => stream.outbox.finish(finish),
            (Some(_), None) if is_live => {}
            _ => self.shared.add(Count::Refused, 1),
        }
    }
}

/// Says on the stream what is due: the heartbeat, and finishes that are sent again.
fn speak(session: &mut Session, stream: &Stream, now: Instant) {
    if now >= session.next_beat {
        let seq = session.lease.beat(now);
        stream.outbox.send(Out::Heartbeat(v1::Heartbeat { seq, draining: session.draining }));
        session.next_beat = now + session.lease.interval();
    }
    for finish in session.resend_due(now) {
        stream.outbox.finish(finish);
    }
}

/// What the node says next; never, if there is no stream.
async fn next(stream: &mut Option<Stream>, nodes: &Nodes) -> Result<WorkResponse, Refusal> {
    match stream {
        Some(stream) => stream.next(nodes).await,
        None => pending().await,
    }
}

/// When the next node is to be asked to carry the session on; `None` while one is. A stream is in doubt when heartbeats
/// were not acknowledged for long; one that was only just found gets at least one heartbeat's time to prove itself.
fn ask_at(session: &Session, stream: Option<&Stream>, search: &Search) -> Option<Instant> {
    let next_try = search.next_try()?;
    let Some(stream) = stream else { return Some(next_try) };
    let doubtful_at = session.lease.doubtful_at().max(stream.attached_at + session.lease.interval());
    Some(next_try.max(doubtful_at))
}

fn wake_at(session: &Session, stream: Option<&Stream>, search: &Search) -> Instant {
    let said_at = stream.map(|_| session.resend_at().map_or(session.next_beat, |at| at.min(session.next_beat)));
    let times = [said_at, ask_at(session, stream, search)];
    times.into_iter().flatten().fold(session.lease.expires_at(), Instant::min)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
