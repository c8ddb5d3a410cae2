//! Whether the replicas of a group still agree on its state.
//!
//! Machines are deterministic, so replicas that have applied the same entries have the same state, and its hash says so.
//! About every second each replica asks the others of its group which hashes they have noted at which positions, and
//! judges *itself*; nobody convicts another. [`verdict`] is the whole rule, a pure function over the voters of the group:
//!
//! - A majority of all voters agrees and this replica differs: it is the provable minority. If it leads it hands over to
//!   one of the majority, then it is quarantined and replaced.
//! - All voters were heard and no majority agrees: nobody can tell who is right. The group stops on this node and says so.
//! - A majority agrees with this replica: so do its checkpoints up to there, and from then on they count.
//! - Anything else: not enough is known.
//!
//! A group that stopped so goes on telling its hashes, so that the others come to the same verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use prost::Message as _;
use quorate_raft::{Group, GroupId, Member, NodeId, ReplicaId};
use quorate_state::{HASH_VERSION, ShardId};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::formation::Formation;
use super::hosting::Hosting;
use super::plan::majority;
use crate::context::Context;
use crate::error::Error;
use crate::peers::{CallHandler, kind};

/// How long another node may take to answer. Who does not is asked again in the next round.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a diverged leader may take to hand over. After that the majority holds an election.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// The hashes of one replica: position and hash.
pub type Noted = BTreeMap<u64, u64>;

/// What a replica finds about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A majority has the same state as this replica.
    Agrees {
        /// Where they were compared.
        position: u64,
    },
    /// A majority agrees on another state.
    Minority {
        /// Where they were compared.
        position: u64,
        /// The hash of the majority.
        theirs: u64,
        /// The voters that have it.
        majority: BTreeSet<ReplicaId>,
    },
    /// All voters were heard, and no majority agrees.
    Split {
        /// Where they were compared.
        position: u64,
    },
    /// Not enough was heard.
    Open,
}

/// The verdict of the replica `me`, which may be a learner, on itself. `heard` is what the replicas that were heard, with
/// `me` among them, have noted.
///
/// The highest position decides at which there is something to decide. At most a minority of the voters can be told that
/// they are one, whatever each of them has heard.
pub fn verdict(me: ReplicaId, voters: &BTreeSet<ReplicaId>, heard: &BTreeMap<ReplicaId, Noted>) -> Verdict {
    let Some(own) = heard.get(&me) else { return Verdict::Open };
    let needed = majority(voters.len());
    for (&position, &mine) in own.iter().rev() {
        let mut camps: BTreeMap<u64, BTreeSet<ReplicaId>> = BTreeMap::new();
        for voter in voters {
            if let Some(hash) = heard.get(voter).and_then(|noted| noted.get(&position)) {
                camps.entry(*hash).or_default().insert(*voter);
            }
        }
        let found: usize = camps.values().map(BTreeSet::len).sum();
        match camps.into_iter().find(|(_, camp)| camp.len() >= needed) {
            Some((theirs, _)) if theirs == mine => return Verdict::Agrees { position },
            Some((theirs, majority)) => return Verdict::Minority { position, theirs, majority },
            None if found == voters.len() && voters.contains(&me) => return Verdict::Split { position },
            None => {}
        }
    }
    Verdict::Open
}

/// Which groups are asked about.
#[derive(Clone, PartialEq, prost::Message)]
struct HashesCall {
    #[prost(uint32, repeated, tag = "1")]
    groups: Vec<u32>,
}

/// What the replicas of the answering node have noted.
#[derive(Clone, PartialEq, prost::Message)]
struct HashesAnswer {
    #[prost(message, repeated, tag = "1")]
    replicas: Vec<ReplicaHashes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReplicaHashes {
    #[prost(uint32, tag = "1")]
    group: u32,
    #[prost(uint64, tag = "2")]
    replica: ReplicaId,
    /// As many as `hashes`, in the same order.
    #[prost(uint64, repeated, tag = "3")]
    positions: Vec<u64>,
    #[prost(fixed64, repeated, tag = "4")]
    hashes: Vec<u64>,
    /// [`HASH_VERSION`] of who made them.
    #[prost(uint32, tag = "5")]
    version: u32,
}

impl ReplicaHashes {
    fn of(group: &Group) -> ReplicaHashes {
        let noted = group.hashes().into_iter().chain(group.hash()).collect();
        ReplicaHashes::told(group, &noted)
    }

