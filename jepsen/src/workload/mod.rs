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
mod consumer;
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
use crate::event::Part;
use crate::history::Recorder;

/// The workloads by name, with what they do.
pub const NAMES: &[(&str, &str)] = &[
    ("register", "reads, writes and compare-and-set on memory points, linearizable by key"),
    ("queue", "producers and agents with children; every task's end is audited"),
    ("lease", "slow attempts, agents that fall silent, move or break off; effects guarded by tokens"),
    ("requests", "the same request id sent again through other nodes and after faults"),
    ("search", "acknowledged points are found, deleted ones are not, over 1 and over 8 shards"),
    ("membership", "registers, the queue and searches, made for join, leave and replace"),
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

    /// The same for one part of the run: what it records says so.
    #[must_use]
    pub fn labelled(&self, part: Part) -> WorkContext {
        WorkContext { recorder: self.recorder.of(part), ..self.clone() }
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

/// The loads that a workload consists of; none for a name that is none.
#[must_use]
pub fn parts(name: &str) -> Vec<Part> {
    match name {
        "membership" => membership::PARTS.map(|(_, part)| part).to_vec(),
        "mixed" => mixed::PARTS.map(|(_, part)| part).to_vec(),
        name => Part::LOADS.iter().filter(|(_, load)| *load == name).map(|(part, _)| *part).collect(),
    }
}

/// How much of a rate that it is given a workload aims at: agents that hold what they are given for long do little of it.
#[must_use]
pub fn share_of(name: &str, rate: f64) -> f64 {
    if name == "lease" { (lease::MOST_RATE / rate).min(1.0) } else { 1.0 }
}

/// The load of one part alone; probes are none.
fn load(part: Part) -> Option<Box<dyn Workload>> {
    Some(match part {
        Part::Register => Box::new(register::Register::new()),
        Part::Queue => Box::new(queue::Queue::new()),
        Part::Lease => Box::new(lease::Lease::new()),
        Part::Requests => Box::new(requests::Requests::new()),
        Part::Search => Box::new(search::Freshness::new()),
        Part::Probe(_) => return None,
    })
}

/// The workload of that name; `None` if there is none. One that is a single load is given a context that is labelled with it.
#[must_use]
pub fn by_name(name: &str) -> Option<Box<dyn Workload>> {
    Some(match name {
        "membership" => Box::new(membership::Membership::new()),
        "mixed" => Box::new(mixed::Mixed::new()),
        name => load(name.parse().ok()?)?,
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
            assert!(!parts(name).is_empty(), "{name} consists of something");
        }
        assert_eq!(parts("mixed").len(), 5);
        assert!(by_name("nothing").is_none() && parts("nothing").is_empty());
        assert!(by_name("probe-0").is_none(), "probes are no workload");
    }

    #[test]
    fn agents_that_hold_their_tasks_for_long_do_less() {
        assert!((share_of("lease", 150.0) - 1.0 / 30.0).abs() < 1e-9);
        assert!((share_of("lease", 2.0) - 1.0).abs() < 1e-9);
        assert!((share_of("mixed", 150.0) - 1.0).abs() < 1e-9);
    }
}
