//! Nodes on loopback, each with a disk that can crash and a network that can be cut.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_raft::memory::{MemoryFloor, MemoryLog, MemoryStates};
use quorate_raft::{
    BoxIo, ClusterId, Connector, Fault, Group, GroupId, Groups, GroupsConfig, Identity, LogPosition, Machine, Member,
    NodeId, OpenError, ProposeError, ReplicaId, Reply, RowBatch, Seams, StateStore, TaskHooks, TcpConnector, Timers,
    WriterMode,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);
pub(crate) const GROUP: GroupId = GroupId(3);
/// All disks are read back all the time: what is not damaged must never be taken for it.
pub(crate) const SCRUB_EVERY: Duration = Duration::from_millis(50);
/// Enough for anything on a busy machine; nothing waits for it to pass.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Adds numbers. Its only row is the sum.
pub(crate) struct Counter {
    sum: u64,
    pub(crate) loads: Arc<AtomicUsize>,
}

impl Counter {
    pub(crate) fn boxed(loads: &Arc<AtomicUsize>) -> Box<dyn Machine> {
        Box::new(Counter { sum: 0, loads: loads.clone() })
    }
}

pub(crate) fn stored_sum(store: &dyn StateStore) -> u64 {
    read_sum(store).expect("the store reads")
}

fn read_sum(store: &dyn StateStore) -> io::Result<u64> {
    let row = store.get(1, b"sum")?;
    Ok(row.map_or(0, |row| u64::from_le_bytes(row[..8].try_into().expect("eight bytes"))))
}

impl Machine for Counter {
    fn apply(&mut self, _: LogPosition, payload: &[u8], rows: &mut RowBatch) -> Result<Reply, Fault> {
        let number = payload.get(..8).and_then(|bytes| bytes.try_into().ok());
        let number = number.ok_or_else(|| Fault { reason: "not a number".to_owned() })?;
        self.sum += u64::from_le_bytes(number);
        let row = Bytes::copy_from_slice(&self.sum.to_le_bytes());
        rows.changes.push((1, Bytes::from_static(b"sum"), Some(row)));
        Ok(Reply::new(self.sum))
    }

    fn applied(&mut self, _: LogPosition) {}

