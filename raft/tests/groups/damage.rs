//! Disks that lie, under groups that run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use quorate_raft::memory::FloorFault;
use quorate_raft::{Group, MembershipError, OpenError, ProposeError, Stop, StoredReplica};

use crate::cluster::{Cluster, Counter, GROUP, LONG, Node, number, replica, stored_sum};

const NO_PURGE: u64 = 1 << 30;

fn reason_of(error: &OpenError) -> &str {
    match error {
        OpenError::Damaged { group: GROUP, reason, .. } => reason,
        other => panic!("{other}"),
    }
}

/// Proposes until the log of the leader is purged. Returns the sum.
async fn purge(leader: &Node) -> u64 {
    let mut payload = number(1).to_vec();
    payload.resize(500, 0);
    let mut sum = 0;
    let purging = async {
        while leader.group.status().purged == 0 {
            let committed = leader.group.propose(payload.clone().into()).await.expect("committed");
            sum = committed.reply.downcast::<u64>().expect("a sum");
        }
    };
    tokio::time::timeout(LONG, purging).await.expect("the log is purged");
    sum
}

async fn stop_of(group: &Group) -> Stop {
    tokio::time::timeout(LONG, group.stopped()).await.expect("the group stops")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_a_damaged_log_never_starts_again_and_a_new_one_takes_its_place() {
    let mut cluster = Cluster::start(3, 3, NO_PURGE).await;
    let mut sum = 0;
    for value in 1..=20 {
        sum = cluster.add(&[1, 2, 3], value).await;
    }
    cluster.converge(&[1, 2, 3], sum).await;
    cluster.kill(3).await;
    let flip = |mut bytes: Vec<u8>| {
        *bytes.last_mut()? ^= 1;
        Some(bytes)
    };
    assert!(cluster.machines[&3].log.damage(GROUP, 5, flip));
    for round in 0..2 {
        let (groups, refused) = cluster.boot_damaged(3).await;
        assert!(refused.is_damage() && reason_of(&refused).contains("position 5"), "{refused}");
        let stored = groups.stored_groups().remove(0);
        assert_eq!(stored.replica, replica(3));
        assert!(stored.quarantined.unwrap().contains("position 5"));
        groups.shutdown().await;
        cluster.crash(3);
        if round == 0 {
            // Even if it reads again.
            assert!(cluster.machines[&3].log.damage(GROUP, 5, flip));
        }
    }
    sum = cluster.add(&[1, 2], 5).await;

    let groups = cluster.open(3).await;
    let loads = Arc::new(AtomicUsize::new(0));
    let early = groups.start_group(GROUP, 99, Counter::boxed(&loads)).await.map(drop).unwrap_err();
    assert!(!early.is_damage(), "{early}");
    groups.destroy_group(GROUP).await.unwrap();
    let group = groups.start_group(GROUP, 99, Counter::boxed(&loads)).await.unwrap();
    cluster.serve(3, groups, group, loads).await;
    let leader = cluster.leader(&[1, 2]).await;
    leader.group.add_learner(99, cluster.member(3)).await.unwrap();
    leader.group.change_voters(BTreeSet::from([replica(1), replica(2), 99]), false).await.unwrap();
    cluster.converge(&[1, 2, 3], sum).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_reads_a_damaged_record_for_a_peer_is_quarantined_and_another_leads() {
    let mut cluster = Cluster::start(4, 3, NO_PURGE).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    // More than the memory holds, so that the first ones are read from the disk.
    let mut payload = number(1).to_vec();
    payload.resize(1 << 20, 0);
    for _ in 0..8 {
        leader.group.propose(payload.clone().into()).await.unwrap();
    }
    let damaged = leader.number;
    cluster.converge(&[1, 2, 3], 8).await;
    let early = cluster.machines[&damaged].log.positions(GROUP)[2];
    assert!(cluster.machines[&damaged].log.damage(GROUP, early, |_| None));
    let node = &cluster.nodes[&damaged];
    // The record is read for the newcomer before or after the change is committed.
    let added = node.group.add_learner(replica(4), cluster.member(4)).await;
    assert!(matches!(added, Ok(()) | Err(MembershipError::Stopped)), "{added:?}");
    let Stop::Damaged(reason) = stop_of(&node.group).await else { panic!("it is damaged") };
    assert!(reason.contains(&format!("position {early}")), "{reason}");
    assert!(node.groups.group(GROUP).is_none() && node.group.store().get(1, b"sum").is_err(), "it serves nothing");
    assert_eq!(node.groups.stored_groups()[0].quarantined.as_ref(), Some(&reason));
    let rest: Vec<usize> = (1..=3).filter(|number| *number != damaged).collect();
    assert_eq!(cluster.add(&rest, 1).await, 9);
    cluster.leader(&rest).await.group.add_learner(replica(4), cluster.member(4)).await.unwrap();
    cluster.converge(&[rest[0], rest[1], 4], 9).await;
    cluster.kill(damaged).await;
    let (_, refused) = cluster.boot_damaged(damaged).await;
    assert_eq!(reason_of(&refused), reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_does_not_read_stops_its_replica() {
    let cluster = Cluster::start(1, 1, 20_000).await;
    let node = cluster.leader(&[1]).await;
    purge(node).await;
    assert!(cluster.machines[&1].states.damage(GROUP, |_| 0));
    node.group.store().get(1, b"sum").expect_err("the disk lies");
    let stop = stop_of(&node.group).await;
    assert!(matches!(&stop, Stop::Damaged(reason) if reason.contains("state database")), "{stop:?}");
    assert!(matches!(node.group.propose(number(1)).await, Err(ProposeError::Stopped | ProposeError::Unknown)));
    let again = node.groups.start_group(GROUP, replica(1), Counter::boxed(&node.loads)).await.map(drop).unwrap_err();
    assert!(again.is_damage(), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_does_not_load_or_is_gone_is_damage() {
    for lost in [true, false] {
        let mut cluster = Cluster::start(1, 1, 20_000).await;
        let sum = purge(cluster.leader(&[1]).await).await;
        cluster.kill(1).await;
        cluster.boot(1).await;
        cluster.leader(&[1]).await;
        assert_eq!(stored_sum(&*cluster.nodes[&1].group.store()), sum, "intact as long as nothing happens");
        cluster.kill(1).await;
        let states = &cluster.machines[&1].states;
        assert!(if lost { states.lose(GROUP) } else { states.damage(GROUP, |_| 0) });
        let (_, refused) = cluster.boot_damaged(1).await;
        let expected = if lost { "purged" } else { "state" };
        assert!(reason_of(&refused).contains(expected), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_quarantined_from_outside_stops_and_the_rest_goes_on() {
    let mut cluster = Cluster::start(3, 3, NO_PURGE).await;
    cluster.add(&[1, 2, 3], 1).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let number = leader.number;
    let other = leader.groups.quarantine(GROUP, 77, "diverged").await.unwrap_err();
    assert!(!other.is_damage() && leader.groups.group(GROUP).is_some(), "{other}");
    leader.groups.quarantine(GROUP, replica(number), "diverged").await.unwrap();
    assert_eq!(leader.group.stopped().await, Stop::Damaged("diverged".to_owned()));
    assert!(leader.groups.group(GROUP).is_none());
    leader.groups.quarantine(GROUP, replica(number), "again").await.unwrap();
    let quarantined = Some("diverged".to_owned());
    let expected = StoredReplica { group: GROUP, replica: replica(number), quarantined };
    assert_eq!(leader.groups.stored_groups(), [expected]);
    let rest: Vec<usize> = (1..=3).filter(|other| *other != number).collect();
    assert_eq!(cluster.add(&rest, 2).await, 3);
    cluster.kill(number).await;
    let (_, refused) = cluster.boot_damaged(number).await;
    assert_eq!(reason_of(&refused), "diverged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_is_cut_off_is_finished_at_the_next_start() {
    let mut cluster = Cluster::start(1, 1, 20_000).await;
    purge(cluster.leader(&[1]).await).await;
    let node = &cluster.nodes[&1];
    node.groups.stop_group(GROUP).await;
    // The first write dooms the replica; the node dies when it is to be forgotten.
    let first = cluster.machines[&1].floor.writes();
    cluster.machines[&1].floor.set_hook(move |number| match number - first {
        0 => FloorFault::None,
        _ => FloorFault::CrashBefore,
    });
    node.groups.destroy_group(GROUP).await.expect_err("the node has died");
    cluster.kill(1).await;
    let groups = cluster.open(1).await;
    assert_eq!(groups.stored_groups(), []);
    let fresh = groups.start_group(GROUP, 55, Counter::boxed(&Arc::new(AtomicUsize::new(0)))).await.unwrap();
    assert_eq!((fresh.applied(), stored_sum(&*fresh.store())), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_note_the_same_hashes_at_the_same_positions() {
    let mut cluster = Cluster::start(3, 3, NO_PURGE).await;
    let mut sum = 0;
    for value in 1..=300 {
        sum = cluster.add(&[1, 2, 3], value).await;
    }
    cluster.converge(&[1, 2, 3], sum).await;
    let noted: Vec<_> = cluster.nodes.values().map(|node| node.group.hashes()).collect();
    assert_eq!(noted[0].len(), 64);
    assert!(noted[0].iter().all(|(position, _)| position.is_multiple_of(4)));
    assert!(noted.iter().all(|other| *other == noted[0]), "{noted:?}");
    let current = cluster.nodes[&1].group.hash().unwrap();
    assert_eq!(current.0, cluster.nodes[&1].group.applied());
    cluster.kill(1).await;
    cluster.boot(1).await;
    cluster.converge(&[1, 2, 3], sum).await;
    let again = cluster.nodes[&1].group.hash().unwrap();
    assert!(again.0 >= current.0 && again.1 == current.1, "{again:?} {current:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_knows_when_it_last_heard_of_whom() {
    let mut cluster = Cluster::start(3, 3, NO_PURGE).await;
    cluster.add(&[1, 2, 3], 1).await;
    let leader = cluster.leader(&[1, 2, 3]).await.number;
    let others: Vec<usize> = (1..=3).filter(|other| *other != leader).collect();
    cluster.kill(others[0]).await;
    let group = &cluster.nodes[&leader].group;
    let silent = async {
        loop {
            let heard = group.status().heard;
            let [dead, alive] = [0, 1].map(|at| heard.get(&replica(others[at])).copied().flatten());
            if let (Some(dead), Some(alive)) = (dead, alive)
                && dead > Duration::from_secs(2)
                && alive < Duration::from_secs(1)
            {
                assert!(!heard.contains_key(&replica(leader)));
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, silent).await.expect("one falls silent, the other does not");
    assert!(cluster.nodes[&others[1]].group.status().heard.is_empty(), "a follower hears only its leader");
}
