//! What can be read from the control state. All of it is cheap: nothing here reads a disk, and what could be long comes in
//! pages.

use std::sync::Arc;

use super::collections::{CollectionRecord, OutboxEntry};
use super::members::{MemberRecord, replica_target};
use super::shards::ShardRecord;
use super::tasks::{End, FinishedTask, LiveTask, RetryPolicy, Stage, TaskState};
use super::{Control, table};
use crate::records::Key;
use crate::{CollectionId, LogTime, NodeId, Position, SessionId, ShardId, TaskId, Token};

/// How many tasks a page looks at, so that a filter that matches nothing holds the state for a bounded time.
pub const PAGE_SCAN: usize = 10_000;

/// A task as it is shown. Its payload, result and error text are rows: see `Control::task_payload_key` and its like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// Its id.
    pub id: TaskId,
    /// The queue that counts it.
    pub queue: Arc<str>,
    /// What an agent must be able to do.
    pub role: Arc<str>,
    /// Where it is in its life.
    pub state: TaskState,
    /// The task whose completion enqueued it.
    pub parent: Option<TaskId>,
    /// When it was enqueued.
    pub created: LogTime,
    /// When it becomes ready, if it waits.
    pub due: Option<LogTime>,
    /// When it came to its end.
    pub finished: Option<LogTime>,
    /// Grants so far.
    pub attempts: u32,
    /// Failures so far.
    pub failures: u32,
    /// What happens when an attempt fails.
    pub retry: RetryPolicy,
    /// The session that has it, if it is granted.
    pub session: Option<SessionId>,
    /// Token of the last grant, if there was one.
    pub token: Option<Token>,
    /// Size of the payload, also when its row is gone.
    pub payload_bytes: u32,
    /// Whether the row of the payload is there: it goes when a task is completed or cancelled.
    pub has_payload: bool,
    /// Size of the result. A completed task has the row of its result, also when it is empty.
    pub result_bytes: u32,
    /// Whether the row of the last error is there.
    pub has_error: bool,
    /// The tasks that its completion enqueued.
    pub children: Vec<TaskId>,
}

/// Which tasks to list. A field that is `None` lets all pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only tasks of this queue.
    pub queue: Option<String>,
    /// Only tasks of this role.
    pub role: Option<String>,
    /// Only tasks in this state.
    pub state: Option<TaskState>,
}

/// Some tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskPage {
    /// In the order of ids, so the oldest first. May be empty although more follow.
    pub tasks: Vec<TaskView>,
    /// Where to go on; `None` at the end.
    pub next: Option<TaskId>,
}

/// A queue, counted. Finished tasks count as long as they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueCounts {
    /// Its name.
    pub queue: Arc<str>,
    /// Tasks that can be granted.
    pub ready: u64,
    /// Tasks that become ready later.
    pub waiting: u64,
    /// Tasks that a session has.
    pub granted: u64,
    /// Tasks that are done.
    pub completed: u64,
    /// Dead letters.
    pub dead: u64,
    /// Tasks that were called off.
    pub cancelled: u64,
    /// When the oldest ready task was enqueued.
    pub oldest_ready: Option<LogTime>,
}

/// A session as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Its id.
    pub id: SessionId,
    /// The agent's name.
    pub agent: String,
    /// The roles it can take, in the order in which they first became known to the cluster.
    pub roles: Vec<Arc<str>>,
    /// How many tasks it takes at once.
    pub slots: u32,
    /// After how many milliseconds of silence it is expired.
    pub ttl_ms: u64,
    /// When it was opened.
    pub opened: LogTime,
    /// The number of the stream that its agent has now, 0 for the one that opened it.
    pub attachment: u64,
    /// What it runs.
    pub running: Vec<(TaskId, Token)>,
}

impl SessionView {
    /// How many more tasks it takes.
    pub fn free_slots(&self) -> u32 {
        self.slots.saturating_sub(self.running.len() as u32)
    }
}

/// Members, shards and collections.
impl Control {
    /// The cluster's id, once it is initialised.
    pub fn cluster(&self) -> Option<u64> {
        self.meta().cluster
    }

    /// Log time: that of the last entry.
    pub fn time(&self) -> LogTime {
        self.meta().time
    }

    /// Position of the last entry.
    pub fn last_position(&self) -> Position {
        self.meta().position
    }

    /// Counts the changes of members' addresses and of the shard map.
    pub fn epoch(&self) -> u64 {
        self.meta().epoch
    }

