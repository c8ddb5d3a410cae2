//! A replica whose deletion was cut off by a crash.

use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use quorate_raft::{GroupId, Groups, GroupsConfig, Identity, Seams};
use quorate_state::control::{Command, Control, Reply};
use quorate_state::{NodeId, Operation, ShardId};
use tokio::time::{Instant, interval, timeout};

use crate::harness::{PATIENCE, TestNode, cluster_with, stop};

const SHARD: GroupId = GroupId(1);
/// So long a node is watched that must not start what it could start at once.
const WATCHED: Duration = Duration::from_secs(3);

/// Deletes the shard of a stopped node, as it does itself once the map names another replica.
async fn delete_shard(dir: &Path) {
    let identity = Identity::open(dir).expect("its identity");
    let seams = Seams::durable(dir).expect("its databases");
    let groups = Groups::open(GroupsConfig::new(identity, dir.to_owned(), String::new()), seams).await.expect("opened");
    groups.destroy_group(SHARD).await.expect("deleted");
    groups.shutdown().await;
}

/// Has the map name another replica in the place of the one that `node` holds. Returns both.
async fn replace(asked: &TestNode, node: u64) -> (u64, u64) {
    let control = &asked.handle.context().control;
    let replica = control.read(|state| {
        let shard = state.shards().find(|shard| shard.shard == ShardId(1)).expect("one shard");
        shard.replica_on(NodeId(node)).expect("it holds the shard").replica
    });
    let command = Command::ReplaceReplica { shard: ShardId(1), node: NodeId(node), replica };
    let deadline = Instant::now() + PATIENCE;
    match control.propose_anywhere(Operation::new(command), deadline).await {
        Ok(Ok(Reply::Replica { replica: successor })) => (replica, successor),
        other => panic!("{other:?}"),
    }
}

/// The replicas of the shard that the map names on `node`, as far as `asked` has read it.
fn named(asked: &TestNode, node: u64) -> Vec<u64> {
    let on_node = |state: &Control| {
        let replicas = state.shard(ShardId(1)).map(|shard| shard.replicas.clone()).unwrap_or_default();
        replicas.iter().filter(|held| held.node == NodeId(node)).map(|held| held.replica).collect()
    };
    asked.handle.context().control.read(on_node)
}

/// The simulation found it (seed 536): the deletion is done, the node starts again, and what it knows of the map is
/// from before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_behind_does_not_start_a_deleted_replica_again() {
    let mut nodes = cluster_with(3, 1).await;
    let node = nodes.remove(0);
    let number = node.handle.node().0;
    let node = node.halt().await;
    delete_shard(node.dir.path()).await;
    let (replica, successor) = replace(&nodes[0], number).await;
    assert!(successor > replica);
    let others: Vec<_> = join_all(nodes.into_iter().map(TestNode::halt)).await;

    let node = node.start(|_| {}).await;
    let groups = node.handle.context().groups.clone();
    let started = timeout(WATCHED, async {
        let mut tick = interval(Duration::from_millis(20));
        while groups.group(SHARD).is_none() {
            tick.tick().await;
        }
    });
    assert!(started.await.is_err(), "nobody told it that its map is still right");
    assert_eq!(named(&node, number), [replica], "by its map it would have had to start the deleted one");

    let mut nodes = join_all(others.into_iter().map(|other| other.start(|_| {}))).await;
    let held = |_: &_| groups.group(SHARD).map(|group| group.replica()) == Some(successor);
    node.wait_for("the successor is there", held).await;
    let forgotten = |_: &_| named(&node, number) == [successor];
    node.wait_for("the map names only the successor", forgotten).await;
    node.wait_healthy(3).await;
    nodes.push(node);
    stop(nodes).await;
}
