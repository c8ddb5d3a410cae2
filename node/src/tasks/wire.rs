//! Between the messages of the public protocol and the vocabulary of the state: checks on the way in, views on the way
//! out.

use bytes::Bytes;
use quorate_api::{limits, v1};
use quorate_state::control::{NewTask, RetryPolicy, TaskState, TaskView};
use quorate_state::{LogTime, Token};

use crate::error::{Error, ErrorReason};
pub(super) use crate::request::{deadline, request_id};

/// The most attempts that a retry policy may allow.
const MAX_ATTEMPTS: u32 = 1_000;
/// The longest pause between two attempts: a day.
const MAX_BACKOFF_MS: u64 = 24 * 60 * 60 * 1_000;

/// The token as agents know it.
pub(super) fn token_to_wire(token: Token) -> v1::Token {
    v1::Token { position: token.position, ordinal: token.ordinal }
}

/// The token as the state knows it.
pub(super) fn token_from_wire(token: &v1::Token) -> Token {
    Token { position: token.position, ordinal: token.ordinal }
}

/// Log time as clients see it.
pub(super) fn time_to_wire(time: LogTime) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

/// Checks the tasks of one enqueue.
pub(super) fn check_enqueue(tasks: &[v1::NewTask]) -> Result<(), Error> {
    if tasks.is_empty() {
        return Err(Error::invalid("tasks", "`tasks` is empty: name at least one task"));
    }
    check_tasks("tasks", tasks)
}

/// Checks tasks, of which there may be none. `field` is the name of the list.
pub(super) fn check_tasks(field: &str, tasks: &[v1::NewTask]) -> Result<(), Error> {
    limits::check_size(field, tasks.len(), limits::BATCH_TASKS)?;
    tasks.iter().enumerate().try_for_each(|(ordinal, task)| {
        check_task(task).map_err(|error| if tasks.len() > 1 { error.with("task", ordinal) } else { error })
    })
}

fn check_task(task: &v1::NewTask) -> Result<(), Error> {
    limits::check_name("queue", &task.queue)?;
    if !task.role.is_empty() {
        limits::check_name("role", &task.role)?;
    }
    if task.payload.len() > limits::PAYLOAD_BYTES {
        return Err(Error::new(
            ErrorReason::TooLarge,
            format!(
                "`payload` has {} bytes, the limit is {}: store the data elsewhere and put a reference into the task",
                task.payload.len(),
                limits::PAYLOAD_BYTES
            ),
        )
        .with("field", "payload")
        .with("limit", limits::PAYLOAD_BYTES)
        .with("size", task.payload.len()));
    }
    let retry = task.retry.unwrap_or_default();
    limits::check_range("retry.max_attempts", u64::from(retry.max_attempts), 0, u64::from(MAX_ATTEMPTS))?;
    limits::check_range("retry.initial_backoff_ms", retry.initial_backoff_ms, 0, MAX_BACKOFF_MS)?;
    limits::check_range("retry.max_backoff_ms", retry.max_backoff_ms, 0, MAX_BACKOFF_MS)?;
    Ok(())
}

/// A task that was checked, as the state takes it: what is left out gets its default.
pub(super) fn task_from_wire(task: &v1::NewTask) -> NewTask {
    let role = if task.role.is_empty() { &task.queue } else { &task.role };
    NewTask {
        queue: task.queue.clone(),
        role: role.clone(),
        payload: task.payload.to_vec(),
        retry: retry_from_wire(task.retry.unwrap_or_default()),
    }
}

fn retry_from_wire(retry: v1::RetryPolicy) -> RetryPolicy {
    let defaults = RetryPolicy::default();
    let ms = |given: u64, default: u32| if given == 0 { default } else { u32::try_from(given).unwrap_or(u32::MAX) };
    let backoff_ms = ms(retry.initial_backoff_ms, defaults.backoff_ms);
    RetryPolicy {
        max_attempts: if retry.max_attempts == 0 { defaults.max_attempts } else { retry.max_attempts },
        backoff_ms,
        // A long first pause that leaves the bound out does not mean to be cut by the default.
        max_backoff_ms: ms(retry.max_backoff_ms, defaults.max_backoff_ms.max(backoff_ms)),
    }
}

/// What is stored of a task beside its record.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) payload: Bytes,
    pub(super) result: Bytes,
    pub(super) error: String,
}

