//! `Grant`: a task goes to a session. The leader has chosen both; here it is made sure that they still fit.

use super::Control;
use super::command::{Effect, Reply};
use super::step::Step;
use super::tasks::Stage;
use crate::{Reject, SessionId, TaskId};

impl Control {
    pub(super) fn grant(&mut self, step: &mut Step, task: TaskId, session: SessionId) -> Result<Reply, Reject> {
        let record = self.sessions.get(session).ok_or(Reject::SessionNotFound { session })?;
        let found = self.live_task(task)?;
        if found.stage != Stage::Ready {
            return Err(Reject::TaskNotReady { task });
        }
        if record.roles.binary_search(&found.role).is_err() {
            return Err(Reject::RoleMissing { session, task });
        }
        if self.sessions.running(session).len() >= record.slots as usize {
            return Err(Reject::NoFreeSlot { session });
        }
        let token = step.mint_token();
        let attempt = found.attempts + 1;
        self.tasks.change(task, &mut step.changes, |task| {
            task.stage = Stage::Granted { session };
            task.attempts = attempt;
            task.token = token;
            task.reported = false;
        });
        self.sessions.start(session, task, token);
        step.effects.push(Effect::Granted { task, session, token, attempt });
        Ok(Reply::Granted { token, attempt })
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::{Cluster, task};
    use crate::control::{Command, Effect, Reply, TaskState};
    use crate::{Reject, SessionId, TaskId, Token};

    #[test]
    fn the_token_is_the_place_in_the_log() {
        let mut cluster = Cluster::of(1);
        let tasks = cluster.enqueue(vec![task("q", "r"), task("q", "r")]);
        let session = cluster.session(&["r"], 2);
        let grant = |task| Command::Grant { task, session };
        let outcome = cluster.outcome(vec![grant(tasks[0]), grant(tasks[1])]);
        let position = cluster.state.last_position().0;
        let tokens = [Token { position, ordinal: 0 }, Token { position, ordinal: 1 }];
        assert_eq!(outcome.replies, tokens.map(|token| Ok(Reply::Granted { token, attempt: 1 })),);
        assert_eq!(outcome.effects[1], Effect::Granted { task: tasks[1], session, token: tokens[1], attempt: 1 });
        let view = cluster.state.session(session).expect("open");
        assert_eq!(view.running, [(tasks[0], tokens[0]), (tasks[1], tokens[1])]);
        assert_eq!(view.free_slots(), 0);
        assert_eq!(cluster.state.task(tasks[0]).expect("live").session, Some(session));
        assert_eq!(cluster.state.roles_ready().count(), 0);
    }

    #[test]
    fn a_task_enqueued_in_the_same_entry_can_be_granted() {
        let mut cluster = Cluster::of(1);
        let session = cluster.session(&["r"], 1);
        let id = TaskId((cluster.state.last_position().0 + 1) << 16);
        let enqueue = Command::Enqueue { tasks: vec![task("q", "r")] };
        let outcome = cluster.outcome(vec![enqueue, Command::Grant { task: id, session }]);
        assert!(matches!(outcome.replies[1], Ok(Reply::Granted { .. })));
        assert_eq!(cluster.state.task_state(id), Some(TaskState::Granted));
        let woken = outcome.effects.iter().any(|effect| matches!(effect, Effect::TasksReady { .. }));
        assert!(!woken, "there is nothing left to be matched");
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut cluster = Cluster::of(1);
        let tasks = cluster.enqueue(vec![task("q", "r"), task("q", "r"), task("q", "other")]);
        let session = cluster.session(&["r"], 1);
        let gone = SessionId(1);
        let mut grant = |task, session| cluster.run(Command::Grant { task, session });
        assert_eq!(grant(tasks[0], gone), Err(Reject::SessionNotFound { session: gone }));
        assert_eq!(grant(TaskId(5), session), Err(Reject::TaskNotFound { task: TaskId(5) }));
        assert_eq!(grant(tasks[2], session), Err(Reject::RoleMissing { session, task: tasks[2] }));
        grant(tasks[0], session).expect("it fits");
        assert_eq!(grant(tasks[0], session), Err(Reject::TaskNotReady { task: tasks[0] }));
        assert_eq!(grant(tasks[1], session), Err(Reject::NoFreeSlot { session }));
        cluster.run(Command::Cancel { task: tasks[1] }).expect("it is live");
        let finished = Reject::TaskFinished { task: tasks[1], state: TaskState::Cancelled };
        assert_eq!(cluster.run(Command::Grant { task: tasks[1], session }), Err(finished));
    }
}
