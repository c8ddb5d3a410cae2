//! A node dies at any point of a write, and its log is opened again.
//!
//! In memory every commit of a workload is cut in every way, and what is found must be what the log was after some number of
//! its operations, at least all that were acknowledged; nor may any cut look like damage. The same for every write of the floor.
//! On RocksDB a process is killed while it writes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use quorate_raft::log::{GroupLog, TaskHooks};
use quorate_raft::memory::{CommitFault, FloorFault};
use quorate_raft::types::{Entry, LeaderId, LogId, TC, Vote, log_id};
use quorate_raft::{LogChange, LogEngine};
use tokio::sync::oneshot;

use crate::support::{Disk, GROUP, REPLICA, append_durably, entry, read_all, task_store};

#[derive(Clone, Debug)]
enum Step {
    Vote(u64),
    /// (term, first position, count)
    Append(u64, u64, u64),
    Truncate(LogId),
    Purge(LogId),
    Committed(LogId),
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: REPLICA }, committed: true }
}

fn entries(term: u64, first: u64, count: u64) -> Vec<Entry> {
    (first..first + count).map(|at| entry(term, at, format!("{at} in term {term}").repeat(3).as_bytes())).collect()
}

fn workload() -> Vec<Step> {
    let at = |term, position| log_id(term, REPLICA, position);
    vec![
        Step::Vote(1),
        Step::Append(1, 0, 3),
        Step::Committed(at(1, 1)),
        Step::Append(1, 3, 1),
        Step::Append(1, 4, 4),
        Step::Vote(2),
        Step::Truncate(at(1, 4)),
        Step::Append(2, 5, 2),
        Step::Committed(at(2, 5)),
        Step::Purge(at(1, 3)),
        Step::Append(2, 7, 3),
        Step::Purge(at(2, 20)),
        Step::Append(2, 21, 3),
        Step::Vote(3),
        Step::Truncate(at(2, 20)),
        Step::Append(3, 21, 2),
    ]
}

impl Content {
    fn after(&self, step: &Step) -> Content {
        let mut next = self.clone();
        match step {
            Step::Vote(term) => next.vote = Some(vote(*term)),
            Step::Append(term, first, count) => {
                next.entries
                    .extend(entries(*term, *first, *count).into_iter().map(|entry| (entry.log_id.index, entry)));
            }
            Step::Truncate(last) => next.entries.retain(|at, _| *at <= last.index),
            Step::Purge(upto) => {
                next.entries.retain(|at, _| *at > upto.index);
                next.purged = Some(*upto);
            }
            Step::Committed(_) => {}
        }
        next
    }

    async fn of(log: &mut GroupLog) -> Content {
        let purged = log.get_log_state().await.unwrap().last_purged_log_id;
        let entries = read_all(log).await.into_iter().map(|entry| (entry.log_id.index, entry)).collect();
        Content { vote: log.reader().read_vote().await.unwrap(), purged, entries }
    }
}

/// Does one step. Returns what tells that it is durable, for the steps that tell.
async fn submit(log: &mut GroupLog, step: &Step) -> io::Result<Option<oneshot::Receiver<io::Result<()>>>> {
    match step {
        Step::Vote(term) => log.save_vote(&vote(*term)).await?,
        Step::Append(term, first, count) => {
            let (told, wait) = TC::oneshot();
            log.append(entries(*term, *first, *count), IOFlushed::<TC>::signal(told)).await?;
            return Ok(Some(wait));
        }
        Step::Truncate(last) => log.truncate_after(Some(*last)).await?,
        Step::Purge(upto) => log.purge(*upto).await?,
        Step::Committed(at) => log.save_committed(Some(*at)).await?,
    }
    Ok(None)
}

/// Runs the workload until the disk dies. Returns how many steps are known to be durable.
async fn run(log: &mut GroupLog, steps: &[Step], wait_for_each: bool) -> usize {
    let mut durable = 0;
    let mut waiting = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        match submit(log, step).await {
            Ok(Some(wait)) => waiting.push((at, wait)),
            Ok(None) if matches!(step, Step::Vote(_)) => durable = at + 1,
            Ok(None) => {}
            Err(_) => break,
        }
        if wait_for_each {
            for (at, wait) in waiting.drain(..) {
                if matches!(wait.await, Ok(Ok(()))) {
                    durable = durable.max(at + 1);
                }
            }
        }
    }
    for (at, wait) in waiting {
        if matches!(wait.await, Ok(Ok(()))) {
            durable = durable.max(at + 1);
        }
    }
    durable
}

fn hooks() -> TaskHooks {
    TaskHooks { latency: Arc::new(|| Duration::from_millis(2)), failed: Arc::new(|_| {}), ..TaskHooks::instant() }
}

