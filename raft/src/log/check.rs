//! The check of a group's log when it is opened.
//!
//! Every record above the purged position is read and must be whole, at its position, and chained to the one before.
//! Where that ends, two stories are possible. A crash in the middle of the last write leaves damage and nothing after it;
//! what it damaged was never acknowledged, so it is cut off. Damage with a whole record after it was durable
//! once and is never cut off, because that would be voting on a log with acknowledged entries missing. Nor is anything cut
//! off below the [floor](super::floor), to which the log was durable: it must reach the floor, have the very record there
//! that was written last, and a vote that is at least the one that was given.

use bytes::Bytes;

use crate::engine::{LogEngine, MarkKind};
use crate::ids::GroupId;
use crate::log::floor::FloorEntry;
use crate::log::record::{self, Record, RecordError, SEED};
use crate::log::state::Opened;
use crate::log::{LogError, mark};
use crate::proto;
use crate::types::{LogId, Vote};

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;

/// Follows the records of a group from one to the next: each must be whole, at its position, and chained to the one before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain {
    pub(crate) group: GroupId,
    /// The position that the next record must have; any while nothing was purged and nothing read.
    pub(crate) next: Option<u64>,
    /// The checksum of the record before it, if that is known.
    pub(crate) crc: Option<u32>,
}

impl Chain {
    /// Takes the next record, or says which position is bad and why.
    pub(crate) fn take(&mut self, position: u64, bytes: &Bytes) -> Result<Record, (u64, RecordError)> {
        if let Some(next) = self.next
            && position != next
        {
            return Err((next, RecordError::Missing));
        }
        let record = record::decode(self.group, position, bytes).map_err(|error| (position, error))?;
        if self.crc.is_some_and(|crc| crc != record.previous) {
            return Err((position, RecordError::Unchained));
        }
        self.next = Some(position + 1);
        self.crc = Some(record.crc);
        Ok(record)
    }
}

/// A log that may be used.
pub(crate) struct Checked {
    pub(crate) opened: Opened,
    /// The first position of a torn end, to be removed.
    pub(crate) torn_from: Option<u64>,
}

/// Reads the marks and all records of a group, and holds them against the floor.
pub(crate) fn check(engine: &dyn LogEngine, group: GroupId, floor: &FloorEntry) -> Result<Checked, LogError> {
    let vote: Option<proto::Vote> = mark::read(engine, group, MarkKind::Vote)?;
    let committed: Option<proto::LogId> = mark::read(engine, group, MarkKind::Committed)?;
    let purged: Option<proto::PurgedMark> = mark::read(engine, group, MarkKind::Purged)?;

    #[cfg(feature = "planted")]
    let floor = &FloorEntry { last: floor.last.filter(|_| !crate::planted::is("ignored-floor")), ..floor.clone() };
    let mut scan = Scan::new(engine, group, purged.unwrap_or_default(), floor);
    let torn_from = scan.run()?;
    let crc_at_floor = scan.crc_at_floor;
    let mut opened = scan.opened;
    opened.vote = vote.map(Vote::from);
    opened.committed = committed.map(LogId::from);

    reaches(group, floor, &opened, crc_at_floor)?;
    if let Some(committed) = opened.committed
        && opened.last.is_none_or(|last| last.index < committed.index)
    {
        let last = opened.last.map(|last| last.index);
        return Err(LogError::Shortened { group, committed: committed.index, last });
    }
    Ok(Checked { opened, torn_from })
}

