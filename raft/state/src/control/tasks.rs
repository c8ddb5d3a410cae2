//! Tasks: what is asked of agents, from being enqueued to the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::codec::{Decode, Encode};
use crate::records::{Changes, Key, Record, Records};
use crate::{LogTime, SessionId, TaskId, Token};

/// A task to be enqueued.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct NewTask {
    /// The queue that counts it. Made when it is first named.
    pub queue: String,
    /// What an agent must be able to do.
    pub role: String,
    /// What the agent is given.
    pub payload: Vec<u8>,
    /// What happens when an attempt fails.
    pub retry: RetryPolicy,
}

/// What happens when an attempt fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RetryPolicy {
    /// After so many failures the task goes to the dead letters; at least 1.
    pub max_attempts: u32,
    /// The pause after the first failure, milliseconds; doubled after each further one. The leader decides, with jitter.
    pub backoff_ms: u32,
    /// The longest pause, milliseconds.
    pub max_backoff_ms: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { max_attempts: 5, backoff_ms: 500, max_backoff_ms: 60_000 }
    }
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum TaskState {
    /// It can be granted.
    Ready,
    /// It becomes ready later.
    Waiting,
    /// A session has it.
    Granted,
    /// Done. The result is kept for a while; the payload is not.
    Completed,
    /// Given up after its last attempt. The payload is kept for a while.
    Dead,
    /// Called off.
    Cancelled,
}

impl TaskState {
    /// Whether this is an end.
    pub fn is_finished(self) -> bool {
        matches!(self, TaskState::Completed | TaskState::Dead | TaskState::Cancelled)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TaskState::Ready => "ready",
            TaskState::Waiting => "waiting",
            TaskState::Granted => "granted",
            TaskState::Completed => "completed",
            TaskState::Dead => "dead",
            TaskState::Cancelled => "cancelled",
        })
    }
}

/// The contents of a row that is not in memory: enough to know whether it is there and what the set hash says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Content {
    pub(super) bytes: u32,
    pub(super) crc: u32,
}

impl Content {
    pub(super) fn of(bytes: &[u8]) -> Content {
        Content { bytes: bytes.len() as u32, crc: crc32c::crc32c(bytes) }
    }
}

/// Where a live task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum Stage {
    Ready,
    Waiting { due: LogTime },
    Granted { session: SessionId },
}

/// A task that has not finished.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct LiveTask {
    pub(super) queue: u32,
    pub(super) role: u32,
    /// The task whose completion enqueued this one; 0 is none.
    pub(super) parent: TaskId,
    pub(super) created: LogTime,
    pub(super) retry: RetryPolicy,
    pub(super) payload: Content,
    /// What the last failure said.
    pub(super) error: Content,
    /// Grants so far.
    pub(super) attempts: u32,
    /// Failures so far: an attempt that was given back is none.
    pub(super) failures: u32,
    /// Of the last grant.
    pub(super) token: Token,
    pub(super) stage: Stage,
    /// Whether the attempt of `token` ended by `Fail`, so that the same word again gets the same reply.
    pub(super) reported: bool,
}

impl Record for LiveTask {
    const TABLE: u8 = super::table::LIVE_TASK;
    type Key = TaskId;
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) enum End {
    /// Its children have consecutive ids.
    Completed {
        first_child: TaskId,
        children: u32,
    },
    /// Whether its last attempt ended by `Fail`.
    Dead {
        reported: bool,
    },
    Cancelled,
}

/// A task that has finished, kept for a while for those who ask.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct FinishedTask {
    pub(super) queue: u32,
    pub(super) role: u32,
    pub(super) parent: TaskId,
    pub(super) created: LogTime,
    pub(super) finished: LogTime,
    pub(super) retry: RetryPolicy,
    pub(super) payload: Content,
    pub(super) result: Content,
    pub(super) error: Content,
    pub(super) attempts: u32,
    pub(super) failures: u32,
    pub(super) token: Token,
    pub(super) end: End,
}

impl Record for FinishedTask {
    const TABLE: u8 = super::table::FINISHED_TASK;
    type Key = TaskId;
}

impl FinishedTask {
    pub(super) fn state(&self) -> TaskState {
        match self.end {
            End::Completed { .. } => TaskState::Completed,
            End::Dead { .. } => TaskState::Dead,
            End::Cancelled => TaskState::Cancelled,
        }
    }
}