/// A task as clients see it.
pub(super) fn task_to_wire(view: TaskView, contents: Contents) -> v1::Task {
    v1::Task {
        id: view.id.0,
        queue: view.queue.to_string(),
        role: view.role.to_string(),
        state: state_to_wire(view.state).into(),
        payload: contents.payload,
        result: contents.result,
        attempts: view.attempts,
        failures: view.failures,
        error: contents.error,
        parent_id: view.parent.map_or(0, |parent| parent.0),
        enqueued_at_us: time_to_wire(view.created),
        changed_at_us: time_to_wire(view.finished.unwrap_or(view.created)),
        session_id: view.session.map_or(0, |session| session.0),
        retry: Some(v1::RetryPolicy {
            max_attempts: view.retry.max_attempts,
            initial_backoff_ms: u64::from(view.retry.backoff_ms),
            max_backoff_ms: u64::from(view.retry.max_backoff_ms),
        }),
    }
}

fn state_to_wire(state: TaskState) -> v1::TaskState {
    match state {
        TaskState::Ready => v1::TaskState::Ready,
        TaskState::Waiting => v1::TaskState::Waiting,
        TaskState::Granted => v1::TaskState::Granted,
        TaskState::Completed => v1::TaskState::Completed,
        TaskState::Dead => v1::TaskState::DeadLetter,
        TaskState::Cancelled => v1::TaskState::Cancelled,
    }
}

/// The state that a listing asks for; `None` for all.
pub(super) fn state_from_wire(state: i32) -> Result<Option<TaskState>, Error> {
    let known = v1::TaskState::try_from(state)
        .map_err(|_| Error::invalid("state", format!("`state` is {state}, which this version does not know")))?;
    Ok(match known {
        v1::TaskState::Unspecified => None,
        v1::TaskState::Ready => Some(TaskState::Ready),
        v1::TaskState::Waiting => Some(TaskState::Waiting),
        v1::TaskState::Granted => Some(TaskState::Granted),
        v1::TaskState::Completed => Some(TaskState::Completed),
        v1::TaskState::DeadLetter => Some(TaskState::Dead),
        v1::TaskState::Cancelled => Some(TaskState::Cancelled),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(queue: &str, payload_bytes: usize) -> v1::NewTask {
        v1::NewTask { queue: queue.into(), payload: vec![1; payload_bytes].into(), ..v1::NewTask::default() }
    }

    fn refused(tasks: &[v1::NewTask]) -> Error {
        check_enqueue(tasks).expect_err("must be refused")
    }

    #[test]
    fn each_bad_task_gets_its_own_error() {
        assert_eq!(refused(&[]).reason, ErrorReason::InvalidArgument);
        assert_eq!(refused(&[]).metadata["field"], "tasks");
        assert_eq!(refused(&[task("", 0)]).metadata["field"], "queue");
        assert_eq!(refused(&[task(&"q".repeat(limits::NAME_BYTES + 1), 0)]).reason, ErrorReason::TooLarge);
        let many = vec![task("q", 0); limits::BATCH_TASKS + 1];
        assert_eq!(refused(&many).metadata["limit"], limits::BATCH_TASKS.to_string());
        let second = refused(&[task("q", 0), task("", 0)]);
        assert_eq!(second.metadata["task"], "1");
        let impatient = v1::RetryPolicy { initial_backoff_ms: MAX_BACKOFF_MS + 1, ..v1::RetryPolicy::default() };
        let error = refused(&[v1::NewTask { retry: Some(impatient), ..task("q", 0) }]);
        assert_eq!(error.metadata["field"], "retry.initial_backoff_ms");
        assert_eq!(check_enqueue(&[task("q", limits::PAYLOAD_BYTES)]), Ok(()));
    }

    #[test]
    fn an_oversized_payload_is_told_the_limit_and_what_to_do() {
        let error = refused(&[task("q", limits::PAYLOAD_BYTES + 1)]);
        assert_eq!(error.reason, ErrorReason::TooLarge);
        assert_eq!(error.metadata["limit"], limits::PAYLOAD_BYTES.to_string());
        assert!(error.message.contains("reference"), "{error}");
    }

    #[test]
    fn what_is_left_out_gets_its_default() {
        let new = task_from_wire(&task("mail", 0));
        assert_eq!(new.role, "mail");
        assert_eq!(new.retry, RetryPolicy::default());
        let slow = v1::RetryPolicy { initial_backoff_ms: 90_000, ..v1::RetryPolicy::default() };
        assert_eq!(retry_from_wire(slow).max_backoff_ms, 90_000);
    }
}
