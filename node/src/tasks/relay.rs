//! This node's end of the session relay: one stream to the leader for the sessions of all agents on this node.
//!
//! The relay finds the leader by itself. When the leader changes, or the stream breaks, it connects anew, attaches every
//! session with the attempts that its agent holds, and sends again what was not acknowledged. An agent sees nothing of
//! it but a delay.
//!
//! Invariants:
//! - A finish is kept until the leader has answered it, and answered once to the agent.
//! - What the relay says an agent *holds* is every attempt that was sent to it, or that it named when it resumed, and
//!   whose end was not acknowledged.
//! - An attempt is sent to a stream at most once.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use prost::Message as _;
use quorate_api::{limits, v1};
use quorate_raft::NodeId;
use quorate_state::Token;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use v1::work_response::Frame;

use super::frames::{
    Attach, Attached, Beat, Down, Gathered as _, Gone, Place, SessionAck, SessionFinish, SessionGrant, Up,
};
use super::leader::Leader;
use super::{link, wire};
use crate::context::Context;
use crate::error::Error;
use crate::peers::kind;

/// How long a heartbeat may wait here for others to travel with.
const BEAT_WAIT: Duration = Duration::from_millis(100);
/// How long to wait before the leader is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Frames between this node and a leader in the same process.
const LOCAL_FRAMES: usize = 64;
/// Words of agents' streams that wait for the relay.
const WORDS: usize = 1_024;
/// Finishes of one session that are not acknowledged: one for each slot, and as many again that are sent once more.
const UNACKNOWLEDGED: usize = 2 * limits::SLOTS as usize;

/// Where frames for one agent go. The agent's stream ends when the last sender is dropped.
pub(super) type AgentStream = mpsc::Sender<Result<v1::WorkResponse, Status>>;

/// What an agent's stream says to the relay.
pub(super) enum Word {
    /// The stream is there.
    Attach {
        session: u64,
        attachment: u64,
        holding: Vec<Token>,
        agent: AgentStream,
        /// Cancelled when the relay lets go of the stream.
        released: DropGuard,
    },
    /// A heartbeat.
    Beat { session: u64, attachment: u64, seq: u64, draining: bool },
    /// Ends of attempts, already checked.
    Finish { session: u64, attachment: u64, finishes: Vec<v1::Finish> },
    /// The agent ends its session.
    Close { session: u64, attachment: u64 },
    /// The stream broke.
    Detach { session: u64, attachment: u64 },
}

/// A session whose stream this node holds.
struct Local {
    attachment: u64,
    agent: AgentStream,
    _released: DropGuard,
    /// Tokens with their tasks; the task of an attempt that was named on resume is not known.
    holding: HashMap<Token, Option<u64>>,
    unacknowledged: BTreeMap<u64, v1::Finish>,
    opened: bool,
    closing: bool,
}

enum Link {
    Down,
    Connecting(BoxFuture<'static, Result<LeaderStream, Error>>),
    Up(LeaderStream),
}

/// A stream to the leader.
struct LeaderStream {
    leader: NodeId,
    sender: mpsc::Sender<Bytes>,
    receiver: mpsc::Receiver<Bytes>,
}

struct Relay {
    context: Context,
    leader: watch::Receiver<Option<Arc<Leader>>>,
    sessions: HashMap<u64, Local>,
    link: Link,
    pending: Up,
    /// The newest heartbeat of each session that has sent one, and when they are to go.
    beats: BTreeMap<u64, Beat>,
    beats_due: Option<Instant>,
    next_try: Instant,
    pause: Duration,
}

/// Starts the relay. It ends when the node stops.
pub(super) fn start(
    context: Context,
    leader: watch::Receiver<Option<Arc<Leader>>>,
) -> (mpsc::Sender<Word>, BoxFuture<'static, ()>) {
    let (sender, words) = mpsc::channel(WORDS);
    (sender, Relay::new(context, leader).run(words).boxed())
}

enum Happened {
    Stopped,
    Word(Option<Word>),
    Frame(Option<Bytes>),
    Connected(Result<LeaderStream, Error>),
    LeaderChanged,
    Again,
}

impl Relay {
    /// Without sessions and without a stream to the leader.
    fn new(context: Context, leader: watch::Receiver<Option<Arc<Leader>>>) -> Relay {
        Relay {
            context,
            leader,
            sessions: HashMap::new(),
            link: Link::Down,
            pending: Up::default(),
            beats: BTreeMap::new(),
            beats_due: None,
            next_try: Instant::now(),
            pause: FIRST_PAUSE,
        }
    }

