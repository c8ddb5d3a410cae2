//! The checkpoints of one group on this node, and which of them count.
//!
//! A state that has silently become another one reads back well. A replica that shipped it would make a second one like
//! itself, and the two would outvote the one that is right. So a checkpoint is a *candidate* until a majority of the voters
//! was seen to have the same state as this replica, at the checkpoint's position or a later one: states that agree there
//! came from states that agreed before. Only then is it *confirmed*.
//!
//! Invariants:
//! - Only a confirmed checkpoint is sent, and only below one is the log purged.
//! - The newest confirmed checkpoint outlives the process. So a peer that is behind finds what it needs on any replica, a
//!   confirmed checkpoint and the log above it, also when nobody is left to confirm another.
//! - A replica that has installed a snapshot has a confirmed state, for nothing else was sent, and keeps a checkpoint of it.
//! - While a peer receives a checkpoint nothing above it is purged: else it would need the next one at once, and for ever under
//!   load.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::apply::{Applied, Lease};
use crate::blocking::Blocking;
use crate::health::{Health, is_damage};
use crate::ids::{GroupId, ReplicaId};
use crate::machine::StateStores;
use crate::observe::{Observer, failpoint, pass};
use crate::snapshot::{Checkpoint, CheckpointDirs, Snapshot, decode_mark};
use crate::types::LogId;

/// A peer that has installed a checkpoint has so long to get the log above it before that is purged.
const CATCH_UP: Duration = Duration::from_secs(10);
/// A log that has grown to so many times its limit is purged though a peer still needs it.
const GROWN_TOO_LARGE: u64 = 16;

/// The checkpoints of one group.
pub(crate) struct Checkpoints {
    pub(crate) group: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) states: Arc<dyn StateStores>,
    pub(crate) dirs: CheckpointDirs,
    pub(crate) blocking: Blocking,
    pub(crate) health: Arc<Health>,
    pub(crate) observer: Option<Observer>,
    pub(crate) applied: Arc<Applied>,
    pub(crate) known: Mutex<Known>,
    /// Held by whoever makes a candidate or confirms one.
    pub(crate) changes: tokio::sync::Mutex<()>,
    /// Told when a candidate has been confirmed.
    pub(crate) promoted: Notify,
}

/// What there is.
#[derive(Default)]
pub(crate) struct Known {
    /// The newest that is confirmed.
    current: Option<Snapshot>,
    candidate: Option<Candidate>,
    /// The last position at which a majority had the state of this replica, with its hash.
    agreed: Option<(u64, u64)>,
    /// Counts the stores: a checkpoint that was begun on an earlier one is not of this one.
    store: u64,
    /// How many peers are being sent a checkpoint.
    sending: u64,
    /// When the last of them had it.
    sent: Option<Instant>,
    /// A checkpoint did not read back. If the next one does not either, what it is made of is damaged.
    is_suspect: bool,
    /// Keeps the database open while a checkpoint is made of it; gone when the group stops.
    lease: Option<Lease>,
}

impl Known {
    pub(crate) fn new(lease: Lease) -> Self {
        Known { lease: Some(lease), ..Known::default() }
    }
}

/// A checkpoint that nobody has confirmed yet.
struct Candidate {
    snapshot: Snapshot,
    /// The bytes that had been applied since the checkpoint before it.
    grown_bytes: u64,
}

impl Checkpoints {
    /// Takes over the confirmed checkpoint that an earlier process has left, if it is still of use: not below what was
    /// purged, not above what the state reflects. Others go.
    ///
    /// # Errors
    /// Those of the disk. One that does not read back is dropped, and no error.
    pub(crate) async fn recover(&self, purged: Option<u64>, reached: Option<LogId>) -> io::Result<()> {
        let (states, dirs, group, replica) = (self.states.clone(), self.dirs.clone(), self.group, self.replica);
        let found = self.blocking.run(move || {
            let read = |dir: PathBuf| {
                let checkpoint = Checkpoint::kept(dir);
                let mark = states.applied_of(checkpoint.dir()).and_then(|mark| decode_mark(mark.as_deref()));
                match mark {
                    Ok(meta) => Ok(Some(Snapshot { meta, snapshot: Arc::new(checkpoint) })),
                    Err(error) if is_damage(&error) => {
                        tracing::warn!(%group, %error, "a checkpoint of an earlier process is damaged; it is dropped");
                        checkpoint.forget();
                        Ok(None)
                    }
                    Err(error) => Err(error),
                }
            };
            let found = dirs.kept(group, replica)?.into_iter().filter_map(|dir| read(dir).transpose());
            found.collect::<io::Result<Vec<_>>>()
        });
        let useful = |at: &Option<LogId>| at.is_some() && at.map(|at| at.index) >= purged && *at <= reached;
        let (mut useful, mut others): (Vec<_>, Vec<_>) =
            found.await?.into_iter().partition(|snapshot| useful(&snapshot.meta.last_log_id));
        useful.sort_by_key(|snapshot| snapshot.meta.last_log_id);
        self.known.lock().current = useful.pop();
        others.append(&mut useful);
        self.forget(others.into_iter().map(Some)).await
    }

