//! `CreateCollection`.

use super::Control;
use super::collections::{BUCKETS, CollectionRecord, CollectionState};
use super::command::{Effect, Reply};
use super::names::check_name;
use super::step::Step;
use crate::{CollectionId, Metric, Reject, ShardId};

/// The most numbers in a vector.
pub const MAX_DIMENSION: u32 = 4_096;
/// The most collections of a cluster, those that are being deleted included.
const MAX_COLLECTIONS: usize = 4_096;

impl Control {
    pub(super) fn create_collection(
        &mut self,
        step: &mut Step,
        name: String,
        dimension: u32,
        metric: Metric,
        shards: u32,
    ) -> Result<Reply, Reject> {
        check_name("collection", &name)?;
        if !(1..=MAX_DIMENSION).contains(&dimension) {
            return Err(Reject::invalid(format!("a vector has 1 to {MAX_DIMENSION} numbers, not {dimension}")));
        }
        let all = self.shards.len() as u32;
        let most = all.min(BUCKETS as u32);
        if !(1..=most).contains(&shards) {
            return Err(if all == 0 {
                Reject::NotInitialized
            } else {
                Reject::invalid(format!("a collection is spread over 1 to {most} shards, not {shards}"))
            });
        }
        if self.collections.by_name(&name).is_some() {
            return Err(Reject::CollectionExists { name });
        }
        if self.collections.records().len() >= MAX_COLLECTIONS {
            return Err(Reject::LimitReached { what: "collections".to_owned(), limit: MAX_COLLECTIONS as u64 });
        }
        let id = CollectionId(step.meta.next_collection);
        step.meta.next_collection += 1;
        // One collection after another begins at the next shard, so that small ones spread over all.
        let shards: Vec<ShardId> = (0..shards).map(|nth| ShardId(1 + (id.0 - 1 + nth) % all)).collect();
        let record = CollectionRecord {
            id,
            name,
            generation: step.position().0,
            dimension,
            metric,
            state: CollectionState::Creating,
            pending: shards.clone(),
            shards,
        };
        self.collections.put(record.clone(), &mut step.changes);
        step.effects.push(Effect::CollectionChanged { collection: id });
        Ok(Reply::Collection(record))
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::Cluster;
    use crate::control::{CollectionState, Command, OutboxAction};
    use crate::{Metric, Reject, ShardId};

    fn create(name: &str, dimension: u32, shards: u32) -> Command {
        Command::CreateCollection { name: name.to_owned(), dimension, metric: Metric::Cosine, shards }
    }

    #[test]
    fn is_told_to_each_of_its_shards() {
        let mut cluster = Cluster::of(1);
        cluster.run(create("glosses", 384, 3)).expect("a new name");
        let collection = cluster.state.collection("glosses").expect("it was made").clone();
        assert_eq!(collection.state, CollectionState::Creating);
        assert_eq!(collection.shards, [ShardId(1), ShardId(2), ShardId(3)]);
        let outbox: Vec<_> = cluster.state.outbox().collect();
        assert_eq!(outbox.iter().map(|entry| entry.shard).collect::<Vec<_>>(), collection.shards);
        assert!(outbox.iter().all(|entry| entry.generation == collection.generation
            && entry.action == OutboxAction::Put { dimension: 384, metric: Metric::Cosine }));
    }

    #[test]
    fn small_ones_spread_over_the_shards() {
        let mut cluster = Cluster::of(1);
        let mut first_shards = Vec::new();
        for name in ["a", "b", "c", "d", "e"] {
            cluster.run(create(name, 4, 1)).expect("a new name");
            first_shards.push(cluster.state.collection(name).expect("it was made").shards[0].0);
        }
        assert_eq!(first_shards, [1, 2, 3, 4, 1]);
    }

    #[test]
    fn every_point_has_one_shard() {
        let mut cluster = Cluster::of(1);
        cluster.run(create("wide", 4, 3)).expect("a new name");
        let collection = cluster.state.collection("wide").expect("it was made");
        let mut counts = [0u32; 4];
        for point in 0..3_000 {
            counts[collection.shard_of(&format!("point-{point}")).0 as usize] += 1;
        }
        assert_eq!(counts[0], 0);
        assert!(counts[1..].iter().all(|count| (800..1_200).contains(count)), "about evenly: {counts:?}");
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let mut cluster = Cluster::of(1);
        cluster.run(create("taken", 4, 1)).expect("a new name");
        assert_eq!(cluster.run(create("taken", 4, 1)), Err(Reject::CollectionExists { name: "taken".to_owned() }));
        for command in
            [create("", 4, 1), create("x", 0, 1), create("x", 5_000, 1), create("x", 4, 0), create("x", 4, 5)]
        {
            assert!(matches!(cluster.run(command), Err(Reject::InvalidArgument { .. })));
        }
        assert_eq!(Cluster::empty().run(create("x", 4, 1)), Err(Reject::NotInitialized));
    }
}
