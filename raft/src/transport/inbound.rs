//! The long-lived streams of a peer, on the receiving side: heartbeats and appends of all its groups.

use std::collections::{HashMap, hash_map};
use std::sync::Arc;

use futures::stream::{BoxStream, FuturesUnordered, SelectAll};
use futures::{FutureExt as _, Stream, StreamExt as _};
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Sender;
use crate::group::{Directory, Running};
use crate::proto;
use crate::proto::outcome::Result as Outcome;
use crate::types::{Entry, Malformed, TC};

/// Requests of one session that wait for the group. The sender stops well before it is full.
const SESSION_DEPTH: usize = 64;
/// Outcomes in one frame.
const FRAME_OUTCOMES: usize = 256;

pub(super) type Replies = mpsc::Sender<Result<proto::Outcomes, Status>>;

fn outcome(result: StreamAppendResult<TC>) -> Outcome {
    match result {
        Ok(at) => Outcome::Matched(proto::Matched { at: at.as_ref().map(Into::into) }),
        Err(StreamAppendError::Conflict(at)) => Outcome::Conflict((&at).into()),
        Err(StreamAppendError::HigherVote(vote)) => Outcome::Higher((&vote).into()),
    }
}

fn refused(reason: impl ToString) -> Outcome {
    Outcome::Refused(reason.to_string())
}

/// Takes what is ready of `more` beside `first`: one frame for all of it.
fn gather<S: Stream<Item = proto::Outcome> + Unpin>(first: proto::Outcome, more: &mut S) -> proto::Outcomes {
    let mut outcomes = vec![first];
    while outcomes.len() < FRAME_OUTCOMES
        && let Some(Some(next)) = more.next().now_or_never()
    {
        outcomes.push(next);
    }
    proto::Outcomes { outcomes }
}

