//! `Fail`: an attempt has failed. The leader has decided when the next one may begin.

use super::Control;
use super::command::{Effect, Reply};
use super::step::Step;
use super::tasks::{End, Stage, TaskState, Tasks};
use crate::{LogTime, Reject, TaskId, Token};

/// The longest error text that is kept, bytes; what is longer is cut.
const MAX_ERROR_BYTES: usize = 16 << 10;

/// How an attempt failed.
pub(super) struct Failure {
    pub(super) error: String,
    /// Another attempt would fail as well.
    pub(super) permanent: bool,
    /// When the next attempt may begin; `None` is at once.
    pub(super) retry_at: Option<LogTime>,
    /// Whether the attempt said so itself: then the same word again gets the same reply.
    pub(super) reported: bool,
}

impl Control {
    pub(super) fn fail(
        &mut self,
        step: &mut Step,
        task: TaskId,
        token: Token,
        error: String,
        permanent: bool,
        retry_at: Option<LogTime>,
    ) -> Result<Reply, Reject> {
        if let Some(dead) = self.reported_failure(task, token) {
            return Ok(Reply::Failed { dead });
        }
        let session = self.attempt(task, token)?;
        self.sessions.stop(session, task);
        step.effects.push(Effect::AttemptEnded { session, task, token });
        let dead = self.fail_attempt(step, task, Failure { error, permanent, retry_at, reported: true });
        Ok(Reply::Failed { dead })
    }

    /// What was replied when this attempt failed, if it did and nothing has come after it.
    fn reported_failure(&self, task: TaskId, token: Token) -> Option<bool> {
        match (self.tasks.live().get(&task), self.tasks.finished().get(&task)) {
            (Some(live), _) if live.reported && live.token == token => Some(false),
            (_, Some(finished)) if finished.end == (End::Dead { reported: true }) && finished.token == token => {
                Some(true)
            }
            _ => None,
        }
    }

    /// Ends the attempt at a granted task with a failure; the session has let go of it. Returns whether the task is dead.
    pub(super) fn fail_attempt(&mut self, step: &mut Step, task: TaskId, failure: Failure) -> bool {
        let found = self.tasks.live().get(&task).expect("a granted task is live");
        let dead = failure.permanent || found.failures + 1 >= found.retry.max_attempts;
        let stage = match failure.retry_at {
            Some(due) if due > step.now() => Stage::Waiting { due },
            _ => Stage::Ready,
        };
        let error = cut(failure.error);
        let content = if error.is_empty() { found.error } else { Tasks::put_error(task, error, &mut step.changes) };
        self.tasks.change(task, &mut step.changes, |task| {
            task.failures += 1;
            task.error = content;
            task.reported = failure.reported;
            if !dead {
                task.stage = stage;
            }
        });
        if dead {
            let end = End::Dead { reported: failure.reported };
            self.tasks.finish(task, step.meta.time, end, None, &mut step.changes);
            step.effects.push(Effect::Finished { task, state: TaskState::Dead });
        } else if let Stage::Waiting { due } = stage {
            step.effects.push(Effect::TaskWaiting { task, due });
        }
        dead
    }
}