    async fn run(mut self, mut words: mpsc::Receiver<Word>) {
        let mut leadership = self.context.control.leadership();
        let shutdown = self.context.shutdown.clone();
        loop {
            self.connect_if_needed();
            let stuck = !self.flush();
            let timer = self.timer();
            let happened = tokio::select! {
                biased;
                () = shutdown.cancelled() => Happened::Stopped,
                changed = leadership.changed() => match changed {
                    Ok(()) => Happened::LeaderChanged,
                    Err(_) => Happened::Stopped,
                },
                happened = self.link.next(stuck) => happened,
                word = words.recv() => Happened::Word(word),
                () = sleep_or_never(timer) => Happened::Again,
            };
            match happened {
                Happened::Stopped | Happened::Word(None) => return,
                Happened::Word(Some(word)) => {
                    self.listen(word);
                    // What else waits goes into the same frame, and so does what other agents are about to say.
                    yield_now().await;
                    for _ in 0..WORDS {
                        let Ok(word) = words.try_recv() else { break };
                        self.listen(word);
                    }
                }
                Happened::Frame(Some(frame)) => self.receive(frame),
                Happened::Frame(None) => self.lose_link(),
                Happened::Connected(Ok(link)) => self.take_link(link),
                Happened::Connected(Err(error)) => {
                    tracing::debug!(%error, "cannot reach the leader with the sessions of this node; trying again");
                    self.lose_link();
                }
                Happened::LeaderChanged => self.follow(),
                Happened::Again => {}
            }
        }
    }

    /// When the loop must wake up by itself.
    fn timer(&self) -> Option<Instant> {
        match self.link {
            Link::Down if !self.sessions.is_empty() => Some(self.next_try),
            Link::Up(_) => self.beats_due,
            _ => None,
        }
    }

    fn connect_if_needed(&mut self) {
        if matches!(self.link, Link::Down) && !self.sessions.is_empty() && Instant::now() >= self.next_try {
            let leader = self.leader.borrow().clone();
            self.link = Link::Connecting(connect(self.context.clone(), leader).boxed());
        }
    }

    fn take_link(&mut self, link: LeaderStream) {
        self.link = Link::Up(link);
        self.pending = Up::default();
        for (&session, local) in &self.sessions {
            local.announce(session, &mut self.pending);
        }
    }

