//! One unary call: pick a node, send, follow hints, retry what is safe, until the deadline.
//!
//! Every mutation carries a request id and the same one on every try, so sending again is always safe. What must be
//! kept apart is only what to say at the end, be it the deadline or a refusal: if no try can have been applied the call
//! failed, else its outcome is unknown.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use quorate_api::v1::ErrorReason;
use quorate_api::{ApiError, limits};
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::backoff::{Backoff, jittered};
use crate::error::Error;
use crate::nodes::{Address, Nodes, Route};

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const MOST_BACKOFF: Duration = Duration::from_millis(200);
/// Hints followed without a pause. Two nodes that name each other while they elect would else spin.
const HOPS: u32 = 3;
/// One try gets half of what is left, but at least this: a node that swallows a call must not eat the whole deadline.
const LEAST_TRY: Duration = Duration::from_secs(3);

/// How a call is sent and what its loss means.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) route: Route,
    /// The id of a mutation; `None` for a read, whose loss changes nothing.
    pub(crate) request_id: Option<String>,
    pub(crate) deadline: Instant,
    /// One try may take until the deadline (waiting, joining).
    pub(crate) patient: bool,
    /// A lost answer must not lead to a second try: the call has no request id and is no read.
    pub(crate) once: bool,
}

impl Plan {
    pub(crate) fn read(route: Route, deadline: Instant) -> Self {
        Self { route, request_id: None, deadline, patient: false, once: false }
    }

    pub(crate) fn write(request_id: &str, deadline: Instant) -> Self {
        let request_id = Some(request_id.to_owned());
        Self { route: Route::Leader, request_id, deadline, patient: false, once: false }
    }
}

/// What the tries so far have shown.
struct Tries {
    backoff: Backoff,
    avoid: Option<Address>,
    hops: u32,
    /// The nodes that belong to no cluster.
    strangers: HashSet<Address>,
    maybe_applied: bool,
    last: String,
    refusal: Option<ApiError>,
}

/// A request with the time that is left, so that the node gives up when the caller does.
pub(crate) fn timed<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// Sends until there is an answer, a refusal that a retry cannot change, or the deadline.
pub(crate) async fn call<T, F, Fut>(nodes: &Nodes, plan: Plan, send: F) -> Result<T, Error>
where
    F: Fn(Channel, Duration) -> Fut,
    Fut: Future<Output = Result<Response<T>, Status>>,
{
    call_telling(nodes, plan, send).await.map_err(|failure| failure.error)
}

/// A failed call, and whether one of its tries may have been applied.
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) maybe_applied: bool,
    /// The reason of the last refusal by a node, if there was one.
    pub(crate) reason: Option<ErrorReason>,
}

/// As [`call`], for a verb whose refusal means something else after a lost answer.
pub(crate) async fn call_telling<T, F, Fut>(nodes: &Nodes, plan: Plan, send: F) -> Result<T, Failure>
where
    F: Fn(Channel, Duration) -> Fut,
    Fut: Future<Output = Result<Response<T>, Status>>,
{
    let mut tries = Tries {
        backoff: Backoff::new(FIRST_BACKOFF, MOST_BACKOFF),
        avoid: None,
        hops: 0,
        strangers: HashSet::new(),
        maybe_applied: false,
        last: "nothing was tried".into(),
        refusal: None,
    };
    loop {
        let now = Instant::now();
        if now >= plan.deadline {
            return Err(tries.failure(tries.at_the_deadline(nodes, &plan)));
        }
        let address = nodes.pick(plan.route, tries.avoid.as_ref());
        let Ok(channel) = timeout_at(plan.deadline, nodes.channel(&address)).await else {
            continue;
        };
        let pause = match channel {
            Err(why) => tries.not_connected(nodes, address, why),
            Ok(channel) => {
                let left = plan.deadline - now;
                let limit = if plan.patient { left } else { left.min(LEAST_TRY.max(left / 2)) };
                let answer = timeout_at(now + limit, send(channel, limit)).await;
                match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
                    Ok(response) => {
                        nodes.answered(&address);
                        return Ok(response.into_inner());
                    }
                    Err(status) => match tries.refused(nodes, &plan, address, &status) {
                        Ok(pause) => pause,
                        Err(error) => return Err(tries.failure(error)),
                    },
                }
            }
        };
        // A pause past the deadline would only delay the bad news.
        tokio::time::sleep_until(plan.deadline.min(Instant::now() + pause)).await;
    }
}

impl Tries {
    fn failure(&self, error: Error) -> Failure {
        let reason = self.refusal.as_ref().map(|refusal| refusal.reason);
        Failure { error, maybe_applied: self.maybe_applied, reason }
    }