    fn told(group: &Group, noted: &Noted) -> ReplicaHashes {
        let (positions, hashes) = noted.iter().map(|(position, hash)| (*position, *hash)).unzip();
        ReplicaHashes { group: group.id().0, replica: group.replica(), positions, hashes, version: HASH_VERSION }
    }

    /// What can be compared with the hashes of this program: nothing, while another version is rolled out.
    fn noted(&self) -> Noted {
        if self.version != HASH_VERSION {
            return Noted::new();
        }
        self.positions.iter().copied().zip(self.hashes.iter().copied()).collect()
    }
}

/// What groups had noted that have stopped because of a split.
type Halted = Mutex<BTreeMap<GroupId, ReplicaHashes>>;

/// Compares the states of this node's replicas with those of the others, until the node stops.
pub struct Divergence {
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Divergence {
    /// Starts the comparisons, and answers those of other nodes.
    pub fn start(context: Context, formation: Arc<Formation>, hosting: Arc<Hosting>) -> Divergence {
        let halted: Arc<Halted> = Arc::default();
        let told = Told { context: context.clone(), halted: halted.clone() };
        context.dispatch.on_call(kind::STATE_HASHES, Arc::new(told));
        let watch = Watch { context, formation, hosting, halted };
        Divergence { task: Mutex::new(Some(tokio::spawn(watch.run()))) }
    }

    /// Waits for the end of what is under way; `context.shutdown` must be cancelled.
    pub async fn stop(&self) {
        let task = self.task.lock().take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the comparison of states ended badly");
        }
    }
}

/// Answers the comparisons of other nodes.
struct Told {
    context: Context,
    halted: Arc<Halted>,
}

#[async_trait]
impl CallHandler for Told {
    async fn call(&self, _from: NodeId, body: Bytes) -> Result<Bytes, Error> {
        let call = HashesCall::decode(body).map_err(Error::internal)?;
        let replica = |group: u32| match self.context.groups.group(GroupId(group)) {
            Some(group) => Some(ReplicaHashes::of(&group)),
            None => self.halted.lock().get(&GroupId(group)).cloned(),
        };
        let replicas = call.groups.into_iter().filter_map(replica).collect();
        Ok(HashesAnswer { replicas }.encode_to_vec().into())
    }
}

struct Watch {
    context: Context,
    formation: Arc<Formation>,
    hosting: Arc<Hosting>,
    halted: Arc<Halted>,
}

impl Watch {
    async fn run(self) {
        let shutdown = self.context.shutdown.clone();
        let mut tick = interval(self.context.config.compare_every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {}
            }
            // A verdict that is being carried out is finished: what it says stays true.
            let heard = tokio::select! {
                () = shutdown.cancelled() => return,
                heard = self.ask() => heard,
            };
            for (group, heard) in heard {
                self.judge(&group, heard).await;
            }
        }
    }

    /// The groups whose state has changed since a majority agreed with it.
    fn unsettled(&self) -> Vec<Group> {
        let shards = self.hosting.running().into_iter().map(|(_, group)| group);
        let groups = self.context.control.group().into_iter().chain(shards);
        groups.filter(|group| group.hash().is_some() && !group.is_agreed()).collect()
    }

    /// What the voters of each unsettled group have noted: one call for each node.
    async fn ask(&self) -> Vec<(Group, BTreeMap<ReplicaId, Noted>)> {
        let groups = self.unsettled();
        let mut calls: BTreeMap<NodeId, (String, Vec<u32>)> = BTreeMap::new();
        for group in &groups {
            let view = group.status();
            let others = view.voters.iter().filter_map(|voter| view.members.get(voter));
            for Member { node, address } in others.filter(|member| member.node != self.context.node) {
                let (_, asked) = calls.entry(*node).or_insert_with(|| (address.clone(), Vec::new()));
                asked.push(group.id().0);
            }
        }
        let answers = calls.into_iter().map(|(node, (address, groups))| async move {
            let call = Bytes::from(HashesCall { groups }.encode_to_vec());
            let answer = self.context.peers.call_at(node, &address, kind::STATE_HASHES, call, ASK_TIMEOUT).await;
            answer.ok().and_then(|answer| HashesAnswer::decode(answer).ok()).unwrap_or_default().replicas
        });
        let answers: Vec<ReplicaHashes> = join_all(answers).await.into_iter().flatten().collect();
        let heard = |group: Group| {
            let of_group = answers.iter().filter(|answer| answer.group == group.id().0);
            let mut heard: BTreeMap<ReplicaId, Noted> =
                of_group.map(|answer| (answer.replica, answer.noted())).collect();
            heard.insert(group.replica(), ReplicaHashes::of(&group).noted());
            (group, heard)
        };
        groups.into_iter().map(heard).collect()
    }

