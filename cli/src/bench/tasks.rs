//! `quorate bench tasks`.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use parking_lot::Mutex;
use quorate_client::{Agent, AgentHandle, Client, NewTask, Output};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::figures::Latencies;
use super::{Target, check_seconds};
use crate::exit::Usage;
use crate::output::Format;

const QUEUE: &str = "bench";
/// How long tasks may take to drain after the load has ended.
const DRAIN: Duration = Duration::from_secs(30);

/// Load of tasks. Closed loop: a producer has at most `--in-flight` tasks that are not completed (not acknowledged, with
/// no agents). Open loop with `--rate`: tasks are due at fixed times, and latencies count from when they were due.
#[derive(Args)]
pub struct Tasks {
    #[command(flatten)]
    target: Target,
    /// Callers that enqueue one task a call.
    #[arg(long, default_value_t = 64)]
    producers: usize,
    /// Agents with one slot each; 0 measures enqueues alone.
    #[arg(long, default_value_t = 32)]
    agents: usize,
    /// Bytes of payload, at least 8.
    #[arg(long, default_value_t = 1024)]
    payload: usize,
    /// Tasks a second in all; absent: as fast as the loop closes.
    #[arg(long)]
    rate: Option<f64>,
    /// Tasks of each producer that may be under way at once.
    #[arg(long, default_value_t = 1)]
    in_flight: usize,
    /// Seconds of load after one second of warm-up.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
}

/// What producers and agents share: when each task was due, and what was counted in the measured window.
struct Ledger {
    started: Instant,
    window: (Duration, Duration),
    under_way: Mutex<Vec<Option<UnderWay>>>,
    counted: Mutex<Counted>,
    errors: AtomicU64,
}

struct UnderWay {
    due: Instant,
    _permit: Option<OwnedSemaphorePermit>,
}

struct Counted {
    enqueued: u64,
    completed: u64,
    enqueue: Latencies,
    dispatch: Latencies,
    cycle: Latencies,
}

impl Ledger {
    fn in_window(&self) -> bool {
        let now = self.started.elapsed();
        now >= self.window.0 && now < self.window.1
    }

    fn begin(&self, due: Instant, permit: Option<OwnedSemaphorePermit>) -> u64 {
        let mut tasks = self.under_way.lock();
        tasks.push(Some(UnderWay { due, _permit: permit }));
        tasks.len() as u64 - 1
    }

    fn due(&self, number: u64) -> Option<Instant> {
        self.under_way.lock().get(usize::try_from(number).ok()?)?.as_ref().map(|task| task.due)
    }

    /// Forgets a task and gives its permit back.
    fn end(&self, number: u64) -> Option<Instant> {
        let slot = usize::try_from(number).ok()?;
        self.under_way.lock().get_mut(slot)?.take().map(|task| task.due)
    }
}

/// Runs the load and prints its figures.
pub(super) async fn run(load: Tasks, endpoints: &[String], output: Format) -> Result<ExitCode> {
    ensure!(load.payload >= 8, Usage("--payload is at least 8 bytes: the task's number is in it".into()));
    ensure!(load.producers > 0 && load.in_flight > 0, Usage("--producers and --in-flight are at least 1".into()));
    ensure!(
        load.rate.is_none_or(|rate| (0.01..=1e7).contains(&rate)),
        Usage("--rate is between 0.01 and 10000000 a second".into())
    );
    check_seconds(load.seconds)?;
    let measured = load.target.reach(endpoints).await?;
    let warm_up = Duration::from_secs(1);
    let ledger = Arc::new(Ledger {
        started: Instant::now(),
        window: (warm_up, warm_up + Duration::from_secs_f64(load.seconds)),
        under_way: Mutex::new(Vec::new()),
        counted: Mutex::new(Counted {
            enqueued: 0,
            completed: 0,
            enqueue: Latencies::new(),
            dispatch: Latencies::new(),
            cycle: Latencies::new(),
        }),
        errors: AtomicU64::new(0),
    });
    let mut agents = Vec::new();
    for number in 0..load.agents {
        agents.push(agent(&measured.client, number, &ledger)?);
    }
    let load = Arc::new(load);
    let producers: Vec<_> = (0..load.producers)
        .map(|number| tokio::spawn(produce(measured.client.clone(), ledger.clone(), load.clone(), number)))
        .collect();
    for producer in producers {
        producer.await?;
    }
    drain(&ledger, load.agents > 0).await;
    for agent in agents {
        agent.shutdown().await;
    }
    let counted = ledger.counted.lock();
    output.record(&json!({
        "enqueued_per_s": (counted.enqueued as f64 / load.seconds).round(),
        "completed_per_s": (counted.completed as f64 / load.seconds).round(),
        "enqueue_ms": counted.enqueue.milliseconds(),
        "dispatch_ms": counted.dispatch.milliseconds(),
        "cycle_ms": counted.cycle.milliseconds(),
        "errors": ledger.errors.load(Ordering::Relaxed),
    }));
    Ok(ExitCode::SUCCESS)
}

