//! The gRPC service `AgentsService`: an agent's one stream, to any node.
//!
//! This file is the stream's inbound half: it opens or resumes the session, checks what the agent says, and passes it to
//! the relay. What the agent gets is sent by the relay.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;
use quorate_api::v1::agents_service_server::AgentsService;
use quorate_api::v1::work_request::Frame as Said;
use quorate_api::v1::work_response::Frame;
use quorate_api::{limits, v1};
use quorate_raft::NodeId;
use quorate_state::control::{Command, Reply};
use quorate_state::{Operation, SessionId, Token};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::relay::{AgentStream, Word, release_guard};
use super::{Tasks, wire};
use crate::error::{Error, ErrorReason};
use crate::peers::{CallHandler, kind};

/// Frames for one agent that wait to be written. An agent that reads so little is cut off; it can resume.
const AGENT_FRAMES: usize = 1_024;
/// How long a stream may take to say its first word.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How long opening a session may take, a change of leader in between included.
const OPEN: Duration = Duration::from_secs(30);
/// How long the leader may take to say where sessions are, in a listing that can do without.
const PLACES: Duration = Duration::from_secs(1);

/// Answers `AgentsService`.
#[derive(Clone)]
pub struct AgentsApi {
    pub(super) tasks: Arc<Tasks>,
}

#[tonic::async_trait]
impl AgentsService for AgentsApi {
    type WorkStream = ReceiverStream<Result<v1::WorkResponse, Status>>;

    async fn work(&self, request: Request<Streaming<v1::WorkRequest>>) -> Result<Response<Self::WorkStream>, Status> {
        let (agent, outbound) = mpsc::channel(AGENT_FRAMES);
        tokio::spawn(work(self.tasks.clone(), request.into_inner(), agent));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let deadline = wire::deadline(request.metadata());
        let since = self.tasks.fresh(deadline).await?;
        let places = self.tasks.places(deadline).await;
        let agents = self.tasks.context.control.read_since(since, |state| {
            state
                .sessions()
                .map(|view| v1::Agent {
                    session_id: view.id.0,
                    agent: view.agent,
                    roles: view.roles.iter().map(ToString::to_string).collect(),
                    slots: view.slots,
                    running: u32::try_from(view.running.len()).unwrap_or(u32::MAX),
                    node_id: places.get(&view.id).map_or_else(String::new, ToString::to_string),
                })
                .collect()
        })?;
        Ok(Response::new(v1::ListAgentsResponse { agents }))
    }
}

/// Where sessions are, as the leader tells other nodes.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Places {
    #[prost(uint64, repeated, tag = "1")]
    sessions: Vec<u64>,
    #[prost(fixed64, repeated, tag = "2")]
    nodes: Vec<u64>,
}

impl Tasks {
    /// Which node holds the stream of each session. Without an answer from the leader nobody knows.
    async fn places(&self, deadline: Instant) -> HashMap<SessionId, NodeId> {
        let places = match self.places_here() {
            Some(places) => Ok(places),
            None => self.places_there(deadline).await,
        };
        let places = places.unwrap_or_else(|error| {
            tracing::debug!(%error, "the leader did not say where sessions are");
            Places::default()
        });
        places.sessions.into_iter().map(SessionId).zip(places.nodes.into_iter().map(NodeId)).collect()
    }

    fn places_here(&self) -> Option<Places> {
        let leader = self.leader.borrow().clone()?;
        let (sessions, nodes) = leader.places().into_iter().map(|(session, node)| (session.0, node.0)).unzip();
        Some(Places { sessions, nodes })
    }

    async fn places_there(&self, deadline: Instant) -> Result<Places, Error> {
        let (leader, _) = self.context.control.leader().ok_or_else(Error::no_leader)?;
        let patience = PLACES.min(deadline.saturating_duration_since(Instant::now()));
        let answer = self.context.peers.call(leader, kind::CONTROL_READ, Bytes::new(), patience).await?;
        Places::decode(answer).map_err(|error| Error::internal(error.to_string()))
    }
}

/// The one read that only the leader can answer: where sessions are.
#[async_trait]
impl CallHandler for Tasks {
    async fn call(&self, _from: NodeId, _body: Bytes) -> Result<Bytes, Error> {
        let places = self.places_here().ok_or_else(|| Error::not_leader(self.context.control.leader()))?;
        Ok(places.encode_to_vec().into())
    }
}

/// Serves one agent's stream.
async fn work(tasks: Arc<Tasks>, mut inbound: Streaming<v1::WorkRequest>, agent: AgentStream) {
    let opened = tokio::select! {
        () = tasks.context.shutdown.cancelled() => Err(Error::shutting_down()),
        opened = begin(&tasks, &mut inbound) => opened,
    };
    match opened {
        Ok(Some(start)) => follow(&tasks, inbound, agent, start).await,
        Ok(None) => {}
        Err(error) => {
            // The agent may have gone already.
            let _ = agent.send(Err(tasks.hint(error).into())).await;
        }
    }
}

