//! The floor: what the log database must hold, kept beside it and apart from it.
//!
//! A log database that has lost its end, or an old copy of it, looks like a log that never was longer. So the log writer notes
//! for every group what is durable: the last position with the checksum of its record, the purged position, the vote, and
//! the replica whose log it is. At the next start a log or a vote below the floor is damage, whatever the database says of
//! itself; what is above the floor was never acknowledged, so a torn end there is what a crash leaves.
//!
//! The order makes sure that no crash looks like damage. What raises the floor is written after the batch is durable and
//! before anyone is answered; what lowers it (a truncation, the claim of a new log, the end of an old one) is written before
//! the batch. So at any moment the floor is at most what the database holds, and at least what was answered for.
//!
//! ```text
//!   offset  size  field of a slot
//!        0     4  magic, "QFLR"
//!        4     4  version (1)
//!        8     8  sequence: the slot with the higher one is the newer
//!       16     4  length of the body
//!       20     4  checksum: CRC32C over the 20 bytes above and the body
//!       24     -  body: the message `Floor`
//! ```
//!
//! Invariants:
//! - The two slots are written in turn, so a torn write leaves the older one whole.
//! - A group has an entry from before its log is claimed until after everything of it is deleted.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::engine::FloorFile;
use crate::ids::{GroupId, ReplicaId};
use crate::proto;
use crate::types::Vote;

/// Bytes of one slot.
pub(crate) const SLOT_BYTES: usize = 64 << 10;
/// The longest reason of a quarantine that is kept, in bytes.
const REASON_BYTES: usize = 240;
/// An entry with all its fields at their longest is below this.
const ENTRY_BYTES: usize = 128 + REASON_BYTES;
/// How many groups the floor has room for.
pub(crate) const GROUPS_MAX: usize = (SLOT_BYTES - HEADER_BYTES) / ENTRY_BYTES;

const MAGIC: &[u8; 4] = b"QFLR";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
const CHECKSUM_AT: usize = 20;

/// A durable position with the checksum of its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Synced {
    pub(crate) position: u64,
    pub(crate) crc: u32,
}

/// How a replica stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Standing {
    /// It may run.
    #[default]
    Sound,
    /// Its disk was damaged: it is never started again. Says how.
    Quarantined(String),
    /// It is being deleted; the next start finishes that.
    Doomed,
}

/// What one group's log must hold.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct FloorEntry {
    /// Whose log it is; 0 if nothing is left that says so.
    pub(crate) replica: ReplicaId,
    pub(crate) last: Option<Synced>,
    pub(crate) purged: Option<u64>,
    pub(crate) vote: Option<Vote>,
    pub(crate) standing: Standing,
}

impl FloorEntry {
    fn new(replica: ReplicaId) -> Self {
        FloorEntry { replica, ..FloorEntry::default() }
    }

    /// Nothing was ever acknowledged for this replica, so an empty log is all that it must have.
    pub(crate) fn promises_nothing(&self) -> bool {
        self.last.is_none() && self.purged.is_none() && self.vote.is_none()
    }
}

/// One change of the floor. It travels in the queue of the writer with the changes of the log that it belongs to.
#[derive(Debug, Clone)]
pub(crate) enum FloorChange {
    /// A replica takes a new log.
    Claimed { group: GroupId, replica: ReplicaId },
    /// The log is durable up to here.
    Synced { group: GroupId, last: Synced },
    /// The log is cut so that this is its end.
    Lowered { group: GroupId, last: Option<Synced> },
    /// A vote.
    Vote { group: GroupId, vote: Vote },
    /// The log is purged up to here. Not worth a write of its own while the log was durable up to there anyway: a purge
    /// that is forgotten loses nothing.
    Purged { group: GroupId, position: u64 },
    /// The replica is damaged. The first reason stays.
    Quarantined { group: GroupId, replica: ReplicaId, reason: String },
    /// The replica is about to be deleted.
    Doomed { group: GroupId },
    /// Nothing is left of it.
    Gone { group: GroupId },
    /// A slot of the file did not read back after the write with this sequence: both are written again.
    Mended { slot: usize, sequence: u64 },
}

