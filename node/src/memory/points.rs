//! Writes, gets and deletes of points: split by shard, sent to the shards at the same time, answered in the order asked.

use std::collections::BTreeMap;

use futures::future::{join_all, try_join_all};
use quorate_api::v1;
use quorate_state::control::CollectionRecord;
use quorate_state::shard::{Command, PointWrite};
use quorate_state::{Operation, RequestId, ShardId};
use tokio::time::Instant;

use super::wire::{Freshness, GetAnswer, GetCall, What, WriteAnswer, fitting};
use super::{Inner, validate};
use crate::error::{Error, ErrorReason};

/// A write to one shard has at most about this many bytes, well below the limit of an entry, so that a large batch does
/// not hold up the writes of others.
const PART_BYTES: usize = 512 * 1024;

/// A part of a batch: what one operation carries.
struct Part {
    shard: ShardId,
    /// Where its items stand in the batch.
    places: Vec<usize>,
}

impl Inner {
    pub(super) async fn upsert(
        &self,
        request: v1::UpsertRequest,
        id: RequestId,
        deadline: Instant,
    ) -> Result<v1::UpsertResponse, Error> {
        self.on_collection(&request.collection, deadline, |record| self.put(record, &request.points, id, deadline))
            .await
    }

    async fn put(
        &self,
        record: CollectionRecord,
        points: &[v1::PointInput],
        id: RequestId,
        deadline: Instant,
    ) -> Result<v1::UpsertResponse, Error> {
        validate::points(&record, points)?;
        let weight = |point: &v1::PointInput| 64 + point.id.len() + 4 * point.vector.len() + point.payload.len();
        let parts = split(&record, points.iter().map(|point| (point.id.as_str(), weight(point))));
        let writes = parts.iter().enumerate().map(|(ordinal, part)| {
            let points = part.places.iter().map(|place| point_write(&points[*place])).collect();
            let (collection, generation) = (record.id, record.generation);
            (part.shard, operation(id, ordinal, Command::Upsert { collection, generation, points }))
        });
        let answers = self.write_parts(writes.collect(), deadline).await;
        self.metrics.upserted(points.len());
        merge(points.len(), &parts, answers)
    }

    pub(super) async fn delete(
        &self,
        request: v1::DeletePointsRequest,
        id: RequestId,
        deadline: Instant,
    ) -> Result<v1::DeletePointsResponse, Error> {
        validate::ids(request.ids.iter().map(String::as_str), "ids")?;
        self.on_collection(&request.collection, deadline, |record| self.take(record, &request.ids, id, deadline)).await
    }

    async fn take(
        &self,
        record: CollectionRecord,
        wanted: &[String],
        id: RequestId,
        deadline: Instant,
    ) -> Result<v1::DeletePointsResponse, Error> {
        let parts = split(&record, wanted.iter().map(|id| (id.as_str(), 16 + id.len())));
        let writes = parts.iter().enumerate().map(|(ordinal, part)| {
            let ids = part.places.iter().map(|place| wanted[*place].clone()).collect();
            let (collection, generation) = (record.id, record.generation);
            (part.shard, operation(id, ordinal, Command::Delete { collection, generation, ids }))
        });
        let answers = self.write_parts(writes.collect(), deadline).await;
        let answers = all(answers)?;
        let deleted = answers.iter().flat_map(|answer| &answer.existed).filter(|existed| **existed).count();
        let positions = positions(parts.iter().zip(&answers).map(|(part, answer)| (part.shard, answer.position)));
        Ok(v1::DeletePointsResponse { deleted: deleted as u64, positions })
    }

    pub(super) async fn get(
        &self,
        request: v1::GetPointsRequest,
        deadline: Instant,
    ) -> Result<v1::GetPointsResponse, Error> {
        validate::ids(request.ids.iter().map(String::as_str), "ids")?;
        self.on_collection(&request.collection, deadline, |record| self.look_up(record, &request, deadline)).await
    }

