//! A replica whose state is not that of the others: it finds out by itself, neither votes nor answers any more, and comes
//! back as another one. The rows of a stopped node are changed as a defect would have: whole, and wrong.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use quorate_api::v1::memory_service_client::MemoryServiceClient;
use quorate_api::v1::{
    CreateCollectionRequest, GetPointsRequest, GroupStatus, Metric, PointInput, StatusResponse, UpsertRequest,
};
use quorate_raft::rocks::RocksStates;
use quorate_raft::{Group, GroupId, RowBatch, StateStores as _};
use quorate_state::shard::POINTS;
use uuid::Uuid;

use crate::harness::{PATIENCE, TestNode, cluster_with, stop};

const SHARD: GroupId = GroupId(1);

fn payload(n: u16) -> Vec<u8> {
    format!("{{\"n\":{n}}}").into_bytes()
}

/// Writes the points, and waits until every node has them: they are about to be stopped.
async fn write_points(nodes: &[TestNode]) {
    let mut memory = MemoryServiceClient::new(nodes[0].channel().await);
    let request_id = || Uuid::now_v7().to_string();
    let made = CreateCollectionRequest {
        request_id: request_id(),
        name: "c".into(),
        dimension: 2,
        metric: Metric::L2.into(),
        shards: 1,
    };
    memory.create_collection(made).await.expect("created");
    let point = |n: u16| PointInput {
        id: n.to_string(),
        vector: vec![f32::from(n), 1.0],
        payload: payload(n).into(),
        ..PointInput::default()
    };
    let points =
        UpsertRequest { request_id: request_id(), collection: "c".into(), points: (0..8).map(point).collect() };
    memory.upsert(points).await.expect("written");
    let groups: Vec<_> = nodes.iter().filter_map(|node| node.handle.context().groups.group(SHARD)).collect();
    let reached = groups.iter().map(Group::applied).max().expect("they hold the shard");
    for group in groups {
        group.wait_applied(reached, PATIENCE).await.expect("it applies what the others have");
    }
}

/// Every point is what it was, whichever node is asked.
async fn read_points(node: &TestNode) {
    let mut memory = MemoryServiceClient::new(node.channel().await);
    let ids: Vec<String> = (0..8u16).map(|n| n.to_string()).collect();
    let request = GetPointsRequest { collection: "c".into(), ids, ..GetPointsRequest::default() };
    let points = memory.get_points(request).await.expect("answered").into_inner().points;
    let found: Vec<Vec<u8>> = points.iter().map(|point| point.payload.to_vec()).collect();
    assert_eq!(found, (0..8).map(payload).collect::<Vec<_>>());
}

/// Lets two points of a stopped node change places: every row is as whole as before.
fn swap_rows(dir: &Path, first: usize) {
    let states = RocksStates::open(&dir.join("state")).expect("state databases");
    let store = states.open(SHARD).expect("a state database");
    let mut rows: Vec<(Bytes, Bytes)> = Vec::new();
    let mut take = |key: &[u8], value: &[u8]| {
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    };
    store.scan(POINTS, &[], &mut take).expect("read");
    let (one, other) = (&rows[first], &rows[first + 1]);
    let changes = vec![(POINTS, one.0.clone(), Some(other.1.clone())), (POINTS, other.0.clone(), Some(one.1.clone()))];
    let applied = store.applied().expect("read").expect("it has applied something");
    store.write(&RowBatch { changes }, &applied).expect("written");
    store.flush().expect("flushed");
}

fn shard(status: &StatusResponse) -> &GroupStatus {
    status.shards.first().expect("one shard")
}

fn replica_of(status: &StatusResponse, node: &TestNode) -> Option<u64> {
    let id = node.id();
    shard(status)
        .replicas
        .iter()
        .find(|replica| replica.node_id == id && replica.voter)
        .map(|replica| replica.replica_id)
}

fn is_equal(group: &GroupStatus) -> bool {
    let mut hashes = group.replicas.iter().map(|replica| (replica.hash_position, replica.state_hash));
    let first = hashes.next();
    first.is_some_and(|(position, _)| position > 0) && hashes.all(|hash| Some(hash) == first)
}

