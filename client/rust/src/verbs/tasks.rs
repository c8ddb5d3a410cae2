//! Tasks, queues and agents.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_api::v1::{self, RetryPolicy, TaskState};
use quorate_api::{ApiError, limits};
use tokio::time::Instant;

use crate::call::{call, deadline_in, timed};
use crate::client::{Client, agents, tasks};
use crate::error::Error;
use crate::nodes::Route;

/// A task to enqueue.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTask(v1::NewTask);

impl NewTask {
    /// A task for agents whose role is the queue's name, with at most [`limits::PAYLOAD_BYTES`] of payload.
    pub fn new(queue: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self(v1::NewTask { queue: queue.into(), payload: payload.into(), ..v1::NewTask::default() })
    }

    /// The role that an agent needs to be granted the task.
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Self {
        self.0.role = role.into();
        self
    }

    /// Attempts until the task is a dead letter (default 5).
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.retry().max_attempts = attempts;
        self
    }

    /// The pause after the first failure (default 500 ms) and the longest one (default 60 s); it doubles in between.
    #[must_use]
    pub fn backoff(mut self, initial: Duration, most: Duration) -> Self {
        self.retry().initial_backoff_ms = whole_ms(initial);
        self.retry().max_backoff_ms = whole_ms(most);
        self
    }

    fn retry(&mut self) -> &mut RetryPolicy {
        self.0.retry.get_or_insert_default()
    }
}

impl From<NewTask> for v1::NewTask {
    fn from(task: NewTask) -> Self {
        task.0
    }
}

impl From<v1::NewTask> for NewTask {
    fn from(task: v1::NewTask) -> Self {
        Self(task)
    }
}

/// Which tasks to list. The default is the first page of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only of this queue.
    pub queue: Option<String>,
    /// Only in this state.
    pub state: Option<TaskState>,
    /// Tasks on the page; 0 is [`limits::PAGE_TASKS_DEFAULT`].
    pub page_size: u32,
    /// The `next_page_token` of the page before; empty for the first.
    pub page_token: String,
}

impl Client {
    /// Enqueues one task and returns its id once it is durable on a majority.
    ///
    /// Calls that are made at the same time travel together over one stream to the leader; each stays atomic by itself.
    ///
    /// # Errors
    /// [`Error::Refused`] for a bad task; [`Error::OutcomeUnknown`] at the deadline.
    pub async fn enqueue(&self, task: impl Into<NewTask>) -> Result<u64, Error> {
        let task = v1::NewTask::from(task.into());
        check_task(&task)?;
        let request = v1::EnqueueRequest { request_id: self.request_id(), tasks: vec![task] };
        self.shared.enqueuer.enqueue(request, self.until()).await
    }

    /// Enqueues up to [`limits::BATCH_TASKS`] tasks, all or none, and returns their ids in order.
    ///
    /// # Errors
    /// As [`Client::enqueue`].
    pub async fn enqueue_many(&self, batch: impl IntoIterator<Item = NewTask>) -> Result<Vec<u64>, Error> {
        let batch: Vec<v1::NewTask> = batch.into_iter().map(Into::into).collect();
        limits::check_size("tasks", batch.len(), limits::BATCH_TASKS)?;
        batch.iter().try_for_each(check_task)?;
        let request = v1::EnqueueRequest { request_id: self.request_id(), tasks: batch };
        limits::check_size("message", request.encoded_len(), limits::MESSAGE_BYTES)?;
        let plan = self.write(&request.request_id);
        let response = call(&self.shared.nodes, plan, |channel, limit| {
            let request = request.clone();
            async move { tasks(channel).enqueue(timed(request, limit)).await }
        });
        Ok(response.await?.task_ids)
    }

    /// Reads a task with its payload and its result.
    ///
    /// # Errors
    /// `TASK_NOT_FOUND` for an id that is unknown or forgotten.
    pub async fn get_task(&self, task_id: u64) -> Result<v1::Task, Error> {
        let response = call(&self.shared.nodes, self.read(Route::Leader), |channel, limit| async move {
            tasks(channel).get_task(timed(v1::GetTaskRequest { task_id }, limit)).await
        });
        response.await?.task.ok_or_else(|| empty("GetTask"))
    }