/// What the file held.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) enum Found {
    /// Nothing was ever written.
    Nothing,
    /// A whole slot. Says what is wrong with the other one, if anything is.
    Whole(Option<String>),
    /// Both slots are damaged. Says how.
    Damaged(String),
}

impl Found {
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self, Found::Whole(_))
    }
}

/// The floor of a node, in memory and in its file.
pub(crate) struct Floor {
    file: Arc<dyn FloorFile>,
    entries: BTreeMap<GroupId, FloorEntry>,
    sequence: u64,
    /// The slot that is written next.
    next: usize,
}

impl Floor {
    /// Reads the file. Writes nothing.
    pub(crate) fn open(file: Arc<dyn FloorFile>) -> io::Result<(Floor, Found)> {
        let slots = file.read()?.map(|bytes| decode(&bytes));
        let mut floor = Floor { file, entries: BTreeMap::new(), sequence: 0, next: 0 };
        let (mut found, mut bad, mut empty) = (Found::Nothing, None, false);
        for (slot, content) in slots.into_iter().enumerate() {
            match content {
                Ok(Some((sequence, entries))) if !found.is_whole() || sequence > floor.sequence => {
                    (floor.sequence, floor.entries, floor.next) = (sequence, entries, 1 - slot);
                    found = Found::Whole(None);
                }
                Ok(None) => empty = true,
                Ok(Some(_)) => {}
                Err(Unreadable::Version(version)) => return Err(newer(version)),
                Err(Unreadable::Damaged(reason)) => bad = Some(reason),
            }
        }
        if empty && floor.sequence > 1 {
            // The slots are written in turn: only before the second write may one of them be empty.
            bad = Some("it was written, and is empty".to_owned());
        }
        if let Some(reason) = bad {
            if found.is_whole() {
                tracing::warn!(reason, "one of the two slots of the floor is damaged; the other one is used");
                found = Found::Whole(Some(reason));
            } else {
                found = Found::Damaged(reason);
            }
        }
        Ok((floor, found))
    }