struct Start {
    session: u64,
    attachment: u64,
    holding: Vec<Token>,
}

/// Reads the first word. `None`: the agent has gone before it said one.
async fn begin(tasks: &Tasks, inbound: &mut Streaming<v1::WorkRequest>) -> Result<Option<Start>, Error> {
    let first = timeout(FIRST_WORD, inbound.message())
        .await
        .map_err(|_| Error::invalid("frame", "the stream said nothing: its first frame must be `open` or `resume`"))?;
    let Ok(Some(first)) = first else { return Ok(None) };
    match first.frame {
        Some(Said::Open(open)) => Ok(Some(open_session(tasks, open).await?)),
        Some(Said::Resume(resume)) => {
            limits::check_size("holding", resume.holding.len(), 2 * limits::SLOTS as usize)?;
            let holding = resume.holding.iter().map(wire::token_from_wire).collect();
            Ok(Some(Start { session: resume.session_id, attachment: resume.attachment, holding }))
        }
        _ => Err(Error::invalid("frame", "the first frame of a stream must be `open` or `resume`")),
    }
}

async fn open_session(tasks: &Tasks, open: v1::OpenSession) -> Result<Start, Error> {
    let ttl_ms = check_open(&open)?;
    let id = wire::request_id(&open.request_id, tasks.context.now_us())?;
    let command = Command::OpenSession { agent: open.agent, roles: open.roles, slots: open.slots, ttl_ms };
    let operation = Operation { request: Some(id), command };
    match tasks.context.control.propose_anywhere(operation, Instant::now() + OPEN).await?? {
        Reply::Session { session } => Ok(Start { session: session.0, attachment: 0, holding: Vec::new() }),
        other => Err(Error::internal(format!("opening a session was answered with {other:?}"))),
    }
}

/// Checks what an agent says of itself. Returns its time to live, the default put in.
fn check_open(open: &v1::OpenSession) -> Result<u64, Error> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    limits::check_name("agent", &open.agent)?;
    if open.roles.is_empty() {
        return Err(Error::invalid("roles", "`roles` is empty: an agent without a role gets no task"));
    }
    limits::check_size("roles", open.roles.len(), limits::ROLES)?;
    open.roles.iter().try_for_each(|role| limits::check_name("roles", role))?;
    limits::check_range("slots", u64::from(open.slots), 1, u64::from(limits::SLOTS))?;
    if open.ttl_ms == 0 {
        return Ok(ms(limits::TTL_DEFAULT));
    }
    limits::check_range("ttl_ms", open.ttl_ms, ms(limits::TTL_MIN), ms(limits::TTL_MAX))?;
    Ok(open.ttl_ms)
}

/// Passes the agent's words to the relay until the stream or the session ends.
async fn follow(tasks: &Tasks, mut inbound: Streaming<v1::WorkRequest>, agent: AgentStream, start: Start) {
    let Start { session, attachment, holding } = start;
    let (released, guard) = release_guard();
    // Only the relay keeps the agent's stream open, so that it ends when the relay lets go of it.
    let direct = agent.downgrade();
    let attach = Word::Attach { session, attachment, holding, agent, released: guard };
    if tasks.relay.send(attach).await.is_err() {
        return;
    }
    loop {
        let said = tokio::select! {
            () = released.cancelled() => return,
            said = inbound.message() => said,
        };
        let Ok(Some(said)) = said else { break };
        let word = match said.frame {
            Some(Said::Heartbeat(beat)) => Word::Beat { session, attachment, seq: beat.seq, draining: beat.draining },
            Some(Said::Finish(batch)) => {
                let (finishes, refused) = check_finishes(batch.items);
                if !refused.is_empty()
                    && let Some(agent) = direct.upgrade()
                {
                    let frame = Some(Frame::Acks(v1::FinishAckBatch { acks: refused }));
                    if !send(&agent, &released, v1::WorkResponse { frame }).await {
                        break;
                    }
                }
                Word::Finish { session, attachment, finishes }
            }
            Some(Said::Close(_)) => Word::Close { session, attachment },
            Some(Said::Open(_) | Said::Resume(_)) => {
                let error = Error::invalid("frame", "the session of this stream is open already: use another stream");
                if let Some(agent) = direct.upgrade() {
                    // The stream ends either way.
                    let _ = agent.try_send(Err(error.into()));
                }
                break;
            }
            // A frame of a later version.
            None => continue,
        };
        if tasks.relay.send(word).await.is_err() {
            return;
        }
    }
    // The relay may have stopped with the node.
    let _ = tasks.relay.send(Word::Detach { session, attachment }).await;
}

