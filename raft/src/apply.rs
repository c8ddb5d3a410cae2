//! openraft's state machine over a [`Machine`] and its [`StateStore`].
//!
//! Committed entries come in batches. A batch is applied entry by entry, its rows and the applied mark reach the store
//! in one atomic write, then the machine and the proposers are told. The store is not synced for it: after a crash it may
//! stand at an earlier position, and openraft replays the log from there, which is purged only below a checkpoint.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot, watch};

use crate::blocking::Blocking;
use crate::hashes::Hashes;
use crate::health::{Health, is_damage};
use crate::ids::GroupId;
use crate::log::LogStore;
use crate::machine::{Machine, Reply, RowBatch, RowVisitor, StateStore, StateStores, Table};
use crate::observe::{Applying, Observer, failpoint, pass};
use crate::snapshot::{Checkpoint, CheckpointDirs, Snapshot, SnapshotMeta, decode_mark, encode_mark};
use crate::types::{Entry, LeaderId, LogId, StoredMembership, TC, position_of};
use crate::watched::Watched;

/// Entries of one batch at most.
const BATCH_ENTRIES: usize = 1_024;
/// Counted for an entry beside its payload when the growth of the log is estimated.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// What the adapter tells the rest of the group.
pub(crate) struct Applied {
    /// The last applied position.
    pub(crate) position: watch::Sender<u64>,
    /// The leader that proposed the last applied entry.
    pub(crate) leader: watch::Sender<Option<LeaderId>>,
    /// The current store.
    pub(crate) store: RwLock<Arc<dyn StateStore>>,
    /// Bytes applied since the last checkpoint.
    pub(crate) grown_bytes: AtomicU64,
    /// Told when that exceeds `limit_bytes`.
    pub(crate) purge_due: Notify,
    pub(crate) limit_bytes: u64,
    /// False until openraft has recovered its state.
    pub(crate) running: AtomicBool,
    pub(crate) hashes: Hashes,
}

impl Applied {
    pub(crate) fn new(store: Arc<dyn StateStore>, limit_bytes: u64, hash_every: u64) -> Self {
        Applied {
            position: watch::Sender::new(0),
            leader: watch::Sender::new(None),
            store: RwLock::new(store),
            grown_bytes: AtomicU64::new(0),
            purge_due: Notify::new(),
            limit_bytes,
            running: AtomicBool::new(false),
            hashes: Hashes::new(hash_every),
        }
    }

    /// Lets go of the store, so that its database can close.
    pub(crate) fn close_store(&self) {
        *self.store.write() = Arc::new(ClosedStore);
    }

    fn publish(&self, at: &LogId) {
        self.position.send_replace(at.index);
        self.leader.send_if_modified(|leader| {
            let changed = *leader != Some(at.leader_id);
            *leader = Some(at.leader_id);
            changed
        });
    }

    fn grow(&self, bytes: u64) {
        let before = self.grown_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before < self.limit_bytes && before + bytes >= self.limit_bytes {
            self.purge_due.notify_one();
        }
    }
}

/// Held by everything that may use the group's database; told when the last of them is gone.
pub(crate) type Lease = Arc<oneshot::Sender<()>>;

/// The state machine of one group.
pub(crate) struct Adapter {
    group: GroupId,
    /// `None` only while a snapshot is being installed, and after that has failed. Never locked: the mutex makes a
    /// machine that is only `Send` one that may be seen from elsewhere, which openraft demands and does not do.
    machine: Mutex<Option<Box<dyn Machine>>>,
    store: Arc<dyn StateStore>,
    states: Arc<dyn StateStores>,
    applied: Arc<Applied>,
    dirs: CheckpointDirs,
    blocking: Blocking,
    meta: SnapshotMeta,
    newest: Arc<Mutex<Newest>>,
    log: LogStore,
    health: Arc<Health>,
    observer: Option<Observer>,
    /// The last field, so that it is dropped after the store.
    lease: Lease,
}

/// The newest checkpoint of the current store.
#[derive(Default)]
struct Newest {
    snapshot: Option<Snapshot>,
    /// Counts the stores: a checkpoint that was begun on an earlier one is not of this one.
    store: u64,
}

