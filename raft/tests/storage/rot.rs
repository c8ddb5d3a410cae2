//! Every kind of file of a real data directory, flipped, cut and deleted at many places.
//!
//! Whatever is done to the disk, a group opens with all that was acknowledged, or is said to be damaged. It never opens with
//! a shorter log or an older vote.
#![cfg(feature = "rocksdb")]

use std::path::{Path, PathBuf};

use openraft::storage::{RaftLogReader, RaftLogStorage};
use quorate_raft::log::{GroupLog, LogConfig, LogStore, WriterMode};
use quorate_raft::rocks::RocksLog;
use quorate_raft::types::{Entry, LeaderId, LogId, Vote, log_id};
use quorate_raft::{GroupId, Seams};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::{REPLICA, append_durably, durable_store, entry, read_all};

const GROUPS: u32 = 3;
const SEED: u64 = 0x5eed_0f10;

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

/// Writes positions `from..to` of each group in small batches.
async fn write(logs: &mut [GroupLog], from: u64, to: u64) {
    for at in from..to {
        for (group, log) in logs.iter_mut().enumerate() {
            append_durably(log, [entry(1, at, &[group as u8 + at as u8; 150])]).await;
        }
    }
}

async fn open(dir: &Path) -> (LogStore, Vec<GroupLog>) {
    let store = durable_store(dir);
    let mut logs = Vec::new();
    for group in 0..GROUPS {
        logs.push(store.open_group(GroupId(group), REPLICA).await.unwrap());
    }
    (store, logs)
}

