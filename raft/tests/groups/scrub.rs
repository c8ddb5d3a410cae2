//! Disks that lose what nobody asks for, under groups that run.

use std::future::Future;
use std::time::Duration;

use prometheus::Registry;
use quorate_raft::{FloorFile as _, Group, MarkKind, Stop};

use crate::cluster::{Cluster, GROUP, LONG, Node, number};

const NO_PURGE: u64 = 1 << 30;

async fn damage_of(group: &Group) -> String {
    match tokio::time::timeout(LONG, group.stopped()).await.expect("the group stops") {
        Stop::Damaged(reason) => reason,
        other => panic!("{other:?}"),
    }
}

fn flip(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    *bytes.last_mut()? ^= 1;
    Some(bytes)
}

/// What a counter of the scrub says of a part.
fn counted(registry: &Registry, name: &str, part: &str) -> u64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == format!("quorate_scrub_{name}_total")).unwrap();
    let of_part = family.get_metric().iter().find(|metric| metric.get_label()[0].value() == part).unwrap();
    of_part.get_counter().get_value() as u64
}

/// Waits until it is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, looking).await.unwrap_or_else(|_| panic!("it never is so: {what}"));
}

/// Proposes until the log is purged.
fn purge(node: &Node) -> impl Future<Output = ()> + '_ {
    let mut payload = number(1).to_vec();
    payload.resize(500, 0);
    async move {
        let purged = node.group.status().purged;
        while node.group.status().purged == purged {
            node.group.propose(payload.clone().into()).await.expect("committed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_rots_under_a_replica_stops_it_though_nobody_reads_it() {
    for gone in [true, false] {
        let cluster = Cluster::start(3, 3, NO_PURGE).await;
        let mut sum = 0;
        for value in 1..=20 {
            sum = cluster.add(&[1, 2, 3], value).await;
        }
        cluster.converge(&[1, 2, 3], sum).await;
        let leader = cluster.leader(&[1, 2, 3]).await.number;
        let follower = 1 + leader % 3;
        let early = cluster.machines[&follower].log.positions(GROUP)[4];
        assert!(cluster.machines[&follower].log.damage(GROUP, early, |bytes| flip(bytes).filter(|_| !gone)));
        let reason = damage_of(&cluster.nodes[&follower].group).await;
        assert!(reason.contains(&format!("position {early}")), "{reason}");
        assert_eq!(cluster.nodes[&follower].groups.stored_groups()[0].quarantined, Some(reason));
        assert_eq!(counted(&cluster.machines[&follower].registry, "damage", "log"), 1);
        let rest: Vec<usize> = (1..=3).filter(|number| *number != follower).collect();
        let sum = cluster.add(&rest, 1).await;
        cluster.converge(&rest, sum).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vote_that_rots_under_a_replica_stops_it() {
    let cluster = Cluster::start(1, 1, NO_PURGE).await;
    cluster.leader(&[1]).await;
    assert!(cluster.machines[&1].log.damage_mark(GROUP, MarkKind::Vote, |_| None));
    let reason = damage_of(&cluster.nodes[&1].group).await;
    assert!(reason.contains("Vote mark"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_rots_under_a_replica_stops_it_though_nobody_reads_it() {
    let cluster = Cluster::start(1, 1, 20_000).await;
    tokio::time::timeout(LONG, purge(cluster.leader(&[1]).await)).await.expect("the log is purged");
    assert!(cluster.machines[&1].states.damage(GROUP, |_| 0));
    let reason = damage_of(&cluster.nodes[&1].group).await;
    assert!(reason.contains("state"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floor_that_rots_under_a_node_is_written_again_and_nobody_stops() {
    let mut cluster = Cluster::start(1, 1, NO_PURGE).await;
    cluster.add(&[1], 1).await;
    let promised = cluster.machines[&1].floor.promised(GROUP).unwrap();
    for (round, slots) in [vec![0], vec![1], vec![0, 1]].into_iter().enumerate() {
        let machine = &cluster.machines[&1];
        let whole = machine.floor.read().unwrap();
        for slot in &slots {
            assert!(machine.floor.damage(*slot, |bytes| bytes[30] ^= 1));
        }
        let rotten = machine.floor.read().unwrap();
        until("both slots are other ones", || {
            let now = machine.floor.read().unwrap();
            (0..2).all(|slot| now[slot] != whole[slot] && now[slot] != rotten[slot])
        })
        .await;
        assert_eq!(machine.floor.promised(GROUP), Some(promised));
        until("it is counted", || counted(&machine.registry, "damage", "floor") > round as u64).await;
    }
    cluster.add(&[1], 1).await;
    cluster.kill(1).await;
    cluster.boot(1).await;
    cluster.leader(&[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_work_are_read_back_all_the_time_and_nothing_is_found() {
    let mut cluster = Cluster::start(3, 3, 20_000).await;
    let passes = |cluster: &Cluster, number| {
        let registry = &cluster.machines[&number].registry;
        counted(registry, "passes", "log").min(counted(registry, "passes", "state"))
    };
    // A node that was away gets a snapshot.
    cluster.kill(3).await;
    let leader = cluster.leader(&[1, 2]).await;
    let before = passes(&cluster, leader.number);
    let working = async {
        while passes(&cluster, leader.number) < before + 5 {
            purge(leader).await;
        }
    };
    tokio::time::timeout(LONG, working).await.expect("passes end while the replicas work");
    cluster.boot(3).await;
    let leading = || [1, 2].iter().map(|number| cluster.nodes[number].group.applied()).max().unwrap();
    until("it has caught up", || cluster.nodes[&3].group.applied() >= leading()).await;
    for number in 1..=3 {
        let registry = &cluster.machines[&number].registry;
        let read = |part| counted(registry, "bytes", part) > 0;
        // The log of a node that has just got a snapshot may have nothing in it.
        let is_read = || read("state") && (number == 3 || read("log"));
        until("it is read back", || is_read() && passes(&cluster, number) > 1).await;
        for part in ["log", "floor", "state"] {
            assert_eq!(counted(registry, "damage", part), 0, "{part} of {number}");
        }
    }
}

#[cfg(feature = "rocksdb")]
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_rot_under_a_replica_stop_it() {
    for (part, said) in [("log", "the log"), ("state", "state database")] {
        let dir = tempfile::tempdir().unwrap();
        let (node, _) = crate::durable::alone(dir.path()).await;
        let tables = || {
            let mut files = crate::durable::files(&dir.path().join(part));
            files.retain(|path| path.extension().is_some_and(|end| end == "sst"));
            files
        };
        // Once nothing is proposed the logs are spilled for the last time, and the databases come to rest.
        loop {
            let (before, passes) = (tables(), counted(&node.registry, "passes", "log"));
            until("more passes end", || counted(&node.registry, "passes", "log") > passes + 3).await;
            if !before.is_empty() && before == tables() {
                break;
            }
        }
        for path in tables() {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        let reason = damage_of(&node.group).await;
        assert!(reason.contains(said), "{reason}");
        assert_eq!(counted(&node.registry, "damage", part), 1);
        node.shut_down().await;
    }
}
