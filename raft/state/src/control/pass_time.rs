//! The passing of log time, which every entry brings: what was due becomes ready, what is old is forgotten. All of it is
//! bounded for an entry; what is left over comes with the next ones.

use super::Control;
use super::step::Step;
use super::tasks::Stage;

/// For how long a finished task is kept, milliseconds of log time.
const FINISHED_KEPT_MS: u64 = 24 * 3_600_000;
/// The most finished tasks that are kept; the oldest go first.
const MAX_FINISHED: usize = 1 << 19;
/// How many tasks become ready with one entry.
const DUE_PER_ENTRY: usize = 4_096;
/// How many finished tasks are forgotten with one entry: more than an entry can finish, so that there is no backlog.
const FORGOTTEN_PER_ENTRY: usize = 8_192;

impl Control {
    pub(super) fn pass_time(&mut self, step: &mut Step) {
        for _ in 0..DUE_PER_ENTRY {
            match self.tasks.first_due() {
                Some((due, task)) if due <= step.now() => {
                    self.tasks.change(task, &mut step.changes, |task| task.stage = Stage::Ready);
                }
                _ => break,
            }
        }
        self.forget_finished(step, MAX_FINISHED);
        step.meta.horizon = self.requests.forget(step.now(), step.meta.horizon, &mut step.changes);
    }

    fn forget_finished(&mut self, step: &mut Step, most: usize) {
        let oldest = step.now().minus_ms(FINISHED_KEPT_MS);
        for _ in 0..FORGOTTEN_PER_ENTRY {
            match self.tasks.first_ended() {
                Some((ended, task)) if ended < oldest || self.tasks.finished().len() > most => {
                    self.tasks.forget(task, &mut step.changes);
                }
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::{Cluster, task};
    use crate::control::{Command, NewTask, TaskState};
    use crate::{Entry, Fault, LogTime, Operation, Position};

    #[test]
    fn log_time_never_runs_backwards() {
        let mut cluster = Cluster::of(1);
        let before = cluster.state.time();
        cluster.set_time(LogTime(5));
        cluster.run(Command::Tick).expect("nothing to refuse");
        assert_eq!(cluster.state.time(), before);
    }

    #[test]
    fn every_entry_comes_once_and_in_order() {
        let mut cluster = Cluster::of(1);
        let at = cluster.state.last_position();
        let empty = || Entry { time: LogTime(0), operations: vec![] };
        assert!(matches!(cluster.state.apply(at, empty()), Err(Fault::OutOfOrder { .. })));
        let tick = Operation::new(Command::Tick);
        let large = Entry { time: LogTime(0), operations: vec![tick; 4_097] };
        assert!(matches!(cluster.state.apply(Position(at.0 + 1), large), Err(Fault::TooManyOperations { .. })));
        assert!(cluster.state.apply(Position(at.0 + 9), empty()).is_ok(), "other entries of the log lie between");
    }

    #[test]
    fn a_finished_task_is_forgotten_after_a_day_with_all_its_rows() {
        let mut cluster = Cluster::of(1);
        let rows_before = cluster.rows.len();
        let session = cluster.session(&["r"], 1);
        let tasks =
            cluster.enqueue(vec![task("q", "r"), task("q", "r"), NewTask { payload: vec![], ..task("q", "r") }]);
        let token = cluster.grant(tasks[0], session);
        let fail = Command::Fail { task: tasks[0], token, error: "why".to_owned(), permanent: true, retry_at: None };
        cluster.run(fail).expect("the current attempt");
        let token = cluster.grant(tasks[1], session);
        cluster
            .run(Command::Complete { task: tasks[1], token, result: b"r".to_vec(), children: vec![] })
            .expect("the current attempt");
        cluster.run(Command::Cancel { task: tasks[2] }).expect("it is ready");
        cluster.pass_ms(24 * 3_600_000);
        assert_eq!(cluster.state.task_state(tasks[0]), Some(TaskState::Dead));
        cluster.pass_ms(1);
        assert!(tasks.iter().all(|task| cluster.state.task(*task).is_none()));
        assert_eq!(cluster.state.queues().count(), 0);
        cluster.run(Command::CloseSession { session, attachment: 0 }).expect("open");
        assert_eq!(cluster.rows.len(), rows_before + 2, "the names of the queue and the role stay");
    }

    #[test]
    fn only_so_many_finished_tasks_are_kept() {
        let mut cluster = Cluster::of(1);
        let tasks = cluster.enqueue(vec![task("q", "r"); 5]);
        for task in &tasks {
            cluster.run(Command::Cancel { task: *task }).expect("it is ready");
        }
        let mut step = Step::new(cluster.state.meta().clone(), cluster.state.hash());
        cluster.state.forget_finished(&mut step, 2);
        let kept: Vec<_> = tasks.iter().filter(|task| cluster.state.task(**task).is_some()).collect();
        assert_eq!(kept, [&tasks[3], &tasks[4]]);
    }

    #[test]
    fn what_is_due_in_great_numbers_comes_over_several_entries() {
        let mut cluster = Cluster::of(1);
        let session = cluster.session(&["r"], 4_096);
        let due = cluster.state.time().plus_ms(1_000);
        for _ in 0..2 {
            let tasks = cluster.enqueue(vec![task("q", "r"); 2_500]);
            let grants = tasks.iter().map(|task| Command::Grant { task: *task, session }).collect();
            cluster.outcome(grants);
            let fails = cluster.state.running(session).to_vec().into_iter().map(|(task, token)| Command::Fail {
                task,
                token,
                error: String::new(),
                permanent: false,
                retry_at: Some(due),
            });
            cluster.outcome(fails.collect());
        }
        cluster.pass_ms(1_000);
        let counts = cluster.state.queues().next().expect("a queue");
        assert_eq!((counts.ready, counts.waiting), (4_096, 904));
        assert_eq!(cluster.state.next_due(), Some(due), "the leader sees that there is more");
        cluster.pass_ms(0);
        assert_eq!(cluster.state.queues().next().expect("a queue").waiting, 0);
    }
}
