//! openraft's state machine over a [`Machine`] and its [`StateStore`].
//!
//! Committed entries come in batches. A batch is applied entry by entry, its rows and the applied mark reach the store
//! in one atomic write, then the machine and the proposers are told. The store is not synced for it: after a crash it may
//! stand at an earlier position, and openraft replays the log from there, which is purged only below a checkpoint. It never
//! stands at a later one: the others can commit what this node has not on its disk yet, and a store that had flushed it would
//! after a crash contradict the log. So applying waits for the log, as everything waits for its write-ahead log.

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
use crate::checkpoints::{Checkpoints, Known};
use crate::hashes::Hashes;
use crate::health::{Health, is_damage};
use crate::ids::{GroupId, ReplicaId};
use crate::log::{GroupLogReader, LogStore};
use crate::machine::{Machine, Reply, Reread, RowBatch, RowVisitor, StateStore, StateStores, Table};
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
    /// The group has stopped.
    closed: AtomicBool,
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
            closed: AtomicBool::new(false),
            hashes: Hashes::new(hash_every),
        }
    }

    /// Lets go of the store, so that its database can close. No other takes its place from then on.
    pub(crate) fn close_store(&self) {
        let mut store = self.store.write();
        self.closed.store(true, Ordering::Release);
        *store = Arc::new(ClosedStore);
    }

    fn replace_store(&self, with: Arc<dyn StateStore>) {
        let mut store = self.store.write();
        if !self.closed.load(Ordering::Acquire) {
            *store = with;
        }
    }

    /// A checkpoint holds what so many bytes have made.
    pub(crate) fn shrink(&self, bytes: u64) {
        let shrunk = self
            .grown_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |grown| Some(grown.saturating_sub(bytes)));
        if shrunk.is_ok_and(|before| before.saturating_sub(bytes) >= self.limit_bytes) {
            self.purge_due.notify_one();
        }
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
    checkpoints: Arc<Checkpoints>,
    blocking: Blocking,
    meta: SnapshotMeta,
    log: LogStore,
    reader: GroupLogReader,
    health: Arc<Health>,
    observer: Option<Observer>,
    /// The last field, so that it is dropped after the store.
    _lease: Lease,
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
    pub(crate) replica: ReplicaId,
    pub(crate) machine: Box<dyn Machine>,
    pub(crate) states: Arc<dyn StateStores>,
    pub(crate) dirs: CheckpointDirs,
    pub(crate) blocking: Blocking,
    pub(crate) limit_bytes: u64,
    pub(crate) hash_every: u64,
    pub(crate) log: LogStore,
    pub(crate) reader: GroupLogReader,
    pub(crate) health: Arc<Health>,
    pub(crate) observer: Option<Observer>,
    pub(crate) lease: Lease,
}

