//! `DropCollection`: control tells of the deleting of a collection.

use super::Shard;
use super::collections::CollectionRecord;
use super::command::{Effect, Reply};
use super::step::Step;
use crate::{CollectionId, Metric, Reject};

impl Shard {
    pub(super) fn drop_collection(
        &mut self,
        step: &mut Step,
        id: CollectionId,
        generation: u64,
    ) -> Result<Reply, Reject> {
        let record = match self.collections.records().get(&id) {
            Some(record) if record.dropped => return Ok(Reply::Done),
            Some(record) => CollectionRecord { dropped: true, generation, ..record.clone() },
            // The word of its making may still be on its way: this record keeps it from bringing the collection back.
            None => CollectionRecord { generation, dimension: 0, metric: Metric::Cosine, dropped: true, next_row: 1 },
        };
        let known = self.collections.live(id).is_some();
        self.collections.unmake(id, record, &mut step.changes);
        if known {
            step.effects.push(Effect::CollectionDropped { collection: id });
        }
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use crate::shard::testing::{Slice, point};
    use crate::shard::{Command, Effect, POINTS, Reply};
    use crate::{CollectionId, Metric};

    const C: CollectionId = CollectionId(1);

    #[test]
    fn takes_all_points_along() {
        let mut slice = Slice::with_collection(2);
        slice.upsert(vec![point("a", 2), point("b", 2)]);
        let outcome = slice.outcome(vec![Command::DropCollection { id: C, generation: 9 }]);
        assert_eq!(outcome.effects, [Effect::CollectionDropped { collection: C }]);
        assert_eq!(slice.rows_in(POINTS), 0);
        assert_eq!(slice.state.collections().count(), 0);
        assert_eq!(slice.state.row_of(C, "a"), None);
        assert_eq!(slice.run(Command::DropCollection { id: C, generation: 9 }), Ok(Reply::Done));
    }

    #[test]
    fn a_late_word_of_the_making_does_not_bring_it_back() {
        let making = Command::PutCollection { id: C, generation: 5, dimension: 2, metric: Metric::L2 };
        let deleting = Command::DropCollection { id: C, generation: 9 };
        for words in [vec![making.clone(), deleting.clone(), making.clone()], vec![deleting, making]] {
            let mut slice = Slice::new();
            for word in words {
                assert_eq!(slice.run(word), Ok(Reply::Done));
            }
            assert_eq!(slice.state.collections().count(), 0);
        }
    }
}
