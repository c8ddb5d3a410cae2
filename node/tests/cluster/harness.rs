//! Nodes for tests and the clients that ask them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate_api::ApiError;
use quorate_api::v1::cluster_service_client::ClusterServiceClient;
use quorate_api::v1::tasks_service_client::TasksServiceClient;
use quorate_api::v1::{
    EnqueueRequest, GetTaskRequest, Health, InitRequest, JoinRequest, LeaveRequest, NewTask, StatusRequest,
    StatusResponse,
};
use quorate_node::config::Values;
use quorate_node::{Config, NodeHandle, StartError};
use quorate_raft::memory::{MemoryFloor, MemoryLog, MemoryStates};
use quorate_raft::{Seams, TaskHooks, TcpConnector, WriterMode};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use uuid::Uuid;

/// How long anything in a test may take before it counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn config(dir: &Path) -> Config {
    let free = || Some("127.0.0.1:0".to_owned());
    let given = Values {
        data_dir: Some(dir.to_owned()),
        client_listen: free(),
        peer_listen: free(),
        http_listen: free(),
        label: Some("test".into()),
        search_threads: Some(1),
        build_threads: Some(1),
        ..Values::default()
    };
    Config::load_with(None, [], given).expect("a sound configuration")
}

#[cfg(feature = "rocksdb")]
pub(crate) async fn start(config: Config) -> Result<NodeHandle, StartError> {
    quorate_node::start(config).await
}

#[cfg(not(feature = "rocksdb"))]
pub(crate) async fn start(config: Config) -> Result<NodeHandle, StartError> {
    let disk = Disk::new(&config.data_dir);
    start_on(config, &disk, WriterMode::Thread).await
}

/// What a node in memory is on, to break it.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) log: MemoryLog,
    pub(crate) states: MemoryStates,
}

impl Disk {
    fn new(dir: &Path) -> Disk {
        Disk { log: MemoryLog::new(), states: MemoryStates::new(dir.join("scratch")) }
    }
}

async fn start_on(config: Config, disk: &Disk, writer: WriterMode) -> Result<NodeHandle, StartError> {
    let Disk { log, states } = disk.clone();
    quorate_node::start::start_with(config, |_| {
        Ok(Seams {
            log: Arc::new(log),
            floor: Arc::new(MemoryFloor::new()),
            states: Arc::new(states),
            connector: Arc::new(TcpConnector),
            writer,
        })
    })
    .await
}

/// A node with its directory.
pub(crate) struct TestNode {
    pub(crate) dir: TempDir,
    pub(crate) handle: NodeHandle,
}

impl TestNode {
    pub(crate) async fn start() -> TestNode {
        // Shown with RUST_LOG when a test is looked at; another test may have set it already.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let handle = start(config(dir.path())).await.expect("the node starts");
        TestNode { dir, handle }
    }

    /// A node in memory.
    pub(crate) async fn start_with_disk() -> (TestNode, Disk) {
        Self::start_in_memory(WriterMode::Thread).await
    }

    /// A node in memory whose commits take no time and no thread: on a paused clock nothing of it is late.
    pub(crate) async fn start_on_one_thread() -> TestNode {
        Self::start_in_memory(WriterMode::Task(TaskHooks::instant())).await.0
    }