impl Adapter {
    /// Opens the store and loads the machine from it.
    pub(crate) async fn open(parts: AdapterParts) -> Result<(Adapter, Arc<Checkpoints>), LoadError> {
        let AdapterParts {
            group,
            replica,
            machine,
            states,
            dirs,
            blocking,
            limit_bytes,
            hash_every,
            log,
            reader,
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
        let checkpoints = Arc::new(Checkpoints {
            group,
            replica,
            states: states.clone(),
            dirs,
            blocking,
            health: health.clone(),
            observer: observer.clone(),
            applied: applied.clone(),
            known: Mutex::new(Known::new(lease.clone())),
            changes: tokio::sync::Mutex::default(),
            promoted: Notify::new(),
        });
        let adapter = Adapter {
            group,
            machine: Mutex::new(Some(machine)),
            store,
            states,
            applied,
            checkpoints: checkpoints.clone(),
            blocking,
            meta,
            log,
            reader,
            health,
            observer,
            _lease: lease,
        };
        Ok((adapter, checkpoints))
    }

    /// The last entry that the state reflects.
    pub(crate) fn reached(&self) -> Option<LogId> {
        self.meta.last_log_id
    }

    /// Waits until the log is on the disk up to a position. Nearly always it is.
    async fn wait_for_log(&self, position: Option<u64>) -> io::Result<()> {
        match position {
            Some(position) if !self.reader.is_durable(position) => self.log.flush().await,
            _ => Ok(()),
        }
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
            self.wait_for_log(batch.last().map(|(entry, _)| entry.log_id.index)).await?;
            let bytes: u64 = batch.iter().map(|(entry, _)| payload_bytes(entry)).sum();
            let blocking = self.blocking;
            blocking.in_place(bytes as usize, || self.apply_batch(batch)).inspect_err(|error| {
                tracing::error!(group = %self.group, %error, "an entry could not be applied; the group stops on this node");
            })?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { checkpoints: self.checkpoints.clone() }
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        // What openraft is told of, it purges the log for.
        let builder = force || self.checkpoints.current().is_some();
        builder.then(|| Builder { checkpoints: self.checkpoints.clone() })
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
        let (observer, checkpoints) = (self.observer.clone(), self.checkpoints.clone());
        let installed = self.blocking.run(move || {
            pass(observer.as_ref(), failpoint::SNAPSHOT_RECEIVED)?;
            let kept = checkpoints.keep_received(&snapshot);
            let store = Watched::new(replace(&*states, group, old, snapshot.dir(), &expected)?, health);
            #[cfg(feature = "planted")]
            crate::planted::lose_a_table(group, &*store)?;
            pass(observer.as_ref(), failpoint::SNAPSHOT_PLACED)?;
            machine.load(store.clone(), expected.last_log_id.as_ref().map(position_of)).map_err(io::Error::other)?;
            Ok((machine, store, kept))
        });
        let (machine, store, kept) = installed.await.inspect_err(|error| {
            self.health.judge("a snapshot that was received", error);
            tracing::error!(group = %self.group, %error, "a snapshot could not be installed; the group stops on this node");
        })?;
        let hash = machine.hash();
        self.applied.hashes.restart(meta.last_log_id.map(|at| (at.index, hash)));
        *self.machine.get_mut() = Some(machine);
        self.applied.replace_store(store.clone());
        self.store = store;
        self.meta = meta.clone();
        let kept = kept.map(|snapshot| Snapshot { meta: meta.clone(), snapshot });
        self.checkpoints.replaced(meta.last_log_id.map(|at| at.index), hash, kept).await?;
        if let Some(at) = &meta.last_log_id {
            self.applied.publish(at);
        }
        Ok(())
    }

    /// The newest confirmed checkpoint, or else the candidate, which is sent when it is confirmed. One is made when there is
    /// none, for that is asked only when a peer needs it.
    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let best = self.checkpoints.best();
        if best.is_some() || !self.applied.running.load(Ordering::Acquire) || self.meta.last_log_id.is_none() {
            return Ok(best);
        }
        match self.checkpoints.make().await {
            Ok(Some(made)) => Ok(Some(made)),
            // An error here would stop the group. There is none that is confirmed, so openraft is told that the peer cannot be
            // reached, and asks again.
            Ok(None) => Ok(Some(Snapshot { meta: SnapshotMeta::default(), snapshot: Arc::new(Checkpoint::absent()) })),
            Err(error) => {
                tracing::warn!(group = %self.group, %error, "a checkpoint that a peer needs could not be made");
                Ok(Some(Snapshot { meta: SnapshotMeta::default(), snapshot: Arc::new(Checkpoint::absent()) }))
            }
        }
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

/// Tells openraft of a checkpoint. Those that count are made and confirmed elsewhere, in their own time; without any, which is
/// so only at a start, it is told of a new one.
pub(crate) struct Builder {
    checkpoints: Arc<Checkpoints>,
}

impl RaftSnapshotBuilder<TC> for Builder {
    type SnapshotData = Arc<Checkpoint>;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        match self.checkpoints.current() {
            Some(current) => Ok(current),
            None => self.checkpoints.make().await?.ok_or_else(|| io::Error::other("the state reflects no entry")),
        }
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
    fn reread(&self, _: &[u8], _: usize) -> io::Result<Reread> {
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

    /// A log whose writer is a task that takes as long as is said, in milliseconds.
    fn log_store(latency_ms: u64) -> LogStore {
        let latency = Arc::new(move || std::time::Duration::from_millis(latency_ms));
        let mode = WriterMode::Task(TaskHooks { latency, ..TaskHooks::instant() });
        let (log, floor) = (Arc::new(MemoryLog::new()), Arc::new(MemoryFloor::new()));
        LogStore::open(log, floor, mode, LogConfig::default()).unwrap()
    }

    async fn adapter(
        states: &MemoryStates,
        dir: &Path,
        purged: Option<u64>,
        observer: Option<Observer>,
    ) -> (Adapter, Arc<Checkpoints>) {
        let log = log_store(0);
        let reader = log.open_group(GROUP, 7).await.unwrap().reader();
        let parts = AdapterParts {
            group: GROUP,
            replica: 7,
            machine: Box::new(Idle),
            states: Arc::new(states.clone()),
            dirs: CheckpointDirs::open(dir.join("checkpoints")).unwrap(),
            blocking: Blocking::InPlace,
            limit_bytes: 1_000,
            hash_every: 1,
            log,
            reader,
            health: Arc::default(),
            observer,
            lease: Arc::new(oneshot::channel().0),
        };
        let (adapter, checkpoints) = Adapter::open(parts).await.map_err(|error| format!("{error:?}")).unwrap();
        checkpoints.recover(purged, adapter.reached()).await.unwrap();
        checkpoints.applied.running.store(true, Ordering::Release);
        (adapter, checkpoints)
    }

    /// The store of the group reflects a position from here on.
    fn reach(store: &dyn StateStore, position: u64) -> LogId {
        let at = log_id(2, 1, position);
        store.write(&RowBatch::default(), &encode_mark(Some(&at), &StoredMembership::default())).unwrap();
        at
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
    async fn a_checkpoint_of_the_store_before_a_snapshot_is_none_of_the_one_after() {
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path().join("scratch"));
        let replaced: Arc<Mutex<Option<Arc<Checkpoints>>>> = Arc::default();
        let during = replaced.clone();
        let observer = Observer::new(|_| {}).ending_at(move |point| {
            if let Some(checkpoints) = during.lock().take_if(|_| point == failpoint::CHECKPOINT_MADE) {
                futures::executor::block_on(checkpoints.replaced(Some(50), 7, None)).unwrap();
            }
            false
        });
        let (adapter, checkpoints) = adapter(&states, dir.path(), None, Some(observer)).await;
        reach(&*adapter.store, 9);
        checkpoints.applied.grow(500);
        *replaced.lock() = Some(checkpoints.clone());
        assert!(checkpoints.make().await.unwrap().is_none());
        assert!(checkpoints.best().is_none() && !checkpoints.has_candidate());
        assert_eq!(checkpoints.applied.grown_bytes.load(Ordering::Relaxed), 0, "counted anew for the new store");
    }

    /// The others may have committed an entry that is still on its way to this node's disk.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_applied_before_it_is_in_the_log_on_disk() {
        use openraft::storage::{IOFlushed, RaftLogStorage as _};
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path().join("scratch"));
        let (mut adapter, checkpoints) = adapter(&states, dir.path(), None, None).await;
        adapter.log = log_store(300);
        let mut log = adapter.log.open_group(GROUP, 7).await.unwrap();
        adapter.reader = log.reader();
        let entry = || Entry { log_id: log_id(1, 1, 0), payload: EntryPayload::Blank };
        let began = tokio::time::Instant::now();
        log.append([entry()], IOFlushed::noop()).await.unwrap();
        adapter.apply(futures::stream::iter([Ok((entry(), None))])).await.unwrap();
        assert!(began.elapsed() >= std::time::Duration::from_millis(300), "{:?}", began.elapsed());
        assert_eq!(
            decode_mark(adapter.store.applied().unwrap().as_deref()).unwrap().last_log_id,
            Some(log_id(1, 1, 0))
        );
        drop(checkpoints);
    }

    /// A crash between the two would leave a log and a state that tell different stories.
    #[tokio::test(start_paused = true)]
    async fn a_snapshot_is_installed_only_when_the_truncation_before_it_is_on_disk() {
        use openraft::storage::{IOFlushed, RaftLogStorage as _};
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path().join("scratch"));
        let placed: Arc<Mutex<Option<tokio::time::Instant>>> = Arc::default();
        let seen = placed.clone();
        let observer = Observer::new(|_| {}).ending_at(move |point| {
            if point == failpoint::SNAPSHOT_RECEIVED {
                *seen.lock() = Some(tokio::time::Instant::now());
            }
            false
        });
        let (mut adapter, _checkpoints) = adapter(&states, dir.path(), None, Some(observer)).await;
        adapter.log = log_store(300);
        let mut log = adapter.log.open_group(GROUP, 7).await.unwrap();
        adapter.reader = log.reader();
        let entries = (0..3).map(|index| Entry { log_id: log_id(1, 1, index), payload: EntryPayload::Blank });
        log.append(entries, IOFlushed::noop()).await.unwrap();
        adapter.log.flush().await.unwrap();
        let began = tokio::time::Instant::now();
        log.truncate_after(Some(log_id(1, 1, 0))).await.unwrap();
        let (meta, snapshot) = arrived(&states, 50);
        adapter.install_snapshot(&meta, snapshot).await.unwrap();
        let waited = placed.lock().expect("it was placed") - began;
        assert!(waited >= std::time::Duration::from_millis(300), "{waited:?}");
    }

