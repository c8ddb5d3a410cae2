//! The start and the end of a node. This is the only place where its parts are wired.

use std::fs::File;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use quorate_raft::{Groups, GroupsConfig, Identity, IdentityError, NodeId, OpenError, Seams};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::cluster::contacts::Contacts;
use crate::cluster::divergence::Divergence;
use crate::cluster::formation::Formation;
use crate::cluster::healing::ControlReplicas;
use crate::cluster::hosting::Hosting;
use crate::cluster::presence::Membership;
use crate::cluster::report::Reports;
use crate::cluster::stalls;
use crate::cluster::{ClusterApi, Supervisor};
use crate::config::{Config, ConfigError, resolve};
use crate::context::Context;
use crate::control::ControlHandle;
use crate::error::Error;
use crate::log_clock::{Clock, SystemClock};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::peers::{Dispatch, Peers, kind};
use crate::quarantine::Quarantine;
use crate::tasks::Tasks;
use crate::{grpc, http};

const LOCK_FILE: &str = "lock";
/// How long servers may take to end calls under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// States are larger than logs and change less: they are read back once in so many passes over the logs.
const SCRUBS_TO_A_STATE: u32 = 24;

/// Where a node is reached, as it really is: port 0 of the configuration is resolved, `host:port` each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    /// For clients (gRPC).
    pub client: String,
    /// For peers.
    pub peer: String,
    /// For metrics and health (HTTP).
    pub http: String,
}