    /// The members, in the order of their ids.
    pub fn members(&self) -> impl Iterator<Item = &MemberRecord> {
        self.members.iter().map(|(_, member)| member)
    }

    /// One member.
    pub fn member(&self, node: NodeId) -> Option<&MemberRecord> {
        self.members.get(&node)
    }

    /// How many replicas each group should have: counted over the members that are not leaving.
    pub fn replica_target(&self) -> usize {
        replica_target(self.members().filter(|member| !member.leaving).count())
    }

    /// The shards with their replicas, in order.
    pub fn shards(&self) -> impl Iterator<Item = &ShardRecord> {
        self.shards.iter().map(|(_, shard)| shard)
    }

    /// One shard with its replicas.
    pub fn shard(&self, shard: ShardId) -> Option<&ShardRecord> {
        self.shards.get(&shard)
    }

    /// All collections, also those that are being deleted, in the order of their making.
    pub fn collections(&self) -> impl Iterator<Item = &CollectionRecord> {
        self.collections.records().iter().map(|(_, collection)| collection)
    }

    /// The collection with this name, unless it is being deleted.
    pub fn collection(&self, name: &str) -> Option<&CollectionRecord> {
        self.collections.by_name(name)
    }

    /// The collection with this number, also if it is being deleted.
    pub fn collection_by_id(&self, id: CollectionId) -> Option<&CollectionRecord> {
        self.collections.records().get(&id)
    }

    /// What shards are yet to be told about collections.
    pub fn outbox(&self) -> impl Iterator<Item = OutboxEntry> {
        self.collections.outbox()
    }
}

/// Tasks and queues.
impl Control {
    /// The queues that have tasks, live or kept, in the order of their first task.
    pub fn queues(&self) -> impl Iterator<Item = QueueCounts> {
        (0..self.queues.len() as u32).filter_map(|queue| {
            let tally = self.tasks.tally(queue)?;
            Some(QueueCounts {
                queue: self.queues.text(queue).clone(),
                ready: tally.ready.len() as u64,
                waiting: tally.waiting,
                granted: tally.granted,
                completed: tally.completed,
                dead: tally.dead,
                cancelled: tally.cancelled,
                oldest_ready: tally.ready.first().and_then(|id| self.tasks.live().get(id)).map(|task| task.created),
            })
        })
    }

    /// A task, live or kept.
    pub fn task(&self, id: TaskId) -> Option<TaskView> {
        match self.tasks.live().get(&id) {
            Some(task) => Some(self.view_live(id, task)),
            None => self.tasks.finished().get(&id).map(|task| self.view_finished(id, task)),
        }
    }

    /// A task's state alone, cheaper than [`Control::task`].
    pub fn task_state(&self, id: TaskId) -> Option<TaskState> {
        match self.tasks.live().get(&id) {
            Some(task) => Some(task.state()),
            None => self.tasks.finished().get(&id).map(FinishedTask::state),
        }
    }

    /// At most `limit` tasks after a task (`TaskId(0)` to begin with), live and kept, in the order of ids. Looks at no more
    /// than [`PAGE_SCAN`] tasks.
    pub fn tasks(&self, after: TaskId, filter: &TaskFilter, limit: usize) -> TaskPage {
        let queue = filter.queue.as_ref().map(|name| self.queues.number(name));
        let role = filter.role.as_ref().map(|name| self.roles.number(name));
        let passes = |task_queue: u32, task_role: u32, state: TaskState| {
            queue.is_none_or(|queue| queue == Some(task_queue))
                && role.is_none_or(|role| role == Some(task_role))
                && filter.state.is_none_or(|wanted| wanted == state)
        };
        let mut live = self.tasks.live().after(after).peekable();
        let mut finished = self.tasks.finished().after(after).peekable();
        let mut page = TaskPage::default();
        for _ in 0..PAGE_SCAN {
            if page.tasks.len() >= limit {
                return page;
            }
            let take_live = match (live.peek(), finished.peek()) {
                (Some((live, _)), Some((finished, _))) => live < finished,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => {
                    page.next = None;
                    return page;
                }
            };
            if take_live {
                if let Some((id, task)) = live.next() {
                    page.next = Some(id);
                    if passes(task.queue, task.role, task.state()) {
                        page.tasks.push(self.view_live(id, task));
                    }
                }
            } else if let Some((id, task)) = finished.next() {
                page.next = Some(id);
                if passes(task.queue, task.role, task.state()) {
                    page.tasks.push(self.view_finished(id, task));
                }
            }
        }
        page
    }

