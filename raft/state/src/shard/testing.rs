//! A shard's machine with its rows beside it, for tests: every step also checks the invariants and that the rows make the
//! same machine again.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Command, Effect, PointReject, PointWrite, Reply, Shard, Version};
use crate::{CollectionId, Entry, LogTime, Metric, Operation, Outcome, Position, Reject};

/// The machine of a shard and its stored rows.
pub(crate) struct Slice {
    pub(crate) state: Shard,
    pub(crate) rows: BTreeMap<(u8, Bytes), Bytes>,
    position: u64,
    time: LogTime,
}

/// A point with a vector of that many numbers.
pub(crate) fn point(id: &str, dimension: usize) -> PointWrite {
    PointWrite { id: id.to_owned(), vector: vec![0.5; dimension], payload: b"{}".to_vec(), expected: None }
}

impl Slice {
    /// Nothing has happened yet.
    pub(crate) fn new() -> Slice {
        let time = LogTime(1_750_000_000_000_000);
        Slice { state: Shard::new(), rows: BTreeMap::new(), position: 0, time }
    }

    /// With collection 1 of generation 5.
    pub(crate) fn with_collection(dimension: u32) -> Slice {
        let mut slice = Slice::new();
        let put = Command::PutCollection { id: CollectionId(1), generation: 5, dimension, metric: Metric::L2 };
        slice.run(put).expect("a new collection");
        slice
    }

    /// Applies one entry with these operations.
    pub(crate) fn operate(&mut self, operations: Vec<Operation<Command>>) -> Outcome<Reply, Effect> {
        self.position += 1;
        let entry = Entry { time: self.time, operations };
        let outcome = self.state.apply(Position(self.position), entry).expect("entries are in order");
        for row in &outcome.rows {
            let key = (row.table, row.key.clone());
            match &row.value {
                Some(value) => self.rows.insert(key, value.clone()),
                None => self.rows.remove(&key),
            };
        }
        assert_eq!(self.state.check(), Ok(()));
        let loaded = Shard::load(self.rows.iter().map(|((table, key), value)| (*table, key, value)));
        assert_eq!(loaded.expect("rows of a machine"), self.state);
        outcome
    }

    /// Applies one entry with these commands.
    pub(crate) fn outcome(&mut self, commands: Vec<Command>) -> Outcome<Reply, Effect> {
        self.operate(commands.into_iter().map(Operation::new).collect())
    }

    /// Applies one command.
    pub(crate) fn run(&mut self, command: Command) -> Result<Reply, Reject> {
        self.outcome(vec![command]).replies.remove(0)
    }

    /// Puts points into collection 1.
    pub(crate) fn upsert(&mut self, points: Vec<PointWrite>) -> (Vec<Result<Version, PointReject>>, Vec<Effect>) {
        let mut outcome = self.outcome(vec![Command::Upsert { collection: CollectionId(1), generation: 5, points }]);
        match outcome.replies.remove(0) {
            Ok(Reply::Upserted(versions)) => (versions, outcome.effects),
            other => panic!("upsert: {other:?}"),
        }
    }

    /// How many rows a table has.
    pub(crate) fn rows_in(&self, table: u8) -> usize {
        self.rows.keys().filter(|(of, _)| *of == table).count()
    }

    /// One row.
    pub(crate) fn row(&self, table: u8, key: &[u8]) -> Option<Bytes> {
        self.rows.get(&(table, Bytes::copy_from_slice(key))).cloned()
    }

    /// Lets log time pass with the next entry.
    pub(crate) fn pass_ms(&mut self, milliseconds: u64) {
        self.time = self.time.plus_ms(milliseconds);
    }
}
