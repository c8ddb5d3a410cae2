//! How a node gets its replica of control back when its disk has lost or damaged it.
//!
//! The cluster knows a member by its node id and its replica of control by a replica id that is never used again: who lost
//! a log may have voted and acknowledged entries that it no longer has, so it comes back as somebody else. The steps, each
//! of which a crash may follow:
//!
//! 1. The replica is quarantined, durably, and its group does not run.
//! 2. Any member is asked for another replica id, which it mints through the control log. That needs a majority of control
//!    without this node, so where this node holds the last replica nothing is ever deleted.
//! 3. With the new id in hand the old log and state are deleted. A crash here leaves nothing, and the node asks again, for
//!    whatever id the cluster has given it last: that one is not used either.
//! 4. The group is started under the new id, as a learner that receives everything from the leader, and becomes a voter
//!    when it has caught up ([`super::voters`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use quorate_api::v1::NodeStatus;
use quorate_raft::{ClusterId, GroupId, GroupView, NodeId, ReplicaId};
use quorate_state::control::{Command, Control, Reply};
use quorate_state::{Operation, RequestId};
use tokio::time::Instant;

use super::formation::{Formation, parse_id, unusable};
use super::plan::largest_odd;
use super::{in_state, new_request};
use crate::context::Context;
use crate::control::ControlHandle;
use crate::error::{Error, ErrorReason};
use crate::limits::CONTROL_VOTERS;
use crate::peers::{CallHandler, kind};
use crate::quarantine::{Case, Stage};

/// How long one member may take to answer with a new replica id.
const ASK_TIMEOUT: Duration = Duration::from_secs(4);
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(3);
const BARRIER_TIMEOUT: Duration = Duration::from_secs(1);

impl Formation {
    /// Does the next step towards a replica of control in full service. Says whether there was anything to do that a next
    /// round may go on with at once.
    pub async fn heal(&self) -> bool {
        // An init or a join that is under way comes back to the same state by itself.
        let Ok(_alone) = self.one_at_a_time.try_lock() else { return false };
        let Some(case) = self.context.quarantine.case(GroupId::CONTROL) else {
            return self.notice_a_successor().await;
        };
        match case.stage {
            Stage::Halted => false,
            Stage::Found => self.settle(&case).await,
            Stage::Quarantined => match self.succeed(&case).await {
                Ok(()) => true,
                Err(error) => {
                    self.context.quarantine.held_up(GroupId::CONTROL, Some(error.message));
                    false
                }
            },
            Stage::Succeeded(successor) => self.follow(successor).await,
        }
    }

    /// Takes this node's replica of control out of service at once and for good: its state is not that of the majority.
    pub async fn condemn(&self, replica: ReplicaId, reason: &str) {
        self.context.control.detach_replica(replica);
        self.context.quarantine.found(GroupId::CONTROL, replica, reason);
        if let Some(case) = self.context.quarantine.case(GroupId::CONTROL).filter(|case| case.stage == Stage::Found) {
            self.settle(&case).await;
        }
    }

    /// Stops control here, because its replicas disagree without a majority. Nothing is deleted.
    pub async fn halt(&self, replica: ReplicaId, reason: &str) {
        self.context.quarantine.halted(GroupId::CONTROL, replica, reason);
        self.context.control.detach_replica(replica);
        self.context.groups.stop_group(GroupId::CONTROL).await;
    }

    /// The same as [`Formation::heal`] for a node that does not know the members any more: `nodes` are those that the seed
    /// has named.
    pub(super) async fn heal_through(&self, cluster: ClusterId, nodes: &[NodeStatus]) -> Result<(), Error> {
        let named = nodes.iter().filter_map(|node| Some((NodeId(parse_id(&node.node_id)?), node.peer_address.clone())));
        self.context.contacts.learn(cluster, named.collect());
        if let Some(case) = self.context.quarantine.case(GroupId::CONTROL) {
            match case.stage {
                Stage::Found => drop(self.settle(&case).await),
                Stage::Quarantined => self.succeed(&case).await?,
                Stage::Succeeded(_) | Stage::Halted => {}
            }
        }
        self.wait_for_membership().await
    }

    /// The cluster may have given this node another replica of control while it did not listen.
    async fn notice_a_successor(&self) -> bool {
        let Some(group) = self.context.control.group() else { return false };
        let me = in_state(self.context.node);
        let given = self.context.control.read(|control| control.member(me).map(|member| member.control_replica));
        match given {
            // While a new replica reads the log it sees the ids before its own.
            Some(given) if given > group.replica() => {
                self.condemn(group.replica(), "the cluster has given its place to another replica").await;
                true
            }
            _ => false,
        }
    }

    /// Makes a quarantine durable. False if that did not go through: it is for the next round, after a pause.
    async fn settle(&self, case: &Case) -> bool {
        let Some(replica) = case.replica else { return false };
        self.context.control.detach_replica(replica);
        match self.context.groups.quarantine(GroupId::CONTROL, replica, &case.reason).await {
            Ok(()) => {
                self.context.quarantine.settled(GroupId::CONTROL, replica);
                true
            }
            Err(error) => {
                tracing::error!(%error, "a quarantine is not durable yet; trying again");
                false
            }
        }
    }

