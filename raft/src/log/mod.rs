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
//! - Votes, appends and truncations also move the [`floor`](floor), which says at the next start what must be there.
//! - `save_committed` returns at once and does not even cause a write; the mark rides with the next batch. A lost mark makes
//!   a restarted group apply fewer entries before it hears of its leader, nothing else.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::blocking::Blocking;
use crate::engine::{FloorFile, LogChange, LogEngine, MarkKind};
use crate::health::is_damage;
use crate::ids::{GroupId, ReplicaId};
use crate::observe::Observer;
use crate::proto;
use crate::types::Vote;

mod census;
mod check;
mod floor;
mod floor_file;
mod group;
pub(crate) mod mark;
mod metrics;
pub(crate) mod record;
pub(crate) mod scrub;
mod state;
mod writer;

pub(crate) use floor::reads_back;
pub use floor_file::FileFloor;
pub use group::{GroupLog, GroupLogReader};
pub use metrics::LogMetrics;
pub use record::RecordError;
pub use writer::{TaskHooks, WriterMode};

use check::Checked;
use floor::{Floor, FloorChange, FloorEntry, Standing, Synced};
use state::GroupState;
use writer::Writer;

/// The last position that a floor promises of a group's log.
pub(crate) fn promised(file: Arc<dyn FloorFile>, group: GroupId) -> io::Result<Option<u64>> {
    let (floor, _) = Floor::open(file)?;
    Ok(floor.entry(group).and_then(|entry| entry.last).map(|synced| synced.position))
}

/// What can be set about the logs of a node.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Bytes of durable entries that each group keeps in memory for replication.
    pub tail_bytes: usize,
    /// About how many bytes one read for replication returns at most.
    pub read_bytes: usize,
    /// The node was used before, so there must be something: a floor or a log.
    pub used_before: bool,
    /// Who may end the node between the steps of a batch.
    pub observer: Option<Observer>,
}

impl Default for LogConfig {
    /// 4 MiB in memory for each group, 1 MiB for each read, a node that may be new.
    fn default() -> Self {
        LogConfig { tail_bytes: 4 << 20, read_bytes: 1 << 20, used_before: false, observer: None }
    }
}

/// A replica that has something stored here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReplica {
    /// The group.
    pub group: GroupId,
    /// The replica whose log it is. 0 where nothing is left that says so: then it is quarantined, and must be taken for
    /// whichever replica of the group this node has held.
    pub replica: ReplicaId,
    /// What was found to be damaged, if anything was. The replica must not be started, and its id never be used again.
    pub quarantined: Option<String>,
}