/// An agent knows the number of each task that it runs from the payload, and needs it again when the completion is
/// acknowledged.
fn agent(client: &Client, number: usize, ledger: &Arc<Ledger>) -> Result<AgentHandle> {
    let (at_start, at_end) = (ledger.clone(), ledger.clone());
    let running = Arc::new(Mutex::new(HashMap::new()));
    let completed = running.clone();
    Ok(Agent::builder(client, format!("bench-{number}"))
        .role(QUEUE)
        .slots(1)
        .handler(move |attempt| {
            let number = number_of(&attempt.payload);
            running.lock().insert(attempt.task_id, number);
            if let (true, Some(due)) = (at_start.in_window(), at_start.due(number)) {
                at_start.counted.lock().dispatch.record(due.elapsed());
            }
            std::future::ready(Ok(Output::default()))
        })
        .on_completed(move |task, _| {
            let number = completed.lock().remove(&task);
            let due = number.and_then(|number| at_end.end(number));
            if let (true, Some(due)) = (at_end.in_window(), due) {
                let mut counted = at_end.counted.lock();
                counted.completed += 1;
                counted.cycle.record(due.elapsed());
            }
        })
        .start()?)
}

fn number_of(payload: &[u8]) -> u64 {
    payload.first_chunk::<8>().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
}

async fn produce(client: Client, ledger: Arc<Ledger>, load: Arc<Tasks>, producer: usize) {
    let mut flight = tokio::task::JoinSet::new();
    let permits = Arc::new(Semaphore::new(load.in_flight));
    let spacing = load.rate.map(|rate| Duration::from_secs_f64(load.producers as f64 / rate));
    let mut due = Instant::now()
        + spacing.map_or(Duration::ZERO, |spacing| spacing.mul_f64(producer as f64 / load.producers as f64));
    while ledger.started.elapsed() < ledger.window.1 {
        let permit = match spacing {
            Some(spacing) => {
                tokio::time::sleep_until(due.into()).await;
                due += spacing;
                None
            }
            None => {
                let Ok(permit) = permits.clone().acquire_owned().await else { break };
                due = Instant::now();
                Some(permit)
            }
        };
        let started = spacing.map_or(due, |spacing| due - spacing);
        let (client, ledger, load) = (client.clone(), ledger.clone(), load.clone());
        flight.spawn(async move { one(&client, &ledger, &load, started, permit).await });
        while flight.try_join_next().is_some() {}
    }
    flight.join_all().await;
}

async fn one(client: &Client, ledger: &Ledger, load: &Tasks, due: Instant, permit: Option<OwnedSemaphorePermit>) {
    let number = ledger.begin(due, permit);
    let mut payload = vec![0x5a; load.payload];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    match client.enqueue(NewTask::new(QUEUE, payload)).await {
        Ok(_) => {
            if ledger.in_window() {
                let mut counted = ledger.counted.lock();
                counted.enqueued += 1;
                counted.enqueue.record(due.elapsed());
            }
            if load.agents == 0 {
                ledger.end(number);
            }
        }
        Err(_) => {
            ledger.errors.fetch_add(1, Ordering::Relaxed);
            ledger.end(number);
        }
    }
}

/// Lets what was enqueued be completed, so that the figures of the window are not of a cluster that is going down. What is
/// not completed in time is an error.
async fn drain(ledger: &Ledger, agents: bool) {
    let deadline = Instant::now() + DRAIN;
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let unfinished = || ledger.under_way.lock().iter().flatten().count() as u64;
    while agents && Instant::now() < deadline && unfinished() > 0 {
        tick.tick().await;
    }
    ledger.errors.fetch_add(unfinished(), Ordering::Relaxed);
}