    async fn judge(&self, group: &Group, heard: BTreeMap<ReplicaId, Noted>) {
        let view = group.status();
        if view.joint {
            // Between two sets of voters a majority has two meanings.
            return;
        }
        let me = group.replica();
        let judges = view.voters.clone();
        #[cfg(feature = "planted")]
        let judges = match &view.leader {
            Some((leader, _)) if crate::planted::is("convicting-leader") => BTreeSet::from([*leader]),
            _ => judges,
        };
        match verdict(me, &judges, &heard) {
            Verdict::Open => {}
            Verdict::Agrees { position } => {
                let Some(hash) = heard.get(&me).and_then(|noted| noted.get(&position)) else { return };
                if let Err(error) = group.agree(position, *hash).await {
                    tracing::warn!(group = %group.id(), %error, "a checkpoint could not be kept");
                }
            }
            Verdict::Minority { position, theirs, majority } => {
                let reason = format!(
                    "its state at position {position} is not that of the majority of its group, which has the hash \
                     {theirs:016x}"
                );
                self.hand_over(group, &majority).await;
                match group.id() {
                    GroupId::CONTROL => self.formation.condemn(me, &reason).await,
                    shard => self.hosting.condemn(ShardId(shard.0), me, &reason).await,
                }
            }
            Verdict::Split { position } => {
                let reason = format!(
                    "its replicas have different states at position {position} and no majority of them agrees, so nobody \
                     can tell which one is right"
                );
                // What was judged, so that the others, who judge the same, can come to the same verdict.
                if let Some(noted) = heard.get(&me) {
                    self.halted.lock().insert(group.id(), ReplicaHashes::told(group, noted));
                }
                match group.id() {
                    GroupId::CONTROL => self.formation.halt(me, &reason).await,
                    shard => self.hosting.halt(ShardId(shard.0), me, &reason).await,
                }
            }
        }
    }