    fn lose_link(&mut self) {
        self.link = Link::Down;
        self.pending = Up::default();
        self.next_try = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Leaves a stream to a node that leads no more.
    fn follow(&mut self) {
        self.pause = FIRST_PAUSE;
        let known = self.context.control.leader().map(|(node, _)| node);
        match &self.link {
            Link::Up(link) if known.is_some_and(|leader| leader != link.leader) => self.lose_link(),
            Link::Down => self.next_try = Instant::now(),
            _ => {}
        }
    }

    fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// Sends what waits. Returns false if the stream is full.
    fn flush(&mut self) -> bool {
        let Link::Up(LeaderStream { sender, .. }) = &self.link else { return true };
        let sender = sender.clone();
        if self.beats_due.is_some_and(|due| due <= Instant::now()) || !self.pending.is_empty() {
            self.pending.beats.extend(std::mem::take(&mut self.beats).into_values());
            self.beats_due = None;
        }
        while !self.pending.is_empty() {
            match sender.try_reserve() {
                Ok(permit) => permit.send(self.pending.take_frame().unwrap_or_default()),
                Err(TrySendError::Full(())) => return false,
                Err(TrySendError::Closed(())) => {
                    self.lose_link();
                    return true;
                }
            }
        }
        true
    }

    fn listen(&mut self, word: Word) {
        match word {
            Word::Attach { session, attachment, holding, agent, released } => {
                let stale = self.sessions.get(&session).is_some_and(|local| local.attachment > attachment);
                if stale {
                    // Dropping both halves ends the stream that came too late.
                    return;
                }
                let local = Local {
                    attachment,
                    agent,
                    _released: released,
                    holding: holding.into_iter().map(|token| (token, None)).collect(),
                    unacknowledged: BTreeMap::new(),
                    opened: false,
                    closing: false,
                };
                if self.is_up() {
                    local.announce(session, &mut self.pending);
                }
                self.sessions.insert(session, local);
            }
            Word::Beat { session, attachment, seq, draining } => {
                if self.local(session, attachment).is_some() {
                    self.beats.insert(session, Beat { session, attachment, seq, draining });
                    // One that ends the grants does not wait for company.
                    let wait = if draining { Duration::ZERO } else { BEAT_WAIT };
                    let due = Instant::now() + wait;
                    self.beats_due = Some(self.beats_due.map_or(due, |before| before.min(due)));
                }
            }
            Word::Finish { session, attachment, finishes } => self.finish(session, attachment, finishes),
            Word::Close { session, attachment } => {
                let up = self.is_up();
                if let Some(local) = self.local(session, attachment) {
                    local.closing = true;
                    if up {
                        self.pending.closes.push(Place { session, attachment });
                    }
                }
            }
            Word::Detach { session, attachment } => {
                if self.local(session, attachment).is_some() {
                    self.let_go(session);
                }
            }
        }
    }

    fn local(&mut self, session: u64, attachment: u64) -> Option<&mut Local> {
        self.sessions.get_mut(&session).filter(|local| local.attachment == attachment)
    }

    fn finish(&mut self, session: u64, attachment: u64, finishes: Vec<v1::Finish>) {
        let up = self.is_up();
        let Some(local) = self.sessions.get_mut(&session).filter(|local| local.attachment == attachment) else {
            return;
        };
        let mut refused = Vec::new();
        for finish in finishes {
            if local.unacknowledged.len() >= UNACKNOWLEDGED {
                let error = Error::overloaded(BEAT_WAIT).to_wire();
                refused.push(v1::FinishAck { seq: finish.seq, error: Some(error), child_ids: Vec::new() });
                continue;
            }
            if up {
                self.pending.finishes.push(SessionFinish { session, finish: Some(finish.clone()) });
            }
            local.unacknowledged.insert(finish.seq, finish);
        }
        if !refused.is_empty() {
            self.tell(session, Frame::Acks(v1::FinishAckBatch { acks: refused }));
        }
    }

    /// Forgets a session whose stream is gone, and says so to the leader.
    fn let_go(&mut self, session: u64) {
        if let Some(local) = self.sessions.remove(&session)
            && self.is_up()
        {
            self.pending.detaches.push(Place { session, attachment: local.attachment });
        }
        self.beats.remove(&session);
    }

    /// Sends a frame to the session's agent. One that does not take its frames is treated as gone; it can resume.
    fn tell(&mut self, session: u64, frame: Frame) {
        let Some(local) = self.sessions.get(&session) else { return };
        if local.agent.try_send(Ok(v1::WorkResponse { frame: Some(frame) })).is_err() {
            self.let_go(session);
        }
    }

    fn receive(&mut self, frame: Bytes) {
        let down = match Down::decode(frame) {
            Ok(down) => down,
            Err(error) => {
                tracing::error!(%error, "a relay frame from the leader does not decode; connecting anew");
                return self.lose_link();
            }
        };
        self.pause = FIRST_PAUSE;
        for attached in down.attached {
            self.attached(attached);
        }
        for beat in down.beats {
            if self.local(beat.session, beat.attachment).is_some() {
                self.tell(beat.session, Frame::HeartbeatAck(v1::HeartbeatAck { seq: beat.seq }));
            }
        }
        self.acknowledged(down.acks);
        for cancel in down.cancels {
            let Some(word) = cancel.cancel else { continue };
            let (Some(local), Some(token)) = (self.sessions.get_mut(&cancel.session), &word.token) else { continue };
            if !local.opened {
                // It is among what the stream is told to be lost when it is taken in.
                continue;
            }
            local.holding.remove(&wire::token_from_wire(token));
            self.tell(cancel.session, Frame::Cancel(word));
        }
        self.granted(down.grants);
        for gone in down.gone {
            self.gone(gone);
        }
    }

    fn attached(&mut self, attached: Attached) {
        let Attached { session, attachment, ttl_ms, lost } = attached;
        let Some(local) = self.sessions.get_mut(&session).filter(|local| local.attachment == attachment) else {
            return;
        };
        let finished: Vec<Token> = local.unacknowledged.values().filter_map(finish_token).collect();
        let first = !std::mem::replace(&mut local.opened, true);
        let mut cancels = Vec::new();
        for token in &lost {
            let task_id = local.holding.remove(&wire::token_from_wire(token)).flatten().unwrap_or(0);
            // A finish that is under way gets its own answer.
            if !finished.contains(&wire::token_from_wire(token)) {
                cancels.push(v1::CancelAttempt { task_id, token: Some(*token) });
            }
        }
        if first {
            return self.tell(session, Frame::Opened(v1::SessionOpened { session_id: session, ttl_ms, lost }));
        }
        for cancel in cancels {
            self.tell(session, Frame::Cancel(cancel));
        }
    }

    fn acknowledged(&mut self, acks: Vec<SessionAck>) {
        let mut by_session: BTreeMap<u64, Vec<v1::FinishAck>> = BTreeMap::new();
        for SessionAck { session, ack, token } in acks {
            let (Some(ack), Some(token), Some(local)) = (ack, token, self.sessions.get_mut(&session)) else { continue };
            // A second answer to a finish that was sent twice goes no further.
            if local.unacknowledged.get(&ack.seq).is_none_or(|finish| finish.token != Some(token)) {
                continue;
            }
            local.unacknowledged.remove(&ack.seq);
            local.holding.remove(&wire::token_from_wire(&token));
            by_session.entry(session).or_default().push(ack);
        }
        for (session, acks) in by_session {
            self.tell(session, Frame::Acks(v1::FinishAckBatch { acks }));
        }
    }

    fn granted(&mut self, grants: Vec<SessionGrant>) {
        let mut by_session: BTreeMap<u64, Vec<v1::Grant>> = BTreeMap::new();
        for SessionGrant { session, grant } in grants {
            let (Some(grant), Some(local)) = (grant, self.sessions.get_mut(&session)) else { continue };
            // The stream that the agent has left took it; the leader finds it missing when it takes this one in.
            if !local.opened {
                continue;
            }
            let Some(token) = grant.token.as_ref().map(wire::token_from_wire) else { continue };
            if local.holding.insert(token, Some(grant.task_id)).is_none() {
                by_session.entry(session).or_default().push(grant);
            }
        }
        for (session, grants) in by_session {
            self.tell(session, Frame::Grants(v1::GrantBatch { grants }));
        }
    }

    fn gone(&mut self, gone: Gone) {
        let Gone { session, attachment, error } = gone;
        let Some(local) = self.sessions.get(&session).filter(|local| local.attachment <= attachment) else { return };
        // A session that its agent has closed, or has taken elsewhere, just ends its stream.
        if let (false, Some(error)) = (local.closing, error) {
            self.tell(session, Frame::Gone(v1::SessionGone { error: Some(error) }));
        }
        self.sessions.remove(&session);
        self.beats.remove(&session);
    }
}

impl Local {
    /// Tells a leader that does not know yet of the stream, what its agent holds and what was not answered.
    fn announce(&self, session: u64, up: &mut Up) {
        let mut holding: Vec<Token> = self.holding.keys().copied().collect();
        holding.extend(self.unacknowledged.values().filter_map(finish_token));
        holding.sort_unstable();
        holding.dedup();
        up.attaches.push(Attach {
            session,
            attachment: self.attachment,
            holding: holding.into_iter().map(wire::token_to_wire).collect(),
        });
        let again = self.unacknowledged.values().cloned();
        up.finishes.extend(again.map(|finish| SessionFinish { session, finish: Some(finish) }));
        if self.closing {
            up.closes.push(Place { session, attachment: self.attachment });
        }
    }
}

impl Link {
    /// What happens next on the link; never, if it is down. `stuck`: also whether the stream takes frames again.
    async fn next(&mut self, stuck: bool) -> Happened {
        match self {
            Link::Down => pending().await,
            Link::Connecting(connecting) => Happened::Connected(connecting.await),
            Link::Up(link) => tokio::select! {
                biased;
                frame = link.receiver.recv() => Happened::Frame(frame),
                // The permit is given back at once, and `flush` takes it.
                _ = link.sender.reserve(), if stuck => Happened::Again,
            },
        }
    }
}

async fn sleep_or_never(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}

async fn connect(context: Context, leading: Option<Arc<Leader>>) -> Result<LeaderStream, Error> {
    if let Some(leader) = leading {
        let (sender, inbound) = mpsc::channel(LOCAL_FRAMES);
        let (outbound, receiver) = mpsc::channel(LOCAL_FRAMES);
        tokio::spawn(link::serve(leader, context.node, inbound, outbound));
        return Ok(LeaderStream { leader: context.node, sender, receiver });
    }
    let Some((leader, _)) = context.control.leader().filter(|(node, _)| *node != context.node) else {
        return Err(Error::no_leader());
    };
    let streams = timeout(CONNECT_TIMEOUT, context.peers.stream(leader, kind::SESSION_RELAY)).await;
    let (sender, receiver) = streams.map_err(|_| Error::no_leader())??;
    Ok(LeaderStream { leader, sender, receiver })
}

fn finish_token(finish: &v1::Finish) -> Option<Token> {
    finish.token.as_ref().map(wire::token_from_wire)
}

/// A guard whose drop tells the other side of the returned token.
pub(super) fn release_guard() -> (CancellationToken, DropGuard) {
    let token = CancellationToken::new();
    (token.clone(), token.drop_guard())
}

#[cfg(test)]
mod tests {
    use super::super::frames::SessionCancel;
    use super::*;
    use crate::testing::{Stage, on_stage};

