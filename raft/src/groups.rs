//! All groups of one node.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::Stream;
use tokio_util::sync::CancellationToken;

use crate::engine::LogEngine;
use crate::group::Group;
use crate::identity::{Identity, IdentityError};
use crate::ids::{ClusterId, GroupId, NodeId, ReplicaId};
use crate::log::WriterMode;
use crate::machine::{Machine, StateStores};
use crate::timers::Timers;
use crate::transport::{BoxIo, Connector, Peer, PeerHandler};

/// What a node says about itself and how its groups are to behave.
#[derive(Debug, Clone)]
pub struct GroupsConfig {
    /// Who the node is.
    pub identity: Identity,
    /// The node's data directory.
    pub data_dir: PathBuf,
    /// The peer address of this node as others reach it, `host:port`.
    pub advertise: String,
    /// Times of a group that is started without its own.
    pub timers: Timers,
    /// A group is checkpointed, and its log purged below the checkpoint, when its log has grown by this many bytes.
    pub snapshot_log_bytes: u64,
    /// How many entries stay in the log below the checkpoint, for followers that are a little behind.
    pub purge_tail: u64,
    /// The most bytes a second that this node sends of one snapshot.
    pub snapshot_bytes_per_s: u64,
    /// Threads of the runtime that Raft has for itself; `None` runs it on the caller's runtime and does blocking work
    /// in place, as a simulation needs it.
    pub threads: Option<usize>,
    /// Where the metrics are registered.
    pub registry: prometheus::Registry,
}

impl GroupsConfig {
    /// The defaults: 64 MiB of log between checkpoints, 1,000 entries kept, 64 MiB/s of snapshot, two threads.
    pub fn new(identity: Identity, data_dir: PathBuf, advertise: String) -> Self {
        GroupsConfig {
            identity,
            data_dir,
            advertise,
            timers: Timers::default(),
            snapshot_log_bytes: 64 << 20,
            purge_tail: 1_000,
            snapshot_bytes_per_s: 64 << 20,
            threads: Some(2),
            registry: prometheus::Registry::new(),
        }
    }
}

/// What one group may have otherwise than the rest.
#[derive(Debug, Clone, Copy, Default)]
pub struct GroupConfig {
    /// Its times; `None` takes those of [`GroupsConfig`].
    pub timers: Option<Timers>,
}

/// The parts of the world that a simulation replaces.
pub struct Seams {
    /// The log database.
    pub log: Arc<dyn LogEngine>,
    /// The state databases.
    pub states: Arc<dyn StateStores>,
    /// How to reach an address.
    pub connector: Arc<dyn Connector>,
    /// Where the log writer runs.
    pub writer: WriterMode,
}

/// Why the groups of a node, or one of them, cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk refused.
    #[error("cannot open the {what}: {source}; check the data directory and the space on its disk")]
    Io {
        /// Which store.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The stored log belongs to another replica. A replica id is never reused, and a log never changes hands.
    #[error("the log of group {group} belongs to replica {found:016x}, not to {wanted:016x}; destroy the group here before a new replica takes its place")]
    OtherReplica {
        /// The group.
        group: GroupId,
        /// The replica that owns the log.
        found: ReplicaId,
        /// The replica to start.
        wanted: ReplicaId,
    },
    /// The group runs already.
    #[error("group {group} runs already on this node")]
    AlreadyStarted {
        /// The group.
        group: GroupId,
    },
    /// The machine could not be loaded, or openraft found the stored state impossible.
    #[error("group {group} cannot start: {reason}")]
    Unusable {
        /// The group.
        group: GroupId,
        /// What was found.
        reason: String,
    },
    /// The settings contradict themselves.
    #[error("wrong settings: {reason}")]
    Settings {
        /// Which, and why.
        reason: String,
    },
}

/// All groups of this node: one log writer, one set of peer connections, one runtime. Cheap to clone.
#[derive(Clone)]
pub struct Groups {}

impl Groups {
    /// Opens the log database and starts the log writer. Must be called on a tokio runtime, which is then the one
    /// that [`PeerHandler`] runs on.
    pub async fn open(config: GroupsConfig, seams: Seams) -> Result<Groups, OpenError> { unimplemented!() }
    /// Who this node is.
    pub fn identity(&self) -> Identity { unimplemented!() }
    /// Makes the node a member of a cluster, durably. Until then every message between peers is refused.
    pub fn adopt_cluster(&self, cluster: ClusterId) -> Result<(), IdentityError> { unimplemented!() }
    /// Sets who answers the frames that nodes send each other through [`Peer`].
    pub fn set_handler(&self, handler: Arc<dyn PeerHandler>) { unimplemented!() }
    /// Serves peers on a socket until `stop` is cancelled.
    pub async fn serve(&self, listener: tokio::net::TcpListener, stop: CancellationToken) -> io::Result<()> { unimplemented!() }
    /// Serves peers on any stream of connections until it ends or `stop` is cancelled.
    pub async fn serve_incoming(
        &self,
        incoming: impl Stream<Item = io::Result<BoxIo>> + Send + 'static,
        stop: CancellationToken,
    ) -> io::Result<()> { unimplemented!() }
    /// Starts a group with the timers of [`GroupsConfig`].
    pub async fn start_group(
        &self,
        group: GroupId,
        replica: ReplicaId,
        machine: Box<dyn Machine>,
    ) -> Result<Group, OpenError> { unimplemented!() }
    /// Starts a group: loads the machine from the state store, then openraft replays the committed log above it.
    pub async fn start_group_with(
        &self,
        group: GroupId,
        replica: ReplicaId,
        machine: Box<dyn Machine>,
        config: GroupConfig,
    ) -> Result<Group, OpenError> { unimplemented!() }
    /// A group that runs.
    pub fn group(&self, group: GroupId) -> Option<Group> { unimplemented!() }
    /// The groups, with the replica that owns each, that have something stored here: what to start after a restart.
    pub fn stored_groups(&self) -> Result<Vec<(GroupId, ReplicaId)>, OpenError> { unimplemented!() }
    /// Stops a group and waits until it has let go of its databases. Does nothing if it does not run.
    pub async fn stop_group(&self, group: GroupId) { unimplemented!() }
    /// Stops a group and deletes its log and state: for a replica that was removed.
    pub async fn destroy_group(&self, group: GroupId) -> Result<(), OpenError> { unimplemented!() }
    /// A handle on another node. Connections are cached and made when they are needed.
    pub fn peer(&self, node: NodeId, address: &str) -> Peer { unimplemented!() }
    /// Stops all groups, the server and the log writer.
    pub async fn shutdown(&self) { unimplemented!() }
}
