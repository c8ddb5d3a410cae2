//! The same on RocksDB, with restarts.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use quorate_raft::{Group, GroupConfig, Groups, GroupsConfig, Identity, Member, NodeId, Seams, Timers};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cluster::{CLUSTER, Counter, GROUP, LONG, number, stored_sum};

struct Running {
    groups: Groups,
    group: Group,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn open(dir: &std::path::Path, listener: TcpListener, replica: u64) -> Running {
    let mut identity = Identity::open(dir).unwrap();
    identity.adopt_cluster(CLUSTER).unwrap();
    let mut config = GroupsConfig::new(identity, dir.to_owned(), String::new());
    config.timers = Timers::default().slower(2);
    config.snapshot_log_bytes = 100_000;
    config.purge_tail = 10;
    let groups = Groups::open(config, Seams::durable(dir).unwrap()).await.unwrap();
    let machine = Counter::boxed(&Arc::new(AtomicUsize::new(0)));
    let group = groups.start_group_with(GROUP, replica, machine, GroupConfig::default()).await.unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn({
        let (groups, stop) = (groups.clone(), stop.clone());
        async move { groups.serve(listener, stop).await }
    });
    Running { groups, group, stop, server }
}

async fn leader(nodes: &[Running]) -> &Group {
    let found = async {
        loop {
            if let Some(node) = nodes.iter().find(|node| node.group.leadership().borrow().mine) {
                return &node.group;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, found).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_on_disk_restart_with_everything() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut addresses: Vec<String> = vec!["127.0.0.1:0".to_owned(); 3];
    let mut sum = 0;
    for life in 0..3 {
        let mut nodes = Vec::new();
        for (place, dir) in dirs.iter().enumerate() {
            let listener = TcpListener::bind(&addresses[place]).await.unwrap();
            addresses[place] = listener.local_addr().unwrap().to_string();
            nodes.push(open(dir.path(), listener, place as u64 + 1).await);
        }
        if life == 0 {
            let member =
                |place: usize| Member { node: nodes[place].groups.identity().node, address: addresses[place].clone() };
            let members = (0..3).map(|place| (place as u64 + 1, member(place))).collect();
            nodes[0].group.initialize(members).await.unwrap();
        }
        assert_ne!(nodes[0].groups.identity().node, NodeId(0));
        assert_eq!(nodes[0].groups.identity().incarnation, life + 1);
        let mut payload = number(1).to_vec();
        payload.resize(1_000, 0);
        for _ in 0..300 {
            sum += 1;
            let committed = leader(&nodes).await.propose(payload.clone().into()).await.unwrap();
            assert_eq!(committed.reply.downcast::<u64>(), Some(sum));
        }
        for node in &nodes {
            let position = node.group.read_position(LONG).await.unwrap();
            node.group.wait_applied(position, LONG).await.unwrap();
            assert_eq!(stored_sum(&*node.group.store()), sum);
        }
        for node in nodes {
            node.stop.cancel();
            node.groups.shutdown().await;
            node.server.await.unwrap().unwrap();
        }
    }
}
