//! The gRPC service `TasksService`: any node answers.
//!
//! Writes go to the leader by themselves. Reads are linearizable: a read position from the leader, then the local replica.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use quorate_api::v1::tasks_service_server::TasksService;
use quorate_api::{limits, v1};
use quorate_state::control::{Command, Control, Reply, TaskFilter, TaskView};
use quorate_state::{Operation, TaskId};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use super::{Tasks, enqueue, wire};
use crate::error::{Error, ErrorReason};

/// Answers `TasksService`.
#[derive(Clone)]
pub struct TasksApi {
    pub(super) tasks: Arc<Tasks>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<v1::EnqueueStreamResponse, Status>> + Send>>;

#[tonic::async_trait]
impl TasksService for TasksApi {
    type EnqueueStreamStream = Answers;

    async fn enqueue(&self, request: Request<v1::EnqueueRequest>) -> Result<Response<v1::EnqueueResponse>, Status> {
        let deadline = wire::deadline(request.metadata());
        Ok(Response::new(self.tasks.enqueue(request.into_inner(), deadline).await?))
    }

    async fn enqueue_stream(
        &self,
        request: Request<Streaming<v1::EnqueueStreamRequest>>,
    ) -> Result<Response<Answers>, Status> {
        Ok(Response::new(Box::pin(enqueue::serve(self.tasks.clone(), request.into_inner()))))
    }

    async fn get_task(&self, request: Request<v1::GetTaskRequest>) -> Result<Response<v1::GetTaskResponse>, Status> {
        let deadline = wire::deadline(request.metadata());
        let task = self.tasks.get(TaskId(request.into_inner().task_id), deadline).await?;
        Ok(Response::new(v1::GetTaskResponse { task: Some(task) }))
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        let deadline = wire::deadline(request.metadata());
        Ok(Response::new(self.tasks.list(request.into_inner(), deadline).await?))
    }

    async fn wait_task(&self, request: Request<v1::WaitTaskRequest>) -> Result<Response<v1::WaitTaskResponse>, Status> {
        let deadline = wire::deadline(request.metadata());
        let stated = request.metadata().contains_key("grpc-timeout");
        Ok(Response::new(self.tasks.wait(request.into_inner(), stated.then_some(deadline)).await?))
    }

    async fn cancel_task(
        &self,
        request: Request<v1::CancelTaskRequest>,
    ) -> Result<Response<v1::CancelTaskResponse>, Status> {
        let deadline = wire::deadline(request.metadata());
        let task = self.tasks.cancel(request.into_inner(), deadline).await?;
        Ok(Response::new(v1::CancelTaskResponse { task: Some(task) }))
    }

    async fn list_queues(
        &self,
        request: Request<v1::ListQueuesRequest>,
    ) -> Result<Response<v1::ListQueuesResponse>, Status> {
        let deadline = wire::deadline(request.metadata());
        let since = self.tasks.fresh(deadline).await?;
        let queues = self.tasks.context.control.read_since(since, |state| {
            state
                .queues()
                .map(|counts| v1::Queue {
                    name: counts.queue.to_string(),
                    ready: counts.ready,
                    waiting: counts.waiting,
                    granted: counts.granted,
                    completed: counts.completed,
                    dead_letters: counts.dead,
                    cancelled: counts.cancelled,
                    oldest_ready_at_us: counts.oldest_ready.map_or(0, wire::time_to_wire),
                })
                .collect()
        })?;
        Ok(Response::new(v1::ListQueuesResponse { queues }))
    }
}

impl Tasks {
    /// Makes the local replica at least as new as everything that was acknowledged before the call. Without a leader it
    /// waits for one, up to the deadline. Returns the position up to which it has all then, for `read_since`.
    pub(super) async fn fresh(&self, deadline: Instant) -> Result<u64, Error> {
        let control = &self.context.control;
        let mut leadership = control.leadership();
        loop {
            leadership.mark_unchanged();
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match control.read_barrier(left).await {
                Ok(position) => return Ok(position),
                Err(error) => error,
            };
            let again = Instant::now() + RETRY_PAUSE;
            if error.reason != ErrorReason::NoLeader || again >= deadline {
                return Err(error);
            }
            // Whichever is first: a leader turns up, or the pause is over.
            let _ = timeout_at(again, leadership.changed()).await;
        }
    }

