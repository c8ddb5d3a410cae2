//! Collections, points and searches.

use prost::Message;
use quorate_api::limits;
use quorate_api::v1::{self, Consistency, Metric, PointInput, ShardPosition};

use crate::call::{call, timed};
use crate::client::{Client, memory};
use crate::error::Error;
use crate::nodes::Route;
use crate::verbs::tasks::empty;

/// A collection to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCollection {
    name: String,
    dimension: u32,
    metric: Metric,
    shards: u32,
}

impl NewCollection {
    /// A collection of vectors with `dimension` components (1 to [`limits::DIMENSION`]), compared by cosine, on one shard.
    pub fn new(name: impl Into<String>, dimension: u32) -> Self {
        Self { name: name.into(), dimension, metric: Metric::Cosine, shards: 0 }
    }

    /// How vectors are compared.
    #[must_use]
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
        self
    }

    /// Over how many shards the points are spread.
    #[must_use]
    pub fn shards(mut self, shards: u32) -> Self {
        self.shards = shards;
        self
    }
}

/// A search for the nearest points.
#[derive(Clone, Debug, PartialEq)]
pub struct Search(v1::SearchRequest);

impl Search {
    /// The `k` points (1 to [`limits::SEARCH_K`]) nearest to `vector`, linearizable.
    pub fn new(collection: impl Into<String>, vector: Vec<f32>, k: u32) -> Self {
        Self(v1::SearchRequest { collection: collection.into(), vector, k, ..v1::SearchRequest::default() })
    }

    /// What the search must have seen.
    #[must_use]
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.0.consistency = consistency.into();
        self
    }

    /// Sees at least these positions, which the answers to writes carry; sets the consistency to `session`.
    #[must_use]
    pub fn session(mut self, positions: Vec<ShardPosition>) -> Self {
        self.0.session_positions = positions;
        self.consistency(Consistency::Session)
    }

    /// Returns the payloads of the hits too.
    #[must_use]
    pub fn with_payload(mut self) -> Self {
        self.0.with_payload = true;
        self
    }

    /// Returns the vectors of the hits too.
    #[must_use]
    pub fn with_vector(mut self) -> Self {
        self.0.with_vector = true;
        self
    }

    /// The breadth of the graph search: more finds more and takes longer.
    #[must_use]
    pub fn ef(mut self, ef: u32) -> Self {
        self.0.ef = ef;
        self
    }

    /// Compares with every point instead of walking the graph.
    #[must_use]
    pub fn exact(mut self) -> Self {
        self.0.exact = true;
        self
    }
}

impl Client {
    /// Creates a collection.
    ///
    /// # Errors
    /// `COLLECTION_EXISTS`, `INVALID_ARGUMENT`.
    pub async fn create_collection(&self, collection: NewCollection) -> Result<v1::Collection, Error> {
        let request = v1::CreateCollectionRequest {
            request_id: self.request_id(),
            name: collection.name,
            dimension: collection.dimension,
            metric: collection.metric.into(),
            shards: collection.shards,
        };
        let plan = self.write(&request.request_id);
        let response = call(&self.shared.nodes, plan, |channel, limit| {
            let request = request.clone();
            async move { memory(channel).create_collection(timed(request, limit)).await }
        });
        response.await?.collection.ok_or_else(|| empty("CreateCollection"))
    }

    /// Lists the collections.
    ///
    /// # Errors
    /// Only those of every call.
    pub async fn list_collections(&self) -> Result<Vec<v1::Collection>, Error> {
        let response = call(&self.shared.nodes, self.read(Route::Leader), |channel, limit| async move {
            memory(channel).list_collections(timed(v1::ListCollectionsRequest {}, limit)).await
        });
        Ok(response.await?.collections)
    }

    /// Deletes a collection and its points.
    ///
    /// # Errors
    /// `COLLECTION_NOT_FOUND`.
    pub async fn delete_collection(&self, name: &str) -> Result<(), Error> {
        let request = v1::DeleteCollectionRequest { request_id: self.request_id(), name: name.to_owned() };
        let plan = self.write(&request.request_id);
        call(&self.shared.nodes, plan, |channel, limit| {
            let request = request.clone();
            async move { memory(channel).delete_collection(timed(request, limit)).await }
        })
        .await?;
        Ok(())
    }

    /// Writes up to [`limits::BATCH_POINTS`] points. Each is atomic by itself; the answer has one outcome for each, in
    /// order, so look at all of them.
    ///
    /// # Errors
    /// `COLLECTION_NOT_FOUND`, `TOO_LARGE`; what concerns one point is in its outcome.
    pub async fn upsert(&self, collection: &str, points: Vec<PointInput>) -> Result<v1::UpsertResponse, Error> {
        limits::check_size("points", points.len(), limits::BATCH_POINTS)?;
        let request = v1::UpsertRequest { request_id: self.request_id(), collection: collection.to_owned(), points };
        limits::check_size("message", request.encoded_len(), limits::MESSAGE_BYTES)?;
        let plan = self.spread_write(&request.request_id);
        call(&self.shared.nodes, plan, |channel, limit| {
            let request = request.clone();
            async move { memory(channel).upsert(timed(request, limit)).await }
        })
        .await
    }

    /// Reads the points that exist among `ids`.
    ///
    /// # Errors
    /// `COLLECTION_NOT_FOUND`, `TOO_LARGE`.
    pub async fn get_points(&self, request: &v1::GetPointsRequest) -> Result<Vec<v1::Point>, Error> {
        limits::check_size("ids", request.ids.len(), limits::BATCH_POINTS)?;
        let response = call(&self.shared.nodes, self.read(Route::Spread), |channel, limit| {
            let request = request.clone();
            async move { memory(channel).get_points(timed(request, limit)).await }
        });
        Ok(response.await?.points)
    }

    /// Deletes points. Those that do not exist are no error; the answer says how many did.
    ///
    /// # Errors
    /// `COLLECTION_NOT_FOUND`, `TOO_LARGE`.
    pub async fn delete_points(&self, collection: &str, ids: Vec<String>) -> Result<v1::DeletePointsResponse, Error> {
        limits::check_size("ids", ids.len(), limits::BATCH_POINTS)?;
        let request = v1::DeletePointsRequest { request_id: self.request_id(), collection: collection.to_owned(), ids };
        let plan = self.spread_write(&request.request_id);
        call(&self.shared.nodes, plan, |channel, limit| {
            let request = request.clone();
            async move { memory(channel).delete_points(timed(request, limit)).await }
        })
        .await
    }

    /// Searches. `degraded_shards` of the answer names the shards that are missing from it.
    ///
    /// # Errors
    /// `COLLECTION_NOT_FOUND`, `WRONG_DIMENSION`, `NOT_FINITE`.
    pub async fn search(&self, search: &Search) -> Result<v1::SearchResponse, Error> {
        call(&self.shared.nodes, self.read(Route::Spread), |channel, limit| {
            let request = search.0.clone();
            async move { memory(channel).search(timed(request, limit)).await }
        })
        .await
    }

    /// Points have leaders of their own, by shard: the leader of control is no better than any node.
    fn spread_write(&self, request_id: &str) -> crate::call::Plan {
        crate::call::Plan { route: Route::Spread, ..self.write(request_id) }
    }
}
