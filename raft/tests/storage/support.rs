//! What several of these tests need.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use quorate_raft::log::{GroupLog, LogConfig, LogStore, TaskHooks, WriterMode};
use quorate_raft::memory::{MemoryFloor, MemoryLog};
use quorate_raft::types::{Entry, Proposal, TC, log_id};
use quorate_raft::{FloorFile, GroupId, LogEngine};
use tokio::sync::oneshot;

pub(crate) const GROUP: GroupId = GroupId(1);
pub(crate) const REPLICA: u64 = 7;

/// Tells a test that it is the child of another test, and where to work.
const CHILD: &str = "QUORATE_TEST_CHILD";

pub(crate) fn entry(term: u64, position: u64, payload: &[u8]) -> Entry {
    let payload = EntryPayload::Normal(Proposal(Bytes::copy_from_slice(payload)));
    Entry { log_id: log_id(term, REPLICA, position), payload }
}

/// The entry that belongs at a position in the tests that write one term from position 0.
pub(crate) fn plain(position: u64) -> Entry {
    entry(1, position, format!("payload of {position}").as_bytes())
}

#[cfg(feature = "rocksdb")]
pub(crate) fn payload(entry: &Entry) -> &[u8] {
    match &entry.payload {
        EntryPayload::Normal(proposal) => &proposal.0,
        _ => &[],
    }
}

/// Appends and returns what tells that it is durable.
pub(crate) async fn append(
    log: &mut GroupLog,
    entries: impl IntoIterator<Item = Entry, IntoIter: Send> + Send,
) -> oneshot::Receiver<io::Result<()>> {
    let (told, wait) = TC::oneshot();
    log.append(entries, IOFlushed::<TC>::signal(told)).await.unwrap();
    wait
}

pub(crate) async fn append_durably(
    log: &mut GroupLog,
    entries: impl IntoIterator<Item = Entry, IntoIter: Send> + Send,
) {
    append(log, entries).await.await.unwrap().unwrap();
}

pub(crate) async fn read_all(log: &GroupLog) -> Vec<Entry> {
    log.reader().try_get_log_entries(..).await.unwrap()
}

pub(crate) fn positions(entries: &[Entry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.log_id.index).collect()
}

/// The disk of a node in memory.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) log: MemoryLog,
    pub(crate) floor: MemoryFloor,
}

impl Disk {
    pub(crate) fn new() -> Disk {
        Disk { log: MemoryLog::new(), floor: MemoryFloor::new() }
    }

    /// For the next life of the node.
    pub(crate) fn crash(&self) -> Disk {
        let disk = Disk { log: self.log.crash(), floor: self.floor.crash() };
        disk.log.clear_hook();
        disk.floor.clear_hook();
        disk
    }

    /// What a crash now would leave.
    pub(crate) fn image(&self) -> Disk {
        Disk { log: self.log.image(), floor: self.floor.image() }
    }

    pub(crate) fn store(&self, hooks: TaskHooks) -> LogStore {
        let (log, floor) = (Arc::new(self.log.clone()), Arc::new(self.floor.clone()));
        LogStore::open(log, floor, WriterMode::Task(hooks), LogConfig::default()).unwrap()
    }
}

/// A store whose writer is a task without latency.
pub(crate) fn task_store(disk: &Disk) -> LogStore {
    disk.store(TaskHooks::instant())
}

/// A store whose writer is a thread, as in production.
pub(crate) fn thread_store(engine: impl LogEngine, floor: impl FloorFile) -> LogStore {
    LogStore::open(Arc::new(engine), Arc::new(floor), WriterMode::Thread, LogConfig::default()).unwrap()
}

/// A store on RocksDB and a real floor below a directory.
#[cfg(feature = "rocksdb")]
pub(crate) fn durable_store(dir: &Path) -> LogStore {
    let floor = quorate_raft::log::FileFloor::open(&dir.join("floor")).unwrap();
    thread_store(quorate_raft::rocks::RocksLog::open(&dir.join("log")).unwrap(), floor)
}

/// The directory to work in, if this process is the child that another test has started to run only this test.
pub(crate) fn child_work() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// The command that runs one test of this binary as a child with a directory to work in.
pub(crate) fn child(test: &str, work: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(child_args(test)).env(CHILD, work);
    command
}

#[cfg(feature = "rocksdb")]
/// The same under strace, with the given options.
pub(crate) fn traced_child(test: &str, work: &Path, options: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.arg("-f").args(options).arg(std::env::current_exe().unwrap()).args(child_args(test)).env(CHILD, work);
    command
}

fn child_args(test: &str) -> [String; 4] {
    ["--exact".into(), test.into(), "--nocapture".into(), "--test-threads=1".into()]
}

#[cfg(feature = "rocksdb")]
pub(crate) const NO_STRACE: &str =
    "strace must run here to see the system calls: install it (apt-get install strace) and allow ptrace";
