//! The loads: what real clients do to a cluster while it is broken, and what they saw.
//!
//! A workload has three parts. [`Workload::prepare`] makes what it needs while all is well. [`Workload::run`] sends
//! operations at a bounded rate until it is told to stop; faults happen meanwhile. [`Workload::finish`] runs after the
//! cluster has been healed: it reads what is there in the end, which is what acknowledged writes are held against.
//!
//! Every operation goes through the real Rust client (`lease` also speaks the wire itself, to be the agent that no client
//! would be) and ends as one of three: *ok*, *fail* (the client says that it certainly took no effect) or *info* (nobody
//! knows). Taking the client at its word is part of the test: a "failed" write that shows up later is a violation.
//!
//! Half of the clients know one node only, the others know all: the first ones stay with a node that is cut off.

mod audit;
mod clients;
mod lease;
mod membership;
mod mixed;
mod pending;
mod probe;
mod process;
mod queue;
mod register;
mod requests;
mod search;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

pub use clients::Clients;
pub use probe::Probe;

use crate::cluster::Cluster;
use crate::history::Recorder;

/// The workloads by name, with what they do.
pub const NAMES: &[(&str, &str)] = &[
    ("register", "reads, writes and compare-and-set on memory points, linearizable by key"),
    ("queue", "producers and agents with children; every task's end is audited"),
    ("lease", "slow attempts, agents that fall silent, move or break off; effects guarded by tokens"),
    ("requests", "the same request id sent again through other nodes and after faults"),
    ("search", "acknowledged points are found, deleted ones are not, over 1 and over 8 shards"),
    ("membership", "registers, the queue and searches, made for the membership nemesis"),
    ("mixed", "all of them at once"),
];

/// What a workload is given.
#[derive(Clone)]
pub struct WorkContext {
    /// The cluster that is attacked.
    pub cluster: Arc<Cluster>,
    /// Where operations are recorded.
    pub recorder: Recorder,
    /// Ends [`Workload::run`].
    pub stop: CancellationToken,
    /// Decides what the clients do, as far as the cluster's answers let it.
    pub seed: u64,
    /// Operations a second that the whole workload aims at.
    pub rate: f64,
    /// The clients; one for each node, and one that knows all.
    pub clients: Arc<Clients>,
    values: Arc<AtomicU64>,
}

impl WorkContext {
    /// A context over a running cluster.
    ///
    /// # Errors
    /// If an address of the cluster cannot be one.
    pub fn new(
        cluster: Arc<Cluster>,
        recorder: Recorder,
        stop: CancellationToken,
        seed: u64,
        rate: f64,
    ) -> Result<WorkContext> {
        let clients = Arc::new(Clients::of_members(&cluster)?);
        Ok(WorkContext { cluster, recorder, stop, seed, rate, clients, values: Arc::default() })
    }

    /// The same with clients of those who are members now.
    ///
    /// # Errors
    /// If an address of the cluster cannot be one.
    pub fn renewed(&self) -> Result<WorkContext> {
        Ok(WorkContext { clients: Arc::new(Clients::of_members(&self.cluster)?), ..self.clone() })
    }

    /// The same with a part of the rate and randomness of its own, for one load among several.
    #[must_use]
    pub fn part(&self, share: f64, salt: u64) -> WorkContext {
        WorkContext {
            rate: self.rate * share,
            seed: self.seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            ..self.clone()
        }
    }

    /// A value that this history has not had yet.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// A load.
#[async_trait]
pub trait Workload: Send + Sync {
    /// Its name in [`NAMES`].
    fn name(&self) -> &'static str;

    /// Makes what the load needs. The cluster is healthy.
    ///
    /// # Errors
    /// If it cannot be made; then there is no run.
    async fn prepare(&self, ctx: &WorkContext) -> Result<()>;

    /// Sends operations until `ctx.stop`.
    ///
    /// # Errors
    /// Only those of the harness: an operation that fails is recorded, not returned.
    async fn run(&self, ctx: &WorkContext) -> Result<()>;

    /// Reads what is there in the end. The cluster has been healed.
    ///
    /// # Errors
    /// Only those of the harness.
    async fn finish(&self, ctx: &WorkContext) -> Result<()>;
}

/// The workload of that name; `None` if there is none.
#[must_use]
pub fn by_name(name: &str) -> Option<Box<dyn Workload>> {
    Some(match name {
        "register" => Box::new(register::Register::new()),
        "queue" => Box::new(queue::Queue::new()),
        "lease" => Box::new(lease::Lease::new()),
        "requests" => Box::new(requests::Requests::new()),
        "search" => Box::new(search::Freshness::new()),
        "membership" => Box::new(membership::Membership::new()),
        "mixed" => Box::new(mixed::Mixed::new()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_workload() {
        for (name, what) in NAMES {
            assert_eq!(by_name(name).map(|workload| workload.name()), Some(*name));
            assert!(!what.is_empty());
        }
        assert!(by_name("nothing").is_none());
    }
}
