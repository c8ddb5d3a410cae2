//! The promises about tasks, checked against the committed log by a model that shares no code with the machine:
//!
//! - what was acknowledged is in the log, and was so when it was acknowledged;
//! - a request takes effect once, and a payload is one task (payloads are unique);
//! - a token is given once; a task has one attempt at a time; only the current attempt's word counts;
//! - a task completes once, with the result that its payload asks for, and its children with it.

use std::collections::{BTreeMap, BTreeSet};

use quorate_state::control::{Command, NewTask, Reply};
use quorate_state::{Operation, Reject, RequestId, SessionId, TaskId, Token};

use crate::work;

#[derive(Debug, Default)]
struct Task {
    payload: Vec<u8>,
    /// The attempt whose word counts, and whose it is.
    current: Option<(Token, SessionId)>,
    /// The attempt that reported a failure last: the same word again is no new one.
    failed: Option<Token>,
    completed: Option<(Token, Vec<TaskId>)>,
}

/// The model.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    tasks: BTreeMap<TaskId, Task>,
    payloads: BTreeMap<Vec<u8>, TaskId>,
    requests: BTreeMap<RequestId, Reply>,
    tokens: BTreeSet<Token>,
    unfinished: usize,
    acknowledged: Vec<TaskId>,
    told_completed: BTreeSet<TaskId>,
    completions: Vec<TaskId>,
    /// Attempts that ended without a completion: their word must count no more.
    stale: Vec<(TaskId, Token)>,
}

type Wrong = Vec<String>;

impl Audit {
    /// Reads an entry with the replies that it was given. Returns what is wrong with it.
    pub(crate) fn entry(
        &mut self,
        position: u64,
        operations: &[Operation<Command>],
        replies: &[Result<Reply, Reject>],
    ) -> Wrong {
        let mut wrong = Wrong::new();
        for (operation, reply) in operations.iter().zip(replies) {
            let Ok(reply) = reply else { continue };
            if let Some(request) = operation.request {
                match self.requests.get(&request) {
                    Some(before) if before == reply => continue,
                    Some(before) => {
                        wrong.push(format!(
                            "request {request} took effect twice: it got {before:?}, and {reply:?} at position {position}"
                        ));
                        continue;
                    }
                    None => {
                        self.requests.insert(request, reply.clone());
                    }
                }
            }
            self.operation(&operation.command, reply, replies, &mut wrong);
        }
        wrong
    }

    fn operation(&mut self, command: &Command, reply: &Reply, replies: &[Result<Reply, Reject>], wrong: &mut Wrong) {
        match (command, reply) {
            (Command::Enqueue { tasks }, Reply::Tasks(ids)) => self.add(tasks, ids, wrong),
            (Command::Grant { task, session }, Reply::Granted { token, .. }) => {
                self.grant(*task, *session, *token, wrong);
            }
            (Command::GrantEnqueued { operation, nth, session }, Reply::Granted { token, .. }) => {
                let of = replies.get(*operation as usize);
                match of.and_then(|reply| children_of(reply.as_ref().ok()?).get(*nth as usize).copied()) {
                    Some(task) => self.grant(task, *session, *token, wrong),
                    None => wrong.push(format!("a grant names task {nth} of operation {operation}, which made none")),
                }
            }
            (Command::Complete { task, token, result, children }, Reply::Completed { children: ids }) => {
                self.complete(*task, *token, result, children, ids, wrong);
            }
            (Command::Fail { task, token, .. }, Reply::Failed { dead }) => self.fail(*task, *token, *dead, wrong),
            (Command::ExpireSession { session } | Command::CloseSession { session }, Reply::Done) => self.end(*session),
            _ => {}
        }
    }

    fn add(&mut self, tasks: &[NewTask], ids: &[TaskId], wrong: &mut Wrong) {
        if tasks.len() != ids.len() {
            wrong.push(format!("{} tasks were enqueued as {ids:?}", tasks.len()));
        }
        for (task, id) in tasks.iter().zip(ids) {
            if let Some(before) = self.payloads.insert(task.payload.clone(), *id) {
                wrong.push(format!("{} is task {before} and task {id}", work::name(&task.payload)));
            }
            let added = Task { payload: task.payload.clone(), ..Task::default() };
            if self.tasks.insert(*id, added).is_some() {
                wrong.push(format!("task id {id} was given twice"));
            }
            self.unfinished += 1;
        }
    }

    fn grant(&mut self, id: TaskId, session: SessionId, token: Token, wrong: &mut Wrong) {
        if !self.tokens.insert(token) {
            wrong.push(format!("token {token} was given twice"));
        }
        let Some(task) = self.tasks.get_mut(&id) else {
            return wrong.push(format!("task {id} is granted and unknown"));
        };
        if let Some((other, holder)) = task.current {
            wrong.push(format!("task {id} is granted to session {session} while session {holder} has it as {other}"));
        }
        if task.completed.is_some() {
            wrong.push(format!("task {id} is granted after its completion"));
        }
        task.current = Some((token, session));
    }