    async fn look_up(
        &self,
        record: CollectionRecord,
        request: &v1::GetPointsRequest,
        deadline: Instant,
    ) -> Result<v1::GetPointsResponse, Error> {
        let parts = split(&record, request.ids.iter().map(|id| (id.as_str(), 0)));
        let calls = parts.iter().map(|part| {
            let call = GetCall {
                freshness: freshness(request.consistency, &request.session_positions, part.shard),
                collection: record.id.0,
                generation: record.generation,
                ids: part.places.iter().map(|place| request.ids[*place].clone()).collect(),
                with_vector: request.with_vector,
            };
            async move { self.ask::<GetAnswer>(part.shard, &What::Get(call), deadline).await }
        });
        let mut found: BTreeMap<String, v1::Point> = try_join_all(calls)
            .await?
            .into_iter()
            .flat_map(|answer| answer.points)
            .map(|point| (point.id.clone(), point))
            .collect();
        fitting(v1::GetPointsResponse { points: request.ids.iter().filter_map(|id| found.remove(id)).collect() })
    }

    async fn write_parts(
        &self,
        writes: Vec<(ShardId, Operation<Command>)>,
        deadline: Instant,
    ) -> Vec<Result<WriteAnswer, Error>> {
        join_all(writes.iter().map(|(shard, operation)| self.write(*shard, operation, deadline))).await
    }
}

fn operation(id: RequestId, ordinal: usize, command: Command) -> Operation<Command> {
    Operation { request: Some(part_request(id, ordinal)), command }
}

/// The request id of one part of a batch. A shard keeps request ids of its own, so parts of different shards could share
/// one, but a large batch has several parts for a shard. The same batch is always cut the same way, so a retry gives each
/// part the id that it had. The time in the id stays as it is: its age decides whether it is still remembered.
fn part_request(id: RequestId, ordinal: usize) -> RequestId {
    const RANDOM_BITS: u128 = (1 << 62) - 1;
    RequestId(id.0 ^ ((ordinal as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15) & RANDOM_BITS))
}

fn point_write(point: &v1::PointInput) -> PointWrite {
    PointWrite {
        id: point.id.clone(),
        vector: point.vector.clone(),
        payload: point.payload.to_vec(),
        expected: point.expected_version,
    }
}

/// Cuts a batch of (id, bytes) into parts: by shard, and again where a part grows beyond [`PART_BYTES`]. Depends on nothing
/// but the collection and the batch, and keeps the order within each shard.
fn split<'a>(record: &CollectionRecord, items: impl Iterator<Item = (&'a str, usize)>) -> Vec<Part> {
    let mut open: BTreeMap<ShardId, (Part, usize)> = BTreeMap::new();
    let mut full = Vec::new();
    for (place, (id, bytes)) in items.enumerate() {
        let shard = record.shard_of(id);
        let empty = || (Part { shard, places: Vec::new() }, 0);
        let (part, size) = open.entry(shard).or_insert_with(empty);
        if !part.places.is_empty() && *size + bytes > PART_BYTES {
            full.push(std::mem::replace(part, empty().0));
            *size = 0;
        }
        part.places.push(place);
        *size += bytes;
    }
    full.extend(open.into_values().map(|(part, _)| part));
    full
}

/// The error that stands for all parts that failed: one that may have had an effect goes before those that had none.
fn failure(answers: &[Result<WriteAnswer, Error>]) -> Option<&Error> {
    let errors = || answers.iter().filter_map(|answer| answer.as_ref().err());
    errors().find(|error| error.reason == ErrorReason::OutcomeUnknown).or_else(|| errors().next())
}

/// The answers of all parts, for a call whose answer has no place for what became of each: a part that failed fails the
/// call, and beside parts that went through its outcome is unknown. Asked again with the same request id, those answer as
/// they did.
fn all(answers: Vec<Result<WriteAnswer, Error>>) -> Result<Vec<WriteAnswer>, Error> {
    match failure(&answers) {
        Some(error) if answers.iter().any(Result::is_ok) => {
            let message = format!("a part of the call was done and another part failed ({})", error.message);
            Err(Error { retry_after: error.retry_after, ..Error::new(ErrorReason::OutcomeUnknown, message) })
        }
        Some(error) => Err(error.clone()),
        None => answers.into_iter().collect(),
    }
}