    pub(crate) fn entry(&self, group: GroupId) -> Option<&FloorEntry> {
        self.entries.get(&group)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (GroupId, &FloorEntry)> {
        self.entries.iter().map(|(group, entry)| (*group, entry))
    }

    pub(crate) fn has_room(&self) -> bool {
        self.entries.len() < GROUPS_MAX
    }

    /// Takes what must be in the file before the batch of these changes is committed. True if that is anything.
    ///
    /// A log that is cut and then written again in one batch is at its lowest common to before and after the batch.
    pub(crate) fn lower(&mut self, changes: &[FloorChange]) -> bool {
        let mut changed = false;
        for change in changes {
            match change {
                FloorChange::Claimed { group, replica } => {
                    self.entries.insert(*group, FloorEntry::new(*replica));
                    changed = true;
                }
                FloorChange::Lowered { group, last } => {
                    if let Some(entry) = self.entries.get_mut(group)
                        && last.map(|last| last.position) < entry.last.map(|last| last.position)
                    {
                        entry.last = *last;
                        changed = true;
                    }
                }
                FloorChange::Doomed { group } => {
                    if let Some(entry) = self.entries.get_mut(group) {
                        entry.standing = Standing::Doomed;
                        changed = true;
                    }
                }
                _ => {}
            }
        }
        changed
    }

    /// Takes the rest, once the batch is durable. True if anything must be in the file before the batch is answered.
    pub(crate) fn raise(&mut self, changes: &[FloorChange]) -> bool {
        let mut changed = false;
        for change in changes {
            changed |= self.take(change);
        }
        changed
    }

    fn take(&mut self, change: &FloorChange) -> bool {
        let group = match change {
            FloorChange::Claimed { .. } | FloorChange::Doomed { .. } => return false,
            FloorChange::Gone { group } => return self.entries.remove(group).is_some(),
            FloorChange::Quarantined { group, replica, reason } => return self.quarantine(*group, *replica, reason),
            FloorChange::Mended { slot, sequence } => {
                if self.sequence == *sequence {
                    // The other one may be the only one that is whole: it stays until this one is written.
                    self.next = *slot;
                }
                return true;
            }
            FloorChange::Synced { group, .. }
            | FloorChange::Lowered { group, .. }
            | FloorChange::Vote { group, .. }
            | FloorChange::Purged { group, .. } => group,
        };
        let Some(entry) = self.entries.get_mut(group) else { return false };
        match change {
            FloorChange::Synced { last, .. } => replace(&mut entry.last, Some(*last)),
            FloorChange::Lowered { last, .. } => replace(&mut entry.last, *last),
            FloorChange::Vote { vote, .. } => replace(&mut entry.vote, Some(*vote)),
            FloorChange::Purged { position, .. } => {
                entry.purged = entry.purged.max(Some(*position));
                entry.last.is_none_or(|last| last.position < *position)
            }
            _ => false,
        }
    }

    /// Marks a replica as damaged, also one that has no entry. A replica that is being deleted stays that.
    pub(crate) fn quarantine(&mut self, group: GroupId, replica: ReplicaId, reason: &str) -> bool {
        let entry = self.entries.entry(group).or_insert_with(|| FloorEntry::new(replica));
        if entry.standing != Standing::Sound {
            return false;
        }
        entry.standing = Standing::Quarantined(shortened(reason));
        true
    }

    /// Reads the file back. Returns what mends a slot that does not hold what was written there last, and what is wrong with
    /// it. Nothing can be written meanwhile.
    pub(crate) fn reread(&self) -> io::Result<Option<(FloorChange, String)>> {
        let newer = 1 - self.next;
        for (slot, bytes) in self.file.read()?.iter().enumerate() {
            let expected = if slot == newer { self.sequence } else { self.sequence.saturating_sub(1) };
            let reason = match decode(bytes) {
                // Before the second write there is nothing in the older slot, and before the first one in neither.
                Ok(found) if found.as_ref().map_or(0, |(sequence, _)| *sequence) == expected => continue,
                Ok(_) => "it holds another write than the last one".to_owned(),
                Err(Unreadable::Damaged(reason)) => reason,
                Err(Unreadable::Version(version)) => format!("it says that it has version {version}"),
            };
            return Ok(Some((FloorChange::Mended { slot, sequence: self.sequence }, reason)));
        }
        Ok(None)
    }

    /// Writes the file. After an error the process must not go on.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        self.sequence += 1;
        let bytes = encode(self.sequence, &self.entries);
        self.file.write(self.next, &bytes)?;
        self.next = 1 - self.next;
        Ok(())
    }
}

fn replace<T: PartialEq>(place: &mut T, value: T) -> bool {
    let changed = *place != value;
    *place = value;
    changed
}

/// At most [`REASON_BYTES`] of it.
fn shortened(reason: &str) -> String {
    reason
        .chars()
        .scan(0, |bytes, letter| {
            *bytes += letter.len_utf8();
            (*bytes <= REASON_BYTES).then_some(letter)
        })
        .collect()
}

fn newer(version: u32) -> io::Error {
    let text = format!(
        "the floor has version {version}, this program reads version {VERSION}; start the version that wrote it"
    );
    io::Error::new(io::ErrorKind::Unsupported, text)
}

enum Unreadable {
    Version(u32),
    Damaged(String),
}

fn encode(sequence: u64, entries: &BTreeMap<GroupId, FloorEntry>) -> Bytes {
    let floor = proto::Floor { entries: entries.iter().map(|(group, entry)| to_proto(*group, entry)).collect() };
    let body = floor.encode_to_vec();
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + body.len());
    bytes.put_slice(MAGIC);
    bytes.put_u32_le(VERSION);
    bytes.put_u64_le(sequence);
    bytes.put_u32_le(u32::try_from(body.len()).expect("the number of groups is limited"));
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
    bytes.put_u32_le(crc);
    bytes.put_slice(&body);
    bytes.freeze()
}

