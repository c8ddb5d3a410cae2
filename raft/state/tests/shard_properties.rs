//! Random entries on a shard against a map, with an index kept by the effects and a machine loaded from the rows.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_state::shard::{
    Command, Effect, POINTS, PointReject, PointWrite, Reply, Shard, Version, decode_point, point_key, row_of_key,
};
use quorate_state::{CollectionId, Entry, LogTime, Metric, Operation, Position};

/// Something that happens to one of three collections.
#[derive(Clone, Debug)]
enum Act {
    Put(u32),
    Drop(u32),
    Upsert(u32, Vec<(u8, i8, Option<u64>)>),
    Delete(u32, Vec<u8>),
}

fn act() -> impl Strategy<Value = Act> {
    let point = (0..12u8, any::<i8>(), proptest::option::weighted(0.3, 0..20u64));
    prop_oneof![
        2 => (1..4u32).prop_map(Act::Put),
        1 => (1..4u32).prop_map(Act::Drop),
        8 => (1..4u32, prop::collection::vec(point, 0..6)).prop_map(|(id, points)| Act::Upsert(id, points)),
        3 => (1..4u32, prop::collection::vec(0..12u8, 0..4)).prop_map(|(id, ids)| Act::Delete(id, ids)),
    ]
}

/// The model of a collection: points with their versions, and what an index would hold that follows the effects.
#[derive(Default)]
struct ModelCollection {
    points: BTreeMap<String, (u64, f32)>,
    index: BTreeMap<u64, f32>,
    next: u64,
}

#[derive(Default)]
struct Run {
    first: Shard,
    second: Shard,
    rows: BTreeMap<(u8, Bytes), Bytes>,
    /// `None` for one that was dropped.
    model: BTreeMap<u32, Option<ModelCollection>>,
    position: u64,
}

fn generation(id: u32) -> u64 {
    100 + u64::from(id)
}

fn command(act: &Act) -> Command {
    match act {
        Act::Put(id) => Command::PutCollection {
            id: CollectionId(*id),
            generation: generation(*id),
            dimension: 2,
            metric: Metric::L2,
        },
        Act::Drop(id) => Command::DropCollection { id: CollectionId(*id), generation: 200 },
        Act::Upsert(id, points) => {
            let write = |(point, number, expected): &(u8, i8, Option<u64>)| PointWrite {
                id: format!("p{point}"),
                vector: vec![f32::from(*number), 1.0],
                payload: vec![*point],
                expected: *expected,
            };
            let points = points.iter().map(write).collect();
            Command::Upsert { collection: CollectionId(*id), generation: generation(*id), points }
        }
        Act::Delete(id, ids) => {
            let ids = ids.iter().map(|point| format!("p{point}")).collect();
            Command::Delete { collection: CollectionId(*id), generation: generation(*id), ids }
        }
    }
}

impl Run {
    fn apply(&mut self, acts: &[Act]) {
        self.position += 1;
        let operations = acts.iter().map(|act| Operation::new(command(act))).collect();
        let entry = Entry { time: LogTime(self.position), operations };
        let outcome = self.first.apply(Position(self.position), entry.clone()).expect("in order");
        let other = self.second.apply(Position(self.position), entry).expect("in order");
        assert_eq!(outcome, other);
        for row in &outcome.rows {
            match &row.value {
                Some(value) => self.rows.insert((row.table, row.key.clone()), value.clone()),
                None => self.rows.remove(&(row.table, row.key.clone())),
            };
        }
        for (act, reply) in acts.iter().zip(&outcome.replies) {
            self.compare(act, reply.as_ref().ok());
        }
        outcome.effects.into_iter().for_each(|effect| self.follow(effect));
        self.compare_all();
        if self.position.is_multiple_of(3) {
            self.second =
                Shard::load(self.rows.iter().map(|((table, key), value)| (*table, key, value))).expect("own rows");
        }
        assert_eq!(self.first, self.second);
        assert_eq!(self.first.check(), Ok(()));
    }

    fn compare(&mut self, act: &Act, reply: Option<&Reply>) {
        match act {
            Act::Put(id) => {
                self.model.entry(*id).or_insert_with(|| Some(ModelCollection::default()));
                assert_eq!(reply, Some(&Reply::Done));
            }
            Act::Drop(id) => {
                // The index is taken away by the effect, which is compared after all operations.
                self.model.insert(*id, None);
                assert_eq!(reply, Some(&Reply::Done));
            }
            Act::Upsert(id, points) => {
                let Some(Some(collection)) = self.model.get_mut(id) else { return assert_eq!(reply, None) };
                let results = points.iter().map(|(point, number, expected)| {
                    let name = format!("p{point}");
                    let actual = collection.points.get(&name).map_or(0, |(version, _)| *version);
                    if expected.is_some_and(|expected| expected != actual) {
                        return Err(PointReject::VersionConflict { actual });
                    }
                    collection.next += 1;
                    collection.points.insert(name, (collection.next, f32::from(*number)));
                    Ok(Version(collection.next))
                });
                assert_eq!(reply, Some(&Reply::Upserted(results.collect())));
            }
            Act::Delete(id, ids) => {
                let Some(Some(collection)) = self.model.get_mut(id) else { return assert_eq!(reply, None) };
                let existed =
                    ids.iter().map(|point| collection.points.remove(&format!("p{point}")).is_some()).collect();
                assert_eq!(reply, Some(&Reply::Deleted { existed }));
            }
        }
    }

    fn follow(&mut self, effect: Effect) {
        match effect {
            Effect::Inserted { collection, row, vector } => {
                if let Some(Some(model)) = self.model.get_mut(&collection.0) {
                    assert!(model.index.last_key_value().is_none_or(|(last, _)| *last < row), "rows only grow");
                    model.index.insert(row, vector[0]);
                }
            }
            Effect::Removed { collection, row } => {
                if let Some(Some(model)) = self.model.get_mut(&collection.0) {
                    assert!(model.index.remove(&row).is_some(), "row {row} was not there");
                }
            }
            Effect::CollectionPut { .. } | Effect::CollectionDropped { .. } => {}
        }
    }

    fn compare_all(&self) {
        let mut stored = 0;
        for (id, model) in &self.model {
            let id = CollectionId(*id);
            let Some(model) = model else {
                assert_eq!(self.first.collection(id), None);
                continue;
            };
            let by_row: BTreeMap<u64, f32> = model.points.values().copied().collect();
            assert_eq!(by_row, model.index, "the effects keep an index equal to the points");
            assert_eq!(self.first.live_rows(id).collect::<Vec<_>>(), by_row.keys().copied().collect::<Vec<_>>());
            for (name, (version, number)) in &model.points {
                assert_eq!(self.first.row_of(id, name), Some(*version));
                let row = &self.rows[&(POINTS, Bytes::from(point_key(id, *version)))];
                let point = decode_point(row).expect("own row");
                assert_eq!((point.id, point.vector()[0]), (name.as_str(), *number));
                stored += 1;
            }
        }
        let points = self.rows.keys().filter(|(table, key)| *table == POINTS && row_of_key(key).is_some()).count();
        assert_eq!(points, stored, "no row is left behind");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Versions, conditions, rows and effects are those of a plain map.
    #[test]
    fn the_shard_does_what_the_model_says(entries in prop::collection::vec(prop::collection::vec(act(), 0..5), 1..50)) {
        let mut run = Run::default();
        for acts in &entries {
            run.apply(acts);
        }
    }
}
