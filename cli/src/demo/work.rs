//! The demo's tasks, and how their outcome is looked at.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use quorate_client::{NewTask, Search, v1 as api};

use super::agents::{Assignment, INGEST, RESEARCH};
use super::{GLOSSES, Stage};

/// Glosses in one ingest task.
const ROWS: usize = 50;
/// Tasks in one call.
const TASKS: usize = 500;
/// Without any progress for so long the demo gives up.
const STALLED: Duration = Duration::from_secs(60);

/// The id of what was found for a question.
pub(super) fn finding_id(question: usize) -> String {
    format!("question-{question}")
}

pub(super) fn ingest_tasks(points: usize) -> Vec<NewTask> {
    (0..points)
        .step_by(ROWS)
        .map(|from| task(INGEST, &Assignment::Rows { from, to: (from + ROWS).min(points) }))
        .collect()
}

pub(super) fn research_tasks(questions: usize) -> Vec<NewTask> {
    (0..questions).map(|number| task(RESEARCH, &Assignment::Question { number })).collect()
}

fn task(role: &str, assignment: &Assignment) -> NewTask {
    // Killed leaders and restarting shards may fail an attempt or two: the demo's tasks are patient.
    NewTask::new(role, serde_json::to_vec(assignment).expect("an assignment is plain data")).max_attempts(20)
}

/// Enqueues tasks and writes down those that were acknowledged.
pub(super) async fn enqueue(stage: &Stage, tasks: Vec<NewTask>) -> Result<()> {
    for chunk in tasks.chunks(TASKS) {
        stage.ledger.enqueued(&stage.client.enqueue_many(chunk.to_vec()).await?);
    }
    Ok(())
}

/// Moves the bar until a share of its length is done.
pub(super) async fn watch(stage: &Stage, role: &str, bar: &ProgressBar, share: f64) -> Result<()> {
    let length = bar.length().unwrap_or_default();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let mut moved = Instant::now();
    loop {
        tick.tick().await;
        let done = stage.ledger.done(role) as u64;
        if done > bar.position() {
            moved = Instant::now();
            bar.set_position(done);
        }
        if done as f64 >= length as f64 * share {
            return Ok(());
        }
        ensure!(moved.elapsed() < STALLED, "{role}: {done} of {length} tasks are done and none for {STALLED:?}");
    }
}

/// How many of the points are there.
pub(super) async fn points_found(
    stage: &Stage,
    collection: &str,
    count: usize,
    id: impl Fn(usize) -> String,
) -> Result<usize> {
    let ids: Vec<String> = (0..count).map(id).collect();
    let mut found = 0;
    for chunk in ids.chunks(500) {
        found += stage
            .client
            .get_points(&api::GetPointsRequest {
                collection: collection.to_owned(),
                ids: chunk.to_vec(),
                ..Default::default()
            })
            .await?
            .len();
    }
    Ok(found)
}

/// The share of the exact ten nearest glosses that searches find.
pub(super) async fn recall(stage: &Stage) -> Result<f64> {
    let questions = stage.data.questions.len();
    let found: Vec<usize> = stream::iter(0..questions)
        .map(|question| async move {
            let vector = stage.data.query_vectors.row(question).to_vec();
            let answer = stage.client.search(&Search::new(GLOSSES, vector, 10)).await?;
            let nearest = stage.data.truth.nearest(question, 10);
            Ok::<_, anyhow::Error>(
                answer.hits.iter().filter(|hit| hit.id.parse::<i32>().is_ok_and(|row| nearest.contains(&row))).count(),
            )
        })
        .buffer_unordered(8)
        .try_collect()
        .await?;
    Ok(found.iter().sum::<usize>() as f64 / (questions * 10) as f64)
}