/// Why a log cannot be opened or used. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database failed.
    #[error("the log database failed: {0}. Check the disk and the permissions of the data directory")]
    Io(#[from] io::Error),
    /// A part of a log does not read.
    #[error("the log of group {group} cannot be read from position {position} on: {source}")]
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
         no torn write"
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
    /// A record is damaged that was known to be durable.
    #[error(
        "the log of group {group} is damaged at position {position}: {reason}; it was durable up to position {floor}, so \
         this is no torn write"
    )]
    DamagedBelowFloor {
        /// The group.
        group: GroupId,
        /// The damaged position.
        position: u64,
        /// The last position that was durable.
        floor: u64,
        /// What is wrong.
        reason: RecordError,
    },
    /// The log ends before an entry that was known to be durable.
    #[error(
        "the log of group {group} ends at position {last:?} but was durable up to position {floor}: acknowledged entries \
         are gone"
    )]
    BelowFloor {
        /// The group.
        group: GroupId,
        /// The last position that was durable.
        floor: u64,
        /// The last position that is left.
        last: Option<u64>,
    },
    /// The log is whole but not the one that was written.
    #[error(
        "the log of group {group} has another record at position {position} than the one that was written there last"
    )]
    OtherHistory {
        /// The group.
        group: GroupId,
        /// The position.
        position: u64,
    },
    /// The vote is older than one that was given.
    #[error("the vote of group {group} is {found:?} but {floor} was given: a vote is gone, and could be given twice")]
    VoteBelowFloor {
        /// The group.
        group: GroupId,
        /// The vote that was given.
        floor: Vote,
        /// The vote that is left.
        found: Option<Vote>,
    },
    /// The log is purged to a position before one that it was purged to.
    #[error(
        "the log of group {group} is purged up to position {found:?} but was purged up to {floor}: it is an old copy"
    )]
    PurgedBelowFloor {
        /// The group.
        group: GroupId,
        /// Up to where it was purged.
        floor: u64,
        /// Up to where it is purged.
        found: Option<u64>,
    },
    /// The log ends before an entry that this replica knew to be committed.
    #[error(
        "the log of group {group} ends at position {last:?} but position {committed} was committed: entries that were durable \
         are gone"
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
    #[error("the {kind:?} mark of group {group} is damaged: {detail}")]
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
    /// The database says that the log is another replica's than the one that it was given to.
    #[error("the log of group {group} was given to replica {floor} but the database names {found:?} as its owner")]
    WrongOwner {
        /// The group.
        group: GroupId,
        /// To whom it was given.
        floor: ReplicaId,
        /// Whom the database names.
        found: Option<ReplicaId>,
    },
    /// The replica was found to be damaged before.
    #[error("replica {replica} of group {group} is quarantined: {reason}")]
    Quarantined {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
        /// What was found.
        reason: String,
    },
    /// The log is being deleted.
    #[error(
        "the log of group {group} is being deleted and that was cut off: delete the group again, or restart the node"
    )]
    Doomed {
        /// The group.
        group: GroupId,
    },
    /// There is no such log.
    #[error("group {group} has no log here")]
    NotStored {
        /// The group.
        group: GroupId,
    },
    /// The node was used before, and neither floor nor log have anything left.
    #[error("the Raft logs of this node and the floor are gone")]
    Lost,
    /// The floor holds no more groups.
    #[error(
        "this node has as many groups as it can hold ({limit}); remove some, or place group {group} on another node"
    )]
    TooMany {
        /// The group that was one too many.
        group: GroupId,
        /// How many there may be.
        limit: usize,
    },
    /// The group's log is open already.
    #[error("the log of group {group} is still open; stop the group first")]
    AlreadyOpen {
        /// The group.
        group: GroupId,
    },
}

impl LogError {
    /// Whether what is on the disk is not what was written, so that the replica must be replaced. Everything else may pass
    /// or be mended.
    pub fn is_damage(&self) -> bool {
        match self {
            LogError::Io(source) | LogError::Unreadable { source, .. } => is_damage(source),
            LogError::Damaged { .. }
            | LogError::DamagedBelowFloor { .. }
            | LogError::BelowFloor { .. }
            | LogError::OtherHistory { .. }
            | LogError::VoteBelowFloor { .. }
            | LogError::PurgedBelowFloor { .. }
            | LogError::Shortened { .. }
            | LogError::Mark { .. }
            | LogError::WrongOwner { .. }
            | LogError::Quarantined { .. } => true,
            LogError::OtherReplica { .. }
            | LogError::Doomed { .. }
            | LogError::NotStored { .. }
            | LogError::Lost
            | LogError::TooMany { .. }
            | LogError::AlreadyOpen { .. } => false,
        }
    }
}

/// The logs of all groups of a node. A clone is the same store.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<StoreShared>,
}

pub(crate) struct StoreShared {
    engine: Arc<dyn LogEngine>,
    floor: Arc<Mutex<Floor>>,
    writer: Writer,
    config: LogConfig,
    metrics: LogMetrics,
    blocking: Blocking,
    /// The groups whose writing side is alive.
    open: Mutex<BTreeMap<GroupId, Weak<()>>>,
}

