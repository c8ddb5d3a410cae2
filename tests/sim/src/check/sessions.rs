//! Sessions: one ends by a proposal only. It expires when its agent has given its lease up, and is closed when its agent
//! has closed it, by the stream that it has now.

use std::collections::{BTreeMap, BTreeSet};

use quorate_state::control::{Command, Reply};
use quorate_state::{Operation, Reject, SessionId};

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// At this millisecond.
    Expired(u64),
    Closed,
}

/// What agents that are watched know of their sessions, and what the log says.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    ended: BTreeMap<SessionId, End>,
    /// Until which millisecond the agents that hold a session may act for it.
    leases: BTreeMap<SessionId, u64>,
    /// Sessions that their agents have closed.
    closing: BTreeSet<SessionId>,
}

impl Sessions {
    /// An agent that is watched was told that it has a lease until `until_ms`.
    #[must_use]
    pub(crate) fn holds(&mut self, session: SessionId, until_ms: u64) -> Option<String> {
        match self.ended.get(&session) {
            Some(End::Expired(at)) if until_ms > *at => Some(format!(
                "sessions: session {session} expired at {at} ms and its agent is told later that it lives until {until_ms} ms"
            )),
            Some(_) => None,
            None => {
                self.leases.insert(session, until_ms);
                None
            }
        }
    }

    /// An agent that is watched says nothing more for its session.
    pub(crate) fn gives_up(&mut self, session: SessionId) {
        self.leases.remove(&session);
    }

    /// An agent that is watched closes its session.
    pub(crate) fn closes(&mut self, session: SessionId) {
        self.closing.insert(session);
        self.gives_up(session);
    }

    /// An entry is applied for the first time anywhere.
    pub(crate) fn entry(
        &mut self,
        now_ms: u64,
        operations: &[Operation<Command>],
        replies: &[Result<Reply, Reject>],
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        for (operation, reply) in operations.iter().zip(replies) {
            if reply.is_err() {
                continue;
            }
            match operation.command {
                Command::ExpireSession { session } => {
                    self.ended.insert(session, End::Expired(now_ms));
                    if let Some(until) = self.leases.remove(&session).filter(|until| *until > now_ms) {
                        wrong.push(format!(
                            "sessions: session {session} expires at {now_ms} ms and its agent was told that it lives until {until} ms"
                        ));
                    }
                }
                Command::CloseSession { session, .. } => {
                    self.ended.insert(session, End::Closed);
                    if self.leases.remove(&session).is_some() && !self.closing.contains(&session) {
                        wrong.push(format!(
                            "sessions: session {session} is closed by a stream that its agent had left before"
                        ));
                    }
                }
                _ => {}
            }
        }
        wrong
    }

    /// An agent was told that its session is over.
    #[must_use]
    pub(crate) fn told_over(&mut self, session: SessionId) -> Option<String> {
        self.gives_up(session);
        (!self.ended.contains_key(&session))
            .then(|| format!("sessions: the agent of session {session} was told that it is over, and no entry ends it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: SessionId = SessionId(7);

    fn entry(sessions: &mut Sessions, now_ms: u64, command: Command) -> Vec<String> {
        sessions.entry(now_ms, &[Operation::new(command)], &[Ok(Reply::Done)])
    }

    #[test]
    fn a_session_that_ends_before_its_lease_is_seen() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.holds(SESSION, 100), None);
        assert_eq!(entry(&mut sessions, 101, Command::ExpireSession { session: SESSION }), Vec::<String>::new());
        assert_eq!(sessions.holds(SESSION, 101), None, "the word of before comes late");
        assert!(sessions.holds(SESSION, 200).is_some());
        assert_eq!(sessions.told_over(SESSION), None);
        assert_eq!(sessions.holds(SessionId(9), 200), None);
        assert_eq!(entry(&mut sessions, 150, Command::ExpireSession { session: SessionId(9) }).len(), 1);
        assert!(sessions.told_over(SessionId(8)).is_some());
    }

    #[test]
    fn a_close_that_its_agent_did_not_mean_is_seen() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.holds(SESSION, 100), None);
        assert_eq!(entry(&mut sessions, 50, Command::CloseSession { session: SESSION, attachment: 0 }).len(), 1);
        let other = SessionId(9);
        assert_eq!(sessions.holds(other, 100), None);
        sessions.closes(other);
        assert_eq!(
            entry(&mut sessions, 60, Command::CloseSession { session: other, attachment: 0 }),
            Vec::<String>::new()
        );
    }
}