    const SESSION: u64 = 5;
    const TASK: u64 = 70;
    const TOKEN: v1::Token = v1::Token { position: 9, ordinal: 2 };

    type Told = mpsc::Receiver<Result<v1::WorkResponse, Status>>;

    /// A relay with a stream that the leader has not taken in yet, and what its agent is told.
    fn attached(stage: &Stage, attachment: u64) -> (Relay, Told) {
        let mut relay = Relay::new(stage.context.clone(), watch::channel(None).1);
        let (agent, told) = mpsc::channel(8);
        let (_, released) = release_guard();
        relay.listen(Word::Attach { session: SESSION, attachment, holding: Vec::new(), agent, released });
        (relay, told)
    }

    /// A grant of one task, as the leader sends it.
    fn granted() -> Down {
        let grant = v1::Grant { task_id: TASK, token: Some(TOKEN), ..v1::Grant::default() };
        Down { grants: vec![SessionGrant { session: SESSION, grant: Some(grant) }], ..Down::default() }
    }

    /// The word that a stream is taken in.
    fn taken_in(attachment: u64) -> Vec<Attached> {
        vec![Attached { session: SESSION, attachment, ttl_ms: 10_000, lost: Vec::new() }]
    }

    fn receive(relay: &mut Relay, down: &Down) {
        relay.receive(down.encode_to_vec().into());
    }