/// Sends to the agent, unless the relay lets go of its stream meanwhile.
async fn send(agent: &AgentStream, released: &CancellationToken, frame: v1::WorkResponse) -> bool {
    tokio::select! {
        () = released.cancelled() => false,
        sent = agent.send(Ok(frame)) => sent.is_ok(),
    }
}

/// Parts what may be proposed from what is answered at once.
fn check_finishes(items: Vec<v1::Finish>) -> (Vec<v1::Finish>, Vec<v1::FinishAck>) {
    let too_many = limits::check_size("items", items.len(), limits::FRAME_ITEMS).err().map(Error::from);
    let (mut finishes, mut refused) = (Vec::new(), Vec::new());
    for item in items {
        match too_many.clone().map_or_else(|| check_finish(&item), Err) {
            Ok(()) => finishes.push(item),
            Err(error) => {
                refused.push(v1::FinishAck { seq: item.seq, error: Some(error.to_wire()), child_ids: Vec::new() });
            }
        }
    }
    (finishes, refused)
}

fn check_finish(finish: &v1::Finish) -> Result<(), Error> {
    if finish.token.is_none() {
        return Err(Error::invalid("token", "`token` is missing: send the one of the grant"));
    }
    match &finish.outcome {
        Some(v1::finish::Outcome::Completed(completed)) => {
            if completed.result.len() > limits::PAYLOAD_BYTES {
                return Err(result_too_large(completed.result.len()));
            }
            wire::check_tasks("children", &completed.children)
        }
        Some(v1::finish::Outcome::Failed(failed)) => {
            Ok(limits::check_size("error", failed.error.len(), limits::ERROR_TEXT_BYTES)?)
        }
        None => Err(Error::invalid("outcome", "`outcome` is missing: the attempt is `completed` or `failed`")),
    }
}

fn result_too_large(bytes: usize) -> Error {
    let what = format!(
        "`result` has {bytes} bytes, the limit is {}: store the data elsewhere and put a reference into the result",
        limits::PAYLOAD_BYTES
    );
    Error::new(ErrorReason::TooLarge, what)
        .with("field", "result")
        .with("limit", limits::PAYLOAD_BYTES)
        .with("size", bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> v1::OpenSession {
        v1::OpenSession { agent: "a".into(), roles: vec!["r".into()], slots: 1, ..v1::OpenSession::default() }
    }

    fn field(open: v1::OpenSession) -> String {
        check_open(&open).expect_err("must be refused").metadata["field"].clone()
    }

    #[test]
    fn what_an_agent_says_of_itself_is_checked() {
        assert_eq!(check_open(&open()), Ok(10_000));
        assert_eq!(check_open(&v1::OpenSession { ttl_ms: 1_000, ..open() }), Ok(1_000));
        assert_eq!(field(v1::OpenSession { ttl_ms: 999, ..open() }), "ttl_ms");
        assert_eq!(field(v1::OpenSession { slots: 0, ..open() }), "slots");
        assert_eq!(field(v1::OpenSession { slots: limits::SLOTS + 1, ..open() }), "slots");
        assert_eq!(field(v1::OpenSession { agent: String::new(), ..open() }), "agent");
        assert_eq!(field(v1::OpenSession { roles: Vec::new(), ..open() }), "roles");
        assert_eq!(field(v1::OpenSession { roles: vec!["r".into(); limits::ROLES + 1], ..open() }), "roles");
    }

    #[test]
    fn each_bad_finish_gets_its_own_answer_and_the_rest_goes_on() {
        let token = Some(v1::Token { position: 1, ordinal: 0 });
        let completed = |bytes: usize| {
            Some(v1::finish::Outcome::Completed(v1::Completed { result: vec![0; bytes].into(), children: Vec::new() }))
        };
        let failed = v1::Failed { error: "e".repeat(limits::ERROR_TEXT_BYTES + 1), permanent: false };
        let items = vec![
            v1::Finish { seq: 1, task_id: 1, token, outcome: completed(1) },
            v1::Finish { seq: 2, task_id: 1, token: None, outcome: completed(1) },
            v1::Finish { seq: 3, task_id: 1, token, outcome: None },
            v1::Finish { seq: 4, task_id: 1, token, outcome: completed(limits::PAYLOAD_BYTES + 1) },
            v1::Finish { seq: 5, task_id: 1, token, outcome: Some(v1::finish::Outcome::Failed(failed)) },
        ];
        let (finishes, refused) = check_finishes(items);
        assert_eq!(finishes.iter().map(|finish| finish.seq).collect::<Vec<_>>(), vec![1]);
        let fields: Vec<(u64, String)> =
            refused.into_iter().map(|ack| (ack.seq, ack.error.expect("refused").metadata["field"].clone())).collect();
        let expected = [(2, "token"), (3, "outcome"), (4, "result"), (5, "error")];
        assert_eq!(fields, expected.map(|(seq, field)| (seq, field.to_owned())));
    }
}
