//! A place for a node: what outlives its process, and what the driver sees of the process.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use quorate_node::Context;
use quorate_node::cluster::hosting::Hosting;
use quorate_node::memory::Memory;
use quorate_raft::memory::{CommitFault, FloorFault, MemoryFloor, MemoryLog, MemoryStates};
use quorate_raft::{Group, GroupId, LogChange, MarkKind, NodeId};
use quorate_state::Position;
use tokio::sync::watch;

use crate::check::log_time::Interval;
use crate::clock::HostClocks;
use crate::world::{Written, host};

/// How long a commit takes at most on a disk in order, in microseconds.
pub(crate) const FAST_DISK_US: u64 = 1_500;
/// Between the end of a batch and the next one that is more than this later the queue was empty.
const IDLE_US: u64 = 3_000;

/// The commits at which a node is to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// Any.
    Any,
    /// One with a vote.
    Vote,
    /// One with a membership.
    Membership,
    /// One that purges.
    Purge,
    /// One that truncates.
    Truncate,
    /// One that destroys a group, or claims one.
    Claim,
}

impl At {
    /// Whether it is worth waiting for one longer than a process lives.
    pub(crate) fn is_rare(self) -> bool {
        matches!(self, At::Membership | At::Truncate | At::Claim)
    }

    fn is_in(self, changes: &[LogChange]) -> bool {
        changes.iter().any(|change| match self {
            At::Any => true,
            At::Vote => matches!(change, LogChange::Mark { kind: MarkKind::Vote, .. }),
            At::Membership => {
                quorate_raft::memory::view_change(change).is_some_and(|(_, record)| record.voters.is_some())
            }
            At::Purge => matches!(change, LogChange::Purge { .. }),
            At::Truncate => matches!(change, LogChange::Truncate { .. }),
            At::Claim => {
                matches!(change, LogChange::Destroy { .. } | LogChange::Mark { kind: MarkKind::Replica, .. })
            }
        })
    }
}

/// A death at one of the coming commits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Armed {
    /// At which commits.
    pub(crate) at: At,
    /// At how many of them it is still spared.
    pub(crate) spared: u64,
    /// How it dies.
    pub(crate) fault: CommitFault,
    /// What it is called in the report.
    pub(crate) name: &'static str,
}

/// What is wrong with a disk.
#[derive(Debug, Default)]
struct Mood {
    /// The deaths that wait for their commit, at most one of each kind.
    armed: Vec<Armed>,
    /// A death at a write of the floor, and at how many of them it is still spared.
    floor: Option<(u64, FloorFault)>,
    full: bool,
    /// What has struck, until the driver has buried the node.
    struck: Option<&'static str>,
}

/// The batches that the log writer takes.
#[derive(Debug, Default, Clone, Copy)]
struct Batches {
    taken_us: u64,
    /// When the batch before was taken, if this one followed at once.
    before_us: u64,
    ends_us: u64,
    /// Between these moments what is in the batch came in.
    gathered: (u64, u64),
}

/// The running process of a node.
#[derive(Clone)]
pub(crate) struct Running {
    /// Its parts.
    pub(crate) context: Context,
    /// Its replicas of shards.
    pub(crate) hosting: Arc<Hosting>,
    /// Their machines.
    pub(crate) memory: Arc<Memory>,
    /// Whether it has found out that it is a member no longer.
    pub(crate) removed: watch::Receiver<bool>,
}

impl Running {
    /// The groups that run, with their numbers.
    pub(crate) fn groups(&self) -> Vec<(GroupId, Group)> {
        let control = self.context.control.group().map(|group| (GroupId::CONTROL, group));
        let shards = self.hosting.running().into_iter().map(|(shard, group)| (GroupId(shard.0), group));
        control.into_iter().chain(shards).collect()
    }

    /// Where its replica of control stands, with its state hash.
    pub(crate) fn control(&self) -> (Position, u64) {
        self.context.control.read(|control| (control.last_position(), control.hash()))
    }
}

struct Store {
    log: MemoryLog,
    floor: MemoryFloor,
    states: MemoryStates,
}

