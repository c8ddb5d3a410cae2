//! The floor against everything that can happen to a log: random histories, then one harm.

use std::collections::BTreeMap;

use openraft::storage::{RaftLogReader, RaftLogStorage};
use proptest::prelude::*;
use proptest::sample::Index;
use quorate_raft::log::{GroupLog, LogError, LogStore};
use quorate_raft::types::{Entry, LeaderId, LogId, Vote, log_id};
use quorate_raft::{LogChange, LogEngine, MarkKind};

use crate::support::{Disk, GROUP, REPLICA, append, append_durably, entry, plain, read_all, task_store};

#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    /// Keeps this share of the log, in percent, and appends so many.
    Rewrite(u64, u64),
    /// Purges this share of the log, in percent; beyond 100 past its end.
    Purge(u64),
    Vote,
    /// Remembers the database as it is now, for [`Harm::OldCopy`].
    Copy,
}

/// What happens to the disk of a node that is down.
#[derive(Clone, Debug)]
enum Harm {
    Nothing,
    Flip(Index, Index),
    Remove(Index),
    /// The last records are gone.
    Shorten(Index),
    /// A mark is gone, or flipped at a place.
    Mark(MarkKind, Option<Index>),
    /// The database is an earlier one.
    OldCopy,
    /// The database is an empty one.
    NoLog,
    Floor(usize, Index),
    BothSlots(Index),
    NoFloor,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u64..6).prop_map(Step::Append),
        2 => (0u64..100, 0u64..4).prop_map(|(keep, count)| Step::Rewrite(keep, count)),
        1 => (0u64..130).prop_map(Step::Purge),
        2 => Just(Step::Vote),
        1 => Just(Step::Copy),
    ];
    proptest::collection::vec(step, 1..25)
}

fn harms() -> impl Strategy<Value = Harm> {
    let kind =
        prop_oneof![Just(MarkKind::Vote), Just(MarkKind::Committed), Just(MarkKind::Purged), Just(MarkKind::Replica)];
    prop_oneof![
        1 => Just(Harm::Nothing),
        3 => any::<(Index, Index)>().prop_map(|(record, byte)| Harm::Flip(record, byte)),
        3 => any::<Index>().prop_map(Harm::Remove),
        3 => any::<Index>().prop_map(Harm::Shorten),
        3 => (kind, any::<Option<Index>>()).prop_map(|(kind, place)| Harm::Mark(kind, place)),
        3 => Just(Harm::OldCopy),
        1 => Just(Harm::NoLog),
        2 => (0usize..2, any::<Index>()).prop_map(|(slot, byte)| Harm::Floor(slot, byte)),
        1 => any::<Index>().prop_map(Harm::BothSlots),
        1 => Just(Harm::NoFloor),
    ]
}

