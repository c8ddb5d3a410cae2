//! All groups of one node.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use crate::aside;
use crate::blocking::Blocking;
use crate::engine::{FloorFile, LogEngine};
use crate::group::{Directory, Group};
use crate::health::Stop;
#[cfg(feature = "rocksdb")]
use crate::health::is_damage;
use crate::identity::{Identity, IdentityError};
use crate::ids::{ClusterId, GroupId, NodeId, ReplicaId};
#[cfg(feature = "rocksdb")]
use crate::log::FileFloor;
use crate::log::{LogConfig, LogError, LogStore, StoredReplica, WriterMode};
use crate::machine::{Machine, StateStores};
use crate::metrics::{GroupCollector, ScrubMetrics, TransportMetrics};
use crate::observe::{Observer, failpoint, pass};
use crate::scrub::{Schedule, Scrub};
use crate::snapshot::CheckpointDirs;
use crate::start;
use crate::timers::Timers;
use crate::transport::{BoxIo, Connector, Hellos, Links, Peer, PeerHandler, PeerService, prepare, serve_peers};

/// How long the end of Raft's threads is waited for; all their work is bounded.
const RUNTIME_END: Duration = Duration::from_secs(30);

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
    /// A replica notes the hash of its state at each position that is a multiple of this.
    pub hash_every: u64,
    /// How often everything in the logs is read back, in search of damage that nobody has met.
    pub scrub_every: Duration,
    /// How often everything in the states is.
    pub scrub_state_every: Duration,
    /// Threads of the runtime that Raft has for itself; `None` runs it on the caller's runtime and does blocking work
    /// in place, as a simulation needs it.
    pub threads: Option<usize>,
    /// Where the metrics are registered.
    pub registry: prometheus::Registry,
    /// Who is told of every entry that is applied.
    pub observer: Option<Observer>,
}

impl GroupsConfig {
    /// The defaults: 64 MiB of log between checkpoints, 1,000 entries kept, 64 MiB/s of snapshot, a hash every 1,024 entries,
    /// logs read back every hour and states every day, two threads.
    pub fn new(identity: Identity, data_dir: PathBuf, advertise: String) -> Self {
        GroupsConfig {
            identity,
            data_dir,
            advertise,
            timers: Timers::default(),
            snapshot_log_bytes: 64 << 20,
            purge_tail: 1_000,
            snapshot_bytes_per_s: 64 << 20,
            hash_every: 1_024,
            scrub_every: Duration::from_secs(3_600),
            scrub_state_every: Duration::from_secs(24 * 3_600),
            threads: Some(2),
            registry: prometheus::Registry::new(),
            observer: None,
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
    /// What the log database must hold.
    pub floor: Arc<dyn FloorFile>,
    /// The state databases.
    pub states: Arc<dyn StateStores>,
    /// How to reach an address.
    pub connector: Arc<dyn Connector>,
    /// Where the log writer runs.
    pub writer: WriterMode,
}

#[cfg(feature = "rocksdb")]
impl Seams {
    /// The parts of a real node: RocksDB and the floor below the data directory, TCP, and a thread for the log writer.
    ///
    /// A log database that is damaged as a whole is moved aside and an empty one takes its place; the floor still says which
    /// replicas were in it, and [`Groups::open`] quarantines them.
    pub fn durable(data_dir: &std::path::Path) -> Result<Seams, OpenError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| OpenError::Io { what, source }
        };
        // Before the log, so that a data directory has a floor from its first log on.
        let floor = FileFloor::open(&data_dir.join("floor")).map_err(failed("floor"))?;
        let log = open_log(data_dir).map_err(failed("log database"))?;
        let states = crate::rocks::RocksStates::open(&data_dir.join("state")).map_err(failed("state databases"))?;
        Ok(Seams {
            log: Arc::new(log),
            floor: Arc::new(floor),
            states: Arc::new(states),
            connector: Arc::new(crate::transport::TcpConnector),
            writer: WriterMode::Thread,
        })
    }
}

