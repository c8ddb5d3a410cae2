//! Entries of all groups to one peer, on one long-lived stream.
//!
//! Each replication stream of openraft is a *session* on it. Requests go out as soon as openraft has them, up to a
//! bound on what is unanswered; answers come back in the order of the requests of a session.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use openraft::errors::{RPCError, Unreachable};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::link::{OPEN_TIMEOUT, Target};
use crate::followers::Followers;
use crate::proto;
use crate::proto::outcome::Result as Outcome;
use crate::proto::peer_client::PeerClient;
use crate::types::TC;

/// Requests of one session that may be unanswered. The receiver's queue is deeper.
const MAX_UNANSWERED: usize = 32;
/// Payload bytes of one session that may be unanswered, beside one request that is larger alone.
const MAX_UNANSWERED_BYTES: usize = 4 << 20;

/// What a session asks of the stream.
pub(crate) enum AppendCommand {
    /// Opens a session, on a connection that is made for it if there is none.
    Open {
        session: u64,
        outcomes: mpsc::UnboundedSender<Outcome>,
        ready: oneshot::Sender<Result<mpsc::UnboundedSender<proto::AppendFrame>, String>>,
    },
    /// Ends a session.
    Close { session: u64 },
}

struct Open {
    frames: mpsc::UnboundedSender<proto::AppendFrame>,
    outcomes: Streaming<proto::Outcomes>,
}

/// Keeps the stream and hands answers to their sessions until the link is gone.
pub(crate) async fn run_appends(
    target: Target,
    client: PeerClient<Channel>,
    mut commands: mpsc::UnboundedReceiver<AppendCommand>,
) {
    let mut sessions: HashMap<u64, mpsc::UnboundedSender<Outcome>> = HashMap::new();
    let mut open: Option<Open> = None;
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(AppendCommand::Close { session }) => {
                    sessions.remove(&session);
                    if let Some(open) = &open {
                        // A broken stream has no sessions to close.
                        let _ = open.frames.send(proto::AppendFrame { session, closes: true, ..Default::default() });
                    }
                }
                Some(AppendCommand::Open { session, outcomes, ready }) => {
                    let frames = match &open {
                        Some(open) => Ok(open.frames.clone()),
                        None => connect(&target, client.clone()).await.map(|new| {
                            let frames = new.frames.clone();
                            open = Some(new);
                            frames
                        }),
                    };
                    if frames.is_ok() {
                        sessions.insert(session, outcomes);
                    }
                    // A session that did not wait closes itself.
                    let _ = ready.send(frames);
                }
            },
            outcomes = answers(&mut open), if open.is_some() => match outcomes {
                Some(outcomes) => {
                    for outcome in outcomes.outcomes {
                        if let (Some(session), Some(result)) = (sessions.get(&outcome.id), outcome.result) {
                            let _ = session.send(result);
                        }
                    }
                }
                None => {
                    // Dropping their senders tells the sessions.
                    open = None;
                    sessions.clear();
                }
            },
        }
    }
}

