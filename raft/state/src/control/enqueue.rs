//! `Enqueue`: tasks come in, all or none.

use super::Control;
use super::command::Reply;
use super::names::check_name;
use super::read::consecutive;
use super::step::Step;
use super::tasks::{Content, LiveTask, NewTask, Stage};
use crate::{Reject, TaskId, Token};

/// The largest payload of a task, bytes.
pub const MAX_PAYLOAD_BYTES: usize = 4 << 20;
/// The most attempts that a retry policy may ask for.
const MAX_ATTEMPTS: u32 = 10_000;

impl Control {
    pub(super) fn enqueue(&mut self, step: &mut Step, tasks: Vec<NewTask>) -> Result<Reply, Reject> {
        self.check_new_tasks(&tasks)?;
        let count = tasks.len() as u32;
        let first = self.add_tasks(step, tasks, TaskId(0))?;
        Ok(Reply::Tasks(consecutive(first, count)))
    }

    /// Refuses tasks that [`Control::add_tasks`] could not take.
    pub(super) fn check_new_tasks(&self, tasks: &[NewTask]) -> Result<(), Reject> {
        let (mut new_queues, mut new_roles) = (0, 0);
        for task in tasks {
            if self.queues.number(&task.queue).is_none() {
                check_name("queue", &task.queue)?;
                new_queues += 1;
            }
            if self.roles.number(&task.role).is_none() {
                check_name("role", &task.role)?;
                new_roles += 1;
            }
            if task.payload.len() > MAX_PAYLOAD_BYTES {
                return Err(Reject::invalid(format!(
                    "a payload has at most {MAX_PAYLOAD_BYTES} bytes, not {}: put large data elsewhere and its address here",
                    task.payload.len()
                )));
            }
            if !(1..=MAX_ATTEMPTS).contains(&task.retry.max_attempts) {
                return Err(Reject::invalid(format!(
                    "a task has 1 to {MAX_ATTEMPTS} attempts, not {}",
                    task.retry.max_attempts
                )));
            }
        }
        self.queues.check_room(new_queues)?;
        self.roles.check_room(new_roles)
    }

    /// Takes in tasks that were checked and returns the id of the first one. Changes nothing if it refuses.
    pub(super) fn add_tasks(&mut self, step: &mut Step, tasks: Vec<NewTask>, parent: TaskId) -> Result<TaskId, Reject> {
        let first = step.mint_ids(tasks.len())?;
        for (id, new) in (first..).map(TaskId).zip(tasks) {
            let task = LiveTask {
                queue: self.queues.intern(&new.queue, &mut step.changes),
                role: self.roles.intern(&new.role, &mut step.changes),
                parent,
                created: step.now(),
                retry: new.retry,
                payload: Content::of(&new.payload),
                error: Content::default(),
                attempts: 0,
                failures: 0,
                token: Token::default(),
                stage: Stage::Ready,
                reported: false,
            };
            self.tasks.add(id, task, new.payload, &mut step.changes);
        }
        Ok(TaskId(first))
    }
}

#[cfg(test)]
mod tests {
    use crate::control::testing::{Cluster, task};
    use crate::control::{Command, Effect, NewTask, Reply, RetryPolicy, TaskState};
    use crate::{Reject, TaskId};

    #[test]
    fn ids_follow_the_log_and_the_order_in_the_batch() {
        let mut cluster = Cluster::of(1);
        let first = cluster.enqueue(vec![task("q", "r"), task("q", "r")]);
        let second = cluster.enqueue(vec![task("q", "r")]);
        assert_eq!(first[1].0, first[0].0 + 1);
        assert_eq!(second[0].0 >> 16, (first[0].0 >> 16) + 1);
        let ready: Vec<_> = cluster.state.ready("r", None).collect();
        assert_eq!(ready, [first[0], first[1], second[0]]);
        assert_eq!(cluster.state.ready("r", Some(first[0])).collect::<Vec<_>>(), [first[1], second[0]]);
    }

    #[test]
    fn wakes_each_role_once_and_stores_the_payload_as_it_is() {
        let mut cluster = Cluster::of(1);
        let a = NewTask { payload: b"first".to_vec(), ..task("q", "a") };
        let outcome = cluster.outcome(vec![Command::Enqueue { tasks: vec![a, task("q", "b"), task("q", "a")] }]);
        assert_eq!(outcome.effects, [Effect::TasksReady { roles: vec!["a".into(), "b".into()] }]);
        let Ok(Reply::Tasks(tasks)) = &outcome.replies[0] else { panic!("three tasks") };
        assert_eq!(cluster.payload(tasks[0]).as_deref(), Some(&b"first"[..]));
        assert_eq!(cluster.state.task(tasks[0]).expect("enqueued").payload_bytes, 5);
    }

    #[test]
    fn an_empty_batch_is_no_mistake() {
        assert_eq!(Cluster::of(1).run(Command::Enqueue { tasks: vec![] }), Ok(Reply::Tasks(vec![])));
    }

    #[test]
    fn takes_all_or_none() {
        let mut cluster = Cluster::of(1);
        let endless = NewTask { retry: RetryPolicy { max_attempts: 0, ..RetryPolicy::default() }, ..task("q", "r") };
        let huge = NewTask { payload: vec![0; (4 << 20) + 1], ..task("q", "r") };
        for bad in [endless, huge, task("", "r"), task("q", &"r".repeat(200)), task("q\n", "r")] {
            let refused = cluster.run(Command::Enqueue { tasks: vec![task("q", "r"), bad] });
            assert!(matches!(refused, Err(Reject::InvalidArgument { .. })));
        }
        assert_eq!(cluster.state.queues().count(), 0);
        assert_eq!(cluster.state.tasks(TaskId(0), &Default::default(), 10).tasks, []);
    }

    #[test]
    fn an_entry_has_ids_for_so_many() {
        let mut cluster = Cluster::of(1);
        let many = |count| Command::Enqueue { tasks: vec![task("q", "r"); count] };
        let outcome = cluster.outcome(vec![many(65_000), many(1_000), many(536), many(1)]);
        let counts: Vec<_> = outcome
            .replies
            .iter()
            .map(|reply| match reply {
                Ok(Reply::Tasks(tasks)) => Ok(tasks.len()),
                other => Err(other.clone().expect_err("tasks or a refusal")),
            })
            .collect();
        assert_eq!(counts, [Ok(65_000), Err(Reject::EntryFull), Ok(536), Err(Reject::EntryFull)]);
        assert_eq!(cluster.state.queues().next().expect("a queue").ready, 65_536);
        let ids: std::collections::BTreeSet<_> = cluster.state.ready("r", None).collect();
        assert_eq!(ids.len(), 65_536);
        assert_eq!(cluster.state.task_state(*ids.first().expect("one")), Some(TaskState::Ready));
    }
}
