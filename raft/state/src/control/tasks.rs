//! Tasks: what is asked of agents, from being enqueued to the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::codec::{Decode, Encode};
use crate::records::{Changes, Key, Record, Records};
use crate::{LogTime, SessionId, TaskId, Token};

/// A task to be enqueued.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct NewTask {
    /// The queue that counts it. Made when it is first named.
    pub queue: String,
    /// What an agent must be able to do.
    pub role: String,
    /// What the agent is given.
    pub payload: Vec<u8>,
    /// What happens when an attempt fails.
    pub retry: RetryPolicy,
}

/// What happens when an attempt fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RetryPolicy {
    /// After so many failures the task goes to the dead letters; at least 1.
    pub max_attempts: u32,
    /// The pause after the first failure, milliseconds; doubled after each further one. The leader decides, with jitter.
    pub backoff_ms: u32,
    /// The longest pause, milliseconds.
    pub max_backoff_ms: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { max_attempts: 5, backoff_ms: 500, max_backoff_ms: 60_000 }
    }
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum TaskState {
    /// It can be granted.
    Ready,
    /// It becomes ready later.
    Waiting,
    /// A session has it.
    Granted,
    /// Done. The result is kept for a while; the payload is not.
    Completed,
    /// Given up after its last attempt. The payload is kept for a while.
    Dead,
    /// Called off.
    Cancelled,
}

impl TaskState {
    /// Whether this is an end.
    pub fn is_finished(self) -> bool {
        matches!(self, TaskState::Completed | TaskState::Dead | TaskState::Cancelled)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TaskState::Ready => "ready",
            TaskState::Waiting => "waiting",
            TaskState::Granted => "granted",
            TaskState::Completed => "completed",
            TaskState::Dead => "dead",
            TaskState::Cancelled => "cancelled",
        })
    }
}

/// The contents of a row that is not in memory: enough to know whether it is there and what the set hash says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(super) struct Content {
    pub(super) bytes: u32,
    pub(super) crc: u32,
}

impl Content {
    pub(super) fn of(bytes: &[u8]) -> Content {
        Content { bytes: bytes.len() as u32, crc: crc32c::crc32c(bytes) }
    }
}
