//! Collections, and the outbox through which their making and deleting reaches the shards.

use std::collections::BTreeMap;

use crate::codec::{Decode, Encode};
use crate::records::{Changes, Record, Records};
use crate::{CollectionId, Metric, ShardId};

/// Points of a collection fall into so many buckets, and buckets are given to shards. Never changes.
pub const BUCKETS: usize = 256;

/// Where a collection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CollectionState {
    /// Some of its shards do not have it yet.
    Creating,
    /// All of its shards have it.
    Ready,
    /// Some of its shards have it still.
    Deleting,
}

/// A collection.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CollectionRecord {
    /// Its number, never used again.
    pub id: CollectionId,
    /// Its name. A collection that is being deleted keeps it for display; the name is free for a new one.
    pub name: String,
    /// Log position of its making or deleting. Outbox entries and shards tell late words by it.
    pub generation: u64,
    /// Numbers in a vector.
    pub dimension: u32,
    /// How vectors are compared.
    pub metric: Metric,
    /// Where it is in its life.
    pub state: CollectionState,
    /// The shards that hold it. Which shard holds a bucket follows from their order.
    pub shards: Vec<ShardId>,
    /// The shards that have not confirmed `state` yet.
    pub pending: Vec<ShardId>,
}

impl Record for CollectionRecord {
    const TABLE: u8 = super::table::COLLECTION;
    type Key = CollectionId;
}

impl CollectionRecord {
    /// The shard that holds the point with this id.
    pub fn shard_of(&self, point: &str) -> ShardId {
        self.shards[usize::from(bucket_of(point)) * self.shards.len() / BUCKETS]
    }
}

/// The bucket of a point: the top byte of the CRC32C of its id. Frozen: stored points lie where it says.
pub fn bucket_of(point: &str) -> u8 {
    (crc32c::crc32c(point.as_bytes()) >> 24) as u8
}

/// Something that a shard is yet to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxEntry {
    /// The collection.
    pub collection: CollectionId,
    /// The shard to tell.
    pub shard: ShardId,
    /// To be passed on to the shard, and to `ConfirmCollection` afterwards.
    pub generation: u64,
    /// What to tell it.
    pub action: OutboxAction,
}

/// What a shard is told about a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutboxAction {
    /// The collection is there.
    Put {
        /// Numbers in a vector.
        dimension: u32,
        /// How vectors are compared.
        metric: Metric,
    },
    /// The collection is gone.
    Drop,
}

/// All collections, and which one has a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Collections {
    records: Records<CollectionRecord>,
    names: BTreeMap<String, CollectionId>,
}

impl Collections {
    pub(super) fn records(&self) -> &Records<CollectionRecord> {
        &self.records
    }

    pub(super) fn by_name(&self, name: &str) -> Option<&CollectionRecord> {
        self.names.get(name).and_then(|id| self.records.get(id))
    }

    /// Puts a new or changed collection.
    pub(super) fn put(&mut self, record: CollectionRecord, changes: &mut Changes) {
        if record.state == CollectionState::Deleting {
            self.forget_name(&record);
        } else {
            self.names.insert(record.name.clone(), record.id);
        }
        self.records.put(record.id, record, changes);
    }

    /// Takes a collection out for good.
    pub(super) fn remove(&mut self, id: CollectionId, changes: &mut Changes) {
        if let Some(record) = self.records.remove(id, changes) {
            self.forget_name(&record);
        }
    }

    fn forget_name(&mut self, record: &CollectionRecord) {
        if self.names.get(&record.name) == Some(&record.id) {
            self.names.remove(&record.name);
        }
    }

    pub(super) fn load(&mut self, key: &[u8], value: &[u8], changes: &mut Changes) -> Result<(), crate::Fault> {
        self.records.load(key, value, changes)
    }

    /// Rebuilds what is derived from the records.
    pub(super) fn derive(&mut self) {
        self.names = self
            .records
            .iter()
            .filter(|(_, record)| record.state != CollectionState::Deleting)
            .map(|(id, record)| (record.name.clone(), id))
            .collect();
    }

    /// What the shards are yet to be told, in the order of collections.
    pub(super) fn outbox(&self) -> impl Iterator<Item = OutboxEntry> {
        self.records.iter().flat_map(|(id, record)| {
            record.pending.iter().map(move |shard| OutboxEntry {
                collection: id,
                shard: *shard,
                generation: record.generation,
                action: match record.state {
                    CollectionState::Deleting => OutboxAction::Drop,
                    _ => OutboxAction::Put { dimension: record.dimension, metric: record.metric },
                },
            })
        })
    }
}
