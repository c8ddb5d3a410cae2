//! A node in the simulation: the real assembly and the real servers on simulated network, disk and clock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use quorate_node::cluster::ClusterApi;
use quorate_node::cluster::formation::Formation;
use quorate_node::{Addresses, Config, Context, ErrorReason, Metrics, Node, grpc};
use quorate_raft::{BoxIo, GroupId, GroupsConfig, Identity, Observer, Seams, TaskHooks, WriterMode};
use quorate_state::Operation;
use quorate_state::control::Command;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::clock::elapsed_us;
use crate::network::{SimulatedTcp, channel, listen};
use crate::repeat;
use crate::slot::{Running, Slot};
use crate::world::{CLIENT_PORT, PEER_PORT, SLOTS, World, host};

/// Small, so that checkpoints, purges and snapshots happen within seconds.
const SNAPSHOT_LOG_BYTES: u64 = 24 << 10;
const PURGE_TAIL: u64 = 40;
/// Often, so that a replica that has diverged is found out within seconds.
const HASH_EVERY: u64 = 16;
const COMPARE_EVERY: Duration = Duration::from_millis(300);
/// Often, so that damage that nobody meets is found within seconds: in logs, and in states.
const SCRUB_EVERY: Duration = Duration::from_millis(1_000);
const SCRUB_STATE_EVERY: Duration = Duration::from_millis(1_500);
const RETRY: Duration = Duration::from_millis(100);
const PROBE_EVERY: Duration = Duration::from_millis(40);
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// The process of a node, until it is killed.
pub(crate) async fn run(world: Arc<World>, node: usize) -> turmoil::Result {
    let slot = world.slots[node].clone();
    if !slot.wanted.load(Ordering::Relaxed) {
        return std::future::pending().await;
    }
    let running = match assemble(&world, &slot).await {
        Ok(running) => running,
        Err(error) => {
            // A disk that failed under the start is a fault that was injected; everything else is a find.
            if slot.is_full() {
                slot.died.store(true, Ordering::Relaxed);
            }
            if !slot.died.load(Ordering::Relaxed) {
                world.with_history(|history| {
                    history.violation(format!("restart: {} does not start: {error:#}", host(node)))
                });
            }
            return std::future::pending().await;
        }
    };
    slot.started(Running {
        context: running.context.clone(),
        hosting: running.hosting.clone(),
        memory: running.memory.clone(),
        removed: running.removed.clone(),
    });
    serve(&world, &running, node).await?;
    form(&world, &running.context, &running.formation, node).await;
    probe(&world, &running.context).await
}

async fn assemble(world: &Arc<World>, slot: &Arc<Slot>) -> anyhow::Result<Node> {
    let name = host(slot.node);
    let addresses = Addresses {
        client: format!("{name}:{CLIENT_PORT}"),
        peer: format!("{name}:{PEER_PORT}"),
        http: format!("{name}:7702"),
    };
    // No threads: searches run where they are asked, and nothing is built.
    let config = Config {
        data_dir: slot.dir.clone(),
        label: name,
        search_threads: 0,
        build_threads: 0,
        compare_every: COMPARE_EVERY,
        ..Config::default()
    };
    let metrics = Metrics::new();
    let identity = Identity::open(&slot.dir)?;
    *slot.id.lock() = Some(identity.node);
    let mut raft = GroupsConfig::new(identity, slot.dir.clone(), addresses.peer.clone());
    raft.timers = config.timers.timers();
    raft.registry = metrics.registry.clone();
    raft.threads = None;
    raft.snapshot_log_bytes = SNAPSHOT_LOG_BYTES;
    raft.purge_tail = PURGE_TAIL;
    raft.hash_every = HASH_EVERY;
    (raft.scrub_every, raft.scrub_state_every) = (SCRUB_EVERY, SCRUB_STATE_EVERY);
    raft.observer = Some(observer(world, slot));
    let seams = Seams {
        log: Arc::new(slot.log()),
        floor: Arc::new(slot.floor()),
        states: Arc::new(slot.states()),
        connector: Arc::new(SimulatedTcp),
        writer: WriterMode::Task(hooks(world, slot)),
    };
    Ok(Node::assemble(config, addresses, raft, seams, slot.clocks.clone(), metrics).await?)
}

fn observer(world: &Arc<World>, slot: &Arc<Slot>) -> Observer {
    let (told, ending, node) = (world.clone(), slot.clone(), slot.node);
    Observer::new(move |entry| told.with_history(|history| history.applying(&*told, node, entry)))
        .ending_at(move |point| ending.ends_at(point))
}

fn hooks(world: &Arc<World>, slot: &Arc<Slot>) -> TaskHooks {
    let (world, disk, written, dying) = (world.clone(), slot.clone(), slot.clone(), slot.clone());
    TaskHooks {
        latency: Arc::new(move || {
            let most = disk.commit_us.load(Ordering::Relaxed);
            let latency = world.choose(0..most) + disk.stall_us.swap(0, Ordering::Relaxed);
            let latency = Duration::from_micros(latency);
            disk.batch(elapsed_us());
            latency
        }),
        answered: Arc::new(move || written.batch_ended(elapsed_us())),
        failed: Arc::new(move |_| dying.died.store(true, Ordering::Relaxed)),
    }
}

/// The servers for peers and for clients.
async fn serve(world: &Arc<World>, node: &Node, place: usize) -> turmoil::Result {
    let context = node.context.clone();
    let never = CancellationToken::new();
    let world = world.clone();
    let peers =
        listen(PEER_PORT).await?.map(move |accepted| {
            accepted.map(|stream| {
                if world.one_in(2) { repeat::through(&world, place, stream) } else { Box::new(stream) as BoxIo }
            })
        });
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

/// Makes the cluster on the first node, and joins it on the others through any node that answers, however often the process
/// is killed meanwhile. The first node joins too, once its place was emptied.
async fn form(world: &World, context: &Context, formation: &Formation, node: usize) {
    let founds = node == 0 && world.with_history(|history| history.machines.control.cluster().is_none());
    let mut turn = node;
    loop {
        let made = if founds {
            if context.control.read(|control| control.cluster().is_some()) {
                return;
            }
            formation.init(world.shards).await.map(|_| ())
        } else {
            if context.control.group().is_some() {
                return;
            }
            // A member that has lost its replica gets another one by itself, unless it asks for help.
            if context.quarantine.case(GroupId::CONTROL).is_some_and(|case| case.held_up.is_none()) {
                sleep(RETRY).await;
                continue;
            }
            turn = (turn + 1) % SLOTS;
            if turn == node {
                turn = (turn + 1) % SLOTS;
            }
            let seed = format!("{}:{CLIENT_PORT}", host(turn));
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
        let Some((task, token)) = world.with_history(|history| history.audit.stale(turn)) else { continue };
        let command = Command::Complete { task, token, result: b"stale".to_vec(), children: Vec::new() };
        let until = Instant::now() + PROBE_PATIENCE;
        if let Ok(Ok(reply)) = context.control.propose_anywhere(Operation::new(command), until).await {
            world.with_history(|history| {
                history.violation(format!("audit: task {task} takes the stale token {token}: {reply:?}"));
            });
        }
    }
}
