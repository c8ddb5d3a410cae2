//! Points that must outlive every change of the cluster, and what every stage of a cluster must hold.

use std::time::Duration;

use quorate_api::v1::memory_service_client::MemoryServiceClient;
use quorate_api::v1::{
    Consistency, CreateCollectionRequest, GetPointsRequest, Metric, PointInput, SearchRequest, SearchResponse,
    UpsertRequest,
};
use quorate_api::{ApiError, limits};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::harness::{PATIENCE, TestNode};

/// The number of shards that the tests' clusters need.
pub(crate) const SHARDS: u32 = 8;
/// A collection on one shard and one on all, by name and number of shards.
const COLLECTIONS: [(&str, u32); 2] = [("narrow", 1), ("wide", SHARDS)];
const POINTS: u16 = 100;

/// Point `n` lies at (n, 1), so the order of all of them around a place is known.
fn vector(n: u16) -> Vec<f32> {
    vec![f32::from(n), 1.0]
}

fn ids() -> Vec<String> {
    (0..POINTS).map(|n| n.to_string()).collect()
}

async fn memory(node: &TestNode) -> MemoryServiceClient<Channel> {
    MemoryServiceClient::new(node.channel().await).max_decoding_message_size(limits::MESSAGE_BYTES)
}

/// Makes both collections and writes all points into each.
pub(crate) async fn write_points(node: &TestNode) {
    let mut memory = memory(node).await;
    for (name, shards) in COLLECTIONS {
        let request = CreateCollectionRequest {
            request_id: Uuid::now_v7().to_string(),
            name: name.into(),
            dimension: 2,
            metric: Metric::L2.into(),
            shards,
        };
        let made = memory.create_collection(request).await.expect("created").into_inner().collection;
        assert_eq!(made.expect("the collection").shards.len(), shards as usize);
        let points = (0..POINTS).map(|n| PointInput { id: n.to_string(), vector: vector(n), ..PointInput::default() });
        let request =
            UpsertRequest { request_id: Uuid::now_v7().to_string(), collection: name.into(), points: points.collect() };
        let written = memory.upsert(request).await.expect("written").into_inner();
        assert!(written.outcomes.iter().all(|outcome| outcome.error.is_none()), "{written:?}");
    }
}

/// Waits until the cluster of `nodes` is healthy, and fails unless each shard and control have `voters` voters and `asked`
/// reads and finds every point.
pub(crate) async fn check_stage(asked: &TestNode, nodes: usize, voters: usize) {
    let status = asked.wait_healthy(nodes).await;
    assert_eq!(status.nodes.iter().filter(|node| node.control_voter).count(), voters, "control: {status:#?}");
    assert_eq!(status.shards.len(), SHARDS as usize);
    for shard in &status.shards {
        let voting = shard.replicas.iter().filter(|replica| replica.voter).count();
        assert_eq!(voting, voters, "an even number of voters survives no more than one less: {shard:#?}");
    }
    let memory = memory(asked).await;
    for (name, _) in COLLECTIONS {
        read_all(memory.clone(), name).await;
        search_all(memory.clone(), name).await;
    }
}

async fn read_all(memory: MemoryServiceClient<Channel>, collection: &str) {
    let request = GetPointsRequest {
        collection: collection.into(),
        ids: ids(),
        with_vector: true,
        consistency: Consistency::Linearizable.into(),
        ..GetPointsRequest::default()
    };
    let found = answered(|| {
        let (mut memory, request) = (memory.clone(), request.clone());
        async move { Ok(Some(memory.get_points(request).await?.into_inner().points)) }
    })
    .await;
    let found: Vec<(String, Vec<f32>)> = found.into_iter().map(|point| (point.id, point.vector)).collect();
    let written: Vec<(String, Vec<f32>)> = (0..POINTS).map(|n| (n.to_string(), vector(n))).collect();
    assert_eq!(found, written, "{collection}");
}

async fn search_all(memory: MemoryServiceClient<Channel>, collection: &str) {
    let request = SearchRequest {
        collection: collection.into(),
        vector: vector(0),
        k: POINTS.into(),
        consistency: Consistency::Linearizable.into(),
        ..SearchRequest::default()
    };
    let found: SearchResponse = answered(|| {
        let (mut memory, request) = (memory.clone(), request.clone());
        async move {
            let response = memory.search(request).await?.into_inner();
            Ok(response.degraded_shards.is_empty().then_some(response))
        }
    })
    .await;
    let found: Vec<String> = found.hits.into_iter().map(|hit| hit.id).collect();
    assert_eq!(found, ids(), "{collection}");
}

/// The first whole answer. Leaders are spread again after a change, and a shard between two leaders may say for a moment
/// that it cannot answer; what it must never do is to answer wrongly.
async fn answered<T, F>(ask: impl Fn() -> F) -> T
where
    F: Future<Output = Result<Option<T>, ApiError>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(Some(answer)) => return answer,
            Ok(None) => {}
            Err(error) if error.is_retryable() => {}
            Err(error) => panic!("refused: {error}"),
        }
        assert!(Instant::now() < deadline, "waited in vain for a whole answer");
        sleep(Duration::from_millis(50)).await;
    }
}
