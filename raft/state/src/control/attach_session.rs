//! `AttachSession`: the agent of a session goes on by another stream. It is in the log so that every later leader knows which
//! streams were left, whichever of them is shown to it first.

use super::Control;
use super::command::Reply;
use super::step::Step;
use crate::{Reject, SessionId};

impl Control {
    pub(super) fn attach_session(
        &mut self,
        step: &mut Step,
        session: SessionId,
        attachment: u64,
    ) -> Result<Reply, Reject> {
        let Some(record) = self.sessions.get(session) else { return Err(Reject::SessionNotFound { session }) };
        if attachment < record.attachment {
            return Err(Reject::StreamLeft { session, attachment: record.attachment });
        }
        if attachment > record.attachment {
            self.sessions.attach(session, attachment, &mut step.changes);
        }
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::Cluster;
    use crate::control::{Command, Reply};
    use crate::{Reject, SessionId};

    #[test]
    fn streams_only_follow_each_other() {
        let mut cluster = Cluster::of(1);
        let session = cluster.session(&["r"], 1);
        let mut attach = |attachment| cluster.run(Command::AttachSession { session, attachment });
        assert_eq!(attach(3), Ok(Reply::Done));
        assert_eq!(attach(3), Ok(Reply::Done), "the same one is shown to the next leader");
        assert_eq!(attach(2), Err(Reject::StreamLeft { session, attachment: 3 }));
        assert_eq!(cluster.state.session(session).map(|view| view.attachment), Some(3));
    }

    #[test]
    fn refuses_a_session_that_is_not_there() {
        let never = SessionId(4);
        let refused = Cluster::of(1).run(Command::AttachSession { session: never, attachment: 1 });
        assert_eq!(refused, Err(Reject::SessionNotFound { session: never }));
    }
}