/// A data directory with everything in it: tables, some of them compacted, and a WAL with the latest of each group.
async fn written(dir: &Path) -> Vec<Content> {
    let (store, mut logs) = open(dir).await;
    write(&mut logs, 0, 60).await;
    for (term, log) in (2..).zip(&mut logs) {
        log.save_vote(&Vote { leader_id: LeaderId { term, node_id: REPLICA }, committed: true }).await.unwrap();
    }
    logs[0].purge(log_id(1, REPLICA, 20)).await.unwrap();
    write(&mut logs, 60, 61).await;
    drop(logs);
    store.shutdown().await;
    drop(store);
    // Moves what the WAL held into a table, and some of that deeper.
    RocksLog::open(&dir.join("log")).unwrap().reclaim();
    let (store, mut logs) = open(dir).await;
    write(&mut logs, 61, 90).await;
    logs[1].purge(log_id(1, REPLICA, 70)).await.unwrap();
    logs[2].truncate_after(Some(log_id(1, REPLICA, 85))).await.unwrap();
    write(&mut logs[..2], 90, 120).await;
    let mut contents = Vec::new();
    for log in &mut logs {
        contents.push(Content::of(log).await);
    }
    drop(logs);
    store.shutdown().await;
    contents
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[derive(Debug, Clone, Copy)]
enum Harm {
    Flip,
    /// 512 bytes of another kind, as a lost sector.
    Sector,
    Cut,
    Empty,
    Delete,
}

fn harm(path: &Path, harm: Harm, random: &mut StdRng) -> String {
    let mut bytes = std::fs::read(path).unwrap();
    let at = if bytes.is_empty() { 0 } else { random.random_range(0..bytes.len()) };
    match harm {
        Harm::Delete => {
            std::fs::remove_file(path).unwrap();
            return format!("{} deleted", path.display());
        }
        Harm::Flip if !bytes.is_empty() => bytes[at] ^= 1 << random.random_range(0..8),
        Harm::Sector if !bytes.is_empty() => {
            let begin = at / 512 * 512;
            let end = bytes.len().min(begin + 512);
            random.fill(&mut bytes[begin..end]);
        }
        Harm::Cut => bytes.truncate(at),
        _ => bytes.clear(),
    }
    std::fs::write(path, &bytes).unwrap();
    format!("{} {harm:?} at {at}", path.display())
}

/// Opens the directory as a node does. For each group what it holds, or why it is damaged.
async fn found(dir: &Path) -> Vec<Result<Content, String>> {
    let Seams { log, floor, .. } = Seams::durable(dir).unwrap();
    let store = LogStore::open(log, floor, WriterMode::Thread, LogConfig::default()).unwrap();
    let mut found = Vec::new();
    let stored = store.stored();
    assert_eq!(stored.len(), GROUPS as usize, "every replica is still known: {stored:?}");
    for stored in stored {
        if let Some(reason) = stored.quarantined {
            found.push(Err(reason));
            continue;
        }
        assert_eq!(stored.replica, REPLICA);
        match store.open_group(stored.group, stored.replica).await {
            Ok(mut log) => found.push(Ok(Content::of(&mut log).await)),
            Err(error) => {
                assert!(error.is_damage(), "{error}");
                store.quarantine(stored.group, stored.replica, &error.to_string()).await.unwrap();
                found.push(Err(error.to_string()));
            }
        }
    }
    store.shutdown().await;
    found
}

#[tokio::test]
async fn whatever_is_done_to_a_file_the_log_is_whole_or_said_to_be_damaged() {
    let template = tempfile::tempdir().unwrap();
    let expected = written(template.path()).await;
    for (content, expected) in found(template.path()).await.iter().zip(&expected) {
        assert_eq!(content.as_ref(), Ok(expected), "without any harm");
    }
    let mut random = StdRng::seed_from_u64(SEED);
    let (mut bitten, mut kinds) = (0, std::collections::BTreeMap::<String, usize>::new());
    for file in files(template.path()) {
        let name = file.strip_prefix(template.path()).unwrap();
        let kind = name.extension().map_or_else(|| name.display().to_string(), |end| end.display().to_string());
        let harms = [(Harm::Flip, 8), (Harm::Sector, 4), (Harm::Cut, 4), (Harm::Empty, 1), (Harm::Delete, 1)];
        for (how, times) in harms {
            for _ in 0..times {
                let dir = tempfile::tempdir().unwrap();
                copy(template.path(), dir.path());
                let what = harm(&dir.path().join(name), how, &mut random);
                let groups = found(dir.path()).await;
                for (content, expected) in groups.iter().zip(&expected) {
                    match content {
                        Ok(content) => assert_eq!(content, expected, "{what}"),
                        Err(_) => *kinds.entry(kind.clone()).or_default() += 1,
                    }
                }
                bitten += usize::from(groups.iter().any(Result::is_err));
                // What was quarantined stays so.
                let again = found(dir.path()).await;
                for (first, second) in groups.iter().zip(&again) {
                    assert!(first.is_ok() || second.is_err(), "{what}: back after a restart");
                }
            }
        }
    }
    println!("damage was found {bitten} times: {kinds:?}");
    assert!(bitten > 20, "only {bitten} of the harms were found: {kinds:?}");
}

/// What a power cut leaves of the last writes: the file ends anywhere behind what was synced, or holds rubbish there.
#[tokio::test]
async fn rubbish_behind_what_was_synced_is_not_damage() {
    let template = tempfile::tempdir().unwrap();
    let expected = written(template.path()).await;
    let wal =
        files(&template.path().join("log")).into_iter().rfind(|path| path.extension().is_some_and(|end| end == "log"));
    let wal = wal.unwrap();
    let name = wal.strip_prefix(template.path()).unwrap();
    let whole = std::fs::read(&wal).unwrap();
    let mut random = StdRng::seed_from_u64(SEED);
    for round in 0..24 {
        let dir = tempfile::tempdir().unwrap();
        copy(template.path(), dir.path());
        let mut bytes = whole.clone();
        let more = random.random_range(1..70_000);
        let end = bytes.len();
        match round % 3 {
            // Blocks that were allocated and not written.
            0 => bytes.resize(end + more, 0),
            1 => {
                bytes.resize(end + more, 0);
                random.fill(&mut bytes[end..]);
            }
            // Whole writes, once more and out of order.
            _ => bytes.extend_from_within(random.random_range(0..end / 2)..),
        }
        std::fs::write(dir.path().join(name), &bytes).unwrap();
        let groups = found(dir.path()).await;
        for (content, expected) in groups.iter().zip(&expected) {
            assert_eq!(content.as_ref(), Ok(expected), "round {round}: {more} bytes more");
        }
    }
}

#[tokio::test]
async fn a_database_that_took_no_more_writes_is_moved_aside_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let expected = written(dir.path()).await;
    std::fs::write(dir.path().join("log/DAMAGED"), "a compaction met a bad block").unwrap();
    let groups = found(dir.path()).await;
    assert_eq!(groups.len(), expected.len());
    assert!(groups.iter().all(Result::is_err), "{groups:?}");
    assert!(dir.path().join("damaged-log-1").is_dir());
}
