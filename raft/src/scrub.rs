//! The scrub: reads what nobody needs, before somebody does.
//!
//! A record that has left memory and a row that nobody asks for are read again only at a restart, or for a peer that is far
//! behind. Until then a replica that has lost them would vote and count in quorums; two of them and a power cut, and a majority
//! is gone that everybody relied on. So one task of each node reads everything that its replicas have promised, slowly and
//! again and again:
//!
//! - the *logs*: every durable record, its checksum and its chain (the same [`Chain`](crate::log) as at a start), and the
//!   marks, held against what memory knows;
//! - the *floor*: both slots, of which one that does not read back is written again;
//! - the *states*: every block of the state databases, past their caches.
//!
//! What is found is given to the group's [`Health`](crate::health), as any other damage; nothing new follows from it.
//!
//! What cannot be seen this way are the bytes of the write-ahead log of the log database: while the process lives it reads
//! their records from memory. So each pass begins by [spilling](crate::LogEngine::spill) them into tables, which are read
//! from the disk, and the write-ahead log goes. What rots in it between two passes does no harm while the process lives; a
//! process that dies meanwhile finds it at the next start, by the floor. A state database has none.
//!
//! Invariants:
//! - A group's database is kept open by a part of its scrub, for about a megabyte, and by nothing between two parts.
//! - What is purged, truncated, replaced or destroyed meanwhile is no damage.
//! - Nothing but tokio's clock and the order of the groups decides what is read when.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::blocking::Blocking;
use crate::group::{Directory, Running};
use crate::log::LogStore;
use crate::log::scrub::{Looked, MarkCheck, Walk};
use crate::metrics::{Part, ScrubMetrics};

/// About how much is read at once.
const CHUNK_BYTES: usize = 1 << 20;
/// How much is read in a second, at most.
const BYTES_PER_S: u64 = 4 << 20;
/// Marks that differ are looked at so often, again after a pause and then each time when everything is durable.
const MARK_ROUNDS: usize = 5;
const MARK_PAUSE: Duration = Duration::from_millis(100);

/// Passes over one kind of what is stored.
#[derive(Debug)]
pub(crate) struct Schedule {
    every: Duration,
    due: Instant,
}

impl Schedule {
    /// The first pass comes after `every`, the next ones as long after the pass before began.
    pub(crate) fn new(every: Duration) -> Schedule {
        Schedule { every, due: Instant::now() + every }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    fn begin(&mut self) {
        self.due = Instant::now() + self.every;
    }
}

/// The scrub of a node.
pub(crate) struct Scrub {
    pub(crate) log: LogStore,
    pub(crate) groups: Arc<Directory>,
    pub(crate) blocking: Blocking,
    pub(crate) metrics: ScrubMetrics,
    pub(crate) logs: Schedule,
    pub(crate) states: Schedule,
    /// Cancelled when the node shuts down.
    pub(crate) stop: CancellationToken,
}

impl Scrub {
    /// Reads and rests until the node shuts down.
    pub(crate) async fn run(mut self) {
        loop {
            let due = self.logs.due.min(self.states.due);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep_until(due) => {}
            }
            self.logs_if_due().await;
            if self.states.is_due() {
                self.pass_states().await;
            }
        }
    }

    /// The logs do not wait until all states are read.
    async fn logs_if_due(&mut self) {
        if self.logs.is_due() {
            self.logs.begin();
            self.pass_logs().await;
        }
    }

    async fn pass_logs(&self) {
        let log = self.log.clone();
        if let Err(error) = self.blocking.run(move || log.spill()).await {
            tracing::warn!(%error, "the write-ahead log of the log database could not be spilled for the scrub");
        }
        if let Err(error) = self.scrub_floor().await {
            tracing::warn!(%error, "the floor could not be read or written for the scrub");
        }
        for group in self.groups.all() {
            if let Err(error) = self.scrub_log(&group).await {
                tracing::warn!(group = %group.id, %error, "a log could not be read for the scrub; the next pass tries again");
            }
        }
        self.end_pass(Part::Log);
    }

    async fn pass_states(&mut self) {
        self.states.begin();
        for group in self.groups.all() {
            if let Err(error) = self.scrub_state(&group).await {
                tracing::warn!(group = %group.id, %error, "a state could not be read for the scrub; the next pass tries again");
            }
        }
        self.end_pass(Part::State);
    }