/// Why a state cannot be used.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// It is not what was written.
    Damaged(String),
    /// The disk refused.
    Unusable(String),
}

impl From<io::Error> for LoadError {
    fn from(error: io::Error) -> Self {
        if is_damage(&error) {
            LoadError::Damaged(format!("the state database: {error}"))
        } else {
            LoadError::Unusable(error.to_string())
        }
    }
}

/// What [`Adapter::open`] needs.
pub(crate) struct AdapterParts {
    pub(crate) group: GroupId,
    pub(crate) machine: Box<dyn Machine>,
    pub(crate) states: Arc<dyn StateStores>,
    pub(crate) dirs: CheckpointDirs,
    pub(crate) blocking: Blocking,
    pub(crate) limit_bytes: u64,
    pub(crate) hash_every: u64,
    pub(crate) log: LogStore,
    pub(crate) health: Arc<Health>,
    pub(crate) observer: Option<Observer>,
    pub(crate) lease: Lease,
}

impl Adapter {
    /// Opens the store and loads the machine from it.
    pub(crate) async fn open(parts: AdapterParts) -> Result<(Adapter, Arc<Applied>), LoadError> {
        let AdapterParts {
            group,
            machine,
            states,
            dirs,
            blocking,
            limit_bytes,
            hash_every,
            log,
            health,
            observer,
            lease,
        } = parts;
        let (opening, watching) = (states.clone(), health.clone());
        let opened = blocking.run(move || Ok(load(&*opening, group, machine, watching)));
        let (machine, store, meta) = opened.await??;
        let applied = Arc::new(Applied::new(store.clone(), limit_bytes, hash_every));
        applied.hashes.restart(meta.last_log_id.map(|at| (at.index, machine.hash())));
        if let Some(at) = &meta.last_log_id {
            applied.publish(at);
        }
        let adapter = Adapter {
            group,
            machine: Mutex::new(Some(machine)),
            store,
            states,
            applied: applied.clone(),
            dirs,
            blocking,
            meta,
            newest: Arc::default(),
            log,
            health,
            observer,
            lease,
        };
        Ok((adapter, applied))
    }

    /// The last entry that the state reflects.
    pub(crate) fn reached(&self) -> Option<LogId> {
        self.meta.last_log_id
    }

    fn apply_batch(&mut self, batch: Vec<EntryResponder<TC>>) -> io::Result<()> {
        let Some(machine) = self.machine.get_mut() else {
            return Err(io::Error::other("the machine was lost when a snapshot could not be installed"));
        };
        let mut rows = RowBatch::default();
        let mut replies: Vec<(ApplyResponder<TC>, Reply)> = Vec::new();
        let (mut bytes, mut noted) = (0, Vec::new());
        for (entry, responder) in batch {
            let position = entry.log_id.index;
            bytes += ENTRY_OVERHEAD_BYTES + payload_bytes(&entry);
            if let Some(observer) = &self.observer {
                observer.tell(&applying(self.group, &entry));
            }
            let reply = apply_entry(machine.as_mut(), &mut self.meta, entry, &mut rows)?;
            if self.applied.hashes.is_due(position) {
                noted.push((position, machine.hash()));
            }
            if let Some(responder) = responder {
                replies.push((responder, reply));
            }
        }
        let Some(at) = self.meta.last_log_id else { return Ok(()) };
        self.store.write(&rows, &encode_mark(Some(&at), &self.meta.last_membership))?;
        pass(self.observer.as_ref(), failpoint::ROWS_WRITTEN)?;
        self.applied.hashes.advance(noted, (at.index, machine.hash()));
        machine.applied(position_of(&at));
        self.applied.publish(&at);
        for (responder, reply) in replies {
            responder.send(reply);
        }
        self.applied.grow(bytes);
        Ok(())
    }