#[derive(Debug, PartialEq)]
struct Content {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

impl Content {
    async fn of(log: &mut GroupLog) -> Content {
        let purged = log.get_log_state().await.unwrap().last_purged_log_id;
        Content { vote: log.reader().read_vote().await.unwrap(), purged, entries: read_all(log).await }
    }
}

/// Writes a history. Returns what is acknowledged at its end, and the copy of the database that was made on the way.
async fn write(disk: &Disk, steps: &[Step]) -> (Content, Option<Disk>) {
    let store = task_store(disk);
    let mut log = store.open_group(GROUP, REPLICA).await.unwrap();
    let (mut term, mut copy) = (1, None);
    for step in steps {
        let state = log.get_log_state().await.unwrap();
        let first = state.last_purged_log_id.map_or(0, |purged| purged.index + 1);
        let end = state.last_log_id.map_or(first, |last| last.index + 1);
        let share = |percent: u64| first + (end - first) * percent / 100;
        match step {
            Step::Append(count) => {
                drop(append(&mut log, (end..end + count).map(|at| entry(term, at, b"payload"))).await);
            }
            Step::Rewrite(keep, count) => {
                let from = share(*keep);
                let last = match from.checked_sub(1) {
                    Some(before) if from > first => {
                        log.reader().try_get_log_entries(before..from).await.unwrap().first().map(|entry| entry.log_id)
                    }
                    _ => state.last_purged_log_id,
                };
                term += 1;
                log.truncate_after(last).await.unwrap();
                drop(append(&mut log, (from..from + count).map(|at| entry(term, at, b"rewritten"))).await);
            }
            Step::Purge(percent) => {
                let upto = share(*percent) + percent / 110;
                let found = log.reader().try_get_log_entries(upto..upto + 1).await.unwrap();
                log.purge(found.first().map_or(log_id(term, REPLICA, upto), |entry| entry.log_id)).await.unwrap();
            }
            Step::Vote => {
                term += 1;
                log.save_vote(&Vote { leader_id: LeaderId { term, node_id: REPLICA }, committed: false })
                    .await
                    .unwrap();
            }
            Step::Copy => copy = Some(disk.image()),
        }
    }
    store.shutdown().await;
    (Content::of(&mut log).await, copy)
}

/// False if there was nothing to harm.
fn harm(disk: &mut Disk, copy: Option<Disk>, harm: &Harm) -> bool {
    let positions = disk.log.positions(GROUP);
    let flip = |at: &Index, mut bytes: Vec<u8>| {
        let at = at.index(bytes.len());
        bytes[at] ^= 0x20;
        bytes
    };
    let record = |which: &Index| (!positions.is_empty()).then(|| positions[which.index(positions.len())]);
    match harm {
        Harm::Nothing => true,
        Harm::Flip(which, byte) => {
            record(which).is_some_and(|at| disk.log.damage(GROUP, at, |bytes| Some(flip(byte, bytes))))
        }
        Harm::Remove(which) => record(which).is_some_and(|at| disk.log.damage(GROUP, at, |_| None)),
        Harm::Shorten(which) => {
            record(which).is_some_and(|from| disk.log.commit(&[LogChange::Truncate { group: GROUP, from }]).is_ok())
        }
        Harm::Mark(kind, place) => {
            disk.log.damage_mark(GROUP, *kind, |bytes| place.as_ref().map(|place| flip(place, bytes)))
        }
        Harm::OldCopy => copy.map(|copy| disk.log = copy.log).is_some(),
        Harm::NoLog => disk.log.commit(&[LogChange::Destroy { group: GROUP }]).is_ok(),
        Harm::Floor(slot, byte) => disk.floor.damage(*slot, |bytes| *bytes = flip(byte, bytes.clone())),
        Harm::BothSlots(byte) => (0..2).all(|slot| disk.floor.damage(slot, |bytes| *bytes = flip(byte, bytes.clone()))),
        Harm::NoFloor => {
            disk.floor.delete();
            true
        }
    }
}

/// Opens the group as a node does.
async fn reopen(disk: &Disk) -> Result<Content, String> {
    let store: LogStore = task_store(disk);
    let stored = store.stored();
    assert_eq!(stored.len(), 1, "the replica is still known");
    match store.open_group(GROUP, REPLICA).await {
        Ok(mut log) => {
            assert_eq!(stored[0].quarantined, None);
            Ok(Content::of(&mut log).await)
        }
        Err(error) => {
            assert!(error.is_damage(), "{error}");
            Err(error.to_string())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_log_opens_with_all_that_was_acknowledged_or_is_said_to_be_damaged(steps in steps(), done in harms()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut disk = Disk::new();
            let (expected, copy) = write(&disk, &steps).await;
            disk = disk.crash();
            let harmless = matches!(done, Harm::Nothing | Harm::Floor(..) | Harm::Mark(MarkKind::Committed, None));
            if !harm(&mut disk, copy, &done) {
                return;
            }
            match reopen(&disk).await {
                // What was only cut off or purged since may come back: nobody was told that it is gone.
                Ok(found) if matches!(done, Harm::OldCopy) => {
                    assert_eq!(found.vote, expected.vote);
                    assert!(expected.entries.iter().all(|entry| found.entries.contains(entry)), "{found:?} {expected:?}");
                }
                Ok(found) => assert_eq!(found, expected),
                Err(reason) => assert!(!harmless, "{reason}"),
            }
        });
    }
}

#[tokio::test]
async fn a_lost_floor_quarantines_every_log_and_is_made_anew() {
    for deleted in [true, false] {
        let disk = Disk::new();
        let store = task_store(&disk);
        for group in [1, 2, 3].map(quorate_raft::GroupId) {
            append_durably(&mut store.open_group(group, REPLICA).await.unwrap(), [plain(0)]).await;
        }
        drop(store);
        let disk = disk.crash();
        disk.log.damage_mark(quorate_raft::GroupId(2), MarkKind::Replica, |_| None);
        if deleted {
            disk.floor.delete();
        } else {
            assert!([0, 1].iter().all(|slot| disk.floor.damage(*slot, |bytes| bytes.truncate(20))));
        }
        for _ in 0..2 {
            let stored = task_store(&disk).stored();
            let owners: BTreeMap<u32, u64> = stored.iter().map(|stored| (stored.group.0, stored.replica)).collect();
            assert_eq!(owners, BTreeMap::from([(1, REPLICA), (2, 0), (3, REPLICA)]));
            assert!(stored.iter().all(|stored| stored.quarantined.is_some()));
        }
        let store = task_store(&disk);
        let unknown = store.open_group(quorate_raft::GroupId(2), 77).await.map(drop);
        assert!(matches!(unknown, Err(LogError::Quarantined { replica: 77, .. })), "nobody knows whose it was");
        store.destroy(quorate_raft::GroupId(2)).await.unwrap();
        store.open_group(quorate_raft::GroupId(2), 78).await.unwrap();
    }
}

#[tokio::test]
async fn the_floor_has_room_for_as_many_groups_as_it_says() {
    let disk = Disk::new();
    let store = task_store(&disk);
    let mut opened = 0;
    let refused = loop {
        let group = quorate_raft::GroupId(opened);
        match store.open_group(group, u64::MAX).await {
            Ok(mut log) => {
                log.save_vote(&Vote { leader_id: LeaderId { term: u64::MAX, node_id: u64::MAX }, committed: true })
                    .await
                    .unwrap();
                drop(log);
                store.quarantine(group, u64::MAX, &"é".repeat(500)).await.unwrap();
                opened += 1;
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, LogError::TooMany { .. }), "{refused}");
    assert!(opened > 130, "{opened} groups");
    let bytes = quorate_raft::FloorFile::read(&disk.floor).unwrap().map(|slot| slot.len());
    assert!(bytes.iter().all(|bytes| *bytes <= 64 << 10), "{bytes:?}");
    assert_eq!(task_store(&disk).stored().len(), opened as usize);
}

#[tokio::test]
async fn a_floor_of_a_later_version_is_refused_and_not_replaced() {
    let disk = Disk::new();
    drop(task_store(&disk).open_group(GROUP, REPLICA).await.unwrap());
    for slot in [0, 1] {
        disk.floor.damage(slot, |bytes| {
            bytes[4] = 9;
            let (header, body) = bytes.split_at(24);
            let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..20]), body);
            bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        });
    }
    let before = disk.floor.writes();
    let (log, floor) = (std::sync::Arc::new(disk.log.clone()), std::sync::Arc::new(disk.floor.clone()));
    let mode = quorate_raft::WriterMode::Task(quorate_raft::TaskHooks::instant());
    let refused = LogStore::open(log, floor, mode, quorate_raft::log::LogConfig::default()).map(drop).unwrap_err();
    assert!(refused.to_string().contains("version 9"), "{refused}");
    assert_eq!(disk.floor.writes(), before);
}
