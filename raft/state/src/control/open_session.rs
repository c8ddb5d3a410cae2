//! `OpenSession`: an agent begins to take tasks.

use super::Control;
use super::command::{Effect, Reply};
use super::names::check_name;
use super::sessions::SessionRecord;
use super::step::Step;
use crate::{Reject, SessionId};

/// The most sessions of a cluster.
const MAX_SESSIONS: usize = 65_536;
/// The most roles of a session.
const MAX_ROLES: usize = 64;
/// The most tasks that a session takes at once.
const MAX_SLOTS: u32 = 4_096;
/// The shortest and the longest time to live, milliseconds.
const TTL_MS: std::ops::RangeInclusive<u64> = 100..=86_400_000;

impl Control {
    pub(super) fn open_session(
        &mut self,
        step: &mut Step,
        agent: String,
        roles: Vec<String>,
        slots: u32,
        ttl_ms: u64,
    ) -> Result<Reply, Reject> {
        self.check_session(&agent, &roles, slots, ttl_ms)?;
        let session = SessionId(step.mint_ids(1)?);
        let mut roles: Vec<u32> = roles.iter().map(|role| self.roles.intern(role, &mut step.changes)).collect();
        roles.sort_unstable();
        roles.dedup();
        let record = SessionRecord { agent, roles, slots, ttl_ms, opened: step.now(), attachment: 0 };
        self.sessions.open(session, record, &mut step.changes);
        step.effects.push(Effect::SessionOpened { session });
        Ok(Reply::Session { session })
    }

    fn check_session(&self, agent: &str, roles: &[String], slots: u32, ttl_ms: u64) -> Result<(), Reject> {
        check_name("agent", agent)?;
        if !(1..=MAX_ROLES).contains(&roles.len()) {
            return Err(Reject::invalid(format!("a session has 1 to {MAX_ROLES} roles, not {}", roles.len())));
        }
        for role in roles {
            check_name("role", role)?;
        }
        if !(1..=MAX_SLOTS).contains(&slots) {
            return Err(Reject::invalid(format!("a session has 1 to {MAX_SLOTS} slots, not {slots}")));
        }
        if !TTL_MS.contains(&ttl_ms) {
            let (shortest, longest) = (TTL_MS.start(), TTL_MS.end());
            return Err(Reject::invalid(format!(
                "a session lives {shortest} to {longest} ms without a word, not {ttl_ms}"
            )));
        }
        if self.sessions.records().len() >= MAX_SESSIONS {
            return Err(Reject::LimitReached { what: "sessions".to_owned(), limit: MAX_SESSIONS as u64 });
        }
        self.roles.check_room(roles.iter().filter(|role| self.roles.number(role).is_none()).count())
    }
}

#[cfg(test)]
mod tests {
    use crate::Reject;
    use crate::control::testing::Cluster;
    use crate::control::{Command, Effect};

    fn open(agent: &str, roles: &[&str], slots: u32, ttl_ms: u64) -> Command {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        Command::OpenSession { agent: agent.to_owned(), roles, slots, ttl_ms }
    }

    #[test]
    fn each_opening_is_a_session_of_its_own() {
        let mut cluster = Cluster::of(1);
        let outcome =
            cluster.outcome(vec![open("a", &["write", "read", "write"], 2, 1_000), open("a", &["read"], 1, 1_000)]);
        let sessions: Vec<_> = cluster.state.sessions().collect();
        assert_eq!(sessions.len(), 2);
        assert_eq!(sessions[0].roles.iter().map(|role| &**role).collect::<Vec<_>>(), ["write", "read"]);
        assert_eq!(sessions[0].free_slots(), 2);
        let opened: Vec<_> = sessions.iter().map(|view| Effect::SessionOpened { session: view.id }).collect();
        assert_eq!(outcome.effects, opened);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let mut cluster = Cluster::of(1);
        let many: Vec<String> = (0..65).map(|nth| format!("r{nth}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for bad in [
            open("", &["r"], 1, 1_000),
            open("a", &[], 1, 1_000),
            open("a", &many, 1, 1_000),
            open("a", &[""], 1, 1_000),
            open("a", &["r"], 0, 1_000),
            open("a", &["r"], 1, 1),
        ] {
            assert!(matches!(cluster.run(bad), Err(Reject::InvalidArgument { .. })));
        }
        assert_eq!(cluster.state.sessions().count(), 0);
    }
}
