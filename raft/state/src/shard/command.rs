//! The vocabulary of the shard machine. What each command does is in the file of that command.

use crate::codec::{Decode, Encode};
use crate::{CollectionId, Metric};

/// Something to do to a shard.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Command {
    /// The collection is there. Replies [`Reply::Done`], also to a late or repeated word.
    PutCollection {
        /// The collection.
        id: CollectionId,
        /// The generation of its making, from control's outbox.
        generation: u64,
        /// Numbers in a vector.
        dimension: u32,
        /// How vectors are compared.
        metric: Metric,
    },
    /// The collection is gone, with all its points. Replies [`Reply::Done`], also to a late or repeated word.
    DropCollection {
        /// The collection.
        id: CollectionId,
        /// The generation of its deleting, from control's outbox.
        generation: u64,
    },
    /// Puts points; each takes effect or is refused by itself. Replies [`Reply::Upserted`].
    Upsert {
        /// The collection.
        collection: CollectionId,
        /// The generation of its making.
        generation: u64,
        /// The points, in order: of two with the same id the later one stays.
        points: Vec<PointWrite>,
    },
    /// Deletes points by id. Replies [`Reply::Deleted`].
    Delete {
        /// The collection.
        collection: CollectionId,
        /// The generation of its making.
        generation: u64,
        /// The ids.
        ids: Vec<String>,
    },
}

/// A point to be put.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct PointWrite {
    /// Its id, unique in its collection; 1 to 256 bytes.
    pub id: String,
    /// Its vector, of the collection's dimension.
    pub vector: Vec<f32>,
    /// What is stored with it.
    pub payload: Vec<u8>,
    /// Put it only if the point has this version now; 0 is a point that does not exist.
    pub expected: Option<u64>,
}

/// The version of a point: the row number of its last upsert. Never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Version(pub u64);

/// The refusal of one point.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum PointReject {
    /// The point has another version than was expected.
    #[error(
        "the point has version {actual} and not the expected one (0 is a point that does not exist): read it again and decide anew"
    )]
    VersionConflict {
        /// The version that it has; 0 if it does not exist.
        actual: u64,
    },
    /// The vector has another dimension than the collection.
    #[error("the vector has {actual} numbers and the collection takes {expected}")]
    WrongDimension {
        /// Numbers in a vector of the collection.
        expected: u32,
        /// Numbers in this one.
        actual: u32,
    },
    /// The vector has a number that is infinite or none.
    #[error("number {at} of the vector is infinite or not a number")]
    NotFinite {
        /// Which one, from 0.
        at: u32,
    },
    /// The id or the payload is out of bounds.
    #[error("{what}")]
    OutOfBounds {
        /// What is wrong and what is allowed.
        what: String,
    },
}

/// The answer to a command that was not refused.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// It is so.
    Done,
    /// For each point, in order, its new version or why it was refused.
    Upserted(Vec<Result<Version, PointReject>>),
    /// For each id, in order, whether there was such a point.
    Deleted {
        /// Whether there was.
        existed: Vec<bool>,
    },
}

/// A change for the index of a collection, on every replica, to be performed in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A collection has come.
    CollectionPut {
        /// The collection.
        collection: CollectionId,
        /// The generation of its making.
        generation: u64,
        /// Numbers in a vector.
        dimension: u32,
        /// How vectors are compared.
        metric: Metric,
    },
    /// A collection has gone, and all its rows with it (without an [`Effect::Removed`] for each).
    CollectionDropped {
        /// The collection.
        collection: CollectionId,
    },
    /// A row has come.
    Inserted {
        /// The collection.
        collection: CollectionId,
        /// The row number, greater than all before it in the collection.
        row: u64,
        /// The vector, finite and of the collection's dimension.
        vector: Vec<f32>,
    },
    /// A row has gone.
    Removed {
        /// The collection.
        collection: CollectionId,
        /// The row number.
        row: u64,
    },
}
