//! Where in a node's files something lies that the node must miss: damage there must be noticed, and silence is no
//! chance.
//!
//! Of most files that is all of them. Of the log database it is what the floor names: its last record of each group, and
//! those before it by the chain of their checksums, as far back as no purge reaches. They lie whole in the files, which
//! are not compressed. Of a table of a state database it is the part with rows, which a scrub reads from end to end. What
//! else a file has (padding, rows that were purged, indexes that are read again at the next start only) proves nothing.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Bytes of a slot of the floor, and of its header: `raft/src/log/floor.rs`.
const SLOT: usize = 64 << 10;
const SLOT_HEADER: usize = 24;
/// Bytes of the header of a record of the log: `raft/src/log/record.rs`.
const RECORD_HEADER: usize = 30;
/// Blocks and headers of records in a write-ahead log and in a manifest.
const FRAMED_BLOCK: usize = 32 << 10;
const FRAME_HEADER: usize = 7;
/// So many records of a group at the end of its log are never purged: fewer than `--purge-tail` leaves.
const NEVER_PURGED: u64 = 90;

/// A part of a file that the node must miss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Living {
    /// Where it lies.
    pub(super) at: Range<usize>,
    /// The record of the log that it is, if it is one: its group and position.
    pub(super) record: Option<(u32, u64)>,
}

impl From<Range<usize>> for Living {
    fn from(at: Range<usize>) -> Living {
        Living { at, record: None }
    }
}

/// What one group must have in its log, as the floor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Floor {
    group: u32,
    last: u64,
    crc: u32,
    purged: u64,
}

/// The parts of a slot of the floor that were written last, and not the rest of an older and longer one.
pub(super) fn of_floor(bytes: &[u8]) -> Vec<Living> {
    let slots = [0, SLOT].into_iter().filter_map(|from| Some(from..from + slot(bytes.get(from..)?)?.0));
    slots.map(Living::from).collect()
}

/// The length of a slot with its header, and its sequence.
fn slot(bytes: &[u8]) -> Option<(usize, u64)> {
    let header = bytes.get(..SLOT_HEADER).filter(|header| header.starts_with(b"QFLR"))?;
    let length = u32::from_le_bytes(header[16..20].try_into().ok()?) as usize;
    let sequence = u64::from_le_bytes(header[8..16].try_into().ok()?);
    (SLOT_HEADER + length <= bytes.len()).then_some((SLOT_HEADER + length, sequence))
}

/// What the newer slot of the floor says of the groups whose replicas are sound.
pub(super) fn floors(bytes: &[u8]) -> Vec<Floor> {
    let slots = [0, SLOT].into_iter().filter_map(|from| {
        let slice = bytes.get(from..)?;
        let (length, sequence) = slot(slice)?;
        Some((sequence, &slice[SLOT_HEADER..length]))
    });
    let Some((_, body)) = slots.max_by_key(|(sequence, _)| *sequence) else { return Vec::new() };
    fields(body).into_iter().filter_map(|(_, value)| floor(value.bytes()?)).collect()
}

/// An entry of the floor, unless its replica is quarantined or being deleted, or promises nothing.
fn floor(entry: &[u8]) -> Option<Floor> {
    let entry: BTreeMap<u64, Value<'_>> = fields(entry).into_iter().collect();
    if entry.contains_key(&6) || entry.contains_key(&7) {
        return None;
    }
    let last: BTreeMap<u64, Value<'_>> = fields(entry.get(&3)?.bytes()?).into_iter().collect();
    let number = |of: &BTreeMap<u64, Value<'_>>, field| of.get(&field).map_or(0, Value::number);
    let crc = u32::try_from(number(&last, 2)).ok()?;
    Some(Floor {
        group: u32::try_from(number(&entry, 1)).ok()?,
        last: number(&last, 1),
        crc,
        purged: number(&entry, 4),
    })
}

/// The value of a field of a message.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    fn number(&self) -> u64 {
        match self {
            Value::Number(number) => *number,
            Value::Bytes(_) => 0,
        }
    }

    fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            Value::Number(_) => None,
        }
    }
}