impl Store {
    fn empty(dir: &Path) -> Store {
        Store { log: MemoryLog::new(), floor: MemoryFloor::new(), states: MemoryStates::new(dir.join("states")) }
    }
}

/// A place for a node.
pub(crate) struct Slot {
    /// Its number.
    pub(crate) node: usize,
    /// The data directory: identity and checkpoints are real files.
    pub(crate) dir: PathBuf,
    /// Its clocks.
    pub(crate) clocks: Arc<HostClocks>,
    /// A node is to run here.
    pub(crate) wanted: AtomicBool,
    store: Mutex<Store>,
    running: Mutex<Option<Running>>,
    /// The node that was here has left the cluster.
    pub(crate) left: AtomicBool,
    /// The node that was started here last.
    pub(crate) id: Mutex<Option<NodeId>>,
    /// The process is to die.
    pub(crate) died: AtomicBool,
    /// Commits take up to this many microseconds.
    pub(crate) commit_us: AtomicU64,
    /// The next commit takes so many microseconds longer.
    pub(crate) stall_us: AtomicU64,
    /// Requests of peers arrive twice here, on the connections that have a repeater.
    pub(crate) repeats: AtomicBool,
    mood: Arc<Mutex<Mood>>,
    batches: Arc<Mutex<Batches>>,
    written: Arc<Mutex<VecDeque<Written>>>,
    /// The failpoints at which the node ends, and how often each is still passed. They wait longer than a process lives.
    failpoints: Mutex<BTreeMap<&'static str, u64>>,
}

impl Slot {
    /// An empty place below `scratch`.
    pub(crate) fn new(node: usize, scratch: &Path, ahead_us: u64) -> Slot {
        let dir = scratch.join(host(node));
        let slot = Slot {
            node,
            clocks: HostClocks::new(ahead_us),
            wanted: AtomicBool::new(false),
            store: Mutex::new(Store::empty(&dir)),
            dir,
            running: Mutex::new(None),
            left: AtomicBool::new(false),
            id: Mutex::new(None),
            died: AtomicBool::new(false),
            commit_us: AtomicU64::new(FAST_DISK_US),
            stall_us: AtomicU64::new(0),
            repeats: AtomicBool::new(false),
            mood: Arc::default(),
            batches: Arc::default(),
            written: Arc::default(),
            failpoints: Mutex::default(),
        };
        slot.prepare(&slot.log(), &slot.floor());
        slot
    }

    /// Lets the moods of this disk decide about commits, and the checkers hear of them.
    fn prepare(&self, log: &MemoryLog, floor: &MemoryFloor) {
        let mood = self.mood.clone();
        log.set_hook(move |_, changes| mood.lock().fate(changes));
        let mood = self.mood.clone();
        floor.set_hook(move |_| mood.lock().floor_fate());
        let (written, batches) = (self.written.clone(), self.batches.clone());
        log.watch(move |change| {
            let (from_us, to_us) = batches.lock().gathered;
            let gathered = Interval { from_us, to_us };
            written.lock().push_back(Written { change: change.clone(), gathered });
        });
    }

    /// The disk of the log, for the process that starts now.
    pub(crate) fn log(&self) -> MemoryLog {
        self.store.lock().log.clone()
    }

    /// The file of the floor, for the process that starts now.
    pub(crate) fn floor(&self) -> MemoryFloor {
        self.store.lock().floor.clone()
    }

    /// The disk of the states, for the process that starts now.
    pub(crate) fn states(&self) -> MemoryStates {
        self.store.lock().states.clone()
    }

    /// What was made durable since the last call.
    pub(crate) fn take_written(&self) -> VecDeque<Written> {
        std::mem::take(&mut *self.written.lock())
    }

    /// The log writer takes a batch.
    pub(crate) fn batch(&self, now_us: u64) {
        let mut batches = self.batches.lock();
        let was_idle = now_us > batches.ends_us + IDLE_US;
        // What is in it came in while the batch before was being written, or just now; or, where Raft's core had to wait for two
        // writes of its own in a row, such as a purge and a vote, while the one before that was.
        let from_us = if was_idle { now_us.saturating_sub(IDLE_US) } else { batches.before_us };
        let before_us = if was_idle { now_us } else { batches.taken_us };
        *batches = Batches { taken_us: now_us, before_us, ends_us: now_us, gathered: (from_us, now_us) };
    }

