//! `quorate bench memory`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use quorate_client::{Client, NewCollection, Search, v1 as api};
use serde_json::{Value, json};

use super::figures::Latencies;
use super::{Measured, Target, check_seconds};
use crate::collection::Metric;
use crate::dataset::{self, Matrix, Truth};
use crate::exit::Usage;
use crate::local_cluster::LocalCluster;
use crate::output::Format;

const COLLECTION: &str = "bench";
/// Points in one upsert, and upserts under way at once.
const BATCH: usize = 128;
const WRITERS: usize = 8;
/// How long sealing may take.
const SEAL: Duration = Duration::from_secs(600);

/// Loads vectors into a new collection, waits until all are sealed, then searches in a closed loop.
#[derive(Args)]
pub struct Memory {
    #[command(flatten)]
    target: Target,
    /// Vectors to load: .npy, float16 or float32, a row a point.
    #[arg(long)]
    vectors: PathBuf,
    /// Questions: .npy of the same kind.
    #[arg(long)]
    queries: PathBuf,
    /// Exact answers: .npy, int32, the nearest rows of each question, best first.
    #[arg(long)]
    truth: PathBuf,
    /// How nearness is measured.
    #[arg(long, value_enum, default_value_t)]
    metric: Metric,
    /// Neighbours of a search.
    #[arg(long, default_value_t = 10)]
    k: u32,
    /// Searches under way at once.
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// Seconds of searching.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Shards of the collection.
    #[arg(long, default_value_t = 1)]
    shards: u32,
}

/// Runs the load and prints its figures.
pub(super) async fn run(bench: Memory, endpoints: &[String], output: Format) -> Result<ExitCode> {
    let read = |path: &PathBuf| fs_err::read(path).with_context(|| format!("reading {}", path.display()));
    let vectors = dataset::matrix(&read(&bench.vectors)?).with_context(|| bench.vectors.display().to_string())?;
    let queries = dataset::matrix(&read(&bench.queries)?).with_context(|| bench.queries.display().to_string())?;
    let truth = dataset::truth(&read(&bench.truth)?).with_context(|| bench.truth.display().to_string())?;
    ensure!(
        vectors.columns == queries.columns,
        Usage(format!("vectors have {} dimensions, queries {}", vectors.columns, queries.columns))
    );
    ensure!(
        truth.questions() == queries.rows(),
        Usage(format!("--truth has {} rows for {} queries", truth.questions(), queries.rows()))
    );
    ensure!(
        truth.depth() >= bench.k as usize,
        Usage(format!("--truth knows {} neighbours, --k asks for {}", truth.depth(), bench.k))
    );
    ensure!(vectors.rows() > 0 && queries.rows() > 0, Usage("--vectors and --queries have at least one row".into()));
    ensure!(bench.threads > 0, Usage("--threads is at least 1".into()));
    check_seconds(bench.seconds)?;
    let measured = bench.target.reach(endpoints).await?;
    let figures = measure(&bench, &measured, vectors, queries, &truth).await?;
    if measured.spawned.is_none() {
        measured.client.delete_collection(COLLECTION).await?;
    }
    output.record(&figures);
    Ok(ExitCode::SUCCESS)
}

async fn measure(
    bench: &Memory,
    measured: &Measured,
    vectors: Matrix,
    queries: Matrix,
    truth: &Truth,
) -> Result<Value> {
    let client = &measured.client;
    let collection = NewCollection::new(COLLECTION, u32::try_from(vectors.columns)?)
        .metric(bench.metric.wire())
        .shards(bench.shards);
    client.create_collection(collection).await?;
    let cluster = measured.spawned.as_ref().map(|(cluster, _)| cluster);
    let resident_before = cluster.map(resident).transpose()?;
    let points = vectors.rows();
    let started = Instant::now();
    load(client, vectors).await?;
    let load = started.elapsed();
    wait_sealed(client, cluster, points as u64).await?;
    let ready = started.elapsed();
    let resident_after = cluster.map(resident).transpose()?;
    let replicas = cluster.map_or(1, |cluster| if cluster.nodes.len() >= 3 { 3 } else { 1 });
    let per_vector = resident_before
        .zip(resident_after)
        .map(|(before, after)| (after.saturating_sub(before) as f64 / (points * replicas) as f64).round());
    let queries = Arc::new(queries);
    let recall = recall(client, &queries, truth, bench).await?;
    let (searches, latencies) = search_loop(client, &queries, bench).await?;
    Ok(json!({
        "load_points_per_s": (points as f64 / load.as_secs_f64()).round(),
        "ready_s": ready.as_secs_f64(),
        "recall": recall,
        "qps": (searches as f64 / bench.seconds).round(),
        "search_ms": latencies.milliseconds(),
        "resident_bytes_per_vector": per_vector,
    }))
}

