//! A node in the simulation: the real assembly and the real servers on simulated network, disk and clock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use quorate_node::cluster::ClusterApi;
use quorate_node::cluster::formation::Formation;
use quorate_node::{Addresses, Clock, Config, Context, ErrorReason, Metrics, Node, grpc};
use quorate_raft::{BoxIo, GroupsConfig, Identity, Observer, Seams, TaskHooks, WriterMode};
use quorate_state::Operation;
use quorate_state::control::Command;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::network::{SimulatedTcp, channel, listen};
use crate::world::{CLIENT_PORT, PEER_PORT, Slot, World, host};

/// Small, so that checkpoints, purges and snapshots happen within seconds.
const SNAPSHOT_LOG_BYTES: u64 = 24 << 10;
const PURGE_TAIL: u64 = 40;
const RETRY: Duration = Duration::from_millis(100);
const PROBE_EVERY: Duration = Duration::from_millis(40);
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// The process of a node, until it is killed.
pub(crate) async fn run(world: Arc<World>, node: usize) -> turmoil::Result {
    let slot = world.slots[node].clone();
    let running = match assemble(&world, &slot).await {
        Ok(running) => running,
        Err(error) => {
            // A disk that failed under the start is a fault that was injected; everything else is a find.
            if !slot.died.load(Ordering::Relaxed) {
                world.history.lock().violation(format!("{} does not start: {error:#}", host(node)));
            }
            return std::future::pending().await;
        }
    };
    *slot.context.lock() = Some(running.context.clone());
    serve(&running).await?;
    form(&running.context, &running.formation, node).await;
    probe(&world, &running.context).await
}

async fn assemble(world: &Arc<World>, slot: &Arc<Slot>) -> anyhow::Result<Node> {
    let name = host(slot.node);
    let addresses = Addresses {
        client: format!("{name}:{CLIENT_PORT}"),
        peer: format!("{name}:{PEER_PORT}"),
        http: format!("{name}:7702"),
    };
    let config =
        Config { data_dir: slot.dir.clone(), label: name, search_threads: 1, build_threads: 0, ..Config::default() };
    let metrics = Metrics::new();
    let mut raft = GroupsConfig::new(Identity::open(&slot.dir)?, slot.dir.clone(), addresses.peer.clone());
    raft.timers = config.timers.timers();
    raft.registry = metrics.registry.clone();
    raft.threads = None;
    raft.snapshot_log_bytes = SNAPSHOT_LOG_BYTES;
    raft.purge_tail = PURGE_TAIL;
    raft.observer = Some({
        let (world, node) = (world.clone(), slot.node);
        Observer::new(move |entry| world.history.lock().applying(node, entry))
    });
    let (log, states) = slot.disks();
    let seams = Seams {
        log: Arc::new(log),
        states: Arc::new(states),
        connector: Arc::new(SimulatedTcp),
        writer: WriterMode::Task(hooks(world, slot)),
    };
    let clock = Arc::new(SkewedClock { ahead_us: world.choose(0..300_000) });
    Ok(Node::assemble(config, addresses, raft, seams, clock, metrics).await?)
}

fn hooks(world: &Arc<World>, slot: &Arc<Slot>) -> TaskHooks {
    let (world, disk, dying) = (world.clone(), slot.clone(), slot.clone());
    TaskHooks {
        latency: Arc::new(move || {
            let most = disk.commit_us.load(Ordering::Relaxed);
            Duration::from_micros(world.choose(0..most))
        }),
        failed: Arc::new(move |_| dying.died.store(true, Ordering::Relaxed)),
    }
}

/// The servers for peers and for clients.
async fn serve(node: &Node) -> turmoil::Result {
    let context = node.context.clone();
    let never = CancellationToken::new();
    let peers = listen(PEER_PORT).await?.map(|accepted| accepted.map(|stream| Box::new(stream) as BoxIo));
    let groups = context.groups.clone();
    tokio::spawn(groups_served(groups, peers, never.clone()));
    let cluster = ClusterApi::new(context.clone(), node.formation.clone());
    let clients = listen(CLIENT_PORT).await?;
    let served = grpc::serve_incoming(context, cluster, node.tasks.clone(), node.memory.clone(), clients, never);
    tokio::task::spawn_local(served);
    Ok(())
}

async fn groups_served(
    groups: quorate_raft::Groups,
    peers: impl futures::Stream<Item = std::io::Result<BoxIo>> + Send + 'static,
    stop: CancellationToken,
) {
    if let Err(error) = groups.serve_incoming(peers, stop).await {
        tracing::warn!(%error, "the server for peers ended");
    }
}

/// Makes the cluster on the first node, and joins it on the others, however often the process is killed meanwhile.
async fn form(context: &Context, formation: &Formation, node: usize) {
    let seed = format!("{}:{CLIENT_PORT}", host(0));
    loop {
        let made = if node == 0 {
            if context.control.read(|control| control.cluster().is_some()) {
                return;
            }
            formation.init(1).await.map(|_| ())
        } else {
            if context.control.group().is_some() {
                return;
            }
            match channel(&seed).await {
                Ok(channel) => formation.join_through(&seed, channel).await.map(|_| ()),
                Err(_) => Err(quorate_node::Error::no_leader()),
            }
        };
        match made {
            Ok(()) => return,
            Err(error) if error.reason == ErrorReason::AlreadyInitialized => return,
            Err(error) => tracing::debug!(%error, "the cluster is not formed yet"),
        }
        sleep(RETRY).await;
    }
}

/// Says again and again what agents have lost the right to say, as a network that delays messages would.
async fn probe(world: &World, context: &Context) -> turmoil::Result {
    loop {
        sleep(PROBE_EVERY).await;
        let turn = world.choose(0..1 << 32) as usize;
        let Some((task, token)) = world.history.lock().audit.stale(turn) else { continue };
        let command = Command::Complete { task, token, result: b"stale".to_vec(), children: Vec::new() };
        let until = Instant::now() + PROBE_PATIENCE;
        if let Ok(Ok(reply)) = context.control.propose_anywhere(Operation::new(command), until).await {
            world.history.lock().violation(format!("task {task} takes the stale token {token}: {reply:?}"));
        }
    }
}

/// Simulated time; the wall clocks of the nodes differ.
struct SkewedClock {
    ahead_us: u64,
}

/// Log time begins somewhere after the epoch, where 0 means none.
const BEGIN_US: u64 = 1_000_000;

fn elapsed_us() -> u64 {
    let elapsed = turmoil::sim_elapsed().unwrap_or_default();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

impl Clock for SkewedClock {
    fn monotonic_us(&self) -> u64 {
        elapsed_us()
    }

    fn wall_us(&self) -> u64 {
        BEGIN_US + self.ahead_us + elapsed_us()
    }
}
