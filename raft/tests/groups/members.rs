//! Changes of members, and of the leader.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_raft::{GroupConfig, GroupId, MembershipError, OpenError, ProposeError, Stop, StoredReplica, Timers};

use crate::cluster::{Cluster, Counter, GROUP, LONG, number, replica};

const NO_PURGE: u64 = 1 << 30;

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over() {
    let cluster = Cluster::start(3, 3, NO_PURGE).await;
    cluster.add(&[1, 2, 3], 1).await;
    for _ in 0..2 {
        let leader = cluster.leader(&[1, 2, 3]).await;
        let to = (1..=3).find(|number| *number != leader.number).unwrap();
        leader.group.transfer_leader(replica(to)).await.unwrap();
        assert_eq!(cluster.leader(&[1, 2, 3]).await.number, to);
    }
    let leader = cluster.leader(&[1, 2, 3]).await;
    let other = cluster.nodes.values().find(|node| node.number != leader.number).unwrap();
    let refused = other.group.transfer_leader(replica(other.number)).await;
    assert!(matches!(refused, Err(MembershipError::NotLeader { .. })));
    assert!(matches!(leader.group.transfer_leader(99).await, Err(MembershipError::Refused { .. })));
    match other.group.propose(number(1)).await {
        Err(ProposeError::NotLeader { leader: Some((hint, _)) }) => assert_eq!(hint, leader.group.replica()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_grows_from_one_to_three_and_replaces_a_voter() {
    let mut cluster = Cluster::start(4, 1, NO_PURGE).await;
    let mut sum = cluster.add(&[1], 1).await;
    let founder = &cluster.nodes[&1].group;
    for number in [2, 3] {
        founder.add_learner(replica(number), cluster.member(number)).await.unwrap();
        // The same again changes nothing.
        founder.add_learner(replica(number), cluster.member(number)).await.unwrap();
    }
    founder.change_voters(BTreeSet::from([11, 12, 13]), false).await.unwrap();
    let view = founder.status();
    assert_eq!((view.voters, view.joint), (BTreeSet::from([11, 12, 13]), false));
    sum += 1;
    assert_eq!(cluster.add(&[1, 2, 3], 1).await, sum);

    cluster.kill(3).await;
    let leader = cluster.leader(&[1, 2]).await;
    leader.group.add_learner(replica(4), cluster.member(4)).await.unwrap();
    leader.group.change_voters(BTreeSet::from([11, 12, 14]), true).await.unwrap();
    assert!(leader.group.status().members.contains_key(&13), "it stays as a learner");
    leader.group.remove_learners(BTreeSet::from([13])).await.unwrap();
    let view = leader.group.status();
    assert_eq!(view.members.keys().copied().collect::<Vec<_>>(), [11, 12, 14]);
    sum += 1;
    assert_eq!(cluster.add(&[1, 2, 4], 1).await, sum);
    cluster.converge(&[1, 2, 4], sum).await;
    assert_eq!(cluster.leader(&[1, 2, 4]).await.group.status().matched.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_make_no_sense_are_refused() {
    let cluster = Cluster::start(2, 1, NO_PURGE).await;
    let leader = &cluster.leader(&[1]).await.group;
    let again = leader.initialize([(11, cluster.member(1))].into()).await;
    assert!(matches!(again, Err(MembershipError::Refused { .. })), "{again:?}");
    let unknown = leader.change_voters(BTreeSet::from([11, 12]), false).await;
    assert!(matches!(unknown, Err(MembershipError::Refused { .. })), "{unknown:?}");
    let empty = leader.change_voters(BTreeSet::new(), false).await;
    assert!(matches!(empty, Err(MembershipError::Refused { .. })), "{empty:?}");
    leader.add_learner(12, cluster.member(2)).await.unwrap();
    let moved = leader.add_learner(12, cluster.member(1)).await;
    assert!(matches!(moved, Err(MembershipError::Refused { .. })), "{moved:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joint_membership_that_was_left_behind_is_finished() {
    let mut cluster = Cluster::start(3, 1, NO_PURGE).await;
    let sum = cluster.add(&[1], 1).await;
    let founder = &cluster.nodes[&1].group;
    founder.add_learner(replica(2), cluster.member(2)).await.unwrap();
    // Caught up, then gone: the joint entry needs the new voter and cannot be committed.
    cluster.converge(&[1, 2], sum).await;
    cluster.kill(2).await;
    let founder = cluster.nodes[&1].group.clone();
    let change = tokio::spawn(async move { founder.change_voters(BTreeSet::from([11, 12]), false).await });
    let joint = async {
        while !cluster.nodes[&1].group.status().joint {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, joint).await.unwrap();
    // The leader dies between the steps; nobody remembers that a second one was due.
    cluster.kill(1).await;
    let _ = tokio::time::timeout(LONG, change).await.unwrap();
    cluster.boot(1).await;
    cluster.boot(2).await;
    let leader = cluster.leader(&[1, 2]).await;
    assert!(leader.group.status().joint);
    leader.group.change_voters(BTreeSet::from([11, 12]), false).await.unwrap();
    let view = cluster.leader(&[1, 2]).await.group.status();
    assert_eq!((view.voters, view.joint), (BTreeSet::from([11, 12]), false));
    assert_eq!(cluster.add(&[1, 2], 1).await, sum + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_stops_starts_again_and_is_destroyed() {
    let cluster = Cluster::start(1, 1, NO_PURGE).await;
    let node = &cluster.nodes[&1];
    cluster.add(&[1], 4).await;
    let loads = &node.loads;
    let twice = node.groups.start_group(GROUP, replica(1), Counter::boxed(loads)).await;
    assert!(matches!(twice.err(), Some(OpenError::AlreadyStarted { .. })));
    node.groups.stop_group(GROUP).await;
    assert!(node.groups.group(GROUP).is_none());
    assert_eq!(node.group.stopped().await, Stop::Wanted);
    assert!(matches!(node.group.propose(number(1)).await, Err(ProposeError::Stopped | ProposeError::Unknown)));
    assert!(node.group.store().get(1, b"sum").is_err(), "a stopped group holds no database");
    let stranger = node.groups.start_group(GROUP, 77, Counter::boxed(loads)).await;
    assert!(matches!(stranger.err(), Some(OpenError::Log(_))), "the log belongs to another replica");
    let stored = node.groups.stored_groups();
    assert_eq!(stored, [StoredReplica { group: GROUP, replica: replica(1), quarantined: None }]);
    let slow = GroupConfig { timers: Some(Timers::default().slower(4)) };
    let group = node.groups.start_group_with(GROUP, replica(1), Counter::boxed(loads), slow).await.unwrap();
    let mut leadership = group.leadership();
    tokio::time::timeout(LONG, leadership.wait_for(|now| now.mine)).await.unwrap().unwrap();
    assert_eq!(group.propose(number(1)).await.unwrap().reply.downcast::<u64>(), Some(5));
    node.groups.destroy_group(GROUP).await.unwrap();
    assert_eq!(node.groups.stored_groups(), []);
    let fresh = node.groups.start_group(GROUP, 77, Counter::boxed(loads)).await.unwrap();
    assert_eq!(fresh.applied(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_groups_of_a_node_share_what_they_can() {
    let cluster = Cluster::start(3, 3, NO_PURGE).await;
    cluster.leader(&[1, 2, 3]).await;
    let slow = GroupConfig { timers: Some(Timers::default().slower(4)) };
    let members: std::collections::BTreeMap<_, _> =
        (1..=3).map(|number| (replica(number), cluster.member(number))).collect();
    let mut others = Vec::new();
    for id in 20..28 {
        for node in cluster.nodes.values() {
            let machine = Counter::boxed(&node.loads);
            let group = node.groups.start_group_with(GroupId(id), replica(node.number), machine, slow).await.unwrap();
            if node.number == 1 {
                group.initialize(members.clone()).await.unwrap();
                others.push(group);
            }
        }
    }
    for group in &others {
        let mut leadership = group.leadership();
        tokio::time::timeout(LONG, leadership.wait_for(|now| now.leader.is_some())).await.unwrap().unwrap();
        let position = group.read_position(LONG).await.unwrap();
        group.wait_applied(position, LONG).await.unwrap();
    }
    assert_eq!(cluster.nodes[&1].groups.stored_groups().len(), 9);
}