/// Opens the log database, or an empty one in its place if it is damaged.
#[cfg(feature = "rocksdb")]
fn open_log(data_dir: &std::path::Path) -> io::Result<crate::rocks::RocksLog> {
    use crate::rocks::RocksLog;
    let dir = data_dir.join("log");
    // It may open and not even say which groups it holds.
    let readable = |log: RocksLog| log.groups().map(|_| log);
    match RocksLog::open(&dir).and_then(readable) {
        Err(error) if is_damage(&error) => {
            let aside = aside::move_log(data_dir, &dir)?;
            tracing::error!(
                %error, aside = %aside.display(),
                "the log database is damaged; it is moved aside, and every replica of this node is quarantined"
            );
            RocksLog::open(&dir)
        }
        opened => opened,
    }
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
    /// What the replica has on disk is damaged. It is quarantined durably.
    #[error(
        "replica {replica} of group {group} is damaged and quarantined: {reason}. It never votes and serves nothing; its \
         peers hold what it held, and the cluster puts a new replica in its place"
    )]
    Damaged {
        /// The group.
        group: GroupId,
        /// The replica. 0 where nothing is left that says which it was.
        replica: ReplicaId,
        /// What was found.
        reason: String,
    },
    /// Floor and log of a member are gone.
    #[error(
        "this node is a member of cluster {cluster}, and its Raft logs and the floor are gone: it could vote twice. Remove \
         it with `quorate cluster leave`, empty its data directory and join it as a new node"
    )]
    Lost {
        /// The cluster.
        cluster: ClusterId,
    },
    /// The log cannot be used, for example because it belongs to another replica.
    #[error(transparent)]
    Log(#[from] LogError),
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

impl OpenError {
    /// Whether a replica is damaged on this node, so that another must take its place.
    pub fn is_damage(&self) -> bool {
        matches!(self, OpenError::Damaged { .. })
    }
}

/// All groups of this node: one log writer, one set of peer connections, one runtime. Cheap to clone.
#[derive(Clone)]
pub struct Groups {
    inner: Arc<Inner>,
}

/// What the clones of [`Groups`] share.
pub(crate) struct Inner {
    pub(crate) config: GroupsConfig,
    pub(crate) log: LogStore,
    pub(crate) states: Arc<dyn StateStores>,
    pub(crate) links: Arc<Links>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) dirs: CheckpointDirs,
    pub(crate) blocking: Blocking,
    pub(crate) runtime: Handle,
    hellos: Arc<Hellos>,
    service: PeerService,
    /// Starts and stops of groups, one at a time.
    changes: Arc<tokio::sync::Mutex<()>>,
    stop: CancellationToken,
    /// Taken by who waits for its end.
    scrub: Mutex<Option<JoinHandle<()>>>,
    owned: OwnedRuntime,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Raft's own runtime, if it has one. It ends with whoever holds it, also with an opening that fails half-way.
struct OwnedRuntime(Mutex<Option<Runtime>>);

impl OwnedRuntime {
    /// Ends it, and waits until nothing runs on it any more: what does may be inside a database.
    async fn shut_down(&self) {
        let Some(runtime) = self.0.lock().take() else { return };
        let (ended, end) = tokio::sync::oneshot::channel();
        // A thread of a runtime must not wait for the threads of one.
        std::thread::spawn(move || {
            runtime.shutdown_timeout(RUNTIME_END);
            // Who does not wait any more needs no word.
            let _ = ended.send(());
        });
        let _ = end.await;
    }
}

impl Drop for OwnedRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.lock().take() {
            // Waiting is not allowed here: this may be a thread of a runtime.
            runtime.shutdown_background();
        }
    }
}

/// A runtime of named threads for Raft alone.
fn build_runtime(threads: usize) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).thread_name("raft").enable_all().build()
}

impl Groups {
    /// Opens the log database and starts the log writer. Must be called on a tokio runtime, which is then the one
    /// that [`PeerHandler`] runs on.
    pub async fn open(config: GroupsConfig, seams: Seams) -> Result<Groups, OpenError> {
        check_settings(&config)?;
        let failed = |what: &str, source| OpenError::Io { what: what.to_owned(), source };
        let node = Handle::current();
        let owned = config.threads.map(build_runtime).transpose().map_err(|source| failed("threads", source))?;
        let runtime = owned.as_ref().map_or_else(|| node.clone(), |owned| owned.handle().clone());
        let blocking = if owned.is_some() { Blocking::Pool } else { Blocking::InPlace };
        let owned = OwnedRuntime(Mutex::new(owned));
        let dirs = CheckpointDirs::open(config.data_dir.join("checkpoints"));
        let dirs = dirs.map_err(|source| failed("directory of checkpoints", source))?;
        let log = {
            let _entered = runtime.enter();
            // Whoever keeps an identity of a member has had logs: it becomes a member only after this has run once.
            let member = config.identity.cluster.filter(|_| config.identity.is_kept());
            let observer = config.observer.clone();
            let logs = LogConfig { used_before: member.is_some(), observer, ..LogConfig::default() };
            LogStore::open(seams.log, seams.floor, seams.writer, logs).map_err(|error| match (error, member) {
                (LogError::Lost, Some(cluster)) => OpenError::Lost { cluster },
                (error, _) => error.into(),
            })?
        };
        let hellos = Arc::new(Hellos::new(config.identity.clone()));
        let metrics = TransportMetrics::new();
        let links = Links::new(hellos.clone(), seams.connector, runtime.clone(), metrics.clone());
        let directory = Arc::new(Directory::default());
        let scrubbed = ScrubMetrics::new();
        register(&config.registry, &log, &metrics, &scrubbed, &directory)?;
        let service = PeerService {
            hellos: hellos.clone(),
            groups: directory.clone(),
            handler: Arc::new(RwLock::new(None)),
            node,
        };
        let inner = Inner {
            config,
            log,
            states: seams.states,
            links: Arc::new(links),
            directory,
            dirs,
            blocking,
            runtime,
            hellos,
            service,
            changes: Arc::default(),
            stop: CancellationToken::new(),
            scrub: Mutex::default(),
            owned,
        };
        for group in inner.log.doomed() {
            tracing::info!(%group, "finishing the deletion of a replica that was cut off");
            inner.begin_destroy(group).await?;
            inner.log.end_destroy(group).await?;
        }
        inner.clear_aside().await;
        *inner.scrub.lock() = Some(inner.begin_scrub(scrubbed));
        Ok(Groups { inner: Arc::new(inner) })
    }

