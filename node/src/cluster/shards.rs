//! Members and voters of the shards that this node leads, brought in line with the shard map.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use quorate_api::v1::StatusResponse;
use quorate_raft::{Group, GroupView, Member, ReplicaId};
use quorate_state::control::{Command, ReplicaState, ShardRecord};
use quorate_state::{Operation, ShardId};
use tokio::time::{Instant, timeout};

use super::plan::{Step, is_caught_up, largest_odd, next_step, wanted_voters};
use super::{in_raft, new_request, report};
use crate::context::Context;
use crate::error::Error;
use crate::limits::SHARD_REPLICAS;

/// How long one shard's step may take. Its group goes on by itself; the next round looks again.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a shard must have been led here without a change before leadership is given to the node whose turn it is.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// Since when this node has led which shard with nothing to do.
#[derive(Default)]
pub struct Shards {
    settled: Mutex<BTreeMap<ShardId, Instant>>,
}

impl Shards {
    /// Does one step for each shard led here. Says whether there was anything to do.
    pub async fn reconcile(&self, context: &Context, running: Vec<(ShardId, Group)>) -> bool {
        let led = running.into_iter().filter(|(_, group)| group.leadership().borrow().mine);
        let led: Vec<(ShardId, Group)> = led.collect();
        self.settled.lock().retain(|shard, _| led.iter().any(|(other, _)| other == shard));
        join_all(led.iter().map(|(shard, group)| self.one(context, *shard, group))).await.into_iter().any(|busy| busy)
    }

    async fn one(&self, context: &Context, shard: ShardId, group: &Group) -> bool {
        let busy = match timeout(STEP_TIMEOUT, step(context, shard, group)).await {
            Ok(Ok(busy)) => busy,
            Ok(Err(error)) => {
                tracing::debug!(%shard, %error, "a step of a shard's membership did not go through; trying again");
                true
            }
            Err(_) => {
                tracing::warn!(%shard, "a step of a shard's membership took too long; trying again");
                true
            }
        };
        if busy {
            self.settled.lock().remove(&shard);
            return true;
        }
        let since = *self.settled.lock().entry(shard).or_insert_with(Instant::now);
        if since.elapsed() >= SETTLED_AFTER {
            self.give_turn(context, shard, group).await;
        }
        false
    }

    /// Hands leadership to the replica whose turn it is, so that leaders are spread over the nodes: the voters of a shard,
    /// in the order of their nodes, take turns by the shard's number.
    async fn give_turn(&self, context: &Context, shard: ShardId, group: &Group) {
        let view = group.status();
        let Some(chosen) = turn(&view, shard).filter(|chosen| *chosen != group.replica()) else { return };
        self.settled.lock().remove(&shard);
        // What a dead replica has matched stays near the end of a quiet log, and a leader that hands over takes no more
        // writes until somebody is elected: ask the node itself.
        let Some(member) = view.members.get(&chosen).filter(|_| is_caught_up(&view, chosen)) else { return };
        let ready = can_lead(&report::fetch(context, member.node).await);
        if !ready || !context.control.read(|control| control.shard(shard).is_some_and(is_settled)) {
            return;
        }
        if let Ok(Err(error)) = timeout(STEP_TIMEOUT, group.transfer_leader(chosen)).await {
            tracing::debug!(%shard, %error, "leadership was not handed over; trying again later");
        }
    }
}

fn turn(view: &GroupView, shard: ShardId) -> Option<ReplicaId> {
    let mut voters: Vec<(quorate_raft::NodeId, ReplicaId)> =
        view.voters.iter().filter_map(|replica| Some((view.members.get(replica)?.node, *replica))).collect();
    voters.sort_unstable();
    let count = voters.len();
    (count > 0).then(|| voters[shard.0 as usize % count].1)
}

/// Whether a node that was asked for its status may be handed a lead: it answers, and its disk does too.
fn can_lead(answer: &Result<StatusResponse, Error>) -> bool {
    answer.as_ref().is_ok_and(|status| status.nodes.iter().all(|node| node.disk_stalled_ms == 0))
}

fn is_settled(shard: &ShardRecord) -> bool {
    shard.replicas.iter().all(|replica| replica.state == ReplicaState::Voter)
}

/// The next step of one shard, by its leader.
async fn step(context: &Context, shard: ShardId, group: &Group) -> Result<bool, Error> {
    let Some(record) = context.control.read(|control| control.shard(shard).cloned()) else { return Ok(false) };
    if !record.initialized {
        propose(context, Command::ShardInitialized { shard }).await?;
        return Ok(true);
    }
    let view = group.status();
    if add_members(context, &record, &view, group).await? {
        return Ok(true);
    }
    let eligible = eligible(context, &record, view.voters.len());
    let wanted = wanted_voters(&view, group.replica(), &eligible, SHARD_REPLICAS.max(eligible.len()));
    match next_step(&view, group.replica(), &wanted) {
        Step::Change(voters) => {
            tracing::info!(%shard, ?voters, "changing the voters of a shard");
            group.change_voters(voters, true).await?;
            return Ok(true);
        }
        Step::Transfer(heir) => {
            tracing::info!(%shard, heir, "handing over a shard whose leader is to go");
            group.transfer_leader(heir).await?;
            return Ok(true);
        }
        Step::Nothing => {}
    }
    if view.joint {
        return Ok(true);
    }
    record_changes(context, &record, &view, group).await
}

