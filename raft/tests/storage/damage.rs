//! What is found on the disk is not what was written.

use openraft::storage::{RaftLogReader, RaftLogStorage};
use quorate_raft::log::{GroupLog, LogError, LogStore, RecordError};
use quorate_raft::memory::MemoryLog;
use quorate_raft::types::{LeaderId, Vote, log_id};
use quorate_raft::{GroupId, LogChange, LogEngine, MarkKind};

use crate::support::{GROUP, REPLICA, append_durably, plain, positions, read_all, task_store};

/// A disk with the entries 0..10.
async fn written() -> MemoryLog {
    let disk = MemoryLog::new();
    let mut log = open(&disk).await.unwrap();
    append_durably(&mut log, (0..10).map(plain)).await;
    disk.image()
}

async fn open(disk: &MemoryLog) -> Result<GroupLog, LogError> {
    task_store(disk.clone()).open_group(GROUP, REPLICA).await
}

/// Changes the bytes of a record, or takes it away.
type Change = fn(Vec<u8>) -> Option<Vec<u8>>;

fn flip(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    *bytes.last_mut()? ^= 4;
    Some(bytes)
}

fn cut(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    bytes.truncate(bytes.len() / 2);
    Some(bytes)
}

#[tokio::test]
async fn a_torn_end_is_removed_and_the_log_goes_on() {
    for change in [flip, cut] {
        let disk = written().await;
        assert!(disk.damage(GROUP, 8, change) && disk.damage(GROUP, 9, change));
        let mut log = open(&disk).await.unwrap();
        assert_eq!(positions(&read_all(&log).await), (0..8).collect::<Vec<_>>());
        append_durably(&mut log, (8..12).map(plain)).await;
        drop(log);
        assert_eq!(read_all(&open(&disk).await.unwrap()).await, (0..12).map(plain).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_log_that_is_nothing_but_a_torn_record_is_empty() {
    let disk = MemoryLog::new();
    let mut log = open(&disk).await.unwrap();
    append_durably(&mut log, [plain(0)]).await;
    drop(log);
    assert!(disk.damage(GROUP, 0, cut));
    let mut log = open(&disk).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, None);
}

#[tokio::test]
async fn damage_with_a_whole_record_after_it_is_an_error_that_says_where() {
    let ways: [(Change, RecordError); 2] = [(flip, RecordError::Checksum), (|_| None, RecordError::Missing)];
    for (change, expected) in ways {
        let disk = written().await;
        assert!(disk.damage(GROUP, 4, change));
        let Err(LogError::Damaged { group, position, valid, reason }) = open(&disk).await.map(drop) else {
            panic!("damage was not seen")
        };
        assert_eq!((group, position, valid), (GROUP, 4, 5));
        assert_eq!(reason, expected);
        let text = LogError::Damaged { group, position, valid, reason }.to_string();
        assert!(text.contains("shard-1") && text.contains("position 4") && text.contains("place a new one"), "{text}");
    }
}

#[tokio::test]
async fn a_missing_first_record_is_damage_too() {
    let disk = written().await;
    disk.damage(GROUP, 0, |_| None);
    // The record at 1 is whole but not chained to a beginning.
    let error = open(&disk).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::Damaged { position: 1, reason: RecordError::Unchained, .. }), "{error}");
}

#[tokio::test]
async fn a_record_from_another_history_breaks_the_chain() {
    let (disk, other) = (written().await, MemoryLog::new());
    let mut log = open(&other).await.unwrap();
    append_durably(&mut log, (0..10).map(|at| crate::support::entry(2, at, b"another history"))).await;
    let (_, foreign) = other.read(GROUP, 9, 10, usize::MAX).unwrap().remove(0);
    disk.damage(GROUP, 9, |_| Some(foreign.to_vec()));
    let error = open(&disk).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::Damaged { position: 9, reason: RecordError::Unchained, .. }), "{error}");
}

#[tokio::test]
async fn a_torn_end_below_what_was_committed_is_refused() {
    let disk = MemoryLog::new();
    let mut log = open(&disk).await.unwrap();
    append_durably(&mut log, (0..5).map(plain)).await;
    log.save_committed(Some(log_id(1, REPLICA, 4))).await.unwrap();
    log.save_vote(&Vote { leader_id: LeaderId { term: 1, node_id: REPLICA }, committed: true }).await.unwrap();
    let disk = disk.image();
    disk.damage(GROUP, 4, cut);
    let error = open(&disk).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::Shortened { committed: 4, last: Some(3), .. }), "{error}");
}

#[tokio::test]
async fn the_chain_is_checked_from_the_purged_position_on() {
    let disk = MemoryLog::new();
    let mut log = open(&disk).await.unwrap();
    append_durably(&mut log, (0..10).map(plain)).await;
    log.purge(log_id(1, REPLICA, 3)).await.unwrap();
    append_durably(&mut log, [plain(10)]).await;
    let disk = disk.image();
    let mut log = open(&disk).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_purged_log_id, Some(log_id(1, REPLICA, 3)));
    assert_eq!(positions(&read_all(&log).await), (4..11).collect::<Vec<_>>());
    drop(log);
    disk.damage(GROUP, 4, |_| None);
    let error = open(&disk).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::Damaged { position: 4, reason: RecordError::Missing, .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_mark_is_named() {
    let disk = written().await;
    let value = bytes::Bytes::from_static(&[1, 2, 3, 4, 5, 6]);
    disk.commit(&[LogChange::Mark { group: GROUP, kind: MarkKind::Vote, value }]).unwrap();
    let error = open(&disk).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::Mark { kind: MarkKind::Vote, .. }), "{error}");
}