    async fn enqueue(&self, request: v1::EnqueueRequest, deadline: Instant) -> Result<v1::EnqueueResponse, Error> {
        let operation = enqueue::operation(&request, self.context.now_us())?;
        let tasks = request.tasks.len();
        let reply =
            self.context.control.propose_anywhere(operation, deadline).await.map_err(|error| self.hint(error))??;
        self.metrics.enqueued(tasks);
        enqueue::response(reply)
    }

    async fn get(&self, task: TaskId, deadline: Instant) -> Result<v1::Task, Error> {
        let since = self.fresh(deadline).await?;
        let (view, contents) = self.look(task, since).await?;
        Ok(wire::task_to_wire(view, contents))
    }

    /// The task with its contents, as applied here. While a batch of entries is applied the state is ahead of the rows, so
    /// the rows are read once they have caught up with what was seen of the task, and count if that is still so afterwards.
    async fn look(&self, task: TaskId, since: u64) -> Result<(TaskView, wire::Contents), Error> {
        let control = &self.context.control;
        let mut applied = control.changes();
        let end = Instant::now() + CATCH_UP;
        loop {
            let view = self.view(task, since)?;
            let position = control.read(|state| state.last_position().0);
            if !matches!(timeout_at(end, applied.wait_for(|at| *at >= position)).await, Ok(Ok(_))) {
                return Err(Error::new(ErrorReason::NoLeader, "this replica of control applies nothing now"));
            }
            let contents = self.contents(&view)?;
            if self.view(task, since)? == view {
                return Ok((view, contents));
            }
        }
    }

    /// The task as applied here, if that is no less than it was at the position `since`: a replica of control that was damaged is
    /// made anew under a call that waits, and knows nothing for a while.
    fn view(&self, task: TaskId, since: u64) -> Result<TaskView, Error> {
        self.context
            .control
            .read_since(since, |state| state.task(task))?
            .ok_or_else(|| Error::new(ErrorReason::TaskNotFound, format!("there is no task {task}")).with("task", task))
    }

    fn contents(&self, view: &TaskView) -> Result<wire::Contents, Error> {
        Ok(wire::Contents {
            payload: self.row(Control::task_payload_key(view.id))?,
            result: if view.result_bytes > 0 { self.row(Control::task_result_key(view.id))? } else { Bytes::new() },
            error: self.error_text(view)?,
        })
    }

    fn error_text(&self, view: &TaskView) -> Result<String, Error> {
        if !view.has_error {
            return Ok(String::new());
        }
        Ok(String::from_utf8_lossy(&self.row(Control::task_error_key(view.id))?).into_owned())
    }

    /// A row of contents; empty when it is gone, as the payload of a completed task.
    fn row(&self, (table, key): (u8, Vec<u8>)) -> Result<Bytes, Error> {
        let row = self.context.control.row(table, &key);
        Ok(row.map_err(|error| Error::unreadable(&error))?.unwrap_or_default())
    }

    async fn list(&self, request: v1::ListTasksRequest, deadline: Instant) -> Result<v1::ListTasksResponse, Error> {
        limits::check_range("page_size", u64::from(request.page_size), 0, limits::PAGE_TASKS as u64)?;
        let after = parse_page_token(&request.page_token)?;
        let queue = (!request.queue.is_empty()).then_some(request.queue);
        if let Some(queue) = &queue {
            limits::check_name("queue", queue)?;
        }
        let filter = TaskFilter { queue, role: None, state: wire::state_from_wire(request.state)? };
        let size = match request.page_size {
            0 => limits::PAGE_TASKS_DEFAULT,
            size => size as usize,
        };
        let since = self.fresh(deadline).await?;
        let page = self.context.control.read_since(since, |state| state.tasks(after, &filter, size))?;
        let mut tasks = Vec::with_capacity(page.tasks.len());
        for view in page.tasks {
            let error = self.error_text(&view)?;
            tasks.push(wire::task_to_wire(view, wire::Contents { error, ..wire::Contents::default() }));
        }
        Ok(v1::ListTasksResponse { tasks, next_page_token: page.next.map_or_else(String::new, page_token) })
    }

