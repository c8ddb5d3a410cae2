//! The log of one group as openraft sees it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};

use crate::engine::{LogChange, MarkKind};
use crate::health::Health;
use crate::log::floor::{FloorChange, Synced};
use crate::log::record::{self, HEADER_BYTES};
use crate::log::state::{GroupState, Inner};
use crate::log::writer::Answer;
use crate::log::{StoreShared, mark};
use crate::proto;
use crate::types::{Entry, LogId, Payload, Proposal, TC, Vote};

/// The writing side of a group's log. While one of its clones lives, the group cannot be opened again.
#[derive(Clone)]
pub struct GroupLog {
    reader: GroupLogReader,
    _open: Arc<()>,
}

/// The reading side of a group's log. Cheap to clone; sees what was appended from the moment in which `append` returned.
#[derive(Clone)]
pub struct GroupLogReader {
    pub(super) store: Arc<StoreShared>,
    pub(super) state: Arc<GroupState>,
    health: Arc<Health>,
}

impl GroupLog {
    pub(crate) fn new(store: Arc<StoreShared>, state: Arc<GroupState>, open: Arc<()>) -> Self {
        GroupLog { reader: GroupLogReader { store, state, health: Arc::default() }, _open: open }
    }

    /// Where damage that is met while the log is read is noted.
    pub(crate) fn health(&self) -> Arc<Health> {
        self.reader.health.clone()
    }

    /// The identity of the entry at a position that is in the log.
    pub(crate) fn identity(&self, position: u64) -> io::Result<Option<LogId>> {
        let known = |inner: &Inner| position >= inner.first_position() && position < inner.end_position();
        let found = self.state().with(|inner| if known(inner) { self.identity_at(inner, position) } else { Ok(None) });
        Ok(self.reader.judged(found)?.map(|(id, _)| id))
    }

    /// Bytes of the records above the purged position: what a purge could free. Exact but for records that were purged or
    /// truncated while they were no longer in memory; those are taken to have the mean length.
    pub fn bytes(&self) -> u64 {
        self.reader.bytes()
    }

    /// A reader of this log.
    pub fn reader(&self) -> GroupLogReader {
        self.reader.clone()
    }

    fn state(&self) -> &GroupState {
        &self.reader.state
    }

    /// Puts changes into the queue. Called under the lock of the group's state.
    fn submit(
        &self,
        changes: impl IntoIterator<Item = LogChange>,
        floor: Option<FloorChange>,
        answers: [Option<Answer>; 2],
    ) -> io::Result<()> {
        self.reader.store.writer.submit(|queue| {
            queue.changes.extend(changes);
            queue.floor.extend(floor);
            queue.answers.extend(answers.into_iter().flatten());
        })
    }

    /// The entry at a position and the checksum of its record, from memory or disk; the purged one counts.
    fn identity_at(&self, inner: &Inner, position: u64) -> io::Result<Option<(LogId, u32)>> {
        if inner.last.is_some_and(|last| last.index == position) {
            return Ok(inner.last.map(|last| (last, inner.head_crc)));
        }
        if let Some(held) = inner.identity_at(position) {
            return Ok(Some(held));
        }
        let group = self.state().group;
        let stored = self.reader.store.engine.read(group, position, position + 1, 1)?;
        let Some((_, bytes)) = stored.first() else { return Ok(None) };
        let record = record::decode(group, position, bytes).map_err(damaged)?;
        Ok(Some((record.entry.log_id, record.crc)))
    }

    /// The checksum that the record after `position` names as the one before it.
    fn chain_after(&self, inner: &Inner, position: u64) -> io::Result<u32> {
        if position + 1 >= inner.end_position() {
            return Ok(inner.head_crc);
        }
        if position + 1 == inner.first_position() {
            return Ok(inner.purged_crc);
        }
        match self.identity_at(inner, position)? {
            Some((_, crc)) => Ok(crc),
            None => Err(hole(position)),
        }
    }
}

impl GroupLogReader {
    /// See [`GroupLog::bytes`].
    pub fn bytes(&self) -> u64 {
        self.state.with(|inner| inner.log_bytes)
    }

    /// The last position that was purged, if any was.
    pub(crate) fn purged(&self) -> Option<u64> {
        self.state.with(|inner| inner.purged.map(|purged| purged.index))
    }

