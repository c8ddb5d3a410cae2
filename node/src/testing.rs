//! A node in memory for the tests of its parts: what every part is given, on a disk and a clock of its own. No socket is open, and
//! nothing runs but what a test starts. Time is tokio's, so it passes in no time where it is paused.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use quorate_raft::memory::{MemoryFloor, MemoryLog, MemoryStates};
use quorate_raft::{
    BoxIo, ClusterId, Connector, Fault, Group, GroupId, Groups, GroupsConfig, Identity, LogPosition, Machine, Member,
    NodeId, ReplicaId, Reply as RaftReply, RowBatch, Seams, StateStore, TaskHooks, WriterMode,
};
use quorate_state::Operation;
use quorate_state::control::{Command, NodeRecord, Reply};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::cluster::contacts::Contacts;
use crate::config::Config;
use crate::context::Context;
use crate::control::ControlHandle;
use crate::log_clock::Clock;
use crate::metrics::Metrics;
use crate::peers::{Dispatch, Peers};
use crate::quarantine::Quarantine;
use crate::start::Addresses;

/// How long anything in a test may take before it counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The node's replica of control.
pub(crate) const CONTROL_REPLICA: ReplicaId = 1;

const NODE: u64 = 1;
const CLUSTER: ClusterId = ClusterId(9);
/// Some moment of 2026, in microseconds.
const STARTED_US: u64 = 1_795_000_000_000_000;
/// More than enough turns for those who were told to end.
const LAST_TURNS: usize = 1_000;

/// Clocks that go where they are set.
#[derive(Default)]
pub(crate) struct Hands {
    pub(crate) monotonic: AtomicU64,
    pub(crate) wall: AtomicU64,
}

impl Hands {
    pub(crate) fn pass(&self, us: u64) {
        self.monotonic.fetch_add(us, Ordering::Relaxed);
        self.wall.fetch_add(us, Ordering::Relaxed);
    }
}

impl Clock for Hands {
    fn monotonic_us(&self) -> u64 {
        self.monotonic.load(Ordering::Relaxed)
    }
    fn wall_us(&self) -> u64 {
        self.wall.load(Ordering::Relaxed)
    }
}

/// A machine of replicas that nobody asks anything.
pub(crate) struct Still;

impl Machine for Still {
    fn apply(&mut self, _: LogPosition, _: &[u8], _: &mut RowBatch) -> Result<RaftReply, Fault> {
        Ok(RaftReply::none())
    }
    fn applied(&mut self, _: LogPosition) {}
    fn load(&mut self, _: Arc<dyn StateStore>, _: Option<LogPosition>) -> Result<(), Fault> {
        Ok(())
    }
    fn hash(&self) -> u64 {
        0
    }
}

/// There is no other node.
struct Alone;

#[async_trait]
impl Connector for Alone {
    async fn connect(&self, _address: &str) -> io::Result<BoxIo> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

/// The node.
pub(crate) struct Stage {
    pub(crate) context: Context,
    pub(crate) clock: Arc<Hands>,
    pub(crate) states: MemoryStates,
    _dir: TempDir,
}

/// Plays a test on a new node, and stops the node behind it however it ends. A proposer that is dropped by a panic takes the
/// process along, so a test that fails must not end under it.
pub(crate) async fn on_stage<F: Future<Output = ()> + Send + 'static>(play: impl FnOnce(Arc<Stage>) -> F) {
    let stage = Arc::new(Stage::new().await);
    let played = tokio::spawn(play(stage.clone())).await;
    stage.context.shutdown.cancel();
    stage.context.control.detach();
    stage.context.groups.shutdown().await;
    for _ in 0..LAST_TURNS {
        yield_now().await;
    }
    if let Err(failed) = played {
        resume_unwind(failed.into_panic());
    }
}

