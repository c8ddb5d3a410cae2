//! Scripted nodes on a network in memory: every call is handed to the test, which decides what the node says.
//!
//! The network is the client's own [`Connector`] seam over duplex pipes, so tokio's paused time drives everything.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use quorate_client::{ApiError, Client, Connector, Io, limits, v1};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Server, Uri};
use tonic::{Request, Response, Status, Streaming};
use v1::agents_service_server::{AgentsService, AgentsServiceServer};
use v1::cluster_service_server::{ClusterService, ClusterServiceServer};
use v1::tasks_service_server::{TasksService, TasksServiceServer};
use v1::work_request::Frame as Out;
use v1::work_response::Frame as In;

type Answers<T> = UnboundedReceiverStream<Result<T, Status>>;

/// A unary call that waits for what the test says.
pub(crate) struct Call<Q, R> {
    pub(crate) request: Q,
    answer: oneshot::Sender<Result<R, Status>>,
}

impl<Q, R> Call<Q, R> {
    pub(crate) fn ok(self, response: R) {
        let _ = self.answer.send(Ok(response));
    }

    pub(crate) fn refuse(self, status: impl Into<Status>) {
        let _ = self.answer.send(Err(status.into()));
    }
}

/// A stream: what the client sends, and a way to answer. Dropping it ends the stream.
pub(crate) struct Stream<Q, R> {
    requests: Streaming<Q>,
    answers: mpsc::UnboundedSender<Result<R, Status>>,
}

impl<Q, R> Stream<Q, R> {
    /// The next frame; `None` at the end of the stream, however it ended.
    pub(crate) async fn next(&mut self) -> Option<Q> {
        self.requests.message().await.ok().flatten()
    }

    pub(crate) fn send(&self, response: R) {
        let _ = self.answers.send(Ok(response));
    }

    pub(crate) fn break_with(self, status: impl Into<Status>) {
        let _ = self.answers.send(Err(status.into()));
    }
}

pub(crate) type EnqueueStream = Stream<v1::EnqueueStreamRequest, v1::EnqueueStreamResponse>;
pub(crate) type WorkStream = Stream<v1::WorkRequest, v1::WorkResponse>;

/// A call that has arrived at a node.
pub(crate) enum Seen {
    Enqueue(Call<v1::EnqueueRequest, v1::EnqueueResponse>),
    GetTask(Call<v1::GetTaskRequest, v1::GetTaskResponse>),
    Leave(Call<v1::LeaveRequest, v1::LeaveResponse>),
    EnqueueStream(EnqueueStream),
    Work(WorkStream),
}

/// A network of nodes that the test has named.
#[derive(Clone, Default)]
pub(crate) struct Network {
    listeners: Arc<Mutex<HashMap<String, mpsc::UnboundedSender<DuplexStream>>>>,
}

impl Connector for Network {
    fn connect(&self, uri: Uri) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let name = uri.authority().map(ToString::to_string).unwrap_or_default();
        let listener = self.listeners.lock().expect("no panic").get(&name).cloned();
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(1 << 20);
            listener.ok_or_else(refused)?.send(far).map_err(|_| refused())?;
            Ok(Box::new(near) as Box<dyn Io>)
        })
    }
}

impl Network {
    /// Starts a node under the name (`host:port`).
    pub(crate) fn node(&self, name: &str) -> Node {
        let (connect, connections) = mpsc::unbounded_channel();
        self.listeners.lock().expect("no panic").insert(name.to_owned(), connect);
        let incoming = UnboundedReceiverStream::new(connections);
        let (seen_sender, seen) = mpsc::unbounded_channel();
        let connections = futures::StreamExt::map(incoming, Ok::<_, io::Error>);
        tokio::spawn(services(seen_sender).serve_with_incoming(connections));
        Node { name: name.to_owned(), seen }
    }

    pub(crate) fn client(&self, names: &[&str]) -> Client {
        Client::connect_with(names.iter().copied(), self.clone()).expect("valid names")
    }
}

/// The services of a scripted node.
pub(crate) fn services(seen: mpsc::UnboundedSender<Seen>) -> tonic::transport::server::Router {
    let fake = Fake { seen };
    Server::builder()
        .add_service(TasksServiceServer::new(fake.clone()).max_decoding_message_size(limits::MESSAGE_BYTES))
        .add_service(ClusterServiceServer::new(fake.clone()))
        .add_service(AgentsServiceServer::new(fake).max_decoding_message_size(limits::MESSAGE_BYTES))
}