    /// What the agent is told next.
    fn next(told: &mut Told) -> Option<Frame> {
        told.try_recv().ok().and_then(|said| said.expect("no error").frame)
    }

    fn is_opened(frame: Option<&Frame>) -> bool {
        matches!(frame, Some(Frame::Opened(opened)) if opened.session_id == SESSION)
    }

    fn is_grant(frame: Option<&Frame>) -> bool {
        matches!(frame, Some(Frame::Grants(batch)) if batch.grants.iter().map(|grant| grant.task_id).eq([TASK]))
    }

    #[tokio::test]
    async fn a_grant_that_comes_before_a_stream_is_opened_goes_to_its_agent_only_behind_that_word() {
        on_stage(async |stage| {
            let (mut relay, mut told) = attached(&stage, 1);
            // The leader has sent it to the stream that the agent has left.
            receive(&mut relay, &granted());
            assert_eq!(next(&mut told), None, "an agent whose stream is not opened takes nothing");
            let mut up = Up::default();
            relay.sessions[&SESSION].announce(SESSION, &mut up);
            assert_eq!(up.attaches[0].holding, [], "so the leader finds it missing, and sends it again");
            receive(&mut relay, &Down { attached: taken_in(1), ..granted() });
            let (first, second) = (next(&mut told), next(&mut told));
            assert!(is_opened(first.as_ref()) && is_grant(second.as_ref()), "{first:?} {second:?}");
            receive(&mut relay, &granted());
            assert_eq!(next(&mut told), None, "it has it");
        })
        .await;
    }

    #[tokio::test]
    async fn neither_a_cancel_nor_the_word_of_an_earlier_stream_goes_before_that_a_stream_is_opened() {
        on_stage(async |stage| {
            let (mut relay, mut told) = attached(&stage, 2);
            let cancel = v1::CancelAttempt { task_id: TASK, token: Some(TOKEN) };
            let cancels = vec![SessionCancel { session: SESSION, cancel: Some(cancel) }];
            receive(&mut relay, &Down { cancels, ..Down::default() });
            receive(&mut relay, &Down { attached: taken_in(1), ..granted() });
            assert_eq!(next(&mut told), None, "that was about the stream that it has left");
            receive(&mut relay, &Down { attached: taken_in(2), ..Down::default() });
            receive(&mut relay, &granted());
            let (first, second) = (next(&mut told), next(&mut told));
            assert!(is_opened(first.as_ref()) && is_grant(second.as_ref()), "{first:?} {second:?}");
        })
        .await;
    }
}