    /// A leader that is to go gives the lead to one of those that are right, so that no write waits for an election.
    async fn hand_over(&self, group: &Group, majority: &BTreeSet<ReplicaId>) {
        if !group.leadership().borrow().mine {
            return;
        }
        let view = group.status();
        let heir = super::plan::heir(&view, group.replica(), majority);
        let Some(heir) = heir else { return };
        if !matches!(timeout(HAND_OVER_TIMEOUT, group.transfer_leader(heir)).await, Ok(Ok(()))) {
            tracing::warn!(group = %group.id(), "a diverged leader could not hand over; the majority holds an election");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 1_024;

    /// All ways in which `count` voters can have noted nothing or one of three hashes.
    fn cases(count: u32) -> impl Iterator<Item = Vec<Option<u64>>> {
        (0..4u64.pow(count)).map(move |number| {
            let digit = |voter: u32| number / 4u64.pow(voter) % 4;
            (0..count).map(|voter| (digit(voter) > 0).then(|| 100 + digit(voter))).collect()
        })
    }

    fn voters(count: usize) -> BTreeSet<ReplicaId> {
        (1..=count as u64).collect()
    }

    fn heard(case: &[Option<u64>]) -> BTreeMap<ReplicaId, Noted> {
        let noted = |(voter, hash): (u64, &Option<u64>)| (voter, hash.map(|hash| (AT, hash)).into_iter().collect());
        (1..).zip(case).map(noted).collect()
    }

    #[test]
    fn hashes_of_another_version_are_not_heard() {
        let noted = Noted::from([(AT, 5)]);
        let told = |version| {
            let (positions, hashes) = (vec![AT], vec![5]);
            ReplicaHashes { group: 1, replica: 7, positions, hashes, version }.noted()
        };
        assert_eq!(told(HASH_VERSION), noted);
        assert!(told(HASH_VERSION + 1).is_empty() && told(0).is_empty());
    }

    /// Every case of one position with 1 to 5 voters, held against the rule said in other words.
    #[test]
    fn the_rule_holds_in_every_small_case() {
        for count in 1..=5usize {
            for case in cases(count as u32) {
                let having = |hash: u64| case.iter().filter(|other| **other == Some(hash)).count();
                let whole = case.iter().all(Option::is_some);
                let winner = case.iter().flatten().copied().find(|hash| 2 * having(*hash) > count);
                let mut convicted = 0;
                for me in 1..=count as u64 {
                    let mine = case[me as usize - 1];
                    let found = verdict(me, &voters(count), &heard(&case));
                    match (mine, winner) {
                        (None, _) => assert_eq!(found, Verdict::Open, "{me} of {case:?}"),
                        (Some(mine), Some(winner)) if mine == winner => {
                            assert_eq!(found, Verdict::Agrees { position: AT }, "{me} of {case:?}");
                        }
                        (Some(_), Some(winner)) => {
                            let Verdict::Minority { position: AT, theirs, majority } = found else {
                                panic!("{me} of {case:?}: {found:?}")
                            };
                            assert_eq!((theirs, majority.len()), (winner, having(winner)), "{me} of {case:?}");
                            assert!(!majority.contains(&me));
                            convicted += 1;
                        }
                        (Some(_), None) if whole => {
                            assert_eq!(found, Verdict::Split { position: AT }, "{me} of {case:?}");
                        }
                        (Some(_), None) => assert_eq!(found, Verdict::Open, "{me} of {case:?}"),
                    }
                }
                assert!(2 * convicted < count, "a majority would be replaced: {case:?}");
            }
        }
    }

    /// Whoever hears only some of the others never comes to another verdict than with all of them, but for not knowing.
    #[test]
    fn to_hear_less_can_only_leave_it_open() {
        for count in [3usize, 5] {
            for case in cases(count as u32) {
                let all = heard(&case);
                for me in 1..=count as u64 {
                    let full = verdict(me, &voters(count), &all);
                    for subset in 0..1u64 << count {
                        let here = |voter: &u64| *voter == me || subset >> (voter - 1) & 1 == 1;
                        let some = all.iter().filter(|(voter, _)| here(voter));
                        let some = some.map(|(voter, noted)| (*voter, noted.clone())).collect();
                        match (verdict(me, &voters(count), &some), &full) {
                            (Verdict::Open, _) => {}
                            (Verdict::Minority { theirs, .. }, Verdict::Minority { theirs: with_all, .. }) => {
                                assert_eq!(theirs, *with_all);
                            }
                            (found, full) => assert_eq!(found, *full, "{me} of {case:?} hearing {subset:b}"),
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_highest_position_with_something_to_decide_decides() {
        let noted = |pairs: &[(u64, u64)]| pairs.iter().copied().collect::<Noted>();
        let heard = BTreeMap::from([
            (1, noted(&[(10, 7), (20, 8), (30, 9)])),
            (2, noted(&[(10, 7), (20, 8)])),
            (3, noted(&[(10, 7), (20, 5)])),
        ]);
        assert_eq!(verdict(1, &voters(3), &heard), Verdict::Agrees { position: 20 });
        assert!(matches!(verdict(3, &voters(3), &heard), Verdict::Minority { position: 20, theirs: 8, .. }));
        let later = BTreeMap::from([(1, noted(&[(30, 9)])), (2, noted(&[(30, 9)])), (3, noted(&[(20, 5)]))]);
        assert_eq!(verdict(3, &voters(3), &later), Verdict::Open, "it has no hash where the others agree");
    }

    #[test]
    fn a_learner_judges_itself_and_decides_nothing() {
        let split = heard(&[Some(1), Some(2), Some(3)]);
        assert_eq!(verdict(3, &voters(2), &split), Verdict::Open, "the split is the voters'");
        assert_eq!(verdict(1, &voters(2), &split), Verdict::Split { position: AT });
        let differs = heard(&[Some(1), Some(1), Some(2)]);
        assert!(matches!(verdict(3, &voters(2), &differs), Verdict::Minority { theirs: 1, .. }));
        let agrees = heard(&[Some(1), Some(1), Some(1)]);
        assert_eq!(verdict(3, &voters(2), &agrees), Verdict::Agrees { position: AT });
    }

    #[test]
    fn two_voters_that_disagree_are_a_split_and_one_is_always_right() {
        assert_eq!(verdict(1, &voters(2), &heard(&[Some(1), Some(2)])), Verdict::Split { position: AT });
        assert_eq!(verdict(1, &voters(1), &heard(&[Some(1)])), Verdict::Agrees { position: AT });
        assert_eq!(verdict(1, &BTreeSet::new(), &heard(&[Some(1)])), Verdict::Open);
    }
}
