//! `quorate demo`: three node processes, real text, agents of three roles, and a leader that is killed twice.
//!
//! Ingest agents write glosses into memory, research agents answer questions from it and write what they found back, each
//! answer with a review task behind it that a second role does. Everything acknowledged is written down here and looked
//! for at the end.

mod agents;
mod ledger;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use quorate_client::{Client, NewCollection, NewTask};
use serde_json::json;

use crate::dataset::Dataset;
use crate::local_cluster::{Launch, LocalCluster};
use crate::output::Format;
use ledger::Ledger;

/// Where glosses go: spread over all shards.
const GLOSSES: &str = "glosses";
/// Where findings go: one shard.
const FINDINGS: &str = "findings";
/// Recall below this fails the demo.
const LEAST_RECALL: f64 = 0.95;

/// The demo.
#[derive(Args)]
pub struct Demo {
    /// A folder with points.jsonl.gz, vectors.npy, queries.jsonl, queries.npy and truth.npy, instead of the bundled sample.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Leave the cluster up at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Shards of the collection of glosses.
    #[arg(long, default_value_t = 8)]
    shards: u32,
}

/// What every part of the demo knows.
struct Stage {
    client: Client,
    data: Arc<Dataset>,
    ledger: Arc<Ledger>,
    bars: MultiProgress,
}

/// Runs the demo; exit code 0 only if nothing was lost, nothing was completed twice and recall is high enough.
pub async fn run(demo: Demo, output: Format) -> Result<ExitCode> {
    let started = Instant::now();
    let data = Arc::new(match &demo.data {
        Some(folder) => Dataset::open(folder)?,
        None => Dataset::bundled()?,
    });
    let directory = tempfile::Builder::new().prefix("quorate-demo-").tempdir()?;
    let launch = Launch { binary: None, directory: directory.path().to_owned(), arguments: Vec::new() };
    eprintln!("starting three nodes in {}", directory.path().display());
    let mut cluster = LocalCluster::start(launch, 3).await?;
    let stage = Stage { client: cluster.client()?, data, ledger: Arc::default(), bars: MultiProgress::new() };
    let dimension = u32::try_from(stage.data.vectors.columns)?;
    stage.client.create_collection(NewCollection::new(GLOSSES, dimension).shards(demo.shards)).await?;
    stage.client.create_collection(NewCollection::new(FINDINGS, dimension)).await?;
    let agents = agents::start(&stage).await?;
    let mut failover_ms = Vec::new();
    ingest(&stage, &mut cluster, &mut failover_ms).await?;
    research(&stage, &mut cluster, &mut failover_ms).await?;
    for agent in agents {
        agent.shutdown().await;
    }
    let lost_tasks = stage.ledger.lost_tasks(&stage.client).await?;
    let points = work::points_found(&stage, GLOSSES, stage.data.points.len(), |row| row.to_string()).await?;
    let findings = work::points_found(&stage, FINDINGS, stage.data.questions.len(), work::finding_id).await?;
    let lost_points = stage.data.points.len() + stage.data.questions.len() - points - findings;
    let recall = work::recall(&stage).await?;
    let duplicates = stage.ledger.duplicate_completions();
    let lost = lost_tasks + lost_points;
    output.record(&json!({
        "points": points + findings, "tasks": stage.ledger.tasks(), "completed": stage.ledger.completed(), "lost": lost,
        "duplicate_completions": duplicates, "failover_ms": failover_ms, "recall_at_10": recall,
        "seconds": started.elapsed().as_secs_f64(),
    }));
    let good = lost == 0 && duplicates == 0 && recall >= LEAST_RECALL;
    eprintln!(
        "{}",
        if good { "nothing was lost, nothing was completed twice" } else { "the demo FAILED: see the figures above" }
    );
    if demo.keep {
        keep(&cluster).await?;
    }
    cluster.stop().await?;
    Ok(ExitCode::from(u8::from(!good)))
}

async fn ingest(stage: &Stage, cluster: &mut LocalCluster, failover_ms: &mut Vec<f64>) -> Result<()> {
    let tasks: Vec<NewTask> = work::ingest_tasks(stage.data.points.len());
    let bar = bar(stage, "ingest  ", tasks.len());
    work::enqueue(stage, tasks).await?;
    work::watch(stage, agents::INGEST, &bar, 0.4).await?;
    failover_ms.push(kill_leader(stage, cluster).await?);
    work::watch(stage, agents::INGEST, &bar, 1.0).await?;
    bar.finish();
    Ok(())
}

async fn research(stage: &Stage, cluster: &mut LocalCluster, failover_ms: &mut Vec<f64>) -> Result<()> {
    let questions = stage.data.questions.len();
    let (answers, reviews) = (bar(stage, "research", questions), bar(stage, "review  ", questions));
    work::enqueue(stage, work::research_tasks(questions)).await?;
    work::watch(stage, agents::RESEARCH, &answers, 0.3).await?;
    failover_ms.push(kill_leader(stage, cluster).await?);
    work::watch(stage, agents::RESEARCH, &answers, 1.0).await?;
    answers.finish();
    work::watch(stage, agents::REVIEW, &reviews, 1.0).await?;
    reviews.finish();
    Ok(())
}

/// Kills the leader of control, waits for the first enqueue that a new one acknowledges, and starts it again.
async fn kill_leader(stage: &Stage, cluster: &mut LocalCluster) -> Result<f64> {
    let leader = cluster.leader().await?;
    cluster.nodes[leader].kill().await?;
    let killed = Instant::now();
    work::enqueue(stage, vec![NewTask::new(agents::PROBE, Vec::new())]).await.context("after the leader was killed")?;
    let gap = killed.elapsed().as_secs_f64() * 1e3;
    stage.bars.println(format!(
        "killed {} (kill -9), which led: a new leader acknowledged after {gap:.0} ms",
        cluster.nodes[leader].label()
    ))?;
    cluster.restart(leader).await?;
    stage.bars.println(format!("{} is back", cluster.nodes[leader].label()))?;
    Ok((gap * 10.0).round() / 10.0)
}

fn bar(stage: &Stage, name: &'static str, length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = stage.bars.add(ProgressBar::new(length as u64)).with_style(style).with_prefix(name);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

async fn keep(cluster: &LocalCluster) -> Result<()> {
    let endpoints = cluster.endpoints().join(",");
    eprintln!("the cluster stays up; press Ctrl-C to end it. Try next:");
    eprintln!("  export QUORATE_ENDPOINTS={endpoints}");
    for verb in [
        "cluster status",
        "queue list",
        "task list --queue research --limit 5",
        "collection list",
        "memory get findings question-0",
    ] {
        eprintln!("  quorate {verb}");
    }
    tokio::signal::ctrl_c().await.context("waiting for Ctrl-C")
}
