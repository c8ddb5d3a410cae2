//! How a node leaves: refused if it cannot end well, else recorded and carried out by the supervisors.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use quorate_api::v1::LeaveRequest;
use quorate_raft::NodeId;
use quorate_state::Operation;
use quorate_state::control::{Command, Control, ReplicaState};
use tokio::time::{Instant, timeout_at};

use super::formation::parse_id;
use super::plan::majority;
use super::{in_raft, in_state, new_request, report};
use crate::context::Context;
use crate::error::{Error, ErrorReason};

const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call waits for the end of a leave. It goes on by itself after that.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(120);

/// Moves everything off the node and removes it. Asked of any member; asking again waits for the same leave.
///
/// # Errors
/// `NODE_NOT_FOUND`, `WOULD_BREAK_QUORUM` (too few of those that stay can be reached, or the node is the last one),
/// `FEWER_REPLICAS` without the explicit word, and `OUTCOME_UNKNOWN` when the leave goes on after the call's time.
pub async fn leave(context: &Context, request: &LeaveRequest) -> Result<(), Error> {
    let node = parse_id(&request.node_id)
        .map(NodeId)
        .ok_or_else(|| Error::new(ErrorReason::NodeNotFound, format!("{:?} is not a node id", request.node_id)))?;
    if context.control.group().is_none() {
        return Err(context.control.absence());
    }
    let since = context.control.read_barrier(BARRIER_TIMEOUT).await?;
    if context.control.read_since(since, |control| control.member(in_state(node)).is_none())? {
        return Err(Error::new(ErrorReason::NodeNotFound, format!("node {node} is not a member of this cluster")));
    }
    if !has_begun(|| is_leaving(context, node), check_quorums(context, node)).await? {
        let command = Command::StartLeave { node: in_state(node), allow_fewer: request.allow_fewer_replicas };
        let operation = Operation { request: new_request(context), command };
        context.control.propose_anywhere(operation, Instant::now() + PROPOSE_TIMEOUT).await??;
        tracing::info!(%node, "a node begins to leave");
    }
    wait_until_gone(context, node).await
}

/// Whether the node is on its way out, or gone.
fn is_leaving(context: &Context, node: NodeId) -> bool {
    context.control.read(|control| control.member(in_state(node)).is_none_or(|member| member.leaving))
}

/// Whether the leave goes on already. One that has begun is not refused any more, whoever cannot be reached by now: it would go
/// on, and its caller believe that it did not.
async fn has_begun(
    is_leaving: impl Fn() -> bool,
    checked: impl Future<Output = Result<(), Error>>,
) -> Result<bool, Error> {
    if is_leaving() {
        return Ok(true);
    }
    match checked.await {
        Ok(()) => Ok(false),
        Err(_) if is_leaving() => Ok(true),
        Err(error) => Err(error),
    }
}

async fn wait_until_gone(context: &Context, node: NodeId) -> Result<(), Error> {
    let deadline = Instant::now() + LEAVE_TIMEOUT;
    let mut map = context.control.map_changes();
    while context.control.read(|control| control.member(in_state(node)).is_some()) {
        if !matches!(timeout_at(deadline, map.changed()).await, Ok(Ok(()))) {
            let message = format!("node {node} is still leaving; it goes on by itself, see `quorate cluster status`");
            return Err(Error { reason: ErrorReason::OutcomeUnknown, message, ..Error::unknown() });
        }
    }
    Ok(())
}

/// Refuses a leave after which a group would have no majority that can be reached now.
async fn check_quorums(context: &Context, leaver: NodeId) -> Result<(), Error> {
    let members: Vec<NodeId> =
        context.control.read(|control| control.members().map(|member| in_raft(member.node.node)).collect());
    let probes = members.iter().map(|node| async move {
        (*node == context.node || report::fetch(context, *node).await.is_ok()).then_some(*node)
    });
    let reachable: BTreeSet<NodeId> = join_all(probes).await.into_iter().flatten().collect();
    let control_voters: BTreeSet<NodeId> = context.control.group().map_or_else(BTreeSet::new, |group| {
        let view = group.status();
        view.voters.iter().filter_map(|replica| view.members.get(replica)).map(|member| member.node).collect()
    });
    let groups = context.control.read(|control| voters_of_groups(control, control_voters));
    for (name, voters) in groups {
        check_quorum(&name, &voters, leaver, &members, &reachable)?;
    }
    Ok(())
}

