//! The Raft logs of all groups of a node, in one database with one writer.
//!
//! A [`LogStore`] owns the writer; [`LogStore::open_group`] checks one group's log and gives the [`GroupLog`] that openraft
//! writes to. What a group wrote last is served from memory, from the moment in which `append` returns and before it is
//! durable; replication reads the database only for a peer that is far behind.
//!
//! What openraft awaits, and what it need not:
//! - `save_vote` waits for its fsync: a vote that is forgotten could be given twice in a term.
//! - `append` returns at once and its callback follows the fsync.
//! - `truncate_after` and `purge` return at once. Their place in the queue puts them on disk before whatever is written
//!   after them. If the node dies first, the entries are still there: the truncated ones were never acknowledged after the
//!   truncation, and the purged ones are in a snapshot that is durable already.
//! - `save_committed` returns at once and does not even cause a write; the mark rides with the next batch. A lost mark makes
//!   a restarted group apply fewer entries before it hears of its leader, nothing else.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::engine::{LogChange, LogEngine, MarkKind};
use crate::ids::{GroupId, ReplicaId};
use crate::proto;

mod check;
mod group;
pub(crate) mod mark;
mod metrics;
pub(crate) mod record;
mod state;
mod writer;

pub use group::{GroupLog, GroupLogReader};
pub use metrics::LogMetrics;
pub use record::RecordError;
pub use writer::{TaskHooks, WriterMode};

use state::GroupState;
use writer::Writer;

/// What can be set about the logs of a node.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Bytes of durable entries that each group keeps in memory for replication.
    pub tail_bytes: usize,
    /// About how many bytes one read for replication returns at most.
    pub read_bytes: usize,
}

impl Default for LogConfig {
    /// 4 MiB in memory for each group, 1 MiB for each read.
    fn default() -> Self {
        LogConfig { tail_bytes: 4 << 20, read_bytes: 1 << 20 }
    }
}

/// Why a log cannot be opened or used. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database failed.
    #[error("the log database failed: {0}. Check the disk and the permissions of the data directory")]
    Io(#[from] io::Error),
    /// A part of a log does not read.
    #[error(
        "the log of group {group} cannot be read from position {position} on: {source}. Do not start this replica: \
         its peers hold the entries; remove it and let the cluster place a new one"
    )]
    Unreadable {
        /// The group.
        group: GroupId,
        /// The first position that could not be read.
        position: u64,
        /// What the database said.
        source: io::Error,
    },
    /// A record is damaged and a whole one follows it, so it was durable once and no crash explains it.
    #[error(
        "the log of group {group} is damaged at position {position}: {reason}; position {valid} after it is whole, so this is \
         no torn write. Do not start this replica: its peers hold the entries; remove it and let the cluster place a new one"
    )]
    Damaged {
        /// The group.
        group: GroupId,
        /// The damaged position.
        position: u64,
        /// A later position with a whole record.
        valid: u64,
        /// What is wrong.
        reason: RecordError,
    },
    /// The log ends before an entry that this replica knew to be committed.
    #[error(
        "the log of group {group} ends at position {last:?} but position {committed} was committed: entries that were durable \
         are gone. Do not start this replica: its peers hold the entries; remove it and let the cluster place a new one"
    )]
    Shortened {
        /// The group.
        group: GroupId,
        /// The committed position.
        committed: u64,
        /// The last position that is left.
        last: Option<u64>,
    },
    /// A mark does not read back.
    #[error(
        "the {kind:?} mark of group {group} is damaged: {detail}. Do not start this replica: remove it and let the cluster \
         place a new one"
    )]
    Mark {
        /// The group.
        group: GroupId,
        /// Which mark.
        kind: MarkKind,
        /// What is wrong.
        detail: String,
    },
    /// The log belongs to another replica of the group.
    #[error(
        "the log of group {group} belongs to replica {stored}, not {asked}. A replica id is never given to another log: \
         destroy the old replica's log before a new one is started"
    )]
    OtherReplica {
        /// The group.
        group: GroupId,
        /// The owner.
        stored: ReplicaId,
        /// Who asked.
        asked: ReplicaId,
    },
    /// There is a log but no owner.
    #[error(
        "group {group} has a log without an owner: the database is incomplete. Do not start this replica: remove it and let \
         the cluster place a new one"
    )]
    NoOwner {
        /// The group.
        group: GroupId,
    },
    /// The group's log is open already.
    #[error("the log of group {group} is still open; stop the group first")]
    AlreadyOpen {
        /// The group.
        group: GroupId,
    },
}

