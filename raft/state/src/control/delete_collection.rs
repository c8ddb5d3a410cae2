//! `DeleteCollection`: the name is free at once; the points go as the outbox reaches the shards.

use super::Control;
use super::collections::CollectionState;
use super::command::{Effect, Reply};
use super::step::Step;
use crate::Reject;

impl Control {
    pub(super) fn delete_collection(&mut self, step: &mut Step, name: &str) -> Result<Reply, Reject> {
        let Some(record) = self.collections.by_name(name) else {
            return Err(Reject::CollectionNotFound { name: name.to_owned() });
        };
        let mut record = record.clone();
        record.state = CollectionState::Deleting;
        record.generation = step.position().0;
        // A collection made earlier in this entry has this position too, and no shard has been told of it yet.
        record.pending = record.shards.clone();
        let reply = Reply::Collection(record.clone());
        step.effects.push(Effect::CollectionChanged { collection: record.id });
        self.collections.put(record, &mut step.changes);
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use crate::Reject;
    use crate::control::testing::Cluster;
    use crate::control::{CollectionState, Command};

    fn delete(name: &str) -> Command {
        Command::DeleteCollection { name: name.to_owned() }
    }

    #[test]
    fn frees_the_name_at_once_and_the_record_in_the_end() {
        let mut cluster = Cluster::of(1);
        let old = cluster.collection("c", 2);
        cluster.run(delete("c")).expect("it is there");
        assert!(cluster.state.collection("c").is_none());
        assert_eq!(cluster.state.collection_by_id(old).expect("a while").state, CollectionState::Deleting);
        let new = cluster.collection("c", 1);
        assert_ne!(old, new, "the name is the same, the collection is not");
        cluster.deliver();
        assert!(cluster.state.collection_by_id(old).is_none());
        assert_eq!(cluster.state.collection("c").expect("the new one").id, new);
    }

    #[test]
    fn refuses_what_is_not_there() {
        let mut cluster = Cluster::of(1);
        let refused = Reject::CollectionNotFound { name: "c".to_owned() };
        assert_eq!(cluster.run(delete("c")), Err(refused.clone()));
        cluster.collection("c", 1);
        cluster.run(delete("c")).expect("it is there");
        assert_eq!(cluster.run(delete("c")), Err(refused));
    }
}