impl LiveTask {
    pub(super) fn state(&self) -> TaskState {
        match self.stage {
            Stage::Ready => TaskState::Ready,
            Stage::Waiting { .. } => TaskState::Waiting,
            Stage::Granted { .. } => TaskState::Granted,
        }
    }
}

/// The tasks of a queue, counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) ready: BTreeSet<TaskId>,
    pub(super) waiting: u64,
    pub(super) granted: u64,
    pub(super) completed: u64,
    pub(super) dead: u64,
    pub(super) cancelled: u64,
}

impl Tally {
    fn is_empty(&self) -> bool {
        let counts = [self.waiting, self.granted, self.completed, self.dead, self.cancelled];
        self.ready.is_empty() && counts == [0; 5]
    }

    fn count(&mut self, state: TaskState) -> Option<&mut u64> {
        match state {
            TaskState::Ready => None,
            TaskState::Waiting => Some(&mut self.waiting),
            TaskState::Granted => Some(&mut self.granted),
            TaskState::Completed => Some(&mut self.completed),
            TaskState::Dead => Some(&mut self.dead),
            TaskState::Cancelled => Some(&mut self.cancelled),
        }
    }
}

/// All tasks, and what is derived from them: who is ready, who waits until when, the counts of queues.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tasks {
    live: Records<LiveTask>,
    finished: Records<FinishedTask>,
    /// By role, the oldest first. No set is empty.
    ready: BTreeMap<u32, BTreeSet<TaskId>>,
    waiting: BTreeSet<(LogTime, TaskId)>,
    /// By queue. No tally is empty.
    tallies: BTreeMap<u32, Tally>,
    /// By the time of the end.
    ended: BTreeSet<(LogTime, TaskId)>,
    /// Roles for which tasks have become ready in this entry.
    woken: BTreeSet<u32>,
}

impl Tasks {
    pub(super) fn live(&self) -> &Records<LiveTask> {
        &self.live
    }

    pub(super) fn finished(&self) -> &Records<FinishedTask> {
        &self.finished
    }

    pub(super) fn tally(&self, queue: u32) -> Option<&Tally> {
        self.tallies.get(&queue)
    }

    pub(super) fn ready(&self) -> &BTreeMap<u32, BTreeSet<TaskId>> {
        &self.ready
    }

    /// The waiting task that is due first.
    pub(super) fn first_due(&self) -> Option<(LogTime, TaskId)> {
        self.waiting.first().copied()
    }

    /// The finished task that ended first.
    pub(super) fn first_ended(&self) -> Option<(LogTime, TaskId)> {
        self.ended.first().copied()
    }