    /// The last position in the log, the purged one if there is nothing above it.
    pub(crate) fn last(&self) -> Option<u64> {
        self.state.with(|inner| inner.last.map(|last| last.index))
    }

    /// Whether everything up to a position is on the disk.
    pub(crate) fn is_durable(&self, position: u64) -> bool {
        self.state.with(|inner| position < inner.durable_end())
    }

    /// Notes the damage that a result tells of.
    fn judged<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| self.health.judge("the log", error))
    }

    /// Reads `from..to` cut to what the log has; with a limit at most about so many bytes and at least one entry.
    fn read(&self, from: u64, to: u64, limit_bytes: Option<usize>) -> io::Result<Vec<Entry>> {
        self.judged(self.find(from, to, limit_bytes))
    }

    fn find(&self, from: u64, to: u64, limit_bytes: Option<usize>) -> io::Result<Vec<Entry>> {
        let located = self.state.with(|inner| inner.locate(from, to, limit_bytes));
        let Some((stored_from, stored_to)) = located.stored else { return Ok(located.held) };
        let (mut entries, whole) = self.read_stored(stored_from, stored_to, limit_bytes)?;
        if whole {
            entries.extend(located.held);
        }
        Ok(entries)
    }

    /// Reads entries that are durable and no longer in memory. False if it met a truncation and ended before `to`.
    fn read_stored(&self, from: u64, to: u64, limit_bytes: Option<usize>) -> io::Result<(Vec<Entry>, bool)> {
        let group = self.state.group;
        let limit = limit_bytes.unwrap_or(self.store.config.read_bytes);
        let mut entries: Vec<Entry> = Vec::new();
        let mut next = from;
        while next < to {
            let records = self.store.engine.read(group, next, to, limit)?;
            let found = records.first().map_or(to, |(position, _)| *position);
            if found != next {
                if !self.state.with(|inner| inner.excuses(next, found)) {
                    return Err(hole(next));
                }
                if self.state.with(|inner| inner.first_position()) < found {
                    return Ok((entries, false));
                }
                // Purged while this read went on, and so is everything that was read before.
                entries.clear();
                next = found;
            }
            for (position, bytes) in &records {
                if *position != next {
                    return Err(hole(next));
                }
                entries.push(record::decode(group, next, bytes).map_err(damaged)?.entry);
                next += 1;
            }
            if limit_bytes.is_some() {
                break;
            }
        }
        Ok((entries, true))
    }
}

fn hole(position: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the log has no record at position {position}, which it must have"),
    )
}

fn damaged(error: record::RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The positions of a range as `from..to`.
fn positions(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

/// The payload with its bytes taken out of the record, so that memory holds them once.
fn payload_in(record: &Bytes, payload: Payload) -> Payload {
    match payload {
        EntryPayload::Normal(_) => EntryPayload::Normal(Proposal(record.slice(HEADER_BYTES..))),
        other => other,
    }
}

impl RaftLogReader<TC> for GroupLogReader {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = positions(&range);
        self.read(from, to, None)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, Some(self.store.config.read_bytes))
    }

    /// Reads piece by piece, so that applying a long log does not load it whole.
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let reader = self.clone();
        let limit = self.store.config.read_bytes;
        let pieces = stream::unfold(Some(positions(&range)), move |rest| {
            let reader = reader.clone();
            async move {
                let (from, to) = rest?;
                match reader.read(from, to, Some(limit)) {
                    Ok(entries) => {
                        let last = entries.last()?.log_id.index;
                        let items: Vec<_> = entries.into_iter().map(Ok).collect();
                        Some((items, Some((last + 1, to))))
                    }
                    Err(error) => Some((vec![Err(error)], None)),
                }
            }
        });
        Box::pin(pieces.map(stream::iter).flatten())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.state.with(|inner| inner.vote))
    }
}