/// Serves the heartbeat stream of one peer until it ends.
pub(super) async fn serve_heartbeats(
    groups: Arc<Directory>,
    sender: Sender,
    mut frames: Streaming<proto::HeartbeatFrame>,
    replies: Replies,
) {
    let mut answers = FuturesUnordered::new();
    loop {
        tokio::select! {
            frame = frames.message() => {
                let Ok(Some(frame)) = frame else { return };
                if let Err(status) = sender.check() {
                    // The stream ends with it, whether the peer still listens or not.
                    let _ = replies.send(Err(status)).await;
                    return;
                }
                answers.extend(frame.beats.into_iter().map(|beat| heartbeat(groups.clone(), beat)));
            }
            Some(first) = answers.next(), if !answers.is_empty() => {
                if replies.send(Ok(gather(first, &mut answers))).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn heartbeat(groups: Arc<Directory>, beat: proto::Heartbeat) -> proto::Outcome {
    let id = beat.id;
    let result = match (groups.route(beat.route.as_ref()), beat.vote) {
        (Ok(group), Some(vote)) => {
            let prev = beat.prev.map(Into::into);
            let request = AppendEntriesRequest {
                vote: vote.into(),
                prev_log_id: prev,
                entries: Vec::new(),
                leader_commit: beat.commit.map(Into::into),
            };
            match group.raft.append_entries(request).await {
                Ok(response) => outcome(response.into_stream_result(prev, prev)),
                Err(error) => refused(error),
            }
        }
        (Err(reason), _) => refused(reason),
        (_, None) => refused("a heartbeat without a vote"),
    };
    proto::Outcome { id, result: Some(result) }
}

/// What the answers of all sessions give.
enum Answer {
    Outcome(proto::Outcome),
    Ended(u64),
}

/// The sessions of a stream that are open.
struct Sessions<T> {
    open: HashMap<u64, Session<T>>,
}

struct Session<T> {
    /// Where its requests go.
    requests: mpsc::Sender<T>,
    /// The number of its last frame.
    last: u64,
}

impl<T> Sessions<T> {
    fn new() -> Sessions<T> {
        Sessions { open: HashMap::new() }
    }

    fn close(&mut self, session: u64) {
        self.open.remove(&session);
    }

    /// Opens a session: what is put into it comes out of the receiver. `None` if it is open, because the word came twice: a second
    /// one in its place would go down with the end of the first, and its peer wait for answers in vain.
    fn begin(&mut self, session: u64) -> Option<mpsc::Receiver<T>> {
        let hash_map::Entry::Vacant(place) = self.open.entry(session) else { return None };
        let (requests, input) = mpsc::channel(SESSION_DEPTH);
        place.insert(Session { requests, last: 0 });
        Some(input)
    }

    /// Where the frame of this number goes. `None` if its session has ended, or the frame has come before: its answer would be
    /// taken for that of the next one.
    fn take(&mut self, session: u64, number: u64) -> Option<&mpsc::Sender<T>> {
        let open = self.open.get_mut(&session).filter(|open| open.last < number)?;
        open.last = number;
        Some(&open.requests)
    }
}

/// Serves the append stream of one peer until it ends.
pub(super) async fn serve_appends(
    groups: Arc<Directory>,
    sender: Sender,
    mut frames: Streaming<proto::AppendFrame>,
    replies: Replies,
) {
    let mut sessions = Sessions::new();
    let mut answers: SelectAll<BoxStream<'static, Answer>> = SelectAll::new();
    loop {
        let answer = tokio::select! {
            frame = frames.message() => {
                let Ok(Some(frame)) = frame else { return };
                if let Err(status) = sender.check() {
                    let _ = replies.send(Err(status)).await;
                    return;
                }
                let session = frame.session;
                match accept(&groups, &mut sessions, &mut answers, frame) {
                    Ok(()) => continue,
                    Err(reason) => {
                        sessions.close(session);
                        Answer::Outcome(proto::Outcome { id: session, result: Some(refused(reason)) })
                    }
                }
            }
            Some(answer) = answers.next(), if !answers.is_empty() => answer,
        };
        match answer {
            Answer::Ended(session) => {
                sessions.close(session);
            }
            Answer::Outcome(first) => {
                let mut outcomes = (&mut answers).filter_map(|answer| {
                    std::future::ready(match answer {
                        Answer::Outcome(outcome) => Some(outcome),
                        Answer::Ended(session) => {
                            sessions.close(session);
                            None
                        }
                    })
                });
                let frame = gather(first, &mut outcomes);
                if replies.send(Ok(frame)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Hands one frame to its session, which it may open or close. What still comes for a session that has ended is dropped.
fn accept(
    groups: &Directory,
    sessions: &mut Sessions<AppendEntriesRequest<TC>>,
    answers: &mut SelectAll<BoxStream<'static, Answer>>,
    frame: proto::AppendFrame,
) -> Result<(), String> {
    let session = frame.session;
    if frame.closes {
        sessions.close(session);
        return Ok(());
    }
    if frame.opens {
        let group = groups.route(frame.route.as_ref())?;
        if let Some(input) = sessions.begin(session) {
            answers.push(open(&group, session, input));
        }
    }
    let Some(requests) = sessions.take(session, frame.number) else { return Ok(()) };
    let request = decode(frame).map_err(|error| error.to_string())?;
    requests.try_send(request).map_err(|_| "more requests than the session may have under way".to_owned())
}

fn open(group: &Running, session: u64, input: mpsc::Receiver<AppendEntriesRequest<TC>>) -> BoxStream<'static, Answer> {
    let results = group.raft.stream_append(ReceiverStream::new(input));
    let outcomes = results.map(move |result| {
        let result = match result {
            Ok(result) => outcome(result),
            Err(error) => refused(error),
        };
        Answer::Outcome(proto::Outcome { id: session, result: Some(result) })
    });
    outcomes.chain(futures::stream::iter([Answer::Ended(session)])).boxed()
}

fn decode(frame: proto::AppendFrame) -> Result<AppendEntriesRequest<TC>, Malformed> {
    let vote = frame.vote.ok_or_else(|| Malformed { what: "append", detail: "it has no vote".to_owned() })?;
    let entries = frame.entries.into_iter().map(Entry::try_from).collect::<Result<Vec<_>, _>>()?;
    Ok(AppendEntriesRequest {
        vote: vote.into(),
        prev_log_id: frame.prev.map(Into::into),
        entries,
        leader_commit: frame.commit.map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_opened_twice_is_one() {
        let mut sessions = Sessions::new();
        let mut input = sessions.begin(7).expect("it is new");
        assert!(sessions.begin(7).is_none(), "what comes twice opens nothing");
        sessions.take(7, 1).expect("it is open").try_send("a request").expect("there is room");
        assert_eq!(input.try_recv(), Ok("a request"), "the first one goes on");
        sessions.close(7);
        assert!(sessions.begin(7).is_some(), "after its end the number is free");
    }

    /// An answer that comes twice would count for the request after it, and for its time (`followers`).
    #[test]
    fn a_frame_that_comes_twice_is_answered_once() {
        let mut sessions = Sessions::<()>::new();
        let _input = sessions.begin(7).expect("it is new");
        assert!(sessions.take(7, 1).is_some());
        assert!(sessions.take(7, 1).is_none());
        assert!(sessions.take(7, 2).is_some() && sessions.take(7, 1).is_none());
        assert!(sessions.take(8, 1).is_none(), "it is not open");
    }
}
