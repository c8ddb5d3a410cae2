//! What the driver of a run shares with the hosts in it. All of it lives on one thread; the locks are for the types.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_raft::memory::{RecordView, VoteView};
use quorate_raft::{GroupId, LogChange, ReplicaId};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use uuid::Uuid;

use crate::check::{Disks, Lost};
use crate::damage::{Damages, Known};
use crate::history::History;
use crate::slot::Slot;

/// Nodes that form the cluster.
pub(crate) const FOUNDERS: usize = 3;
/// Places for nodes. One more than members at rest: nodes leave and join.
pub(crate) const SLOTS: usize = 4;
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
    (0..SLOTS).map(|turn| format!("{}:{CLIENT_PORT}", host((first + turn) % SLOTS))).collect()
}

/// An enqueue that was acknowledged: its id, its payload and the answer.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// The request.
    pub(crate) request: Uuid,
    /// The payload of its task.
    pub(crate) payload: String,
    /// The task.
    pub(crate) task: u64,
}

/// One run.
pub(crate) struct World {
    /// What happened.
    pub(crate) history: Mutex<History>,
    /// The nodes' disks and what is seen of the nodes.
    pub(crate) slots: Vec<Arc<Slot>>,
    /// Choices of the hosts; the driver has a generator of its own.
    rng: Mutex<StdRng>,
    /// Shards of the cluster.
    pub(crate) shards: u32,
    /// Producers begin nothing new.
    pub(crate) closing: AtomicBool,
    /// Calls whose answer somebody waits for, however long.
    in_flight: Mutex<BTreeMap<u64, String>>,
    /// What makes payloads and values unique; outlives the process of the clients.
    numbers: AtomicU64,
    /// What was acknowledged and may be said again.
    pub(crate) sent: Mutex<Vec<Sent>>,
    /// The node that is to leave, and the operator's progress with it.
    pub(crate) leave: Mutex<Option<usize>>,
    /// The keys of memory points.
    pub(crate) keys: Mutex<crate::memory::Keys>,
    /// What was damaged.
    pub(crate) damages: Mutex<Damages>,
    /// What arrived twice, by kind.
    pub(crate) repeated: Mutex<BTreeMap<&'static str, u64>>,
    /// The clients may use the collection.
    pub(crate) has_collection: AtomicBool,
}

impl World {
    /// A world with empty disks below `scratch`.
    pub(crate) fn new(seed: u64, scratch: &Path, history: History) -> Arc<World> {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        let slots: Vec<_> =
            (0..SLOTS).map(|node| Arc::new(Slot::new(node, scratch, rng.random_range(0..300_000)))).collect();
        slots.iter().take(FOUNDERS).for_each(|slot| slot.wanted.store(true, Ordering::Relaxed));
        Arc::new(World {
            history: Mutex::new(history),
            slots,
            shards: rng.random_range(1..3),
            rng: Mutex::new(rng),
            closing: AtomicBool::new(false),
            in_flight: Mutex::default(),
            numbers: AtomicU64::new(0),
            sent: Mutex::default(),
            leave: Mutex::default(),
            keys: Mutex::default(),
            damages: Mutex::default(),
            repeated: Mutex::default(),
            has_collection: AtomicBool::new(false),
        })
    }

    /// A number within a range.
    pub(crate) fn choose(&self, range: std::ops::Range<u64>) -> u64 {
        self.rng.lock().random_range(range)
    }

    /// Whether one of `times` happens.
    pub(crate) fn one_in(&self, times: u64) -> bool {
        self.choose(0..times) == 0
    }

    /// A time within a range of milliseconds.
    pub(crate) fn pause(&self, ms: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.choose(ms))
    }

    /// A number that was never given before.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps a call in mind until what is returned is dropped.
    pub(crate) fn calls(self: &Arc<Self>, what: String) -> Call {
        let number = self.number();
        self.in_flight.lock().insert(number, what);
        Call { world: self.clone(), number }
    }

    /// Calls whose answer somebody waits for.
    pub(crate) fn in_flight(&self) -> Vec<String> {
        self.in_flight.lock().values().cloned().collect()
    }

    /// Whether there are any.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.lock().is_empty()
    }

    /// Whether the clients have stopped beginning anything.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Runs a look at or a change of the history, which has heard of all that the disks did by then.
    pub(crate) fn with_history<R>(&self, change: impl FnOnce(&mut History) -> R) -> R {
        let mut history = self.history.lock();
        for slot in &self.slots {
            for written in slot.take_written() {
                self.damages.lock().written(slot.node, &written.change);
                history.written(self, slot.node, &written);
            }
        }
        change(&mut history)
    }
}

/// A call that somebody waits for.
pub(crate) struct Call {
    world: Arc<World>,
    number: u64,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.world.in_flight.lock().remove(&self.number);
    }
}

/// What a disk has made durable.
#[derive(Debug)]
pub(crate) struct Written {
    /// The change.
    pub(crate) change: LogChange,
    /// When its batch was gathered.
    pub(crate) gathered: crate::check::log_time::Interval,
}

impl Disks for World {
    fn count(&self) -> usize {
        self.slots.len()
    }

    fn owner(&self, node: usize, group: GroupId) -> Option<ReplicaId> {
        self.slots[node].log().owner(group)
    }

    fn record(&self, node: usize, group: GroupId, position: u64) -> Option<RecordView> {
        let known = || self.damages.lock().known(node, group).and_then(|known| known.record(position));
        self.slots[node].log().record(group, position).or_else(known)
    }

    fn last(&self, node: usize, group: GroupId) -> Option<u64> {
        let known = self.damages.lock().known(node, group).and_then(Known::last);
        self.slots[node].log().last_position(group).max(known)
    }

    fn purged(&self, node: usize, group: GroupId) -> Option<u64> {
        let known = || self.damages.lock().known(node, group).and_then(Known::purged);
        self.slots[node].log().purged(group).or_else(known)
    }

    fn flushed(&self, node: usize, group: GroupId) -> Option<u64> {
        self.slots[node].states().flushed_position(group)
    }

    fn vote(&self, node: usize, group: GroupId) -> Option<VoteView> {
        let known = || self.damages.lock().known(node, group).and_then(Known::vote);
        self.slots[node].log().vote(group).or_else(known)
    }

    fn lost(&self, group: GroupId) -> Vec<Lost> {
        self.damages.lock().lost(group)
    }
}
