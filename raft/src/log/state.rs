//! What a group's log holds in memory: its ends, its marks, and its most recent entries.
//!
//! Invariants:
//! - Positions in the log are without holes from the one after `purged` to `last`.
//! - The tail holds a suffix of the log, and every entry that may not be durable yet. So what is not in the tail can be
//!   read from the engine, and the engine is never asked for a position that it may hold in an older version.

use std::collections::VecDeque;
use std::io;

use parking_lot::Mutex;

use crate::ids::GroupId;
use crate::types::{Entry, LogId, Payload, Vote};

/// A recent entry.
struct Held {
    entry: Entry,
    /// The checksum of its record.
    crc: u32,
    /// Length of its record.
    bytes: usize,
    /// The submission that carries it to the disk.
    sequence: u64,
}

/// The memory of one group's log, shared by its writer side and its readers.
pub(crate) struct GroupState {
    pub(crate) group: GroupId,
    inner: Mutex<Inner>,
    /// Bytes of durable entries that stay in memory.
    cap_bytes: usize,
}

/// What is under the lock.
pub(crate) struct Inner {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// What the first record after the purged ones is chained to.
    pub(crate) purged_crc: u32,
    pub(crate) last: Option<LogId>,
    /// Where the log begins while nothing was purged.
    start: u64,
    /// The checksum of the last record: what the next one is chained to.
    pub(crate) head_crc: u32,
    /// Bytes of records above the purged position.
    pub(crate) log_bytes: u64,
    tail: VecDeque<Held>,
    tail_bytes: usize,
    /// How often the log was truncated.
    pub(crate) cuts: u64,
    /// The sequence of the latest submission, and of the latest that is durable.
    sequence: u64,
    durable: u64,
}

/// What a group's log looked like when it was opened.
#[derive(Default)]
pub(crate) struct Opened {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) purged_crc: u32,
    pub(crate) last: Option<LogId>,
    pub(crate) start: u64,
    pub(crate) head_crc: u32,
    pub(crate) log_bytes: u64,
}

/// Where the parts of a range are.
pub(crate) struct Located {
    /// Positions `from..to` that only the engine has.
    pub(crate) stored: Option<(u64, u64)>,
    /// The entries after those, from memory.
    pub(crate) held: Vec<Entry>,
}

impl GroupState {
    pub(crate) fn new(group: GroupId, opened: Opened, cap_bytes: usize) -> Self {
        let inner = Inner {
            vote: opened.vote,
            committed: opened.committed,
            purged: opened.purged,
            purged_crc: opened.purged_crc,
            last: opened.last,
            start: opened.start,
            head_crc: opened.head_crc,
            log_bytes: opened.log_bytes,
            tail: VecDeque::new(),
            tail_bytes: 0,
            cuts: 0,
            sequence: 0,
            durable: 0,
        };
        GroupState { group, inner: Mutex::new(inner), cap_bytes }
    }

    /// Runs `change` under the lock. Changes that also go to the writer are submitted inside it, so that memory and disk
    /// see them in one order.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock())
    }

    /// Called by the writer: submissions up to `sequence` are durable, so their entries may leave the memory.
    pub(crate) fn durable_upto(&self, sequence: u64) {
        let mut inner = self.inner.lock();
        inner.durable = inner.durable.max(sequence);
        inner.evict(self.cap_bytes);
    }
}

impl Inner {
    /// The first position that is in the log, or would be.
    pub(crate) fn first_position(&self) -> u64 {
        self.purged.map_or(self.start, |purged| purged.index + 1)
    }

    /// The position after the last.
    pub(crate) fn end_position(&self) -> u64 {
        self.last.map_or_else(|| self.first_position(), |last| last.index + 1)
    }

    /// The first position in memory; the end of the log if there is none.
    fn tail_start(&self) -> u64 {
        self.tail.front().map_or_else(|| self.end_position(), |held| held.entry.log_id.index)
    }

    /// The first position that may not be durable yet; the end of the log if there is none. What is before it stands on the
    /// disk as it is known here, until it is purged or truncated.
    pub(crate) fn durable_end(&self) -> u64 {
        self.tail_start() + self.tail.partition_point(|held| held.sequence <= self.durable) as u64
    }

    /// The checksum of the record before a position, if it is in memory.
    pub(crate) fn crc_before(&self, position: u64) -> Option<u32> {
        if position == self.first_position() {
            return Some(self.purged_crc);
        }
        if position == self.end_position() {
            return Some(self.head_crc);
        }
        self.identity_at(position.checked_sub(1)?).map(|(_, crc)| crc)
    }

