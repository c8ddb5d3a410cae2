//! `ConfirmCollection`: a shard was told of the making or deleting of a collection.

use super::Control;
use super::collections::CollectionState;
use super::command::{Effect, Reply};
use super::step::Step;
use crate::{CollectionId, Reject, ShardId};

impl Control {
    pub(super) fn confirm_collection(
        &mut self,
        step: &mut Step,
        id: CollectionId,
        shard: ShardId,
        generation: u64,
    ) -> Result<Reply, Reject> {
        let Some(record) = self.collections.records().get(&id) else {
            return Ok(Reply::Done);
        };
        // A late word about the making must not count for the deleting: the generation tells them apart.
        if record.generation != generation || !record.pending.contains(&shard) {
            return Ok(Reply::Done);
        }
        let mut record = record.clone();
        record.pending.retain(|pending| *pending != shard);
        if record.pending.is_empty() {
            match record.state {
                CollectionState::Deleting => self.collections.remove(id, &mut step.changes),
                _ => {
                    record.state = CollectionState::Ready;
                    self.collections.put(record, &mut step.changes);
                }
            }
            step.effects.push(Effect::CollectionChanged { collection: id });
        } else {
            self.collections.put(record, &mut step.changes);
        }
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use crate::Metric;
    use crate::control::testing::Cluster;
    use crate::control::{CollectionState, Command, OutboxAction, OutboxEntry, Reply};

    fn confirm(entry: &OutboxEntry) -> Command {
        Command::ConfirmCollection { id: entry.collection, shard: entry.shard, generation: entry.generation }
    }

    #[test]
    fn a_collection_is_ready_when_all_its_shards_have_it() {
        let mut cluster = Cluster::of(1);
        cluster.collection("c", 2);
        let outbox: Vec<_> = cluster.state.outbox().collect();
        cluster.run(confirm(&outbox[0])).expect("delivered");
        assert_eq!(cluster.state.collection("c").expect("made").state, CollectionState::Creating);
        cluster.run(confirm(&outbox[0])).expect("again");
        assert_eq!(cluster.state.collection("c").expect("made").state, CollectionState::Creating);
        cluster.run(confirm(&outbox[1])).expect("delivered");
        assert_eq!(cluster.state.collection("c").expect("made").state, CollectionState::Ready);
        assert_eq!(cluster.state.outbox().count(), 0);
    }

    #[test]
    fn a_late_word_about_the_making_does_not_count_for_the_deleting() {
        let mut cluster = Cluster::of(1);
        cluster.collection("c", 1);
        let making = cluster.state.outbox().next().expect("to be told");
        cluster.run(Command::DeleteCollection { name: "c".to_owned() }).expect("it is there");
        assert_eq!(cluster.run(confirm(&making)), Ok(Reply::Done));
        let deleting = cluster.state.outbox().next().expect("still to be told");
        assert_eq!(deleting.action, OutboxAction::Drop);
        assert!(deleting.generation > making.generation);
        cluster.run(confirm(&deleting)).expect("delivered");
        assert_eq!(cluster.state.collections().count(), 0);
        assert_eq!(cluster.run(confirm(&deleting)), Ok(Reply::Done), "a word about what is gone changes nothing");
    }

    #[test]
    fn the_metric_is_told() {
        let mut cluster = Cluster::of(1);
        cluster.collection("c", 1);
        let told = cluster.state.outbox().next().expect("to be told").action;
        assert_eq!(told, OutboxAction::Put { dimension: 4, metric: Metric::Cosine });
    }
}