/// Puts the outcomes of the parts in the order of the batch. The points of a part that failed carry its error; when no part
/// went through, the call fails.
fn merge(count: usize, parts: &[Part], answers: Vec<Result<WriteAnswer, Error>>) -> Result<v1::UpsertResponse, Error> {
    if answers.iter().all(Result::is_err)
        && let Some(error) = failure(&answers)
    {
        return Err(error.clone());
    }
    let mut outcomes = vec![v1::WriteOutcome::default(); count];
    let mut covered = Vec::new();
    for (part, answer) in parts.iter().zip(answers) {
        match answer {
            Ok(answer) => {
                if answer.outcomes.len() != part.places.len() {
                    return Err(Error::internal("a shard answered for more or fewer points than it was given"));
                }
                covered.push((part.shard, answer.position));
                for (place, outcome) in part.places.iter().zip(answer.outcomes) {
                    outcomes[*place] = outcome;
                }
            }
            Err(error) => {
                for place in &part.places {
                    outcomes[*place].error = Some(error.to_wire());
                }
            }
        }
    }
    Ok(v1::UpsertResponse { outcomes, positions: positions(covered.into_iter()) })
}

/// The greatest position of each shard.
fn positions(covered: impl Iterator<Item = (ShardId, u64)>) -> Vec<v1::ShardPosition> {
    let mut greatest: BTreeMap<ShardId, u64> = BTreeMap::new();
    for (shard, position) in covered {
        let entry = greatest.entry(shard).or_default();
        *entry = position.max(*entry);
    }
    greatest.into_iter().map(|(shard, position)| v1::ShardPosition { shard: shard.0, position }).collect()
}

