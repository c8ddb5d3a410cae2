//! `Delete`: points go by id.

use super::Shard;
use super::command::{Effect, Reply};
use super::step::Step;
use crate::{CollectionId, Reject};

impl Shard {
    pub(super) fn delete(
        &mut self,
        step: &mut Step,
        collection: CollectionId,
        generation: u64,
        ids: &[String],
    ) -> Result<Reply, Reject> {
        self.live_collection(collection, generation)?;
        let mut existed = Vec::with_capacity(ids.len());
        for id in ids {
            let row = self.collections.remove_point(collection, id, &mut step.changes);
            existed.push(row.is_some());
            if let Some(row) = row {
                step.effects.push(Effect::Removed { collection, row });
            }
        }
        Ok(Reply::Deleted { existed })
    }
}

#[cfg(test)]
mod tests {
    use crate::shard::testing::{Slice, point};
    use crate::shard::{Command, Effect, POINTS, Reply, Version};
    use crate::{CollectionId, Reject};

    const C: CollectionId = CollectionId(1);

    fn delete(generation: u64, ids: &[&str]) -> Command {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        Command::Delete { collection: C, generation, ids }
    }

    #[test]
    fn says_which_there_were() {
        let mut slice = Slice::with_collection(2);
        slice.upsert(vec![point("a", 2), point("b", 2)]);
        let outcome = slice.outcome(vec![delete(5, &["b", "x", "b"])]);
        assert_eq!(outcome.replies, [Ok(Reply::Deleted { existed: vec![true, false, false] })]);
        assert_eq!(outcome.effects, [Effect::Removed { collection: C, row: 2 }]);
        assert_eq!(slice.state.live_rows(C).collect::<Vec<_>>(), [1]);
        assert_eq!(slice.rows_in(POINTS), 1);
    }

    #[test]
    fn a_row_number_is_not_used_again() {
        let mut slice = Slice::with_collection(2);
        slice.upsert(vec![point("a", 2)]);
        slice.run(delete(5, &["a"])).expect("the collection is there");
        assert_eq!(slice.upsert(vec![point("a", 2)]).0, [Ok(Version(2))]);
    }

    #[test]
    fn refuses_another_collection() {
        let mut slice = Slice::with_collection(2);
        let refused = Reject::CollectionNotFound { name: "1".to_owned() };
        assert_eq!(slice.run(delete(4, &["a"])), Err(refused));
    }
}
