//! `Upsert`: points are put. Each takes a row number that was never used, which is its version.

use super::Shard;
use super::collections::CollectionRecord;
use super::command::{Effect, PointReject, PointWrite, Reply, Version};
use super::step::Step;
use crate::{CollectionId, Reject};

/// The longest id of a point, bytes.
pub const MAX_POINT_ID_BYTES: usize = 256;
/// The largest payload of a point, bytes.
pub const MAX_POINT_PAYLOAD_BYTES: usize = 1 << 20;

impl Shard {
    pub(super) fn upsert(
        &mut self,
        step: &mut Step,
        collection: CollectionId,
        generation: u64,
        points: Vec<PointWrite>,
    ) -> Result<Reply, Reject> {
        let record = self.live_collection(collection, generation)?;
        let (dimension, first) = (record.dimension, record.next_row);
        let mut row = first;
        let mut results = Vec::with_capacity(points.len());
        for mut point in points {
            let refused = check_point(&point, dimension).and_then(|()| self.check_version(collection, &point));
            if let Err(refused) = refused {
                results.push(Err(refused));
                continue;
            }
            if let Some(old) = self.collections.put_point(collection, row, &mut point, &mut step.changes) {
                step.effects.push(Effect::Removed { collection, row: old });
            }
            step.effects.push(Effect::Inserted { collection, row, vector: point.vector });
            results.push(Ok(Version(row)));
            row += 1;
        }
        self.collections.use_rows(collection, row - first, &mut step.changes);
        Ok(Reply::Upserted(results))
    }

    /// The collection, if it is the one that is meant.
    pub(super) fn live_collection(
        &self,
        collection: CollectionId,
        generation: u64,
    ) -> Result<&CollectionRecord, Reject> {
        self.collections
            .live(collection)
            .filter(|record| record.generation == generation)
            .ok_or_else(|| Reject::CollectionNotFound { name: collection.to_string() })
    }

    fn check_version(&self, collection: CollectionId, point: &PointWrite) -> Result<(), PointReject> {
        let Some(expected) = point.expected else { return Ok(()) };
        #[cfg(feature = "planted")]
        if crate::planted::is("unversioned-put") {
            return Ok(());
        }
        let actual = self.row_of(collection, &point.id).unwrap_or(0);
        if actual == expected { Ok(()) } else { Err(PointReject::VersionConflict { actual }) }
    }
}

fn check_point(point: &PointWrite, dimension: u32) -> Result<(), PointReject> {
    if !(1..=MAX_POINT_ID_BYTES).contains(&point.id.len()) {
        let what = format!("the id of a point has 1 to {MAX_POINT_ID_BYTES} bytes, not {}", point.id.len());
        return Err(PointReject::OutOfBounds { what });
    }
    if point.payload.len() > MAX_POINT_PAYLOAD_BYTES {
        let what = format!("a payload has at most {MAX_POINT_PAYLOAD_BYTES} bytes, not {}", point.payload.len());
        return Err(PointReject::OutOfBounds { what });
    }
    if point.vector.len() != dimension as usize {
        let actual = u32::try_from(point.vector.len()).unwrap_or(u32::MAX);
        return Err(PointReject::WrongDimension { expected: dimension, actual });
    }
    match point.vector.iter().position(|number| !number.is_finite()) {
        Some(at) => Err(PointReject::NotFinite { at: at as u32 }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::shard::testing::{Slice, point};
    use crate::shard::{Command, Effect, POINTS, PointReject, PointWrite, Version, decode_point, point_key};
    use crate::{CollectionId, Reject};

    const C: CollectionId = CollectionId(1);

    #[test]
    fn every_put_is_a_new_row_and_the_old_one_goes() {
        let mut slice = Slice::with_collection(2);
        let first = slice.upsert(vec![point("a", 2), point("b", 2)]);
        assert_eq!(first.0, [Ok(Version(1)), Ok(Version(2))]);
        let newer = PointWrite { vector: vec![7.0, 8.0], payload: b"new".to_vec(), ..point("a", 2) };
        let (versions, effects) = slice.upsert(vec![newer]);
        assert_eq!(versions, [Ok(Version(3))]);
        assert_eq!(
            effects,
            [
                Effect::Removed { collection: C, row: 1 },
                Effect::Inserted { collection: C, row: 3, vector: vec![7.0, 8.0] }
            ]
        );
        assert_eq!(slice.state.row_of(C, "a"), Some(3));
        assert_eq!(slice.state.live_rows(C).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(slice.rows_in(POINTS), 2);
        let row = slice.row(POINTS, &point_key(C, 3)).expect("stored");
        let stored = decode_point(&row).expect("what was written");
        assert_eq!((stored.id, stored.vector(), stored.payload), ("a", vec![7.0, 8.0], &b"new"[..]));
    }

    #[test]
    fn of_two_in_a_batch_the_later_one_stays() {
        let mut slice = Slice::with_collection(2);
        let (versions, effects) = slice.upsert(vec![point("a", 2), point("a", 2)]);
        assert_eq!(versions, [Ok(Version(1)), Ok(Version(2))]);
        assert_eq!(effects.len(), 3, "inserted, removed, inserted");
        assert_eq!(slice.state.count(C), 1);
    }

    #[test]
    fn each_point_is_refused_by_itself() {
        let mut slice = Slice::with_collection(2);
        slice.upsert(vec![point("a", 2)]);
        let expecting = |id: &str, version| PointWrite { expected: Some(version), ..point(id, 2) };
        let (versions, _) = slice.upsert(vec![
            expecting("a", 0),
            expecting("a", 1),
            expecting("a", 1),
            expecting("b", 4),
            expecting("b", 0),
            point("c", 3),
            PointWrite { vector: vec![0.0, f32::NAN], ..point("c", 2) },
            PointWrite { vector: vec![f32::INFINITY, 0.0], ..point("c", 2) },
            point("", 2),
            point(&"x".repeat(257), 2),
            PointWrite { payload: vec![0; (1 << 20) + 1], ..point("c", 2) },
            point("c", 2),
        ]);
        assert_eq!(
            versions[..8],
            [
                Err(PointReject::VersionConflict { actual: 1 }),
                Ok(Version(2)),
                Err(PointReject::VersionConflict { actual: 2 }),
                Err(PointReject::VersionConflict { actual: 0 }),
                Ok(Version(3)),
                Err(PointReject::WrongDimension { expected: 2, actual: 3 }),
                Err(PointReject::NotFinite { at: 1 }),
                Err(PointReject::NotFinite { at: 0 }),
            ]
        );
        assert!(versions[8..11].iter().all(|version| matches!(version, Err(PointReject::OutOfBounds { .. }))));
        assert_eq!(versions[11], Ok(Version(4)));
    }

    #[test]
    fn refuses_a_collection_that_is_not_there_or_another_one() {
        let mut slice = Slice::with_collection(2);
        let upsert = |collection, generation| Command::Upsert { collection, generation, points: vec![point("a", 2)] };
        let refused = |id: u32| Err(Reject::CollectionNotFound { name: id.to_string() });
        assert_eq!(slice.run(upsert(CollectionId(8), 5)), refused(8));
        assert_eq!(slice.run(upsert(C, 6)), refused(1));
        slice.run(Command::DropCollection { id: C, generation: 9 }).expect("it is there");
        assert_eq!(slice.run(upsert(C, 9)), refused(1));
    }
}
