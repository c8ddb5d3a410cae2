//! Destroying and quarantining, cut off at every write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_raft::LogEngine;
use quorate_raft::log::{LogError, TaskHooks};
use quorate_raft::memory::{CommitFault, FloorFault};

use crate::support::{Disk, GROUP, REPLICA, append_durably, plain, read_all, task_store};

/// A disk with one group.
async fn written() -> Disk {
    let disk = Disk::new();
    let store = task_store(&disk);
    let mut log = store.open_group(GROUP, REPLICA).await.unwrap();
    append_durably(&mut log, (0..5).map(plain)).await;
    disk.image()
}

/// Lets the node die at its write number `fatal` of the log or of the floor.
fn arm(disk: &Disk, of_floor: bool, fatal: u64, after: bool) -> Arc<AtomicBool> {
    let bitten = Arc::new(AtomicBool::new(false));
    let bite = bitten.clone();
    let first = if of_floor { disk.floor.writes() } else { disk.log.commits() };
    let is_fatal = move |number: u64| {
        let fatal = number == first + fatal;
        bite.fetch_or(fatal, Ordering::Relaxed);
        fatal
    };
    if of_floor {
        disk.floor.set_hook(move |number| match (is_fatal(number), after) {
            (false, _) => FloorFault::None,
            (true, true) => FloorFault::CrashAfter,
            (true, false) => FloorFault::Torn(30),
        });
    } else {
        disk.log.set_hook(move |number, _| match (is_fatal(number), after) {
            (false, _) => CommitFault::None,
            (true, true) => CommitFault::CrashAfter,
            (true, false) => CommitFault::CrashBefore,
        });
    }
    bitten
}

fn hooks() -> TaskHooks {
    TaskHooks { latency: Arc::new(|| Duration::from_millis(3)), failed: Arc::new(|_| {}), ..TaskHooks::instant() }
}

#[tokio::test(start_paused = true)]
async fn a_replica_whose_deletion_is_cut_off_is_whole_or_never_comes_back() {
    let mut cuts = 0;
    for (of_floor, after) in [(true, true), (true, false), (false, true), (false, false)] {
        for fatal in 0.. {
            let disk = written().await;
            let bitten = arm(&disk, of_floor, fatal, after);
            let store = disk.store(hooks());
            let _ = store.destroy(GROUP).await;
            drop(store);
            let disk = disk.crash();
            let about = format!("write {fatal} of the floor: {of_floor}, after: {after}");
            let store = task_store(&disk);
            match store.open_group(GROUP, REPLICA).await {
                Ok(log) => {
                    let entries = read_all(&log).await.len();
                    let stored = store.stored().len();
                    // Before it was doomed all of it is there; after it was forgotten it is a new one.
                    assert!(
                        entries == 5 || (entries == 0 && stored == 1 && disk.log.positions(GROUP).is_empty()),
                        "{about}"
                    );
                }
                Err(LogError::Doomed { .. }) => {
                    assert_eq!(store.stored(), [], "{about}");
                    store.destroy(GROUP).await.unwrap();
                    assert_eq!(disk.log.groups().unwrap(), [], "{about}");
                    store.open_group(GROUP, REPLICA + 1).await.unwrap();
                }
                Err(error) => panic!("{about}: {error}"),
            }
            if !bitten.load(Ordering::Relaxed) {
                break;
            }
            cuts += 1;
        }
    }
    assert!(cuts >= 6, "only {cuts} writes were cut");
}

#[tokio::test(start_paused = true)]
async fn a_quarantine_that_was_acknowledged_stays_and_one_that_is_cut_off_harms_nothing() {
    for (fatal, after) in [(0, true), (0, false), (1, true), (1, false), (2, true)] {
        let disk = written().await;
        let bitten = arm(&disk, true, fatal, after);
        let store = disk.store(hooks());
        let acknowledged = store.quarantine(GROUP, REPLICA, "bit-rot").await.is_ok();
        drop(store);
        let disk = disk.crash();
        let store = task_store(&disk);
        match store.open_group(GROUP, REPLICA).await {
            Ok(log) => assert!(!acknowledged && read_all(&log).await.len() == 5),
            Err(LogError::Quarantined { reason, .. }) => assert_eq!(reason, "bit-rot"),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(acknowledged, !bitten.load(Ordering::Relaxed), "it is answered when it is durable");
    }
}

#[tokio::test]
async fn a_quarantined_replica_is_never_opened_and_its_successor_only_after_it_is_gone() {
    let disk = written().await;
    let store = task_store(&disk);
    assert!(matches!(store.quarantine(GROUP, 99, "").await, Err(LogError::OtherReplica { stored: REPLICA, .. })));
    let long = "x".repeat(5_000);
    store.quarantine(GROUP, REPLICA, &long).await.unwrap();
    store.quarantine(GROUP, REPLICA, "another reason").await.unwrap();
    for slot in [0, 1] {
        // Neither slot alone brings it back.
        let disk = disk.image();
        disk.floor.damage(slot, |bytes| bytes[30] ^= 1);
        let store = task_store(&disk);
        let reason = store.stored().remove(0).quarantined.expect("quarantined");
        assert!(long.starts_with(&reason) && reason.len() > 100, "{reason}");
        assert!(matches!(store.open_group(GROUP, REPLICA).await.map(drop), Err(LogError::Quarantined { .. })));
    }
    assert!(matches!(store.open_group(GROUP, 99).await.map(drop), Err(LogError::OtherReplica { .. })));
    store.destroy(GROUP).await.unwrap();
    assert!(matches!(store.quarantine(GROUP, REPLICA, "").await, Err(LogError::NotStored { .. })));
    assert_eq!(read_all(&store.open_group(GROUP, 99).await.unwrap()).await, []);
}