impl LogStore {
    /// Compares the database with the floor, quarantines every replica whose log is gone or that the floor does not know,
    /// and starts the writer. In mode [`WriterMode::Task`] it must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If either does not answer, and [`LogError::Lost`]. A database or a floor that is damaged is no error: then its
    /// replicas are quarantined.
    pub fn open(
        engine: Arc<dyn LogEngine>,
        floor: Arc<dyn FloorFile>,
        mode: WriterMode,
        config: LogConfig,
    ) -> Result<LogStore, LogError> {
        let metrics = LogMetrics::new();
        let floor = Arc::new(Mutex::new(census::take(&*engine, floor, config.used_before)?));
        let blocking = match &mode {
            WriterMode::Thread => Blocking::Pool,
            WriterMode::Task(_) => Blocking::InPlace,
        };
        let writer = Writer::start(engine.clone(), floor.clone(), mode, metrics.clone(), config.observer.clone())?;
        let shared = StoreShared { engine, floor, writer, config, metrics, blocking, open: Mutex::default() };
        Ok(LogStore { shared: Arc::new(shared) })
    }

    /// Whether a group has anything here.
    pub(crate) fn knows(&self, group: GroupId) -> bool {
        self.entry(group).is_some()
    }

    /// Waits until everything that was written so far is durable.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        self.shared.writer.submit_and_wait([], []).await
    }

    /// The replicas that have something here, quarantined ones too.
    pub fn stored(&self) -> Vec<StoredReplica> {
        let floor = self.shared.floor.lock();
        let stored = floor.entries().filter_map(|(group, entry)| {
            let quarantined = match &entry.standing {
                Standing::Sound => None,
                Standing::Quarantined(reason) => Some(reason.clone()),
                Standing::Doomed => return None,
            };
            Some(StoredReplica { group, replica: entry.replica, quarantined })
        });
        stored.collect()
    }

    /// Groups whose deletion was cut off.
    pub(crate) fn doomed(&self) -> Vec<GroupId> {
        let floor = self.shared.floor.lock();
        let doomed = floor.entries().filter(|(_, entry)| entry.standing == Standing::Doomed);
        doomed.map(|(group, _)| group).collect()
    }

    fn entry(&self, group: GroupId) -> Option<FloorEntry> {
        self.shared.floor.lock().entry(group).cloned()
    }

    /// Opens the log of a group for a replica, and makes the replica its owner if the log is new.
    ///
    /// Reads and checks every record above the purged position, against each other and against the floor. Damaged records
    /// at the very end, above the floor, are what a crash in the middle of a write leaves: they were never acknowledged and
    /// are removed. Any other damage is an error of which [`LogError::is_damage`] is true; the caller quarantines the
    /// replica then.
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
        self.shared.writer.submit_and_wait([], []).await?;
        self.claim(group, replica).await?;
        let entry = self.entry(group).ok_or(LogError::NotStored { group })?;
        let engine = self.shared.engine.clone();
        let floor = entry.clone();
        let checked = self.shared.blocking.run(move || Ok(check::check(&*engine, group, &floor))).await??;
        self.settle(group, &entry, &checked).await?;
        let state = Arc::new(GroupState::new(group, checked.opened, self.shared.config.tail_bytes));
        Ok(GroupLog::new(self.shared.clone(), state, token))
    }

    /// Removes a torn end, and raises the floor to what was found. From here on the group speaks of all of it to its peers,
    /// without writing any of it again.
    async fn settle(&self, group: GroupId, entry: &FloorEntry, checked: &Checked) -> Result<(), LogError> {
        if let Some(from) = checked.torn_from {
            tracing::warn!(%group, from, "the end of the log was torn by a crash; removing it");
            self.shared.writer.submit_and_wait([LogChange::Truncate { group, from }], []).await?;
        }
        let opened = &checked.opened;
        let mut raised = Vec::new();
        // Where all is purged there is no record to name, and the purged position says enough.
        let above = opened.last.filter(|last| opened.purged.is_none_or(|purged| purged.index < last.index));
        if let Some(last) = above {
            let last = Synced { position: last.index, crc: opened.head_crc };
            if entry.last != Some(last) {
                raised.push(FloorChange::Synced { group, last });
            }
        }
        if let Some(vote) = opened.vote.filter(|vote| entry.vote != Some(*vote)) {
            raised.push(FloorChange::Vote { group, vote });
        }
        if let Some(purged) = opened.purged {
            raised.push(FloorChange::Purged { group, position: purged.index });
        }
        Ok(self.shared.writer.submit_and_wait([], raised).await?)
    }

    /// Marks a replica as damaged, durably. From then on its log cannot be opened, only destroyed.
    pub async fn quarantine(&self, group: GroupId, replica: ReplicaId, reason: &str) -> Result<(), LogError> {
        match self.entry(group) {
            None => return Err(LogError::NotStored { group }),
            Some(entry) if entry.replica != replica && entry.replica != 0 => {
                return Err(LogError::OtherReplica { group, stored: entry.replica, asked: replica });
            }
            Some(_) => {}
        }
        let change = FloorChange::Quarantined { group, replica, reason: reason.to_owned() };
        Ok(self.shared.writer.submit_and_wait([], [change]).await?)
    }

    /// Deletes everything of a group and waits until that is durable. The group's log must not be open.
    pub async fn destroy(&self, group: GroupId) -> Result<(), LogError> {
        self.begin_destroy(group).await?;
        self.end_destroy(group).await
    }

    /// Dooms the replica of a group and deletes its log. A node that dies from here on to [`LogStore::end_destroy`] finds
    /// it among the [doomed](LogStore::doomed) and goes on.
    pub(crate) async fn begin_destroy(&self, group: GroupId) -> Result<(), LogError> {
        if self.shared.open.lock().get(&group).is_some_and(|weak| weak.strong_count() > 0) {
            return Err(LogError::AlreadyOpen { group });
        }
        self.shared.writer.forget_committed(group);
        let doomed = FloorChange::Doomed { group };
        Ok(self.shared.writer.submit_and_wait([LogChange::Destroy { group }], [doomed]).await?)
    }

    /// Forgets a doomed replica, when nothing of it is left anywhere.
    pub(crate) async fn end_destroy(&self, group: GroupId) -> Result<(), LogError> {
        Ok(self.shared.writer.submit_and_wait([], [FloorChange::Gone { group }]).await?)
    }

    /// For how long the batch that is under way has waited to become durable; zero if there is none.
    pub fn stalled(&self) -> Duration {
        self.shared.writer.stalled()
    }

    /// Writes what still waits and ends the writer. Every later write is refused.
    pub async fn shutdown(&self) {
        self.shared.writer.close().await;
    }

    /// What the writer counts.
    pub fn metrics(&self) -> &LogMetrics {
        &self.shared.metrics
    }

    /// Refuses a log of another replica and one that is quarantined; makes `replica` the owner of a new one.
    async fn claim(&self, group: GroupId, replica: ReplicaId) -> Result<(), LogError> {
        let Some(entry) = self.entry(group) else {
            if !self.shared.floor.lock().has_room() {
                return Err(LogError::TooMany { group, limit: floor::GROUPS_MAX });
            }
            return self.own(group, replica, Some(FloorChange::Claimed { group, replica })).await;
        };
        match entry.standing {
            Standing::Doomed => return Err(LogError::Doomed { group }),
            Standing::Quarantined(reason) if entry.replica == replica || entry.replica == 0 => {
                return Err(LogError::Quarantined { group, replica, reason });
            }
            _ if entry.replica != replica => {
                return Err(LogError::OtherReplica { group, stored: entry.replica, asked: replica });
            }
            _ => {}
        }
        let engine = &*self.shared.engine;
        let owner: Option<proto::ReplicaMark> = mark::read(engine, group, MarkKind::Replica)?;
        let found = owner.map(|owner| owner.replica);
        if found.is_none() && entry.promises_nothing() && !engine.groups()?.contains(&group) {
            // The node died between the two steps of the claim.
            return self.own(group, replica, None).await;
        }
        if found == Some(replica) { Ok(()) } else { Err(LogError::WrongOwner { group, floor: replica, found }) }
    }

    async fn own(&self, group: GroupId, replica: ReplicaId, claimed: Option<FloorChange>) -> Result<(), LogError> {
        let value = mark::encode(&proto::ReplicaMark { replica });
        let mark = LogChange::Mark { group, kind: MarkKind::Replica, value };
        Ok(self.shared.writer.submit_and_wait([mark], claimed).await?)
    }
}