/// What goes wrong, and in which write.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Log(CommitFault),
    Floor(FloorFault),
}

/// Makes the disk treat its write number `fatal` as `cut` says. Returns what tells whether that happened.
fn arm(disk: &Disk, fatal: u64, cut: Cut) -> Arc<AtomicBool> {
    let bitten = Arc::new(AtomicBool::new(false));
    let bite = bitten.clone();
    match cut {
        Cut::Log(fault) => disk.log.set_hook(move |number, changes| {
            if number != fatal {
                return CommitFault::None;
            }
            bite.store(true, Ordering::Relaxed);
            // A batch is atomic; only the records at the end of the log can be torn.
            let only_records = changes.iter().all(|change| matches!(change, LogChange::Append { .. }));
            if matches!(fault, CommitFault::Torn { .. }) && !only_records { CommitFault::CrashBefore } else { fault }
        }),
        Cut::Floor(fault) => disk.floor.set_hook(move |number| {
            bite.fetch_or(number == fatal, Ordering::Relaxed);
            if number == fatal { fault } else { FloorFault::None }
        }),
    }
    bitten
}

/// Runs the workload on a disk that treats its write number `fatal` as `cut` says, opens what is left, and compares.
/// False if the workload ended before that write.
async fn crash_at(fatal: u64, cut: Cut, wait_for_each: bool) -> bool {
    let disk = Disk::new();
    // The first two writes of the floor make it, before there is anything that could be lost.
    task_store(&disk).shutdown().await;
    let bitten = arm(&disk, fatal, cut);
    let store = disk.store(hooks());
    let steps = workload();
    let durable = match store.open_group(GROUP, REPLICA).await {
        Ok(mut log) => run(&mut log, &steps, wait_for_each).await,
        Err(_) => 0,
    };
    drop(store);
    let disk = disk.crash();
    let about = format!("write {fatal}, {cut:?}, waiting for each: {wait_for_each}, durable steps: {durable}");

    let store = task_store(&disk);
    let mut log = store.open_group(GROUP, REPLICA).await.unwrap_or_else(|error| panic!("{about}: {error}"));
    let found = Content::of(&mut log).await;
    assert!(is_reachable(&found, &steps, durable), "{about}: found {found:#?}");

    // The log goes on from there, and its chain still holds when it is opened once more.
    let next = log.get_log_state().await.unwrap().last_log_id.map_or(0, |last| last.index + 1);
    append_durably(&mut log, entries(9, next, 2)).await;
    let written = Content::of(&mut log).await;
    drop((log, store));
    let mut log = task_store(&disk.crash()).open_group(GROUP, REPLICA).await.unwrap();
    assert_eq!(Content::of(&mut log).await, written, "{about}");
    bitten.load(Ordering::Relaxed)
}

