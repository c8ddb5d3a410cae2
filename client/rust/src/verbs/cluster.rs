//! Forming, growing, shrinking and describing a cluster.

use std::time::Duration;

use quorate_api::v1::{self, ErrorReason};

use crate::call::{Plan, call, call_telling, deadline_in, timed};
use crate::client::{Client, cluster};
use crate::error::Error;
use crate::nodes::Route;

/// Joining and leaving move data; they get at least this long.
const LONG: Duration = Duration::from_secs(120);

impl Client {
    /// Makes a new cluster of the first node that this client was given. `shards` 0 means the default, 8.
    ///
    /// # Errors
    /// `ALREADY_INITIALIZED`. A lost answer is not retried: [`Error::OutcomeUnknown`], see the status.
    pub async fn cluster_init(&self, shards: u32) -> Result<v1::InitResponse, Error> {
        let plan = Plan { once: true, ..self.long(Route::First) };
        call(&self.shared.nodes, plan, |channel, limit| async move {
            cluster(channel).init(timed(v1::InitRequest { shards }, limit)).await
        })
        .await
    }

    /// Joins the first node that this client was given to the cluster that `seed` (a client address) belongs to.
    /// Idempotent.
    ///
    /// # Errors
    /// `OTHER_CLUSTER`; [`Error::OutcomeUnknown`] after a lost answer: ask again.
    pub async fn cluster_join(&self, seed: &str) -> Result<v1::JoinResponse, Error> {
        call(&self.shared.nodes, self.long(Route::First), |channel, limit| {
            let request = v1::JoinRequest { seed: seed.to_owned() };
            async move { cluster(channel).join(timed(request, limit)).await }
        })
        .await
    }

    /// Moves shards and votes off a node and removes it from the cluster. Idempotent: asked again, it waits for the same leave.
    ///
    /// # Errors
    /// `NODE_NOT_FOUND`, `WOULD_BREAK_QUORUM`, `FEWER_REPLICAS`; [`Error::OutcomeUnknown`] after a lost answer: ask again, or
    /// look at the status.
    pub async fn cluster_leave(&self, node_id: &str, allow_fewer_replicas: bool) -> Result<(), Error> {
        let request = v1::LeaveRequest { node_id: node_id.to_owned(), allow_fewer_replicas };
        let left = call_telling(&self.shared.nodes, self.long(Route::Leader), |channel, limit| {
            let request = request.clone();
            async move { cluster(channel).leave(timed(request, limit)).await }
        });
        match left.await {
            Ok(v1::LeaveResponse {}) => Ok(()),
            // After a lost answer "no such node" is what success looks like.
            Err(failure) if failure.maybe_applied && failure.reason == Some(ErrorReason::NodeNotFound) => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    /// Describes the cluster as the answering node sees it.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if no node answers.
    pub async fn cluster_status(&self) -> Result<v1::StatusResponse, Error> {
        call(&self.shared.nodes, self.read(Route::Leader), |channel, limit| async move {
            cluster(channel).status(timed(v1::StatusRequest {}, limit)).await
        })
        .await
    }

    fn long(&self, route: Route) -> Plan {
        let deadline = deadline_in(self.deadline().max(LONG));
        // A change of the members needs no id to be the same when it is asked for again, and its outcome is open as that of any
        // other.
        Plan { deadline, patient: true, request_id: Some(String::new()), ..self.read(route) }
    }
}