/// How fresh a read of one shard must be.
pub(super) fn freshness(consistency: i32, session: &[v1::ShardPosition], shard: ShardId) -> Freshness {
    let position = session.iter().filter(|seen| seen.shard == shard.0).map(|seen| seen.position).max();
    Freshness { consistency, position: position.unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use quorate_state::CollectionId;
    use quorate_state::control::CollectionState;

    use super::*;

    fn record(shards: u32) -> CollectionRecord {
        CollectionRecord {
            id: CollectionId(1),
            name: "notes".into(),
            generation: 5,
            dimension: 2,
            metric: quorate_state::Metric::Cosine,
            state: CollectionState::Ready,
            shards: (1..=shards).map(ShardId).collect(),
            pending: vec![],
        }
    }

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("point-{n}")).collect()
    }

    #[test]
    fn a_split_keeps_every_item_once_and_in_order_within_a_shard() {
        let ids = ids(1_000);
        for shards in [1, 3, 8] {
            let record = record(shards);
            let parts = split(&record, ids.iter().map(|id| (id.as_str(), 100)));
            assert_eq!(parts.len(), shards as usize);
            let mut seen: Vec<usize> = parts.iter().flat_map(|part| part.places.clone()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..1_000).collect::<Vec<_>>());
            for part in &parts {
                assert!(part.places.is_sorted());
                assert!(part.places.len() > 500 / shards as usize, "shard {} has few points", part.shard);
                assert!(part.places.iter().all(|place| record.shard_of(&ids[*place]) == part.shard));
            }
        }
    }

    #[test]
    fn a_large_batch_is_cut_and_each_part_keeps_its_own_request_id() {
        let ids = ids(100);
        let items = || ids.iter().map(|id| (id.as_str(), PART_BYTES / 10));
        let parts = split(&record(1), items());
        assert_eq!(parts.len(), 10);
        assert!(parts.iter().all(|part| part.places.len() == 10));
        let again: Vec<Vec<usize>> = split(&record(1), items()).into_iter().map(|part| part.places).collect();
        assert_eq!(again, parts.into_iter().map(|part| part.places).collect::<Vec<_>>());

        let id = RequestId(uuid::Uuid::now_v7().as_u128());
        let mut requests: Vec<RequestId> = (0..1_000).map(|ordinal| part_request(id, ordinal)).collect();
        assert_eq!(requests[0], id);
        assert!(requests.iter().all(|request| request.minted() == id.minted()));
        requests.sort_unstable();
        requests.dedup();
        assert_eq!(requests.len(), 1_000);
    }

    #[test]
    fn an_item_larger_than_a_part_travels_alone() {
        let parts = split(&record(1), [("a", 1), ("b", 2 * PART_BYTES), ("c", 1)].into_iter());
        assert_eq!(parts.iter().map(|part| part.places.clone()).collect::<Vec<_>>(), [vec![0], vec![1], vec![2]]);
    }

    fn answer(position: u64, versions: &[u64]) -> WriteAnswer {
        let outcomes = versions.iter().map(|version| v1::WriteOutcome { version: *version, error: None }).collect();
        WriteAnswer { position, outcomes, existed: vec![] }
    }

    #[test]
    fn outcomes_come_in_the_order_of_the_batch_and_a_failed_part_is_named_at_its_points() {
        let parts = [
            Part { shard: ShardId(1), places: vec![1, 3] },
            Part { shard: ShardId(2), places: vec![0] },
            Part { shard: ShardId(1), places: vec![2] },
        ];
        let answers = vec![Ok(answer(7, &[11, 13])), Err(Error::unknown()), Ok(answer(9, &[12]))];
        let merged = merge(4, &parts, answers).expect("some went through");
        assert_eq!(merged.outcomes.iter().map(|outcome| outcome.version).collect::<Vec<_>>(), [0, 11, 12, 13]);
        assert_eq!(merged.outcomes[0].error.as_ref().map(|error| error.reason.as_str()), Some("OUTCOME_UNKNOWN"));
        assert!(merged.outcomes[1..].iter().all(|outcome| outcome.error.is_none()));
        assert_eq!(merged.positions, [v1::ShardPosition { shard: 1, position: 9 }]);
    }

    #[test]
    fn a_batch_of_which_nothing_went_through_fails_as_a_call() {
        let parts = [Part { shard: ShardId(1), places: vec![0] }];
        let error = merge(1, &parts, vec![Err(Error::no_leader())]).expect_err("an error");
        assert_eq!(error.reason, ErrorReason::NoLeader);
    }

    #[test]
    fn a_part_whose_outcome_is_unknown_is_not_hidden_by_one_that_did_nothing() {
        let parts = [1, 2, 3].map(|shard| Part { shard: ShardId(shard), places: vec![shard as usize - 1] });
        let answers = || vec![Err(Error::no_leader()), Err(Error::unknown()), Err(Error::no_leader())];
        assert_eq!(merge(3, &parts, answers()).expect_err("an error").reason, ErrorReason::OutcomeUnknown);
        assert_eq!(all(answers()).expect_err("an error").reason, ErrorReason::OutcomeUnknown);
    }

    #[test]
    fn a_call_of_which_a_part_was_done_does_not_fail_as_if_nothing_was() {
        let shed = Error::overloaded(std::time::Duration::from_millis(70));
        let error = all(vec![Ok(answer(7, &[])), Err(shed.clone())]).expect_err("a part failed");
        assert_eq!((error.reason, error.retry_after), (ErrorReason::OutcomeUnknown, shed.retry_after));
        assert_eq!(all(vec![Err(shed.clone()), Err(Error::no_leader())]), Err(shed), "nothing was done");
        assert_eq!(all(vec![Ok(answer(7, &[])), Ok(answer(9, &[]))]), Ok(vec![answer(7, &[]), answer(9, &[])]));
    }

    #[test]
    fn a_session_read_waits_for_its_own_shard_only() {
        let seen = [v1::ShardPosition { shard: 1, position: 5 }, v1::ShardPosition { shard: 2, position: 9 }];
        let session = v1::Consistency::Session.into();
        assert_eq!(freshness(session, &seen, ShardId(2)).position, 9);
        assert_eq!(freshness(session, &seen, ShardId(3)).position, 0);
    }
}