/// The fields of a Protocol Buffers message as far as it can be read.
fn fields(mut rest: &[u8]) -> Vec<(u64, Value<'_>)> {
    let mut found = Vec::new();
    while let Some((field, value)) = next_field(&mut rest) {
        found.push((field, value));
    }
    found
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = varint(rest)?;
    let value = match tag & 7 {
        0 => Value::Number(varint(rest)?),
        1 => Value::Number(u64::from_le_bytes(*take(rest, 8)?.first_chunk()?)),
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Value::Bytes(take(rest, length)?)
        }
        5 => Value::Number(u32::from_le_bytes(*take(rest, 4)?.first_chunk()?).into()),
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Something in a file of the log database that looks like a record.
#[derive(Debug, Clone)]
struct Candidate {
    file: usize,
    at: Range<usize>,
    previous: u32,
    /// Two files have it: one of them is of no use any more, and nobody outside can say which.
    is_twice: bool,
}

/// What must be in the files of a log database. Of write-ahead logs the newest one counts: others may be superseded.
pub(super) fn of_log(data: &Path, floors: &[Floor]) -> Result<BTreeMap<PathBuf, Vec<Living>>> {
    let mut paths = Vec::new();
    for entry in fs_err::read_dir(data.join("log"))? {
        let path = entry?.path();
        paths.extend(path.extension().is_some_and(|ending| ending == "sst" || ending == "log").then_some(path));
    }
    paths.sort();
    // What a running node has just removed holds nothing that it needs.
    let files: Vec<(PathBuf, Vec<u8>)> =
        paths.into_iter().filter_map(|path| std::fs::read(&path).ok().map(|bytes| (path, bytes))).collect();
    let is_log = |path: &Path| path.extension().is_some_and(|ending| ending == "log");
    let newest = files.iter().rposition(|(path, _)| is_log(path));
    let mut living: BTreeMap<PathBuf, Vec<Living>> = BTreeMap::new();
    for (file, found) in chains(&files.iter().map(|(_, bytes)| &bytes[..]).collect::<Vec<_>>(), floors) {
        let path = &files[file].0;
        if !is_log(path) || newest == Some(file) {
            living.entry(path.strip_prefix(data)?.to_owned()).or_default().push(found);
        }
    }
    for (path, found) in living.iter_mut().filter(|(path, _)| is_log(path)) {
        // From the first damage in it on nothing of a write-ahead log is read.
        let end = found.iter().map(|living| living.at.end).max().unwrap_or(0);
        *found = framed(&data.join(path), end)?;
    }
    Ok(living)
}

/// A file of framed records up to `end`, without what may be padding at the ends of its blocks.
fn framed(path: &Path, end: usize) -> Result<Vec<Living>> {
    let end = end.min(fs_err::read(path)?.len());
    let blocks = (0..end).step_by(FRAMED_BLOCK);
    Ok(blocks.map(|from| Living::from(from..end.min(from + FRAMED_BLOCK - FRAME_HEADER))).collect())
}

/// Follows the log of each group back from its floor. Says of each record in which file it is.
fn chains(files: &[&[u8]], floors: &[Floor]) -> Vec<(usize, Living)> {
    let mut candidates: HashMap<u32, Candidate> = HashMap::new();
    for (file, bytes) in files.iter().enumerate() {
        for from in 0..bytes.len().saturating_sub(RECORD_HEADER) {
            if let Some((crc, at, previous)) = record_at(bytes, from) {
                let new = Candidate { file, at, previous, is_twice: false };
                candidates.entry(crc).and_modify(|candidate| candidate.is_twice = true).or_insert(new);
            }
        }
    }
    let mut found = Vec::new();
    for floor in floors {
        let mut crc = floor.crc;
        let least = floor.purged.max(floor.last.saturating_sub(NEVER_PURGED));
        for position in (least + 1..=floor.last).rev() {
            let Some(candidate) = candidates.get(&crc) else { break };
            let living = Living { at: candidate.at.clone(), record: Some((floor.group, position)) };
            found.extend((!candidate.is_twice).then_some((candidate.file, living)));
            crc = candidate.previous;
        }
    }
    found
}

/// The checksum, the place and the previous checksum of a record that may begin here.
fn record_at(bytes: &[u8], from: usize) -> Option<(u32, Range<usize>, u32)> {
    if bytes[from] != 1 || bytes[from + 1] > 2 {
        return None;
    }
    let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(from + at..)?.first_chunk()?));
    let end = from.checked_add(RECORD_HEADER + number(2)? as usize).filter(|end| *end <= bytes.len())?;
    Some((number(26)?, from..end, number(22)?))
}

/// Of a manifest what a reader checks: all but the lengths of its records. One that is too long looks like the end of a
/// manifest that was being written.
pub(super) fn of_manifest(bytes: &[u8]) -> Vec<Living> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(header) = bytes.get(at..at + FRAME_HEADER) {
        let left = FRAMED_BLOCK - at % FRAMED_BLOCK;
        let end = at + FRAME_HEADER + usize::from(u16::from_le_bytes([header[4], header[5]]));
        if left <= FRAME_HEADER || end > bytes.len() {
            break;
        }
        found.extend([Living::from(at..at + 4), Living::from(at + 6..end)]);
        at = if FRAMED_BLOCK - end % FRAMED_BLOCK < FRAME_HEADER { end.next_multiple_of(FRAMED_BLOCK) } else { end };
    }
    found
}

/// The rows of a table: what lies before its indexes and filters, of which its properties tell where they begin.
pub(super) fn of_table(bytes: &[u8]) -> Vec<Living> {
    const LENGTH: &[u8] = b"tail.start.offset";
    let rows = bytes.windows(LENGTH.len()).rposition(|window| window == LENGTH).and_then(|at| {
        let mut rest = &bytes[at + LENGTH.len()..];
        usize::try_from(varint(&mut rest)?).ok().filter(|length| (1..bytes.len()).contains(length))
    });
    rows.map(|length| Living::from(0..length)).into_iter().collect()
}