#[tokio::test]
async fn a_log_belongs_to_one_replica_until_it_is_destroyed() {
    let disk = written().await;
    let store = task_store(disk.clone());
    let error = store.open_group(GROUP, 99).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::OtherReplica { stored: REPLICA, asked: 99, .. }), "{error}");
    assert_eq!(store.stored().unwrap(), [(GROUP, REPLICA)]);

    let log = store.open_group(GROUP, REPLICA).await.unwrap();
    assert!(matches!(store.open_group(GROUP, REPLICA).await.map(drop), Err(LogError::AlreadyOpen { .. })));
    assert!(matches!(store.destroy(GROUP).await, Err(LogError::AlreadyOpen { .. })));
    drop(log);
    store.destroy(GROUP).await.unwrap();
    assert_eq!(store.stored().unwrap(), []);
    let mut log = store.open_group(GROUP, 99).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, None);
    assert_eq!(log.reader().read_vote().await.unwrap(), None);
}

#[tokio::test]
async fn a_log_without_an_owner_is_refused() {
    let disk = MemoryLog::new();
    let record = bytes::Bytes::from_static(b"who wrote this");
    disk.commit(&[LogChange::Append { group: GROUP, position: 0, record }]).unwrap();
    assert!(matches!(open(&disk).await.map(drop), Err(LogError::NoOwner { group: GROUP })));
}

#[tokio::test]
async fn an_entry_that_would_leave_a_hole_is_refused() {
    let store: LogStore = task_store(MemoryLog::new());
    let mut log = store.open_group(GroupId(3), REPLICA).await.unwrap();
    append_durably(&mut log, (0..3).map(plain)).await;
    let callback = || openraft::storage::IOFlushed::noop();
    log.append([plain(4)], callback()).await.expect_err("position 3 is missing");
    log.append([plain(2)], callback()).await.expect_err("position 2 is there");
}

#[cfg(feature = "rocksdb")]
mod on_disk {
    use std::path::{Path, PathBuf};

    use quorate_raft::rocks::RocksLog;

    use super::*;
    use crate::support::thread_store;

    const ENTRIES: u64 = 40;

    /// A database directory whose WAL holds the entries 0..ENTRIES, one batch for each.
    async fn written() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let store = thread_store(RocksLog::open(dir.path()).unwrap());
        let mut log = store.open_group(GROUP, REPLICA).await.unwrap();
        for at in 0..ENTRIES {
            append_durably(&mut log, [plain(at)]).await;
        }
        store.shutdown().await;
        dir
    }

    fn wal(dir: &Path) -> PathBuf {
        let logs = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        logs.filter(|path| path.extension().is_some_and(|end| end == "log")).max().unwrap()
    }

    /// Opens the database and the group; the positions found, or an error.
    async fn reopened(dir: &Path) -> Result<Vec<u64>, String> {
        let engine = RocksLog::open(dir).map_err(|error| error.to_string())?;
        let store = thread_store(engine);
        let log = store.open_group(GROUP, REPLICA).await.map_err(|error| error.to_string())?;
        let found = positions(&read_all(&log).await);
        drop(log);
        store.shutdown().await;
        Ok(found)
    }

    #[tokio::test]
    async fn a_wal_that_ends_anywhere_opens_with_the_entries_before() {
        let dir = written().await;
        let bytes = std::fs::read(wal(dir.path())).unwrap();
        let mut last = ENTRIES;
        for keep in [bytes.len() - 1, bytes.len() * 3 / 4, bytes.len() / 2] {
            let copy = tempfile::tempdir().unwrap();
            for entry in std::fs::read_dir(dir.path()).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
            std::fs::write(wal(copy.path()), &bytes[..keep]).unwrap();
            let found = reopened(copy.path()).await.unwrap();
            assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>());
            assert!((found.len() as u64) < last && found.len() > 5, "{} entries of {keep} bytes", found.len());
            last = found.len() as u64;
        }
    }

    #[tokio::test]
    async fn a_flipped_byte_in_the_middle_of_the_wal_is_never_taken_for_a_torn_end() {
        let dir = written().await;
        let path = wal(dir.path());
        let bytes = std::fs::read(&path).unwrap();
        for tenth in 2..8 {
            let mut damaged = bytes.clone();
            damaged[bytes.len() * tenth / 10] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            let outcome = reopened(dir.path()).await;
            assert!(outcome.is_err(), "opened with {} entries", outcome.map_or(0, |found| found.len()));
        }
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(reopened(dir.path()).await.unwrap().len() as u64, ENTRIES);
    }
}