    /// The batch is written, and whoever waited for it was told.
    pub(crate) fn batch_ended(&self, now_us: u64) {
        self.batches.lock().ends_us = now_us;
    }

    /// A process has started here.
    pub(crate) fn started(&self, running: Running) {
        *self.running.lock() = Some(running);
    }

    /// What the driver may look at, while the node runs.
    pub(crate) fn running(&self) -> Option<Running> {
        self.running.lock().clone()
    }

    /// The process is gone. Takes from the disks what was not durable, and what the dead process could still do to them; a
    /// group of which the state database has just happened to flush its memory keeps that.
    pub(crate) fn crash(&self, flushed: Option<GroupId>) {
        *self.running.lock() = None;
        let mut store = self.store.lock();
        let states = match flushed {
            Some(group) => store.states.crash_flushed(group),
            None => store.states.crash(),
        };
        *store = Store { log: store.log.crash(), floor: store.floor.crash(), states };
        let mut mood = self.mood.lock();
        mood.armed.retain(|armed| armed.at.is_rare());
        (mood.floor, mood.struck) = (None, None);
        *self.batches.lock() = Batches::default();
        self.died.store(false, Ordering::Relaxed);
    }

    /// Empties the place for another node. Nothing may run here.
    pub(crate) fn wipe(&self) {
        self.wanted.store(false, Ordering::Relaxed);
        self.left.store(false, Ordering::Relaxed);
        *self.id.lock() = None;
        let store = Store::empty(&self.dir);
        self.prepare(&store.log, &store.floor);
        *self.store.lock() = store;
        // A directory that was never made is empty too; what cannot be deleted is found at the next start.
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    /// Lets the process die at one of the coming commits.
    pub(crate) fn arm(&self, armed: Armed) {
        let mut mood = self.mood.lock();
        mood.armed.retain(|other| other.at != armed.at);
        mood.armed.push(armed);
    }

    /// Lets the process die at a failpoint, after it has passed some.
    pub(crate) fn arm_failpoint(&self, point: &'static str, passes: u64) {
        self.failpoints.lock().insert(point, passes);
    }

    /// What was armed under this name has struck elsewhere.
    pub(crate) fn forget(&self, name: &str) {
        self.mood.lock().armed.retain(|armed| armed.name != name);
        self.failpoints.lock().remove(name);
    }

    /// Lets the process die at one of the coming writes of the floor.
    pub(crate) fn arm_floor(&self, spared: u64, fault: FloorFault) {
        self.mood.lock().floor = Some((spared, fault));
    }

    /// The process dies at no commit, no write of the floor and no failpoint.
    pub(crate) fn disarm(&self) {
        let mut mood = self.mood.lock();
        mood.armed.clear();
        mood.floor = None;
        self.failpoints.lock().clear();
    }

    /// The disk is full, or has room again.
    pub(crate) fn set_full(&self, full: bool) {
        self.mood.lock().full = full;
        self.states().set_full(full);
    }

    /// Whether the disk is full.
    pub(crate) fn is_full(&self) -> bool {
        self.mood.lock().full
    }

    /// What has killed the process, if the disk or a failpoint did.
    pub(crate) fn struck(&self) -> Option<&'static str> {
        self.mood.lock().struck
    }

    /// The process is at a failpoint. Says whether it ends here; then the disks take nothing more from it.
    pub(crate) fn ends_at(&self, point: &'static str) -> bool {
        if self.died.load(Ordering::Relaxed) {
            return true;
        }
        {
            let mut failpoints = self.failpoints.lock();
            let Some(passes) = failpoints.get_mut(point) else { return false };
            if *passes > 0 {
                *passes -= 1;
                return false;
            }
            failpoints.remove(point);
        }
        self.mood.lock().struck = Some(point);
        let store = self.store.lock();
        store.log.cut_off();
        store.floor.crash();
        store.states.cut_off();
        self.died.store(true, Ordering::Relaxed);
        true
    }
}