    /// Steps 2 to 4.
    async fn succeed(&self, case: &Case) -> Result<(), Error> {
        #[cfg(feature = "planted")]
        if let Some(same) = case.replica.filter(|_| crate::planted::is("reused-replica")) {
            self.context.groups.destroy_group(GroupId::CONTROL).await.map_err(unusable)?;
            self.context.quarantine.dropped(GroupId::CONTROL);
            self.begin(same).await;
            return Ok(());
        }
        let successor = self.ask_for_successor(case.replica).await?;
        if case.replica == Some(successor) {
            return Err(Error::internal("the cluster has answered with the id of the replica that is damaged"));
        }
        self.context.groups.destroy_group(GroupId::CONTROL).await.map_err(unusable)?;
        self.context.quarantine.succeeded(GroupId::CONTROL, successor);
        self.begin(successor).await;
        Ok(())
    }

    async fn begin(&self, successor: ReplicaId) {
        match self.start_control(successor).await {
            Ok(_) => {}
            Err(error) if error.is_damage() => {
                self.context.quarantine.found(GroupId::CONTROL, successor, &error.to_string());
            }
            Err(error) => tracing::error!(%error, "the new replica of control does not start; trying again"),
        }
    }

    /// Asks the members in turn, all under one request id, so that they mint one replica id between them.
    async fn ask_for_successor(&self, lost: Option<ReplicaId>) -> Result<ReplicaId, Error> {
        let here = self.context.node;
        let known = self.context.contacts.known();
        let has_contacts = known.contains_key(&here);
        let request = self.request_for(lost);
        let mut frame = BytesMut::with_capacity(24);
        frame.put_u128_le(request.0);
        frame.put_u64_le(lost.unwrap_or(0));
        let frame = frame.freeze();
        let mut last = None;
        for (node, address) in known.into_iter().filter(|(node, _)| *node != here) {
            let call =
                self.context.peers.call_at(node, &address, kind::CONTROL_REPLICA, frame.clone(), ASK_TIMEOUT).await;
            match call {
                Ok(mut answer) => return answer.try_get_u64_le().map_err(Error::internal),
                Err(error) if error.reason == ErrorReason::NodeNotFound => return Err(removed()),
                Err(error) => last = Some(format!("node {node} at {address}: {}", error.message)),
            }
        }
        Err(nobody_helps(has_contacts, last))
    }

    /// The request under which a successor of `lost` is asked for.
    fn request_for(&self, lost: Option<ReplicaId>) -> RequestId {
        let mut asked = self.asked.lock();
        match *asked {
            Some((replica, request)) if replica == lost => request,
            _ => {
                let request = new_request(&self.context).unwrap_or_default();
                *asked = Some((lost, request));
                request
            }
        }
    }

    /// Sees to it that the successor runs, until it is in full service.
    async fn follow(&self, successor: ReplicaId) -> bool {
        // What is lost after this is another case, and another request.
        *self.asked.lock() = None;
        let Some(group) = self.context.control.group() else {
            self.begin(successor).await;
            return true;
        };
        let view = group.status();
        let serves =
            self.context.control.read(|control| is_in_full_service(control, &view, self.context.node, successor));
        if serves {
            self.context.quarantine.healed(GroupId::CONTROL);
        }
        true
    }
}

/// Whether a new replica of control is all that it is to be: known as the node's, and a voter unless there are enough.
fn is_in_full_service(control: &Control, view: &GroupView, node: NodeId, replica: ReplicaId) -> bool {
    let known = control.member(in_state(node)).is_some_and(|member| member.control_replica == replica);
    let current: BTreeSet<ReplicaId> = control.members().map(|member| member.control_replica).collect();
    let staying = control.members().filter(|member| !member.leaving).count();
    let enough = view.voters.len() >= largest_odd(staying.min(CONTROL_VOTERS)) && view.voters.is_subset(&current);
    known && !view.joint && (view.voters.contains(&replica) || enough)
}

fn removed() -> Error {
    Error::new(
        ErrorReason::NodeNotFound,
        "this node was removed from its cluster while its replica of control was out of service; start it on an empty \
         data directory to join again",
    )
}

fn nobody_helps(has_contacts: bool, last: Option<String>) -> Error {
    let message = match last {
        Some(last) => format!(
            "no member of the cluster could give this node another replica of control (last asked: {last}); nothing is \
             deleted here. Start the other nodes: a majority of control without this one is needed. If all of them have \
             other addresses now, run `quorate cluster join SEED` on this node with the address of any of them"
        ),
        None if has_contacts => "this node holds the only replica of control, so there is nothing to heal it from and \
                                 nothing is deleted here: restore the data directory from a backup"
            .to_owned(),
        None => {
            "this node does not know the other members of its cluster any more: run `quorate cluster join SEED` on it \
                 with the address of any of them"
                .to_owned()
        }
    };
    Error { message, ..Error::control_away() }
}

/// Gives a node another replica of control, by a proposal.
pub struct ControlReplicas {
    control: ControlHandle,
}

