//! Random operations against a model, with so little memory that reads come from the disk, and with restarts between.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::storage::{RaftLogReader, RaftLogStorage};
use proptest::prelude::*;
use quorate_raft::log::{GroupLog, LogConfig, LogStore, TaskHooks, WriterMode};
use quorate_raft::memory::{MemoryFloor, MemoryLog};
use quorate_raft::types::{Entry, LeaderId, LogId, Vote};
use quorate_raft::{FloorFile, LogEngine};

use crate::support::{GROUP, REPLICA, append, entry};

#[derive(Clone, Debug)]
enum Step {
    Append {
        count: u64,
        bytes: usize,
    },
    /// Keeps this share of the log, in percent.
    Truncate(u64),
    /// Purges this share of the log, in percent; beyond 100 past its end.
    Purge(u64),
    /// Lets the writer commit what waits.
    Settle,
    Reopen,
    Read {
        from: u64,
        count: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (1u64..6, 0usize..200).prop_map(|(count, bytes)| Step::Append { count, bytes }),
        1 => (0u64..100).prop_map(Step::Truncate),
        1 => (0u64..130).prop_map(Step::Purge),
        2 => Just(Step::Settle),
        1 => Just(Step::Reopen),
        4 => (0u64..40, 0u64..40).prop_map(|(from, count)| Step::Read { from, count }),
    ];
    proptest::collection::vec(step, 1..60)
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    purged: Option<LogId>,
    term: u64,
}

impl Model {
    fn next(&self) -> u64 {
        let after = |at: u64| at + 1;
        self.entries.keys().next_back().copied().map(after).or(self.purged.map(|at| at.index + 1)).unwrap_or(0)
    }

    fn first(&self) -> u64 {
        self.purged.map_or(0, |at| at.index + 1)
    }

    fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|entry| entry.log_id).or(self.purged)
    }

    fn identity(&self, at: u64) -> Option<LogId> {
        self.entries.get(&at).map(|entry| entry.log_id)
    }
}

struct Run {
    engine: Arc<dyn LogEngine>,
    floor: Arc<dyn FloorFile>,
    tail_bytes: usize,
    store: LogStore,
    log: Option<GroupLog>,
    model: Model,
}

impl Run {
    async fn new(engine: Arc<dyn LogEngine>, floor: Arc<dyn FloorFile>, tail_bytes: usize) -> Run {
        let store = Self::store(&engine, &floor, tail_bytes);
        let log = Some(store.open_group(GROUP, REPLICA).await.unwrap());
        Run { engine, floor, tail_bytes, store, log, model: Model::default() }
    }

    fn store(engine: &Arc<dyn LogEngine>, floor: &Arc<dyn FloorFile>, tail_bytes: usize) -> LogStore {
        let config = LogConfig { tail_bytes, read_bytes: 300, ..LogConfig::default() };
        LogStore::open(engine.clone(), floor.clone(), WriterMode::Task(TaskHooks::instant()), config).unwrap()
    }

    fn log(&mut self) -> &mut GroupLog {
        self.log.as_mut().unwrap()
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Append { count, bytes } => {
                let (first, term) = (self.model.next(), self.model.term);
                let fill = |at: u64| vec![u8::try_from(at % 251).unwrap(); *bytes];
                let new: Vec<Entry> = (first..first + count).map(|at| entry(term, at, &fill(at))).collect();
                self.model.entries.extend(new.iter().map(|entry| (entry.log_id.index, entry.clone())));
                drop(append(self.log(), new).await);
            }
            Step::Truncate(share) => {
                let (first, next) = (self.model.first(), self.model.next());
                let from = first + (next - first) * share / 100;
                let last = if from == first { self.model.purged } else { self.model.identity(from - 1) };
                self.model.entries.retain(|at, _| *at < from);
                self.model.term += 1;
                self.log().truncate_after(last).await.unwrap();
            }
            Step::Purge(share) => {
                let (first, next) = (self.model.first(), self.model.next());
                let upto = first + (next - first) * share / 100 + share / 110;
                let beyond = crate::support::entry(self.model.term, upto, b"").log_id;
                let upto = self.model.identity(upto).unwrap_or(beyond);
                self.model.entries.retain(|at, _| *at > upto.index);
                self.model.purged = Some(upto);
                self.log().purge(upto).await.unwrap();
            }
            Step::Settle => {
                let vote = Vote { leader_id: LeaderId { term: self.model.term, node_id: REPLICA }, committed: true };
                self.log().save_vote(&vote).await.unwrap();
            }
            Step::Reopen => {
                self.log = None;
                self.store.shutdown().await;
                self.store = Self::store(&self.engine, &self.floor, self.tail_bytes);
                self.log = Some(self.store.open_group(GROUP, REPLICA).await.unwrap());
            }
            Step::Read { from, count } => self.read(*from, *count).await,
        }
        self.compare_ends().await;
    }

    async fn compare_ends(&mut self) {
        let (purged, last) = (self.model.purged, self.model.last());
        let state = self.log().get_log_state().await.unwrap();
        assert_eq!((state.last_purged_log_id, state.last_log_id), (purged, last));
    }

    async fn read(&mut self, from: u64, count: u64) {
        let from = self.model.first().saturating_sub(3) + from;
        let expected: Vec<Entry> =
            self.model.entries.range(from..from + count).map(|(_, entry)| entry.clone()).collect();
        let mut reader = self.log().reader();
        assert_eq!(reader.try_get_log_entries(from..from + count).await.unwrap(), expected);
        let limited = reader.limited_get_log_entries(from, from + count).await.unwrap();
        assert_eq!(limited, expected[..limited.len()]);
        assert_eq!(limited.is_empty(), expected.is_empty());
        let streamed: Vec<Entry> = {
            use futures::TryStreamExt;
            reader.entries_stream(from..from + count).await.try_collect().await.unwrap()
        };
        assert_eq!(streamed, expected);
    }
}

fn check(engine: Arc<dyn LogEngine>, floor: Arc<dyn FloorFile>, tail_bytes: usize, steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut run = Run::new(engine, floor, tail_bytes).await;
        for step in steps {
            run.step(step).await;
        }
        run.step(&Step::Reopen).await;
        run.read(0, 1000).await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_in_memory_does_what_the_model_does(steps in steps(), tail_bytes in prop_oneof![Just(0), 0usize..2000]) {
        check(Arc::new(MemoryLog::new()), Arc::new(MemoryFloor::new()), tail_bytes, &steps);
    }
}

#[cfg(feature = "rocksdb")]
proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_on_rocksdb_does_what_the_model_does(steps in steps(), tail_bytes in prop_oneof![Just(0), 0usize..2000]) {
        let dir = tempfile::tempdir().unwrap();
        let engine = quorate_raft::rocks::RocksLog::open(&dir.path().join("log")).unwrap();
        let floor = quorate_raft::log::FileFloor::open(&dir.path().join("floor")).unwrap();
        check(Arc::new(engine), Arc::new(floor), tail_bytes, &steps);
    }
}