    /// The newest confirmed checkpoint.
    pub(crate) fn current(&self) -> Option<Snapshot> {
        self.known.lock().current.clone()
    }

    /// The newest confirmed checkpoint, or else the candidate.
    pub(crate) fn best(&self) -> Option<Snapshot> {
        let known = self.known.lock();
        known.current.clone().or_else(|| known.candidate.as_ref().map(|candidate| candidate.snapshot.clone()))
    }

    /// Whether a checkpoint waits to be confirmed.
    pub(crate) fn has_candidate(&self) -> bool {
        self.known.lock().candidate.is_some()
    }

    /// Whether this is the confirmed one.
    pub(crate) fn is_confirmed(&self, snapshot: &Snapshot) -> bool {
        #[cfg(feature = "planted")]
        if crate::planted::is("unconfirmed-snapshot") {
            return true;
        }
        self.known.lock().current.as_ref().is_some_and(|current| Arc::ptr_eq(&current.snapshot, &snapshot.snapshot))
    }

    /// The last position at which a majority had the state of this replica, with the hash of that state.
    pub(crate) fn agreed(&self) -> Option<(u64, u64)> {
        self.known.lock().agreed
    }

    /// A majority of the voters has at this position the state of this replica.
    pub(crate) async fn agree(&self, position: u64, hash: u64) -> io::Result<()> {
        {
            let mut known = self.known.lock();
            if known.agreed.is_none_or(|(before, _)| before < position) {
                known.agreed = Some((position, hash));
            }
        }
        match self.changes.try_lock() {
            Ok(_one_at_a_time) => self.promote().await,
            // Whoever makes a checkpoint confirms it too, if it can be, and comparisons must not wait for that.
            Err(_) => Ok(()),
        }
    }

    /// Makes a candidate of the current store, unless there is one. Returns it, or nothing if it was overtaken by a
    /// snapshot or reflects no entry.
    ///
    /// # Errors
    /// Those of the disk. `NotConnected` when the group has stopped.
    pub(crate) async fn make(&self) -> io::Result<Option<Snapshot>> {
        let _one_at_a_time = self.changes.lock().await;
        if let Some(candidate) = &self.known.lock().candidate {
            return Ok(Some(candidate.snapshot.clone()));
        }
        let (begun_on, lease) = {
            let known = self.known.lock();
            (known.store, known.lease.clone().ok_or(io::ErrorKind::NotConnected)?)
        };
        let grown_bytes = self.applied.grown_bytes.load(Ordering::Relaxed);
        let built = self.build(lease).await;
        let snapshot = built.inspect_err(|error| self.health.judge("a checkpoint of the state", error))?;
        {
            let mut known = self.known.lock();
            // A snapshot may have replaced the store meanwhile: this checkpoint is older than that.
            if known.store != begun_on || snapshot.meta.last_log_id.is_none() {
                return Ok(None);
            }
            known.candidate = Some(Candidate { snapshot: snapshot.clone(), grown_bytes });
        }
        if let Err(error) = self.promote().await {
            tracing::warn!(group = %self.group, %error, "a checkpoint could not be kept; the next comparison tries again");
        }
        Ok(Some(snapshot))
    }

    /// The lease goes after the store, also when nobody waits any more for what runs on another thread.
    async fn build(&self, lease: Lease) -> io::Result<Snapshot> {
        let (states, dirs) = (self.states.clone(), self.dirs.clone());
        let (group, replica, observer) = (self.group, self.replica, self.observer.clone());
        let store = self.applied.store.read().clone();
        let built = self.blocking.run(move || {
            let dir = dirs.next(group, replica)?;
            let checkpoint = Arc::new(Checkpoint::new(dir.clone()));
            store.checkpoint(&dir)?;
            drop((store, lease));
            pass(observer.as_ref(), failpoint::CHECKPOINT_MADE)?;
            // What the checkpoint says of itself, not what has been applied: apply goes on meanwhile.
            let meta = decode_mark(states.applied_of(&dir)?.as_deref())?;
            Ok(Snapshot { meta, snapshot: checkpoint })
        });
        built.await
    }

    /// Confirms the candidate if a majority has had the state that it leads to.
    async fn promote(&self) -> io::Result<()> {
        let kept = {
            let known = self.known.lock();
            let agreed = known.agreed.map(|(position, _)| position);
            let candidate = known.candidate.as_ref().map(|candidate| &candidate.snapshot);
            candidate.filter(|snapshot| snapshot.meta.last_log_id.map(|at| at.index) <= agreed).cloned()
        };
        let Some(Snapshot { snapshot, .. }) = kept else { return Ok(()) };
        let observer = self.observer.clone();
        let kept = self.blocking.run(move || {
            snapshot.keep()?;
            pass(observer.as_ref(), failpoint::CHECKPOINT_KEPT)
        });
        kept.await?;
        let old = {
            let mut known = self.known.lock();
            // Without a candidate a snapshot has replaced the store meanwhile, and took the checkpoint with it.
            let Some(Candidate { snapshot, grown_bytes }) = known.candidate.take() else { return Ok(()) };
            self.applied.shrink(grown_bytes);
            known.current.replace(snapshot)
        };
        self.promoted.notify_one();
        self.forget([old]).await
    }