    fn builder(&self) -> Builder {
        Builder {
            begun_on: self.newest.lock().store,
            dir: self.dirs.next(self.group),
            store: self.store.clone(),
            states: self.states.clone(),
            applied: self.applied.clone(),
            blocking: self.blocking,
            newest: self.newest.clone(),
            health: self.health.clone(),
            observer: self.observer.clone(),
            _lease: self.lease.clone(),
        }
    }
}

/// A machine with the store that it was loaded from, and what that reflects.
type Loaded = (Box<dyn Machine>, Arc<dyn StateStore>, SnapshotMeta);

/// Opens the store of a group and loads the machine from it. What a machine cannot be loaded from is damaged, unless the
/// disk has said something else.
fn load(
    states: &dyn StateStores,
    group: GroupId,
    mut machine: Box<dyn Machine>,
    health: Arc<Health>,
) -> Result<Loaded, LoadError> {
    let store = Watched::new(states.open(group)?, health);
    let meta = decode_mark(store.applied()?.as_deref())?;
    let loaded = machine.load(store.clone(), meta.last_log_id.as_ref().map(position_of));
    match (loaded, store.failed()) {
        (Ok(()), _) => Ok((machine, store, meta)),
        (Err(fault), None) => Err(LoadError::Damaged(format!("the state cannot be loaded: {fault}"))),
        (Err(fault), Some(failed)) => Err(LoadError::Unusable(format!("{fault}: {failed}"))),
    }
}

fn payload_bytes(entry: &Entry) -> u64 {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.0.len() as u64,
        _ => 0,
    }
}

fn applying(group: GroupId, entry: &Entry) -> Applying<'_> {
    let payload = match &entry.payload {
        EntryPayload::Normal(proposal) => Some(&*proposal.0),
        _ => None,
    };
    Applying { group, at: position_of(&entry.log_id), leader: entry.log_id.leader_id.node_id, payload }
}

fn apply_entry(
    machine: &mut dyn Machine,
    meta: &mut SnapshotMeta,
    entry: Entry,
    rows: &mut RowBatch,
) -> io::Result<Reply> {
    let reply = match entry.payload {
        EntryPayload::Blank => Reply::none(),
        EntryPayload::Normal(proposal) => {
            machine.apply(position_of(&entry.log_id), &proposal.0, rows).map_err(io::Error::other)?
        }
        EntryPayload::Membership(membership) => {
            meta.last_membership = StoredMembership::new(Some(entry.log_id), membership);
            Reply::none()
        }
    };
    meta.last_log_id = Some(entry.log_id);
    Ok(reply)
}

impl RaftStateMachine<TC> for Adapter {
    type SnapshotData = Arc<Checkpoint>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.meta.last_log_id, self.meta.last_membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<TC>, io::Error>> + Unpin + Send,
    {
        let mut chunks = entries.ready_chunks(BATCH_ENTRIES);
        while let Some(chunk) = chunks.next().await {
            let batch = chunk.into_iter().collect::<Result<Vec<_>, _>>()?;
            let bytes: u64 = batch.iter().map(|(entry, _)| payload_bytes(entry)).sum();
            let blocking = self.blocking;
            blocking.in_place(bytes as usize, || self.apply_batch(batch)).inspect_err(|error| {
                tracing::error!(group = %self.group, %error, "an entry could not be applied; the group stops on this node");
            })?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.builder()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Arc<Checkpoint>) -> io::Result<()> {
        // Entries that contradict the snapshot have been truncated, and that must be on disk first: else a crash could leave
        // a log and a state that tell different stories, as only damage does.
        self.log.flush().await?;
        let lost = || io::Error::other("the machine was lost when an earlier snapshot could not be installed");
        let mut machine = self.machine.get_mut().take().ok_or_else(lost)?;
        // Readers keep the old store until the new one is there; it serves who still holds it.
        let old = std::mem::replace(&mut self.store, Arc::new(ClosedStore));
        let (states, group, expected, health) = (self.states.clone(), self.group, meta.clone(), self.health.clone());
        let observer = self.observer.clone();
        let installed = self.blocking.run(move || {
            pass(observer.as_ref(), failpoint::SNAPSHOT_RECEIVED)?;
            let store = Watched::new(replace(&*states, group, old, snapshot.dir(), &expected)?, health);
            #[cfg(feature = "planted")]
            crate::planted::lose_a_table(group, &*store)?;
            pass(observer.as_ref(), failpoint::SNAPSHOT_PLACED)?;
            machine.load(store.clone(), expected.last_log_id.as_ref().map(position_of)).map_err(io::Error::other)?;
            Ok((machine, store))
        });
        let (machine, store) = installed.await.inspect_err(|error| {
            tracing::error!(group = %self.group, %error, "a snapshot could not be installed; the group stops on this node");
        })?;
        self.applied.hashes.restart(meta.last_log_id.map(|at| (at.index, machine.hash())));
        *self.machine.get_mut() = Some(machine);
        *self.applied.store.write() = store.clone();
        self.store = store;
        self.meta = meta.clone();
        {
            let mut newest = self.newest.lock();
            newest.snapshot = None;
            newest.store += 1;
            self.applied.grown_bytes.store(0, Ordering::Relaxed);
        }
        if let Some(at) = &meta.last_log_id {
            self.applied.publish(at);
        }
        Ok(())
    }

    /// The newest checkpoint; one is made when there is none, for that is asked only when a peer needs it.
    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let newest = self.newest.lock().snapshot.clone();
        if newest.is_some() || !self.applied.running.load(Ordering::Acquire) || self.meta.last_log_id.is_none() {
            return Ok(newest);
        }
        self.builder().build_snapshot().await.map(Some)
    }
}