    #[tokio::test]
    async fn what_a_snapshot_brings_is_confirmed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path().join("scratch"));
        let (mut adapter, checkpoints) = adapter(&states, dir.path(), None, None).await;
        let (meta, snapshot) = arrived(&states, 50);
        adapter.install_snapshot(&meta, snapshot).await.unwrap();
        let current = checkpoints.current().unwrap();
        assert!(current.meta == meta && checkpoints.is_confirmed(&current));
        assert_eq!(adapter.get_current_snapshot().await.unwrap().unwrap().meta, meta);
        let hashes = &checkpoints.applied.hashes;
        assert_eq!((hashes.current(), hashes.noted(), checkpoints.agreed()), (Some((50, 7)), vec![], Some((50, 7))));
    }

    #[tokio::test]
    async fn a_checkpoint_counts_once_a_majority_has_agreed_at_its_position_or_later() {
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path().join("scratch"));
        let (mut adapter, checkpoints) = adapter(&states, dir.path(), None, None).await;
        reach(&*adapter.store, 9);
        checkpoints.applied.grow(500);
        let made = checkpoints.make().await.unwrap().unwrap();
        checkpoints.agree(8, 7).await.unwrap();
        assert!(!checkpoints.is_confirmed(&made) && checkpoints.current().is_none() && checkpoints.has_candidate());
        assert!(adapter.try_create_snapshot_builder(false).await.is_none(), "openraft would purge the log for it");
        assert_eq!(checkpoints.best().unwrap().meta, made.meta, "a peer that needs it waits for it");
        checkpoints.agree(10, 7).await.unwrap();
        assert!(checkpoints.is_confirmed(&made) && !checkpoints.has_candidate());
        assert_eq!(checkpoints.applied.grown_bytes.load(Ordering::Relaxed), 0);
        assert!(adapter.try_create_snapshot_builder(false).await.is_some());
        // The next one takes its place only when it is confirmed too.
        reach(&*adapter.store, 20);
        let next = checkpoints.make().await.unwrap().unwrap();
        assert!(checkpoints.is_confirmed(&made) && !checkpoints.is_confirmed(&next));
        assert_eq!(adapter.get_current_snapshot().await.unwrap().unwrap().meta, made.meta);
        let old = made.snapshot.dir().to_owned();
        drop(made);
        checkpoints.agree(20, 7).await.unwrap();
        assert!(checkpoints.is_confirmed(&next) && !old.exists());
    }

    #[tokio::test]
    async fn the_confirmed_checkpoint_outlives_the_process_and_the_candidate_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path().join("scratch"));
        let confirmed = {
            let (adapter, checkpoints) = adapter(&states, dir.path(), None, None).await;
            let at = reach(&*adapter.store, 9);
            checkpoints.agree(9, 7).await.unwrap();
            checkpoints.make().await.unwrap();
            reach(&*adapter.store, 20);
            checkpoints.make().await.unwrap();
            assert!(checkpoints.has_candidate());
            at
        };
        let states = states.crash();
        let found = async |purged| {
            let (_, checkpoints) = adapter(&states, dir.path(), purged, None).await;
            checkpoints.best().map(|best| (best.meta.last_log_id, checkpoints.is_confirmed(&best)))
        };
        assert_eq!(found(Some(9)).await, Some((Some(confirmed), true)));
        assert_eq!(found(None).await, Some((Some(confirmed), true)), "again");
        assert_eq!(found(Some(10)).await, None, "it leaves a gap to the log");
        assert_eq!(found(None).await, None, "it was dropped for good");
    }

    fn rot(checkpoint: &Checkpoint) {
        let file = std::fs::read_dir(checkpoint.dir()).unwrap().next().unwrap().unwrap().path();
        std::fs::write(file, b"rot").unwrap();
    }

    #[tokio::test]
    async fn a_rotten_checkpoint_is_dropped_and_a_second_one_convicts_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path().join("scratch"));
        {
            let (adapter, checkpoints) = adapter(&states, dir.path(), None, None).await;
            reach(&*adapter.store, 9);
            checkpoints.agree(9, 7).await.unwrap();
            checkpoints.make().await.unwrap();
        }
        let (adapter, checkpoints) = adapter(&states, dir.path(), None, None).await;
        let kept = checkpoints.current().unwrap();
        rot(&kept.snapshot);
        checkpoints.verify(&kept).await.unwrap_err();
        assert!(checkpoints.best().is_none() && checkpoints.health.found().is_none());
        // One that is good says that the state is.
        reach(&*adapter.store, 10);
        let good = checkpoints.make().await.unwrap().unwrap();
        checkpoints.agree(10, 7).await.unwrap();
        checkpoints.verify(&good).await.unwrap();
        rot(&good.snapshot);
        checkpoints.verify(&good).await.unwrap();
        good.snapshot.doubt();
        checkpoints.verify(&good).await.unwrap_err();
        assert!(checkpoints.health.found().is_none());
        reach(&*adapter.store, 11);
        let again = checkpoints.make().await.unwrap().unwrap();
        rot(&again.snapshot);
        checkpoints.verify(&again).await.unwrap_err();
        assert!(checkpoints.health.found().is_some(), "two in a row");
    }

    #[tokio::test]
    async fn a_disk_without_room_or_directory_costs_a_checkpoint_and_not_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path().join("scratch"));
        let (mut adapter, checkpoints) = adapter(&states, dir.path(), None, None).await;
        adapter.meta.last_log_id = Some(reach(&*adapter.store, 9));
        states.set_full(true);
        let absent = adapter.get_current_snapshot().await.unwrap().unwrap();
        assert!(!checkpoints.is_confirmed(&absent) && absent.meta.last_log_id.is_none());
        states.set_full(false);
        std::fs::remove_dir_all(dir.path().join("checkpoints")).unwrap();
        let made = adapter.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(made.meta.last_log_id, adapter.meta.last_log_id);
        assert!(checkpoints.health.found().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_purged_while_a_peer_receives_a_checkpoint_or_catches_up() {
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path().join("scratch"));
        let (_, checkpoints) = adapter(&states, dir.path(), None, None).await;
        let may = async |seconds| {
            tokio::time::timeout(std::time::Duration::from_secs(seconds), checkpoints.may_purge()).await.is_ok()
        };
        assert!(may(1).await);
        let sending = checkpoints.begin_sending();
        assert!(!may(100).await);
        drop(sending);
        assert!(!may(5).await && may(10).await);
        let _sending = checkpoints.begin_sending();
        checkpoints.applied.grow(16_000);
        assert!(may(2).await, "a log that is too large is purged all the same");
    }
}
