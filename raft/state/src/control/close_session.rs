//! `CloseSession`: a session ends in good order and gives back what it runs. Nothing has failed. Only the stream that its agent
//! has now can say so: who says it on one that was left does not know who performs the attempts today.

use super::Control;
use super::command::{Effect, Reply};
use super::step::Step;
use super::tasks::Stage;
use crate::{Reject, SessionId};

impl Control {
    pub(super) fn close_session(
        &mut self,
        step: &mut Step,
        session: SessionId,
        attachment: u64,
    ) -> Result<Reply, Reject> {
        let Some(record) = self.sessions.get(session) else { return Err(Reject::SessionNotFound { session }) };
        if attachment < record.attachment {
            return Err(Reject::StreamLeft { session, attachment: record.attachment });
        }
        for task in self.take_attempts(step, session) {
            self.tasks.change(task, &mut step.changes, |task| task.stage = Stage::Ready);
        }
        self.sessions.end(session, &mut step.changes);
        step.effects.push(Effect::SessionEnded { session });
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::Cluster;
    use crate::control::{Command, Effect, Reply, TaskState};
    use crate::{Reject, SessionId};

    #[test]
    fn gives_back_what_it_runs_without_a_failure() {
        let mut cluster = Cluster::of(1);
        let (id, session, token) = cluster.granted();
        let outcome = cluster.outcome(vec![Command::CloseSession { session, attachment: 0 }]);
        assert_eq!(outcome.replies, [Ok(Reply::Done)]);
        assert_eq!(outcome.effects[0], Effect::AttemptLost { session, task: id, token });
        let view = cluster.state.task(id).expect("live");
        assert_eq!((view.state, view.attempts, view.failures), (TaskState::Ready, 1, 0));
        let late = Command::Complete { task: id, token, result: vec![], children: vec![] };
        assert_eq!(cluster.run(late), Err(Reject::StaleToken { task: id }));
    }

    #[test]
    fn refuses_a_session_that_is_not_there() {
        let never = SessionId(4);
        let refused = Cluster::of(1).run(Command::CloseSession { session: never, attachment: 0 });
        assert_eq!(refused, Err(Reject::SessionNotFound { session: never }));
    }
    #[test]
    fn a_close_on_a_stream_that_was_left_ends_nothing() {
        let mut cluster = Cluster::of(1);
        let (id, session, token) = cluster.granted();
        cluster.run(Command::AttachSession { session, attachment: 2 }).expect("open");
        let refused = cluster.run(Command::CloseSession { session, attachment: 1 });
        assert_eq!(refused, Err(Reject::StreamLeft { session, attachment: 2 }));
        assert_eq!(cluster.state.running(session), [(id, token)]);
        cluster.run(Command::CloseSession { session, attachment: 2 }).expect("the stream that it has now");
        assert!(cluster.state.session(session).is_none());
    }
}
