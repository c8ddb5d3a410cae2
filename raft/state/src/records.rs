//! Records, the rows that mirror them, and the set hash over them.
//!
//! All state that must survive is kept in [`Records`], one for each kind of record. A `Records` changes only through
//! methods that note the row and the change of the set hash in [`Changes`], so no command can forget either. Everything else
//! that a machine keeps (who is ready, who runs what) is derived from records and rebuilt by `load`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use crate::codec::{self, Decode, Encode};
use crate::{Fault, Row};

/// A kind of record with its table.
pub(crate) trait Record: Encode + Decode<()> + Clone + PartialEq + fmt::Debug {
    /// Number of the table.
    const TABLE: u8;
    /// What the record is found by.
    type Key: Key;
}

/// A key, encoded so that the order of bytes is the order of keys.
pub(crate) trait Key: Copy + Ord + fmt::Debug {
    /// Encodes the key.
    fn to_key(&self) -> KeyBytes;
    /// Decodes a key; `None` if it is not one.
    fn from_key(bytes: &[u8]) -> Option<Self>;
}

/// An encoded key, without a place on the heap.
#[derive(Clone, Copy)]
pub(crate) struct KeyBytes {
    bytes: [u8; 16],
    length: u8,
}

impl KeyBytes {
    /// Big-endian bytes of a number.
    pub(crate) fn new(bytes: &[u8]) -> KeyBytes {
        let mut key = KeyBytes { bytes: [0; 16], length: bytes.len() as u8 };
        key.bytes[..bytes.len()].copy_from_slice(bytes);
        key
    }

    /// The bytes.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length as usize]
    }
}

/// Implements [`Key`] for a wrapper of an unsigned number.
macro_rules! number_key {
    ($($key:ident($number:ty)),* $(,)?) => { $(
        impl Key for crate::$key {
            fn to_key(&self) -> KeyBytes {
                KeyBytes::new(&self.0.to_be_bytes())
            }
            fn from_key(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(|bytes| crate::$key(<$number>::from_be_bytes(bytes)))
            }
        }
    )* };
}

number_key!(TaskId(u64), SessionId(u64), NodeId(u64), CollectionId(u32), ShardId(u32), RequestId(u128));

impl Key for u32 {
    fn to_key(&self) -> KeyBytes {
        KeyBytes::new(&self.to_be_bytes())
    }
    fn from_key(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(u32::from_be_bytes)
    }
}

/// The key of the one record in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Only;

impl Key for Only {
    fn to_key(&self) -> KeyBytes {
        KeyBytes::new(&[])
    }
    fn from_key(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(Only)
    }
}

/// The rows of one entry, and the set hash of all rows, which outlives the entry.
///
/// An entry has many small rows, so keys and records are encoded one after another into one buffer, which the rows share in
/// the end.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    buffer: Vec<u8>,
    rows: Vec<Pending>,
    hash: u64,
}

/// A row whose key, and perhaps value, is in the buffer.
#[derive(Debug)]
struct Pending {
    table: u8,
    key: Range<usize>,
    value: PendingValue,
}

#[derive(Debug)]
enum PendingValue {
    Buffered(Range<usize>),
    Owned(Bytes),
    Deleted,
}

impl Changes {
    /// Notes a row as it is, without a share in the set hash: for contents whose checksum is in a hashed record.
    pub(crate) fn put_content(&mut self, table: u8, key: &[u8], value: Bytes) {
        let key = self.buffer_key(key);
        self.rows.push(Pending { table, key, value: PendingValue::Owned(value) });
    }

    /// Notes that a row is gone, without a share in the set hash.
    pub(crate) fn delete_content(&mut self, table: u8, key: &[u8]) {
        let key = self.buffer_key(key);
        self.rows.push(Pending { table, key, value: PendingValue::Deleted });
    }

    /// Adds a row's share to the set hash.
    pub(crate) fn add_hash(&mut self, share: u64) {
        self.hash = self.hash.wrapping_add(share);
    }

    /// Takes a row's share out of the set hash.
    pub(crate) fn subtract_hash(&mut self, share: u64) {
        self.hash = self.hash.wrapping_sub(share);
    }

    /// Notes the row of a record and adds its share to the set hash.
    fn put_record<R: Record>(&mut self, key: &KeyBytes, record: &R) {
        let buffered_key = self.buffer_key(key.as_slice());
        let start = self.buffer.len();
        codec::encode_row_onto(record, &mut self.buffer);
        self.hash = self.hash.wrapping_add(share::<R>(key, &self.buffer[start..]));
        let value = PendingValue::Buffered(start..self.buffer.len());
        self.rows.push(Pending { table: R::TABLE, key: buffered_key, value });
    }

