//! The agent SDK: runs a handler for every attempt that the cluster grants.
//!
//! ```text
//!   user's runtime                      the agent's own thread
//!   handler, handler, ...  <-- start -- driver: one stream, heartbeats, lease
//!                          -- done -->
//! ```
//!
//! The driver has a thread and a single-threaded runtime of its own, so a handler that blocks the user's runtime cannot
//! stop the heartbeats. The same thread watches the lease: when heartbeats are not acknowledged in time it gives the
//! session up *before* the leader can give its tasks to others. It aborts async handlers, signals blocking ones, refuses
//! their results, and then opens a new session.
//!
//! A stream that breaks is no end of a session: the driver resumes it on another node, says what it still runs, and sends
//! again what was not acknowledged. A stream on which heartbeats are not acknowledged is kept until another node has taken
//! over. The cluster takes no broken stream for the end of the agent, so an agent that is killed keeps its tasks for its
//! time to live; one that stops gives them back by closing the session, once none of its handlers runs.

mod attempt;
mod driver;
mod handler;
mod lease;
mod outbox;
mod search;
mod session;
mod stats;
mod stream;

use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use quorate_api::limits;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

pub use attempt::{Attempt, Output, TaskError};
pub use stats::AgentStats;

use crate::agent::driver::{Driver, Order, Spec};
use crate::agent::handler::{Handler, OnCompleted, Workshop};
use crate::agent::stats::Shared;
use crate::client::Client;
use crate::error::Error;

/// Where the heartbeats and the lease are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeaseKeeper {
    /// On a thread of its own, so that nothing that the user's runtime does can stop it.
    #[default]
    Thread,
    /// As a task on the current runtime: for a simulation, which has one thread and its own time.
    Task,
}

/// A program that performs tasks. [`Agent::builder`] is the way in.
#[derive(Debug)]
pub struct Agent(());

impl Agent {
    /// An agent with one slot, no role and the default time to live of a session.
    pub fn builder(client: impl Borrow<Client>, name: impl Into<String>) -> AgentBuilder {
        AgentBuilder {
            client: client.borrow().clone(),
            spec: Spec { name: name.into(), roles: Vec::new(), slots: 1, ttl: limits::TTL_DEFAULT },
            handler: None,
            keeper: LeaseKeeper::Thread,
            completed: None,
        }
    }
}

/// What an agent is to be.
pub struct AgentBuilder {
    client: Client,
    spec: Spec,
    handler: Option<Handler>,
    keeper: LeaseKeeper,
    completed: Option<Arc<OnCompleted>>,
}