    /// Waits for the end of a task. A deadline that comes first gets the task as it is, a little before the call ends.
    async fn wait(
        &self,
        request: v1::WaitTaskRequest,
        call_ends: Option<Instant>,
    ) -> Result<v1::WaitTaskResponse, Error> {
        let longest = u64::try_from(limits::WAIT_MAX.as_millis()).unwrap_or(u64::MAX);
        limits::check_range("timeout_ms", request.timeout_ms, 0, longest)?;
        let patience = match request.timeout_ms {
            0 => limits::WAIT_DEFAULT,
            ms => Duration::from_millis(ms),
        };
        let stated = Instant::now() + patience;
        let until = call_ends.map_or(stated, |ends| stated.min(ends - ANSWER_MARGIN));
        let task = TaskId(request.task_id);
        let mut waiter = self.waiters.register(task)?;
        let since = self.fresh(call_ends.unwrap_or(Instant::now() + limits::DEADLINE_DEFAULT).max(until)).await?;
        loop {
            let view = self.view(task, since)?;
            let finished = view.state.is_finished();
            if finished || Instant::now() >= until || self.context.shutdown.is_cancelled() {
                let (view, contents) = self.look(task, since).await?;
                let finished = view.state.is_finished();
                return Ok(v1::WaitTaskResponse { task: Some(wire::task_to_wire(view, contents)), finished });
            }
            if timeout_at(until, waiter.woken()).await.is_ok() && !self.view(task, since)?.state.is_finished() {
                // Woken because effects were missed, not because the task has ended.
                waiter = self.waiters.register(task)?;
            }
        }
    }

    async fn cancel(&self, request: v1::CancelTaskRequest, deadline: Instant) -> Result<v1::Task, Error> {
        let task = TaskId(request.task_id);
        let operation = Operation {
            request: Some(wire::request_id(&request.request_id, self.context.now_us())?),
            command: Command::Cancel { task },
        };
        match self.context.control.propose_anywhere(operation, deadline).await.map_err(|error| self.hint(error))?? {
            Reply::Cancelled => self.get(task, deadline).await.map_err(Error::after_commit),
            other => Err(Error::internal(format!("a cancel was answered with {other:?}"))),
        }
    }

    /// A client can follow a hint only if it names the leader's client address, which is known here and not to Raft.
    pub(super) fn hint(&self, error: Error) -> Error {
        if error.reason != ErrorReason::NotLeader {
            return error;
        }
        self.context.control.refusal()
    }
}

/// How long the rows may take to catch up with the state. A batch takes milliseconds; longer means a stopped group.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How long a read waits for a sign of a leader before it asks again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// An answer that says "not yet" leaves so long before the call's deadline, to be there in time.
const ANSWER_MARGIN: Duration = Duration::from_millis(20);

/// The last task of a page, as the token of the next one.
fn page_token(last: TaskId) -> String {
    format!("{:016x}", last.0)
}

fn parse_page_token(token: &str) -> Result<TaskId, Error> {
    if token.is_empty() {
        return Ok(TaskId(0));
    }
    u64::from_str_radix(token, 16).ok().filter(|_| token.len() == 16).map(TaskId).ok_or_else(|| {
        Error::invalid("page_token", "`page_token` is not one that a listing has returned: start without one")
    })
}

#[cfg(test)]
mod tests {
    use quorate_raft::{GroupId, LogPosition, RowBatch, StateStores};
    use quorate_state::control::{NewTask, TaskState};
    use quorate_state::{Entry, codec};
    use uuid::Uuid;

    use super::*;
    use crate::request::new_request_id;
    use crate::testing::{PATIENCE, Stage, on_stage};

    async fn enqueue(stage: &Stage) -> TaskId {
        let task = NewTask { queue: "q".into(), role: "r".into(), payload: b"p".to_vec(), ..NewTask::default() };
        match stage.run(Command::Enqueue { tasks: vec![task] }).await {
            Reply::Tasks(tasks) => tasks[0],
            other => panic!("{other:?}"),
        }
    }