impl Mood {
    fn fate(&mut self, changes: &[LogChange]) -> CommitFault {
        if self.full {
            self.struck = Some("full_disk");
            return CommitFault::Full;
        }
        let mut due = None;
        for (turn, armed) in self.armed.iter_mut().enumerate().filter(|(_, armed)| armed.at.is_in(changes)) {
            match armed.spared.checked_sub(1) {
                Some(spared) => armed.spared = spared,
                None => due = due.or(Some(turn)),
            }
        }
        let Some(due) = due else { return CommitFault::None };
        let armed = self.armed.remove(due);
        self.struck = Some(armed.name);
        // A batch is atomic to the log database; only the appended end of a log may be torn, and what is behind it is lost.
        let appends = changes.iter().take_while(|change| matches!(change, LogChange::Append { .. })).count();
        match armed.fault {
            CommitFault::Torn { .. } | CommitFault::Scrambled { .. } if appends == 0 => CommitFault::CrashBefore,
            CommitFault::Torn { changes, bytes } => CommitFault::Torn { changes: changes % appends, bytes },
            CommitFault::Scrambled { changes, bytes } => CommitFault::Scrambled { changes: changes % appends, bytes },
            fault => fault,
        }
    }

    fn floor_fate(&mut self) -> FloorFault {
        match &mut self.floor {
            None => FloorFault::None,
            Some((0, fault)) => {
                self.struck = Some("crash_at_floor");
                *fault
            }
            Some((spared, _)) => {
                *spared -= 1;
                FloorFault::None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_armed_commit_is_the_one_that_dies() {
        let vote = LogChange::Mark { group: GroupId(0), kind: MarkKind::Vote, value: Default::default() };
        let purge = LogChange::Purge { group: GroupId(0), upto: 3 };
        let armed = Armed { at: At::Vote, spared: 1, fault: CommitFault::CrashAfter, name: "test" };
        let mut mood = Mood { armed: vec![armed], ..Mood::default() };
        assert_eq!(mood.fate(std::slice::from_ref(&purge)), CommitFault::None);
        assert_eq!(mood.fate(std::slice::from_ref(&vote)), CommitFault::None, "spared");
        assert_eq!(mood.struck, None);
        assert_eq!(mood.fate(&[purge, vote]), CommitFault::CrashAfter);
        assert_eq!(mood.struck, Some("test"));
    }

    #[test]
    fn a_rare_commit_is_waited_for_longer_than_a_process_lives() {
        let slot = Slot::new(0, Path::new("unused"), 0);
        let armed = |at| Armed { at, spared: 0, fault: CommitFault::CrashAfter, name: "test" };
        [At::Any, At::Truncate, At::Truncate].into_iter().for_each(|at| slot.arm(armed(at)));
        slot.arm_floor(1, FloorFault::CrashAfter);
        slot.arm_failpoint("point", 1);
        assert_eq!(slot.mood.lock().floor_fate(), FloorFault::None, "spared");
        assert_eq!(slot.mood.lock().floor_fate(), FloorFault::CrashAfter);
        slot.crash(None);
        assert_eq!(slot.mood.lock().armed.iter().map(|armed| armed.at).collect::<Vec<_>>(), [At::Truncate]);
        assert_eq!(slot.mood.lock().floor_fate(), FloorFault::None);
        assert!(!slot.ends_at("point") && !slot.ends_at("another") && slot.ends_at("point"));
    }

    #[test]
    fn what_is_in_a_batch_came_in_since_the_batch_before_was_taken() {
        let slot = Slot::new(0, Path::new("unused"), 0);
        let gathered = |slot: &Slot| slot.batches.lock().gathered;
        slot.batch(10_000);
        // A slow disk, however its time came about.
        slot.batch_ended(40_000);
        slot.batch(41_000);
        assert_eq!(gathered(&slot), (10_000, 41_000));
        slot.batch_ended(42_000);
        slot.batch(50_000);
        assert_eq!(gathered(&slot), (50_000 - IDLE_US, 50_000), "nothing waited");
    }
}