impl ControlReplicas {
    /// Proposes through `control`.
    pub fn new(context: &Context) -> Arc<ControlReplicas> {
        Arc::new(ControlReplicas { control: context.control.clone() })
    }

    async fn current(&self, node: NodeId) -> Result<ReplicaId, Error> {
        let since = self.control.read_barrier(BARRIER_TIMEOUT).await?;
        let found = self
            .control
            .read_since(since, |control| control.member(in_state(node)).map(|member| member.control_replica))?;
        found.ok_or_else(|| {
            Error::new(ErrorReason::NodeNotFound, format!("node {node} is not a member of this cluster"))
        })
    }
}

#[async_trait]
impl CallHandler for ControlReplicas {
    async fn call(&self, from: NodeId, mut body: Bytes) -> Result<Bytes, Error> {
        let request = RequestId(body.try_get_u128_le().map_err(Error::internal)?);
        let replica = match body.try_get_u64_le().map_err(Error::internal)? {
            0 => self.current(from).await?,
            known => known,
        };
        let command = Command::ReplaceControlReplica { node: in_state(from), replica };
        let operation = Operation { request: Some(request), command };
        match self.control.propose_anywhere(operation, Instant::now() + PROPOSE_TIMEOUT).await?? {
            Reply::Member { control_replica } => Ok(Bytes::copy_from_slice(&control_replica.to_le_bytes())),
            other => Err(Error::internal(format!("a replica of control was replaced with the reply {other:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_state::control::NodeRecord;
    use quorate_state::{Entry, LogTime, Position};

    use super::*;
    use crate::testing::{CONTROL_REPLICA, on_stage};

    fn control(members: u64) -> Control {
        let record = |node| NodeRecord {
            node: quorate_state::NodeId(node),
            name: String::new(),
            peer_address: "h:1".into(),
            client_address: "h:2".into(),
            http_address: String::new(),
        };
        let mut commands = vec![Command::InitCluster { cluster: 1, shards: 1, node: record(1), control_replica: 1 }];
        commands.extend((2..=members).map(|node| Command::AddMember { node: record(node) }));
        commands.push(Command::ReplaceControlReplica { node: quorate_state::NodeId(2), replica: 2 });
        let operations = commands.into_iter().map(Operation::new).collect();
        let mut control = Control::new();
        control.apply(Position(1), Entry { time: LogTime(1), operations }).expect("the first entry");
        control
    }

    fn view(voters: &[ReplicaId]) -> GroupView {
        GroupView { voters: voters.iter().copied().collect(), ..GroupView::default() }
    }

    #[test]
    fn a_successor_serves_fully_when_it_votes() {
        let control = control(3);
        let full = |voters: &[u64]| is_in_full_service(&control, &view(voters), NodeId(2), 4);
        assert!(full(&[1, 3, 4]));
        assert!(!full(&[1, 2, 3]), "the lost one is still counted");
        assert!(!full(&[1]), "more are to vote");
        let joint = GroupView { joint: true, ..view(&[1, 2, 3, 4]) };
        assert!(!is_in_full_service(&control, &joint, NodeId(2), 4));
        assert!(!is_in_full_service(&Control::new(), &view(&[1, 3, 4]), NodeId(2), 4), "it has read nothing yet");
    }

    #[test]
    fn where_others_are_enough_it_serves_as_a_learner() {
        let two = control(2);
        assert!(is_in_full_service(&two, &view(&[1]), NodeId(2), 3));
        let seven = control(7);
        assert!(is_in_full_service(&seven, &view(&[1, 3, 4, 5, 6]), NodeId(2), 8));
    }

    /// Otherwise the supervisor would try again at once, and again, for as long as the disk refuses.
    #[tokio::test(start_paused = true)]
    async fn a_quarantine_of_control_that_did_not_go_through_is_for_the_next_round() {
        on_stage(async |stage| {
            let formation = Formation::new(stage.context.clone());
            let quarantine = &stage.context.quarantine;
            let stage_of = || quarantine.case(GroupId::CONTROL).map(|case| case.stage);
            quarantine.found(GroupId::CONTROL, CONTROL_REPLICA, "bit-rot");
            assert!(!formation.heal().await, "there is no such replica");
            assert_eq!(stage_of(), Some(Stage::Found));
            stage.start_control().await;
            assert!(formation.heal().await, "there is");
            assert_eq!(stage_of(), Some(Stage::Quarantined));
            assert!(stage.context.control.group().is_none(), "it serves no more");
            assert!(!formation.heal().await, "nobody is there who could give it a successor");
        })
        .await;
    }

    #[tokio::test]
    async fn a_case_that_does_not_say_which_replica_it_was_is_not_settled() {
        on_stage(async |stage| {
            stage.start_control().await;
            stage.context.quarantine.known(GroupId::CONTROL, None, "its log is gone");
            let case = stage.context.quarantine.case(GroupId::CONTROL).expect("open");
            assert!(!Formation::new(stage.context.clone()).settle(&case).await);
            assert!(stage.context.control.group().is_some(), "which one is meant nobody can say");
        })
        .await;
    }
}
