//! This node as a member: keeps its record right, and notices when it is a member no longer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quorate_raft::NodeId;
use quorate_state::Operation;
use quorate_state::control::Command;
use tokio::time::Instant;

use super::{in_raft, in_state, new_request, own_record};
use crate::context::Context;
use crate::control::ControlHandle;
use crate::error::Error;
use crate::peers::{CallHandler, kind};

const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const BARRIER_TIMEOUT: Duration = Duration::from_secs(1);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Without a leader, or without having read that it is a member, for this long the node asks whether it was removed while it
/// could not listen.
const ASK_AFTER: Duration = Duration::from_secs(5);

const MEMBER: &[u8] = b"\x01";
const NOT_A_MEMBER: &[u8] = b"\x00";

/// What this process knows about its own membership.
pub struct Presence {
    seen_as_member: bool,
    /// Without a leader, or without having read that it is a member.
    lonely_since: Option<Instant>,
}

impl Presence {
    /// Nothing is known yet.
    pub fn new() -> Presence {
        Presence { seen_as_member: false, lonely_since: None }
    }

    /// Whether this node was a member and is one no longer.
    pub async fn is_removed(&mut self, context: &Context) -> bool {
        let me = in_state(context.node);
        if context.control.read(|control| control.member(me).is_some()) {
            self.seen_as_member = true;
        } else if self.seen_as_member {
            return true;
        }
        // One that was removed, and is started again, finds in its state that others are members, and in its log a leader that
        // does not speak to it any more.
        if self.seen_as_member && context.control.leader().is_some() {
            self.lonely_since = None;
            return false;
        }
        let since = *self.lonely_since.get_or_insert_with(Instant::now);
        if since.elapsed() < ASK_AFTER {
            return false;
        }
        self.lonely_since = Some(Instant::now());
        self.ask_others(context).await
    }

    /// Asks the members that this node knows. One that can prove the opposite is enough.
    async fn ask_others(&self, context: &Context) -> bool {
        let me = in_state(context.node);
        let others: Vec<NodeId> = context.control.read(|control| {
            control.members().map(|member| member.node.node).filter(|node| *node != me).map(in_raft).collect()
        });
        for other in others {
            let answer = context.peers.call(other, kind::CLUSTER, Bytes::new(), ASK_TIMEOUT).await;
            if answer.is_ok_and(|answer| answer == NOT_A_MEMBER) {
                return true;
            }
        }
        false
    }

    /// Tells the cluster when this node's addresses or its label have changed.
    pub async fn announce(&self, context: &Context) -> Result<bool, Error> {
        let own = own_record(context);
        let known = context.control.read(|control| control.member(own.node).map(|member| member.node.clone()));
        if known.is_none_or(|known| known == own) || context.control.leader().is_none() {
            return Ok(false);
        }
        let operation = Operation { request: new_request(context), command: Command::AddMember { node: own } };
        context.control.propose_anywhere(operation, Instant::now() + PROPOSE_TIMEOUT).await??;
        Ok(true)
    }
}

impl Default for Presence {
    fn default() -> Self {
        Presence::new()
    }
}

/// Tells a node whether it is a member, by a linearizable read.
pub struct Membership {
    control: ControlHandle,
}

impl Membership {
    /// Answers from `control`.
    pub fn new(control: ControlHandle) -> Arc<Membership> {
        Arc::new(Membership { control })
    }
}

#[async_trait]
impl CallHandler for Membership {
    async fn call(&self, from: NodeId, _body: Bytes) -> Result<Bytes, Error> {
        let since = self.control.read_barrier(BARRIER_TIMEOUT).await?;
        let member = self.control.read_since(since, |control| control.member(in_state(from)).is_some())?;
        Ok(Bytes::from_static(if member { MEMBER } else { NOT_A_MEMBER }))
    }
}
