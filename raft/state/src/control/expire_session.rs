//! `ExpireSession`: a session fell silent. Its attempts have failed, whatever became of them.

use super::Control;
use super::command::{Effect, Reply};
use super::fail::Failure;
use super::step::Step;
use crate::{Reject, SessionId, TaskId};

impl Control {
    pub(super) fn expire_session(&mut self, step: &mut Step, session: SessionId) -> Result<Reply, Reject> {
        let agent = self.sessions.get(session).ok_or(Reject::SessionNotFound { session })?.agent.clone();
        for task in self.take_attempts(step, session) {
            #[cfg(feature = "planted")]
            if crate::planted::is("kept-attempts") {
                self.tasks.change(task, &mut step.changes, |task| task.token = crate::Token::default());
                continue;
            }
            let error = format!("session {session} of agent {agent} fell silent");
            self.fail_attempt(step, task, Failure { error, permanent: false, retry_at: None, reported: false });
        }
        self.sessions.end(session, &mut step.changes);
        step.effects.push(Effect::SessionEnded { session });
        Ok(Reply::Done)
    }

    /// Takes all attempts from a session and returns their tasks, which are still marked as granted.
    pub(super) fn take_attempts(&mut self, step: &mut Step, session: SessionId) -> Vec<TaskId> {
        let running = self.sessions.running(session).to_vec();
        for &(task, token) in &running {
            self.sessions.stop(session, task);
            step.effects.push(Effect::AttemptLost { session, task, token });
        }
        running.into_iter().map(|(task, _)| task).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::{Cluster, task};
    use crate::control::{Command, Effect, NewTask, Reply, RetryPolicy, TaskState};
    use crate::{Reject, SessionId};

    #[test]
    fn its_attempts_have_failed() {
        let mut cluster = Cluster::of(1);
        let once = NewTask { retry: RetryPolicy { max_attempts: 1, ..RetryPolicy::default() }, ..task("q", "work") };
        let tasks = cluster.enqueue(vec![task("q", "work"), once]);
        let session = cluster.session(&["work"], 2);
        let tokens = [cluster.grant(tasks[0], session), cluster.grant(tasks[1], session)];
        let outcome = cluster.outcome(vec![Command::ExpireSession { session }]);
        assert_eq!(outcome.replies, [Ok(Reply::Done)]);
        assert_eq!(
            outcome.effects,
            [
                Effect::AttemptLost { session, task: tasks[0], token: tokens[0] },
                Effect::AttemptLost { session, task: tasks[1], token: tokens[1] },
                Effect::Finished { task: tasks[1], state: TaskState::Dead },
                Effect::SessionEnded { session },
                Effect::TasksReady { roles: vec!["work".into()] },
            ]
        );
        assert_eq!(cluster.state.task(tasks[0]).expect("live").failures, 1);
        assert_eq!(cluster.state.ready("work", None).collect::<Vec<_>>(), [tasks[0]]);
        assert!(cluster.error(tasks[0]).is_some());
        assert!(cluster.state.session(session).is_none());
    }

    #[test]
    fn refuses_a_session_that_is_not_there() {
        let mut cluster = Cluster::of(1);
        let session = cluster.session(&["r"], 1);
        cluster.run(Command::ExpireSession { session }).expect("open");
        let refused = Err(Reject::SessionNotFound { session });
        assert_eq!(cluster.run(Command::ExpireSession { session }), refused);
        let never = SessionId(1);
        assert_eq!(
            cluster.run(Command::ExpireSession { session: never }),
            Err(Reject::SessionNotFound { session: never })
        );
    }
}
