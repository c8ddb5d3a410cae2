//! The demo's agents: what each role does with an attempt.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use quorate_client::{Agent, AgentHandle, Attempt, Client, NewTask, Output, Search, TaskError, v1 as api};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{FINDINGS, GLOSSES, Stage, work};
use crate::dataset::Dataset;

pub(super) const INGEST: &str = "ingest";
pub(super) const RESEARCH: &str = "research";
pub(super) const REVIEW: &str = "review";
pub(super) const PROBE: &str = "probe";
/// Role, agents, slots of each.
const STAFF: [(&str, usize, u32); 4] = [(INGEST, 4, 2), (RESEARCH, 4, 2), (REVIEW, 2, 2), (PROBE, 1, 1)];

/// The payload of a task: rows of the data to ingest, or the question to answer or review.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Assignment {
    Rows { from: usize, to: usize },
    Question { number: usize },
    Nothing,
}

/// Starts the staff.
pub(super) async fn start(stage: &Stage) -> Result<Vec<AgentHandle>> {
    let mut staff = Vec::new();
    for (role, count, slots) in STAFF {
        for number in 1..=count {
            let (client, data, ledger) = (stage.client.clone(), stage.data.clone(), stage.ledger.clone());
            let agent = Agent::builder(stage.client.clone(), format!("{role}-{number}"))
                .role(role)
                .slots(slots)
                .handler(move |attempt| perform(client.clone(), data.clone(), attempt))
                .on_completed(move |task, children| ledger.completed_by(role, task, children))
                .start()
                .with_context(|| format!("starting {role}-{number}"))?;
            staff.push(agent);
        }
    }
    Ok(staff)
}

/// A failed attempt is tried again by another agent: every step below has the same effect when it is done twice.
async fn perform(client: Client, data: Arc<Dataset>, attempt: Attempt) -> Result<Output, TaskError> {
    let outcome = match (attempt.role.as_str(), assignment(&attempt)) {
        (INGEST, Ok(Assignment::Rows { from, to })) => ingest(&client, &data, from, to).await,
        (RESEARCH, Ok(Assignment::Question { number })) => research(&client, &data, number).await,
        (REVIEW, Ok(Assignment::Question { number })) => review(&client, &data, number).await,
        (PROBE, _) => Ok(Output::default()),
        (role, Ok(_)) => return Err(TaskError::permanent(format!("{role} got a task of another kind"))),
        (_, Err(error)) => return Err(TaskError::permanent(format!("{error:#}"))),
    };
    outcome.map_err(|error| TaskError::retry(format!("{error:#}")))
}

fn assignment(attempt: &Attempt) -> Result<Assignment> {
    if attempt.payload.is_empty() {
        return Ok(Assignment::Nothing);
    }
    serde_json::from_slice(&attempt.payload).context("the payload is no assignment")
}

async fn ingest(client: &Client, data: &Dataset, from: usize, to: usize) -> Result<Output> {
    let points = (from..to)
        .map(|row| api::PointInput {
            id: row.to_string(),
            vector: data.vectors.row(row).to_vec(),
            payload: json!({ "text": data.points[row].text, "category": data.points[row].category })
                .to_string()
                .into_bytes()
                .into(),
            expected_version: None,
        })
        .collect();
    write(client, GLOSSES, points).await?;
    Ok(Output::default())
}

/// Answers a question from memory and leaves a review behind.
async fn research(client: &Client, data: &Dataset, number: usize) -> Result<Output> {
    let vector = data.query_vectors.row(number).to_vec();
    let found = client.search(&Search::new(GLOSSES, vector.clone(), 5).with_payload()).await?;
    ensure!(found.degraded_shards.is_empty(), "shards {:?} did not answer", found.degraded_shards);
    let answers: Vec<serde_json::Value> = found
        .hits
        .iter()
        .map(|hit| json!({ "id": hit.id, "score": hit.score, "gloss": serde_json::from_slice::<serde_json::Value>(&hit.payload).map(|payload| payload["text"].clone()).unwrap_or_default() }))
        .collect();
    let finding = json!({ "question": data.questions[number].text, "answers": answers });
    let payload = finding.to_string().into_bytes();
    write(
        client,
        FINDINGS,
        vec![api::PointInput {
            id: work::finding_id(number),
            vector,
            payload: payload.clone().into(),
            expected_version: None,
        }],
    )
    .await?;
    let review = NewTask::new(REVIEW, serde_json::to_vec(&Assignment::Question { number })?);
    Ok(Output::new(payload).child(review))
}

/// Reads a finding back and holds its best answer against a search of every point.
async fn review(client: &Client, data: &Dataset, number: usize) -> Result<Output> {
    let id = work::finding_id(number);
    let points = client
        .get_points(&api::GetPointsRequest { collection: FINDINGS.into(), ids: vec![id.clone()], ..Default::default() })
        .await?;
    let finding = points.first().with_context(|| format!("{id} was acknowledged and is not there"))?;
    let finding: serde_json::Value = serde_json::from_slice(&finding.payload)?;
    let exact = client.search(&Search::new(GLOSSES, data.query_vectors.row(number).to_vec(), 1).exact()).await?;
    let best = exact.hits.first().context("the memory is empty")?;
    let agrees = finding["answers"][0]["id"] == json!(best.id);
    Ok(Output::new(json!({ "finding": id, "agrees": agrees }).to_string().into_bytes()))
}

async fn write(client: &Client, collection: &str, points: Vec<api::PointInput>) -> Result<()> {
    let response = client.upsert(collection, points).await?;
    match response.outcomes.into_iter().find_map(|outcome| outcome.error) {
        Some(error) => anyhow::bail!("a point was refused: {}", error.message),
        None => Ok(()),
    }
}
