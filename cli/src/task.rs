//! `quorate task`, `quorate queue` and `quorate agent`.

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use quorate_client::{Client, NewTask, TaskFilter, v1 as api};
use serde_json::{Value, json};

use crate::exit::Usage;
use crate::output::Format;

/// Verbs on tasks.
#[derive(Subcommand)]
pub enum Task {
    /// Adds a task to a queue and prints it.
    Enqueue(Enqueue),
    /// Shows one task.
    Get {
        /// The task's id.
        id: u64,
    },
    /// Lists tasks by age.
    List {
        /// Only those of this queue.
        #[arg(long)]
        queue: Option<String>,
        /// Only those in this state.
        #[arg(long, value_enum)]
        state: Option<State>,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Waits until a task is finished; exit code 1 if it did not complete.
    Wait {
        /// The task's id.
        id: u64,
        /// How many seconds at most.
        #[arg(long, default_value_t = 60.0)]
        timeout: f64,
    },
    /// Cancels a task that is not finished.
    Cancel {
        /// The task's id.
        id: u64,
    },
}

/// A task to be added.
#[derive(Args)]
pub struct Enqueue {
    /// The queue; made by its first task.
    pub queue: String,
    /// The payload as text; `-` reads standard input.
    #[arg(default_value = "")]
    pub payload: String,
    /// The role that an agent needs; the queue's name if absent.
    #[arg(long)]
    pub role: Option<String>,
    /// Attempts before it becomes a dead letter.
    #[arg(long)]
    pub max_attempts: Option<u32>,
    /// Waits for its end.
    #[arg(long)]
    pub wait: bool,
}

/// States by which tasks are listed.
#[derive(Clone, Copy, ValueEnum)]
pub enum State {
    /// May be granted.
    Ready,
    /// Its backoff has not passed.
    Waiting,
    /// An agent holds it.
    Granted,
    /// Done.
    Completed,
    /// Failed for good.
    DeadLetter,
    /// Cancelled.
    Cancelled,
}

/// Verbs on queues.
#[derive(Subcommand)]
pub enum Queue {
    /// Lists queues with their depths.
    List,
}

/// Verbs on agents.
#[derive(Subcommand)]
pub enum Agents {
    /// Lists live sessions.
    List,
}

/// Tasks asked for at once.
const PAGE: usize = 1_000;
const COLUMNS: [&str; 7] = ["id", "queue", "role", "state", "attempts", "failures", "error"];

/// Runs a verb on tasks.
pub async fn run(verb: Task, endpoints: &[String], output: Format) -> Result<ExitCode> {
    let client = Client::connect(endpoints)?;
    match verb {
        Task::Enqueue(enqueue) => return add(&client, enqueue, output).await,
        Task::Get { id } => output.record(&shown(&client.get_task(id).await?)),
        Task::List { queue, state, limit } => {
            let mut filter = TaskFilter { queue, state: state.map(State::wire), ..TaskFilter::default() };
            let mut tasks = Vec::new();
            while tasks.len() < limit {
                filter.page_size = u32::try_from((limit - tasks.len()).min(PAGE)).unwrap_or(u32::MAX);
                let page = client.list_tasks(&filter).await?;
                tasks.extend(page.tasks.iter().map(shown));
                filter.page_token = page.next_page_token;
                if filter.page_token.is_empty() {
                    break;
                }
            }
            output.list(&tasks, &COLUMNS);
        }
        Task::Wait { id, timeout } => return wait(&client, id, timeout, output).await,
        Task::Cancel { id } => output.record(&shown(&client.cancel_task(id).await?)),
    }
    Ok(ExitCode::SUCCESS)
}

async fn add(client: &Client, enqueue: Enqueue, output: Format) -> Result<ExitCode> {
    let payload = match enqueue.payload.as_str() {
        "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("reading the payload from standard input")?;
            bytes
        }
        text => text.as_bytes().to_vec(),
    };
    let mut task = NewTask::new(enqueue.queue, payload);
    if let Some(role) = enqueue.role {
        task = task.role(role);
    }
    if let Some(attempts) = enqueue.max_attempts {
        task = task.max_attempts(attempts);
    }
    let id = client.enqueue(task).await?;
    if enqueue.wait {
        return wait(client, id, 60.0, output).await;
    }
    output.record(&json!({ "id": id }));
    if output == Format::Table {
        eprintln!("next: quorate task wait {id}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn wait(client: &Client, id: u64, seconds: f64, output: Format) -> Result<ExitCode> {
    let timeout = Duration::try_from_secs_f64(seconds)
        .map_err(|_| Usage(format!("--timeout {seconds} is not a number of seconds")))?;
    let answer = client.wait_task(id, timeout).await?;
    let task = answer.task.context("the answer carries no task")?;
    output.record(&shown(&task));
    if !answer.finished {
        eprintln!("not finished after {seconds} s; wait again: quorate task wait {id}");
    }
    Ok(ExitCode::from(u8::from(task.state() != api::TaskState::Completed)))
}

/// Whether a task is completed. One that the cluster does not know is not: whoever was told its id has lost it.
pub(crate) async fn is_completed(client: &Client, id: u64) -> Result<bool> {
    match client.get_task(id).await {
        Ok(task) => Ok(task.state() == api::TaskState::Completed),
        Err(error) if error.reason() == Some(api::ErrorReason::TaskNotFound) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Runs a verb on queues.
pub async fn queues(verb: Queue, endpoints: &[String], output: Format) -> Result<ExitCode> {
    let Queue::List = verb;
    let queues = Client::connect(endpoints)?.list_queues().await?;
    let records: Vec<Value> = queues.iter().map(queue_record).collect();
    output.list(
        &records,
        &["name", "ready", "waiting", "granted", "completed", "dead_letters", "cancelled", "oldest_ready_s"],
    );
    Ok(ExitCode::SUCCESS)
}

fn queue_record(queue: &api::Queue) -> Value {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let age =
        (queue.oldest_ready_at_us > 0).then(|| (now.as_micros() as i64 - queue.oldest_ready_at_us).max(0) as f64 / 1e6);
    json!({
        "name": queue.name, "ready": queue.ready, "waiting": queue.waiting, "granted": queue.granted,
        "completed": queue.completed, "dead_letters": queue.dead_letters, "cancelled": queue.cancelled,
        "oldest_ready_s": age,
    })
}

/// Runs a verb on agents.
pub async fn agents(verb: Agents, endpoints: &[String], output: Format) -> Result<ExitCode> {
    let Agents::List = verb;
    let agents = Client::connect(endpoints)?.list_agents().await?;
    let records: Vec<Value> = agents
        .iter()
        .map(|agent| {
            json!({
                "session": agent.session_id, "agent": agent.agent, "roles": agent.roles, "slots": agent.slots,
                "running": agent.running, "node": agent.node_id,
            })
        })
        .collect();
    output.list(&records, &["session", "agent", "roles", "slots", "running", "node"]);
    Ok(ExitCode::SUCCESS)
}

impl State {
    fn wire(self) -> api::TaskState {
        match self {
            State::Ready => api::TaskState::Ready,
            State::Waiting => api::TaskState::Waiting,
            State::Granted => api::TaskState::Granted,
            State::Completed => api::TaskState::Completed,
            State::DeadLetter => api::TaskState::DeadLetter,
            State::Cancelled => api::TaskState::Cancelled,
        }
    }
}

fn shown(task: &api::Task) -> Value {
    json!({
        "id": task.id,
        "queue": task.queue,
        "role": task.role,
        "state": task.state().as_str_name().trim_start_matches("TASK_STATE_").to_lowercase(),
        "attempts": task.attempts,
        "failures": task.failures,
        "error": task.error,
        "parent": (task.parent_id != 0).then_some(task.parent_id),
        "payload": String::from_utf8_lossy(&task.payload),
        "result": String::from_utf8_lossy(&task.result),
        "enqueued_at_us": task.enqueued_at_us,
        "changed_at_us": task.changed_at_us,
    })
}