/// Cuts a text to the longest that is kept, between two characters.
fn cut(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        let end = (0..=MAX_ERROR_BYTES).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::control::testing::{Cluster, task};
    use crate::control::{Command, Effect, NewTask, Reply, RetryPolicy, TaskState};
    use crate::{LogTime, Reject, TaskId, Token};

    fn fail(task: TaskId, token: Token, retry_at: Option<LogTime>) -> Command {
        Command::Fail { task, token, error: "no luck".to_owned(), permanent: false, retry_at }
    }

    #[test]
    fn waits_until_it_is_due_and_then_is_ready() {
        let mut cluster = Cluster::of(1);
        let (id, session, token) = cluster.granted();
        let due = cluster.state.time().plus_ms(1_000);
        let outcome = cluster.outcome(vec![fail(id, token, Some(due))]);
        assert_eq!(outcome.replies, [Ok(Reply::Failed { dead: false })]);
        let ended = Effect::AttemptEnded { session, task: id, token };
        assert_eq!(outcome.effects, [ended, Effect::TaskWaiting { task: id, due }]);
        assert_eq!(cluster.state.next_due(), Some(due));
        assert_eq!(cluster.error(id).as_deref(), Some(&b"no luck"[..]));
        cluster.pass_ms(999);
        assert_eq!(cluster.state.task_state(id), Some(TaskState::Waiting));
        let outcome = cluster.pass_ms(1);
        assert_eq!(outcome.effects, [Effect::TasksReady { roles: vec!["work".into()] }]);
        assert_eq!(cluster.state.task_state(id), Some(TaskState::Ready));
        assert_eq!(cluster.state.next_due(), None);
    }

    #[test]
    fn is_ready_at_once_when_no_pause_is_asked_for() {
        let mut cluster = Cluster::of(1);
        let (id, _, token) = cluster.granted();
        cluster.run(fail(id, token, None)).expect("the current attempt");
        assert_eq!(cluster.state.ready("work", None).collect::<Vec<_>>(), [id]);
    }

    #[test]
    fn the_last_attempt_ends_among_the_dead_letters_with_its_payload() {
        let mut cluster = Cluster::of(1);
        let retry = RetryPolicy { max_attempts: 2, ..RetryPolicy::default() };
        let id = cluster.enqueue(vec![NewTask { retry, payload: b"p".to_vec(), ..task("q", "work") }])[0];
        let session = cluster.session(&["work"], 1);
        let token = cluster.grant(id, session);
        assert_eq!(cluster.run(fail(id, token, None)), Ok(Reply::Failed { dead: false }));
        let token = cluster.grant(id, session);
        assert_eq!(cluster.run(fail(id, token, None)), Ok(Reply::Failed { dead: true }));
        let view = cluster.state.task(id).expect("kept");
        assert_eq!((view.state, view.attempts, view.failures), (TaskState::Dead, 2, 2));
        assert!(view.has_payload && view.has_error);
        assert_eq!(cluster.payload(id).as_deref(), Some(&b"p"[..]));
        assert_eq!(cluster.run(fail(id, token, None)), Ok(Reply::Failed { dead: true }), "again is the same");
    }

    #[test]
    fn a_permanent_failure_needs_no_further_attempt() {
        let mut cluster = Cluster::of(1);
        let (id, _, token) = cluster.granted();
        let fatal = Command::Fail { task: id, token, error: String::new(), permanent: true, retry_at: None };
        let outcome = cluster.outcome(vec![fatal]);
        assert_eq!(outcome.replies, [Ok(Reply::Failed { dead: true })]);
        assert_eq!(outcome.effects.last(), Some(&Effect::Finished { task: id, state: TaskState::Dead }));
        assert_eq!(cluster.error(id), None);
    }

    #[test]
    fn the_same_token_again_gets_the_same_reply_until_the_next_grant() {
        let mut cluster = Cluster::of(1);
        let (id, session, token) = cluster.granted();
        assert_eq!(cluster.run(fail(id, token, None)), Ok(Reply::Failed { dead: false }));
        assert_eq!(cluster.run(fail(id, token, None)), Ok(Reply::Failed { dead: false }));
        assert_eq!(cluster.state.task(id).expect("live").failures, 1);
        cluster.grant(id, session);
        assert_eq!(cluster.run(fail(id, token, None)), Err(Reject::StaleToken { task: id }));
    }

    #[test]
    fn an_attempt_that_was_taken_away_cannot_fail() {
        let mut cluster = Cluster::of(1);
        let (id, session, token) = cluster.granted();
        cluster.run(Command::ExpireSession { session }).expect("open");
        assert_eq!(cluster.run(fail(id, token, None)), Err(Reject::StaleToken { task: id }));
        assert_eq!(cluster.state.task(id).expect("live").failures, 1, "the expiry was the failure");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let mut cluster = Cluster::of(1);
        let (id, _, token) = cluster.granted();
        let error = format!("x{}", "ä".repeat(10_000));
        cluster.run(Command::Fail { task: id, token, error, permanent: false, retry_at: None }).expect("current");
        let kept = cluster.error(id).expect("kept");
        assert_eq!(kept.len(), (16 << 10) - 1);
        assert!(std::str::from_utf8(&kept).is_ok());
    }
}