    /// The roles for which tasks have become ready since the last call.
    pub(super) fn take_woken(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.woken)
    }

    /// Takes in a new task with its payload.
    pub(super) fn add(&mut self, id: TaskId, task: LiveTask, payload: Vec<u8>, changes: &mut Changes) {
        changes.put_content(super::table::PAYLOAD, id.to_key().as_slice(), payload.into());
        self.enter(id, task.queue, task.role, task.stage);
        self.live.put(id, task, changes);
    }

    /// Changes a live task; derived facts follow when its stage changes.
    pub(super) fn change(&mut self, id: TaskId, changes: &mut Changes, change: impl FnOnce(&mut LiveTask)) {
        let moved = self.live.change(id, changes, |task| {
            let before = task.stage;
            change(task);
            (task.queue, task.role, before, task.stage)
        });
        let (queue, role, before, after) = moved.expect("a command changes a task that it has found");
        if before != after {
            self.leave(id, queue, role, before);
            self.enter(id, queue, role, after);
        }
    }

    /// Puts the error text of a failure and returns its entry for the task.
    pub(super) fn put_error(id: TaskId, error: String, changes: &mut Changes) -> Content {
        let content = Content::of(error.as_bytes());
        changes.put_content(super::table::ERROR, id.to_key().as_slice(), error.into_bytes().into());
        content
    }

    /// Moves a live task to its end. The payload goes unless the task is dead: what came of it is its result.
    pub(super) fn finish(
        &mut self,
        id: TaskId,
        now: LogTime,
        end: End,
        result: Option<Vec<u8>>,
        changes: &mut Changes,
    ) {
        let task = self.live.remove(id, changes).expect("a command finishes a task that it has found");
        self.leave(id, task.queue, task.role, task.stage);
        let mut finished = FinishedTask {
            queue: task.queue,
            role: task.role,
            parent: task.parent,
            created: task.created,
            finished: now,
            retry: task.retry,
            payload: task.payload,
            result: Content::default(),
            error: task.error,
            attempts: task.attempts,
            failures: task.failures,
            token: task.token,
            end,
        };
        let key = id.to_key();
        if let Some(result) = result {
            finished.result = Content::of(&result);
            changes.put_content(super::table::RESULT, key.as_slice(), result.into());
        }
        if finished.state() != TaskState::Dead {
            changes.delete_content(super::table::PAYLOAD, key.as_slice());
        }
        self.ended.insert((now, id));
        self.count(task.queue, finished.state(), true);
        self.finished.put(id, finished, changes);
    }

    /// Forgets a finished task.
    pub(super) fn forget(&mut self, id: TaskId, changes: &mut Changes) {
        let task = self.finished.remove(id, changes).expect("only a finished task is forgotten");
        let key = id.to_key();
        match task.state() {
            TaskState::Completed => changes.delete_content(super::table::RESULT, key.as_slice()),
            TaskState::Dead => changes.delete_content(super::table::PAYLOAD, key.as_slice()),
            _ => {}
        }
        if task.error.bytes > 0 {
            changes.delete_content(super::table::ERROR, key.as_slice());
        }
        self.ended.remove(&(task.finished, id));
        self.count(task.queue, task.state(), false);
    }

    fn enter(&mut self, id: TaskId, queue: u32, role: u32, stage: Stage) {
        match stage {
            Stage::Ready => {
                self.ready.entry(role).or_default().insert(id);
                self.tallies.entry(queue).or_default().ready.insert(id);
                self.woken.insert(role);
            }
            Stage::Waiting { due } => {
                self.waiting.insert((due, id));
                self.count(queue, TaskState::Waiting, true);
            }
            Stage::Granted { .. } => self.count(queue, TaskState::Granted, true),
        }
    }

    fn leave(&mut self, id: TaskId, queue: u32, role: u32, stage: Stage) {
        match stage {
            Stage::Ready => {
                let of_role = self.ready.get_mut(&role).expect("a ready task is in the set of its role");
                of_role.remove(&id);
                if of_role.is_empty() {
                    self.ready.remove(&role);
                }
                let tally = self.tallies.get_mut(&queue).expect("a live task is counted in its queue");
                tally.ready.remove(&id);
                if tally.is_empty() {
                    self.tallies.remove(&queue);
                }
            }
            Stage::Waiting { due } => {
                self.waiting.remove(&(due, id));
                self.count(queue, TaskState::Waiting, false);
            }
            Stage::Granted { .. } => self.count(queue, TaskState::Granted, false),
        }
    }

    fn count(&mut self, queue: u32, state: TaskState, up: bool) {
        let tally = self.tallies.entry(queue).or_default();
        if let Some(count) = tally.count(state) {
            *count = if up { *count + 1 } else { *count - 1 };
        }
        if tally.is_empty() {
            self.tallies.remove(&queue);
        }
    }

    pub(super) fn load_live(&mut self, key: &[u8], value: &[u8], changes: &mut Changes) -> Result<(), crate::Fault> {
        self.live.load(key, value, changes)
    }

    pub(super) fn load_finished(
        &mut self,
        key: &[u8],
        value: &[u8],
        changes: &mut Changes,
    ) -> Result<(), crate::Fault> {
        self.finished.load(key, value, changes)
    }

    /// The planted bug `lost-retry`.
    #[cfg(feature = "planted")]
    pub(super) fn forget_waiting(&mut self) {
        if crate::planted::is("lost-retry") {
            self.waiting.clear();
        }
    }

    /// Rebuilds what is derived from the records.
    pub(super) fn derive(&mut self) {
        let mut derived = Tasks { live: std::mem::take(&mut self.live), ..Tasks::default() };
        derived.finished = std::mem::take(&mut self.finished);
        let live: Vec<_> = derived.live.iter().map(|(id, task)| (id, task.queue, task.role, task.stage)).collect();
        for (id, queue, role, stage) in live {
            derived.enter(id, queue, role, stage);
        }
        let finished: Vec<_> =
            derived.finished.iter().map(|(id, task)| (id, task.queue, task.state(), task.finished)).collect();
        for (id, queue, state, at) in finished {
            derived.count(queue, state, true);
            derived.ended.insert((at, id));
        }
        derived.woken.clear();
        *self = derived;
    }
}