    /// A number for a submission that is about to be made.
    pub(crate) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Refuses an entry that would leave a hole or overwrite. The first entry of a pristine log may be anywhere.
    pub(crate) fn check_follows(&self, entry: &Entry) -> io::Result<()> {
        let Some(last) = &self.last else { return Ok(()) };
        let position = entry.log_id.index;
        if position == last.index + 1 {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("entry {position} does not follow the last entry, {}", last.index),
        ))
    }

    /// Takes an entry into memory as the new last one. `payload` shares the bytes of the record, so that the buffer in
    /// which the proposal arrived can go.
    pub(crate) fn push(&mut self, log_id: LogId, payload: Payload, crc: u32, bytes: usize, sequence: u64) {
        if self.last.is_none() {
            self.start = log_id.index;
        }
        self.last = Some(log_id);
        self.head_crc = crc;
        self.log_bytes += bytes as u64;
        self.tail_bytes += bytes;
        self.tail.push_back(Held { entry: Entry { log_id, payload }, crc, bytes, sequence });
    }

    /// The identity of the entry at a position and the checksum of its record, if it is in memory.
    pub(crate) fn identity_at(&self, position: u64) -> Option<(LogId, u32)> {
        let at = position.checked_sub(self.tail_start())?;
        self.tail.get(usize::try_from(at).ok()?).map(|held| (held.entry.log_id, held.crc))
    }

    /// True if positions from `from` on were read from the database in vain for a good reason: everything before `to` was
    /// purged since, or what was at `from` was truncated.
    pub(crate) fn excuses(&self, from: u64, to: u64) -> bool {
        self.first_position() >= to || self.tail_start() <= from
    }

    /// Drops the entries at `from` and after. `last` is the entry before `from` with the checksum of its record, or the
    /// purged one, or none.
    pub(crate) fn truncate(&mut self, from: u64, last: Option<LogId>, head_crc: u32) {
        let old_end = self.end_position();
        let mut gone = 0;
        while self.tail.back().is_some_and(|held| held.entry.log_id.index >= from) {
            let held = self.tail.pop_back().expect("just seen");
            self.tail_bytes -= held.bytes;
            gone += held.bytes as u64;
        }
        if self.tail.is_empty() {
            gone = gone.max(self.estimate(old_end - from.min(old_end), old_end));
        }
        self.log_bytes = self.log_bytes.saturating_sub(gone);
        self.last = last;
        self.head_crc = head_crc;
        self.cuts += 1;
    }

    /// Drops the entries up to and with `upto`. `crc` is what the record after it is chained to.
    pub(crate) fn purge(&mut self, upto: LogId, crc: u32) {
        let (first, end) = (self.first_position(), self.end_position());
        while self.tail.front().is_some_and(|held| held.entry.log_id.index <= upto.index) {
            let held = self.tail.pop_front().expect("just seen");
            self.tail_bytes -= held.bytes;
        }
        self.log_bytes = if self.tail_start() == upto.index + 1 {
            self.tail_bytes as u64
        } else {
            let purged = (upto.index + 1).saturating_sub(first);
            self.log_bytes.saturating_sub(self.estimate(purged, end))
        };
        self.purged = Some(upto);
        self.purged_crc = crc;
        if self.last.is_none_or(|last| last.index <= upto.index) {
            self.last = Some(upto);
            self.log_bytes = 0;
        }
    }

    /// Bytes of `count` records, taking all to have the mean length of those that are in the log up to `end`.
    fn estimate(&self, count: u64, end: u64) -> u64 {
        let all = end.saturating_sub(self.first_position()).max(1);
        let share = u128::from(self.log_bytes) * u128::from(count.min(all)) / u128::from(all);
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// Drops durable entries from the front until at most `cap_bytes` are held.
    fn evict(&mut self, cap_bytes: usize) {
        while self.tail_bytes > cap_bytes
            && self.tail.len() > 1
            && self.tail.front().is_some_and(|held| held.sequence <= self.durable)
        {
            let held = self.tail.pop_front().expect("just seen");
            self.tail_bytes -= held.bytes;
        }
    }

    /// Finds `from..to` cut to what the log has. With a limit, at most about so many bytes and at least one entry, and
    /// nothing from memory if a part must be read first.
    pub(crate) fn locate(&self, from: u64, to: u64, limit_bytes: Option<usize>) -> Located {
        let from = from.max(self.first_position());
        let to = to.min(self.end_position());
        let tail_start = self.tail_start();
        if from >= to {
            return Located { stored: None, held: Vec::new() };
        }
        let stored = (from < tail_start).then(|| (from, to.min(tail_start)));
        if stored.is_some() && limit_bytes.is_some() {
            return Located { stored, held: Vec::new() };
        }
        let begin = from.max(tail_start);
        let mut held = Vec::new();
        if begin < to {
            let skip = usize::try_from(begin - tail_start).expect("the tail is in memory");
            let take = usize::try_from(to - begin).expect("the tail is in memory");
            held.reserve(take);
            let mut bytes = 0;
            for one in self.tail.iter().skip(skip).take(take) {
                bytes += one.bytes;
                if !held.is_empty() && limit_bytes.is_some_and(|limit| bytes > limit) {
                    break;
                }
                held.push(one.entry.clone());
            }
        }
        Located { stored, held }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use openraft::EntryPayload;

    use super::*;
    use crate::log::record::SEED;
    use crate::types::{Proposal, log_id};

    const RECORD: usize = 100;

    fn state(cap_bytes: usize) -> GroupState {
        GroupState::new(GroupId(1), Opened::default(), cap_bytes)
    }

    fn push(state: &GroupState, position: u64) -> u64 {
        state.with(|inner| {
            let sequence = inner.next_sequence();
            let payload = EntryPayload::Normal(Proposal(Bytes::from_static(b"p")));
            inner.push(log_id(1, 1, position), payload, position as u32, RECORD, sequence);
            sequence
        })
    }

    fn held(state: &GroupState, from: u64, to: u64) -> (Option<(u64, u64)>, Vec<u64>) {
        state.with(|inner| {
            let located = inner.locate(from, to, None);
            (located.stored, located.held.iter().map(|entry| entry.log_id.index).collect())
        })
    }

    #[test]
    fn entries_leave_memory_only_once_they_are_durable() {
        let state = state(3 * RECORD);
        let sequences: Vec<u64> = (0..6).map(|position| push(&state, position)).collect();
        assert_eq!(held(&state, 0, 6), (None, vec![0, 1, 2, 3, 4, 5]));
        state.durable_upto(sequences[1]);
        assert_eq!(held(&state, 0, 6), (Some((0, 2)), vec![2, 3, 4, 5]));
        state.durable_upto(sequences[5]);
        assert_eq!(held(&state, 0, 6), (Some((0, 3)), vec![3, 4, 5]));
    }

    #[test]
    fn a_rewritten_entry_is_not_taken_for_the_durable_one_at_its_position() {
        let state = state(RECORD);
        push(&state, 0);
        let old = push(&state, 1);
        state.with(|inner| inner.truncate(1, Some(log_id(1, 1, 0)), 0));
        push(&state, 1);
        push(&state, 2);
        state.durable_upto(old);
        // Position 0 is durable; the new position 1 is not, though the old one is.
        assert_eq!(held(&state, 0, 3), (Some((0, 1)), vec![1, 2]));
    }

    #[test]
    fn a_limit_returns_at_least_one_entry_and_about_the_bytes() {
        let state = state(usize::MAX);
        for position in 0..10 {
            push(&state, position);
        }
        let count = |limit| state.with(|inner| inner.locate(2, 10, Some(limit)).held.len());
        assert_eq!(count(0), 1);
        assert_eq!(count(3 * RECORD), 3);
        assert_eq!(count(usize::MAX), 8);
    }

    #[test]
    fn purge_beyond_the_end_leaves_an_empty_log_that_goes_on_after_it() {
        let state = state(usize::MAX);
        push(&state, 0);
        state.with(|inner| inner.purge(log_id(2, 1, 50), 0));
        assert_eq!(held(&state, 0, 100), (None, vec![]));
        state.with(|inner| {
            assert_eq!((inner.first_position(), inner.end_position(), inner.log_bytes), (51, 51, 0));
            let entry = |position| Entry { log_id: log_id(2, 1, position), payload: EntryPayload::Blank };
            assert!(inner.check_follows(&entry(51)).is_ok());
            assert!(inner.check_follows(&entry(52)).is_err());
            assert!(inner.check_follows(&entry(50)).is_err());
        });
    }

    #[test]
    fn log_bytes_follow_appends_truncates_and_purges() {
        let state = state(usize::MAX);
        for position in 0..10 {
            push(&state, position);
        }
        let bytes = || state.with(|inner| inner.log_bytes);
        assert_eq!(bytes(), 10 * RECORD as u64);
        state.with(|inner| inner.truncate(8, Some(log_id(1, 1, 7)), 7));
        assert_eq!(bytes(), 8 * RECORD as u64);
        state.with(|inner| inner.purge(log_id(1, 1, 4), 4));
        assert_eq!(bytes(), 3 * RECORD as u64);
    }

    #[test]
    fn a_pristine_log_is_chained_to_the_seed() {
        state(0).with(|inner| assert_eq!(inner.head_crc, SEED));
    }
}
