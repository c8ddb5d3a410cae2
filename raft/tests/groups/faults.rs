//! Leaders that die, networks that are cut, replicas that fall behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_raft::{
    Fault, Group, LogPosition, Machine, ProposeError, ReadError, Reply, RowBatch, StateStore, Stop, Timers,
};
use tokio::sync::oneshot;

use crate::cluster::{Cluster, GROUP, LONG, number, replica, stored_sum};

const NO_PURGE: u64 = 1 << 30;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_the_death_of_the_leader() {
    let mut cluster = Cluster::start(3, 3, NO_PURGE).await;
    let mut sum = 0;
    for value in 1..=50 {
        sum += value;
        assert_eq!(cluster.add(&[1, 2, 3], value).await, sum);
    }
    let dead = cluster.leader(&[1, 2, 3]).await.number;
    cluster.kill(dead).await;
    let rest: Vec<usize> = (1..=3).filter(|number| *number != dead).collect();
    for value in 1..=50 {
        sum += value;
        assert_eq!(cluster.add(&rest, value).await, sum);
    }
    cluster.boot(dead).await;
    cluster.converge(&[1, 2, 3], sum).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn submitted_proposals_keep_their_order() {
    let cluster = Cluster::start(3, 3, NO_PURGE).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let mut pending = Vec::new();
    for _ in 0..500 {
        pending.push(leader.group.submit(number(1)).await.unwrap());
    }
    let mut last = 0;
    for (place, pending) in pending.into_iter().enumerate() {
        let committed = pending.await.unwrap();
        assert!(committed.at.position > last);
        last = committed.at.position;
        assert_eq!(committed.reply.downcast::<u64>(), Some(place as u64 + 1));
    }
    let too_large = leader.group.submit(vec![0; Group::MAX_PAYLOAD + 1].into()).await;
    assert!(matches!(too_large.err(), Some(ProposeError::TooLarge { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_proposals_travel() {
    let cluster = Cluster::start(3, 3, NO_PURGE).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    let mut payload = vec![0; Group::MAX_PAYLOAD];
    payload[0] = 7;
    for sum in [7, 14, 21] {
        let committed = leader.group.propose(payload.clone().into()).await.unwrap();
        assert_eq!(committed.reply.downcast::<u64>(), Some(sum));
    }
    cluster.converge(&[1, 2, 3], 21).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_confirms_nothing_and_follows_again_when_healed() {
    let cluster = Cluster::start(3, 3, NO_PURGE).await;
    cluster.add(&[1, 2, 3], 5).await;
    let old = cluster.leader(&[1, 2, 3]).await;
    assert!(old.group.lease_valid());
    let (old, term) = (old.number, old.group.leadership().borrow().term);
    cluster.isolate(old);
    let lost = cluster.nodes[&old].group.submit(number(1_000)).await.unwrap();
    let rest: Vec<usize> = (1..=3).filter(|number| *number != old).collect();
    assert_eq!(cluster.add(&rest, 6).await, 11);
    assert!(cluster.leader(&rest).await.group.leadership().borrow().term > term);
    let isolated = &cluster.nodes[&old].group;
    assert!(!isolated.lease_valid());
    let read = isolated.read_position(Duration::from_millis(700)).await;
    assert!(matches!(read, Err(ReadError::NoLeader | ReadError::TimedOut)), "{read:?}");
    cluster.heal();
    assert_eq!(cluster.add(&[1, 2, 3], 7).await, 18);
    // Never committed, so never applied; the proposer learns only that it does not know.
    let lost = tokio::time::timeout(LONG, lost).await.unwrap();
    assert!(matches!(lost, Err(ProposeError::Unknown)), "{lost:?}");
    cluster.converge(&[1, 2, 3], 18).await;
}

/// Polls the replicas, which tell nobody of every step.
async fn until(what: impl Fn() -> bool) {
    let reached = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, reached).await.expect("it comes to that");
}

/// The chaos suite found it (`leases`): a suspended leader woke, read the answers to what it had sent before, and renewed a
/// session that its successor had ended.
#[tokio::test(flavor = "multi_thread")]
async fn answers_from_before_another_one_was_elected_confirm_nobody() {
    // The connections whose answers are held end after two seconds.
    let cluster = Cluster::start_with(3, 3, NO_PURGE, Timers::default()).await;
    cluster.add(&[1, 2, 3], 5).await;
    let old = cluster.leader(&[1, 2, 3]).await.number;
    let rest: Vec<usize> = (1..=3).filter(|number| *number != old).collect();
    cluster.converge(&[1, 2, 3], 5).await;
    let group = &cluster.nodes[&old].group;
    rest.iter().for_each(|other| cluster.hold(old, *other, false, true));
    let _unanswered = group.submit(number(6)).await.unwrap();
    let asked = || group.status().last_position;
    until(|| asked() > group.status().committed).await;
    until(|| rest.iter().all(|other| cluster.nodes[other].group.status().last_position == asked())).await;
    for other in &rest {
        cluster.hold(old, *other, true, true);
        cluster.cut(*other, old);
    }
    assert_eq!(cluster.add(&rest, 7).await, 18);
    assert!(!group.lease_valid());
    let reading = tokio::spawn({
        let group = group.clone();
        async move { group.read_position(Duration::from_secs(2)).await }
    });
    // The first answer commits the entry, which all others are to hear in a request of their own; the second answer covers that.
    for other in rest {
        cluster.hold(old, other, true, false);
        until(|| group.status().matched.get(&replica(other)) == Some(&asked())).await;
    }
    assert!(
        group.status().committed == asked() && group.leadership().borrow().mine,
        "it knows nothing of another leader"
    );
    assert!(!group.lease_valid());
    let read = reading.await.expect("it ends");
    assert!(
        matches!(read, Err(ReadError::NoLeader | ReadError::TimedOut)),
        "it misses what the successor has: {read:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_restarted_votes_for_nobody_while_its_last_leader_may_have_a_lease() {
    let mut cluster = Cluster::start(3, 3, NO_PURGE).await;
    cluster.add(&[1, 2, 3], 5).await;
    let old = cluster.leader(&[1, 2, 3]).await.number;
    let rest: Vec<usize> = (1..=3).filter(|number| *number != old).collect();
    let (restarted, candidate) = (rest[0], rest[1]);
    cluster.cut(old, candidate);
    cluster.cut(candidate, old);
    // By then it would vote for itself.
    let silence = || cluster.nodes[&old].group.status().heard[&replica(candidate)];
    until(|| silence().is_some_and(|since| since > Duration::from_millis(700))).await;
    until(|| cluster.nodes[&old].group.lease_valid()).await;
    cluster.kill(restarted).await;
    cluster.cut(old, restarted);
    cluster.cut(restarted, old);
    cluster.boot(restarted).await;
    let elected = cluster.leader(&rest).await;
    assert!(!cluster.nodes[&old].group.lease_valid(), "node {} leads as well", elected.number);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_hands_over_has_no_lease() {
    let cluster = Cluster::start(3, 3, NO_PURGE).await;
    cluster.add(&[1, 2, 3], 5).await;
    let old = cluster.leader(&[1, 2, 3]).await;
    let successor = (1..=3).find(|number| *number != old.number).expect("there are three");
    // It never hears that it is to lead.
    cluster.hold(old.number, successor, true, true);
    let mut handing_over = std::pin::pin!(old.group.transfer_leader(replica(successor)));
    assert!(futures::poll!(handing_over.as_mut()).is_pending());
    assert!(!old.group.lease_valid());
    let _ = handing_over.await;
    assert!(!old.group.leadership().borrow().mine || !old.group.lease_valid());
    cluster.hold(old.number, successor, false, false);
    assert_eq!(cluster.add(&[1, 2, 3], 6).await, 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_peer_is_tried_again_with_pauses() {
    let mut cluster = Cluster::start(3, 3, NO_PURGE).await;
    let leader = cluster.leader(&[1, 2, 3]).await.number;
    let dead = (1..=3).find(|number| *number != leader).expect("three nodes");
    cluster.kill(dead).await;
    let rest: Vec<usize> = (1..=3).filter(|number| *number != dead).collect();
    let (before, began) = (cluster.asked(dead), Instant::now());
    // There is always something that the dead one does not have.
    while began.elapsed() < Duration::from_secs(1) {
        cluster.add(&rest, 0).await;
    }
    let asked = cluster.asked(dead) - before;
    // Heartbeats every 100 ms and entries every 200 ms, at two nodes at most; without pauses it is thousands.
    assert!(asked as f64 <= 60.0 * began.elapsed().as_secs_f64(), "{asked} connections in {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_behind_the_purge_gets_a_snapshot() {
    let mut cluster = Cluster::start(3, 3, 20_000).await;
    cluster.add(&[1, 2, 3], 1).await;
    let leader = cluster.leader(&[1, 2, 3]).await.number;
    let behind = (1..=3).find(|number| *number != leader).unwrap();
    cluster.kill(behind).await;
    let rest: Vec<usize> = (1..=3).filter(|number| *number != behind).collect();
    let leader = cluster.leader(&rest).await;
    let mut sum = 1;
    // Well beyond the limit, and until the leader has purged.
    let mut payload = number(1).to_vec();
    payload.resize(500, 0);
    let missed = leader.group.applied();
    let purging = async {
        loop {
            for _ in 0..50 {
                sum += 1;
                leader.group.propose(payload.clone().into()).await.unwrap();
            }
            if purged(leader) > missed {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, purging).await.expect("the log is purged");
    cluster.boot(behind).await;
    cluster.converge(&[1, 2, 3], sum).await;
    assert_eq!(cluster.nodes[&behind].loads.load(Ordering::Relaxed), 2, "once at start, once from the snapshot");
    // And it goes on from there by itself, also as a leader.
    let node = &cluster.nodes[&behind];
    cluster.leader(&[1, 2, 3]).await.group.transfer_leader(node.group.replica()).await.unwrap();
    assert_eq!(cluster.add(&[1, 2, 3], 1).await, sum + 1);
    cluster.converge(&[1, 2, 3], sum + 1).await;
}

fn purged(node: &crate::cluster::Node) -> u64 {
    node.group.status().purged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_that_loses_unflushed_state_replays_it_from_the_log() {
    let mut cluster = Cluster::start(1, 1, 20_000).await;
    let mut payload = number(1).to_vec();
    payload.resize(500, 0);
    let mut sum = 0;
    let node = cluster.leader(&[1]).await;
    let purging = async {
        while purged(node) == 0 {
            sum += 1;
            node.group.propose(payload.clone().into()).await.unwrap();
        }
    };
    tokio::time::timeout(LONG, purging).await.expect("the log is purged");
    for _ in 0..20 {
        sum += 1;
        node.group.propose(payload.clone().into()).await.unwrap();
    }
    for _ in 0..3 {
        cluster.kill(1).await;
        cluster.boot(1).await;
        sum += 1;
        assert_eq!(cluster.add(&[1], 1).await, sum);
    }
    assert_eq!(stored_sum(&*cluster.nodes[&1].group.store()), sum);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_replica_reads_what_was_acknowledged_before() {
    let cluster = Cluster::start(3, 3, NO_PURGE).await;
    for value in 1..=30_u64 {
        let sum = cluster.add(&[1, 2, 3], 1).await;
        assert_eq!(sum, value);
        for node in cluster.nodes.values() {
            let position = node.group.read_position(LONG).await.unwrap();
            node.group.wait_applied(position, LONG).await.unwrap();
            assert!(node.group.applied() >= position);
            assert!(stored_sum(&*node.group.store()) >= sum);
        }
    }
    let ahead = cluster.nodes[&1].group.applied() + 1_000;
    let waited = cluster.nodes[&1].group.wait_applied(ahead, Duration::from_millis(20)).await;
    assert!(matches!(waited, Err(ReadError::TimedOut)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_back_is_reached_at_once() {
    let mut cluster = Cluster::start(3, 3, NO_PURGE).await;
    cluster.add(&[1, 2, 3], 1).await;
    let leader = cluster.leader(&[1, 2, 3]).await.number;
    let other = (1..=3).find(|number| *number != leader).unwrap();
    cluster.kill(other).await;
    let rest: Vec<usize> = (1..=3).filter(|number| *number != other).collect();
    for _ in 0..20 {
        cluster.add(&rest, 1).await;
    }
    cluster.boot(other).await;
    let position = cluster.nodes[&leader].group.applied();
    cluster.nodes[&other].group.wait_applied(position, Duration::from_millis(1_500)).await.expect("reached soon");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_with_a_fault_stops_its_group_and_stores_nothing() {
    let cluster = Cluster::start(3, 3, NO_PURGE).await;
    cluster.add(&[1, 2, 3], 1).await;
    let leader = cluster.leader(&[1, 2, 3]).await;
    // Not a number, on any replica.
    let lost = leader.group.propose(vec![1].into()).await;
    assert!(matches!(lost, Err(ProposeError::Unknown | ProposeError::Stopped)), "{lost:?}");
    // A follower stops too when it hears that the entry is committed, which a dead leader may not have told it.
    let why = tokio::time::timeout(LONG, leader.group.stopped()).await.expect("the leader stops");
    assert!(matches!(&why, Stop::Fault(reason) if reason.contains("not a number")), "{why:?}");
    let stored = leader.groups.stored_groups();
    assert_eq!(stored[0].quarantined, None, "a fault of the machine is no damage");
    assert!(!leader.group.leadership().borrow().mine);
    assert_eq!(stored_sum(&*leader.group.store()), 1);
    for node in cluster.nodes.values() {
        assert!(stored_sum(&*node.group.store()) <= 1, "nothing of the entry is stored");
        assert!(node.groups.group(GROUP).is_some(), "the node goes on and decides what to do");
    }
    assert!(matches!(leader.group.propose(number(1)).await, Err(ProposeError::Stopped)));
}

/// A machine that takes its time to load, and says when it begins and that it has.
struct Slow {
    began: Option<oneshot::Sender<()>>,
    loaded: Arc<AtomicBool>,
}

impl Machine for Slow {
    fn apply(&mut self, _: LogPosition, _: &[u8], _: &mut RowBatch) -> Result<Reply, Fault> {
        Ok(Reply::new(()))
    }

    fn applied(&mut self, _: LogPosition) {}

    fn hash(&self) -> u64 {
        0
    }

    fn load(&mut self, _: Arc<dyn StateStore>, _: Option<LogPosition>) -> Result<(), Fault> {
        if let Some(began) = self.began.take() {
            let _ = began.send(());
        }
        std::thread::sleep(Duration::from_millis(300));
        self.loaded.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// The chaos suite found it: a node that was stopped while it started ended by a signal, because what was just being started
/// had its databases open when the process ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_what_is_just_being_started_also_if_nobody_else_does() {
    let mut cluster = Cluster::start(1, 1, NO_PURGE).await;
    cluster.kill(1).await;
    let groups = cluster.open(1).await;
    let (began, begins) = oneshot::channel();
    let loaded = Arc::new(AtomicBool::new(false));
    let machine = Box::new(Slow { began: Some(began), loaded: loaded.clone() });
    tokio::select! {
        started = groups.start_group(GROUP, replica(1), machine) => panic!("it is slow: {:?}", started.map(drop)),
        begun = begins => begun.expect("it loads"),
    }
    groups.shutdown().await;
    assert!(loaded.load(Ordering::SeqCst), "the stop has overtaken the start");
    assert!(groups.group(GROUP).is_none(), "and nothing is left running");
    let late = groups.start_group(GROUP, replica(1), Box::new(Slow { began: None, loaded })).await;
    assert!(late.is_err(), "nothing starts after the stop");
}
