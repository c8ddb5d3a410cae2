//! A session over the wire, without the SDK: this one can be silent, late and in two places.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use futures::FutureExt;
use futures::channel::mpsc;
use quorate_client::v1::agents_service_client::AgentsServiceClient;
use quorate_client::v1::work_request::Frame as Said;
use quorate_client::v1::work_response::Frame as Heard;
use quorate_client::v1::{self, FinishAck, Grant, WorkRequest, WorkResponse};
use tokio::time::{Instant, timeout};
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};
use uuid::Uuid;

use crate::event::Token;

/// The time to live of the sessions.
pub(super) const TTL: Duration = Duration::from_secs(2);
/// By how much earlier than the cluster the agent takes its lease for over.
const MARGIN: Duration = Duration::from_millis(200);
const BEAT: Duration = Duration::from_millis(400);
const CONNECT: Duration = Duration::from_secs(1);
const OPEN: Duration = Duration::from_secs(2);

/// One stream to one node.
pub(super) struct Stream {
    out: mpsc::UnboundedSender<WorkRequest>,
    incoming: Streaming<WorkResponse>,
}

impl Stream {
    /// Opens a stream with its first frame. The error is for a person.
    async fn attach(endpoint: &str, first: Said) -> Result<(Stream, v1::SessionOpened), String> {
        let attaching = async {
            let endpoint = Endpoint::from_shared(endpoint.to_owned()).map_err(|error| error.to_string())?;
            let channel = endpoint.connect_timeout(CONNECT).connect().await.map_err(|error| error.to_string())?;
            let (out, frames) = mpsc::unbounded();
            let _ = out.unbounded_send(WorkRequest { frame: Some(first) });
            let mut incoming =
                AgentsServiceClient::new(channel).work(frames).await.map_err(|status| status.to_string())?.into_inner();
            match incoming.message().await.map_err(|status| status.to_string())?.and_then(|word| word.frame) {
                Some(Heard::Opened(opened)) => Ok((Stream { out, incoming }, opened)),
                Some(Heard::Gone(_)) => Err("the session is gone".into()),
                _ => Err("the stream was closed".into()),
            }
        };
        timeout(OPEN, attaching).await.unwrap_or_else(|_| Err("no answer in time".into()))
    }

    fn send(&self, frame: Said) {
        // A stream that is over is noticed where it is read.
        let _ = self.out.unbounded_send(WorkRequest { frame: Some(frame) });
    }

    /// Gives the session back on this stream, and waits for its end: a stream that is dropped takes back what was not sent yet.
    async fn close(mut self) {
        self.send(Said::Close(v1::CloseSession {}));
        self.out.close_channel();
        self.end(CONNECT).await;
    }

    /// The same, and stays open for so long, if the node does not end it: one that does not reach the leader now remembers the
    /// close as long as there is a stream.
    pub(super) async fn give_back(mut self, patience: Duration) {
        self.send(Said::Close(v1::CloseSession {}));
        self.end(patience).await;
    }

    async fn end(&mut self, patience: Duration) {
        let _ = timeout(patience, async { while let Ok(Some(_)) = self.incoming.message().await {} }).await;
    }
}

/// A session as its agent sees it.
pub(super) struct Session {
    endpoints: Vec<String>,
    pub(super) id: u64,
    node: usize,
    attachment: u64,
    stream: Option<Stream>,
    renewed: Instant,
    awaited: VecDeque<(u64, Instant)>,
    next_beat: Instant,
    next_seq: u64,
    lost: HashSet<Token>,
    grants: VecDeque<Grant>,
    acks: HashMap<u64, FinishAck>,
    /// How much of the lease was left when the cluster ended the session.
    robbed_of: Option<Duration>,
}

pub(super) fn token_of(wire: Option<v1::Token>) -> Token {
    let wire = wire.unwrap_or_default();
    Token { position: wire.position, ordinal: wire.ordinal }
}

impl Session {
    /// Opens a session of one slot on that node.
    pub(super) async fn open(endpoints: &[String], node: usize, name: &str, role: &str) -> Result<Session, String> {
        let sent = Instant::now();
        let open = v1::OpenSession {
            request_id: Uuid::now_v7().to_string(),
            agent: name.to_owned(),
            roles: vec![role.to_owned()],
            slots: 1,
            ttl_ms: u64::try_from(TTL.as_millis()).unwrap_or(u64::MAX),
        };
        let (stream, opened) = Stream::attach(&endpoints[node], Said::Open(open)).await?;
        Ok(Session {
            endpoints: endpoints.to_vec(),
            id: opened.session_id,
            node,
            attachment: 1,
            stream: Some(stream),
            renewed: sent,
            awaited: VecDeque::new(),
            next_beat: Instant::now(),
            next_seq: 1,
            lost: HashSet::new(),
            grants: VecDeque::new(),
            acks: HashMap::new(),
            robbed_of: None,
        })
    }

    /// How much of the lease was left when the cluster ended the session, once: what was renewed holds for its whole time.
    pub(super) fn robbed_of(&mut self) -> Option<Duration> {
        self.robbed_of.take()
    }

