//! Collections: made, listed and deleted through control, known to their shards by the outbox.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use quorate_api::v1;
use quorate_state::control::{CollectionRecord, CollectionState, Command, Reply};
use quorate_state::{CollectionId, Operation, RequestId, ShardId};
use tokio::time::{Instant, timeout_at};

use super::wire::{CollectionStats, StatsAnswer, StatsCall, What};
use super::{Inner, validate};
use crate::error::{Error, ErrorReason};

/// How long a listing waits for the counts of a shard.
const COUNT_WAIT: Duration = Duration::from_secs(1);
/// How long the answer to a deletion waits for the shards.
const DROP_WAIT: Duration = Duration::from_secs(2);

impl Inner {
    /// Makes a collection, and answers when each of its shards knows it.
    pub(super) async fn create(
        &self,
        request: v1::CreateCollectionRequest,
        id: RequestId,
        deadline: Instant,
    ) -> Result<v1::CreateCollectionResponse, Error> {
        self.initialized()?;
        let cluster_shards = self.context.control.read(|control| control.shards().count());
        let shards = validate::collection(&request, cluster_shards)?;
        let metric = validate::metric(request.metric());
        let command = Command::CreateCollection { name: request.name, dimension: request.dimension, metric, shards };
        let record = self.change(id, command, deadline).await?;
        self.delivered(&record, deadline).await.map_err(|pending| not_delivered(&record, &pending))?;
        Ok(v1::CreateCollectionResponse { collection: Some(describe(&record, &BTreeMap::new())) })
    }

    /// Deletes a collection, and answers when each of its shards has dropped it: then its points are gone for readers at
    /// any node, but for weaker reads of a replica that is behind. A shard that cannot be reached holds up the answer for
    /// [`DROP_WAIT`] at most; until the outbox reaches it, a node that has not heard of the deleting may still find points
    /// there. The name is free in any case.
    pub(super) async fn drop_collection(
        &self,
        request: v1::DeleteCollectionRequest,
        id: RequestId,
        deadline: Instant,
    ) -> Result<v1::DeleteCollectionResponse, Error> {
        self.initialized()?;
        let record = self.change(id, Command::DeleteCollection { name: request.name }, deadline).await?;
        // What is recorded is done, so the answer must come well before the caller gives up.
        let now = Instant::now();
        let end = now + (deadline.saturating_duration_since(now) / 2).min(DROP_WAIT);
        if let Err(pending) = self.delivered(&record, end).await {
            tracing::warn!(collection = %record.id, ?pending, "a deletion is answered before all shards were told");
        }
        Ok(v1::DeleteCollectionResponse {})
    }

    /// All collections, with counts as far as their shards answer.
    pub(super) async fn list(&self, deadline: Instant) -> Result<v1::ListCollectionsResponse, Error> {
        self.initialized()?;
        let end = deadline.min(Instant::now() + COUNT_WAIT);
        // A listing is worth something without a leader too: then it shows what this node knows.
        if let Err(error) = self.context.control.read_barrier(end.saturating_duration_since(Instant::now())).await {
            tracing::debug!(%error, "collections are listed as this node knows them");
        }
        let records: Vec<CollectionRecord> =
            self.context.control.read(|control| control.collections().cloned().collect());
        let mut shards: Vec<ShardId> = records.iter().flat_map(|record| record.shards.clone()).collect();
        shards.sort_unstable();
        shards.dedup();
        let end = deadline.min(Instant::now() + COUNT_WAIT);
        let answers = join_all(shards.into_iter().map(|shard| async move {
            (shard, self.ask::<StatsAnswer>(shard, &What::Stats(StatsCall {}), end).await)
        }))
        .await;
        let mut stats = BTreeMap::new();
        for (shard, answer) in answers {
            match answer {
                Ok(answer) => stats.extend(answer.collections.into_iter().map(|part| ((shard, part.collection), part))),
                Err(error) => tracing::warn!(%shard, %error, "a listing goes without the counts of a shard"),
            }
        }
        Ok(v1::ListCollectionsResponse { collections: records.iter().map(|record| describe(record, &stats)).collect() })
    }

