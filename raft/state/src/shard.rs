//! The shard machine: the points of this shard's slice of all collections.
//!
//! In memory there is, for each point, its id and its row number; vectors and payloads are rows. The machine decides every
//! condition (does the collection exist, is the version the expected one) and never looks at a vector index: what it
//! tells the index is in the effects, on every replica alike.

mod check;
mod collections;
mod command;
mod load;
mod meta;
mod point;
mod read;
mod reply;
mod step;
mod table;

mod delete;
mod drop_collection;
mod put_collection;
#[cfg(test)]
pub(crate) mod testing;
mod upsert;

pub use collections::CollectionView;
pub use command::{Command, Effect, PointReject, PointWrite, Reply, Version};
pub use load::Loader;
pub use point::{POINTS, PointRow, decode_point, point_key, row_of_key};
pub use upsert::{MAX_POINT_ID_BYTES, MAX_POINT_PAYLOAD_BYTES};

use self::collections::Collections;
use self::meta::MetaRecord;
use self::reply::KeptReply;
use self::step::Step;
use crate::records::{Only, Records};
use crate::requests::Requests;
use crate::{Entry, Fault, MAX_OPERATIONS, Operation, Outcome, Position, Reject};

/// The shard machine. What holds for [`crate::control::Control`] holds for it.
///
/// - A row number is given once in a collection, in the order of the log: it is also the version of the point.
/// - The effects of an outcome, performed in order, keep an index equal to the rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shard {
    meta: Records<MetaRecord>,
    collections: Collections,
    requests: Requests<KeptReply>,
    /// Set hash of the rows.
    hash: u64,
}

impl Shard {
    /// The machine before the first entry.
    pub fn new() -> Self {
        Shard::default()
    }

    /// Applies one entry.
    ///
    /// # Errors
    /// Faults when the entry is out of order or too large; the machine must not be used afterwards.
    pub fn apply(&mut self, at: Position, entry: Entry<Command>) -> Result<Outcome<Reply, Effect>, Fault> {
        let mut meta = self.meta().clone();
        if at <= meta.position {
            return Err(Fault::OutOfOrder { at: at.0, last: meta.position.0 });
        }
        if entry.operations.len() > MAX_OPERATIONS {
            return Err(Fault::TooManyOperations { at: at.0, operations: entry.operations.len() });
        }
        meta.position = at;
        meta.time = meta.time.max(entry.time);
        let mut step = Step::new(meta, self.hash);
        step.meta.horizon = self.requests.forget(step.meta.time, step.meta.horizon, &mut step.changes);
        #[cfg(feature = "planted")]
        let several = entry.operations.len() > 1;
        let replies = entry.operations.into_iter().map(|operation| self.operate(&mut step, operation)).collect();
        self.meta.put(Only, step.meta, &mut step.changes);
        self.hash = step.changes.hash();
        let rows = step.changes.take_rows();
        #[cfg(feature = "planted")]
        let rows = crate::planted::without_rows("lost-point", rows, |row| {
            several && row.table == table::POINT && row.value.is_some()
        });
        Ok(Outcome { replies, rows, effects: step.effects })
    }

    /// The set hash of all rows: equal on replicas that have applied the same entries.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn meta(&self) -> &MetaRecord {
        self.meta.get(&Only).unwrap_or(&MetaRecord::BEFORE_FIRST)
    }

    /// Applies an operation, unless its request has taken effect already: then that reply is given again.
    fn operate(&mut self, step: &mut Step, operation: Operation<Command>) -> Result<Reply, Reject> {
        let Some(id) = operation.request else {
            return self.dispatch(step, operation.command);
        };
        if let Some(kept) = self.requests.look_up(id, step.meta.time, step.meta.horizon)? {
            return Ok(kept.reply());
        }
        let reply = self.dispatch(step, operation.command)?;
        self.requests.keep(id, step.meta.time, KeptReply::new(&reply), &mut step.changes);
        Ok(reply)
    }

    fn dispatch(&mut self, step: &mut Step, command: Command) -> Result<Reply, Reject> {
        match command {
            Command::PutCollection { id, generation, dimension, metric } => {
                self.put_collection(step, id, generation, dimension, metric)
            }
            Command::DropCollection { id, generation } => self.drop_collection(step, id, generation),
            Command::Upsert { collection, generation, points } => self.upsert(step, collection, generation, points),
            Command::Delete { collection, generation, ids } => self.delete(step, collection, generation, &ids),
        }
    }
}
