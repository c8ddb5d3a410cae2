//! Leases: when a task is granted, whoever had it before has stopped performing it. The agent SDK promises that for clocks
//! that run at the same rate, as all agents' clocks here do.

use std::collections::{BTreeMap, BTreeSet};

use quorate_state::{TaskId, Token};

use super::Wrong;

/// The handlers that run.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    running: BTreeMap<(TaskId, Token), usize>,
    /// The last grant of each task in the log.
    granted: BTreeMap<TaskId, Token>,
    /// Tasks whose completion an agent was told.
    completed: BTreeSet<TaskId>,
}

impl Leases {
    /// An agent begins to perform an attempt. Nobody may have begun it before.
    pub(crate) fn begins(&mut self, agent: usize, task: TaskId, token: Token) -> Wrong {
        let others = self.others(task, token);
        let mut wrong: Wrong = others
            .filter(|(other, _)| *other > token)
            .map(|(other, holder)| {
                format!(
                    "leases: agent {} begins attempt {token} of task {task} while agent {} has the later attempt {other}",
                    agent + 1,
                    holder + 1
                )
            })
            .collect();
        if self.granted.get(&task).is_none_or(|granted| *granted < token) {
            wrong.push(format!(
                "leases: agent {} begins attempt {token} of task {task}, which no replica has applied the grant of",
                agent + 1
            ));
        }
        if self.completed.contains(&task) {
            wrong.push(format!(
                "leases: agent {} begins attempt {token} of task {task}, whose completion was acknowledged before",
                agent + 1
            ));
        }
        if let Some(holder) = self.running.insert((task, token), agent) {
            wrong.push(format!(
                "leases: attempt {token} of task {task} is performed by agent {} and by agent {}",
                holder + 1,
                agent + 1
            ));
        }
        wrong
    }

    /// The attempt is over, by whatever end.
    pub(crate) fn ends(&mut self, task: TaskId, token: Token) {
        self.running.remove(&(task, token));
    }

    /// An agent was told that its completion of the task took effect.
    pub(crate) fn completed(&mut self, task: TaskId) {
        self.completed.insert(task);
    }

    /// A grant took effect.
    pub(crate) fn granted(&mut self, task: TaskId, token: Token) -> Wrong {
        self.granted.insert(task, token);
        self.others(task, token)
            .filter(|(other, _)| *other < token)
            .map(|(other, holder)| {
                format!(
                    "leases: task {task} is granted as {token} while agent {} still performs attempt {other}",
                    holder + 1
                )
            })
            .collect()
    }

    fn others(&self, task: TaskId, token: Token) -> impl Iterator<Item = (Token, usize)> {
        let all = (task, Token::default())..=(task, Token { position: u64::MAX, ordinal: u32::MAX });
        self.running.range(all).map(|((_, other), holder)| (*other, *holder)).filter(move |(other, _)| *other != token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: TaskId = TaskId(7);

    fn token(position: u64) -> Token {
        Token { position, ordinal: 0 }
    }

    #[test]
    fn a_grant_beside_a_running_attempt_is_seen() {
        let mut leases = Leases::default();
        assert_eq!(leases.granted(TASK, token(1)), Wrong::new());
        assert_eq!(leases.begins(0, TASK, token(1)), Wrong::new());
        assert_eq!(leases.granted(TaskId(8), token(2)), Wrong::new());
        assert!(leases.granted(TASK, token(2))[0].contains("leases"));
        leases.ends(TASK, token(1));
        assert_eq!(leases.granted(TASK, token(2)), Wrong::new());
    }

    #[test]
    fn an_attempt_that_begins_late_or_twice_is_seen() {
        let mut leases = Leases::default();
        assert_eq!(leases.granted(TASK, token(2)), Wrong::new());
        assert_eq!(leases.begins(0, TASK, token(2)), Wrong::new());
        assert!(leases.begins(1, TASK, token(1))[0].contains("later attempt"));
        leases.ends(TASK, token(1));
        assert!(leases.begins(1, TASK, token(2))[0].contains("performed by agent"));
        leases.ends(TASK, token(2));
        leases.completed(TASK);
        assert!(leases.begins(0, TASK, token(2))[0].contains("acknowledged before"));
    }

    #[test]
    fn an_attempt_that_the_log_has_not_granted_is_seen() {
        let mut leases = Leases::default();
        assert!(leases.begins(0, TASK, token(1))[0].contains("has applied the grant"));
        leases.ends(TASK, token(1));
        assert_eq!(leases.granted(TASK, token(2)), Wrong::new());
        assert!(leases.begins(0, TASK, token(3))[0].contains("has applied the grant"));
    }
}