impl Stage {
    async fn new() -> Stage {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let clock = Arc::new(Hands::default());
        clock.pass(STARTED_US);
        let states = MemoryStates::new(dir.path().join("scratch"));
        let metrics = Metrics::new();
        let NodeRecord { peer_address: peer, client_address: client, http_address: http, .. } = record(NODE);
        let addresses = Addresses { client, peer, http };
        let identity = Identity::fixed(NodeId(NODE), None, 1);
        let mut raft = GroupsConfig::new(identity, dir.path().to_owned(), addresses.peer.clone());
        raft.threads = None;
        let seams = Seams {
            log: Arc::new(MemoryLog::new()),
            floor: Arc::new(MemoryFloor::new()),
            states: Arc::new(states.clone()),
            connector: Arc::new(Alone),
            writer: WriterMode::Task(TaskHooks::instant()),
        };
        let groups = Groups::open(raft, seams).await.expect("a new node");
        let control = ControlHandle::new(groups.clone(), clock.clone(), metrics.clone());
        let context = Context {
            config: Arc::new(Config { data_dir: dir.path().to_owned(), label: "n".into(), ..Config::default() }),
            node: NodeId(NODE),
            addresses: Arc::new(addresses),
            peers: Peers::new(groups.clone(), control.clone()),
            groups,
            control,
            dispatch: Dispatch::new(metrics.clone()),
            clock: clock.clone(),
            quarantine: Arc::new(Quarantine::new(metrics.clone())),
            metrics,
            contacts: Arc::new(Contacts::open(dir.path(), None)),
            shutdown: CancellationToken::new(),
            fault: watch::Sender::new(None),
        };
        Stage { context, clock, states, _dir: dir }
    }

    /// Starts a replica of control that belongs to no group yet, so that it leads nothing.
    pub(crate) async fn start_control(&self) -> Group {
        let Context { groups, control, .. } = &self.context;
        let started = groups.start_group(GroupId::CONTROL, CONTROL_REPLICA, control.machine()).await;
        let group = started.expect("a new replica");
        control.attach(group.clone());
        group
    }

    /// Makes the group of control, of which this node is the only voter.
    pub(crate) async fn lead(&self) {
        let group = self.context.control.group().expect("control is started");
        group.initialize(BTreeMap::from([(CONTROL_REPLICA, member(NODE))])).await.expect("a new group");
        let mut leadership = self.context.control.leadership();
        let leads = timeout(PATIENCE, leadership.wait_for(|now| now.mine)).await;
        leads.expect("nobody else can lead").expect("the handle lives");
    }

    /// Makes a cluster of this node.
    pub(crate) async fn found(&self, shards: u32) {
        self.start_control().await;
        self.lead().await;
        self.context.groups.adopt_cluster(CLUSTER).expect("it belongs to none");
        let node = record(NODE);
        let init = Command::InitCluster { cluster: CLUSTER.0, shards, node, control_replica: CONTROL_REPLICA };
        self.run(init).await;
    }

    /// Has the cluster admit another node, which is never there.
    pub(crate) async fn admit_other(&self) -> quorate_state::NodeId {
        let node = record(NODE + 1);
        let id = node.node;
        self.run(Command::AddMember { node }).await;
        id
    }

    /// Has one command applied that nothing speaks against.
    pub(crate) async fn run(&self, command: Command) -> Reply {
        let replies = self.context.control.propose(vec![Operation::new(command)]).await.expect("this node leads");
        let reply = replies.into_iter().next().expect("one reply for one operation");
        reply.expect("nothing speaks against it")
    }

    /// Has the leader need the vote of a replica that does not answer: it leads on and nobody confirms it.
    pub(crate) async fn lose_majority(&self) {
        let group = self.context.control.group().expect("control is started");
        let other = CONTROL_REPLICA + 1;
        group.add_learner(other, member(NODE + 1)).await.expect("this node leads");
        let changed = group.clone();
        tokio::spawn(async move { changed.change_voters(BTreeSet::from([CONTROL_REPLICA, other]), true).await });
        let unconfirmed = async {
            let mut tick = interval(Duration::from_millis(1));
            while group.lease_valid() {
                tick.tick().await;
            }
        };
        timeout(PATIENCE, unconfirmed).await.expect("the other voter says nothing");
    }
}

fn peer_address(node: u64) -> String {
    format!("n{node}:7701")
}

fn member(node: u64) -> Member {
    Member { node: NodeId(node), address: peer_address(node) }
}

fn record(node: u64) -> NodeRecord {
    NodeRecord {
        node: quorate_state::NodeId(node),
        name: format!("n{node}"),
        peer_address: peer_address(node),
        client_address: format!("n{node}:7700"),
        http_address: String::new(),
    }
}