    /// Whether there is a stream, as far as was read.
    pub(super) fn is_attached(&self) -> bool {
        self.stream.is_some()
    }

    /// Whether the agent may believe that the attempt is its own: its stream is whole, nothing that came takes the attempt
    /// away, and the lease has not run out.
    pub(super) fn holds(&mut self, token: Token) -> bool {
        self.drain();
        self.is_attached() && !self.lost.contains(&token) && Instant::now() < self.renewed + TTL - MARGIN
    }

    /// Reads what has come without waiting.
    fn drain(&mut self) {
        while let Some(stream) = &mut self.stream {
            let Some(message) = stream.incoming.message().now_or_never() else { return };
            self.take(message);
        }
    }

    fn take(&mut self, message: Result<Option<WorkResponse>, Status>) {
        let Ok(Some(message)) = message else {
            self.stream = None;
            return;
        };
        match message.frame {
            Some(Heard::HeartbeatAck(ack)) => {
                while let Some((seq, sent)) = self.awaited.pop_front() {
                    if seq > ack.seq {
                        self.awaited.push_front((seq, sent));
                        break;
                    }
                    if seq == ack.seq {
                        self.renewed = self.renewed.max(sent);
                    }
                }
            }
            Some(Heard::Grants(batch)) => self.grants.extend(batch.grants),
            Some(Heard::Acks(batch)) => self.acks.extend(batch.acks.into_iter().map(|ack| (ack.seq, ack))),
            Some(Heard::Cancel(cancel)) => {
                self.lost.insert(token_of(cancel.token));
            }
            Some(Heard::Gone(_)) => {
                self.stream = None;
                let left = (self.renewed + TTL).saturating_duration_since(Instant::now());
                self.robbed_of = Some(left).filter(|left| *left > MARGIN);
            }
            Some(Heard::Opened(_)) | None => {}
        }
    }

    /// Reads and sends heartbeats until a time, or until the stream is over.
    pub(super) async fn pump(&mut self, until: Instant) {
        self.pump_until(until, |_| false).await;
    }

    /// The same, or until a grant waits.
    pub(super) async fn await_grant(&mut self, until: Instant) -> Option<Grant> {
        self.pump_until(until, |session| !session.grants.is_empty()).await;
        self.grants.pop_front()
    }

    /// The same, or until the finish of that number is answered.
    pub(super) async fn await_answer(&mut self, seq: u64, until: Instant) -> Option<FinishAck> {
        self.pump_until(until, |session| session.acks.contains_key(&seq)).await;
        let answer = self.acks.remove(&seq);
        // Nobody waits for the others any more.
        self.acks.clear();
        answer
    }

    async fn pump_until(&mut self, until: Instant, enough: impl Fn(&Session) -> bool) {
        loop {
            self.drain();
            if enough(self) || Instant::now() >= until {
                return;
            }
            let Some(stream) = &mut self.stream else { return };
            let now = Instant::now();
            if now >= self.next_beat {
                let seq = self.next_seq;
                self.next_seq += 1;
                self.awaited.push_back((seq, now));
                self.next_beat = now + BEAT;
                stream.send(Said::Heartbeat(v1::Heartbeat { seq, draining: false }));
            }
            let message = tokio::select! {
                message = stream.incoming.message() => message,
                () = tokio::time::sleep_until(until.min(self.next_beat)) => continue,
            };
            self.take(message);
        }
    }

    /// Says that the attempt is completed. Returns the number under which it is answered.
    pub(super) fn complete(&mut self, task_id: u64, token: Token) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        let completed = v1::Completed { result: token.to_string().into(), children: Vec::new() };
        let token = Some(v1::Token { position: token.position, ordinal: token.ordinal });
        let outcome = Some(v1::finish::Outcome::Completed(completed));
        let batch = v1::FinishBatch { items: vec![v1::Finish { seq, task_id, token, outcome }] };
        if let Some(stream) = &self.stream {
            stream.send(Said::Finish(batch));
        }
        seq
    }

    /// Carries the session on from another node. The stream that it had is returned, still open.
    pub(super) async fn resume(&mut self, node: usize, holding: Token) -> Result<Option<Stream>, String> {
        self.attachment += 1;
        let resume = v1::ResumeSession {
            session_id: self.id,
            attachment: self.attachment,
            holding: vec![v1::Token { position: holding.position, ordinal: holding.ordinal }],
        };
        let (stream, opened) = Stream::attach(&self.endpoints[node], Said::Resume(resume)).await?;
        self.lost.extend(opened.lost.into_iter().map(|token| token_of(Some(token))));
        self.node = node;
        self.next_beat = Instant::now();
        Ok(self.stream.replace(stream))
    }

    /// Leaves the stream without a word.
    pub(super) fn break_off(&mut self) {
        self.stream = None;
    }

    /// Some other node.
    pub(super) fn elsewhere(&self, draw: usize) -> usize {
        (self.node + 1 + draw % self.endpoints.len().saturating_sub(1).max(1)) % self.endpoints.len()
    }

    /// Gives the session back.
    pub(super) async fn close(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.close().await;
        }
    }
}
