//! What every part of a node is given.

use std::sync::Arc;

use quorate_raft::{Group, GroupId, Groups, NodeId, Stop};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cluster::contacts::Contacts;
use crate::config::Config;
use crate::control::ControlHandle;
use crate::log_clock::Clock;
use crate::metrics::Metrics;
use crate::peers::{Dispatch, Peers};
use crate::quarantine::Quarantine;
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
    /// The replicas of this node that are not in service.
    pub quarantine: Arc<Quarantine>,
    /// The members' addresses, for when control cannot be read.
    pub contacts: Arc<Contacts>,
    /// Cancelled when the node begins to stop.
    pub shutdown: CancellationToken,
    /// Says why the node must not go on, once a group here has stopped by a fault.
    pub fault: watch::Sender<Option<String>>,
}

impl Context {
    /// What time it is, microseconds since the Unix epoch, by what is known here: the later of this node's wall clock, which
    /// may be wrong by years, and log time, which is behind where no node of the group ran for a while.
    pub fn now_us(&self) -> u64 {
        self.clock.wall_us().max(self.control.log_time().0)
    }

    /// Watches a group until it stops. Damage takes this one replica out of service; a fault that no damage explains ends
    /// the node, because a node with a dead replica must not look alive and a defect must not delete replicas.
    pub(crate) fn watch_group(&self, group: Group) {
        let context = self.clone();
        tokio::spawn(async move {
            let stop = group.stopped().await;
            if context.shutdown.is_cancelled() {
                return;
            }
            match stop {
                Stop::Wanted => {}
                Stop::Damaged(reason) => {
                    if group.id() == GroupId::CONTROL {
                        context.control.detach_replica(group.replica());
                    }
                    context.quarantine.found(group.id(), group.replica(), &reason);
                }
                Stop::Fault(fault) => {
                    let reason = format!("the replica of {} on this node has stopped by a fault: {fault}", group.id());
                    tracing::error!(group = %group.id(), "{reason}");
                    context.fault.send_replace(Some(reason));
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use crate::testing::on_stage;

    const YEAR_US: u64 = 365 * 24 * 3_600 * 1_000_000;

    /// Request ids are minted and judged by it: a node whose clock has stopped in another year would refuse all of them.
    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_is_years_behind_is_outvoted_by_log_time() {
        on_stage(async |stage| {
            let right = stage.clock.wall.load(Ordering::Relaxed);
            assert_eq!(stage.context.now_us(), right, "there is no log time yet");
            stage.found(1).await;
            assert_eq!(stage.context.control.log_time().0, right);
            stage.clock.wall.store(right - 20 * YEAR_US, Ordering::Relaxed);
            assert_eq!(stage.context.now_us(), right, "log time");
            stage.context.control.detach();
            assert_eq!(stage.context.now_us(), right, "the time that the replica has reached");
            let later = right + 20 * YEAR_US;
            stage.clock.wall.store(later, Ordering::Relaxed);
            assert_eq!(stage.context.now_us(), later, "log time may be behind");
        })
        .await;
    }
}
