//! Tasks and the sessions of agents, on this node.
//!
//! Three parts, each of which can be missing for a while without harm:
//!
//! - The *services* answer clients and agents on any node. Writes find the leader by themselves, reads are linearizable,
//!   a wait is woken by the effects of applied entries.
//! - The *relay* holds one stream to the leader for all agents of this node. A change of leader ends that stream and
//!   nothing else: sessions are attached to the next one with what their agents hold, and what was not acknowledged is
//!   sent again.
//! - The *leader loop* runs while this node leads control. It matches ready tasks with free slots in memory, and every
//!   grant is an operation in the log before an agent hears of it. A completion and the next grant of its slot share an
//!   entry, so a whole task costs two commits.
//!
//! How a task travels: `enqueue` → proposer → applied → effect *ready* → the matcher adds a grant to the next entry →
//! effect *granted* → payload row → relay → agent → finish → relay → proposer, and with it the next grant.

mod agents;
mod attaching;
mod enqueue;
mod frames;
mod leader;
mod link;
mod metrics;
#[cfg(feature = "planted")]
mod planted;
mod relay;
mod roster;
mod service;
mod waiters;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use quorate_api::limits;
use quorate_api::v1::agents_service_server::AgentsServiceServer;
use quorate_api::v1::tasks_service_server::TasksServiceServer;
use quorate_raft::NodeId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use agents::AgentsApi;
pub use service::TasksApi;

use crate::context::Context;
use crate::error::Error;
use crate::peers::{StreamHandler, kind};
use leader::Leader;
use metrics::TaskMetrics;
use relay::Word;
use waiters::Waiters;

/// Tasks and sessions on this node.
pub struct Tasks {
    context: Context,
    metrics: Arc<TaskMetrics>,
    /// The leader loop, while this node leads control.
    leader: watch::Receiver<Option<Arc<Leader>>>,
    relay: mpsc::Sender<Word>,
    waiters: Arc<Waiters>,
    running: Mutex<JoinSet<()>>,
}

impl Tasks {
    /// Starts all parts and registers what other nodes ask of them. The node need not belong to a cluster yet.
    ///
    /// # Errors
    /// If the metrics cannot be registered, which is a defect: tasks were started twice on one registry.
    pub fn start(context: Context) -> Result<Arc<Tasks>, Error> {
        let metrics = TaskMetrics::new(&context.metrics.registry);
        let metrics = Arc::new(metrics.map_err(|error| Error::internal(format!("cannot register metrics: {error}")))?);
        let (current, leader) = watch::channel(None);
        let (relay, relaying) = relay::start(context.clone(), leader.clone());
        let waiters = Arc::new(Waiters::default());
        let mut running = JoinSet::new();
        running.spawn(leader::run(context.clone(), metrics.clone(), current));
        running.spawn(relaying);
        running.spawn(waiters::run(context.clone(), waiters.clone()));
        let dispatch = context.dispatch.clone();
        let tasks = Arc::new(Tasks { context, metrics, leader, relay, waiters, running: Mutex::new(running) });
        dispatch.on_stream(kind::SESSION_RELAY, tasks.clone());
        dispatch.on_call(kind::CONTROL_READ, tasks.clone());
        Ok(tasks)
    }

    /// The gRPC service for clients.
    pub fn tasks_service(self: &Arc<Self>) -> TasksServiceServer<TasksApi> {
        TasksServiceServer::new(TasksApi { tasks: self.clone() })
            .max_decoding_message_size(limits::MESSAGE_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES)
    }

    /// The gRPC service for agents.
    pub fn agents_service(self: &Arc<Self>) -> AgentsServiceServer<AgentsApi> {
        AgentsServiceServer::new(AgentsApi { tasks: self.clone() })
            .max_decoding_message_size(limits::MESSAGE_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES)
    }

    /// Waits until all parts have ended. They end when the node's shutdown is cancelled, which must have happened.
    pub async fn stop(&self) {
        let mut running = std::mem::take(&mut *self.running.lock());
        while running.join_next().await.is_some() {}
    }
}

/// The relay streams of other nodes.
#[async_trait]
impl StreamHandler for Tasks {
    async fn stream(&self, from: NodeId, inbound: mpsc::Receiver<Bytes>, outbound: mpsc::Sender<Bytes>) {
        // A node that comes too early, or too late, finds the stream closed and tries again.
        let leader = self.leader.borrow().clone();
        if let Some(leader) = leader {
            link::serve(leader, from, inbound, outbound).await;
        }
    }
}
