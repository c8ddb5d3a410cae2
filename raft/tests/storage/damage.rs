//! What is found on the disk is not what was written.

use std::sync::Arc;

use openraft::storage::{RaftLogReader, RaftLogStorage};
use quorate_raft::log::{GroupLog, LogError, LogStore, RecordError, StoredReplica, TaskHooks};
use quorate_raft::memory::FloorFault;
use quorate_raft::types::{LeaderId, Vote, log_id};
use quorate_raft::{GroupId, LogChange, LogEngine, MarkKind};

use crate::support::{Disk, GROUP, REPLICA, append, append_durably, plain, positions, read_all, task_store};

/// A disk with the entries 0..10.
async fn written() -> Disk {
    let disk = Disk::new();
    let mut log = open(&disk).await.unwrap();
    append_durably(&mut log, (0..10).map(plain)).await;
    disk.image()
}

/// A disk with the entries 0..10 of which only those before `known` were acknowledged: the node died before the floor knew
/// of the rest.
async fn written_ahead(known: u64) -> Disk {
    let disk = Disk::new();
    let store = disk.store(TaskHooks { failed: Arc::new(|_| ()), ..TaskHooks::instant() });
    let mut log = store.open_group(GROUP, REPLICA).await.unwrap();
    append_durably(&mut log, (0..known).map(plain)).await;
    disk.floor.set_hook(|_| FloorFault::CrashBefore);
    append(&mut log, (known..10).map(plain)).await.await.unwrap().expect_err("the node has died");
    drop((log, store));
    disk.crash()
}

async fn open(disk: &Disk) -> Result<GroupLog, LogError> {
    task_store(disk).open_group(GROUP, REPLICA).await
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
        let disk = written_ahead(8).await;
        assert!(disk.log.damage(GROUP, 8, change) && disk.log.damage(GROUP, 9, change));
        let mut log = open(&disk).await.unwrap();
        assert_eq!(positions(&read_all(&log).await), (0..8).collect::<Vec<_>>());
        append_durably(&mut log, (8..12).map(plain)).await;
        drop(log);
        assert_eq!(read_all(&open(&disk).await.unwrap()).await, (0..12).map(plain).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn what_was_found_at_a_start_is_acknowledged_from_then_on() {
    let disk = written_ahead(4).await;
    assert_eq!(read_all(&open(&disk).await.unwrap()).await.len(), 10);
    // A peer may have been told of it, though nothing was written since.
    assert!(disk.log.damage(GROUP, 9, cut));
    let error = open(&disk).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::DamagedBelowFloor { position: 9, floor: 9, .. }), "{error}");
}

#[tokio::test]
async fn an_end_that_was_acknowledged_is_never_taken_for_a_torn_one() {
    for change in [flip, cut, |_| None] {
        let disk = written().await;
        assert!(disk.log.damage(GROUP, 9, change));
        let error = open(&disk).await.map(drop).unwrap_err();
        assert!(error.is_damage(), "{error}");
        let expected = matches!(
            error,
            LogError::DamagedBelowFloor { position: 9, floor: 9, .. }
                | LogError::BelowFloor { floor: 9, last: Some(8), .. }
        );
        assert!(expected, "{error}");
    }
}

#[tokio::test]
async fn a_log_that_is_nothing_but_a_torn_record_is_empty() {
    let disk = written_ahead(0).await;
    disk.log.commit(&[LogChange::Truncate { group: GROUP, from: 1 }]).unwrap();
    assert!(disk.log.damage(GROUP, 0, cut));
    let mut log = open(&disk).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, None);
}

#[tokio::test]
async fn damage_with_a_whole_record_after_it_is_an_error_that_says_where() {
    let ways: [(Change, RecordError); 2] = [(flip, RecordError::Checksum), (|_| None, RecordError::Missing)];
    for (change, expected) in ways {
        let disk = written_ahead(2).await;
        assert!(disk.log.damage(GROUP, 4, change));
        let Err(LogError::Damaged { group, position, valid, reason }) = open(&disk).await.map(drop) else {
            panic!("damage was not seen")
        };
        assert_eq!((group, position, valid), (GROUP, 4, 5));
        assert_eq!(reason, expected);
        let error = LogError::Damaged { group, position, valid, reason };
        let text = error.to_string();
        assert!(text.contains("shard-1") && text.contains("position 4") && error.is_damage(), "{text}");
    }
}

#[tokio::test]
async fn a_missing_first_record_is_damage_too() {
    let disk = written_ahead(0).await;
    disk.log.damage(GROUP, 0, |_| None);
    // The record at 1 is whole but not chained to a beginning.
    let error = open(&disk).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::Damaged { position: 1, reason: RecordError::Unchained, .. }), "{error}");
}

#[tokio::test]
async fn a_record_from_another_history_breaks_the_chain() {
    let (disk, other) = (written().await, Disk::new());
    let mut log = open(&other).await.unwrap();
    append_durably(&mut log, (0..10).map(|at| crate::support::entry(2, at, b"another history"))).await;
    let (_, foreign) = other.log.read(GROUP, 9, 10, usize::MAX).unwrap().remove(0);
    disk.log.damage(GROUP, 9, |_| Some(foreign.to_vec()));
    let error = open(&disk).await.map(drop).unwrap_err();
    let unchained = RecordError::Unchained;
    assert!(matches!(error, LogError::DamagedBelowFloor { position: 9, reason, .. } if reason == unchained));
}