/// Whether a log that is whole in itself is all that it must be.
fn reaches(group: GroupId, floor: &FloorEntry, opened: &Opened, crc_at_floor: Option<u32>) -> Result<(), LogError> {
    if let Some(given) = floor.vote.filter(|given| opened.vote.is_none_or(|found| rank(&found) < rank(given))) {
        return Err(LogError::VoteBelowFloor { group, floor: given, found: opened.vote });
    }
    let purged = opened.purged.map(|purged| purged.index);
    if let Some(least) = floor.purged.filter(|least| purged < Some(*least)) {
        return Err(LogError::PurgedBelowFloor { group, floor: least, found: purged });
    }
    let Some(synced) = floor.last else { return Ok(()) };
    let last = opened.last.map(|last| last.index);
    if last < Some(synced.position) {
        return Err(LogError::BelowFloor { group, floor: synced.position, last });
    }
    // What is purged is in the state, and its record is gone.
    if purged < Some(synced.position) && crc_at_floor != Some(synced.crc) {
        return Err(LogError::OtherHistory { group, position: synced.position });
    }
    Ok(())
}

/// Votes in the order in which they may be given.
fn rank(vote: &Vote) -> (u64, u64, bool) {
    (vote.leader_id.term, vote.leader_id.node_id, vote.committed)
}

struct Scan<'a> {
    engine: &'a dyn LogEngine,
    group: GroupId,
    opened: Opened,
    chain: Chain,
    /// The last position that was durable.
    floor: Option<u64>,
    crc_at_floor: Option<u32>,
}

impl<'a> Scan<'a> {
    fn new(engine: &'a dyn LogEngine, group: GroupId, purged: proto::PurgedMark, floor: &FloorEntry) -> Self {
        let purged_crc = if purged.at.is_some() { purged.crc } else { SEED };
        let purged = purged.at.map(LogId::from);
        let opened = Opened { purged, last: purged, purged_crc, head_crc: purged_crc, ..Opened::default() };
        let chain = Chain { group, next: purged.map(|purged| purged.index + 1), crc: Some(purged_crc) };
        Scan { engine, group, opened, chain, floor: floor.last.map(|last| last.position), crc_at_floor: None }
    }

    /// Goes to the end, or to a torn end whose first position it returns.
    fn run(&mut self) -> Result<Option<u64>, LogError> {
        loop {
            let from = self.chain.next.unwrap_or(0);
            let records = self.read(from)?;
            if records.is_empty() {
                return Ok(None);
            }
            for (position, record) in &records {
                if let Err((at, reason)) = self.take(*position, record) {
                    if let Some(floor) = self.floor.filter(|floor| at <= *floor) {
                        return Err(LogError::DamagedBelowFloor { group: self.group, position: at, floor, reason });
                    }
                    return match self.first_whole(at, reason.clone())? {
                        Some(valid) => Err(LogError::Damaged { group: self.group, position: at, valid, reason }),
                        None => Ok(Some(at)),
                    };
                }
            }
        }
    }

    /// Takes the next record, or says which position is bad and why.
    fn take(&mut self, position: u64, bytes: &Bytes) -> Result<(), (u64, RecordError)> {
        let is_first = self.chain.next.is_none();
        let record = self.chain.take(position, bytes)?;
        if is_first {
            self.opened.start = position;
        }
        if self.floor == Some(position) {
            self.crc_at_floor = Some(record.crc);
        }
        self.opened.last = Some(record.entry.log_id);
        self.opened.head_crc = record.crc;
        self.opened.log_bytes += bytes.len() as u64;
        Ok(())
    }

    /// The first position after damage at `bad` that has a whole record, chained or not. A record that is itself whole but
    /// unchained counts: what it was chained to is gone.
    fn first_whole(&self, bad: u64, reason: RecordError) -> Result<Option<u64>, LogError> {
        if matches!(reason, RecordError::Unchained) {
            return Ok(Some(bad));
        }
        let mut from = bad;
        loop {
            let records = self.read(from)?;
            let Some((end, _)) = records.last() else { return Ok(None) };
            from = end + 1;
            for (position, bytes) in &records {
                if record::decode(self.group, *position, bytes).is_ok() {
                    return Ok(Some(*position));
                }
            }
        }
    }

    fn read(&self, from: u64) -> Result<Vec<(u64, Bytes)>, LogError> {
        self.engine.read(self.group, from, u64::MAX, READ_BYTES).map_err(|source| LogError::Unreadable {
            group: self.group,
            position: from,
            source,
        })
    }
}
