//! What the driver of a run shares with the hosts in it. All of it lives on one thread; the locks are for the types.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_node::Context;
use quorate_raft::LogChange;
use quorate_raft::memory::{CommitFault, MemoryLog, MemoryStates};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::history::History;

/// Nodes of the cluster.
pub(crate) const NODES: usize = 3;
/// Where a node serves clients.
pub(crate) const CLIENT_PORT: u16 = 7700;
/// Where a node serves its peers.
pub(crate) const PEER_PORT: u16 = 7701;

/// The name of the host of a node.
pub(crate) fn host(node: usize) -> String {
    format!("node-{}", node + 1)
}

/// The client addresses of all nodes, beginning with one of them.
pub(crate) fn endpoints(first: usize) -> Vec<String> {
    (0..NODES).map(|turn| format!("{}:{CLIENT_PORT}", host((first + turn) % NODES))).collect()
}

/// One run.
pub(crate) struct World {
    /// What happened.
    pub(crate) history: Mutex<History>,
    /// The nodes' disks and what is seen of the nodes.
    pub(crate) slots: Vec<Arc<Slot>>,
    /// Choices of the hosts; the driver has a generator of its own.
    rng: Mutex<StdRng>,
    /// Producers begin nothing new.
    pub(crate) closing: AtomicBool,
    /// Enqueues without an answer.
    pub(crate) in_flight: AtomicUsize,
}

impl World {
    /// A world with empty disks below `scratch`.
    pub(crate) fn new(seed: u64, scratch: &std::path::Path) -> Arc<World> {
        let slots = (0..NODES).map(|node| Arc::new(Slot::new(node, scratch.join(host(node))))).collect();
        Arc::new(World {
            history: Mutex::default(),
            slots,
            rng: Mutex::new(StdRng::seed_from_u64(seed ^ 0x5eed)),
            closing: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
        })
    }

    /// A number within a range.
    pub(crate) fn choose(&self, range: std::ops::Range<u64>) -> u64 {
        self.rng.lock().random_range(range)
    }

    /// A time within a range of milliseconds.
    pub(crate) fn pause(&self, ms: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.choose(ms))
    }
}

/// What outlives the process of a node, and what the driver sees of the process.
pub(crate) struct Slot {
    /// The number of the node.
    pub(crate) node: usize,
    /// Its data directory: identity and checkpoints are real files.
    pub(crate) dir: PathBuf,
    disks: Mutex<Disks>,
    /// The running node.
    pub(crate) context: Mutex<Option<Context>>,
    /// A commit has failed: the process is to die.
    pub(crate) died: AtomicBool,
    /// Commits take up to this many microseconds.
    pub(crate) commit_us: AtomicU64,
}

struct Disks {
    log: MemoryLog,
    states: MemoryStates,
}

/// How long a commit takes at most on a disk in order, in microseconds.
pub(crate) const FAST_DISK_US: u64 = 1_500;

impl Slot {
    fn new(node: usize, dir: PathBuf) -> Slot {
        let disks = Disks { log: MemoryLog::new(), states: MemoryStates::new(dir.join("states")) };
        Slot {
            node,
            dir,
            disks: Mutex::new(disks),
            context: Mutex::new(None),
            died: AtomicBool::new(false),
            commit_us: AtomicU64::new(FAST_DISK_US),
        }
    }

    /// The disks, for the process that starts now.
    pub(crate) fn disks(&self) -> (MemoryLog, MemoryStates) {
        let disks = self.disks.lock();
        (disks.log.clone(), disks.states.clone())
    }

    /// Takes from the disks what was not durable, and what the dead process could still do to them.
    pub(crate) fn crash(&self) {
        let mut disks = self.disks.lock();
        disks.log.clear_hook();
        let (log, states) = (disks.log.crash(), disks.states.crash());
        *disks = Disks { log, states };
        self.died.store(false, Ordering::Relaxed);
    }

    /// Lets the process die at one of the coming commits.
    pub(crate) fn arm(&self, mut after: u64, fault: CommitFault) {
        self.disks.lock().log.set_hook(move |_, changes| {
            after = after.saturating_sub(1);
            // A batch is atomic to the log database; only the appended end of a log may be torn.
            let appends = changes.iter().all(|change| matches!(change, LogChange::Append { .. }));
            match fault {
                _ if after > 0 => CommitFault::None,
                CommitFault::Torn { .. } if !appends => CommitFault::CrashBefore,
                fault => fault,
            }
        });
    }

    /// The process dies at no commit.
    pub(crate) fn disarm(&self) {
        self.disks.lock().log.clear_hook();
    }

    /// What the driver may look at, while the node runs.
    pub(crate) fn running(&self) -> Option<Context> {
        self.context.lock().clone()
    }
}