impl RaftLogStorage<TC> for GroupLog {
    type LogReader = GroupLogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TC>, io::Error> {
        let (last_purged_log_id, last_log_id) = self.state().with(|inner| (inner.purged, inner.last));
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> GroupLogReader {
        self.reader()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let value = mark::encode(&proto::Vote::from(vote));
        let group = self.state().group;
        let change = LogChange::Mark { group, kind: MarkKind::Vote, value };
        let given = FloorChange::Vote { group, vote: *vote };
        #[cfg(feature = "planted")]
        if crate::planted::is("forgotten-vote") {
            self.state().with(|inner| inner.vote = Some(*vote));
            return Ok(());
        }
        let (told, wait) = tokio::sync::oneshot::channel();
        self.state().with(|inner| {
            inner.vote = Some(*vote);
            self.submit([change], Some(given), [Some(Answer::Waiter(told)), None])
        })?;
        wait.await.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the log writer has ended"))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(at) = committed {
            self.state().with(|inner| {
                inner.committed = Some(at);
                self.reader.store.writer.remember_committed(self.state().group, at);
            });
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.state().with(|inner| inner.committed))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TC>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let group = self.state().group;
        self.state().with(|inner| {
            let sequence = inner.next_sequence();
            let (mut changes, mut synced) = (Vec::new(), None);
            for entry in entries {
                inner.check_follows(&entry)?;
                let (record, crc) = record::encode(group, &entry, inner.head_crc);
                let payload = payload_in(&record, entry.payload);
                inner.push(entry.log_id, payload, crc, record.len(), sequence);
                let position = entry.log_id.index;
                changes.push(LogChange::Append { group, position, record });
                synced = Some(FloorChange::Synced { group, last: Synced { position, crc } });
            }
            let durable = Answer::Durable(self.reader.state.clone(), sequence);
            #[cfg(feature = "planted")]
            if crate::planted::is("acknowledge-before-flush") {
                callback.io_completed(Ok(()));
                return self.submit(changes, synced, [Some(durable), None]);
            }
            // Durable first: when openraft hears of it, the memory may already be trimmed.
            self.submit(changes, synced, [Some(durable), Some(Answer::Flushed(callback))])
        })
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let truncated = self.state().with(|inner| {
            let from = last_log_id.map_or(0, |last| last.index + 1).max(inner.first_position());
            if from >= inner.end_position() {
                return Ok(());
            }
            let (last, head_crc) = if from == inner.first_position() {
                (inner.purged, inner.purged_crc)
            } else {
                let (last, crc) = self.identity_at(inner, from - 1)?.ok_or_else(|| hole(from - 1))?;
                (Some(last), crc)
            };
            #[cfg(feature = "planted")]
            if crate::planted::is("dropped-truncate") {
                inner.truncate(from, last, head_crc);
                return Ok(());
            }
            let group = self.state().group;
            let lowered = last.map(|last| Synced { position: last.index, crc: head_crc });
            let lowered = FloorChange::Lowered { group, last: lowered };
            self.submit([LogChange::Truncate { group, from }], Some(lowered), [None, None])?;
            inner.truncate(from, last, head_crc);
            Ok(())
        });
        self.reader.judged(truncated)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let purged = self.state().with(|inner| {
            if inner.purged.is_some_and(|purged| purged.index >= upto.index) {
                return Ok(());
            }
            let crc = self.chain_after(inner, upto.index)?;
            let group = self.state().group;
            #[cfg(feature = "planted")]
            if crate::planted::is("purge-ahead") {
                let ahead = inner.committed.filter(|at| Some(*at) <= inner.last).unwrap_or(upto).max(upto);
                let value = proto::PurgedMark { at: Some((&ahead).into()), crc: self.chain_after(inner, ahead.index)? };
                let value = mark::encode(&value);
                let changes = [
                    LogChange::Purge { group, upto: ahead.index },
                    LogChange::Mark { group, kind: MarkKind::Purged, value },
                ];
                self.submit(changes, None, [None, None])?;
                inner.purge(upto, crc);
                return Ok(());
            }
            let value = mark::encode(&proto::PurgedMark { at: Some((&upto).into()), crc });
            let changes = [
                LogChange::Purge { group, upto: upto.index },
                LogChange::Mark { group, kind: MarkKind::Purged, value },
            ];
            self.submit(changes, Some(FloorChange::Purged { group, position: upto.index }), [None, None])?;
            inner.purge(upto, crc);
            Ok(())
        });
        self.reader.judged(purged)
    }
}