fn voters_of_groups(control: &Control, control_voters: BTreeSet<NodeId>) -> Vec<(String, BTreeSet<NodeId>)> {
    let shards = control.shards().map(|shard| {
        let voters = shard.replicas.iter().filter(|replica| replica.state != ReplicaState::Joining);
        (format!("shard {}", shard.shard), voters.map(|replica| in_raft(replica.node)).collect())
    });
    std::iter::once(("control".to_owned(), control_voters)).chain(shards).collect()
}

/// A group must be able to decide now, and those of its voters that stay must be able to decide without the one that
/// leaves. If none stays, somebody must be there to take its place, and the leaver must be there to give.
fn check_quorum(
    name: &str,
    voters: &BTreeSet<NodeId>,
    leaver: NodeId,
    members: &[NodeId],
    reachable: &BTreeSet<NodeId>,
) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::new(ErrorReason::WouldBreakQuorum, why).with("group", name));
    if voters.is_empty() {
        return Ok(());
    }
    let now = voters.intersection(reachable).count();
    if now < majority(voters.len()) {
        return refuse(format!("{name} has no majority now: {now} of its {} voters can be reached", voters.len()));
    }
    let staying: BTreeSet<NodeId> = voters.iter().copied().filter(|node| *node != leaver).collect();
    if staying.is_empty() {
        let heirs = members.iter().filter(|node| **node != leaver && reachable.contains(*node)).count();
        if heirs == 0 {
            return refuse(format!("node {leaver} holds {name} alone and no other node can be reached to take it"));
        }
        return Ok(());
    }
    let after = staying.intersection(reachable).count();
    if after < majority(staying.len()) {
        return refuse(format!(
            "without node {leaver} only {after} of {} voters of {name} can be reached, which is no majority",
            staying.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chaos suite found it (`replace`): a leave whose caller had lost the first answer was refused when it was asked for
    /// again, and went on.
    #[tokio::test]
    async fn a_leave_that_has_begun_is_not_refused_any_more() {
        use std::cell::Cell;
        let refused = || Error::new(ErrorReason::WouldBreakQuorum, "too few");
        let unasked = async { unreachable!("it goes on whatever is checked") };
        assert!(has_begun(|| true, unasked).await.expect("it has begun"));
        assert!(!has_begun(|| false, async { Ok(()) }).await.expect("it may begin"));
        let error = has_begun(|| false, async { Err(refused()) }).await.expect_err("it would break a quorum");
        assert_eq!(error.reason, ErrorReason::WouldBreakQuorum);
        let leaving = Cell::new(false);
        let meanwhile = async {
            leaving.set(true);
            Err(refused())
        };
        assert!(has_begun(|| leaving.get(), meanwhile).await.expect("another call has begun it"));
    }

    fn set(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().map(|node| NodeId(*node)).collect()
    }

    fn check(voters: &[u64], leaver: u64, members: &[u64], reachable: &[u64]) -> Result<(), ErrorReason> {
        let members: Vec<NodeId> = members.iter().map(|node| NodeId(*node)).collect();
        check_quorum("control", &set(voters), NodeId(leaver), &members, &set(reachable)).map_err(|error| error.reason)
    }

    #[test]
    fn a_dead_node_may_leave_and_a_live_one_may_not_while_another_is_dead() {
        assert_eq!(check(&[1, 2, 3], 3, &[1, 2, 3], &[1, 2]), Ok(()));
        assert_eq!(check(&[1, 2, 3], 2, &[1, 2, 3], &[1, 2]), Err(ErrorReason::WouldBreakQuorum));
        assert_eq!(check(&[1, 2, 3], 2, &[1, 2, 3], &[1, 2, 3]), Ok(()));
    }

    #[test]
    fn without_a_majority_nobody_leaves() {
        assert_eq!(check(&[1, 2, 3], 3, &[1, 2, 3], &[1]), Err(ErrorReason::WouldBreakQuorum));
    }

    #[test]
    fn a_single_voter_needs_an_heir() {
        assert_eq!(check(&[1], 1, &[1, 2], &[1, 2]), Ok(()));
        assert_eq!(check(&[1], 1, &[1, 2], &[1]), Err(ErrorReason::WouldBreakQuorum));
        assert_eq!(check(&[1], 2, &[1, 2], &[1, 2]), Ok(()));
    }
}
