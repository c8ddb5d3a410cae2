//! Memory through any node: one that leads the shard, one that follows, and one that holds nothing of it.

use std::time::Duration;

use quorate_api::v1::memory_service_client::MemoryServiceClient;
use quorate_api::v1::{self, Consistency, ErrorReason};
use quorate_api::{ApiError, limits};
use quorate_raft::GroupId;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::harness::{TestNode, cluster, stop};

const COLLECTION: &str = "notes";

struct Memory(MemoryServiceClient<Channel>);

impl Memory {
    async fn of(node: &TestNode) -> Memory {
        let address = format!("http://{}", node.client_address());
        let channel = Channel::from_shared(address).expect("an address").connect().await.expect("the node listens");
        Memory(MemoryServiceClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES))
    }

    async fn create(&self, shards: u32) -> Result<v1::Collection, ApiError> {
        let request = v1::CreateCollectionRequest {
            name: COLLECTION.into(),
            dimension: 2,
            metric: v1::Metric::L2.into(),
            shards,
            ..Default::default()
        };
        let made = self.0.clone().create_collection(request).await?;
        Ok(made.into_inner().collection.expect("the collection"))
    }

    async fn upsert(&self, points: Vec<v1::PointInput>) -> Result<v1::UpsertResponse, ApiError> {
        let request_id = Uuid::now_v7().to_string();
        let request = v1::UpsertRequest { request_id, collection: COLLECTION.into(), points };
        Ok(self.0.clone().upsert(request).await?.into_inner())
    }

    async fn search(&self, x: f32, k: u32) -> Result<v1::SearchResponse, ApiError> {
        self.search_with(x, k, Consistency::Linearizable, Vec::new()).await
    }

    async fn search_with(
        &self,
        x: f32,
        k: u32,
        consistency: Consistency,
        session_positions: Vec<v1::ShardPosition>,
    ) -> Result<v1::SearchResponse, ApiError> {
        let request = v1::SearchRequest {
            collection: COLLECTION.into(),
            vector: vec![x, 0.0],
            k,
            consistency: consistency.into(),
            session_positions,
            ..Default::default()
        };
        Ok(self.0.clone().search(request).await?.into_inner())
    }

    async fn get(&self, ids: &[&str]) -> Result<Vec<v1::Point>, ApiError> {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let request = v1::GetPointsRequest { collection: COLLECTION.into(), ids, ..Default::default() };
        Ok(self.0.clone().get_points(request).await?.into_inner().points)
    }

    async fn delete(&self, ids: &[&str]) -> Result<u64, ApiError> {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let request = v1::DeletePointsRequest { collection: COLLECTION.into(), ids, ..Default::default() };
        Ok(self.0.clone().delete_points(request).await?.into_inner().deleted)
    }

    async fn list(&self) -> Vec<v1::Collection> {
        let request = v1::ListCollectionsRequest {};
        self.0.clone().list_collections(request).await.expect("a list").into_inner().collections
    }
}

/// Point `n` lies at (n, 0), so its neighbours are known.
fn point(n: u16) -> v1::PointInput {
    v1::PointInput { id: n.to_string(), vector: vec![f32::from(n), 0.0], ..Default::default() }
}

fn ids(response: &v1::SearchResponse) -> Vec<String> {
    response.hits.iter().map(|hit| hit.id.clone()).collect()
}

