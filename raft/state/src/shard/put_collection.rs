//! `PutCollection`: control tells of the making of a collection.

use super::Shard;
use super::collections::CollectionRecord;
use super::command::{Effect, Reply};
use super::step::Step;
use crate::control::MAX_DIMENSION;
use crate::{CollectionId, Metric, Reject};

impl Shard {
    pub(super) fn put_collection(
        &mut self,
        step: &mut Step,
        id: CollectionId,
        generation: u64,
        dimension: u32,
        metric: Metric,
    ) -> Result<Reply, Reject> {
        // A record is of this making, or of the deleting that came after it: either way the word is late.
        if self.collections.records().contains(&id) {
            return Ok(Reply::Done);
        }
        if !(1..=MAX_DIMENSION).contains(&dimension) {
            return Err(Reject::invalid(format!("a vector has 1 to {MAX_DIMENSION} numbers, not {dimension}")));
        }
        let record = CollectionRecord { generation, dimension, metric, dropped: false, next_row: 1 };
        self.collections.make(id, record, &mut step.changes);
        step.effects.push(Effect::CollectionPut { collection: id, generation, dimension, metric });
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use crate::shard::testing::Slice;
    use crate::shard::{Command, Effect, Reply};
    use crate::{CollectionId, Metric, Reject};

    fn put(id: u32, dimension: u32) -> Command {
        Command::PutCollection { id: CollectionId(id), generation: 5, dimension, metric: Metric::L2 }
    }

    #[test]
    fn makes_it_once() {
        let mut slice = Slice::new();
        let outcome = slice.outcome(vec![put(1, 3), put(1, 3)]);
        assert_eq!(outcome.replies, [Ok(Reply::Done), Ok(Reply::Done)]);
        let made =
            Effect::CollectionPut { collection: CollectionId(1), generation: 5, dimension: 3, metric: Metric::L2 };
        assert_eq!(outcome.effects, [made]);
        assert_eq!(slice.state.collections().count(), 1);
    }

    #[test]
    fn refuses_a_senseless_dimension() {
        let mut slice = Slice::new();
        assert!(matches!(slice.run(put(1, 0)), Err(Reject::InvalidArgument { .. })));
        assert_eq!(slice.state.collections().count(), 0);
    }
}
