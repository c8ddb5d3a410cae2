//! Calls on the replicas that this node hosts, whether they come from here or from another node.

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;
use quorate_api::v1;
use quorate_raft::{Group, NodeId};
use quorate_state::shard::{Command, PointReject, Reply, Version};
use quorate_state::{Operation, ShardId, codec};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

use super::routes::unavailable;
use super::wire::{Freshness, GetAnswer, SearchAnswer, ShardCall, StatsAnswer, What, WriteAnswer};
use super::{Inner, Memory, Running};
use crate::error::{Error, ErrorReason};
use crate::peers::CallHandler;

#[async_trait]
impl CallHandler for Memory {
    async fn call(&self, _from: NodeId, body: Bytes) -> Result<Bytes, Error> {
        let call = ShardCall::decode(body).map_err(|error| Error::internal(format!("no shard call: {error}")))?;
        let shard = ShardId(call.shard);
        let end = Instant::now() + Duration::from_millis(call.budget_ms);
        let what = call.what.ok_or_else(|| Error::internal("a shard call that asks nothing"))?;
        // A caller that has given up does not wait for the answer, so the work need not be finished for it.
        timeout_at(end, self.inner.answer_here(shard, what, end)).await.unwrap_or_else(|_| Err(Error::unknown()))
    }
}

impl Inner {
    /// Answers a call from this node's replica.
    pub(super) async fn answer_here(&self, shard: ShardId, what: What, end: Instant) -> Result<Bytes, Error> {
        let answer = match what {
            What::Write(operation) => {
                let operation = codec::decode(&operation).map_err(|error| Error::internal(error.to_string()))?;
                self.propose_here(shard, operation).await?.encode_to_vec()
            }
            What::Get(call) => {
                let replica = self.fresh(shard, call.freshness, end).await?.replica;
                let points = self.pool.run(move || replica.get(&call)).await??;
                GetAnswer { points }.encode_to_vec()
            }
            What::Search(call) => {
                let replica = self.fresh(shard, call.freshness, end).await?.replica;
                let hits = self.pool.run(move || replica.search(&call)).await??;
                SearchAnswer { hits }.encode_to_vec()
            }
            What::Stats(_) => StatsAnswer { collections: self.hosted(shard)?.replica.stats() }.encode_to_vec(),
        };
        Ok(answer.into())
    }

    /// The replica on this node, once it is as fresh as asked.
    async fn fresh(&self, shard: ShardId, freshness: Freshness, end: Instant) -> Result<Running, Error> {
        let running = self.hosted(shard)?;
        let left = || end.saturating_duration_since(Instant::now());
        match freshness.consistency() {
            v1::Consistency::Any => {}
            v1::Consistency::Session => running.group.wait_applied(freshness.position, left()).await?,
            v1::Consistency::Linearizable | v1::Consistency::Unspecified => {
                let position = running.group.read_position(left()).await?;
                running.group.wait_applied(position, left()).await?;
            }
        }
        Ok(running)
    }

    /// Proposes on this node, which must lead the shard.
    pub(super) async fn propose_here(
        &self,
        shard: ShardId,
        operation: Operation<Command>,
    ) -> Result<WriteAnswer, Error> {
        let running = self.hosted(shard)?;
        let mut replies = running.proposer.propose(vec![operation]).await?;
        let reply = replies.pop().ok_or_else(|| Error::internal("an operation without a reply"))?;
        let reply = reply.map_err(|reject| match Error::from(reject) {
            // The route said that the collection is here, so this shard has not heard of it yet, or no longer has it.
            error if error.reason == ErrorReason::CollectionNotFound => {
                Error { reason: ErrorReason::StaleRoute, ..error }.with("shard", shard.0)
            }
            error => error,
        })?;
        Ok(write_answer(reply, &running.group))
    }

    fn hosted(&self, shard: ShardId) -> Result<Running, Error> {
        self.running(shard).ok_or_else(|| unavailable(shard, "no replica of it runs on this node"))
    }
}

impl Memory {
    /// Takes calls of other nodes.
    pub(super) fn listen(self: &Arc<Self>) {
        let handler: Arc<dyn CallHandler> = self.clone();
        self.inner.context.dispatch.on_call(crate::peers::kind::SHARD_CALL, handler);
    }
}

fn write_answer(reply: Reply, group: &Group) -> WriteAnswer {
    // Replies come after the entry was applied here, so what is applied now covers it.
    let position = group.applied();
    match reply {
        Reply::Upserted(points) => {
            WriteAnswer { position, outcomes: points.into_iter().map(outcome).collect(), existed: Vec::new() }
        }
        Reply::Deleted { existed } => WriteAnswer { position, outcomes: Vec::new(), existed },
        Reply::Done => WriteAnswer { position, outcomes: Vec::new(), existed: Vec::new() },
    }
}

fn outcome(point: Result<Version, PointReject>) -> v1::WriteOutcome {
    match point {
        Ok(Version(version)) => v1::WriteOutcome { version, error: None },
        Err(reject) => v1::WriteOutcome { version: 0, error: Some(point_error(reject).to_wire()) },
    }
}

fn point_error(reject: PointReject) -> Error {
    let message = reject.to_string();
    match reject {
        PointReject::VersionConflict { actual } => {
            Error::new(ErrorReason::VersionConflict, message).with("actual", actual)
        }
        PointReject::WrongDimension { expected, actual } => {
            Error::new(ErrorReason::WrongDimension, message).with("expected", expected).with("actual", actual)
        }
        PointReject::NotFinite { at } => Error::new(ErrorReason::NotFinite, message).with("component", at),
        PointReject::OutOfBounds { .. } => Error::new(ErrorReason::InvalidArgument, message),
    }
}