    /// Lists tasks, oldest first, without payloads and results.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a page token that is none.
    pub async fn list_tasks(&self, filter: &TaskFilter) -> Result<v1::ListTasksResponse, Error> {
        let request = v1::ListTasksRequest {
            queue: filter.queue.clone().unwrap_or_default(),
            state: filter.state.unwrap_or_default().into(),
            page_size: filter.page_size,
            page_token: filter.page_token.clone(),
        };
        call(&self.shared.nodes, self.read(Route::Leader), |channel, limit| {
            let request = request.clone();
            async move { tasks(channel).list_tasks(timed(request, limit)).await }
        })
        .await
    }

    /// Waits until the task is finished, but at most `timeout`; then answers with its state as it is. `finished` says
    /// which of the two happened. The deadline of the client does not apply.
    ///
    /// # Errors
    /// `TASK_NOT_FOUND`; [`Error::Unreachable`] if no node answered.
    pub async fn wait_task(&self, task_id: u64, timeout: Duration) -> Result<v1::WaitTaskResponse, Error> {
        let end = deadline_in(timeout);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // The node gets the wait, the call a little longer, so that the answer "not yet" arrives.
            let wait = left.min(limits::WAIT_MAX);
            let mut plan = self.read(Route::Leader);
            plan.deadline = deadline_in(wait + self.deadline());
            plan.patient = true;
            let until = Instant::now() + wait;
            let response = call(&self.shared.nodes, plan, |channel, limit| async move {
                // A second try waits only for what is left.
                let timeout_ms = whole_ms(until.saturating_duration_since(Instant::now())).max(1);
                tasks(channel).wait_task(timed(v1::WaitTaskRequest { task_id, timeout_ms }, limit)).await
            })
            .await?;
            if response.finished || Instant::now() >= end {
                return Ok(response);
            }
        }
    }

    /// Cancels a task: a live attempt is told, its words are refused from then on.
    ///
    /// # Errors
    /// `TASK_NOT_FOUND`, `TASK_FINISHED`.
    pub async fn cancel_task(&self, task_id: u64) -> Result<v1::Task, Error> {
        let request = v1::CancelTaskRequest { request_id: self.request_id(), task_id };
        let plan = self.write(&request.request_id);
        let response = call(&self.shared.nodes, plan, |channel, limit| {
            let request = request.clone();
            async move { tasks(channel).cancel_task(timed(request, limit)).await }
        });
        response.await?.task.ok_or_else(|| empty("CancelTask"))
    }

    /// Lists the queues with their counts.
    ///
    /// # Errors
    /// Only those of every call.
    pub async fn list_queues(&self) -> Result<Vec<v1::Queue>, Error> {
        let response = call(&self.shared.nodes, self.read(Route::Leader), |channel, limit| async move {
            tasks(channel).list_queues(timed(v1::ListQueuesRequest {}, limit)).await
        });
        Ok(response.await?.queues)
    }

    /// Lists the live sessions of agents.
    ///
    /// # Errors
    /// Only those of every call.
    pub async fn list_agents(&self) -> Result<Vec<v1::Agent>, Error> {
        let response = call(&self.shared.nodes, self.read(Route::Leader), |channel, limit| async move {
            agents(channel).list_agents(timed(v1::ListAgentsRequest {}, limit)).await
        });
        Ok(response.await?.agents)
    }
}

/// Refuses here what every node would refuse; a message above the limit would else break a stream that others share.
pub(crate) fn check_task(task: &v1::NewTask) -> Result<(), ApiError> {
    limits::check_name("queue", &task.queue)?;
    if !task.role.is_empty() {
        limits::check_name("role", &task.role)?;
    }
    limits::check_size("payload", task.payload.len(), limits::PAYLOAD_BYTES)
}

/// An answer without the message that it must hold. Only a node of another make sends that.
pub(crate) fn empty(verb: &str) -> Error {
    Error::Refused(ApiError::new(v1::ErrorReason::Internal, format!("the answer to {verb} is empty")))
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
