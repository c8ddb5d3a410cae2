//! A search: every shard of the collection at the same time, then the best of their answers.

use futures::future::join_all;
use quorate_api::v1;
use quorate_state::ShardId;
use quorate_state::control::CollectionRecord;
use tokio::time::{Duration, Instant};

use super::merge::best_of;
use super::points::freshness;
use super::routes::unavailable;
use super::wire::{SearchAnswer, SearchCall, What, fitting};
use super::{Inner, validate};
use crate::error::Error;

/// The longest that a search waits for a shard, whatever the caller's deadline: twice what a failover takes. What has not
/// answered by then is named in the reply.
const SHARD_WAIT: Duration = Duration::from_secs(3);
/// Kept of the caller's time to merge and send the answer.
const MARGIN_PARTS: u32 = 10;

impl Inner {
    pub(super) async fn search(
        &self,
        request: v1::SearchRequest,
        deadline: Instant,
    ) -> Result<v1::SearchResponse, Error> {
        let since = Instant::now();
        let search = |record| self.search_in(record, &request, deadline);
        let response = self.on_collection(&request.collection, deadline, search).await?;
        self.metrics.searched(since.elapsed(), response.degraded_shards.len());
        Ok(response)
    }

    async fn search_in(
        &self,
        record: CollectionRecord,
        request: &v1::SearchRequest,
        deadline: Instant,
    ) -> Result<v1::SearchResponse, Error> {
        validate::search(&record, request)?;
        let end = shard_deadline(Instant::now(), deadline);
        let mut call = SearchCall {
            freshness: Default::default(),
            collection: record.id.0,
            generation: record.generation,
            vector: request.vector.clone(),
            k: request.k,
            ef: request.ef,
            exact: request.exact,
            with_payload: request.with_payload,
            with_vector: request.with_vector,
        };
        let answers = join_all(record.shards.iter().map(|shard| {
            call.freshness = freshness(request.consistency, &request.session_positions, *shard);
            let what = What::Search(call.clone());
            async move { (*shard, self.ask::<SearchAnswer>(*shard, &what, end).await) }
        }))
        .await;
        fitting(gather(answers, request.k as usize)?)
    }
}

/// Until when shards may answer.
fn shard_deadline(now: Instant, deadline: Instant) -> Instant {
    let left = deadline.saturating_duration_since(now);
    now + (left - left / MARGIN_PARTS).min(SHARD_WAIT)
}

/// Merges what the shards answered and names those that did not. A refusal, a shard that sheds (its caller is to slow down,
/// not to take less for an answer), and a search that no shard answered, are errors.
fn gather(answers: Vec<(ShardId, Result<SearchAnswer, Error>)>, k: usize) -> Result<v1::SearchResponse, Error> {
    use crate::error::ErrorReason::{Internal, ShardUnavailable};
    let mut parts = Vec::with_capacity(answers.len());
    let mut degraded = Vec::new();
    let mut why = None;
    for (shard, answer) in answers {
        match answer {
            Ok(answer) => parts.push(answer.hits),
            Err(error) if matches!(error.reason, Internal | ShardUnavailable) => {
                tracing::warn!(%shard, %error, "a search goes without a shard");
                degraded.push(shard.0);
                why = why.or(Some((shard, error)));
            }
            Err(error) => return Err(error),
        }
    }
    match why {
        Some((shard, error)) if parts.is_empty() => Err(unavailable(shard, &error.message)),
        _ => Ok(v1::SearchResponse { hits: best_of(parts, k), degraded_shards: degraded }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorReason;

    fn answer(ids: &[(&str, f32)]) -> Result<SearchAnswer, Error> {
        let hit = |(id, score): &(&str, f32)| v1::Hit { id: (*id).into(), score: *score, ..Default::default() };
        Ok(SearchAnswer { hits: ids.iter().map(hit).collect() })
    }

    #[test]
    fn hits_are_merged_and_missing_shards_are_named() {
        let answers = vec![
            (ShardId(1), answer(&[("a", 0.9), ("b", 0.5)])),
            (ShardId(2), Err(unavailable(ShardId(2), "planted"))),
            (ShardId(3), answer(&[("c", 0.7)])),
            (ShardId(4), Err(Error::internal("planted"))),
        ];
        let response = gather(answers, 2).expect("two shards answered");
        assert_eq!(response.hits.iter().map(|hit| hit.id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(response.degraded_shards, [2, 4]);
    }

    #[test]
    fn a_search_that_no_shard_answered_is_an_error() {
        let answers = vec![(ShardId(2), Err(unavailable(ShardId(2), "planted")))];
        let error = gather(answers, 2).expect_err("nothing was searched");
        assert_eq!((error.reason, error.metadata["shard"].as_str()), (ErrorReason::ShardUnavailable, "2"));
    }

    #[test]
    fn a_shard_that_sheds_is_not_taken_for_a_missing_one() {
        let shed = Error::overloaded(Duration::from_millis(9));
        let answers = vec![
            (ShardId(1), answer(&[("a", 0.9)])),
            (ShardId(2), Err(unavailable(ShardId(2), "planted"))),
            (ShardId(3), Err(shed.clone())),
        ];
        assert_eq!(gather(answers, 2), Err(shed), "with the time to wait");
    }

    #[test]
    fn a_refusal_is_not_taken_for_a_missing_shard() {
        let answers = vec![(ShardId(1), answer(&[])), (ShardId(2), Err(Error::invalid("vector", "planted")))];
        assert_eq!(gather(answers, 2).expect_err("refused").reason, ErrorReason::InvalidArgument);
    }

    #[test]
    fn shards_get_most_of_the_time_and_never_all_of_it() {
        let now = Instant::now();
        assert_eq!(shard_deadline(now, now + Duration::from_secs(1)), now + Duration::from_millis(900));
        assert_eq!(shard_deadline(now, now + Duration::from_secs(60)), now + SHARD_WAIT);
    }
}
