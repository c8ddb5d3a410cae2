//! `GrantEnqueued`: a task that comes into being in this very entry goes to a session that is waiting for one. Its id is not
//! known before the entry has its position, so it is named by its place in the entry: a task that is wanted is enqueued
//! and granted in one commit.

use super::Control;
use super::command::Reply;
use super::step::Step;
use crate::{Reject, SessionId};

impl Control {
    pub(super) fn grant_enqueued(
        &mut self,
        step: &mut Step,
        operation: u32,
        nth: u32,
        session: SessionId,
    ) -> Result<Reply, Reject> {
        let tasks = match step.replies.get(operation as usize) {
            Some(Ok(Reply::Tasks(tasks) | Reply::Completed { children: tasks })) => tasks.as_slice(),
            _ => &[],
        };
        match tasks.get(nth as usize) {
            Some(task) => self.grant(step, *task, session),
            None => Err(Reject::invalid(format!("operation {operation} of this entry has enqueued no task {nth}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::{Cluster, task};
    use crate::control::{Command, Effect, Reply, TaskState};
    use crate::{Operation, Reject, RequestId, TaskId};

    #[test]
    fn a_wanted_task_is_enqueued_and_granted_in_one_entry() {
        let mut cluster = Cluster::of(1);
        let session = cluster.session(&["r"], 2);
        let outcome = cluster.outcome(vec![
            Command::Enqueue { tasks: vec![task("q", "r"), task("q", "r")] },
            Command::GrantEnqueued { operation: 0, nth: 1, session },
        ]);
        let Ok(Reply::Tasks(tasks)) = &outcome.replies[0] else { panic!("two tasks") };
        let Ok(Reply::Granted { token, attempt: 1 }) = outcome.replies[1] else { panic!("granted") };
        assert!(outcome.effects.contains(&Effect::Granted { task: tasks[1], session, token, attempt: 1 }));
        assert_eq!(cluster.state.ready("r", None).collect::<Vec<_>>(), [tasks[0]]);
    }

    #[test]
    fn a_child_goes_on_to_the_slot_of_its_parent() {
        let mut cluster = Cluster::of(1);
        let (id, session, token) = cluster.granted();
        let children = vec![task("q", "work")];
        let outcome = cluster.outcome(vec![
            Command::Complete { task: id, token, result: vec![], children },
            Command::GrantEnqueued { operation: 0, nth: 0, session },
        ]);
        assert!(matches!(outcome.replies[1], Ok(Reply::Granted { attempt: 1, .. })));
        assert_eq!(cluster.state.session(session).expect("open").free_slots(), 0);
    }

    #[test]
    fn refuses_what_was_not_enqueued() {
        let mut cluster = Cluster::of(1);
        let session = cluster.session(&["r"], 2);
        let outcome = cluster.outcome(vec![
            Command::Enqueue { tasks: vec![task("", "r")] },
            Command::GrantEnqueued { operation: 0, nth: 0, session },
            Command::GrantEnqueued { operation: 2, nth: 0, session },
            Command::Enqueue { tasks: vec![task("q", "r")] },
            Command::GrantEnqueued { operation: 3, nth: 1, session },
        ]);
        for refused in [1, 2, 4] {
            assert!(matches!(outcome.replies[refused], Err(Reject::InvalidArgument { .. })));
        }
    }

    #[test]
    fn a_repeated_request_does_not_grant_a_second_time() {
        let mut cluster = Cluster::of(1);
        let session = cluster.session(&["r"], 2);
        let enqueue =
            || Operation { request: Some(RequestId(7)), command: Command::Enqueue { tasks: vec![task("q", "r")] } };
        let grant = || Operation::new(Command::GrantEnqueued { operation: 0, nth: 0, session });
        let first = cluster.operate(vec![enqueue(), grant()]);
        let again = cluster.operate(vec![enqueue(), grant()]);
        assert_eq!(again.replies[0], first.replies[0]);
        let Ok(Reply::Tasks(tasks)) = &first.replies[0] else { panic!("a task") };
        assert_eq!(again.replies[1], Err(Reject::TaskNotReady { task: tasks[0] }));
        assert_eq!(cluster.state.task_state(tasks[0]), Some(TaskState::Granted));
        assert_ne!(tasks[0], TaskId(0));
    }
}