/// Waits until the replica of `node` is another one and all three are equal.
async fn wait_replaced(asked: &TestNode, node: &TestNode, old: u64) {
    let whole = |status: &StatusResponse| {
        let replaced = replica_of(status, node).is_some_and(|replica| replica != old);
        replaced && shard(status).replicas.len() == 3 && is_equal(shard(status)) && status.problems.is_empty()
    };
    asked.wait_for("the diverged replica is replaced and all are equal", whole).await;
    let (_, metrics) = node.http_get("/metrics").await;
    for line in
        ["quorate_replicas_quarantined_total 1", "quorate_replicas_healed_total 1", "quorate_heal_seconds_count 1"]
    {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }
    read_points(node).await;
    read_points(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_diverged_is_replaced() {
    let mut nodes = cluster_with(3, 1).await;
    write_points(&nodes).await;
    let diverged = nodes.remove(1);
    let old = replica_of(&nodes[0].status().await, &diverged).expect("it votes");
    let diverged = diverged.halt().await;
    swap_rows(diverged.dir.path(), 0);
    let diverged = diverged.start(|_| {}).await;
    wait_replaced(&nodes[0], &diverged, old).await;
    nodes.push(diverged);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_diverged_hands_over_and_is_replaced() {
    let mut nodes = cluster_with(3, 1).await;
    write_points(&nodes).await;
    let diverged = nodes.remove(1);
    let old = replica_of(&nodes[0].status().await, &diverged).expect("it votes");
    // Long enough between two comparisons to be given the lead before the second one; the first one is at the start.
    let slow = Duration::from_secs(4);
    let diverged = diverged.halt().await;
    swap_rows(diverged.dir.path(), 0);
    let diverged = diverged.start(|config| config.compare_every = slow).await;
    let id = diverged.id();
    let mut led = false;
    while !led && replica_of(&nodes[0].status().await, &diverged) == Some(old) {
        let leading = nodes.iter().find_map(|node| {
            let group = node.handle.context().groups.group(SHARD)?;
            group.leadership().borrow().mine.then_some(group)
        });
        if let Some(group) = leading {
            // Refused until the restarted one has caught up; it is asked again.
            let _ = group.transfer_leader(old).await;
        }
        led = diverged.handle.context().groups.group(SHARD).is_some_and(|group| group.leadership().borrow().mine);
    }
    assert!(led, "it was quarantined before it could lead");
    wait_replaced(&nodes[0], &diverged, old).await;
    let status = nodes[0].wait_healthy(3).await;
    assert_ne!(shard(&status).leader_node_id, id, "the lead went to one that is right");
    nodes.push(diverged);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_has_a_majority_the_group_stops_and_says_so() {
    let nodes = cluster_with(3, 1).await;
    write_points(&nodes).await;
    let halted: Vec<_> = join_all(nodes.into_iter().map(TestNode::halt)).await;
    for (first, node) in [0, 2, 4].into_iter().zip(&halted) {
        swap_rows(node.dir.path(), first);
    }
    let restarted: Vec<_> = join_all(halted.into_iter().map(|node| node.start(|_| {}))).await;
    for node in &restarted {
        let id = node.id();
        let said = node.wait_for("the split is said", |status| {
            status.problems.iter().any(|problem| problem.contains(&id) && problem.contains("has stopped"))
        });
        let status = said.await;
        assert!(status.next_steps.iter().any(|step| step.contains("backup")), "{:?}", status.next_steps);
        let (_, metrics) = node.http_get("/metrics").await;
        assert!(metrics.lines().any(|line| line == "quorate_groups_halted 1"), "{metrics}");
        assert!(metrics.lines().any(|line| line == "quorate_replicas_quarantined_total 0"), "nobody is replaced");
        assert!(node.handle.context().groups.group(SHARD).is_none());
    }
    // Control has nothing to do with it.
    restarted[0].enqueue(b"still taken").await.expect("enqueued");
    stop(restarted).await;
}