    fn complete(
        &mut self,
        id: TaskId,
        token: Token,
        result: &[u8],
        children: &[NewTask],
        ids: &[TaskId],
        wrong: &mut Wrong,
    ) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return wrong.push(format!("task {id} is completed and unknown"));
        };
        match &task.completed {
            Some((by, before)) if *by == token && before == ids => return,
            Some((by, _)) => return wrong.push(format!("task {id} completes twice: by {by} and by {token}")),
            None => {}
        }
        if task.current.is_none_or(|(current, _)| current != token) {
            wrong.push(format!("task {id} was completed with the stale token {token}; current is {:?}", task.current));
        }
        if *result != *work::result(&task.payload) {
            wrong.push(format!("task {id} has a result that is not that of {}", work::name(&task.payload)));
        }
        let expected = usize::from(work::child(&task.payload).is_some());
        if children.len() != expected {
            wrong.push(format!("task {id} has {} children, not {expected}", children.len()));
        }
        (task.current, task.completed) = (None, Some((token, ids.to_vec())));
        self.unfinished -= 1;
        self.add(children, ids, wrong);
    }

    fn fail(&mut self, id: TaskId, token: Token, dead: bool, wrong: &mut Wrong) {
        let Some(task) = self.tasks.get_mut(&id) else { return wrong.push(format!("task {id} fails and is unknown")) };
        if task.failed == Some(token) {
            return;
        }
        if task.current.is_none_or(|(current, _)| current != token) {
            wrong.push(format!("task {id} was failed with the stale token {token}; current is {:?}", task.current));
        }
        if dead {
            wrong.push(format!("task {id} is given up"));
        }
        (task.current, task.failed) = (None, Some(token));
        self.stale.push((id, token));
    }

    fn end(&mut self, session: SessionId) {
        for (id, task) in &mut self.tasks {
            if let Some((token, _)) = task.current.filter(|(_, holder)| *holder == session) {
                task.current = None;
                self.stale.push((*id, token));
            }
        }
    }

    /// A client was told that a task is enqueued: it must be in the log by now.
    pub(crate) fn acknowledged_enqueue(&mut self, payload: &[u8], id: TaskId) -> Option<String> {
        let first = !self.acknowledged.contains(&id);
        if first {
            self.acknowledged.push(id);
        }
        match self.tasks.get(&id) {
            Some(task) if task.payload == payload => None,
            Some(task) => Some(format!(
                "{} was acknowledged as task {id}, which is {}",
                work::name(payload),
                work::name(&task.payload)
            )),
            None => {
                Some(format!("{} was acknowledged as task {id}, which no replica has applied", work::name(payload)))
            }
        }
    }

    /// An agent was told that its completion took effect: it must be in the log by now.
    pub(crate) fn acknowledged_completion(&mut self, id: TaskId, children: &[u64]) -> Option<String> {
        self.told_completed.insert(id);
        self.completions.push(id);
        let completed = self.tasks.get(&id).and_then(|task| task.completed.as_ref());
        match completed {
            Some((_, ids)) if ids.iter().map(|id| id.0).eq(children.iter().copied()) => None,
            Some((_, ids)) => {
                Some(format!("the completion of task {id} has children {ids:?} and was acknowledged with {children:?}"))
            }
            None => Some(format!("the completion of task {id} was acknowledged and no replica has applied it")),
        }
    }

    /// Whether a completion of the task was acknowledged.
    pub(crate) fn is_told_completed(&self, id: TaskId) -> bool {
        self.told_completed.contains(&id)
    }

    /// The tasks whose enqueue was acknowledged, in the order of the acknowledgements.
    pub(crate) fn acknowledged(&self) -> impl ExactSizeIterator<Item = TaskId> {
        self.acknowledged.iter().copied()
    }

    /// A task of which something was acknowledged of late, the `turn`th before the last: those are what a node that fell
    /// behind does not know.
    pub(crate) fn recent(&self, completed: bool, turn: usize) -> Option<TaskId> {
        let of = if completed { &self.completions } else { &self.acknowledged };
        of.len().checked_sub(1 + turn).and_then(|nth| of.get(nth)).copied()
    }

    /// How many tasks are not completed.
    pub(crate) fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// An attempt that is over while its task has another one, or any that is over.
    pub(crate) fn stale(&self, turn: usize) -> Option<(TaskId, Token)> {
        let granted = |(id, _): &&(TaskId, Token)| self.tasks.get(id).is_some_and(|task| task.current.is_some());
        let again: Vec<_> = self.stale.iter().rev().take(64).filter(granted).collect();
        let of = |stale: &[&(TaskId, Token)]| (!stale.is_empty()).then(|| *stale[turn % stale.len()]);
        of(&again).or_else(|| (!self.stale.is_empty()).then(|| self.stale[turn % self.stale.len()]))
    }
}

/// The tasks that an operation made.
fn children_of(reply: &Reply) -> &[TaskId] {
    match reply {
        Reply::Tasks(ids) | Reply::Completed { children: ids } => ids,
        _ => &[],
    }
}