    /// The collection of that name. One that this node has not heard of may just have been made elsewhere, so control is
    /// asked before it is refused.
    pub(super) async fn collection(&self, name: &str, deadline: Instant) -> Result<CollectionRecord, Error> {
        self.initialized()?;
        let control = &self.context.control;
        if let Some(record) = control.read(|control| control.collection(name).cloned()) {
            return Ok(record);
        }
        let since = control.read_barrier(deadline.saturating_duration_since(Instant::now())).await?;
        control.read_since(since, |control| control.collection(name).cloned())?.ok_or_else(|| {
            Error::new(
                ErrorReason::CollectionNotFound,
                format!("there is no collection {name:?}: see `quorate collection list`, or make it"),
            )
            .with("collection", name)
        })
    }

    /// Runs `call` on the collection of that name, and once more if it was deleted and perhaps made anew since this node
    /// looked. `call` answers `STALE_ROUTE` for that, and only if it has done nothing.
    pub(super) async fn on_collection<T, F: Future<Output = Result<T, Error>>>(
        &self,
        name: &str,
        deadline: Instant,
        call: impl Fn(CollectionRecord) -> F,
    ) -> Result<T, Error> {
        match call(self.collection(name, deadline).await?).await {
            Err(error) if error.reason == ErrorReason::StaleRoute => call(self.collection(name, deadline).await?).await,
            answer => answer,
        }
    }

    async fn change(&self, id: RequestId, command: Command, deadline: Instant) -> Result<CollectionRecord, Error> {
        let operation = Operation { request: Some(id), command };
        match self.context.control.propose_anywhere(operation, deadline).await?? {
            Reply::Collection(record) => Ok(record),
            other => Err(Error::internal(format!("control answered {other:?} to a change of a collection"))),
        }
    }

    /// Waits until no shard is left to be told of the making or deleting of the collection. Fails with those that are.
    async fn delivered(&self, record: &CollectionRecord, deadline: Instant) -> Result<(), Vec<ShardId>> {
        let mut changes = self.context.control.changes();
        loop {
            let _ = changes.borrow_and_update();
            let pending = self.pending(record);
            if pending.as_ref().is_some_and(Vec::is_empty) {
                return Ok(());
            }
            if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                return Err(pending.unwrap_or_else(|| record.shards.clone()));
            }
        }
    }

    /// The shards that have not confirmed it yet; `None` while this node itself does not.
    fn pending(&self, record: &CollectionRecord) -> Option<Vec<ShardId>> {
        self.context.control.read(|control| {
            if control.last_position() < quorate_state::Position(record.generation) {
                return None;
            }
            let found = control.collection_by_id(record.id);
            // Deleted meanwhile by someone else: it was made all the same. A deleted one goes when all have confirmed.
            let found = found.filter(|found| found.generation == record.generation);
            Some(found.map(|found| found.pending.clone()).unwrap_or_default())
        })
    }

    fn initialized(&self) -> Result<(), Error> {
        self.context.control.group().map(drop).ok_or_else(|| self.context.control.absence())
    }
}

fn not_delivered(record: &CollectionRecord, pending: &[ShardId]) -> Error {
    let shards: Vec<String> = pending.iter().map(ToString::to_string).collect();
    Error::new(
        ErrorReason::OutcomeUnknown,
        format!(
            "collection {:?} is recorded and will be made, but shard {} has not confirmed it yet; retry with the same \
             request id to wait on, or look at `quorate cluster status`",
            record.name,
            shards.join(", ")
        ),
    )
    .with("shard", shards.join(","))
}

fn describe(record: &CollectionRecord, stats: &BTreeMap<(ShardId, u32), CollectionStats>) -> v1::Collection {
    let CollectionId(id) = record.id;
    let parts = || record.shards.iter().filter_map(|shard| stats.get(&(*shard, id)));
    v1::Collection {
        name: record.name.clone(),
        dimension: record.dimension,
        metric: validate::metric_name(record.metric).into(),
        shards: record.shards.iter().map(|shard| shard.0).collect(),
        generation: record.generation,
        points: parts().map(|part| part.points).sum(),
        sealed_points: parts().map(|part| part.sealed_points).sum(),
        deleting: record.state == CollectionState::Deleting,
        sealed: parts().count() == record.shards.len() && parts().all(|part| !part.building),
    }
}