    /// Takes the share of a record, as it is now, out of the set hash.
    fn subtract_record<R: Record>(&mut self, key: &KeyBytes, record: &R) {
        let start = self.buffer.len();
        codec::encode_row_onto(record, &mut self.buffer);
        self.hash = self.hash.wrapping_sub(share::<R>(key, &self.buffer[start..]));
        self.buffer.truncate(start);
    }

    fn buffer_key(&mut self, key: &[u8]) -> Range<usize> {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(key);
        start..self.buffer.len()
    }

    /// The set hash of all rows so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The rows noted since the last call.
    pub(crate) fn take_rows(&mut self) -> Vec<Row> {
        let buffer = Bytes::from(std::mem::take(&mut self.buffer));
        let row = |pending: Pending| Row {
            table: pending.table,
            key: buffer.slice(pending.key),
            value: match pending.value {
                PendingValue::Buffered(range) => Some(buffer.slice(range)),
                PendingValue::Owned(value) => Some(value),
                PendingValue::Deleted => None,
            },
        };
        std::mem::take(&mut self.rows).into_iter().map(row).collect()
    }
}

/// All records of one kind, by key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Records<R: Record> {
    records: BTreeMap<R::Key, R>,
}

impl<R: Record> Default for Records<R> {
    fn default() -> Self {
        Records { records: BTreeMap::new() }
    }
}

impl<R: Record> Records<R> {
    /// Puts a record in the place of the one before, if there was one.
    pub(crate) fn put(&mut self, key: R::Key, record: R, changes: &mut Changes) {
        let encoded_key = key.to_key();
        changes.put_record(&encoded_key, &record);
        if let Some(old) = self.records.insert(key, record) {
            changes.subtract_record(&encoded_key, &old);
        }
    }

    /// Changes a record in place. Returns what `change` returns, or `None` if there is no such record.
    pub(crate) fn change<T>(
        &mut self,
        key: R::Key,
        changes: &mut Changes,
        change: impl FnOnce(&mut R) -> T,
    ) -> Option<T> {
        let record = self.records.get_mut(&key)?;
        let encoded_key = key.to_key();
        changes.subtract_record(&encoded_key, record);
        let result = change(record);
        changes.put_record(&encoded_key, record);
        Some(result)
    }

    /// Takes a record out.
    pub(crate) fn remove(&mut self, key: R::Key, changes: &mut Changes) -> Option<R> {
        let record = self.records.remove(&key)?;
        let encoded_key = key.to_key();
        changes.subtract_record(&encoded_key, &record);
        changes.delete_content(R::TABLE, encoded_key.as_slice());
        Some(record)
    }

    /// Takes in a stored row.
    pub(crate) fn load(&mut self, key: &[u8], value: &[u8], changes: &mut Changes) -> Result<(), Fault> {
        let Some(decoded_key) = R::Key::from_key(key) else {
            return Err(Fault::Broken { what: format!("a key of {} bytes in table {}", key.len(), R::TABLE) });
        };
        let record = codec::decode_row(value).map_err(|source| Fault::Undecodable {
            what: format!("the row {decoded_key:?} of table {}", R::TABLE),
            source,
        })?;
        changes.add_hash(share::<R>(&decoded_key.to_key(), value));
        if self.records.insert(decoded_key, record).is_some() {
            return Err(Fault::Broken { what: format!("the row {decoded_key:?} of table {} came twice", R::TABLE) });
        }
        Ok(())
    }

    /// One record.
    pub(crate) fn get(&self, key: &R::Key) -> Option<&R> {
        self.records.get(key)
    }

    /// Whether there is such a record.
    pub(crate) fn contains(&self, key: &R::Key) -> bool {
        self.records.contains_key(key)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// All records in the order of keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (R::Key, &R)> {
        self.records.iter().map(|(key, record)| (*key, record))
    }

    /// The records after a key, in the order of keys.
    pub(crate) fn after(&self, key: R::Key) -> impl Iterator<Item = (R::Key, &R)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.records.range((Excluded(key), Unbounded)).map(|(key, record)| (*key, record))
    }

    /// The set hash of these records alone, computed anew.
    pub(crate) fn hash(&self) -> u64 {
        self.iter()
            .fold(0, |hash, (key, record)| hash.wrapping_add(share::<R>(&key.to_key(), &codec::encode_row(record))))
    }
}

fn share<R: Record>(key: &KeyBytes, value: &[u8]) -> u64 {
    hash_row(R::TABLE, key.as_slice(), value)
}

/// Which way of hashing [`hash_row`] is. Replicas whose versions differ cannot compare their states.
pub const HASH_VERSION: u32 = 1;

