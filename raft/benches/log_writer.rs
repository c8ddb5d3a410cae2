//! How many appends a second the log writer makes durable, and with how many fsyncs, for a number of proposals in flight.
//!
//! Each append is one entry of 1 KiB, in turn to one of eight groups, on the real database in a temporary directory; set
//! `TMPDIR` to choose the disk. Once with the floor, as a node runs, and once without, to see what it costs. Criterion reports
//! the time for one append; the lines between say appends and fsyncs a second.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use quorate_raft::FloorFile;
use quorate_raft::GroupId;
use quorate_raft::log::{FileFloor, GroupLog, LogConfig, LogStore, WriterMode};
use quorate_raft::rocks::RocksLog;
use quorate_raft::types::{Entry, LogId, Proposal, TC, log_id};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;

const GROUPS: usize = 8;
const IN_FLIGHT: [usize; 4] = [1, 16, 256, 4096];
const PAYLOAD_BYTES: usize = 1024;
/// As a running group purges, so that the database stays as small as it is in use.
const PURGE_EVERY: u64 = 50_000;

struct Load {
    logs: Vec<GroupLog>,
    next: Vec<u64>,
    payload: Bytes,
}

impl Load {
    async fn open(store: &LogStore) -> Load {
        let mut logs = Vec::new();
        for group in 0..GROUPS {
            let group = GroupId(u32::try_from(group).expect("few groups"));
            logs.push(store.open_group(group, 1).await.expect("opens"));
        }
        Load { logs, next: vec![0; GROUPS], payload: Bytes::from(vec![7; PAYLOAD_BYTES]) }
    }

    async fn append(&mut self, turn: usize) -> oneshot::Receiver<Result<(), std::io::Error>> {
        let at = turn % GROUPS;
        let position = self.next[at];
        self.next[at] += 1;
        let id: LogId = log_id(1, 1, position);
        let entry = Entry { log_id: id, payload: EntryPayload::Normal(Proposal(self.payload.clone())) };
        let (told, wait) = TC::oneshot();
        self.logs[at].append([entry], IOFlushed::<TC>::signal(told)).await.expect("appends");
        if position % PURGE_EVERY == PURGE_EVERY - 1 {
            self.logs[at].purge(log_id(1, 1, position - PURGE_EVERY / 2)).await.expect("purges");
        }
        wait
    }

    /// Appends `count` entries with at most `in_flight` that are not durable yet.
    async fn run(&mut self, count: u64, in_flight: usize) -> Duration {
        let start = Instant::now();
        let mut waiting = VecDeque::with_capacity(in_flight);
        for turn in 0..count {
            if waiting.len() == in_flight {
                durable(waiting.pop_front()).await;
            }
            waiting.push_back(self.append(usize::try_from(turn).expect("64 bit")).await);
        }
        while let Some(wait) = waiting.pop_front() {
            durable(Some(wait)).await;
        }
        start.elapsed()
    }
}

async fn durable(wait: Option<oneshot::Receiver<Result<(), std::io::Error>>>) {
    wait.expect("one is waiting").await.expect("the writer lives").expect("durable");
}

/// Forgets everything at once.
struct NoFloor;

impl FloorFile for NoFloor {
    fn read(&self) -> std::io::Result<[Vec<u8>; 2]> {
        Ok([Vec::new(), Vec::new()])
    }
    fn write(&self, _slot: usize, _bytes: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

fn log_writer(criterion: &mut Criterion) {
    measure(criterion, "log_writer", |dir| Arc::new(FileFloor::open(&dir.join("floor")).expect("opens")));
    measure(criterion, "log_writer_without_floor", |_| Arc::new(NoFloor));
}

fn measure(criterion: &mut Criterion, name: &str, floor: impl Fn(&Path) -> Arc<dyn FloorFile>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(3));
    for in_flight in IN_FLIGHT {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = Arc::new(RocksLog::open(&dir.path().join("log")).expect("opens"));
        let floor = floor(dir.path());
        let store = LogStore::open(engine, floor, WriterMode::Thread, LogConfig::default()).expect("starts");
        let mut load = runtime.block_on(Load::open(&store));
        let (mut appends, mut seconds) = (0, 0.0);
        let commits = store.metrics().commits();
        group.bench_function(BenchmarkId::from_parameter(in_flight), |bencher| {
            bencher.iter_custom(|count| {
                let took = runtime.block_on(load.run(count, in_flight));
                appends += count;
                seconds += took.as_secs_f64();
                took
            });
        });
        let fsyncs = (store.metrics().commits() - commits) as f64;
        println!(
            "{in_flight} in flight: {:.0} appends/s, {:.0} commits/s, {:.1} appends a commit, {:.0} us a commit and {:.0} us \
             the floor",
            appends as f64 / seconds,
            fsyncs / seconds,
            appends as f64 / fsyncs,
            store.metrics().mean_commit_seconds() * 1e6,
            store.metrics().mean_floor_seconds() * 1e6,
        );
        runtime.block_on(store.shutdown());
    }
    group.finish();
}

criterion_group!(benches, log_writer);
criterion_main!(benches);