/// Why a node did not start. Nothing was left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be made or written.
    #[error("cannot use the data directory {path}: {source}; check that it may be written and has space")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the data directory.
    #[error("the data directory {path} is in use by another process; stop that one, or use another directory")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// An address cannot be listened on.
    #[error("cannot listen for {what} on {address}: {source}; stop what uses it, or set {key} to another address")]
    Listen {
        /// For whom.
        what: &'static str,
        /// The address.
        address: String,
        /// The key of the configuration.
        key: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The processor lacks what the vector kernels need.
    #[error(transparent)]
    Cpu(#[from] quorate_index::Error),
    /// The node's identity cannot be read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log or a group cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A part did not start.
    #[error("a part of the node did not start: {0}")]
    Part(Error),
}

/// A node without its sockets: everything that a simulation has in common with a real one.
pub struct Node {
    /// What every part is given.
    pub context: Context,
    /// Tasks, agents and the leader loop.
    pub tasks: Arc<Tasks>,
    /// Memory.
    pub memory: Arc<Memory>,
    /// Init and join.
    pub formation: Arc<Formation>,
    /// The replicas of shards on this node.
    pub hosting: Arc<Hosting>,
    /// The reconciling loop.
    pub supervisor: Supervisor,
    /// The comparison of states.
    pub divergence: Divergence,
    /// Becomes true when the node is a member no longer.
    pub removed: watch::Receiver<bool>,
}

impl Node {
    /// Wires the parts, starts the control group if it is stored, and begins to start the stored shards. Serves nobody yet.
    ///
    /// # Errors
    /// If the control group is stored and cannot be started for another reason than damage, or a part does not start.
    pub async fn assemble(
        config: Config,
        addresses: Addresses,
        raft: GroupsConfig,
        seams: Seams,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Node, StartError> {
        let node = raft.identity.node;
        let contacts = Arc::new(Contacts::open(&config.data_dir, raft.identity.cluster));
        let quarantine = Arc::new(Quarantine::new(metrics.clone()));
        let groups = Groups::open(raft, seams).await?;
        let control = ControlHandle::new(groups.clone(), clock.clone(), metrics.clone());
        let dispatch = Dispatch::new(metrics.clone());
        groups.set_handler(Arc::new(dispatch.clone()));
        let context = Context {
            config: Arc::new(config),
            node,
            addresses: Arc::new(addresses),
            peers: Peers::new(groups.clone(), control.clone()),
            groups,
            control,
            dispatch,
            clock,
            metrics,
            quarantine,
            contacts,
            shutdown: CancellationToken::new(),
            fault: watch::Sender::new(None),
        };
        context.dispatch.on_call(kind::CONTROL_PROPOSE, Arc::new(context.control.proposals()));
        context.dispatch.on_call(kind::NODE_STATUS, Reports::new(context.clone()));
        context.dispatch.on_call(kind::CLUSTER, Membership::new(context.control.clone()));
        context.dispatch.on_call(kind::CONTROL_REPLICA, ControlReplicas::new(&context));
        let tasks = Tasks::start(context.clone()).map_err(StartError::Part)?;
        let memory = Memory::start(context.clone()).map_err(StartError::Part)?;
        let formation = Arc::new(Formation::new(context.clone()));
        formation.resume().await?;
        let hosting = Arc::new(Hosting::new(context.clone(), memory.clone()));
        let (removing, removed) = watch::channel(false);
        let supervisor = Supervisor::start(context.clone(), formation.clone(), hosting.clone(), removing);
        let divergence = Divergence::start(context.clone(), formation.clone(), hosting.clone());
        stalls::watch(context.clone(), hosting.clone());
        Ok(Node { context, tasks, memory, formation, hosting, supervisor, divergence, removed })
    }

    /// Hands over what this node leads, then stops all parts in the order in which they need each other.
    pub async fn stop(&self) {
        self.supervisor.stop().await;
        let control = self.context.control.group();
        let groups = self.hosting.running().into_iter().map(|(_, group)| group).chain(control);
        join_all(groups.map(stalls::hand_over)).await;
        self.context.shutdown.cancel();
        self.divergence.stop().await;
        self.tasks.stop().await;
        self.memory.stop().await;
        self.hosting.stop().await;
        self.context.control.detach();
        self.context.groups.shutdown().await;
        self.context.dispatch.clear();
    }
}

/// A running node.
pub struct NodeHandle {
    addresses: Addresses,
    node: Node,
    stop: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    _lock: File,
}

impl NodeHandle {
    /// Where the node is reached.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        self.node.context.node
    }

    /// The node's parts, for tests and tools in the same process.
    pub fn context(&self) -> &Context {
        &self.node.context
    }

    /// Resolves when the node was removed from its cluster and has stopped its groups; it answers calls about the
    /// cluster until it is shut down.
    pub async fn removed(&self) {
        let mut removed = self.node.removed.clone();
        if removed.wait_for(|removed| *removed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Resolves with the reason when the node must not go on: a group here has stopped by a fault of its machine or disk.
    pub async fn failed(&self) -> String {
        let mut fault = self.node.context.fault.subscribe();
        match fault.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Hands over leaderships, ends calls under way and stops. Everything acknowledged is on disk whether or not this
    /// is called.
    pub async fn shutdown(self) {
        tracing::info!(node = %self.node(), "stopping");
        self.node.stop().await;
        self.stop.cancel();
        let aborts: Vec<_> = self.servers.iter().map(JoinHandle::abort_handle).collect();
        if timeout(DRAIN_TIMEOUT, join_all(self.servers)).await.is_err() {
            tracing::warn!("calls under way did not end in time and are cut off");
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
        tracing::info!("stopped");
    }
}

struct Listeners {
    client: TcpListener,
    peer: TcpListener,
    http: TcpListener,
}

/// Starts a node on the current runtime. Raft has a runtime of its own.
///
/// # Errors
/// Whatever keeps the node from serving; then nothing is left running.
#[cfg(feature = "rocksdb")]
pub async fn start(config: Config) -> Result<NodeHandle, StartError> {
    start_with(config, Seams::durable).await
}

/// The same on other storage, which `seams` opens in the data directory.
///
/// # Errors
/// As [`start`].
pub async fn start_with(
    config: Config,
    seams: impl FnOnce(&Path) -> Result<Seams, OpenError>,
) -> Result<NodeHandle, StartError> {
    config.validate()?;
    quorate_index::check_cpu()?;
    let data_dir = config.data_dir.clone();
    let at_data_dir = |source| StartError::DataDir { path: data_dir.clone(), source };
    fs_err::create_dir_all(&data_dir).map_err(at_data_dir)?;
    let lock = lock(&data_dir)?;
    let listeners = Listeners::bind(&config).await?;
    let addresses = listeners.addresses(&config).map_err(at_data_dir)?;
    let metrics = Metrics::new();
    measure_fsync(&config, &metrics).map_err(at_data_dir)?;

    let identity = Identity::open(&data_dir)?;
    let mut raft = GroupsConfig::new(identity, data_dir.clone(), addresses.peer.clone());
    raft.timers = config.timers.timers();
    raft.registry = metrics.registry.clone();
    raft.snapshot_log_bytes = config.snapshot_log_bytes;
    raft.purge_tail = config.purge_tail;
    raft.scrub_every = Duration::from_secs(config.scrub_every_s);
    raft.scrub_state_every = SCRUBS_TO_A_STATE * raft.scrub_every;
    #[cfg(feature = "planted")]
    {
        raft.observer = crate::planted::observer();
    }
    let seams = seams(&data_dir)?;
    let clock = Arc::new(SystemClock::new());
    let node = Node::assemble(config, addresses.clone(), raft, seams, clock, metrics).await?;
    let stop = CancellationToken::new();
    let servers = serve(&node, listeners, &stop);
    tracing::info!(
        node = %node.context.node, client = addresses.client, peer = addresses.peer, http = addresses.http,
        cluster = node.context.groups.identity().cluster.map(tracing::field::display), "serving"
    );
    Ok(NodeHandle { addresses, node, stop, servers, _lock: lock })
}

fn serve(node: &Node, listeners: Listeners, stop: &CancellationToken) -> Vec<JoinHandle<()>> {
    let context = &node.context;
    let groups = context.groups.clone();
    let peers_stop = stop.clone();
    let peers = async move { groups.serve(listeners.peer, peers_stop).await.map_err(|error| error.to_string()) };
    let cluster = ClusterApi::new(context.clone(), node.formation.clone());
    let clients =
        grpc::serve(context.clone(), cluster, node.tasks.clone(), node.memory.clone(), listeners.client, stop.clone());
    let http = http::serve(context.clone(), listeners.http, stop.clone());
    vec![
        tokio::spawn(served("peers", peers)),
        tokio::spawn(served("clients", async move { clients.await.map_err(|error| error.to_string()) })),
        tokio::spawn(served("http", async move { http.await.map_err(|error| error.to_string()) })),
    ]
}

async fn served(what: &'static str, server: impl Future<Output = Result<(), String>>) {
    if let Err(error) = server.await {
        tracing::error!(what, error, "a server ended");
    }
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Listeners, StartError> {
        Ok(Listeners {
            client: listen("clients", "client_listen", &config.client_listen).await?,
            peer: listen("peers", "peer_listen", &config.peer_listen).await?,
            http: listen("HTTP", "http_listen", &config.http_listen).await?,
        })
    }

    fn addresses(&self, config: &Config) -> io::Result<Addresses> {
        let told = |advertised: &Option<String>, listener: &TcpListener| match advertised {
            Some(address) => Ok(address.clone()),
            None => listener.local_addr().map(reachable),
        };
        Ok(Addresses {
            client: told(&config.client_advertise, &self.client)?,
            peer: told(&config.peer_advertise, &self.peer)?,
            http: told(&None, &self.http)?,
        })
    }
}

/// An address that listens on all interfaces is told as the loopback one: right on one host, and wrong in a way that is
/// noticed at once on several, where an advertised address must be set.
fn reachable(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    address.to_string()
}

async fn listen(what: &'static str, key: &'static str, address: &str) -> Result<TcpListener, StartError> {
    let failed = |source| StartError::Listen { what, address: address.to_owned(), key, source };
    let resolved = resolve(address).map_err(failed)?;
    TcpListener::bind(resolved).await.map_err(failed)
}

/// Takes the data directory for this process, until the file is closed.
fn lock(data_dir: &Path) -> Result<File, StartError> {
    let failed = |source| StartError::DataDir { path: data_dir.to_owned(), source };
    let file =
        File::options().create(true).truncate(false).write(true).open(data_dir.join(LOCK_FILE)).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::InUse { path: data_dir.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Times some small durable writes, and warns if the timers do not leave them enough room: a follower answers a heartbeat
/// only after an fsync, and a leader that hears nothing in time gives up its lease.
fn measure_fsync(config: &Config, metrics: &Metrics) -> io::Result<()> {
    const WRITES: usize = 16;
    let path = config.data_dir.join("fsync.probe");
    let mut file = File::create(&path)?;
    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let start = Instant::now();
        file.write_all(&[0; 4_096])?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    drop(file);
    fs_err::remove_file(&path)?;
    times.sort_unstable();
    for time in &times {
        metrics.start_fsync_seconds.observe(time.as_secs_f64());
    }
    // The slowest one of so few may be an accident; the one before it says what to expect.
    let (median, slow) = (times[WRITES / 2], times[WRITES - 2]);
    let heartbeat = Duration::from_millis(config.timers.timers().heartbeat_ms);
    if slow * 2 > heartbeat {
        tracing::warn!(
            ?median,
            ?slow,
            ?heartbeat,
            "this disk's fsync is slow for the timers: leaders may be lost under load; use a faster disk, or the profile `default` if this is `fast`"
        );
    } else {
        tracing::info!(?median, ?slow, "fsync measured");
    }
    Ok(())
}
