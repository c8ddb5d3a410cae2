//! The promises about tasks, checked against the committed log by a model that shares no code with the machine:
//!
//! - what was acknowledged is in the log, and was so when it was acknowledged;
//! - a request takes effect once, and a payload is one task (payloads are unique);
//! - a token is given once; a task has one attempt at a time; only the current attempt's word counts;
//! - a task completes once, with the result that its payload asks for, and its children with it;
//! - what a client was told to have failed for certain is not in the log;
//! - the machine's record of a task that an entry touched is what the model says.

use std::collections::{BTreeMap, BTreeSet};

use quorate_state::control::{Command, Control, NewTask, Reply, TaskState};
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
    /// How it ended, if it did.
    end: Option<TaskState>,
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
    known: BTreeSet<TaskId>,
    told_completed: BTreeSet<TaskId>,
    completions: Vec<TaskId>,
    told_cancelled: BTreeSet<TaskId>,
    /// Payloads whose enqueue was told to have failed for certain.
    not_done: BTreeSet<Vec<u8>>,
    /// Tasks that the last entry touched.
    touched: Vec<TaskId>,
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
            (Command::Cancel { task }, Reply::Cancelled) => self.cancel(*task, wrong),
            (Command::ExpireSession { session } | Command::CloseSession { session, .. }, Reply::Done) => {
                self.end(*session)
            }
            _ => {}
        }
    }

    fn add(&mut self, tasks: &[NewTask], ids: &[TaskId], wrong: &mut Wrong) {
        if tasks.len() != ids.len() {
            wrong.push(format!("{} tasks were enqueued as {ids:?}", tasks.len()));
        }
        for (task, id) in tasks.iter().zip(ids) {
            self.touched.push(*id);
            if self.not_done.contains(&task.payload) {
                wrong.push(format!(
                    "{} is task {id}, and its enqueue was told to have failed",
                    work::name(&task.payload)
                ));
            }
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
        self.touched.push(id);
        if !self.tokens.insert(token) {
            wrong.push(format!("token {token} was given twice"));
        }
        let Some(task) = self.tasks.get_mut(&id) else {
            return wrong.push(format!("task {id} is granted and unknown"));
        };
        if let Some((other, holder)) = task.current {
            wrong.push(format!("task {id} is granted to session {session} while session {holder} has it as {other}"));
        }
        if let Some(end) = task.end {
            wrong.push(format!("task {id} is granted after its end: it is {end}"));
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
        self.touched.push(id);
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
        if let Some(end) = task.end {
            return wrong.push(format!("task {id} is completed after its end: it is {end}"));
        }
        (task.current, task.completed) = (None, Some((token, ids.to_vec())));
        task.end = Some(TaskState::Completed);
        self.unfinished -= 1;
        self.add(children, ids, wrong);
    }

    fn fail(&mut self, id: TaskId, token: Token, dead: bool, wrong: &mut Wrong) {
        self.touched.push(id);
        let Some(task) = self.tasks.get_mut(&id) else { return wrong.push(format!("task {id} fails and is unknown")) };
        if task.failed == Some(token) {
            return;
        }
        if task.current.is_none_or(|(current, _)| current != token) {
            wrong.push(format!("task {id} was failed with the stale token {token}; current is {:?}", task.current));
        }
        if dead != work::dies(&task.payload) {
            wrong.push(format!("task {id} is given up: {dead}; it is {}", work::name(&task.payload)));
        }
        (task.current, task.failed) = (None, Some(token));
        if dead {
            task.end = Some(TaskState::Dead);
            self.unfinished -= 1;
        }
        self.stale.push((id, token));
    }

    fn cancel(&mut self, id: TaskId, wrong: &mut Wrong) {
        self.touched.push(id);
        let Some(task) = self.tasks.get_mut(&id) else {
            return wrong.push(format!("task {id} is cancelled and unknown"));
        };
        if let Some(end) = task.end {
            return wrong.push(format!("task {id} is cancelled after its end: it is {end}"));
        }
        if !work::is_called_off(&task.payload) {
            wrong.push(format!("task {id} is cancelled, which nobody asked for: it is {}", work::name(&task.payload)));
        }
        task.end = Some(TaskState::Cancelled);
        self.unfinished -= 1;
        if let Some((token, _)) = task.current.take() {
            self.stale.push((id, token));
        }
    }

    fn end(&mut self, session: SessionId) {
        for (id, task) in &mut self.tasks {
            if let Some((token, _)) = task.current.filter(|(_, holder)| *holder == session) {
                task.current = None;
                self.touched.push(*id);
                self.stale.push((*id, token));
            }
        }
    }

    /// Compares what the last entry touched with the machine that has applied it.
    pub(crate) fn look_at_touched(&mut self, control: &Control) -> Wrong {
        let mut wrong = Wrong::new();
        for id in std::mem::take(&mut self.touched) {
            let (Some(task), view) = (self.tasks.get(&id), control.task(id)) else { continue };
            let found = view.as_ref().map(|view| view.state);
            let fits = match (task.end, task.current, &view) {
                (Some(end), _, _) => found == Some(end),
                (None, Some((token, session)), Some(view)) => {
                    view.state == TaskState::Granted && view.token == Some(token) && view.session == Some(session)
                }
                (None, None, _) => matches!(found, Some(TaskState::Ready | TaskState::Waiting)),
                (None, Some(_), None) => false,
            };
            if !fits {
                wrong.push(format!("touched records: the machine has task {id} as {view:?}, the model as {task:?}"));
            }
        }
        wrong
    }

    /// What became of all that was acknowledged.
    pub(crate) fn conclude(&self, control: &Control) -> Wrong {
        let mut wrong = Wrong::new();
        for id in &self.acknowledged {
            let payload = self.tasks.get(id).map(|task| task.payload.as_slice()).unwrap_or_default();
            let state = control.task_state(*id);
            let fits = match state {
                Some(TaskState::Completed) => !work::dies(payload),
                Some(TaskState::Dead) => work::dies(payload),
                Some(TaskState::Cancelled) => work::is_called_off(payload),
                _ => false,
            };
            if !fits {
                let name = work::name(payload);
                wrong.push(format!("task {id} was acknowledged and is {state:?} at the end; it is {name}"));
            }
        }
        wrong
    }

    /// A client was told that a task is enqueued: it must be in the log by now.
    pub(crate) fn acknowledged_enqueue(&mut self, payload: &[u8], id: TaskId) -> Option<String> {
        if self.known.insert(id) {
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

    /// A client was told that a task is cancelled: it must be in the log by now.
    pub(crate) fn acknowledged_cancel(&mut self, id: TaskId) -> Option<String> {
        self.told_cancelled.insert(id);
        let end = self.tasks.get(&id).and_then(|task| task.end);
        (end != Some(TaskState::Cancelled)).then(|| format!("task {id} was told to be cancelled and ended as {end:?}"))
    }

    /// A client was told for certain that an enqueue was not done.
    pub(crate) fn refused(&mut self, payload: &[u8]) -> Option<String> {
        self.not_done.insert(payload.to_vec());
        let task = self.payloads.get(payload)?;
        Some(format!("the enqueue of {} was told to have failed and is task {task}", work::name(payload)))
    }

    /// How the task must be read from now on, if somebody was told of its end.
    pub(crate) fn told_end(&self, id: TaskId) -> Option<TaskState> {
        if self.told_completed.contains(&id) {
            return Some(TaskState::Completed);
        }
        self.told_cancelled.contains(&id).then_some(TaskState::Cancelled)
    }

    /// A task of which something was acknowledged of late, the `turn`th before the last: those are what a node that fell
    /// behind does not know.
    pub(crate) fn recent(&self, completed: bool, turn: usize) -> Option<TaskId> {
        let of = if completed { &self.completions } else { &self.acknowledged };
        of.len().checked_sub(1 + turn).and_then(|nth| of.get(nth)).copied()
    }

    /// How many tasks have not come to an end.
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

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId(9);

    fn token(position: u64) -> Token {
        Token { position, ordinal: 0 }
    }

    /// A payload of which `has` holds and nothing else that is special.
    fn payload(has: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let payloads = (0..10_000).map(|number| format!("task {number}").into_bytes());
        let special = |payload: &[u8]| {
            [work::child(payload).is_some(), work::dies(payload), work::is_called_off(payload)].map(usize::from)
        };
        let found = payloads.into_iter().find(|payload| has(payload) && special(payload).iter().sum::<usize>() <= 1);
        found.expect("one of so many")
    }

    fn plain() -> Vec<u8> {
        payload(|payload| work::child(payload).is_none() && !work::dies(payload) && !work::is_called_off(payload))
    }

    struct Log(Audit, u64);

    impl Log {
        fn entry(&mut self, request: Option<u128>, command: Command, reply: Reply) -> Wrong {
            self.1 += 1;
            let operation = Operation { request: request.map(RequestId), command };
            self.0.entry(self.1, &[operation], &[Ok(reply)])
        }

        fn enqueue(&mut self, request: u128, payload: &[u8], id: u64) -> Wrong {
            let tasks = vec![NewTask { payload: payload.to_vec(), ..NewTask::default() }];
            self.entry(Some(request), Command::Enqueue { tasks }, Reply::Tasks(vec![TaskId(id)]))
        }

        fn grant(&mut self, id: u64, position: u64) -> Wrong {
            let granted = Reply::Granted { token: token(position), attempt: 1 };
            self.entry(None, Command::Grant { task: TaskId(id), session: SESSION }, granted)
        }

        fn complete(&mut self, payload: &[u8], id: u64, position: u64) -> Wrong {
            let result = work::result(payload);
            let command = Command::Complete { task: TaskId(id), token: token(position), result, children: vec![] };
            self.entry(None, command, Reply::Completed { children: vec![] })
        }
    }

    fn log() -> (Log, Vec<u8>) {
        let mut log = Log(Audit::default(), 0);
        let payload = plain();
        assert_eq!(log.enqueue(1, &payload, 1), Wrong::new());
        (log, payload)
    }

    #[test]
    fn a_request_or_a_payload_that_takes_effect_twice_is_seen() {
        let (mut log, payload) = log();
        assert_eq!(log.enqueue(1, &payload, 1), Wrong::new(), "the same reply again");
        assert!(log.enqueue(1, &payload, 2)[0].contains("took effect twice"));
        assert!(log.enqueue(2, &payload, 3)[0].contains("is task 1 and task 3"));
    }

    #[test]
    fn a_second_grant_and_a_token_given_twice_are_seen() {
        let (mut log, _) = log();
        assert_eq!(log.grant(1, 5), Wrong::new());
        assert!(log.grant(1, 6)[0].contains("while session"));
        assert!(log.grant(2, 5)[0].contains("token 5.0 was given twice"));
    }

    #[test]
    fn a_stale_token_and_a_second_completion_are_seen() {
        let (mut log, payload) = log();
        log.grant(1, 5);
        let ended = log.entry(None, Command::ExpireSession { session: SESSION }, Reply::Done);
        assert_eq!(ended, Wrong::new());
        log.grant(1, 7);
        assert!(log.complete(&payload, 1, 5)[0].contains("stale token"));
        assert!(log.complete(&payload, 1, 7)[0].contains("completes twice"));
        assert!(log.grant(1, 9)[0].contains("after its end"));
    }

    #[test]
    fn an_end_that_nobody_asked_for_is_seen() {
        let (mut log, _) = log();
        assert!(log.entry(None, Command::Cancel { task: TaskId(1) }, Reply::Cancelled)[0].contains("nobody asked for"));
        let dying = payload(work::dies);
        log.enqueue(2, &dying, 2);
        log.grant(2, 8);
        let fail = |id| Command::Fail {
            task: TaskId(id),
            token: token(8),
            error: String::new(),
            permanent: true,
            retry_at: None,
        };
        assert!(log.entry(None, fail(2), Reply::Failed { dead: false })[0].contains("given up: false"));
    }

    #[test]
    fn an_acknowledgement_that_is_not_in_the_log_is_seen() {
        let (mut log, payload) = log();
        assert_eq!(log.0.acknowledged_enqueue(&payload, TaskId(1)), None);
        assert!(log.0.acknowledged_enqueue(b"other", TaskId(1)).is_some());
        assert!(log.0.acknowledged_enqueue(b"other", TaskId(2)).is_some());
        assert!(log.0.acknowledged_completion(TaskId(1), &[]).is_some());
        assert!(log.0.acknowledged_cancel(TaskId(1)).is_some());
        assert!(log.0.refused(&payload).is_some());
        assert_eq!(log.0.refused(b"never"), None);
        assert!(log.enqueue(4, b"never", 4)[0].contains("told to have failed"));
    }

    #[test]
    fn a_machine_that_differs_and_a_task_that_does_not_end_are_seen() {
        let (mut log, payload) = log();
        log.0.acknowledged_enqueue(&payload, TaskId(1));
        let empty = Control::new();
        assert!(log.0.look_at_touched(&empty)[0].contains("the machine has task 1"));
        assert!(log.0.conclude(&empty)[0].contains("was acknowledged and is None"));
    }
}