/// A node whose calls the test answers.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
}

impl Node {
    pub(crate) async fn enqueue(&mut self) -> Call<v1::EnqueueRequest, v1::EnqueueResponse> {
        match self.seen.recv().await {
            Some(Seen::Enqueue(call)) => call,
            _ => panic!("{}: no Enqueue", self.name),
        }
    }

    pub(crate) async fn get_task(&mut self) -> Call<v1::GetTaskRequest, v1::GetTaskResponse> {
        match self.seen.recv().await {
            Some(Seen::GetTask(call)) => call,
            _ => panic!("{}: no GetTask", self.name),
        }
    }

    pub(crate) async fn leave(&mut self) -> Call<v1::LeaveRequest, v1::LeaveResponse> {
        match self.seen.recv().await {
            Some(Seen::Leave(call)) => call,
            _ => panic!("{}: no Leave", self.name),
        }
    }

    pub(crate) async fn enqueue_stream(&mut self) -> EnqueueStream {
        match self.seen.recv().await {
            Some(Seen::EnqueueStream(stream)) => stream,
            _ => panic!("{}: no EnqueueStream", self.name),
        }
    }

    pub(crate) async fn work(&mut self) -> WorkStream {
        match self.seen.recv().await {
            Some(Seen::Work(stream)) => stream,
            _ => panic!("{}: no Work", self.name),
        }
    }
}

/// The call that arrives first at either node, and which node that is.
pub(crate) async fn either(a: &mut Node, b: &mut Node) -> (usize, Seen) {
    let (at, seen) = tokio::select! {
        seen = a.seen.recv() => (0, seen),
        seen = b.seen.recv() => (1, seen),
    };
    (at, seen.expect("a node serves as long as the test"))
}

pub(crate) fn error(reason: v1::ErrorReason) -> ApiError {
    ApiError::new(reason, "the script says so")
}

/// Fails the test when something does not happen; in paused time this waits for nothing.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), what).await.expect("it happens soon")
}

#[derive(Clone)]
struct Fake {
    seen: mpsc::UnboundedSender<Seen>,
}

impl Fake {
    async fn unary<Q, R>(
        &self,
        request: Request<Q>,
        seen: impl FnOnce(Call<Q, R>) -> Seen,
    ) -> Result<Response<R>, Status> {
        let (answer, answered) = oneshot::channel();
        let _ = self.seen.send(seen(Call { request: request.into_inner(), answer }));
        // A call that the test drops is never answered.
        match answered.await {
            Ok(answer) => answer.map(Response::new),
            Err(_) => std::future::pending().await,
        }
    }

    fn stream<Q, R>(
        &self,
        request: Request<Streaming<Q>>,
        seen: impl FnOnce(Stream<Q, R>) -> Seen,
    ) -> Response<Answers<R>> {
        let (answers, receiver) = mpsc::unbounded_channel();
        let _ = self.seen.send(seen(Stream { requests: request.into_inner(), answers }));
        Response::new(UnboundedReceiverStream::new(receiver))
    }
}

#[tonic::async_trait]
impl TasksService for Fake {
    type EnqueueStreamStream = Answers<v1::EnqueueStreamResponse>;

    async fn enqueue(&self, request: Request<v1::EnqueueRequest>) -> Result<Response<v1::EnqueueResponse>, Status> {
        self.unary(request, Seen::Enqueue).await
    }