    /// Nothing was sent. The next node at once while there are others, for one pass.
    fn not_connected(&mut self, nodes: &Nodes, address: Address, why: String) -> Duration {
        nodes.failed(&address);
        self.last = why;
        self.avoid = Some(address);
        self.another_node(nodes)
    }

    fn another_node(&mut self, nodes: &Nodes) -> Duration {
        self.hops += 1;
        if (self.hops as usize) < nodes.count() { Duration::ZERO } else { self.backoff.next() }
    }

    /// Decides between the next try (after the pause that is returned) and the end.
    fn refused(&mut self, nodes: &Nodes, plan: &Plan, address: Address, status: &Status) -> Result<Duration, Error> {
        let error = ApiError::from(status);
        self.last = format!("{address}: {}", error.message);
        if !is_ours(status) {
            return self.transport_failed(nodes, plan, address, error);
        }
        nodes.answered(&address);
        let pause = match error.reason {
            ErrorReason::NotLeader => {
                nodes.does_not_lead(&address);
                let hinted = error.leader_address().and_then(|leader| nodes.hint(leader));
                self.avoid = Some(address);
                self.hops += 1;
                if hinted.is_some() && self.hops <= HOPS { Duration::ZERO } else { self.backoff.next() }
            }
            // A node that is made anew belongs to no cluster for a while. Only if all nodes say so is it true of the cluster.
            ErrorReason::NotInitialized if plan.route != Route::First => {
                self.strangers.insert(Arc::clone(&address));
                if nodes.are_all(&self.strangers) {
                    return Err(self.refused_for_good(plan, error));
                }
                nodes.failed(&address);
                self.avoid = Some(address);
                self.another_node(nodes)
            }
            ErrorReason::ShuttingDown => {
                nodes.failed(&address);
                self.avoid = Some(address);
                self.another_node(nodes)
            }
            ErrorReason::OutcomeUnknown if plan.once => {
                self.maybe_applied = true;
                return Err(self.at_the_deadline(nodes, plan));
            }
            reason if reason.is_retryable() => {
                self.maybe_applied |= reason == ErrorReason::OutcomeUnknown;
                if reason != ErrorReason::Overloaded {
                    self.avoid = Some(address);
                }
                let step = self.backoff.next();
                error.retry_after.map_or(step, |stated| stated + jittered(step))
            }
            _ => return Err(self.refused_for_good(plan, error)),
        };
        self.refusal = Some(error);
        Ok(pause)
    }

    /// The answer was lost on the way, or somebody between us and the node spoke.
    fn transport_failed(
        &mut self,
        nodes: &Nodes,
        plan: &Plan,
        address: Address,
        error: ApiError,
    ) -> Result<Duration, Error> {
        if !error.is_retryable() {
            return Err(self.refused_for_good(plan, error));
        }
        self.maybe_applied = true;
        nodes.failed(&address);
        if plan.once {
            return Err(self.at_the_deadline(nodes, plan));
        }
        self.avoid = Some(address);
        Ok(self.another_node(nodes))
    }

    /// A refusal that no retry changes. It says nothing of an earlier try whose answer was lost: that one may have been
    /// applied, or may still be, so a mutation is open then.
    fn refused_for_good(&mut self, plan: &Plan, error: ApiError) -> Error {
        self.refusal = Some(error.clone());
        match &plan.request_id {
            Some(request_id) if self.maybe_applied => {
                Error::OutcomeUnknown { request_id: request_id.clone(), last: self.last.clone() }
            }
            _ => Error::Refused(error),
        }
    }

    fn at_the_deadline(&self, nodes: &Nodes, plan: &Plan) -> Error {
        let is_write = plan.request_id.is_some() || plan.once;
        #[cfg(feature = "planted")]
        let is_write = is_write && !crate::planted::is("failed-on-timeout");
        if self.maybe_applied && is_write {
            return Error::OutcomeUnknown {
                request_id: plan.request_id.clone().unwrap_or_default(),
                last: self.last.clone(),
            };
        }
        match &self.refusal {
            Some(refusal) if !self.maybe_applied => Error::Refused(refusal.clone()),
            _ => Error::Unreachable { endpoints: nodes.names(), last: self.last.clone() },
        }
    }
}

/// Whether a node of ours made the status. Only then does it say something about the request.
pub(crate) fn is_ours(status: &Status) -> bool {
    ApiError::carried_by(status).is_some()
}

/// The deadline that is `timeout` away; a time-out too long to reckon with is a year.
pub(crate) fn deadline_in(timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    Instant::now() + timeout.min(YEAR)
}

/// The size limit that both sides set on every service.
pub(crate) const MESSAGE_BYTES: usize = limits::MESSAGE_BYTES;
