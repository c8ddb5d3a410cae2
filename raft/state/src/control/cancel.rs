//! `Cancel`: a task is called off. Its holder, if there is one, is told to drop it.

use super::Control;
use super::command::{Effect, Reply};
use super::step::Step;
use super::tasks::{End, Stage, TaskState};
use crate::{Reject, TaskId};

impl Control {
    pub(super) fn cancel(&mut self, step: &mut Step, task: TaskId) -> Result<Reply, Reject> {
        let found = self.live_task(task)?;
        if let Stage::Granted { session } = found.stage {
            let token = found.token;
            self.sessions.stop(session, task);
            step.effects.push(Effect::AttemptLost { session, task, token });
        }
        self.tasks.finish(task, step.meta.time, End::Cancelled, None, &mut step.changes);
        step.effects.push(Effect::Finished { task, state: TaskState::Cancelled });
        Ok(Reply::Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::{Cluster, task};
    use crate::control::{Command, Effect, Reply, TaskState};
    use crate::{Reject, TaskId};

    #[test]
    fn a_ready_task_is_called_off() {
        let mut cluster = Cluster::of(1);
        let id = cluster.enqueue(vec![task("q", "r")])[0];
        assert_eq!(cluster.run(Command::Cancel { task: id }), Ok(Reply::Cancelled));
        assert_eq!(cluster.state.ready("r", None).count(), 0);
        assert_eq!(cluster.payload(id), None);
        assert_eq!(cluster.state.queues().next().expect("counted").cancelled, 1);
    }

    #[test]
    fn a_waiting_task_is_called_off() {
        let mut cluster = Cluster::of(1);
        let (id, _, token) = cluster.granted();
        let retry_at = Some(cluster.state.time().plus_ms(10));
        let fail = Command::Fail { task: id, token, error: String::new(), permanent: false, retry_at };
        cluster.run(fail).expect("the current attempt");
        cluster.run(Command::Cancel { task: id }).expect("it waits");
        assert_eq!(cluster.state.next_due(), None);
    }

    #[test]
    fn the_holder_is_told() {
        let mut cluster = Cluster::of(1);
        let (id, session, token) = cluster.granted();
        let outcome = cluster.outcome(vec![Command::Cancel { task: id }]);
        assert_eq!(
            outcome.effects,
            [
                Effect::AttemptLost { session, task: id, token },
                Effect::Finished { task: id, state: TaskState::Cancelled }
            ]
        );
        assert_eq!(cluster.state.session(session).expect("open").free_slots(), 1);
        let late = Command::Complete { task: id, token, result: vec![], children: vec![] };
        assert_eq!(cluster.run(late), Err(Reject::TaskFinished { task: id, state: TaskState::Cancelled }));
    }

    #[test]
    fn refuses_what_is_finished_or_unknown() {
        let mut cluster = Cluster::of(1);
        let id = cluster.enqueue(vec![task("q", "r")])[0];
        cluster.run(Command::Cancel { task: id }).expect("it is live");
        let finished = Reject::TaskFinished { task: id, state: TaskState::Cancelled };
        assert_eq!(cluster.run(Command::Cancel { task: id }), Err(finished));
        assert_eq!(cluster.run(Command::Cancel { task: TaskId(1) }), Err(Reject::TaskNotFound { task: TaskId(1) }));
    }
}