    /// Keeps a checkpoint of a snapshot that is about to replace the store: a peer that is further behind may need it when nobody
    /// is left to confirm another. Until the store is replaced it is above the state, and a start drops it. Called where
    /// blocking is allowed.
    pub(crate) fn keep_received(&self, received: &Checkpoint) -> Option<Arc<Checkpoint>> {
        let linked = self.dirs.next(self.group, self.replica).and_then(|dir| received.link(dir));
        let kept = linked.and_then(|linked| linked.keep().map(|()| linked));
        let warn = |error: &io::Error| {
            tracing::warn!(group = %self.group, %error, "no checkpoint could be kept of a snapshot; another has to be confirmed");
        };
        kept.inspect_err(warn).ok().map(Arc::new)
    }

    /// A snapshot has replaced the store, and reflects `position` with this hash; `kept` is a checkpoint of it. What was made
    /// of the store before is below what openraft purges now.
    pub(crate) async fn replaced(&self, position: Option<u64>, hash: u64, kept: Option<Snapshot>) -> io::Result<()> {
        let gone = {
            let mut known = self.known.lock();
            let candidate = known.candidate.take().map(|candidate| candidate.snapshot);
            let current = std::mem::replace(&mut known.current, kept);
            known.store += 1;
            known.agreed = position.map(|position| (position, hash));
            known.is_suspect = false;
            self.applied.grown_bytes.store(0, Ordering::Relaxed);
            [candidate, current]
        };
        self.forget(gone).await
    }

    /// Lets checkpoints go with their last users, also if they were to outlive the process. Many files may go with them, so
    /// this is nothing for a thread of Raft.
    async fn forget(&self, gone: impl IntoIterator<Item = Option<Snapshot>>) -> io::Result<()> {
        let gone: Vec<Snapshot> = gone.into_iter().flatten().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let forget = move || {
            gone.iter().for_each(|snapshot| snapshot.snapshot.forget());
            drop(gone);
            Ok(())
        };
        self.blocking.run(forget).await
    }

    /// Reads a checkpoint once before it is sent for the first time: a peer that installed a damaged one would take the damage
    /// for its own. One that does not read back is dropped, for some of its files are its own; if another one that is made of
    /// the state does not read either, the state is damaged.
    pub(crate) async fn verify(&self, snapshot: &Snapshot) -> io::Result<()> {
        let (states, checkpoint) = (self.states.clone(), snapshot.snapshot.clone());
        let verified = self.blocking.run(move || checkpoint.verify(&*states)).await;
        let Err(error) = verified else {
            self.known.lock().is_suspect = false;
            return Ok(());
        };
        if is_damage(&error) {
            let (was_suspect, gone) = {
                let mut known = self.known.lock();
                let is_this = |current: &mut Snapshot| Arc::ptr_eq(&current.snapshot, &snapshot.snapshot);
                let was_suspect = std::mem::replace(&mut known.is_suspect, true);
                (was_suspect, known.current.take_if(is_this))
            };
            if was_suspect {
                self.health.judge("a checkpoint of the state", &error);
            } else {
                tracing::warn!(group = %self.group, %error, "a checkpoint is damaged; it is dropped and another is made");
            }
            self.forget([gone]).await?;
        }
        Err(error)
    }

    /// A peer is being sent a checkpoint, until the returned word is dropped.
    pub(crate) fn begin_sending(self: &Arc<Self>) -> Sending {
        self.known.lock().sending += 1;
        Sending { checkpoints: self.clone() }
    }

    /// Waits until no peer needs the log above an older checkpoint, or the log has grown too large for that.
    pub(crate) async fn may_purge(&self) {
        let too_large = self.applied.limit_bytes.saturating_mul(GROWN_TOO_LARGE);
        let mut tick = tokio::time::interval(CATCH_UP / 10);
        loop {
            tick.tick().await;
            let known = self.known.lock();
            let is_needed = known.sending > 0 || known.sent.is_some_and(|sent| sent.elapsed() < CATCH_UP);
            if !is_needed || self.applied.grown_bytes.load(Ordering::Relaxed) >= too_large {
                return;
            }
        }
    }

    /// Keeps the database open, until it is dropped. None when the group has stopped.
    pub(crate) fn lease(&self) -> Option<Lease> {
        self.known.lock().lease.clone()
    }

    /// Lets go of the database: no checkpoint is made any more.
    pub(crate) fn close(&self) {
        self.known.lock().lease = None;
    }
}

/// A peer is being sent a checkpoint.
pub(crate) struct Sending {
    checkpoints: Arc<Checkpoints>,
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut known = self.checkpoints.known.lock();
        known.sending -= 1;
        known.sent = Some(Instant::now());
    }
}