    async fn enqueue_stream(
        &self,
        request: Request<Streaming<v1::EnqueueStreamRequest>>,
    ) -> Result<Response<Self::EnqueueStreamStream>, Status> {
        Ok(self.stream(request, Seen::EnqueueStream))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::GetTaskResponse>, Status> {
        self.unary(request, Seen::GetTask).await
    }

    async fn list_tasks(&self, _: Request<v1::ListTasksRequest>) -> Result<Response<v1::ListTasksResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn wait_task(&self, _: Request<v1::WaitTaskRequest>) -> Result<Response<v1::WaitTaskResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn cancel_task(&self, _: Request<v1::CancelTaskRequest>) -> Result<Response<v1::CancelTaskResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn list_queues(&self, _: Request<v1::ListQueuesRequest>) -> Result<Response<v1::ListQueuesResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

#[tonic::async_trait]
impl ClusterService for Fake {
    async fn init(&self, _: Request<v1::InitRequest>) -> Result<Response<v1::InitResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn add_member(&self, _: Request<v1::AddMemberRequest>) -> Result<Response<v1::AddMemberResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveResponse>, Status> {
        self.unary(request, Seen::Leave).await
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

#[tonic::async_trait]
impl AgentsService for Fake {
    type WorkStream = Answers<v1::WorkResponse>;

    async fn work(&self, request: Request<Streaming<v1::WorkRequest>>) -> Result<Response<Self::WorkStream>, Status> {
        Ok(self.stream(request, Seen::Work))
    }

    async fn list_agents(&self, _: Request<v1::ListAgentsRequest>) -> Result<Response<v1::ListAgentsResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

/// A work stream with the words that agents' tests use.
impl WorkStream {
    /// The next frame that is no heartbeat; heartbeats are acknowledged on the way.
    pub(crate) async fn frame(&mut self) -> Out {
        // Heartbeats come forever, so the bound is around all of them.
        let other = async {
            loop {
                match self.any_frame().await {
                    Out::Heartbeat(beat) => self.acknowledge(beat.seq),
                    other => return other,
                }
            }
        };
        soon(other).await
    }

    /// The next frame, whatever it is.
    pub(crate) async fn any_frame(&mut self) -> Out {
        soon(self.next()).await.expect("the stream goes on").frame.expect("a frame")
    }

    pub(crate) fn acknowledge(&self, seq: u64) {
        self.say(In::HeartbeatAck(v1::HeartbeatAck { seq }));
    }

    pub(crate) fn say(&self, frame: In) {
        self.send(v1::WorkResponse { frame: Some(frame) });
    }

    /// Expects the opening of a session and confirms it.
    pub(crate) async fn open(&mut self, session_id: u64) -> v1::OpenSession {
        let Out::Open(open) = self.any_frame().await else { panic!("no opening") };
        self.say(In::Opened(v1::SessionOpened { session_id, ttl_ms: open.ttl_ms, lost: Vec::new() }));
        open
    }

    /// Expects that the session is resumed and confirms it.
    pub(crate) async fn resume(&mut self, lost: Vec<v1::Token>) -> v1::ResumeSession {
        let Out::Resume(resume) = self.any_frame().await else { panic!("no resuming") };
        self.say(In::Opened(v1::SessionOpened { session_id: resume.session_id, ttl_ms: 10_000, lost }));
        resume
    }

    /// Grants a task whose id is also the position of its token.
    pub(crate) fn grant(&self, task_ids: impl IntoIterator<Item = u64>) {
        let grant = |task_id: u64| v1::Grant {
            task_id,
            token: Some(token(task_id)),
            queue: "mail".into(),
            role: "writer".into(),
            payload: task_id.to_string().into(),
            attempt: 1,
            enqueued_at_us: 5,
        };
        self.say(In::Grants(v1::GrantBatch { grants: task_ids.into_iter().map(grant).collect() }));
    }

    /// Reads finishes until `count` have come; returns them and the number of frames.
    pub(crate) async fn finishes(&mut self, count: usize) -> (Vec<v1::Finish>, usize) {
        let mut finishes = Vec::new();
        let mut frames = 0;
        while finishes.len() < count {
            let Out::Finish(batch) = self.frame().await else { panic!("no finish") };
            finishes.extend(batch.items);
            frames += 1;
        }
        (finishes, frames)
    }

    pub(crate) fn ack(&self, finishes: &[v1::Finish]) {
        let ack = |finish: &v1::Finish| v1::FinishAck { seq: finish.seq, error: None, child_ids: Vec::new() };
        self.say(In::Acks(v1::FinishAckBatch { acks: finishes.iter().map(ack).collect() }));
    }

    pub(crate) fn refuse(&self, finish: &v1::Finish, reason: v1::ErrorReason) {
        let ack = v1::FinishAck { seq: finish.seq, error: Some(error(reason).into()), child_ids: Vec::new() };
        self.say(In::Acks(v1::FinishAckBatch { acks: vec![ack] }));
    }
}

pub(crate) fn token(position: u64) -> v1::Token {
    v1::Token { position, ordinal: 0 }
}