/// The logs of all groups of a node. A clone is the same store.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<StoreShared>,
}

pub(crate) struct StoreShared {
    engine: Arc<dyn LogEngine>,
    writer: Writer,
    config: LogConfig,
    metrics: LogMetrics,
    /// The groups whose writing side is alive.
    open: Mutex<BTreeMap<GroupId, Weak<()>>>,
}

impl LogStore {
    /// Starts the writer over a database. In mode [`WriterMode::Task`] it must be called inside a tokio runtime.
    pub fn open(engine: Arc<dyn LogEngine>, mode: WriterMode, config: LogConfig) -> Result<LogStore, LogError> {
        let metrics = LogMetrics::new();
        let writer = Writer::start(engine.clone(), mode, metrics.clone())?;
        let shared = StoreShared { engine, writer, config, metrics, open: Mutex::default() };
        Ok(LogStore { shared: Arc::new(shared) })
    }

    /// The groups that have a log here, with the replica that owns each.
    pub fn stored(&self) -> Result<Vec<(GroupId, ReplicaId)>, LogError> {
        let engine = &*self.shared.engine;
        let mut stored = Vec::new();
        for group in engine.groups()? {
            let mark: Option<proto::ReplicaMark> = mark::read(engine, group, MarkKind::Replica)?;
            stored.push((group, mark.ok_or(LogError::NoOwner { group })?.replica));
        }
        Ok(stored)
    }

    /// Opens the log of a group for a replica, and makes the replica its owner if the log is new.
    ///
    /// Reads and checks every record above the purged position. Damaged records at the very end are what a crash in the
    /// middle of a write leaves: they were never acknowledged and are removed. Any other damage is an error.
    pub async fn open_group(&self, group: GroupId, replica: ReplicaId) -> Result<GroupLog, LogError> {
        let token = Arc::new(());
        {
            let mut open = self.shared.open.lock();
            if open.get(&group).is_some_and(|weak| weak.strong_count() > 0) {
                return Err(LogError::AlreadyOpen { group });
            }
            open.insert(group, Arc::downgrade(&token));
        }
        // What an earlier opening of this group left in the queue must be on disk before it is read.
        self.shared.writer.submit_and_wait([]).await?;
        self.claim(group, replica).await?;
        let checked = check::check(&*self.shared.engine, group)?;
        if let Some(from) = checked.torn_from {
            tracing::warn!(%group, from, "the end of the log was torn by a crash; removing it");
            self.shared.writer.submit_and_wait([LogChange::Truncate { group, from }]).await?;
        }
        let state = Arc::new(GroupState::new(group, checked.opened, self.shared.config.tail_bytes));
        Ok(GroupLog::new(self.shared.clone(), state, token))
    }

    /// Deletes everything of a group and waits until that is durable. The group's log must not be open.
    pub async fn destroy(&self, group: GroupId) -> Result<(), LogError> {
        if self.shared.open.lock().get(&group).is_some_and(|weak| weak.strong_count() > 0) {
            return Err(LogError::AlreadyOpen { group });
        }
        self.shared.writer.forget_committed(group);
        self.shared.writer.submit_and_wait([LogChange::Destroy { group }]).await?;
        Ok(())
    }

    /// Writes what still waits and ends the writer. Every later write is refused.
    pub async fn shutdown(&self) {
        self.shared.writer.close().await;
    }

    /// What the writer counts.
    pub fn metrics(&self) -> &LogMetrics {
        &self.shared.metrics
    }

    /// Refuses a log of another replica; makes `replica` the owner of a new one.
    async fn claim(&self, group: GroupId, replica: ReplicaId) -> Result<(), LogError> {
        let engine = &*self.shared.engine;
        let owner: Option<proto::ReplicaMark> = mark::read(engine, group, MarkKind::Replica)?;
        match owner {
            Some(owner) if owner.replica == replica => Ok(()),
            Some(owner) => Err(LogError::OtherReplica { group, stored: owner.replica, asked: replica }),
            None if engine.groups()?.contains(&group) => Err(LogError::NoOwner { group }),
            None => {
                let value = mark::encode(&proto::ReplicaMark { replica });
                let mark = LogChange::Mark { group, kind: MarkKind::Replica, value };
                Ok(self.shared.writer.submit_and_wait([mark]).await?)
            }
        }
    }
}