/// The fourth node of four holds no replica, so everything that it is asked travels.
async fn every_node_writes_and_finds(shards: u32) {
    let nodes = cluster(4).await;
    let mut memories = Vec::new();
    for node in &nodes {
        memories.push(Memory::of(node).await);
    }
    let made = memories[3].create(shards).await.expect("created");
    assert_eq!((made.shards.len(), made.dimension), (shards as usize, 2));
    for (ordinal, memory) in memories.iter().enumerate() {
        let first = ordinal as u16 * 100;
        let written = memory.upsert((first..first + 100).map(point).collect()).await.expect("written");
        assert!(written.outcomes.iter().all(|outcome| outcome.error.is_none() && outcome.version > 0));
        assert_eq!(written.positions.len(), shards as usize);
        for reader in &memories {
            let x = f32::from(first + 40) + 0.1;
            let expected: Vec<String> = [40, 41, 39].map(|n| (first + n).to_string()).to_vec();
            assert_eq!(ids(&reader.search(x, 3).await.expect("found")), expected);
            let session = written.positions.clone();
            let seen = reader.search_with(x, 3, Consistency::Session, session).await.expect("found");
            assert_eq!(ids(&seen), expected);
        }
    }
    assert_eq!(memories[3].delete(&["140", "999"]).await.expect("deleted"), 1);
    for memory in &memories {
        assert_eq!(ids(&memory.search(140.1, 2).await.expect("found")), ["141", "139"]);
        let found = memory.get(&["399", "140", "0"]).await.expect("read");
        assert_eq!(found.iter().map(|point| point.id.as_str()).collect::<Vec<_>>(), ["399", "0"]);
        assert_eq!(memory.list().await[0].points, 399);
    }
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_writes_and_finds_over_one_shard() {
    every_node_writes_and_finds(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_writes_and_finds_over_two_shards() {
    every_node_writes_and_finds(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_does_not_answer_is_named_and_the_others_go_on() {
    let nodes = cluster(1).await;
    let memory = Memory::of(&nodes[0]).await;
    let made = memory.create(2).await.expect("created");
    memory.upsert((0..100).map(point).collect()).await.expect("written");
    let gone = made.shards[1];
    nodes[0].handle.context().groups.stop_group(GroupId(gone)).await;

    let response = memory.search(50.0, 100).await.expect("half an answer");
    assert_eq!(response.degraded_shards, [gone]);
    assert!((20..80).contains(&response.hits.len()), "{} hits of half the points", response.hits.len());

    let mut client = memory.0.clone();
    let mut request = tonic::Request::new(v1::UpsertRequest {
        collection: COLLECTION.into(),
        points: (0..100).map(point).collect(),
        ..Default::default()
    });
    request.set_timeout(Duration::from_secs(2));
    let outcomes = client.upsert(request).await.expect("half an answer").into_inner().outcomes;
    let failed = outcomes.iter().filter(|outcome| outcome.error.is_some()).count();
    assert_eq!(failed, 100 - response.hits.len(), "the points of the other shard are written");
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_is_made_once_and_bad_ones_are_refused() {
    let nodes = cluster(1).await;
    let memory = Memory::of(&nodes[0]).await;
    memory.create(1).await.expect("created");
    assert_eq!(memory.create(1).await.expect_err("it exists").reason, ErrorReason::CollectionExists);
    assert_eq!(memory.create(3).await.expect_err("two shards").reason, ErrorReason::InvalidArgument);
    let delete = v1::DeleteCollectionRequest { name: COLLECTION.into(), ..Default::default() };
    memory.0.clone().delete_collection(delete).await.expect("deleted");
    assert_eq!(memory.search(1.0, 1).await.expect_err("gone").reason, ErrorReason::CollectionNotFound);
    let unready = TestNode::start().await;
    let lonely = Memory::of(&unready).await;
    assert_eq!(lonely.create(1).await.expect_err("no cluster").reason, ErrorReason::NotInitialized);
    assert_eq!(lonely.search(1.0, 1).await.expect_err("no cluster").reason, ErrorReason::NotInitialized);
    stop(vec![unready]).await;
    stop(nodes).await;
}

#[cfg(feature = "rocksdb")]
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_points_and_their_versions() {
    let mut nodes = cluster(1).await;
    let memory = Memory::of(&nodes[0]).await;
    memory.create(2).await.expect("created");
    let written = memory.upsert((0..100).map(point).collect()).await.expect("written");
    let node = nodes.remove(0).restart().await;
    node.wait_healthy(1).await;
    let memory = Memory::of(&node).await;
    let found = memory.get(&["7"]).await.expect("read");
    assert_eq!(found[0].version, written.outcomes[7].version);
    assert_eq!(ids(&memory.search(60.2, 2).await.expect("found")), ["60", "61"]);
    stop(vec![node]).await;
}