#[tokio::test]
async fn another_history_that_is_whole_in_itself_is_refused() {
    let (disk, other) = (written().await, Disk::new());
    let mut log = open(&other).await.unwrap();
    append_durably(&mut log, (0..12).map(|at| crate::support::entry(2, at, b"another history"))).await;
    let mixed = Disk { log: other.log.image(), floor: disk.floor };
    let error = open(&mixed).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::OtherHistory { position: 9, .. }), "{error}");
}

#[tokio::test]
async fn a_log_that_ends_below_what_was_committed_is_refused() {
    let disk = written().await;
    let value = {
        let mut log = open(&disk).await.unwrap();
        log.save_committed(Some(log_id(1, REPLICA, 9))).await.unwrap();
        log.save_vote(&vote(1)).await.unwrap();
        disk.log.mark(GROUP, MarkKind::Committed).unwrap().unwrap()
    };
    let shorter = Disk::new();
    let mut log = open(&shorter).await.unwrap();
    append_durably(&mut log, (0..5).map(plain)).await;
    shorter.log.commit(&[LogChange::Mark { group: GROUP, kind: MarkKind::Committed, value }]).unwrap();
    let error = open(&shorter.image()).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::Shortened { committed: 9, last: Some(4), .. }), "{error}");
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: REPLICA }, committed: true }
}

#[tokio::test]
async fn a_vote_below_the_floor_is_refused() {
    let disk = Disk::new();
    let mut log = open(&disk).await.unwrap();
    log.save_vote(&vote(3)).await.unwrap();
    let older = disk.log.mark(GROUP, MarkKind::Vote).unwrap();
    log.save_vote(&vote(4)).await.unwrap();
    drop(log);
    for old in [None, older] {
        let disk = disk.image();
        disk.log.damage_mark(GROUP, MarkKind::Vote, |_| old.map(|old| old.to_vec()));
        let error = open(&disk).await.map(drop).unwrap_err();
        assert!(matches!(error, LogError::VoteBelowFloor { floor, .. } if floor == vote(4)), "{error}");
        assert!(error.is_damage());
    }
    // A vote above the floor was durable and never acknowledged.
    let value = disk.log.mark(GROUP, MarkKind::Vote).unwrap().unwrap();
    let ahead = Disk::new();
    drop(open(&ahead).await.unwrap());
    ahead.log.commit(&[LogChange::Mark { group: GROUP, kind: MarkKind::Vote, value }]).unwrap();
    assert_eq!(open(&ahead).await.unwrap().reader().read_vote().await.unwrap(), Some(vote(4)));
}

#[tokio::test]
async fn the_chain_is_checked_from_the_purged_position_on() {
    let disk = Disk::new();
    let mut log = open(&disk).await.unwrap();
    append_durably(&mut log, (0..10).map(plain)).await;
    log.purge(log_id(1, REPLICA, 3)).await.unwrap();
    append_durably(&mut log, [plain(10)]).await;
    let disk = disk.image();
    let mut log = open(&disk).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_purged_log_id, Some(log_id(1, REPLICA, 3)));
    assert_eq!(positions(&read_all(&log).await), (4..11).collect::<Vec<_>>());
    drop(log);
    disk.log.damage(GROUP, 4, |_| None);
    let error = open(&disk).await.map(drop).unwrap_err();
    let missing = RecordError::Missing;
    assert!(matches!(error, LogError::DamagedBelowFloor { position: 4, reason, .. } if reason == missing));
}

#[tokio::test]
async fn a_damaged_mark_is_named() {
    let disk = written().await;
    let value = bytes::Bytes::from_static(&[1, 2, 3, 4, 5, 6]);
    disk.log.commit(&[LogChange::Mark { group: GROUP, kind: MarkKind::Vote, value }]).unwrap();
    let error = open(&disk).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::Mark { kind: MarkKind::Vote, .. }), "{error}");
}

#[tokio::test]
async fn a_log_belongs_to_one_replica_until_it_is_destroyed() {
    let disk = written().await;
    let store = task_store(&disk);
    let error = store.open_group(GROUP, 99).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::OtherReplica { stored: REPLICA, asked: 99, .. }), "{error}");
    assert!(!error.is_damage());
    assert_eq!(store.stored(), [StoredReplica { group: GROUP, replica: REPLICA, quarantined: None }]);

    let log = store.open_group(GROUP, REPLICA).await.unwrap();
    assert!(matches!(store.open_group(GROUP, REPLICA).await.map(drop), Err(LogError::AlreadyOpen { .. })));
    assert!(matches!(store.destroy(GROUP).await, Err(LogError::AlreadyOpen { .. })));
    drop(log);
    store.destroy(GROUP).await.unwrap();
    assert_eq!(store.stored(), []);
    let mut log = store.open_group(GROUP, 99).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, None);
    assert_eq!(log.reader().read_vote().await.unwrap(), None);
}

#[tokio::test]
async fn a_log_whose_owner_is_lost_is_refused() {
    let disk = written().await;
    assert!(disk.log.damage_mark(GROUP, MarkKind::Replica, |_| None));
    let error = open(&disk).await.map(drop).unwrap_err();
    assert!(matches!(error, LogError::WrongOwner { floor: REPLICA, found: None, .. }), "{error}");
}

#[tokio::test]
async fn an_entry_that_would_leave_a_hole_is_refused() {
    let store: LogStore = task_store(&Disk::new());
    let mut log = store.open_group(GroupId(3), REPLICA).await.unwrap();
    append_durably(&mut log, (0..3).map(plain)).await;
    let callback = || openraft::storage::IOFlushed::noop();
    log.append([plain(4)], callback()).await.expect_err("position 3 is missing");
    log.append([plain(2)], callback()).await.expect_err("position 2 is there");
}
