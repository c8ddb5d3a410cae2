//! `quorate bench failover`.

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use parking_lot::Mutex;
use quorate_client::{Agent, AgentHandle, Client, NewTask, Output};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::figures::Latencies;
use super::{Measured, Target};
use crate::exit::Usage;
use crate::output::Format;
use crate::task::is_completed;

const QUEUE: &str = "failover";
const PRODUCERS: usize = 8;
const AGENTS: usize = 8;
/// Load between a healthy cluster and the next kill.
const STEADY: Duration = Duration::from_secs(2);
/// How long everything acknowledged may take to be completed at the end.
const DRAIN: Duration = Duration::from_secs(60);

/// Kills the leader of a spawned cluster again and again under load.
#[derive(Args)]
pub struct Failover {
    #[command(flatten)]
    target: Target,
    /// How often the leader is killed (SIGKILL) and started again.
    #[arg(long, default_value_t = 10)]
    kills: usize,
}

#[derive(Default)]
struct Ledger {
    /// When the last enqueue was acknowledged, and the longest gap since it was last asked for.
    last: Option<Instant>,
    longest: Duration,
    /// Acknowledged completions of each acknowledged task.
    completions: HashMap<u64, u64>,
    acknowledged: Vec<u64>,
}

impl Ledger {
    fn acknowledge(&mut self, task: u64) {
        let now = Instant::now();
        self.longest = self.longest.max(self.last.map_or(Duration::ZERO, |last| now - last));
        self.last = Some(now);
        self.acknowledged.push(task);
    }
}

/// Runs the kills and prints the figures; fails if anything was lost or completed twice.
pub(super) async fn run(bench: Failover, endpoints: &[String], output: Format) -> Result<ExitCode> {
    let Measured { client, spawned } = bench.target.reach(endpoints).await?;
    let (mut cluster, _directory) =
        spawned.ok_or_else(|| Usage("bench failover kills nodes: it needs --spawn 3".into()))?;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let mut agents = Vec::new();
    for number in 0..AGENTS {
        agents.push(agent(&client, number, &ledger)?);
    }
    let stop = CancellationToken::new();
    let producers: Vec<_> =
        (0..PRODUCERS).map(|_| tokio::spawn(produce(client.clone(), ledger.clone(), stop.clone()))).collect();
    let mut gaps = Latencies::new();
    for kill in 1..=bench.kills {
        tokio::time::sleep(STEADY).await;
        let leader = cluster.leader().await?;
        ledger.lock().longest = Duration::ZERO;
        let before = ledger.lock().acknowledged.len();
        cluster.nodes[leader].kill().await?;
        resumed(&ledger, before).await.with_context(|| format!("after kill {kill}"))?;
        let gap = ledger.lock().longest;
        gaps.record(gap);
        eprintln!(
            "kill {kill} of {}: {} led; gap {:.0} ms",
            bench.kills,
            cluster.nodes[leader].label(),
            gap.as_secs_f64() * 1e3
        );
        cluster.restart(leader).await?;
        cluster.wait_healthy().await?;
    }
    stop.cancel();
    for producer in producers {
        producer.await?;
    }
    let lost = drain(&client, &ledger).await?;
    for agent in agents {
        agent.shutdown().await;
    }
    let ledger = ledger.lock();
    let duplicates: u64 = ledger.completions.values().map(|times| times - 1).sum();
    output.record(&json!({
        "gap_ms": gaps.few_milliseconds(), "acknowledged": ledger.acknowledged.len(), "lost": lost,
        "duplicate_completions": duplicates,
    }));
    Ok(ExitCode::from(u8::from(lost > 0 || duplicates > 0)))
}

fn agent(client: &Client, number: usize, ledger: &Arc<Mutex<Ledger>>) -> Result<AgentHandle> {
    let ledger = ledger.clone();
    Ok(Agent::builder(client.clone(), format!("failover-{number}"))
        .role(QUEUE)
        .slots(4)
        .handler(|_| async { Ok(Output::default()) })
        .on_completed(move |task, _| *ledger.lock().completions.entry(task).or_default() += 1)
        .start()?)
}

async fn produce(client: Client, ledger: Arc<Mutex<Ledger>>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        // An error means that nothing was acknowledged: it is not counted, and what it enqueued may or may not be there.
        if let Ok(task) = client.enqueue(NewTask::new(QUEUE, vec![0x5a; 256])).await {
            ledger.lock().acknowledge(task);
        }
    }
}

/// Waits until enqueues are acknowledged again, well beyond those that were under way at the kill.
async fn resumed(ledger: &Mutex<Ledger>, before: usize) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    while Instant::now() < deadline {
        tick.tick().await;
        if ledger.lock().acknowledged.len() > before + 20 * PRODUCERS {
            return Ok(());
        }
    }
    anyhow::bail!("no enqueue was acknowledged for 30 s: the cluster has not elected a leader")
}

/// Waits until everything acknowledged is completed, and says how many tasks never were. A completion whose
/// acknowledgement was lost with a leader is found by asking.
async fn drain(client: &Client, ledger: &Mutex<Ledger>) -> Result<usize> {
    let deadline = Instant::now() + DRAIN;
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    let mut found: HashSet<u64> = HashSet::new();
    loop {
        tick.tick().await;
        let last = Instant::now() >= deadline;
        let unseen: Vec<u64> = {
            let ledger = ledger.lock();
            let unseen = |task: &&u64| !ledger.completions.contains_key(task) && !found.contains(*task);
            ledger.acknowledged.iter().filter(unseen).copied().collect()
        };
        let mut missing = unseen.len();
        for task in unseen.into_iter().take(if last { usize::MAX } else { 1_000 }) {
            if is_completed(client, task).await? {
                found.insert(task);
                missing -= 1;
            }
        }
        if missing == 0 || last {
            return Ok(missing);
        }
    }
}