    fn end_pass(&self, part: Part) {
        if !self.stop.is_cancelled() {
            self.metrics.passed(part);
        }
    }

    /// Reads the floor back, and has it written again where it does not.
    async fn scrub_floor(&self) -> io::Result<()> {
        let log = self.log.clone();
        let Some((mended, reason)) = self.blocking.run(move || log.reread_floor()).await? else { return Ok(()) };
        tracing::warn!(reason, "a slot of the floor is damaged; the floor is written again");
        self.metrics.found(Part::Floor);
        self.log.mend_floor(mended).await
    }

    /// Reads the marks and the records of a group.
    async fn scrub_log(&self, group: &Running) -> io::Result<()> {
        self.scrub_marks(group).await?;
        let mut walk = Walk::default();
        loop {
            let log = group.log.clone();
            let mut on = walk.clone();
            let read = move || log.walk(&mut on, CHUNK_BYTES).map(|looked| (on, looked));
            let Some((on, looked)) = self.read(group, read).await? else { return Ok(()) };
            walk = on;
            match looked {
                Looked::Damaged(error) => {
                    self.damaged(group, Part::Log, error.to_string());
                    return Ok(());
                }
                Looked::Whole { bytes, ended } => {
                    if !self.rest(Part::Log, bytes).await || ended {
                        return Ok(());
                    }
                }
                Looked::UnderWay => {}
            }
        }
    }

    /// Holds the marks of a group against memory.
    async fn scrub_marks(&self, group: &Running) -> io::Result<()> {
        let mut check = MarkCheck::default();
        for round in 0..MARK_ROUNDS {
            let (log, replica, mut again) = (group.log.clone(), group.replica, std::mem::take(&mut check));
            let read = move || log.check_marks(&mut again, replica).map(|looked| (again, looked));
            let Some((on, looked)) = self.read(group, read).await? else { return Ok(()) };
            check = on;
            match looked {
                Looked::Whole { .. } => return Ok(()),
                // Most writes have come to their end then, and the log writer has none more for this.
                Looked::UnderWay if round == 0 => {
                    if !self.pause(MARK_PAUSE).await {
                        return Ok(());
                    }
                }
                Looked::UnderWay => {
                    self.log.flush().await?;
                    check.all_is_durable();
                }
                Looked::Damaged(error) => {
                    self.damaged(group, Part::Log, error.to_string());
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads the state of a group. Whatever reads it, the group hears of damage.
    async fn scrub_state(&mut self, group: &Running) -> io::Result<()> {
        let mut next = Some(bytes::Bytes::new());
        while let Some(from) = next {
            let applied = group.applied.clone();
            let read = move || {
                let store = applied.store.read().clone();
                store.reread(&from, CHUNK_BYTES)
            };
            let reread = match self.read(group, read).await {
                Ok(Some(reread)) => reread,
                Ok(None) => return Ok(()),
                // It was closed just before it was read.
                Err(_) if group.stop.is_cancelled() => return Ok(()),
                Err(_) if group.health.found().is_some() => {
                    self.metrics.found(Part::State);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            if !self.rest(Part::State, reread.bytes).await {
                return Ok(());
            }
            self.logs_if_due().await;
            next = reread.next;
        }
        Ok(())
    }

    /// Reads a part of what a group has on its disk, with the database kept open so long. None if the group has stopped.
    async fn read<T: Send + 'static>(
        &self,
        group: &Running,
        read: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<Option<T>> {
        // One that is damaged is about to stop.
        if self.stop.is_cancelled() || group.stop.is_cancelled() || group.health.found().is_some() {
            return Ok(None);
        }
        #[cfg(feature = "planted")]
        if crate::planted::is("blind-scrub") {
            return Ok(None);
        }
        let Some(lease) = group.checkpoints.lease() else { return Ok(None) };
        let read = move || {
            let read = read();
            drop(lease);
            read
        };
        self.blocking.run(read).await.map(Some)
    }

    fn damaged(&self, group: &Running, part: Part, reason: String) {
        self.metrics.found(part);
        group.health.damage(reason);
    }

    /// Counts what was read, and rests so long that no more is read than may be. False when the node shuts down.
    async fn rest(&self, part: Part, bytes: u64) -> bool {
        self.metrics.read(part, bytes);
        self.pause(Duration::from_secs(1).mul_f64(bytes as f64 / BYTES_PER_S as f64)).await
    }

    /// False when the node shuts down.
    async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(time) => true,
        }
    }
}