/// Whether a slot was never written or holds a whole write.
pub(crate) fn reads_back(slot: &[u8]) -> bool {
    decode(slot).is_ok()
}

type Content = (u64, BTreeMap<GroupId, FloorEntry>);

/// The content of a slot; none if it was never written.
fn decode(slot: &[u8]) -> Result<Option<Content>, Unreadable> {
    let damaged = |reason: &str| Unreadable::Damaged(reason.to_owned());
    if slot.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let (header, rest) = slot.split_at_checked(HEADER_BYTES).ok_or_else(|| damaged("it is shorter than its header"))?;
    if header[..4] != *MAGIC {
        return Err(damaged("it does not begin as it must"));
    }
    let length = u32_at(header, 16) as usize;
    let body = rest.get(..length).ok_or_else(|| damaged("it is shorter than it says"))?;
    if u32_at(header, CHECKSUM_AT) != crc32c::crc32c_append(crc32c::crc32c(&header[..CHECKSUM_AT]), body) {
        return Err(damaged("its checksum does not match its bytes"));
    }
    let version = u32_at(header, 4);
    if version != VERSION {
        return Err(Unreadable::Version(version));
    }
    let floor = proto::Floor::decode(body).map_err(|error| Unreadable::Damaged(error.to_string()))?;
    let sequence = u64::from(u32_at(header, 8)) | u64::from(u32_at(header, 12)) << 32;
    Ok(Some((sequence, floor.entries.into_iter().map(from_proto).collect())))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn to_proto(group: GroupId, entry: &FloorEntry) -> proto::FloorEntry {
    proto::FloorEntry {
        group: group.0,
        replica: entry.replica,
        last: entry.last.map(|last| proto::FloorPosition { position: last.position, crc: last.crc }),
        purged: entry.purged,
        vote: entry.vote.as_ref().map(Into::into),
        quarantined: match &entry.standing {
            Standing::Quarantined(reason) => Some(reason.clone()),
            _ => None,
        },
        doomed: entry.standing == Standing::Doomed,
    }
}

fn from_proto(entry: proto::FloorEntry) -> (GroupId, FloorEntry) {
    let standing = match entry.quarantined {
        _ if entry.doomed => Standing::Doomed,
        Some(reason) => Standing::Quarantined(reason),
        None => Standing::Sound,
    };
    let read = FloorEntry {
        replica: entry.replica,
        last: entry.last.map(|last| Synced { position: last.position, crc: last.crc }),
        purged: entry.purged,
        vote: entry.vote.map(Into::into),
        standing,
    };
    (GroupId(entry.group), read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryFloor;

    fn found(file: &Arc<dyn FloorFile>) -> Found {
        Floor::open(file.clone()).expect("it can be read").1
    }

    /// The chaos suite found it: what is zeroed from end to end looks like what was never written.
    #[test]
    fn a_slot_that_was_written_and_is_empty_is_damaged() {
        let file: Arc<dyn FloorFile> = Arc::new(MemoryFloor::new());
        let (mut floor, nothing) = Floor::open(file.clone()).expect("it can be read");
        assert_eq!(nothing, Found::Nothing);
        floor.write().expect("written");
        assert_eq!(found(&file), Found::Whole(None), "the other one has not had its turn");
        for _ in 0..2 {
            floor.write().expect("written");
            assert_eq!(found(&file), Found::Whole(None));
        }
        for slot in 0..2 {
            let whole = file.read().expect("it can be read");
            file.write(slot, &vec![0; whole[slot].len()]).expect("written");
            assert!(matches!(found(&file), Found::Whole(Some(reason)) if reason.contains("empty")), "slot {slot}");
            file.write(slot, &whole[slot]).expect("written");
        }
        assert_eq!(found(&file), Found::Whole(None));
    }
}
