//! openraft's own test of a storage, on the real log database and on the one in memory.

use std::io;
use std::sync::{Arc, Mutex};

use futures::{Stream, TryStreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, StorageError};
use quorate_raft::Reply;
use quorate_raft::log::{GroupLog, LogStore};
use quorate_raft::types::{LogId, Member, StoredMembership, TC};

use crate::support::{Disk, GROUP, REPLICA, task_store};

type SnapshotMeta = openraft::SnapshotMeta<quorate_raft::types::LeaderId, u64, Member>;
type Snapshot = openraft::Snapshot<quorate_raft::types::LeaderId, u64, Member, Applied>;

/// The least state machine that the suite accepts: it knows how far it is.
#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct Applied {
    at: Option<LogId>,
    membership: StoredMembership,
}

#[derive(Clone, Default)]
struct Counter {
    applied: Applied,
    snapshot: Arc<Mutex<Option<Applied>>>,
}

fn meta(applied: &Applied) -> SnapshotMeta {
    SnapshotMeta { last_log_id: applied.at, last_membership: applied.membership.clone() }
}

impl RaftSnapshotBuilder<TC> for Counter {
    type SnapshotData = Applied;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        *self.snapshot.lock().unwrap() = Some(self.applied.clone());
        Ok(Snapshot { meta: meta(&self.applied), snapshot: self.applied.clone() })
    }
}

impl RaftStateMachine<TC> for Counter {
    type SnapshotData = Applied;
    type SnapshotBuilder = Counter;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied.at, self.applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TC>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.applied.at = Some(entry.log_id);
            if let Some(membership) = entry.get_membership() {
                self.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(Reply::none());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Counter {
        self.clone()
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: Applied) -> io::Result<()> {
        self.applied = snapshot.clone();
        *self.snapshot.lock().unwrap() = Some(snapshot);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshot = self.snapshot.lock().unwrap().clone();
        Ok(snapshot.map(|applied| Snapshot { meta: meta(&applied), snapshot: applied }))
    }
}

struct InMemory;

impl StoreBuilder<TC, GroupLog, Counter, LogStore> for InMemory {
    async fn build(&self) -> Result<(LogStore, GroupLog, Counter), StorageError<TC>> {
        let store = task_store(&Disk::new());
        let log = store.open_group(GROUP, REPLICA).await.unwrap();
        Ok((store, log, Counter::default()))
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_in_memory_passes_the_suite_of_openraft() {
    Suite::test_all(InMemory).await.unwrap();
}

#[cfg(feature = "rocksdb")]
mod durable {
    use quorate_raft::log::{FileFloor, LogConfig, WriterMode};
    use quorate_raft::rocks::RocksLog;
    use tempfile::TempDir;

    use super::*;

    /// With this many bytes in memory.
    struct OnDisk {
        tail_bytes: usize,
    }

    impl StoreBuilder<TC, GroupLog, Counter, (LogStore, TempDir)> for OnDisk {
        async fn build(&self) -> Result<((LogStore, TempDir), GroupLog, Counter), StorageError<TC>> {
            let dir = tempfile::tempdir().unwrap();
            let engine = Arc::new(RocksLog::open(&dir.path().join("log")).unwrap());
            let floor = Arc::new(FileFloor::open(&dir.path().join("floor")).unwrap());
            let config = LogConfig { tail_bytes: self.tail_bytes, ..LogConfig::default() };
            let store = LogStore::open(engine, floor, WriterMode::Thread, config).unwrap();
            let log = store.open_group(GROUP, REPLICA).await.unwrap();
            Ok(((store, dir), log, Counter::default()))
        }
    }

    #[tokio::test]
    async fn the_log_on_rocksdb_passes_the_suite_of_openraft() {
        Suite::test_all(OnDisk { tail_bytes: LogConfig::default().tail_bytes }).await.unwrap();
    }

    #[tokio::test]
    async fn it_passes_when_nearly_every_read_goes_to_the_disk() {
        Suite::test_all(OnDisk { tail_bytes: 0 }).await.unwrap();
    }
}
