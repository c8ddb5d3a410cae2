//! Members and voters of the control group, brought in line with the members of the cluster by its leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_raft::{Group, GroupView, Member, ReplicaId};
use quorate_state::Operation;
use quorate_state::control::{Command, MemberRecord};
use tokio::time::{Instant, timeout};

use super::in_raft;
use super::plan::{Step, next_step, wanted_voters};
use crate::context::Context;
use crate::error::Error;
use crate::limits::CONTROL_VOTERS;

const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a removed member may take to read about its removal before it is cut off.
const FAREWELL: Duration = Duration::from_secs(5);

/// Removed members that are still told the log, so that they read of their removal: since when, and up to which position.
#[derive(Default)]
pub struct Voters {
    farewells: Mutex<BTreeMap<ReplicaId, (Instant, u64)>>,
}

impl Voters {
    /// Does one step. Says whether there was anything to do.
    pub async fn reconcile(&self, context: &Context, group: &Group) -> Result<bool, Error> {
        match timeout(STEP_TIMEOUT, self.step(context, group)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                tracing::warn!("a step of control's membership took too long; trying again");
                Ok(true)
            }
        }
    }

    async fn step(&self, context: &Context, group: &Group) -> Result<bool, Error> {
        let members: Vec<MemberRecord> = context.control.read(|control| control.members().cloned().collect());
        let view = group.status();
        if members.is_empty() {
            return Ok(false);
        }
        if add_members(&members, &view, group).await? {
            return Ok(true);
        }
        let mut eligible: Vec<ReplicaId> =
            members.iter().filter(|member| !member.leaving).map(|member| member.control_replica).collect();
        eligible.sort_unstable();
        let wanted = wanted_voters(&view, group.replica(), &eligible, CONTROL_VOTERS);
        match next_step(&view, group.replica(), &wanted) {
            Step::Change(voters) => {
                tracing::info!(?voters, "changing the voters of control");
                group.change_voters(voters, true).await?;
                return Ok(true);
            }
            Step::Transfer(heir) => {
                tracing::info!(heir, "handing over control, because this node is leaving");
                group.transfer_leader(heir).await?;
                return Ok(true);
            }
            Step::Nothing => {}
        }
        let removed = remove_members(context, &members, &view).await?;
        let cut_off = self.cut_off(&members, &view, group).await?;
        let growing = eligible.len().min(CONTROL_VOTERS) >= 3 && view.voters.len() < 3;
        Ok(removed || cut_off || view.joint || growing)
    }

    /// Takes replicas out of the group whose members are gone, once they have read so or had the time to.
    async fn cut_off(&self, members: &[MemberRecord], view: &GroupView, group: &Group) -> Result<bool, Error> {
        let gone: BTreeSet<ReplicaId> = view
            .members
            .keys()
            .copied()
            .filter(|replica| !view.voters.contains(replica))
            .filter(|replica| members.iter().all(|member| member.control_replica != *replica))
            .collect();
        let due: BTreeSet<ReplicaId> = {
            let mut farewells = self.farewells.lock();
            farewells.retain(|replica, _| gone.contains(replica));
            // The node of a replica that was damaged is a member under another one, and the old one reads nothing any more.
            let replaced = |replica: &ReplicaId| {
                let node = view.members.get(replica).map(|member| member.node);
                members.iter().any(|member| Some(in_raft(member.node.node)) == node)
            };
            let is_due = |replica: &ReplicaId| {
                if replaced(replica) {
                    return true;
                }
                let (since, position) = *farewells.entry(*replica).or_insert((Instant::now(), view.last_position));
                let has_read = view.matched.get(replica).is_some_and(|matched| *matched > position);
                has_read || since.elapsed() >= FAREWELL
            };
            gone.iter().copied().filter(is_due).collect()
        };
        if !due.is_empty() {
            group.remove_learners(due).await?;
        }
        Ok(!gone.is_empty())
    }
}

/// Makes every member a member of the group, at least as a learner, under its address of today.
async fn add_members(members: &[MemberRecord], view: &GroupView, group: &Group) -> Result<bool, Error> {
    let mut busy = false;
    for member in members {
        let address = &member.node.peer_address;
        if view.members.get(&member.control_replica).is_none_or(|known| known.address != *address) {
            let node = in_raft(member.node.node);
            tracing::info!(%node, %address, "taking a member into control");
            group.add_learner(member.control_replica, Member { node, address: address.clone() }).await?;
            busy = true;
        }
    }
    Ok(busy)
}

/// Ends the leave of members that hold nothing any more.
async fn remove_members(context: &Context, members: &[MemberRecord], view: &GroupView) -> Result<bool, Error> {
    let leaving: Vec<&MemberRecord> = members.iter().filter(|member| member.leaving).collect();
    for member in &leaving {
        let node = member.node.node;
        let holds = context.control.read(|control| control.shards().any(|shard| shard.replica_on(node).is_some()));
        if holds || view.voters.contains(&member.control_replica) {
            continue;
        }
        tracing::info!(%node, "a member has given everything away and is removed");
        for reply in context.control.propose(vec![Operation::new(Command::RemoveMember { node })]).await? {
            if let Err(reject) = reply {
                tracing::debug!(%reject, "a removal was refused; trying again");
            }
        }
    }
    Ok(!leaving.is_empty())
}