/// Whether what was done to a file hurt any of these parts: the records of the log among them, if it did.
pub(super) fn hurt(living: &[Living], before: &[u8], after: &[u8]) -> Option<Vec<(u32, u64)>> {
    let is_hurt = |part: &&Living| before.get(part.at.clone()) != after.get(part.at.clone());
    let hurt: Vec<&Living> = living.iter().filter(is_hurt).collect();
    (!hurt.is_empty()).then(|| hurt.iter().filter_map(|part| part.record).collect())
}

/// Whether all of these records have been purged since, as the floor says.
pub(super) fn are_purged(records: &[(u32, u64)], floors: &[Floor]) -> bool {
    let is_purged = |(group, position): &(u32, u64)| {
        floors.iter().find(|floor| floor.group == *group).is_none_or(|floor| floor.purged >= *position)
    };
    records.iter().all(is_purged)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    /// A slot of the floor in which group 1 has the record with the checksum 7 at position 300, and group 2 is
    /// quarantined.
    fn slot_of(sequence: u64) -> Vec<u8> {
        let last = [&[8, 0xac, 2, 21][..], &7_u32.to_le_bytes()].concat();
        let first = [&[8, 1, 16, 5, 26, 8][..], &last, &[32, 0xa8, 2]].concat();
        let second = [&[8, 2, 26, 8][..], &last, &[50, 1, b'x']].concat();
        let mut body = vec![10, u8::try_from(first.len()).unwrap()];
        body.extend(first);
        body.extend([10, u8::try_from(second.len()).unwrap()]);
        body.extend(second);
        let mut bytes = [&b"QFLR"[..], &1_u32.to_le_bytes(), &sequence.to_le_bytes()].concat();
        bytes.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes
    }

    fn record(previous: u32, crc: u32) -> Vec<u8> {
        let head = [&[1, 1][..], &4_u32.to_le_bytes(), &[3; 16], &previous.to_le_bytes(), &crc.to_le_bytes()];
        [&head.concat()[..], b"payl"].concat()
    }

    #[test]
    fn the_newer_slot_of_the_floor_says_what_sound_replicas_must_have() {
        let slot = slot_of(9);
        let mut bytes = slot.clone();
        bytes.resize(2 * SLOT, 0xee);
        assert_eq!(of_floor(&bytes), [Living::from(0..slot.len())], "the other one was never written");
        assert_eq!(floors(&bytes), [Floor { group: 1, last: 300, crc: 7, purged: 296 }]);
        let newer = slot_of(10);
        bytes[SLOT..SLOT + newer.len()].copy_from_slice(&newer);
        assert_eq!(of_floor(&bytes).len(), 2);
        assert_eq!(floors(&[]), []);
    }

    #[test]
    fn a_log_is_followed_back_from_its_floor_as_far_as_nothing_is_purged() {
        let floor = Floor { group: 1, last: 300, crc: 7, purged: 297 };
        let old = [&b"xx"[..], &record(4, 5), &record(5, 6)].concat();
        let new = [&b"yyy"[..], &record(6, 7)].concat();
        let found = chains(&[&old, &new], &[floor]);
        let places: Vec<_> = found.iter().map(|(file, living)| (*file, living.at.clone(), living.record)).collect();
        let expected = [(1, 3..37, Some((1, 300))), (0, 36..70, Some((1, 299))), (0, 2..36, Some((1, 298)))];
        assert_eq!(places, expected);
        let shorter = chains(&[&old, &new], &[Floor { purged: 298, ..floor }]);
        assert_eq!(shorter.len(), 2, "what is purged need not be there");
        let twice = chains(&[&old, &new, &record(6, 7)], &[floor]);
        assert_eq!(twice.iter().map(|(file, _)| *file).collect::<Vec<_>>(), [0, 0], "nobody knows which one counts");
        assert!(are_purged(&[(1, 297), (2, 5)], &[floor]) && !are_purged(&[(1, 297), (1, 298)], &[floor]));
    }

    #[test]
    fn of_a_manifest_the_lengths_of_its_records_may_be_hurt_in_silence() {
        let bytes = [&[9, 9, 9, 9, 3, 0, 1][..], b"abc", &[9, 9, 9, 9, 1, 0, 1], b"d", &[9, 9]].concat();
        let found: Vec<_> = of_manifest(&bytes).into_iter().map(|living| living.at).collect();
        assert_eq!(found, [0..4, 6..10, 10..14, 16..18]);
        assert_eq!(of_manifest(&[7; 90]), [], "what is none has no parts");
    }

    #[test]
    fn of_a_table_its_rows_count() {
        let table = [&[5; 300][..], b"\x08\x11\x02tail.start.offset\xac\x02 and more"].concat();
        assert_eq!(of_table(&table), [Living::from(0..300)]);
        assert_eq!(of_table(b"no table"), []);
        let mut hurt_table = table.clone();
        hurt_table[299] ^= 1;
        assert_eq!(hurt(&of_table(&table), &table, &hurt_table), Some(Vec::new()));
        hurt_table[299] ^= 1;
        hurt_table[310] ^= 1;
        assert_eq!(hurt(&of_table(&table), &table, &hurt_table), None);
        assert_eq!(hurt(&of_table(&table), &table, &table[..200]), Some(Vec::new()));
    }
}
