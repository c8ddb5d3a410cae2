//! What a handler sees and what it gives back.

use std::fmt;

use bytes::Bytes;
use quorate_api::{ApiError, limits, v1};
use tokio_util::sync::CancellationToken;

use crate::verbs::{NewTask, check_task};

/// One attempt at a task, given to the handler.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The task.
    pub task_id: u64,
    /// Its queue.
    pub queue: String,
    /// The role under which it was granted.
    pub role: String,
    /// What the task was enqueued with.
    pub payload: Bytes,
    /// The number of this attempt, from 1.
    pub number: u32,
    /// When the task was enqueued: log time in microseconds since the Unix epoch.
    pub enqueued_at_us: i64,
    /// The grant's token: greater for every later attempt, so what the handler writes elsewhere can be fenced by it.
    pub token: (u64, u32),
    pub(crate) cancelled: CancellationToken,
}

impl Attempt {
    /// Is cancelled when the attempt is no longer the agent's: the task was cancelled, the lease ran out, or the agent
    /// stops. The handler of async code is dropped at its next await; a blocking one should look here now and then. Its
    /// result would be refused.
    #[must_use]
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }
}

/// What a completed attempt leaves behind. Both parts take effect together with the completion or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    result: Bytes,
    children: Vec<NewTask>,
}

impl Output {
    /// A result of at most [`limits::PAYLOAD_BYTES`].
    pub fn new(result: impl Into<Bytes>) -> Self {
        Self { result: result.into(), children: Vec::new() }
    }

    /// Adds a task that is enqueued with the completion; at most [`limits::BATCH_TASKS`].
    #[must_use]
    pub fn child(mut self, task: NewTask) -> Self {
        self.children.push(task);
        self
    }

    /// Refuses here what every node would refuse: a frame above the limit would break the stream for all attempts.
    pub(crate) fn into_wire(self) -> Result<v1::Completed, ApiError> {
        limits::check_size("result", self.result.len(), limits::PAYLOAD_BYTES)?;
        limits::check_size("children", self.children.len(), limits::BATCH_TASKS)?;
        let children: Vec<v1::NewTask> = self.children.into_iter().map(Into::into).collect();
        children.iter().try_for_each(check_task)?;
        let completed = v1::Completed { result: self.result, children };
        let whole = prost::Message::encoded_len(&completed);
        // The frame around it needs a little room.
        limits::check_size("completion", whole, limits::MESSAGE_BYTES - 1_024)?;
        Ok(completed)
    }
}

impl From<()> for Output {
    fn from((): ()) -> Self {
        Self::default()
    }
}

impl From<Vec<u8>> for Output {
    fn from(result: Vec<u8>) -> Self {
        Self::new(result)
    }
}

impl From<String> for Output {
    fn from(result: String) -> Self {
        Self::new(result)
    }
}

impl From<Bytes> for Output {
    fn from(result: Bytes) -> Self {
        Self::new(result)
    }
}

/// Why an attempt failed. Any error converts into one that is tried again, so `?` works in a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskError {
    text: String,
    permanent: bool,
}

impl TaskError {
    /// The task is tried again after its backoff, until its attempts are used up.
    pub fn retry(why: impl fmt::Display) -> Self {
        Self { text: why.to_string(), permanent: false }
    }

    /// The task becomes a dead letter at once: another attempt would fail the same way.
    pub fn permanent(why: impl fmt::Display) -> Self {
        Self { text: why.to_string(), permanent: true }
    }

    pub(crate) fn into_wire(self) -> v1::Failed {
        let mut error = self.text;
        if error.len() > limits::ERROR_TEXT_BYTES {
            let mut end = limits::ERROR_TEXT_BYTES;
            while !error.is_char_boundary(end) {
                end -= 1;
            }
            error.truncate(end);
        }
        v1::Failed { error, permanent: self.permanent }
    }
}

impl<E: std::error::Error> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_is_tried_again() {
        fn handler() -> Result<u32, TaskError> {
            Ok("x".parse::<u32>()?)
        }
        let failed = handler().expect_err("no number").into_wire();
        assert!(!failed.permanent);
        assert!(failed.error.contains("invalid digit"), "{}", failed.error);
    }

    #[test]
    fn a_long_failure_is_cut_at_a_character() {
        let failed = TaskError::permanent("ä".repeat(limits::ERROR_TEXT_BYTES)).into_wire();
        assert!(failed.permanent);
        assert_eq!(failed.error.len(), limits::ERROR_TEXT_BYTES);
    }

    #[test]
    fn an_output_beyond_a_limit_is_refused_before_it_is_sent() {
        let large = Output::new(vec![0; limits::PAYLOAD_BYTES + 1]).into_wire();
        assert_eq!(large.expect_err("large").metadata["field"], "result");
        let nameless = Output::default().child(NewTask::new("", "x")).into_wire();
        assert_eq!(nameless.expect_err("nameless").metadata["field"], "queue");
        let fits = Output::new("done").child(NewTask::new("next", "x")).into_wire().expect("fits");
        assert_eq!(fits.children.len(), 1);
    }
}
