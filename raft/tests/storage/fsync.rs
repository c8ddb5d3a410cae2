//! One fsync for all that waits, none missing, and no life after a failed one.

use std::io;
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_raft::memory::{CommitFault, MemoryFloor, MemoryLog};
use quorate_raft::{GroupId, LogChange, LogEngine, MarkKind};

use crate::support::{GROUP, REPLICA, append, append_durably, child, child_work, plain, thread_store};

/// A disk whose commits wait for a permit each.
struct Gated {
    disk: MemoryLog,
    permits: Mutex<mpsc::Receiver<()>>,
}

impl LogEngine for Gated {
    fn commit(&self, changes: &[LogChange]) -> io::Result<()> {
        self.permits.lock().recv().map_err(io::Error::other)?;
        self.disk.commit(changes)
    }
    fn read(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<(u64, Bytes)>> {
        self.disk.read(group, from, to, max_bytes)
    }
    fn last(&self, group: GroupId) -> io::Result<Option<(u64, Bytes)>> {
        self.disk.last(group)
    }
    fn mark(&self, group: GroupId, kind: MarkKind) -> io::Result<Option<Bytes>> {
        self.disk.mark(group, kind)
    }
    fn groups(&self) -> io::Result<Vec<GroupId>> {
        self.disk.groups()
    }
}

#[tokio::test]
async fn what_gathers_during_a_commit_shares_the_next_one() {
    const GROUPS: u32 = 9;
    const EACH: u64 = 200;
    let (permit, permits) = mpsc::channel();
    let disk = MemoryLog::new();
    let store = thread_store(Gated { disk: disk.clone(), permits: Mutex::new(permits) }, MemoryFloor::new());
    let mut logs = Vec::new();
    for group in 0..GROUPS {
        permit.send(()).unwrap();
        logs.push(store.open_group(GroupId(group), REPLICA).await.unwrap());
    }
    let before = store.metrics().commits();
    let mut waiting = Vec::new();
    for at in 0..EACH {
        for log in &mut logs {
            waiting.push(append(log, [plain(at)]).await);
        }
    }
    assert_eq!(waiting.len(), 1800);
    // The first commit has taken what there was when the writer woke; all the rest is in the second.
    permit.send(()).unwrap();
    permit.send(()).unwrap();
    for wait in waiting {
        wait.await.unwrap().unwrap();
    }
    let commits = store.metrics().commits() - before;
    assert!((1..=2).contains(&commits), "{commits} commits");
    assert_eq!(store.metrics().records(), 1800);
    permit.send(()).unwrap();
    store.shutdown().await;
}

#[tokio::test]
async fn child_whose_disk_fails() {
    if child_work().is_none() {
        return;
    }
    let disk = MemoryLog::new();
    // Commit 0 makes the replica the owner.
    disk.set_hook(|number, _| if number == 3 { CommitFault::Error } else { CommitFault::None });
    let store = thread_store(disk, MemoryFloor::new());
    let mut log = store.open_group(GROUP, REPLICA).await.unwrap();
    for at in 0..10 {
        append_durably(&mut log, [plain(at)]).await;
        println!("\nacknowledged {at}");
    }
}

fn acknowledged(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| line.strip_prefix("acknowledged ").map(str::to_owned)).collect()
}

fn assert_aborted(output: &Output) {
    use std::os::unix::process::ExitStatusExt;
    const SIGABRT: i32 = 6;
    let errors = String::from_utf8_lossy(&output.stderr);
    // strace passes the signal of its child on, or reports it as 128 and the signal.
    let aborted = output.status.signal() == Some(SIGABRT) || output.status.code() == Some(128 + SIGABRT);
    assert!(aborted, "ended with {}: {errors}", output.status);
    assert!(errors.contains("a commit of the Raft log failed"), "{errors}");
}

#[test]
fn a_failed_commit_ends_the_process_before_anything_is_acknowledged() {
    let output = child("fsync::child_whose_disk_fails", Path::new("unused")).output().unwrap();
    assert_aborted(&output);
    assert_eq!(acknowledged(&output), ["0", "1"]);
}

