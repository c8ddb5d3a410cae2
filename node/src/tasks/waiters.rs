//! Who waits for tasks on this node. Effects of applied entries wake them; nobody polls.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate_state::TaskId;
use quorate_state::control::Effect;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::oneshot;

use crate::context::Context;
use crate::control::Applied;
use crate::error::Error;
use crate::limits::OVERLOADED_RETRY_AFTER;

/// Calls that may wait on one node at a time.
const WAITERS: usize = 65_536;

/// The calls that wait, by task.
#[derive(Default)]
pub(super) struct Waiters {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    by_task: HashMap<TaskId, Vec<(u64, oneshot::Sender<()>)>>,
    count: usize,
    next: u64,
}

/// One call that waits. Dropping it ends the wait.
pub(super) struct Waiter {
    waiters: Arc<Waiters>,
    task: TaskId,
    number: u64,
    woken: oneshot::Receiver<()>,
}

impl Waiters {
    /// Registers a wait for the end of a task. What is read of the task after this and before `Waiter::woken` cannot miss it.
    pub(super) fn register(self: &Arc<Self>, task: TaskId) -> Result<Waiter, Error> {
        let mut waiting = self.waiting.lock();
        if waiting.count >= WAITERS {
            return Err(Error::overloaded(OVERLOADED_RETRY_AFTER));
        }
        waiting.count += 1;
        waiting.next += 1;
        let number = waiting.next;
        let (sender, woken) = oneshot::channel();
        waiting.by_task.entry(task).or_default().push((number, sender));
        Ok(Waiter { waiters: self.clone(), task, number, woken })
    }

    fn wake(&self, task: TaskId) {
        let mut waiting = self.waiting.lock();
        let woken = waiting.by_task.remove(&task).unwrap_or_default();
        waiting.count -= woken.len();
        drop(waiting);
        for (_, sender) in woken {
            // The call may have ended by itself.
            let _ = sender.send(());
        }
    }

    fn wake_all(&self) {
        let tasks: Vec<TaskId> = self.waiting.lock().by_task.keys().copied().collect();
        tasks.into_iter().for_each(|task| self.wake(task));
    }

    fn see(&self, applied: &Applied) {
        if applied.reloaded {
            return self.wake_all();
        }
        if self.waiting.lock().count == 0 {
            return;
        }
        for effect in applied.effects.iter() {
            if let Effect::Finished { task, .. } = effect {
                self.wake(*task);
            }
        }
    }
}

impl Waiter {
    /// Resolves when the task has ended, or may have: look at it, and wait anew if it has not.
    pub(super) async fn woken(&mut self) {
        // A sender that is dropped means the same: look again.
        let _ = (&mut self.woken).await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.waiters.waiting.lock();
        let Some(list) = waiting.by_task.get_mut(&self.task) else { return };
        let before = list.len();
        list.retain(|(number, _)| *number != self.number);
        let gone = before - list.len();
        if list.is_empty() {
            waiting.by_task.remove(&self.task);
        }
        waiting.count -= gone;
    }
}

/// Wakes waiters until the node stops.
pub(super) async fn run(context: Context, waiters: Arc<Waiters>) {
    let mut effects = context.control.effects();
    loop {
        tokio::select! {
            () = context.shutdown.cancelled() => break,
            applied = effects.recv() => match applied {
                Ok(applied) => waiters.see(&applied),
                Err(RecvError::Lagged(_)) => waiters.wake_all(),
                Err(RecvError::Closed) => break,
            },
        }
    }
    waiters.wake_all();
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use quorate_state::Position;
    use quorate_state::control::TaskState;

    fn finished(task: u64) -> Applied {
        let effect = Effect::Finished { task: TaskId(task), state: TaskState::Completed };
        Applied { at: Position(1), effects: Arc::from(vec![effect]), reloaded: false }
    }

    #[test]
    fn a_waiter_is_woken_by_its_task_only() {
        let waiters = Arc::new(Waiters::default());
        let mut one = waiters.register(TaskId(1)).expect("room");
        let mut again = waiters.register(TaskId(1)).expect("room");
        let mut two = waiters.register(TaskId(2)).expect("room");
        waiters.see(&finished(1));
        assert!(one.woken().now_or_never().is_some());
        assert!(again.woken().now_or_never().is_some());
        assert!(two.woken().now_or_never().is_none());
        waiters.see(&Applied { at: Position(9), effects: Arc::from(Vec::new()), reloaded: true });
        assert!(two.woken().now_or_never().is_some());
        drop((one, again, two));
        assert_eq!(waiters.waiting.lock().count, 0);
    }

    #[test]
    fn a_wait_that_ends_leaves_nothing_behind() {
        let waiters = Arc::new(Waiters::default());
        let one = waiters.register(TaskId(1)).expect("room");
        let mut other = waiters.register(TaskId(1)).expect("room");
        drop(one);
        assert_eq!(waiters.waiting.lock().count, 1);
        waiters.see(&finished(1));
        assert!(other.woken().now_or_never().is_some());
        drop(other);
        assert!(waiters.waiting.lock().by_task.is_empty());
    }

    #[test]
    fn too_many_waits_are_shed() {
        let waiters = Arc::new(Waiters::default());
        let all: Vec<Waiter> = (0..WAITERS as u64).map(|task| waiters.register(TaskId(task)).expect("room")).collect();
        assert!(waiters.register(TaskId(1)).is_err());
        drop(all);
        assert!(waiters.register(TaskId(1)).is_ok());
    }
}