    /// Who this node is.
    pub fn identity(&self) -> Identity {
        self.inner.hellos.identity()
    }

    /// Makes the node a member of a cluster, durably. Until then every message between peers is refused.
    pub fn adopt_cluster(&self, cluster: ClusterId) -> Result<(), IdentityError> {
        self.inner.hellos.adopt_cluster(cluster)
    }

    /// Sets who answers the frames that nodes send each other through [`Peer`].
    pub fn set_handler(&self, handler: Arc<dyn PeerHandler>) {
        *self.inner.service.handler.write() = Some(handler);
    }

    /// Serves peers on a socket until `stop` is cancelled or the node shuts down.
    pub async fn serve(&self, listener: tokio::net::TcpListener, stop: CancellationToken) -> io::Result<()> {
        // The socket must be known to the runtime that serves it.
        let listener = listener.into_std()?;
        let listener = {
            let _entered = self.inner.runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let incoming = TcpListenerStream::new(listener).map(|accepted| {
            let stream = accepted?;
            prepare(&stream)?;
            Ok(Box::new(stream) as BoxIo)
        });
        self.serve_incoming(incoming, stop).await
    }

    /// Serves peers on any stream of connections until it ends, `stop` is cancelled or the node shuts down.
    pub async fn serve_incoming(
        &self,
        incoming: impl Stream<Item = io::Result<BoxIo>> + Send + 'static,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let (service, node) = (self.inner.service.clone(), self.inner.stop.child_token());
        let serving = self.inner.runtime.spawn(async move {
            // Either word closes the connections too.
            let _closed = node.clone().drop_guard();
            tokio::select! {
                served = serve_peers(service, incoming, node) => served,
                () = stop.cancelled() => Ok(()),
            }
        });
        match serving.await {
            Ok(served) => served,
            // The runtime of Raft has ended, and the server with it.
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Starts a group with the timers of [`GroupsConfig`].
    pub async fn start_group(
        &self,
        group: GroupId,
        replica: ReplicaId,
        machine: Box<dyn Machine>,
    ) -> Result<Group, OpenError> {
        self.start_group_with(group, replica, machine, GroupConfig::default()).await
    }

    /// Starts a group: loads the machine from the state store, then openraft replays the committed log above it.
    /// Refused when the stored log belongs to another replica.
    ///
    /// # Errors
    /// [`OpenError::Damaged`] when what is stored is not what it must be. The replica is quarantined durably then, here or
    /// before.
    pub async fn start_group_with(
        &self,
        group: GroupId,
        replica: ReplicaId,
        machine: Box<dyn Machine>,
        config: GroupConfig,
    ) -> Result<Group, OpenError> {
        let one_at_a_time = self.inner.changes.clone().lock_owned().await;
        if self.inner.directory.get(group).is_some() {
            return Err(OpenError::AlreadyStarted { group });
        }
        if self.inner.stop.is_cancelled() {
            return Err(OpenError::Unusable { group, reason: "the node is stopping".to_owned() });
        }
        let inner = self.inner.clone();
        // Its turn lasts as long as it does, also when nobody waits for it any more: a stop of the node that overtook it would
        // leave a group behind that has its databases open when the process ends.
        let started = self.inner.runtime.spawn(async move {
            let started = start::start(&inner, group, replica, machine, config).await;
            drop(one_at_a_time);
            started
        });
        let running = started.await.map_err(|error| OpenError::Unusable { group, reason: error.to_string() })??;
        Ok(Group::new(running))
    }

    /// A group that runs.
    pub fn group(&self, group: GroupId) -> Option<Group> {
        self.inner.directory.get(group).map(Group::new)
    }

    /// For how long the write to the log that is under way now has waited to become durable; zero if there is none.
    pub fn disk_stalled(&self) -> Duration {
        self.inner.log.stalled()
    }

    /// The replicas that have something stored here, also the quarantined ones: the others are to be started after a restart.
    pub fn stored_groups(&self) -> Vec<StoredReplica> {
        self.inner.log.stored()
    }

    /// Takes a replica that is stored here out of service for good: marks it durably as damaged, and stops its group if it
    /// runs, which then says [`Stop::Damaged`]. Returns when both are done. Does nothing to one that is quarantined.
    ///
    /// # Errors
    /// [`LogError::NotStored`] or [`LogError::OtherReplica`] if it is not what is stored here.
    pub async fn quarantine(&self, group: GroupId, replica: ReplicaId, reason: &str) -> Result<(), OpenError> {
        let _one_at_a_time = self.inner.changes.lock().await;
        self.inner.log.quarantine(group, replica, reason).await?;
        if let Some(running) = self.inner.directory.get(group) {
            running.health.damage(reason.to_owned());
            running.ended.cancelled().await;
        }
        self.inner.stop_group(group).await;
        Ok(())
    }

    /// Stops a group and waits until it has let go of its databases. Does nothing if it does not run.
    pub async fn stop_group(&self, group: GroupId) {
        let _one_at_a_time = self.inner.changes.lock().await;
        self.inner.stop_group(group).await;
    }

    /// Stops a group and deletes its log and state: for a replica that was removed, or that is quarantined and has a
    /// successor. A node that dies in the middle finishes it at its next start, before anything of the group can be started.
    pub async fn destroy_group(&self, group: GroupId) -> Result<(), OpenError> {
        let _one_at_a_time = self.inner.changes.lock().await;
        self.inner.stop_group(group).await;
        self.inner.begin_destroy(group).await?;
        self.pass(failpoint::STATE_DESTROYED).await;
        self.inner.log.end_destroy(group).await?;
        self.inner.clear_aside().await;
        Ok(())
    }

    /// Passes a [`failpoint`], or never returns when the observer ends the node there.
    pub async fn pass(&self, point: &'static str) {
        if pass(self.inner.config.observer.as_ref(), point).is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A handle on another node. Connections are cached and made when they are needed.
    pub fn peer(&self, node: NodeId, address: &str) -> Peer {
        Peer::new(self.inner.links.link(node, address), self.inner.runtime.clone())
    }

    /// Stops all groups, the server, the log writer and Raft's threads. What was acknowledged is on disk, as it always is.
    pub async fn shutdown(&self) {
        let _one_at_a_time = self.inner.changes.lock().await;
        self.inner.stop.cancel();
        for group in self.inner.directory.all() {
            self.inner.stop_group(group.id).await;
        }
        // What it still reads keeps the log database open.
        let scrub = self.inner.scrub.lock().take();
        if let Some(Err(error)) = futures::future::OptionFuture::from(scrub).await {
            tracing::error!(%error, "the scrub had ended before its time");
        }
        self.inner.links.close();
        self.inner.log.shutdown().await;
        self.inner.owned.shut_down().await;
    }
}

impl Inner {
    fn begin_scrub(&self, metrics: ScrubMetrics) -> JoinHandle<()> {
        let _entered = self.runtime.enter();
        let scrub = Scrub {
            log: self.log.clone(),
            groups: self.directory.clone(),
            blocking: self.blocking,
            metrics,
            logs: Schedule::new(self.config.scrub_every),
            states: Schedule::new(self.config.scrub_state_every),
            stop: self.stop.clone(),
        };
        tokio::spawn(scrub.run())
    }

    async fn stop_group(&self, group: GroupId) {
        let Some(running) = self.directory.remove(group) else { return };
        running.shut_down(Stop::Wanted).await;
        // Damage that was found while it stopped must not be forgotten.
        if let Some(reason) = running.health.found()
            && let Err(error) = self.log.quarantine(group, running.replica, &reason).await
        {
            tracing::error!(%group, %error, reason, "a damaged replica could not be marked; its next start finds it again");
        }
    }

    /// Deletes log and state of a group that does not run. The floor remembers from the first step to the last.
    async fn begin_destroy(&self, group: GroupId) -> Result<(), OpenError> {
        self.log.begin_destroy(group).await?;
        self.destroy_state(group).await
    }

    /// Deletes the state of a group with its checkpoints.
    pub(crate) async fn destroy_state(&self, group: GroupId) -> Result<(), OpenError> {
        let (states, dirs) = (self.states.clone(), self.dirs.clone());
        let destroy = move || states.destroy(group).and_then(|()| dirs.destroy(group));
        let destroyed = self.on_runtime(async move |blocking| blocking.run(destroy).await);
        destroyed.await.map_err(|source| OpenError::Io { what: format!("state of group {group}"), source })
    }

    /// Deletes log databases that were moved aside, once none of their replicas waits for its successor. What cannot be
    /// deleted stays for the next time.
    async fn clear_aside(&self) {
        if self.log.stored().iter().any(|stored| stored.quarantined.is_some()) {
            return;
        }
        let data_dir = self.config.data_dir.clone();
        let cleared = self.on_runtime(async move |blocking| blocking.run(move || aside::clear(&data_dir)).await);
        if let Err(error) = cleared.await {
            tracing::warn!(%error, "a damaged log database that was moved aside could not be deleted");
        }
    }

    /// Runs blocking work from Raft's runtime, so that its threads are named for it.
    async fn on_runtime<T: Send + 'static, F: Future<Output = io::Result<T>> + Send + 'static>(
        &self,
        work: impl FnOnce(Blocking) -> F,
    ) -> io::Result<T> {
        self.runtime.spawn(work(self.blocking)).await.map_err(io::Error::other)?
    }
}

fn check_settings(config: &GroupsConfig) -> Result<(), OpenError> {
    let settings = |reason: String| Err(OpenError::Settings { reason });
    if !config.timers.is_sane() {
        return settings(format!(
            "{:?}: the election times must be at least twice the heartbeat and apart",
            config.timers
        ));
    }
    if config.snapshot_log_bytes == 0 || config.snapshot_bytes_per_s == 0 {
        return settings("snapshot_log_bytes and snapshot_bytes_per_s must not be 0".to_owned());
    }
    if config.hash_every == 0 {
        return settings("hash_every must not be 0".to_owned());
    }
    if config.scrub_every.is_zero() || config.scrub_state_every.is_zero() {
        return settings("scrub_every and scrub_state_every must not be 0".to_owned());
    }
    if config.threads == Some(0) {
        return settings("threads must not be 0".to_owned());
    }
    Ok(())
}

fn register(
    registry: &prometheus::Registry,
    log: &LogStore,
    transport: &TransportMetrics,
    scrub: &ScrubMetrics,
    directory: &Arc<Directory>,
) -> Result<(), OpenError> {
    let all = || {
        log.metrics().register(registry)?;
        transport.register(registry)?;
        scrub.register(registry)?;
        registry.register(Box::new(GroupCollector::new(directory)))
    };
    all().map_err(|error| OpenError::Settings { reason: format!("the registry of metrics is not ours alone: {error}") })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::memory::{MemoryFloor, MemoryLog, MemoryStates};
    use crate::transport::TcpConnector;

    /// The chaos suite found it: nodes that were asked to stop were aborted in the midst of closing a database.
    #[tokio::test]
    async fn a_shutdown_waits_for_what_runs_on_the_threads_of_raft() {
        let dir = tempfile::tempdir().expect("a directory");
        let identity = Identity::fixed(NodeId(1), None, 1);
        let config = GroupsConfig::new(identity, dir.path().join("data"), "127.0.0.1:1".to_owned());
        let seams = Seams {
            log: Arc::new(MemoryLog::new()),
            floor: Arc::new(MemoryFloor::new()),
            states: Arc::new(MemoryStates::new(dir.path().join("scratch"))),
            connector: Arc::new(TcpConnector),
            writer: WriterMode::Thread,
        };
        let groups = Groups::open(config, seams).await.expect("a new node");
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        let reading = groups.inner.runtime.spawn_blocking(move || {
            begin.send(()).expect("it is waited for");
            wait.recv().expect("it is told")
        });
        begun.await.expect("it runs");
        let stopping = tokio::spawn({
            let groups = groups.clone();
            async move { groups.shutdown().await }
        });
        // The log writer is the last that ends before the threads.
        while groups.inner.owned.0.lock().is_some() {
            tokio::task::yield_now().await;
        }
        assert!(!stopping.is_finished());
        go_on.send(()).expect("it waits");
        stopping.await.expect("it stops");
        assert!(reading.is_finished());
    }
}
