//! The memory: collections of points, in shards, searched from any node.
//!
//! A shard is a Raft group whose machine (`machine.rs`) keeps the points of many collections. Each replica has three
//! things: the state (id to row number, in memory), the rows (vector, payload, version, in the group's state store), and for
//! each collection an index (`quorate_index`), which is a cache of the rows. `replica.rs` says how reads stay right while
//! entries are applied.
//!
//! A call comes to any node (`service.rs`), is checked (`validate.rs`), and goes on to the shards that the point's id or the
//! collection says (`points.rs`, `search.rs`). `routes.rs` finds the replica to ask, on this node or another, and
//! `serve.rs` answers there; between nodes the call travels as `wire.rs` says. Searches run on threads of their own
//! (`pool.rs`), and `merge.rs` puts the shards' answers together. Collections are made and deleted in control
//! (`collections.rs`) and reach the shards by the outbox (`outbox.rs`).
//!
//! What the rest of the node needs to know: [`Memory`] is the [`ShardHost`] that the supervisor of replicas calls, and the
//! gRPC service.

mod batches;
mod collections;
mod machine;
mod merge;
mod metrics;
mod outbox;
mod points;
mod pool;
mod replica;
mod routes;
mod search;
mod serve;
mod service;
mod validate;
mod wire;

#[cfg(test)]
mod machine_tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use quorate_index::Builder;
use quorate_raft::{Group, Machine, NodeId, ReplicaId};
use quorate_state::{ShardId, shard};
use tokio::task::JoinHandle;

use self::machine::ShardMachine;
use self::metrics::{Holdings, MemoryMetrics};
use self::pool::SearchPool;
use self::replica::{IndexPlan, Replica};
use crate::context::Context;
use crate::error::Error;
use crate::hosting::ShardHost;
use crate::log_clock::{Reached, Timed};
use crate::proposer::Proposer;

pub use self::service::MemoryApi;

/// The memory of a node: the replicas it hosts and the ways to those it does not.
pub struct Memory {
    inner: Arc<Inner>,
    outbox: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    context: Context,
    plan: IndexPlan,
    pool: SearchPool,
    hosted: RwLock<BTreeMap<ShardId, Hosting>>,
    /// Leaders that were named in refusals, until they have been tried.
    hints: Mutex<HashMap<ShardId, NodeId>>,
    /// Spreads reads over the replicas.
    turn: AtomicUsize,
    metrics: MemoryMetrics,
}

/// A replica on this node, from the making of its machine to its end.
struct Hosting {
    replica: Arc<Replica>,
    reached: Arc<Reached>,
    running: Option<Running>,
}

/// A replica whose group runs. Cheap to clone.
#[derive(Clone)]
struct Running {
    replica: Arc<Replica>,
    group: Group,
    proposer: Proposer<shard::Command>,
}

impl Memory {
    /// Starts the search threads, the outbox and the answers to other nodes. Must be called on the node's runtime.
    ///
    /// # Errors
    /// A processor without the instructions that the vector kernels need; no threads.
    pub fn start(context: Context) -> Result<Arc<Memory>, Error> {
        quorate_index::check_cpu().map_err(|error| Error::internal(error.to_string()))?;
        let pool = SearchPool::start(context.config.search_threads)
            .map_err(|error| Error::internal(format!("the search threads do not start: {error}")))?;
        let plan = IndexPlan {
            directory: context.config.data_dir.join("index"),
            builder: Builder::new(context.config.build_threads),
            seal_rows: context.config.seal_rows,
        };
        let registry = context.metrics.registry.clone();
        let registered = |error: prometheus::Error| Error::internal(format!("metrics of the memory: {error}"));
        let inner = Arc::new(Inner {
            metrics: MemoryMetrics::new(&registry).map_err(registered)?,
            context,
            plan,
            pool,
            hosted: RwLock::new(BTreeMap::new()),
            hints: Mutex::new(HashMap::new()),
            turn: AtomicUsize::new(0),
        });
        Holdings::register(&registry, &inner).map_err(registered)?;
        let outbox = tokio::spawn(outbox::run(inner.clone()));
        let memory = Arc::new(Memory { inner, outbox: Mutex::new(Some(outbox)) });
        memory.listen();
        Ok(memory)
    }

    /// Walks the invariants of the state of each replica here and says what is wrong. Takes time in proportion to the states:
    /// for the simulation.
    pub fn check(&self) -> BTreeMap<ShardId, Vec<String>> {
        let wrong =
            |replica: Arc<Replica>| (replica.shard, replica.held.read().shard.check().err().unwrap_or_default());
        self.inner.replicas().into_iter().map(wrong).collect()
    }

    /// Ends the outbox and lets go of the replicas. Calls are refused from now on; `context.shutdown` must be cancelled.
    pub async fn stop(&self) {
        let outbox = self.outbox.lock().take();
        if let Some(outbox) = outbox {
            outbox.abort();
            // Aborted, so it ends with an error or had ended before.
            let _ = outbox.await;
        }
        let shards: Vec<ShardId> = self.inner.hosted.read().keys().copied().collect();
        for shard in shards {
            self.stopping(shard).await;
        }
    }
}

#[async_trait]
impl ShardHost for Memory {
    fn machine(&self, shard: ShardId, _replica: ReplicaId) -> Box<dyn Machine> {
        let replica = Arc::new(Replica::new(shard, self.inner.plan.clone()));
        let reached = Reached::new(self.inner.context.clock.clone());
        let hosting = Hosting { replica: replica.clone(), reached: reached.clone(), running: None };
        self.inner.hosted.write().insert(shard, hosting);
        let machine = Box::new(ShardMachine::new(replica.clone()));
        Box::new(Timed::new(machine, reached, move || replica.held.read().shard.time()))
    }

    async fn started(&self, shard: ShardId, group: Group) {
        let hosting = |hosting: &Hosting| (hosting.replica.clone(), hosting.reached.clone());
        let Some((replica, reached)) = self.inner.hosted.read().get(&shard).map(hosting) else {
            tracing::error!(%shard, "a group was started without a machine of this node");
            return;
        };
        let proposer = Proposer::start(group.clone(), reached, self.inner.context.metrics.clone());
        let running = Running { replica, group, proposer };
        if let Some(hosting) = self.inner.hosted.write().get_mut(&shard) {
            hosting.running = Some(running);
        }
    }

    async fn stopping(&self, shard: ShardId) {
        let Some(hosting) = self.inner.hosted.write().remove(&shard) else { return };
        if let Some(running) = &hosting.running {
            running.proposer.stop();
        }
        let replica = hosting.replica;
        if self.inner.pool.is_in_place() {
            return replica.close();
        }
        // Waits for reads under way, which block their threads and not this one.
        if let Err(error) = tokio::task::spawn_blocking(move || replica.close()).await {
            tracing::error!(%shard, %error, "a replica was not closed cleanly");
        }
    }

    async fn destroyed(&self, shard: ShardId) {
        let directory = replica::directory(&self.inner.plan, shard);
        match fs_err::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%shard, %error, "the index of a removed replica stays behind");
            }
            _ => {}
        }
    }
}

impl Inner {
    fn running(&self, shard: ShardId) -> Option<Running> {
        self.hosted.read().get(&shard).and_then(|hosting| hosting.running.clone())
    }

    fn replicas(&self) -> Vec<Arc<Replica>> {
        self.hosted.read().values().map(|hosting| hosting.replica.clone()).collect()
    }
}