/// The replicas that may vote: those that are not retiring, and of them those on nodes that stay where these are enough to
/// take the place of the voters of today. So a replacement becomes a voter in the change that takes the vote from the
/// replica on a leaving node; only then does the map retire that one.
fn eligible(context: &Context, record: &ShardRecord, voters: usize) -> Vec<ReplicaId> {
    let kept: Vec<_> = record.replicas.iter().filter(|replica| replica.state != ReplicaState::Retiring).collect();
    let staying: Vec<ReplicaId> = context.control.read(|control| {
        let stays = |node| control.member(node).is_some_and(|member| !member.leaving);
        kept.iter().filter(|replica| stays(replica.node)).map(|replica| replica.replica).collect()
    });
    if staying.len() >= largest_odd(voters) { staying } else { kept.iter().map(|replica| replica.replica).collect() }
}

/// Takes in the replicas that the map places and the group does not know, or knows under another address.
async fn add_members(context: &Context, record: &ShardRecord, view: &GroupView, group: &Group) -> Result<bool, Error> {
    let mut busy = false;
    for replica in &record.replicas {
        let node = in_raft(replica.node);
        let Some(address) = context.control.member_address(node) else { continue };
        let known = view.members.get(&replica.replica);
        let wanted = match replica.state {
            ReplicaState::Joining => known.is_none_or(|member| member.address != address),
            ReplicaState::Voter => known.is_some_and(|member| member.address != address),
            ReplicaState::Retiring => false,
        };
        if wanted {
            group.add_learner(replica.replica, Member { node, address }).await?;
            busy = true;
        }
    }
    Ok(busy)
}

/// Tells the map what has come true: who votes and who is gone.
async fn record_changes(
    context: &Context,
    record: &ShardRecord,
    view: &GroupView,
    group: &Group,
) -> Result<bool, Error> {
    let shard = record.shard;
    let mut busy = false;
    for replica in &record.replicas {
        let id = replica.replica;
        let command = match replica.state {
            ReplicaState::Joining if view.voters.contains(&id) => Command::ReplicaJoined { shard, replica: id },
            ReplicaState::Retiring if view.voters.contains(&id) => continue,
            ReplicaState::Retiring if view.members.contains_key(&id) => {
                group.remove_learners(BTreeSet::from([id])).await?;
                Command::ForgetReplica { shard, replica: id }
            }
            ReplicaState::Retiring => Command::ForgetReplica { shard, replica: id },
            ReplicaState::Joining => {
                // Not caught up yet: look again soon.
                busy = true;
                continue;
            }
            ReplicaState::Voter => continue,
        };
        propose(context, command).await?;
        busy = true;
    }
    Ok(busy)
}

async fn propose(context: &Context, command: Command) -> Result<(), Error> {
    let operation = Operation { request: new_request(context), command };
    match context.control.propose_anywhere(operation, Instant::now() + PROPOSE_TIMEOUT).await? {
        Ok(_) => Ok(()),
        Err(reject) => Err(reject.into()),
    }
}

#[cfg(test)]
mod tests {
    use quorate_api::v1;
    use quorate_raft::NodeId;

    use super::*;

    #[test]
    fn leaders_take_turns_over_the_nodes() {
        let member = |node| Member { node: NodeId(node), address: String::new() };
        let view = GroupView {
            voters: BTreeSet::from([7, 8, 9]),
            members: BTreeMap::from([(7, member(30)), (8, member(10)), (9, member(20)), (11, member(40))]),
            ..GroupView::default()
        };
        let turns: Vec<_> = (1..=6).filter_map(|shard| turn(&view, ShardId(shard))).collect();
        assert_eq!(turns, [9, 7, 8, 9, 7, 8]);
        assert_eq!(turn(&GroupView::default(), ShardId(1)), None);
    }

    #[test]
    fn only_a_node_that_answers_and_whose_disk_does_is_handed_a_shard() {
        let stalled = |ms| {
            let node = v1::NodeStatus { disk_stalled_ms: ms, ..v1::NodeStatus::default() };
            StatusResponse { nodes: vec![node], ..StatusResponse::default() }
        };
        assert!(can_lead(&Ok(stalled(0))));
        assert!(!can_lead(&Ok(stalled(1_500))));
        assert!(!can_lead(&Err(Error::shutting_down())));
    }
}