    /// The ready tasks of a role after a task, the oldest first.
    pub fn ready(&self, role: &str, after: Option<TaskId>) -> impl Iterator<Item = TaskId> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.roles
            .number(role)
            .and_then(|role| self.tasks.ready().get(&role))
            .into_iter()
            .flat_map(move |ready| ready.range((after.map_or(Unbounded, Excluded), Unbounded)).copied())
    }

    /// The roles of ready tasks, with how many there are of each.
    pub fn roles_ready(&self) -> impl Iterator<Item = (&Arc<str>, usize)> {
        self.tasks.ready().iter().map(|(role, ready)| (self.roles.text(*role), ready.len()))
    }

    /// When the next waiting task becomes ready. If that is past, any entry makes it so; a `Tick` will do.
    pub fn next_due(&self) -> Option<LogTime> {
        self.tasks.first_due().map(|(due, _)| due)
    }

    /// Where a task's payload is stored: table and key. The row is the payload as it is.
    pub fn task_payload_key(id: TaskId) -> (u8, Vec<u8>) {
        (table::PAYLOAD, id.to_key().as_slice().to_vec())
    }

    /// Where a completed task's result is stored: table and key. The row is the result as it is.
    pub fn task_result_key(id: TaskId) -> (u8, Vec<u8>) {
        (table::RESULT, id.to_key().as_slice().to_vec())
    }

    /// Where the text of a task's last failure is stored: table and key. The row is the text in UTF-8.
    pub fn task_error_key(id: TaskId) -> (u8, Vec<u8>) {
        (table::ERROR, id.to_key().as_slice().to_vec())
    }

    fn view_live(&self, id: TaskId, task: &LiveTask) -> TaskView {
        TaskView {
            id,
            queue: self.queues.text(task.queue).clone(),
            role: self.roles.text(task.role).clone(),
            state: task.state(),
            parent: (task.parent != TaskId(0)).then_some(task.parent),
            created: task.created,
            due: match task.stage {
                Stage::Waiting { due } => Some(due),
                _ => None,
            },
            finished: None,
            attempts: task.attempts,
            failures: task.failures,
            retry: task.retry,
            session: match task.stage {
                Stage::Granted { session } => Some(session),
                _ => None,
            },
            token: (task.attempts > 0).then_some(task.token),
            payload_bytes: task.payload.bytes,
            has_payload: true,
            result_bytes: 0,
            has_error: task.error.bytes > 0,
            children: Vec::new(),
        }
    }

    fn view_finished(&self, id: TaskId, task: &FinishedTask) -> TaskView {
        TaskView {
            id,
            queue: self.queues.text(task.queue).clone(),
            role: self.roles.text(task.role).clone(),
            state: task.state(),
            parent: (task.parent != TaskId(0)).then_some(task.parent),
            created: task.created,
            due: None,
            finished: Some(task.finished),
            attempts: task.attempts,
            failures: task.failures,
            retry: task.retry,
            session: None,
            token: (task.attempts > 0).then_some(task.token),
            payload_bytes: task.payload.bytes,
            has_payload: task.state() == TaskState::Dead,
            result_bytes: task.result.bytes,
            has_error: task.error.bytes > 0,
            children: match task.end {
                End::Completed { first_child, children } => consecutive(first_child, children),
                _ => Vec::new(),
            },
        }
    }
}

/// Sessions.
impl Control {
    /// All sessions, in the order of their opening.
    pub fn sessions(&self) -> impl Iterator<Item = SessionView> {
        self.sessions.records().iter().filter_map(|(id, _)| self.session(id))
    }

    /// One session.
    pub fn session(&self, id: SessionId) -> Option<SessionView> {
        let record = self.sessions.get(id)?;
        Some(SessionView {
            id,
            agent: record.agent.clone(),
            roles: record.roles.iter().map(|role| self.roles.text(*role).clone()).collect(),
            slots: record.slots,
            ttl_ms: record.ttl_ms,
            opened: record.opened,
            attachment: record.attachment,
            running: self.sessions.running(id).to_vec(),
        })
    }

    /// The number of the stream that a session's agent has now.
    pub fn attachment(&self, id: SessionId) -> Option<u64> {
        self.sessions.get(id).map(|record| record.attachment)
    }

    /// What a session runs, without a copy. Empty for a session that is not there.
    pub fn running(&self, id: SessionId) -> &[(TaskId, Token)] {
        self.sessions.running(id)
    }
}

/// The ids that one operation gave out.
pub(super) fn consecutive(first: TaskId, count: u32) -> Vec<TaskId> {
    (first.0..first.0 + u64::from(count)).map(TaskId).collect()
}