/// The engine is shared with a writer thread, which must see one behind an `Arc`.
#[test]
fn an_engine_can_be_shared() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&(Arc::new(MemoryLog::new()) as Arc<dyn LogEngine>));
}

#[cfg(feature = "rocksdb")]
mod system_calls {
    use std::fs;

    use super::*;
    use crate::support::{NO_STRACE, durable_store, traced_child};

    const ROUNDS: &str = "rounds";
    const COMMITS: &str = "commits";
    const FLOORS: &str = "floors";
    const IN_FLIGHT: usize = 8;

    /// Appends in rounds, as many as the file `rounds` says, and writes how many commits that took.
    #[tokio::test]
    async fn child_that_is_counted() {
        let Some(work) = child_work() else { return };
        let work = Path::new(&work);
        let rounds: u64 = fs::read_to_string(work.join(ROUNDS)).unwrap().parse().unwrap();
        let store = durable_store(work);
        let mut log = store.open_group(GROUP, REPLICA).await.unwrap();
        let mut next = 0;
        for _ in 0..rounds {
            let mut waiting = Vec::new();
            for _ in 0..IN_FLIGHT {
                waiting.push(append(&mut log, [plain(next)]).await);
                next += 1;
            }
            for wait in waiting {
                wait.await.unwrap().unwrap();
            }
            println!("\nacknowledged {next}");
        }
        fs::write(work.join(COMMITS), store.metrics().commits().to_string()).unwrap();
        fs::write(work.join(FLOORS), store.metrics().floor_writes().to_string()).unwrap();
        store.shutdown().await;
    }

    /// fsync and fdatasync calls, commits, and writes of the floor, of a child that appends so many rounds.
    fn count(rounds: u64) -> (u64, u64, u64) {
        let dir = tempfile::tempdir().unwrap();
        let summary = dir.path().join("calls");
        fs::write(dir.path().join(ROUNDS), rounds.to_string()).unwrap();
        let options = ["-c", "-e", "trace=fsync,fdatasync", "-o", summary.to_str().unwrap()];
        let test = "fsync::system_calls::child_that_is_counted";
        let output = traced_child(test, dir.path(), &options).output().expect(NO_STRACE);
        assert!(output.status.success(), "{NO_STRACE}: {}", String::from_utf8_lossy(&output.stderr));
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap().parse().unwrap();
        (calls(&fs::read_to_string(summary).expect(NO_STRACE)), read(COMMITS), read(FLOORS))
    }

    /// Adds up the column of calls in a summary of strace.
    fn calls(summary: &str) -> u64 {
        let rows = summary.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let counted = rows.filter(|row| matches!(row.last(), Some(&("fsync" | "fdatasync"))));
        counted.map(|row| row[3].parse::<u64>().unwrap()).sum()
    }

    #[test]
    fn every_batch_is_one_fsync_of_the_log_and_one_of_the_floor() {
        let (idle_calls, idle_commits, idle_floors) = count(0);
        assert!(idle_calls > 0, "strace saw no fsync at all. {NO_STRACE}");
        let (calls, commits, floors) = count(200);
        assert_eq!(floors - idle_floors, commits - idle_commits, "writes of the floor and batches differ");
        assert_eq!(calls - idle_calls, 2 * (commits - idle_commits), "fsyncs and batches differ");
        assert!(commits - idle_commits >= 200, "each round waits for its own batch");
        assert!(commits - idle_commits <= 200 * IN_FLIGHT as u64 / 2, "appends in flight share batches");
    }

    #[test]
    fn a_failed_fsync_of_the_real_database_ends_the_process() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(ROUNDS), "200").unwrap();
        let trace = dir.path().join("calls");
        let options =
            ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=40+", "-o", trace.to_str().unwrap()];
        let test = "fsync::system_calls::child_that_is_counted";
        let output = traced_child(test, dir.path(), &options).output().expect(NO_STRACE);
        assert_aborted(&output);
        let acknowledged = acknowledged(&output).len();
        assert!((1..40).contains(&acknowledged), "{acknowledged} rounds were acknowledged. {NO_STRACE}");
    }
}
