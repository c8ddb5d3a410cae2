//! What every part of a node is given.

use std::sync::Arc;

use quorate_raft::{Group, Groups, NodeId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::control::ControlHandle;
use crate::log_clock::Clock;
use crate::metrics::Metrics;
use crate::peers::{Dispatch, Peers};
use crate::start::Addresses;

/// The node as its parts see it. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The effective configuration.
    pub config: Arc<Config>,
    /// This node.
    pub node: NodeId,
    /// The addresses that others are told.
    pub addresses: Arc<Addresses>,
    /// All Raft groups of this node.
    pub groups: Groups,
    /// The control group's machine and its proposer.
    pub control: ControlHandle,
    /// Calls to other nodes.
    pub peers: Peers,
    /// Where handlers of calls from other nodes are registered.
    pub dispatch: Dispatch,
    /// Time, behind a seam for the simulation.
    pub clock: Arc<dyn Clock>,
    /// What is measured.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the node begins to stop.
    pub shutdown: CancellationToken,
    /// Says why the node must not go on, once a group here has stopped by a fault.
    pub fault: watch::Sender<Option<String>>,
}

impl Context {
    /// Watches a group: if it ends while `wanted` says that it should run, its machine or its disk had a fault, and a
    /// node with a dead replica must not look alive.
    pub(crate) fn watch_group(&self, group: Group, wanted: impl Fn() -> bool + Send + 'static) {
        let (shutdown, fault) = (self.shutdown.clone(), self.fault.clone());
        tokio::spawn(async move {
            group.stopped().await;
            if wanted() && !shutdown.is_cancelled() {
                let reason =
                    format!("the replica of {} on this node has stopped by a fault; the log says which", group.id());
                tracing::error!(group = %group.id(), "{reason}");
                fault.send_replace(Some(reason));
            }
        });
    }
}