async fn load(client: &Client, vectors: Matrix) -> Result<()> {
    let vectors = Arc::new(vectors);
    stream::iter((0..vectors.rows()).step_by(BATCH).map(|first| {
        let (client, vectors) = (client.clone(), vectors.clone());
        async move {
            let rows = first..(first + BATCH).min(vectors.rows());
            let points = rows
                .map(|row| api::PointInput {
                    id: row.to_string(),
                    vector: vectors.row(row).to_vec(),
                    ..Default::default()
                })
                .collect();
            let response = client.upsert(COLLECTION, points).await?;
            let refused = response.outcomes.iter().find_map(|outcome| outcome.error.as_ref());
            ensure!(refused.is_none(), "a point was refused: {}", refused.map_or("", |error| &error.message));
            Ok::<(), anyhow::Error>(())
        }
    }))
    .buffer_unordered(WRITERS)
    .try_collect()
    .await
}

/// Waits until every replica that is asked has all points and builds nothing any more.
async fn wait_sealed(client: &Client, cluster: Option<&LocalCluster>, points: u64) -> Result<()> {
    let deadline = Instant::now() + SEAL;
    let clients = match cluster {
        Some(cluster) => (0..cluster.nodes.len()).map(|node| cluster.client_of(node)).collect::<Result<Vec<_>>>()?,
        None => vec![client.clone()],
    };
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    for client in &clients {
        loop {
            tick.tick().await;
            let collections = client.list_collections().await?;
            let collection = collections
                .iter()
                .find(|collection| collection.name == COLLECTION)
                .context("the collection is gone")?;
            if collection.points == points && collection.sealed {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "not sealed after {SEAL:?}: {} of {points} points are",
                collection.sealed_points
            );
        }
    }
    Ok(())
}

/// Anonymous memory of all nodes, in bytes.
fn resident(cluster: &LocalCluster) -> Result<u64> {
    let mut total = 0;
    for pid in cluster.nodes.iter().filter_map(crate::local_cluster::LocalNode::pid) {
        let status = fs_err::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .context("the kernel does not state RssAnon")?;
        total += line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024;
    }
    Ok(total)
}

fn request(query: &[f32], k: u32) -> Search {
    Search::new(COLLECTION, query.to_vec(), k)
}

async fn recall(client: &Client, queries: &Arc<Matrix>, truth: &Truth, bench: &Memory) -> Result<f64> {
    let answers: Vec<(usize, api::SearchResponse)> = stream::iter(0..queries.rows())
        .map(|question| async move {
            Ok::<_, anyhow::Error>((question, client.search(&request(queries.row(question), bench.k)).await?))
        })
        .buffer_unordered(bench.threads)
        .try_collect()
        .await?;
    let mut found = 0;
    for (question, answer) in &answers {
        ensure!(answer.degraded_shards.is_empty(), "shards {:?} did not answer", answer.degraded_shards);
        let nearest = truth.nearest(*question, bench.k as usize);
        found += answer.hits.iter().filter(|hit| hit.id.parse::<i32>().is_ok_and(|row| nearest.contains(&row))).count();
    }
    Ok(found as f64 / (answers.len() * bench.k as usize) as f64)
}

async fn search_loop(client: &Client, queries: &Arc<Matrix>, bench: &Memory) -> Result<(u64, Latencies)> {
    let next = Arc::new(AtomicUsize::new(0));
    let until = Instant::now() + Duration::from_secs_f64(bench.seconds);
    let loops: Vec<_> = (0..bench.threads)
        .map(|_| {
            let (client, queries, next, k) = (client.clone(), queries.clone(), next.clone(), bench.k);
            tokio::spawn(async move {
                let mut taken = Vec::new();
                while Instant::now() < until {
                    let question = next.fetch_add(1, Ordering::Relaxed) % queries.rows();
                    let started = Instant::now();
                    client.search(&request(queries.row(question), k)).await?;
                    taken.push(started.elapsed());
                }
                Ok::<_, anyhow::Error>(taken)
            })
        })
        .collect();
    let mut latencies = Latencies::new();
    let mut searches = 0;
    for handle in loops {
        for latency in handle.await?? {
            latencies.record(latency);
            searches += 1;
        }
    }
    Ok((searches, latencies))
}
