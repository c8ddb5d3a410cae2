//! `Complete`: the task is done; its result and its children come into being in the same instant.

use super::Control;
use super::command::{Effect, Reply};
use super::read::consecutive;
use super::step::Step;
use super::tasks::{End, LiveTask, NewTask, Stage};
use crate::{Reject, SessionId, TaskId, Token};

/// The largest result of a task, bytes.
pub const MAX_RESULT_BYTES: usize = 4 << 20;

impl Control {
    pub(super) fn complete(
        &mut self,
        step: &mut Step,
        task: TaskId,
        token: Token,
        result: Vec<u8>,
        children: Vec<NewTask>,
    ) -> Result<Reply, Reject> {
        if let Some(finished) = self.tasks.finished().get(&task)
            && let End::Completed { first_child, children: count } = finished.end
            && finished.token == token
        {
            #[cfg(feature = "planted")]
            if crate::planted::is("double-completion") {
                let first_child = self.add_tasks(step, children, task)?;
                return Ok(Reply::Completed { children: consecutive(first_child, count) });
            }
            return Ok(Reply::Completed { children: consecutive(first_child, count) });
        }
        #[cfg(feature = "planted")]
        let children = if crate::planted::is("lost-child") && !step.replies.is_empty() { Vec::new() } else { children };
        let session = self.attempt(task, token)?;
        if result.len() > MAX_RESULT_BYTES {
            return Err(Reject::invalid(format!(
                "a result has at most {MAX_RESULT_BYTES} bytes, not {}: put large data elsewhere and its address here",
                result.len()
            )));
        }
        self.check_new_tasks(&children)?;
        let count = children.len() as u32;
        let first_child = self.add_tasks(step, children, task)?;
        let end = End::Completed { first_child, children: count };
        self.sessions.stop(session, task);
        self.tasks.finish(task, step.meta.time, end, Some(result), &mut step.changes);
        step.effects.push(Effect::AttemptEnded { session, task, token });
        step.effects.push(Effect::Finished { task, state: super::TaskState::Completed });
        Ok(Reply::Completed { children: consecutive(first_child, count) })
    }

    /// A task that has not finished.
    pub(super) fn live_task(&self, task: TaskId) -> Result<&LiveTask, Reject> {
        match self.tasks.live().get(&task) {
            Some(found) => Ok(found),
            None => Err(match self.tasks.finished().get(&task) {
                Some(finished) => Reject::TaskFinished { task, state: finished.state() },
                None => Reject::TaskNotFound { task },
            }),
        }
    }

    /// The session of the attempt with this token, if that is the current one.
    pub(super) fn attempt(&self, task: TaskId, token: Token) -> Result<SessionId, Reject> {
        #[cfg(feature = "planted")]
        if crate::planted::is("stale-token")
            && let LiveTask { stage: Stage::Granted { session }, .. } = self.live_task(task)?
        {
            return Ok(*session);
        }
        match self.live_task(task)? {
            LiveTask { stage: Stage::Granted { session }, token: current, .. } if *current == token => Ok(*session),
            _ => Err(Reject::StaleToken { task }),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::{Cluster, task};
    use crate::control::{Command, Effect, Reply, TaskState};
    use crate::{Reject, TaskId, Token};

    fn complete(task: TaskId, token: Token) -> Command {
        Command::Complete { task, token, result: b"done".to_vec(), children: vec![] }
    }

    #[test]
    fn keeps_the_result_drops_the_payload_and_frees_the_slot() {
        let mut cluster = Cluster::of(1);
        let (id, session, token) = cluster.granted();
        assert!(cluster.payload(id).is_some());
        let outcome = cluster.outcome(vec![complete(id, token)]);
        assert_eq!(outcome.replies, [Ok(Reply::Completed { children: vec![] })]);
        assert_eq!(
            outcome.effects,
            [
                Effect::AttemptEnded { session, task: id, token },
                Effect::Finished { task: id, state: TaskState::Completed }
            ]
        );
        assert_eq!(cluster.result(id).as_deref(), Some(&b"done"[..]));
        assert_eq!(cluster.payload(id), None);
        let view = cluster.state.task(id).expect("kept");
        assert_eq!((view.state, view.result_bytes, view.has_payload), (TaskState::Completed, 4, false));
        assert_eq!(cluster.state.session(session).expect("open").free_slots(), 1);
    }

    #[test]
    fn the_same_token_again_gets_the_same_reply_and_does_nothing() {
        let mut cluster = Cluster::of(1);
        let (id, _, token) = cluster.granted();
        let children = vec![task("q", "review"), task("q", "review")];
        let done = Command::Complete { task: id, token, result: vec![], children };
        let first = cluster.run(done.clone()).expect("the attempt is the current one");
        let again = cluster.outcome(vec![done]);
        assert_eq!(again.replies, [Ok(first.clone())]);
        assert_eq!(again.effects, []);
        let Reply::Completed { children } = first else { panic!("completed") };
        assert_eq!(cluster.state.ready("review", None).collect::<Vec<_>>(), children);
        assert_eq!(cluster.state.task(children[1]).expect("live").parent, Some(id));
        assert_eq!(cluster.state.task(id).expect("kept").children, children);
    }

    #[test]
    fn a_refusal_leaves_the_attempt_as_it_was() {
        let mut cluster = Cluster::of(1);
        let (id, _, token) = cluster.granted();
        let bad_child =
            Command::Complete { task: id, token, result: vec![], children: vec![task("q", "r"), task("", "r")] };
        assert!(matches!(cluster.run(bad_child), Err(Reject::InvalidArgument { .. })));
        let huge = Command::Complete { task: id, token, result: vec![0; (4 << 20) + 1], children: vec![] };
        assert!(matches!(cluster.run(huge), Err(Reject::InvalidArgument { .. })));
        assert_eq!(cluster.state.task_state(id), Some(TaskState::Granted));
        assert_eq!(cluster.run(complete(id, token)), Ok(Reply::Completed { children: vec![] }));
    }

    #[test]
    fn a_stale_attempt_cannot_complete() {
        let mut cluster = Cluster::of(1);
        let (id, session, stale) = cluster.granted();
        cluster.run(Command::ExpireSession { session }).expect("open");
        assert_eq!(cluster.run(complete(id, stale)), Err(Reject::StaleToken { task: id }));
        let session = cluster.session(&["work"], 1);
        let current = cluster.grant(id, session);
        assert_eq!(cluster.run(complete(id, stale)), Err(Reject::StaleToken { task: id }));
        cluster.run(complete(id, current)).expect("the current attempt");
        let finished = Reject::TaskFinished { task: id, state: TaskState::Completed };
        assert_eq!(cluster.run(complete(id, stale)), Err(finished));
        let unknown = TaskId(3);
        assert_eq!(cluster.run(complete(unknown, current)), Err(Reject::TaskNotFound { task: unknown }));
    }
}