/// The share of a row in the set hash: 64 bits that depend on every bit of it. It is no secret and guards against accidents,
/// not against people; it is part of no file, so it may change between versions, and [`HASH_VERSION`] with it.
pub(crate) fn hash_row(table: u8, key: &[u8], value: &[u8]) -> u64 {
    let seed = 0x9e37_79b9_7f4a_7c15 ^ (u64::from(table) << 56) ^ ((key.len() as u64) << 32) ^ value.len() as u64;
    hash_bytes(hash_bytes(seed, key), value)
}

fn hash_bytes(mut hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = mix(hash ^ u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(hash ^ u64::from_le_bytes(last) ^ 0x2545_f491_4f6c_dd1d)
}

/// Multiplies into 128 bits and folds: every input bit reaches every output bit.
fn mix(word: u64) -> u64 {
    let product = u128::from(word ^ 0xe703_7ed1_a0b4_28db) * 0xa076_1d64_78bd_642f;
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TaskId;

    #[derive(Clone, Debug, PartialEq, Encode, Decode)]
    struct Note(String);

    impl Record for Note {
        const TABLE: u8 = 77;
        type Key = TaskId;
    }

    fn note(text: &str) -> Note {
        Note(text.to_owned())
    }

    #[test]
    fn the_set_hash_depends_on_the_records_and_not_on_the_way_to_them() {
        let mut changes = Changes::default();
        let mut records = Records::default();
        records.put(TaskId(1), note("a"), &mut changes);
        let one = changes.hash();
        records.put(TaskId(2), note("b"), &mut changes);
        let two = changes.hash();
        records.put(TaskId(2), note("c"), &mut changes);
        assert_ne!(changes.hash(), two);
        records.change(TaskId(2), &mut changes, |record| *record = note("b"));
        assert_eq!(changes.hash(), two);
        assert_eq!(records.hash(), two);
        records.remove(TaskId(2), &mut changes);
        assert_eq!(changes.hash(), one);
        records.remove(TaskId(1), &mut changes);
        assert_eq!(changes.hash(), 0);
    }

    #[test]
    fn every_change_is_a_row_and_the_rows_make_the_records() {
        let mut changes = Changes::default();
        let mut records = Records::default();
        records.put(TaskId(1), note("a"), &mut changes);
        records.put(TaskId(2), note("b"), &mut changes);
        records.change(TaskId(1), &mut changes, |record| record.0.push('!'));
        assert_eq!(records.change(TaskId(9), &mut changes, |_| ()), None);
        records.remove(TaskId(2), &mut changes);
        let rows = changes.take_rows();
        assert_eq!(rows.iter().map(|row| row.value.is_some()).collect::<Vec<_>>(), [true, true, true, false]);
        let mut loaded_changes = Changes::default();
        let mut loaded = Records::<Note>::default();
        let last = rows[2].value.as_ref().expect("the change");
        loaded.load(&rows[2].key, last, &mut loaded_changes).expect("a row");
        assert_eq!((loaded, loaded_changes.hash()), (records, changes.hash()));
    }

    #[test]
    fn a_row_that_is_wrong_is_a_fault() {
        let mut changes = Changes::default();
        let mut records = Records::<Note>::default();
        let good = codec::encode_row(&note("a"));
        let key = TaskId(1).to_key();
        assert!(matches!(records.load(&[1, 2], &good, &mut changes), Err(Fault::Broken { .. })));
        let cut = &good[..good.len() - 1];
        assert!(matches!(records.load(key.as_slice(), cut, &mut changes), Err(Fault::Undecodable { .. })));
        records.load(key.as_slice(), &good, &mut changes).expect("a row");
        assert!(matches!(records.load(key.as_slice(), &good, &mut changes), Err(Fault::Broken { .. })));
    }

    #[test]
    fn the_hash_of_a_row_depends_on_every_bit_of_it() {
        let (key, value) = ([1u8, 2, 3], [7u8; 21]);
        let mut seen = std::collections::BTreeSet::from([hash_row(1, &key, &value)]);
        assert!(seen.insert(hash_row(2, &key, &value)));
        for bit in 0..value.len() * 8 {
            let mut other = value;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(hash_row(1, &key, &other)));
        }
        for bit in 0..key.len() * 8 {
            let mut other = key;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(hash_row(1, &other, &value)));
        }
        assert!(seen.insert(hash_row(1, &[1, 2], &[3, 7])));
        assert!(seen.insert(hash_row(1, &[1, 2, 3], &[7])));
        assert!(seen.insert(hash_row(1, &[1, 2, 3], &[7, 0])));
    }
}