impl fmt::Debug for AgentBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentBuilder").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl AgentBuilder {
    /// Adds a role. The agent is granted tasks that need one of its roles.
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Self {
        self.spec.roles.push(role.into());
        self
    }

    /// How many attempts run at once, 1 to [`limits::SLOTS`].
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.spec.slots = slots;
        self
    }

    /// How long the session outlives the last heartbeat, [`limits::TTL_MIN`] to [`limits::TTL_MAX`]. A short one frees the
    /// tasks of an agent that was killed sooner, a long one rides out longer interruptions. An agent that is shut down or
    /// stopped gives its tasks back at once.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.spec.ttl = ttl;
        self
    }

    /// Performs each attempt with an async function on the runtime on which the agent is started.
    #[must_use]
    pub fn handler<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(Attempt) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Output, TaskError>> + Send + 'static,
    {
        self.handler = Some(Handler::from_async(handler));
        self
    }

    /// Performs each attempt with a function that may block, on the runtime's threads for that. It cannot be aborted, so
    /// it should look at [`Attempt::cancelled`] now and then; it keeps its slot until it returns.
    #[must_use]
    pub fn blocking_handler(
        mut self,
        handler: impl Fn(Attempt) -> Result<Output, TaskError> + Send + Sync + 'static,
    ) -> Self {
        self.handler = Some(Handler::from_blocking(handler));
        self
    }

    /// Is called with the task's id and the ids of its children when a completion is acknowledged: durable on a majority.
    /// It runs on the thread that keeps the lease, so it must be short and never block. A completion whose
    /// acknowledgement was lost with the session is not told.
    #[must_use]
    pub fn on_completed(mut self, tell: impl Fn(u64, &[u64]) + Send + Sync + 'static) -> Self {
        self.completed = Some(Arc::new(tell));
        self
    }

    /// Where heartbeats and the lease are kept.
    #[must_use]
    pub fn lease_keeper(mut self, keeper: LeaseKeeper) -> Self {
        self.keeper = keeper;
        self
    }

    /// Starts the agent. The session is opened in the background; [`AgentHandle::ready`] waits for it.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name, role, slot number or time to live beyond its limit; [`Error::CannotStart`] outside a
    /// tokio runtime, or without a handler.
    pub fn start(self) -> Result<AgentHandle, Error> {
        self.spec.check()?;
        let cannot = |why: &str| Error::CannotStart { why: why.to_owned() };
        let handler = self.handler.ok_or_else(|| cannot("it has no handler"))?;
        let runtime = Handle::try_current().map_err(|_| cannot("there is no runtime here"))?;
        let (done_sender, done) = mpsc::unbounded_channel();
        let (orders_sender, orders) = watch::channel(Order::Run);
        let (ended_sender, ended) = oneshot::channel();
        let shared = Arc::new(Shared::new());
        let workshop = Workshop {
            handler,
            runtime: runtime.clone(),
            slots: Arc::new(Semaphore::new(self.spec.slots as usize)),
            slot_count: self.spec.slots,
            done: done_sender,
            completed: self.completed,
        };
        let driver =
            Driver::new(self.client.shared.nodes.fork(), self.spec, workshop, done, orders, Arc::clone(&shared));
        let drive = async move {
            driver.run().await;
            // The handle may be gone; then nobody waits for the end.
            let _ = ended_sender.send(());
        };
        match self.keeper {
            LeaseKeeper::Task => drop(runtime.spawn(drive)),
            LeaseKeeper::Thread => {
                let own = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let own = own.map_err(|error| cannot(&error.to_string()))?;
                let thread = std::thread::Builder::new().name("quorate-agent".into());
                thread.spawn(move || own.block_on(drive)).map_err(|error| cannot(&error.to_string()))?;
            }
        }
        Ok(AgentHandle { orders: orders_sender, ended, shared })
    }
}

/// A running agent. Dropping it stops the agent at once and gives its attempts back without a failure.
#[derive(Debug)]
pub struct AgentHandle {
    orders: watch::Sender<Order>,
    ended: oneshot::Receiver<()>,
    shared: Arc<Shared>,
}

impl AgentHandle {
    /// Waits until the agent has a session, and returns its id. `None` if the agent has ended before.
    pub async fn ready(&self) -> Option<u64> {
        let mut session = self.shared.session();
        let id = session.wait_for(|state| state.id.is_some() || state.ended).await;
        id.ok().and_then(|state| state.id)
    }

    /// The id of the live session, if there is one.
    #[must_use]
    pub fn session_id(&self) -> Option<u64> {
        self.shared.session().borrow().id
    }

    /// What the agent has done so far.
    #[must_use]
    pub fn stats(&self) -> AgentStats {
        self.shared.stats()
    }

    /// Why the agent has no session, or lost the last stream, for a person.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.shared.last_error()
    }

    /// Drains: takes no further attempts, waits until the running ones are finished and acknowledged, closes the session.
    /// Returns early if the lease is lost.
    pub async fn shutdown(self) {
        self.end(Order::Drain).await;
    }

    /// Stops at once: aborts the handlers and gives their attempts back without a failure. Those of blocking handlers that
    /// do not return within a second are given back when the session expires.
    pub async fn stop(self) {
        self.end(Order::Stop).await;
    }

    async fn end(mut self, order: Order) {
        // An error means that the driver has ended already.
        let _ = self.orders.send(order);
        let _ = (&mut self.ended).await;
    }
}