    /// The refusals of a read promise that nothing was done. A client that believed it would cancel nothing, and say so.
    #[tokio::test(start_paused = true)]
    async fn a_cancel_that_is_committed_and_cannot_be_read_back_has_no_known_outcome() {
        on_stage(async |stage| {
            stage.found(1).await;
            let tasks = Tasks::start(stage.context.clone()).expect("on a registry of its own");
            let task = enqueue(&stage).await;
            let request_id = Uuid::from_u128(new_request_id(stage.context.now_us()).0).to_string();
            let request = v1::CancelTaskRequest { task_id: task.0, request_id };
            let deadline = Instant::now() + PATIENCE;
            stage.states.set_unreadable(true);
            let error = tasks.get(task, deadline).await.expect_err("there is nothing to read it from");
            assert_eq!(error.reason, ErrorReason::ShuttingDown, "{error}");
            let error = tasks.cancel(request.clone(), deadline).await.expect_err("it cannot be read back");
            assert_eq!(error.reason, ErrorReason::OutcomeUnknown, "{error}");
            let state = stage.context.control.read(|state| state.task(task).map(|view| view.state));
            assert_eq!(state, Some(TaskState::Cancelled), "it was committed");
            stage.states.set_unreadable(false);
            let found = tasks.cancel(request, deadline).await.expect("the same request finds out");
            assert_eq!((found.id, found.state()), (task.0, v1::TaskState::Cancelled));
        })
        .await;
    }

    /// While a batch of entries is applied the state is ahead of the rows. A task that has ended by the state would be told
    /// with the contents of one that has not.
    #[tokio::test(start_paused = true)]
    async fn a_task_is_read_only_when_the_rows_have_caught_up_with_the_state() {
        on_stage(async |stage| {
            stage.found(1).await;
            let tasks = Tasks::start(stage.context.clone()).expect("on a registry of its own");
            let task = enqueue(&stage).await;
            let since = tasks.fresh(Instant::now() + PATIENCE).await.expect("this node leads");
            let (view, contents) = tasks.look(task, since).await.expect("all is applied");
            assert_eq!((view.state, &contents.payload[..]), (TaskState::Ready, &b"p"[..]));
            // A second machine over the same state is in the middle of such a batch.
            let mut machine = stage.context.control.machine();
            let (position, time) = stage.context.control.read(|state| (state.last_position().0 + 1, state.time()));
            let at = LogPosition { position, term: 1 };
            let cancel = Entry { time, operations: vec![Operation::new(Command::Cancel { task })] };
            let payload = codec::encode(&cancel).expect("it is small");
            machine.apply(at, &payload, &mut RowBatch::default()).expect("it is the next entry");
            let early = tasks.look(task, since).await.map(|(view, _)| view);
            assert_eq!(early.expect_err("no row of it was written").reason, ErrorReason::NoLeader);
            machine.applied(at);
            let (view, _) = tasks.look(task, since).await.expect("its rows are there");
            assert_eq!(view.state, TaskState::Cancelled);
        })
        .await;
    }

    /// Under a call that waits the node's replica of control can be found damaged and be made anew.
    #[tokio::test(start_paused = true)]
    async fn a_task_is_not_missed_by_a_replica_that_was_made_anew_since() {
        on_stage(async |stage| {
            stage.found(1).await;
            let tasks = Tasks::start(stage.context.clone()).expect("on a registry of its own");
            let task = enqueue(&stage).await;
            let since = tasks.fresh(Instant::now() + PATIENCE).await.expect("this node leads");
            assert_eq!(tasks.view(task, since).expect("it is there").state, TaskState::Ready);
            let never = TaskId(task.0 + 1);
            assert_eq!(tasks.view(never, since).expect_err("it is not").reason, ErrorReason::TaskNotFound);
            let empty = stage.states.open(GroupId(7)).expect("a new database");
            stage.context.control.machine().load(empty, None).expect("there is nothing to read");
            assert_eq!(tasks.view(task, since).expect_err("nothing is known").reason, ErrorReason::NoLeader);
        })
        .await;
    }

    #[test]
    fn a_page_token_comes_back() {
        assert_eq!(parse_page_token(&page_token(TaskId(77))), Ok(TaskId(77)));
        assert_eq!(parse_page_token(""), Ok(TaskId(0)));
        for bad in ["7", "zzzzzzzzzzzzzzzz", "00000000000000000"] {
            assert_eq!(parse_page_token(bad).expect_err(bad).metadata["field"], "page_token");
        }
    }
}
