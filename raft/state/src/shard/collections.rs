//! The collections of a shard, and for each the row numbers of its points.

use std::collections::BTreeMap;

use super::command::PointWrite;
use super::point::{encode_point, point_key};
use super::table;
use crate::codec::{Decode, Encode};
use crate::records::{Changes, Record, Records, hash_row};
use crate::{CollectionId, Metric};

/// A collection as it is stored. Its record stays when it is dropped, so that a late word about its making does not bring
/// it back; numbers of collections are never used again.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct CollectionRecord {
    /// The last that was heard of: of its making, or of its deleting if it is dropped.
    pub(super) generation: u64,
    pub(super) dimension: u32,
    pub(super) metric: Metric,
    pub(super) dropped: bool,
    /// The row number that is given next, in entries that have been applied.
    pub(super) next_row: u64,
}

impl Record for CollectionRecord {
    const TABLE: u8 = table::COLLECTION;
    type Key = CollectionId;
}

/// A collection as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectionView {
    /// The collection.
    pub id: CollectionId,
    /// The generation of its making.
    pub generation: u64,
    /// Numbers in a vector.
    pub dimension: u32,
    /// How vectors are compared.
    pub metric: Metric,
    /// How many points it has here.
    pub count: u64,
}

/// What is in memory of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) row: u64,
    /// CRC of the stored row, for the set hash.
    pub(super) crc: u32,
}

pub(super) type Points = BTreeMap<Box<str>, Slot>;

/// All collections with their points.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Collections {
    records: Records<CollectionRecord>,
    /// Every collection that is not dropped has its points.
    points: BTreeMap<CollectionId, Points>,
}

impl Collections {
    pub(super) fn records(&self) -> &Records<CollectionRecord> {
        &self.records
    }

    /// The record of a collection that is not dropped.
    pub(super) fn live(&self, id: CollectionId) -> Option<&CollectionRecord> {
        self.records.get(&id).filter(|record| !record.dropped)
    }

    pub(super) fn points(&self, id: CollectionId) -> Option<&Points> {
        self.points.get(&id)
    }

    pub(super) fn all_points(&self) -> impl Iterator<Item = (CollectionId, &Points)> {
        self.points.iter().map(|(id, points)| (*id, points))
    }

    /// Makes a collection.
    pub(super) fn make(&mut self, id: CollectionId, record: CollectionRecord, changes: &mut Changes) {
        self.records.put(id, record, changes);
        self.points.insert(id, Points::new());
    }

    /// Notes that a collection is dropped, known before or not, and deletes the rows of its points.
    pub(super) fn unmake(&mut self, id: CollectionId, record: CollectionRecord, changes: &mut Changes) {
        self.records.put(id, record, changes);
        for slot in self.points.remove(&id).unwrap_or_default().into_values() {
            drop_row(id, slot, changes);
        }
    }

    /// Gives out row numbers: call once for an operation, with how many it has used.
    pub(super) fn use_rows(&mut self, id: CollectionId, rows: u64, changes: &mut Changes) {
        if rows > 0 {
            self.records.change(id, changes, |record| record.next_row += rows);
        }
    }

    /// Puts a point under a row number that was never used; returns the row that it replaces.
    pub(super) fn put_point(
        &mut self,
        id: CollectionId,
        row: u64,
        point: &mut PointWrite,
        changes: &mut Changes,
    ) -> Option<u64> {
        let (value, crc) = encode_point(point);
        let slot = Slot { row, crc };
        changes.add_hash(share(id, slot));
        changes.put_content(table::POINT, &point_key(id, row), value);
        let points = self.points.get_mut(&id).expect("a collection that is not dropped has its points");
        let old = points.insert(std::mem::take(&mut point.id).into_boxed_str(), slot);
        old.map(|old| drop_row(id, old, changes))
    }

    /// Deletes a point; returns its row.
    pub(super) fn remove_point(&mut self, id: CollectionId, point: &str, changes: &mut Changes) -> Option<u64> {
        let old = self.points.get_mut(&id)?.remove(point)?;
        Some(drop_row(id, old, changes))
    }

    pub(super) fn load(&mut self, key: &[u8], value: &[u8], changes: &mut Changes) -> Result<(), crate::Fault> {
        self.records.load(key, value, changes)
    }

    /// Takes in a stored point. Returns false if there was one with this id.
    pub(super) fn load_point(&mut self, id: CollectionId, point: &str, slot: Slot, changes: &mut Changes) -> bool {
        changes.add_hash(share(id, slot));
        self.points.entry(id).or_default().insert(Box::from(point), slot).is_none()
    }

    /// Gives a collection without points its empty place.
    pub(super) fn derive(&mut self) {
        for (id, record) in self.records.iter() {
            if !record.dropped {
                self.points.entry(id).or_default();
            }
        }
    }
}

/// The share of a point in the set hash: its key and the CRC of its row, which covers its id, vector and payload.
pub(super) fn share(collection: CollectionId, slot: Slot) -> u64 {
    hash_row(table::POINT, &point_key(collection, slot.row), &slot.crc.to_le_bytes())
}

fn drop_row(collection: CollectionId, slot: Slot, changes: &mut Changes) -> u64 {
    changes.subtract_hash(share(collection, slot));
    changes.delete_content(table::POINT, &point_key(collection, slot.row));
    slot.row
}