    async fn start_in_memory(writer: WriterMode) -> (TestNode, Disk) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = Disk::new(dir.path());
        let handle = start_on(config(dir.path()), &disk, writer).await.expect("the node starts");
        (TestNode { dir, handle }, disk)
    }

    /// Stops the node and starts it again on the same directory and addresses.
    #[cfg(feature = "rocksdb")]
    pub(crate) async fn restart(self) -> TestNode {
        self.halt().await.start(|_| {}).await
    }

    /// Stops the node and keeps what it needs to be the same one again.
    #[cfg(feature = "rocksdb")]
    pub(crate) async fn halt(self) -> HaltedNode {
        let TestNode { dir, handle } = self;
        let addresses = handle.addresses().clone();
        handle.shutdown().await;
        HaltedNode { dir, addresses }
    }

    pub(crate) fn id(&self) -> String {
        self.handle.node().to_string()
    }

    pub(crate) fn client_address(&self) -> String {
        self.handle.addresses().client.clone()
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.client_address())).expect("an address");
        endpoint.connect().await.expect("the node listens")
    }

    pub(crate) async fn cluster(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel().await)
    }

    pub(crate) async fn tasks(&self) -> TasksServiceClient<Channel> {
        TasksServiceClient::new(self.channel().await)
    }

    pub(crate) async fn init(&self, shards: u32) -> Result<String, ApiError> {
        let made = self.cluster().await.init(InitRequest { shards }).await?;
        Ok(made.into_inner().cluster_id)
    }

    pub(crate) async fn join(&self, seed: &TestNode) -> Result<String, ApiError> {
        let joined = self.cluster().await.join(JoinRequest { seed: seed.client_address() }).await?;
        Ok(joined.into_inner().cluster_id)
    }

    pub(crate) async fn leave(&self, node_id: &str, allow_fewer_replicas: bool) -> Result<(), ApiError> {
        let request = LeaveRequest { node_id: node_id.to_owned(), allow_fewer_replicas };
        self.cluster().await.leave(request).await?;
        Ok(())
    }

    pub(crate) async fn status(&self) -> StatusResponse {
        self.cluster().await.status(StatusRequest {}).await.expect("a status never fails").into_inner()
    }

    pub(crate) async fn enqueue(&self, payload: &'static [u8]) -> Result<u64, ApiError> {
        let task = NewTask { queue: "work".into(), payload: payload.into(), ..NewTask::default() };
        let request = EnqueueRequest { request_id: Uuid::now_v7().to_string(), tasks: vec![task] };
        let mut request = tonic::Request::new(request);
        request.set_timeout(Duration::from_secs(5));
        let enqueued = self.tasks().await.enqueue(request).await?.into_inner();
        Ok(enqueued.task_ids[0])
    }

    pub(crate) async fn payload_of(&self, task_id: u64) -> Result<Vec<u8>, ApiError> {
        let found = self.tasks().await.get_task(GetTaskRequest { task_id }).await?.into_inner();
        Ok(found.task.expect("a task that was found").payload.to_vec())
    }

    /// Waits until the node's status satisfies `is`.
    pub(crate) async fn wait_for(&self, what: &str, is: impl Fn(&StatusResponse) -> bool) -> StatusResponse {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if is(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "waited in vain until {what}: {status:#?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn wait_healthy(&self, nodes: usize) -> StatusResponse {
        self.wait_for(&format!("{nodes} nodes are healthy"), |status| {
            status.health() == Health::Healthy && status.nodes.len() == nodes
        })
        .await
    }

    /// The status line's code and the body of `GET path`.
    pub(crate) async fn http_get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.handle.addresses().http).await.expect("HTTP listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        (code, body)
    }
}

/// A node that does not run.
#[cfg(feature = "rocksdb")]
pub(crate) struct HaltedNode {
    pub(crate) dir: TempDir,
    addresses: quorate_node::Addresses,
}

#[cfg(feature = "rocksdb")]
impl HaltedNode {
    /// Starts it again on its directory and addresses, with something else configured.
    pub(crate) async fn start(self, configure: impl FnOnce(&mut Config)) -> TestNode {
        let HaltedNode { dir, addresses } = self;
        let mut config = config(dir.path());
        config.client_listen = addresses.client;
        config.peer_listen = addresses.peer;
        config.http_listen = addresses.http;
        configure(&mut config);
        let handle = start(config).await.expect("the node starts again");
        TestNode { dir, handle }
    }
}

/// A healthy cluster of `count` nodes with two shards.
pub(crate) async fn cluster(count: usize) -> Vec<TestNode> {
    cluster_with(count, 2).await
}

/// A healthy cluster of `count` nodes.
pub(crate) async fn cluster_with(count: usize, shards: u32) -> Vec<TestNode> {
    let first = TestNode::start().await;
    first.init(shards).await.expect("init");
    let mut nodes = vec![first];
    while nodes.len() < count {
        let next = TestNode::start().await;
        next.join(&nodes[0]).await.expect("join");
        nodes.push(next);
    }
    nodes[0].wait_healthy(count).await;
    nodes
}

pub(crate) async fn stop(nodes: Vec<TestNode>) {
    for node in nodes {
        node.handle.shutdown().await;
    }
}
