//! What the databases take of disk and memory.
#![cfg(feature = "rocksdb")]

use std::path::Path;

use openraft::storage::RaftLogStorage;
use quorate_raft::log::{LogConfig, LogStore, WriterMode};
use quorate_raft::memory::MemoryFloor;
use quorate_raft::rocks::{RocksLog, RocksStates};
use quorate_raft::types::log_id;
use quorate_raft::{GroupId, RowBatch, StateStores};
use std::sync::Arc;

use crate::support::{GROUP, REPLICA, append_durably, child, child_work, entry, positions, read_all};

fn bytes_in(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().map_or(0, |file| file.len())).sum()
}

#[tokio::test]
async fn purged_entries_leave_the_disk() {
    const MIB: usize = 1 << 20;
    const ENTRIES: u64 = 160;
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(RocksLog::open(dir.path()).unwrap());
    let floor = Arc::new(MemoryFloor::new());
    let store = LogStore::open(engine.clone(), floor, WriterMode::Thread, LogConfig::default()).unwrap();
    let mut log = store.open_group(GROUP, REPLICA).await.unwrap();
    let payload = vec![1; MIB];
    for at in (0..ENTRIES).step_by(8) {
        append_durably(&mut log, (at..at + 8).map(|at| entry(1, at, &payload))).await;
    }
    assert!(log.bytes() > ENTRIES * MIB as u64);
    let before = bytes_in(dir.path());
    assert!(before > 150 * MIB as u64, "only {before} bytes were written");
    log.purge(log_id(1, REPLICA, ENTRIES - 3)).await.unwrap();
    assert_eq!(log.bytes() / MIB as u64, 2);
    append_durably(&mut log, [entry(1, ENTRIES, b"small")]).await;
    engine.reclaim();
    let after = bytes_in(dir.path());
    assert!(after < 16 * MIB as u64, "{after} of {before} bytes are still there");
    drop(log);
    let log = store.open_group(GROUP, REPLICA).await.unwrap();
    assert_eq!(positions(&read_all(&log).await), [ENTRIES - 2, ENTRIES - 1, ENTRIES]);
    drop(log);
    store.shutdown().await;
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn child_that_idles() {
    let Some(work) = child_work() else { return };
    let work = Path::new(&work);
    let store = crate::support::durable_store(work);
    let states = RocksStates::open(&work.join("state")).unwrap();
    let mut open = Vec::new();
    for group in 0..9 {
        let mut log = store.open_group(GroupId(group), REPLICA).await.unwrap();
        append_durably(&mut log, (0..100).map(|at| entry(1, at, &[7; 1024]))).await;
        let state = states.open(GroupId(group)).unwrap();
        let changes =
            (0..100u32).map(|row| (1, row.to_be_bytes().to_vec().into(), Some(vec![7; 1024].into()))).collect();
        state.write(&RowBatch { changes }, b"applied").unwrap();
        open.push((log, state));
    }
    println!("\nresident {}", resident_kib());
}

#[test]
fn the_databases_of_nine_idle_groups_are_small_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let output = child("space::child_that_idles", dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let resident = text.lines().find_map(|line| line.strip_prefix("resident ")).expect("the child says it");
    let kib: u64 = resident.parse().unwrap();
    println!("resident: {kib} KiB");
    assert!(kib < 100 << 10, "{kib} KiB");
}
