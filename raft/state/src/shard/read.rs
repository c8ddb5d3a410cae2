//! What can be read from a shard's state.

use super::Shard;
use super::collections::CollectionView;
use crate::{CollectionId, LogTime, Position};

impl Shard {
    /// Log time: that of the last entry.
    pub fn time(&self) -> LogTime {
        self.meta().time
    }

    /// Position of the last entry.
    pub fn last_position(&self) -> Position {
        self.meta().position
    }

    /// The collections, in order.
    pub fn collections(&self) -> impl Iterator<Item = CollectionView> {
        self.collections.all_points().filter_map(|(id, _)| self.collection(id))
    }

    /// One collection.
    pub fn collection(&self, id: CollectionId) -> Option<CollectionView> {
        self.collections.live(id).map(|record| CollectionView {
            id,
            generation: record.generation,
            dimension: record.dimension,
            metric: record.metric,
            count: self.count(id),
        })
    }

    /// The row number of a point, which is its version.
    pub fn row_of(&self, collection: CollectionId, point: &str) -> Option<u64> {
        self.collections.points(collection)?.get(point).map(|slot| slot.row)
    }

    /// How many points a collection has here.
    pub fn count(&self, collection: CollectionId) -> u64 {
        self.collections.points(collection).map_or(0, |points| points.len() as u64)
    }

    /// The row numbers of all points of a collection, in order. Sorts them, so it costs memory and time in proportion.
    pub fn live_rows(&self, collection: CollectionId) -> impl Iterator<Item = u64> + use<> {
        let mut rows: Vec<u64> =
            self.collections.points(collection).into_iter().flatten().map(|(_, slot)| slot.row).collect();
        rows.sort_unstable();
        rows.into_iter()
    }
}