fn replace(
    states: &dyn StateStores,
    group: GroupId,
    old: Arc<dyn StateStore>,
    dir: &Path,
    expected: &SnapshotMeta,
) -> io::Result<Arc<dyn StateStore>> {
    let found = decode_mark(states.applied_of(dir)?.as_deref())?;
    if found != *expected {
        let text = format!("the snapshot says that it reflects {expected}, its files reflect {found}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    states.replace(group, old, dir)
}

/// Makes one checkpoint, beside apply.
pub(crate) struct Builder {
    /// The number of the store of which it is made.
    begun_on: u64,
    dir: std::path::PathBuf,
    store: Arc<dyn StateStore>,
    states: Arc<dyn StateStores>,
    applied: Arc<Applied>,
    blocking: Blocking,
    newest: Arc<Mutex<Newest>>,
    health: Arc<Health>,
    observer: Option<Observer>,
    _lease: Lease,
}

impl RaftSnapshotBuilder<TC> for Builder {
    type SnapshotData = Arc<Checkpoint>;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (store, states, dir) = (self.store.clone(), self.states.clone(), self.dir.clone());
        let grown = self.applied.grown_bytes.load(Ordering::Relaxed);
        let observer = self.observer.clone();
        let built = self.blocking.run(move || {
            let checkpoint = Arc::new(Checkpoint::new(dir.clone()));
            store.checkpoint(&dir)?;
            pass(observer.as_ref(), failpoint::CHECKPOINT_MADE)?;
            // What the checkpoint says of itself, not what has been applied: apply goes on meanwhile.
            let meta = decode_mark(states.applied_of(&dir)?.as_deref())?;
            Ok(Snapshot { meta, snapshot: checkpoint })
        });
        let snapshot = built.await.inspect_err(|error| self.health.judge("a checkpoint of the state", error))?;
        let mut newest = self.newest.lock();
        // A snapshot may have replaced the store meanwhile: this one is older than that, and the bytes are counted anew.
        if newest.store == self.begun_on {
            self.applied.grown_bytes.fetch_sub(grown, Ordering::Relaxed);
            newest.snapshot = Some(snapshot.clone());
        }
        Ok(snapshot)
    }
}

/// Stands where a store was.
struct ClosedStore;

fn closed<T>() -> io::Result<T> {
    Err(io::Error::new(
        io::ErrorKind::NotConnected,
        "the state store is closed: the group has stopped or takes a snapshot",
    ))
}

impl StateStore for ClosedStore {
    fn get(&self, _: Table, _: &[u8]) -> io::Result<Option<Bytes>> {
        closed()
    }
    fn get_many(&self, _: Table, _: &[&[u8]]) -> io::Result<Vec<Option<Bytes>>> {
        closed()
    }
    fn scan(&self, _: Table, _: &[u8], _: &mut RowVisitor<'_>) -> io::Result<()> {
        closed()
    }
    fn write(&self, _: &RowBatch, _: &[u8]) -> io::Result<()> {
        closed()
    }
    fn applied(&self) -> io::Result<Option<Bytes>> {
        closed()
    }
    fn flush(&self) -> io::Result<()> {
        closed()
    }
    fn checkpoint(&self, _: &Path) -> io::Result<()> {
        closed()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;
    use crate::log::{LogConfig, TaskHooks, WriterMode};
    use crate::machine::Fault;
    use crate::memory::{MemoryFloor, MemoryLog, MemoryStates};
    use crate::types::log_id;

    struct Idle;

    impl Machine for Idle {
        fn apply(&mut self, _: crate::LogPosition, _: &[u8], _: &mut RowBatch) -> Result<Reply, Fault> {
            Ok(Reply::none())
        }
        fn applied(&mut self, _: crate::LogPosition) {}
        fn load(&mut self, _: Arc<dyn StateStore>, _: Option<crate::LogPosition>) -> Result<(), Fault> {
            Ok(())
        }
        fn hash(&self) -> u64 {
            7
        }
    }

    const GROUP: GroupId = GroupId(1);

    async fn adapter(states: &MemoryStates, dir: &Path) -> (Adapter, Arc<Applied>) {
        let mode = WriterMode::Task(TaskHooks::instant());
        let (log, floor) = (Arc::new(MemoryLog::new()), Arc::new(MemoryFloor::new()));
        let parts = AdapterParts {
            group: GROUP,
            machine: Box::new(Idle),
            states: Arc::new(states.clone()),
            dirs: CheckpointDirs::open(dir.join("checkpoints")).unwrap(),
            blocking: Blocking::InPlace,
            limit_bytes: 1_000,
            hash_every: 1,
            log: LogStore::open(log, floor, mode, LogConfig::default()).unwrap(),
            health: Arc::default(),
            observer: None,
            lease: Arc::new(oneshot::channel().0),
        };
        Adapter::open(parts).await.map_err(|error| format!("{error:?}")).unwrap()
    }

    /// A checkpoint that reflects a position, as a peer would have sent it.
    fn arrived(states: &MemoryStates, position: u64) -> (SnapshotMeta, Arc<Checkpoint>) {
        let meta = SnapshotMeta { last_log_id: Some(log_id(2, 1, position)), ..SnapshotMeta::default() };
        let other = states.open(GroupId(9)).unwrap();
        other.write(&RowBatch::default(), &encode_mark(meta.last_log_id.as_ref(), &meta.last_membership)).unwrap();
        let dir = states.staging(GROUP).unwrap();
        other.checkpoint(&dir).unwrap();
        (meta, Arc::new(Checkpoint::new(dir)))
    }

    #[tokio::test]
    async fn a_checkpoint_of_the_store_before_a_snapshot_is_not_the_newest_of_the_one_after() {
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path().join("scratch"));
        let (mut adapter, applied) = adapter(&states, dir.path()).await;
        applied.running.store(true, Ordering::Release);
        applied.grow(500);
        let mut early = adapter.get_snapshot_builder().await;
        let (meta, snapshot) = arrived(&states, 50);
        adapter.install_snapshot(&meta, snapshot).await.unwrap();
        let built = early.build_snapshot().await.unwrap();
        assert_eq!(built.meta.last_log_id, None, "it is one of the empty store");
        assert_eq!(applied.grown_bytes.load(Ordering::Relaxed), 0);
        let current = adapter.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(current.meta, meta);
        let mut late = adapter.get_snapshot_builder().await;
        assert_eq!(late.build_snapshot().await.unwrap().meta, meta);
        assert_eq!((applied.hashes.current(), applied.hashes.noted()), (Some((50, 7)), Vec::new()));
    }
}