    fn load(&mut self, store: Arc<dyn StateStore>, _: Option<LogPosition>) -> Result<(), Fault> {
        self.sum = read_sum(&*store).map_err(|error| Fault { reason: error.to_string() })?;
        self.loads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn hash(&self) -> u64 {
        self.sum.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// One direction between two nodes.
#[derive(Clone, Default)]
struct Gate {
    /// Cancelled when it is cut.
    open: CancellationToken,
    held: Arc<Mutex<Held>>,
}

/// What is kept back on the connections that one node has made to another: it arrives once it is let go.
#[derive(Default)]
struct Held {
    questions: bool,
    answers: bool,
    waiting: Vec<Waker>,
}

/// Who reaches whom. Nodes are known by their number.
#[derive(Default)]
pub(crate) struct Network {
    gates: Mutex<HashMap<(usize, String), Gate>>,
    /// Connections that were asked for, made or not, by address.
    asked: Mutex<HashMap<String, usize>>,
}

struct Gated {
    network: Arc<Network>,
    from: usize,
}

#[async_trait]
impl Connector for Gated {
    async fn connect(&self, address: &str) -> io::Result<BoxIo> {
        *self.network.asked.lock().entry(address.to_owned()).or_default() += 1;
        let gate = self.network.gates.lock().entry((self.from, address.to_owned())).or_default().clone();
        if gate.open.is_cancelled() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let io = TcpConnector.connect(address).await?;
        Ok(Box::new(Cuttable { io, cut: Box::pin(gate.open.cancelled_owned()), held: gate.held }))
    }
}

struct Cuttable {
    io: BoxIo,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    held: Arc<Mutex<Held>>,
}

impl Cuttable {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn is_held(&self, cx: &Context<'_>, which: impl Fn(&Held) -> bool) -> bool {
        let mut held = self.held.lock();
        let is_held = which(&held);
        if is_held {
            held.waiting.push(cx.waker().clone());
        }
        is_held
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        if self.is_held(cx, |held| held.answers) {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        if self.is_held(cx, |held| held.questions) {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// What outlives a node's process.
pub(crate) struct Machinery {
    pub(crate) address: String,
    pub(crate) log: MemoryLog,
    pub(crate) floor: MemoryFloor,
    pub(crate) states: MemoryStates,
    /// Of the last life.
    pub(crate) registry: prometheus::Registry,
    incarnation: u64,
    dir: tempfile::TempDir,
    listener: Option<TcpListener>,
}

/// A node that runs.
pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) groups: Groups,
    pub(crate) group: Group,
    pub(crate) loads: Arc<AtomicUsize>,
    server: JoinHandle<()>,
    /// Does what the node does that compares states: here all replicas always agree.
    agreeing: JoinHandle<()>,
}

/// A cluster of up to some nodes, numbered from 1. Replica 10 + n is on node n.
pub(crate) struct Cluster {
    pub(crate) network: Arc<Network>,
    pub(crate) machines: BTreeMap<usize, Machinery>,
    pub(crate) nodes: BTreeMap<usize, Node>,
    pub(crate) snapshot_log_bytes: u64,
    timers: Timers,
}

pub(crate) fn replica(number: usize) -> ReplicaId {
    10 + number as u64
}

pub(crate) fn node_id(number: usize) -> NodeId {
    NodeId(100 + number as u64)
}

pub(crate) fn number(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_le_bytes())
}

/// Tells a replica again and again that a majority has its state, until its group stops.
pub(crate) async fn agree(group: Group) {
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let again = async {
        loop {
            tick.tick().await;
            if let Some((position, hash)) = group.hash().filter(|_| !group.is_agreed()) {
                // A disk that fails is the business of the test.
                let _ = group.agree(position, hash).await;
            }
        }
    };
    tokio::select! {
        () = again => {}
        _ = group.stopped() => {}
    }
}

/// A loopback address for one machine alone, with any free port. A machine that comes back wants its port again, and on 127.0.0.1
/// an outgoing connection of another test may have taken that.
pub(crate) fn own_address() -> String {
    static MACHINES: AtomicUsize = AtomicUsize::new(0);
    let number = MACHINES.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{}.{}:0", 1 + std::process::id() % 250, number / 250 % 250, 1 + number % 250)
}

impl Cluster {
    /// `total` machines, the first `voters` of which run and make up the group.
    pub(crate) async fn start(total: usize, voters: usize, snapshot_log_bytes: u64) -> Cluster {
        Cluster::start_with(total, voters, snapshot_log_bytes, Timers::default().slower(2)).await
    }

    /// The same with these times.
    pub(crate) async fn start_with(total: usize, voters: usize, snapshot_log_bytes: u64, timers: Timers) -> Cluster {
        let network = Arc::default();
        let (machines, nodes) = (BTreeMap::new(), BTreeMap::new());
        let mut cluster = Cluster { network, machines, nodes, snapshot_log_bytes, timers };
        for number in 1..=total {
            let dir = tempfile::tempdir().expect("a directory");
            let listener = TcpListener::bind(own_address()).await.expect("a port");
            let machine = Machinery {
                address: listener.local_addr().expect("bound").to_string(),
                log: MemoryLog::new(),
                floor: MemoryFloor::new(),
                states: MemoryStates::new(dir.path().join("scratch")),
                registry: prometheus::Registry::new(),
                incarnation: 0,
                dir,
                listener: Some(listener),
            };
            cluster.machines.insert(number, machine);
        }
        for number in 1..=total {
            cluster.boot(number).await;
        }
        let members = (1..=voters).map(|number| (replica(number), cluster.member(number))).collect();
        cluster.nodes[&1].group.initialize(members).await.expect("a pristine group");
        cluster
    }

    pub(crate) fn member(&self, number: usize) -> Member {
        Member { node: node_id(number), address: self.machines[&number].address.clone() }
    }

    /// Starts a node on what its disk holds.
    pub(crate) async fn boot(&mut self, number: usize) {
        let groups = self.open(number).await;
        let loads = Arc::new(AtomicUsize::new(0));
        let group = groups.start_group(GROUP, replica(number), Counter::boxed(&loads)).await.expect("a group");
        self.serve(number, groups, group, loads).await;
    }

    /// Opens the groups of a node, and starts none.
    pub(crate) async fn open(&mut self, number: usize) -> Groups {
        let machine = self.machines.get_mut(&number).expect("a machine of that number");
        machine.incarnation += 1;
        let identity = Identity::fixed(node_id(number), Some(CLUSTER), machine.incarnation);
        let data = machine.dir.path().join("data");
        let mut config = GroupsConfig::new(identity, data, machine.address.clone());
        config.timers = self.timers;
        config.snapshot_log_bytes = self.snapshot_log_bytes;
        config.purge_tail = 5;
        config.hash_every = 4;
        (config.scrub_every, config.scrub_state_every) = (SCRUB_EVERY, SCRUB_EVERY);
        machine.registry = config.registry.clone();
        let seams = Seams {
            log: Arc::new(machine.log.clone()),
            floor: Arc::new(machine.floor.clone()),
            states: Arc::new(machine.states.clone()),
            connector: Arc::new(Gated { network: self.network.clone(), from: number }),
            writer: WriterMode::Task(TaskHooks { failed: Arc::new(|_| ()), ..TaskHooks::instant() }),
        };
        Groups::open(config, seams).await.expect("a disk that reads")
    }

    /// Starts a node whose replica is damaged. Returns its groups and what is said of the replica; it serves nobody.
    pub(crate) async fn boot_damaged(&mut self, number: usize) -> (Groups, OpenError) {
        let groups = self.open(number).await;
        let machine = Counter::boxed(&Arc::new(AtomicUsize::new(0)));
        let refused = groups.start_group(GROUP, replica(number), machine).await.map(drop).expect_err("it is damaged");
        (groups, refused)
    }

    /// Lets a node take its place in the network with a group that it has started.
    pub(crate) async fn serve(&mut self, number: usize, groups: Groups, group: Group, loads: Arc<AtomicUsize>) {
        let machine = self.machines.get_mut(&number).expect("a machine of that number");
        let listener = match machine.listener.take() {
            Some(listener) => listener,
            None => TcpListener::bind(&machine.address).await.expect("the same port"),
        };
        let serving = groups.clone();
        let server = tokio::spawn(async move {
            serving.serve(listener, CancellationToken::new()).await.expect("the server runs");
        });
        let agreeing = tokio::spawn(agree(group.clone()));
        self.nodes.insert(number, Node { number, groups, group, loads, server, agreeing });
    }

    /// Kills a node: its process is gone at once, its disk forgets what was not synced.
    pub(crate) async fn kill(&mut self, number: usize) {
        let Node { groups, group, server, agreeing, .. } = self.nodes.remove(&number).expect("a node that runs");
        self.crash(number);
        agreeing.abort();
        server.abort();
        // Its listener is free for the next life once the task is gone.
        let _ = server.await;
        drop((groups, group));
    }

    /// Everything that was opened on the disk of a node fails from now on.
    pub(crate) fn crash(&mut self, number: usize) {
        let machine = self.machines.get_mut(&number).expect("its machine");
        machine.log = machine.log.crash();
        machine.log.clear_hook();
        machine.floor = machine.floor.crash();
        machine.floor.clear_hook();
        machine.states = machine.states.crash();
    }

    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.gate(from, to).open.cancel();
    }

    /// Keeps back what a node asks another one, what it is answered, or lets it go.
    pub(crate) fn hold(&self, from: usize, to: usize, questions: bool, answers: bool) {
        let gate = self.gate(from, to);
        let mut held = gate.held.lock();
        (held.questions, held.answers) = (questions, answers);
        held.waiting.drain(..).for_each(Waker::wake);
    }

    /// Cuts a node off from all others, in both directions.
    pub(crate) fn isolate(&self, number: usize) {
        for other in self.machines.keys().copied().filter(|other| *other != number) {
            self.cut(number, other);
            self.cut(other, number);
        }
    }

    /// How often a connection to this node was asked for.
    pub(crate) fn asked(&self, number: usize) -> usize {
        self.network.asked.lock().get(&self.machines[&number].address).copied().unwrap_or(0)
    }

    pub(crate) fn heal(&self) {
        self.network.gates.lock().clear();
    }

    fn gate(&self, from: usize, to: usize) -> Gate {
        self.network.gates.lock().entry((from, self.machines[&to].address.clone())).or_default().clone()
    }

    /// The node that leads, once all of `among` that run agree on it.
    pub(crate) async fn leader(&self, among: &[usize]) -> &Node {
        let found = async {
            loop {
                let leading = among.iter().filter_map(|number| self.nodes.get(number));
                let leaders: Vec<_> = leading.filter(|node| node.group.leadership().borrow().mine).collect();
                let agreed = leaders.first().filter(|leader| {
                    let id = leader.group.replica();
                    let knows = |node: &Node| {
                        node.group.leadership().borrow().leader.as_ref().is_some_and(|(leader, _)| *leader == id)
                    };
                    leaders.len() == 1 && among.iter().filter_map(|number| self.nodes.get(number)).all(knows)
                });
                if let Some(leader) = agreed {
                    return leader.number;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let number = tokio::time::timeout(LONG, found).await.expect("a leader");
        &self.nodes[&number]
    }

    /// Adds a number through whoever leads, again until it is certain. Only for numbers whose repetition does not
    /// matter to the test.
    pub(crate) async fn add(&self, among: &[usize], value: u64) -> u64 {
        loop {
            let leader = self.leader(among).await;
            match leader.group.propose(number(value)).await {
                Ok(committed) => return committed.reply.downcast::<u64>().expect("a sum"),
                Err(ProposeError::NotLeader { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits until all of `among` have applied the same position and hold `sum`.
    pub(crate) async fn converge(&self, among: &[usize], sum: u64) {
        let same = async {
            loop {
                let sums: Vec<u64> =
                    among.iter().map(|number| stored_sum(&*self.nodes[number].group.store())).collect();
                if sums.iter().all(|found| *found == sum) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(LONG, same).await.is_err() {
            let views: Vec<_> = among.iter().map(|number| self.nodes[number].group.status()).collect();
            let sums: Vec<_> = among.iter().map(|number| stored_sum(&*self.nodes[number].group.store())).collect();
            panic!("no convergence to {sum}: {sums:?} {views:#?}");
        }
    }
}
