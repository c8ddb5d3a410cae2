//! Runs handlers on the user's runtime.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use quorate_api::v1::Token;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::agent::attempt::{Attempt, Output, TaskError};

/// Identifies a running attempt: the task and the grant's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) task_id: u64,
    pub(crate) position: u64,
    pub(crate) ordinal: u32,
}

impl Key {
    pub(crate) fn new(task_id: u64, token: Option<Token>) -> Self {
        let token = token.unwrap_or_default();
        Self { task_id, position: token.position, ordinal: token.ordinal }
    }
}

pub(crate) type Outcome = Result<Output, TaskError>;
pub(crate) type Done = (Key, Outcome);

type AsyncFn = dyn Fn(Attempt) -> BoxFuture<'static, Outcome> + Send + Sync;
type BlockingFn = dyn Fn(Attempt) -> Outcome + Send + Sync;

/// The user's function.
#[derive(Clone)]
pub(crate) enum Handler {
    Async(Arc<AsyncFn>),
    Blocking(Arc<BlockingFn>),
}

impl Handler {
    pub(crate) fn from_async<F, Fut>(handler: F) -> Self
    where
        F: Fn(Attempt) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        Self::Async(Arc::new(move |attempt| handler(attempt).boxed()))
    }

    pub(crate) fn from_blocking(handler: impl Fn(Attempt) -> Outcome + Send + Sync + 'static) -> Self {
        Self::Blocking(Arc::new(handler))
    }
}

/// Where handlers run, and how many at once. The slots are also counted here because a blocking handler that was given
/// up runs on until it looks at its token.
pub(crate) struct Workshop {
    pub(crate) handler: Handler,
    pub(crate) runtime: Handle,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) slot_count: u32,
    pub(crate) done: mpsc::UnboundedSender<Done>,
    /// Is told of each completion that took effect.
    pub(crate) completed: Option<Arc<OnCompleted>>,
}

/// Called with the task and its children once a completion is durable.
pub(crate) type OnCompleted = dyn Fn(u64, &[u64]) + Send + Sync;

impl Workshop {
    /// Waits until no handler runs, also none that was given up.
    pub(crate) async fn idle(&self) {
        // It fails only if the semaphore is closed, and nobody closes it.
        let _ = self.slots.acquire_many(self.slot_count).await;
    }

    /// Starts the handler. Its outcome comes on `done`, once, unless it is aborted by the handle that is returned.
    pub(crate) fn start(&self, key: Key, attempt: Attempt) -> AbortHandle {
        let slots = Arc::clone(&self.slots);
        let report = Report { key, done: self.done.clone(), made: false };
        let task = match self.handler.clone() {
            Handler::Async(handler) => self.runtime.spawn(async move {
                let Ok(_slot) = slots.acquire_owned().await else { return };
                // The call itself is inside the guard: a handler may panic before its first await.
                let running = AssertUnwindSafe(async move { handler(attempt).await }).catch_unwind();
                report.make(running.await);
            }),
            Handler::Blocking(handler) => self.runtime.spawn(async move {
                let Ok(slot) = slots.acquire_owned().await else { return };
                // The closure cannot be aborted, so it keeps the slot until it returns.
                let running = tokio::task::spawn_blocking(move || {
                    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| handler(attempt)));
                    drop(slot);
                    report.make(outcome);
                });
                // A failure to run is told by the report that is dropped with the closure.
                let _ = running.await;
            }),
        };
        task.abort_handle()
    }
}

/// Makes sure that every attempt ends with an outcome, even when its runtime is shut down under it.
struct Report {
    key: Key,
    done: mpsc::UnboundedSender<Done>,
    made: bool,
}

impl Report {
    fn make(mut self, outcome: std::thread::Result<Outcome>) {
        self.made = true;
        let outcome = outcome.unwrap_or_else(|panic| Err(TaskError::retry(panic_text(&*panic))));
        // The session is over if nobody listens; then the outcome would be refused anyway.
        let _ = self.done.send((self.key, outcome));
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.made {
            let _ = self.done.send((self.key, Err(TaskError::retry("the handler was dropped before it ended"))));
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the handler panicked: {}", text.unwrap_or_default())
}