async fn answers(open: &mut Option<Open>) -> Option<proto::Outcomes> {
    match open {
        Some(open) => open.outcomes.message().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

async fn connect(target: &Target, mut client: PeerClient<Channel>) -> Result<Open, String> {
    let (frames, queue) = mpsc::unbounded_channel();
    let request = target.hellos.sign(target.node, UnboundedReceiverStream::new(queue)).map_err(|e| e.to_string())?;
    match tokio::time::timeout(OPEN_TIMEOUT, client.append(request)).await {
        Ok(Ok(response)) => Ok(Open { frames, outcomes: response.into_inner() }),
        Ok(Err(status)) => Err(target.hellos.error(target.node, &target.address, &status).to_string()),
        Err(_) => Err(format!("node {} at {} does not answer", target.node, target.address)),
    }
}

/// One request that is not answered.
struct Unanswered {
    prev: Option<crate::types::LogId>,
    bytes: usize,
    term: u64,
    sent: Instant,
    #[cfg(feature = "planted")]
    last: Option<crate::types::LogId>,
}

/// The answers of one session, which also moves its requests: polled by openraft's replication task.
pub(crate) struct Session<S> {
    id: u64,
    route: proto::Route,
    /// `None` once it has ended.
    input: Option<S>,
    /// Frames.
    sent: u64,
    followers: Arc<Followers>,
    frames: mpsc::UnboundedSender<proto::AppendFrame>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    commands: mpsc::UnboundedSender<AppendCommand>,
    unanswered: VecDeque<Unanswered>,
    unanswered_bytes: usize,
    failed: bool,
}

impl<S> Session<S> {
    /// Opens a session on the stream behind `commands`.
    pub(crate) async fn open(
        id: u64,
        route: proto::Route,
        followers: Arc<Followers>,
        input: S,
        commands: mpsc::UnboundedSender<AppendCommand>,
    ) -> Result<Session<S>, RPCError<TC>> {
        let gone = |reason: String| RPCError::Unreachable(Unreachable::from_string(reason));
        let (sender, outcomes) = mpsc::unbounded_channel();
        let (ready, opened) = oneshot::channel();
        let closed = || gone("this node is shutting down".to_owned());
        commands.send(AppendCommand::Open { session: id, outcomes: sender, ready }).map_err(|_| closed())?;
        let frames = opened.await.map_err(|_| closed())?.map_err(gone)?;
        Ok(Session {
            id,
            route,
            input: Some(input),
            sent: 0,
            followers,
            frames,
            outcomes,
            commands,
            unanswered: VecDeque::new(),
            unanswered_bytes: 0,
            failed: false,
        })
    }

    fn send(&mut self, request: AppendEntriesRequest<TC>) {
        self.sent += 1;
        let bytes = request.entries.iter().map(|entry| 32 + payload_bytes(entry)).sum();
        let frame = proto::AppendFrame {
            session: self.id,
            number: self.sent,
            opens: self.sent == 1,
            closes: false,
            route: Some(self.route),
            vote: Some((&request.vote).into()),
            prev: request.prev_log_id.as_ref().map(Into::into),
            entries: request.entries.iter().map(Into::into).collect(),
            commit: request.leader_commit.as_ref().map(Into::into),
        };
        self.unanswered.push_back(Unanswered {
            prev: request.prev_log_id,
            bytes,
            term: request.vote.leader_id.term,
            sent: Instant::now(),
            #[cfg(feature = "planted")]
            last: request.entries.last().map(|entry| entry.log_id),
        });
        self.unanswered_bytes += bytes;
        // A broken stream is noticed by the end of the outcomes.
        let _ = self.frames.send(frame);
    }

    fn has_room(&self) -> bool {
        self.unanswered.len() < MAX_UNANSWERED && self.unanswered_bytes < MAX_UNANSWERED_BYTES
    }

    /// What openraft makes of an outcome.
    fn result(&mut self, outcome: Outcome) -> Result<StreamAppendResult<TC>, RPCError<TC>> {
        let request = self.unanswered.pop_front();
        if let Some(request) = &request {
            self.unanswered_bytes -= request.bytes;
            if matches!(outcome, Outcome::Matched(_) | Outcome::Conflict(_)) {
                self.followers.answered(self.route.to, request.term, request.sent);
            }
        }
        match outcome {
            Outcome::Matched(matched) => Ok(Ok(matched.at.map(Into::into))),
            Outcome::Conflict(at) => {
                let at = request.and_then(|request| request.prev).unwrap_or_else(|| at.into());
                Ok(Err(StreamAppendError::Conflict(at)))
            }
            Outcome::Higher(vote) => Ok(Err(StreamAppendError::HigherVote(vote.into()))),
            Outcome::Refused(reason) => Err(RPCError::Unreachable(Unreachable::from_string(reason))),
        }
    }
}

fn payload_bytes(entry: &crate::types::Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(proposal) => proposal.0.len(),
        _ => 0,
    }
}

impl<S> Stream for Session<S>
where
    S: Stream<Item = AppendEntriesRequest<TC>> + Unpin,
{
    type Item = Result<StreamAppendResult<TC>, RPCError<TC>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.failed {
            return Poll::Ready(None);
        }
        // Requests first: what can go out must not wait for the answers to be looked at.
        while this.has_room()
            && let Some(input) = &mut this.input
        {
            match Pin::new(input).poll_next(cx) {
                Poll::Ready(Some(request)) => this.send(request),
                Poll::Ready(None) => this.input = None,
                Poll::Pending => break,
            }
        }
        match this.outcomes.poll_recv(cx) {
            Poll::Ready(Some(outcome)) => {
                let result = this.result(outcome);
                this.failed = !matches!(result, Ok(Ok(_)));
                Poll::Ready(Some(result))
            }
            #[cfg(feature = "planted")]
            Poll::Ready(None)
                if crate::planted::is("minority-commit")
                    && let Some(last) = this.unanswered.pop_front().and_then(|request| request.last) =>
            {
                Poll::Ready(Some(Ok(Ok(Some(last)))))
            }
            Poll::Ready(None) => {
                this.failed = true;
                let lost = Unreachable::from_string("the append stream broke");
                Poll::Ready(Some(Err(RPCError::Unreachable(lost))))
            }
            Poll::Pending if this.input.is_none() && this.unanswered.is_empty() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S> Drop for Session<S> {
    fn drop(&mut self) {
        // Fails only when the link is gone, and the session with it.
        let _ = self.commands.send(AppendCommand::Close { session: self.id });
    }
}