/// True if the content is that after some number of steps, at least `durable`, or in the middle of an append.
fn is_reachable(found: &Content, steps: &[Step], durable: usize) -> bool {
    let mut content = Content::default();
    for (at, step) in steps.iter().enumerate() {
        if at >= durable && *found == content {
            return true;
        }
        if at >= durable
            && let Step::Append(term, first, count) = step
        {
            for part in 1..*count {
                if *found == content.after(&Step::Append(*term, *first, part)) {
                    return true;
                }
            }
        }
        content = content.after(step);
    }
    *found == content
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_commit_loses_nothing_that_was_acknowledged() {
    let mut faults = vec![CommitFault::CrashBefore, CommitFault::CrashAfter, CommitFault::Error];
    for changes in 0..4 {
        faults.extend([0, 1, 29, 30, 31, 50].map(|bytes| CommitFault::Torn { changes, bytes }));
    }
    cut_everywhere(0, &faults.into_iter().map(Cut::Log).collect::<Vec<_>>()).await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_write_of_the_floor_loses_nothing_and_does_not_look_like_damage() {
    let mut faults = vec![FloorFault::CrashBefore, FloorFault::CrashAfter, FloorFault::Error];
    faults.extend([0, 1, 8, 23, 24, 40, 70].map(FloorFault::Torn));
    cut_everywhere(2, &faults.into_iter().map(Cut::Floor).collect::<Vec<_>>()).await;
}

/// Cuts every write of the workload from number `first` on, in every way.
async fn cut_everywhere(first: u64, cuts: &[Cut]) {
    for wait_for_each in [true, false] {
        for cut in cuts {
            let mut writes = first;
            while crash_at(writes, *cut, wait_for_each).await {
                writes += 1;
            }
            let least = if wait_for_each { 10 } else { 4 };
            assert!(writes - first >= least, "only {} writes were cut", writes - first);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_written_at_shutdown_and_nothing_after_it() {
    let disk = Disk::new();
    let store = disk.store(hooks());
    let mut log = store.open_group(GROUP, REPLICA).await.unwrap();
    let (told, wait) = TC::oneshot();
    log.append(entries(1, 0, 3), IOFlushed::<TC>::signal(told)).await.unwrap();
    log.save_committed(Some(log_id(1, REPLICA, 2))).await.unwrap();
    store.shutdown().await;
    wait.await.unwrap().unwrap();
    log.save_vote(&vote(5)).await.expect_err("the writer has ended");
    drop((log, store));
    let mut log = task_store(&disk).open_group(GROUP, REPLICA).await.unwrap();
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, REPLICA, 2)));
    assert_eq!(read_all(&log).await.len(), 3);
}

#[test]
fn the_image_of_a_disk_is_what_a_crash_would_leave() {
    let disk = quorate_raft::memory::MemoryLog::new();
    let record = bytes::Bytes::from_static(b"x");
    disk.commit(&[LogChange::Append { group: GROUP, position: 0, record }]).unwrap();
    assert_eq!(disk.image().last(GROUP).unwrap(), disk.last(GROUP).unwrap());
}

#[cfg(feature = "rocksdb")]
mod killed {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Write};
    use std::path::Path;
    use std::process::Stdio;

    use super::*;
    use crate::support::{append, child, child_work, durable_store, payload};
    use quorate_raft::GroupId;

    const GROUPS: u32 = 4;
    const ROUNDS: usize = 4;
    /// Lines of acknowledgement after which a child is killed.
    const ACKNOWLEDGED: usize = 300;

    fn own_payload(group: u32, position: u64) -> Vec<u8> {
        format!("{group}/{position};").repeat(40).into_bytes()
    }

    /// Appends to all groups for ever and says what was acknowledged.
    async fn write_for_ever(dir: &Path) {
        let store = durable_store(dir);
        let mut logs = Vec::new();
        for group in 0..GROUPS {
            let mut log = store.open_group(GroupId(group), REPLICA).await.unwrap();
            let next = log.get_log_state().await.unwrap().last_log_id.map_or(0, |last| last.index + 1);
            logs.push((group, next, log));
        }
        loop {
            let mut waiting = Vec::new();
            for (group, next, log) in &mut logs {
                let count = 1 + *next % 3;
                let batch: Vec<_> = (*next..*next + count).map(|at| entry(1, at, &own_payload(*group, at))).collect();
                *next += count;
                waiting.push((*group, *next - 1, append(log, batch).await));
            }
            for (group, last, wait) in waiting {
                wait.await.unwrap().unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "\nacknowledged {group} {last}").unwrap();
                out.flush().unwrap();
            }
        }
    }

    #[tokio::test]
    async fn child_that_writes() {
        if let Some(work) = child_work() {
            write_for_ever(Path::new(&work)).await;
        }
    }

    /// Lets a child write, kills it, and returns the last acknowledged position of each group.
    fn kill_a_writer(dir: &Path) -> BTreeMap<u32, u64> {
        let mut command = child("crash::killed::child_that_writes", dir);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut acknowledged = BTreeMap::new();
        let mut lines = 0;
        for line in BufReader::new(process.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let mut words = line.split(' ');
            if words.next() != Some("acknowledged") {
                continue;
            }
            // The last line may be cut by the kill.
            if let (Some(Ok(group)), Some(Ok(last))) = (words.next().map(str::parse), words.next().map(str::parse)) {
                acknowledged.insert(group, last);
            }
            lines += 1;
            if lines == ACKNOWLEDGED {
                process.kill().unwrap();
            }
        }
        assert!(!process.wait().unwrap().success());
        assert!(lines >= ACKNOWLEDGED, "the child ended by itself after {lines} lines");
        acknowledged
    }

    #[tokio::test]
    async fn a_killed_process_has_lost_nothing_that_it_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..ROUNDS {
            let acknowledged = kill_a_writer(dir.path());
            assert_eq!(acknowledged.len(), GROUPS as usize);
            let store = durable_store(dir.path());
            for (group, last) in acknowledged {
                let log = store.open_group(GroupId(group), REPLICA).await.unwrap();
                let found = read_all(&log).await;
                assert!(found.len() as u64 > last, "group {group} acknowledged {last} and holds {}", found.len());
                for (position, entry) in found.iter().enumerate() {
                    assert_eq!(entry.log_id.index, position as u64);
                    assert_eq!(payload(entry), own_payload(group, position as u64));
                }
            }
            store.shutdown().await;
        }
    }
}
