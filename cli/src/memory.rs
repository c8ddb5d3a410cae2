//! `quorate memory`.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use quorate_client::{Client, Search as Query, limits, v1 as api};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::exit::Usage;
use crate::output::Format;

/// Points in one call to the cluster when a file is written.
const BATCH: usize = 256;
/// Bytes of them, about: large points travel in smaller batches, so that each call fits a message.
const BATCH_BYTES: usize = limits::MESSAGE_BYTES / 2;

/// Verbs on points.
#[derive(Subcommand)]
pub enum Memory {
    /// Writes points: one from the arguments, or many from JSON lines.
    Upsert(Upsert),
    /// Finds the nearest points.
    Search(Search),
    /// Shows points by id.
    Get {
        /// The collection.
        collection: String,
        /// Ids of points.
        #[arg(required = true)]
        ids: Vec<String>,
        /// With their vectors.
        #[arg(long)]
        with_vector: bool,
    },
    /// Deletes points by id.
    Delete {
        /// The collection.
        collection: String,
        /// Ids of points.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Points to be written.
#[derive(Args)]
pub struct Upsert {
    /// The collection.
    collection: String,
    /// JSON lines, each {"id": "...", "vector": [...], "payload": {...}}; `-` is standard input.
    #[arg(long, conflicts_with_all = ["id", "vector", "payload", "expected_version"])]
    file: Option<PathBuf>,
    /// Id of the point.
    #[arg(long, required_unless_present = "file")]
    id: Option<String>,
    /// Its vector as JSON, e.g. '[0.1, 0.2]'.
    #[arg(long, required_unless_present = "file")]
    vector: Option<String>,
    /// Its payload as a JSON object.
    #[arg(long)]
    payload: Option<String>,
    /// Write only if this is the point's version; 0: only if it is absent.
    #[arg(long)]
    expected_version: Option<u64>,
}

/// What to look for.
#[derive(Args)]
pub struct Search {
    /// The collection.
    collection: String,
    /// The vector as JSON, e.g. '[0.1, 0.2]'.
    #[arg(long)]
    vector: String,
    /// How many.
    #[arg(short, long, default_value_t = 10)]
    k: u32,
    /// What the answer must reflect.
    #[arg(long, value_enum, default_value_t)]
    consistency: Consistency,
    /// Compare with every point.
    #[arg(long)]
    exact: bool,
}

/// What a read must reflect.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Consistency {
    /// Every write acknowledged before.
    #[default]
    Linearizable,
    /// Whatever the nearest replica has.
    Any,
}

impl Consistency {
    /// As the protocol says it.
    pub fn wire(self) -> api::Consistency {
        match self {
            Consistency::Linearizable => api::Consistency::Linearizable,
            Consistency::Any => api::Consistency::Any,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    vector: Vec<f32>,
    #[serde(default)]
    payload: Option<serde_json::Map<String, Value>>,
}

/// Runs a verb on points.
pub async fn run(verb: Memory, endpoints: &[String], output: Format) -> Result<ExitCode> {
    let client = Client::connect(endpoints)?;
    match verb {
        Memory::Upsert(upsert) => return write(&client, upsert, output).await,
        Memory::Search(search) => return find(&client, search, output).await,
        Memory::Get { collection, ids, with_vector } => {
            let asked = ids.len();
            let request = api::GetPointsRequest { collection, ids, with_vector, ..Default::default() };
            let points = client.get_points(&request).await?;
            let records: Vec<Value> = points.iter().map(|point| shown(point, with_vector)).collect();
            output.list(
                &records,
                if with_vector { &["id", "version", "payload", "vector"] } else { &["id", "version", "payload"] },
            );
            return Ok(ExitCode::from(u8::from(points.len() < asked)));
        }
        Memory::Delete { collection, ids } => {
            let deleted = client.delete_points(&collection, ids).await?.deleted;
            output.record(&json!({ "deleted": deleted }));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn write(client: &Client, upsert: Upsert, output: Format) -> Result<ExitCode> {
    let points = match &upsert.file {
        Some(file) => read_lines(file)?,
        None => vec![one(&upsert)?],
    };
    let (mut written, mut refused, mut version) = (0_usize, Vec::new(), 0);
    for batch in batches(&points) {
        let response = client.upsert(&upsert.collection, batch.to_vec()).await?;
        for (point, outcome) in batch.iter().zip(response.outcomes) {
            match outcome.error {
                Some(error) => refused.push(format!("{}: {}", point.id, error.message)),
                None => {
                    written += 1;
                    version = outcome.version;
                }
            }
        }
    }
    let mut record = json!({ "written": written, "refused": refused.len() });
    if let (None, 1) = (&upsert.file, written) {
        record["version"] = json!(version);
    }
    output.record(&record);
    refused.iter().take(10).for_each(|line| eprintln!("refused: {line}"));
    Ok(ExitCode::from(u8::from(!refused.is_empty())))
}

/// Cuts points into batches of at most [`BATCH`] points and about [`BATCH_BYTES`] bytes, in order.
fn batches(points: &[api::PointInput]) -> impl Iterator<Item = &[api::PointInput]> {
    let size = |point: &api::PointInput| 64 + point.id.len() + 4 * point.vector.len() + point.payload.len();
    let (mut count, mut bytes) = (1, points.first().map_or(0, size));
    points.chunk_by(move |_, next| {
        count += 1;
        bytes += size(next);
        let fits = count <= BATCH && bytes <= BATCH_BYTES;
        if !fits {
            (count, bytes) = (1, size(next));
        }
        fits
    })
}

fn one(upsert: &Upsert) -> Result<api::PointInput> {
    let payload = upsert.payload.clone().unwrap_or_default();
    if !payload.is_empty() {
        serde_json::from_str::<serde_json::Map<String, Value>>(&payload)
            .map_err(|error| Usage(format!("--payload is not a JSON object: {error}")))?;
    }
    Ok(api::PointInput {
        id: upsert.id.clone().unwrap_or_default(),
        vector: vector(upsert.vector.as_deref().unwrap_or_default())?,
        payload: payload.into_bytes().into(),
        expected_version: upsert.expected_version,
    })
}

fn vector(text: &str) -> Result<Vec<f32>> {
    Ok(serde_json::from_str(text)
        .map_err(|error| Usage(format!("--vector is not a JSON array of numbers: {error}")))?)
}

fn read_lines(file: &std::path::Path) -> Result<Vec<api::PointInput>> {
    let reader: Box<dyn BufRead> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => Box::new(std::io::BufReader::new(fs_err::File::open(file)?)),
    };
    let mut points = Vec::new();
    for (number, line) in reader.lines().enumerate() {
        let line: Line =
            serde_json::from_str(&line?).with_context(|| format!("line {} of {}", number + 1, file.display()))?;
        let payload = line.payload.map(|fields| Value::Object(fields).to_string()).unwrap_or_default();
        points.push(api::PointInput {
            id: line.id,
            vector: line.vector,
            payload: payload.into_bytes().into(),
            expected_version: None,
        });
    }
    Ok(points)
}

async fn find(client: &Client, search: Search, output: Format) -> Result<ExitCode> {
    let mut query = Query::new(search.collection, vector(&search.vector)?, search.k)
        .consistency(search.consistency.wire())
        .with_payload();
    if search.exact {
        query = query.exact();
    }
    let response = client.search(&query).await?;
    let hits: Vec<Value> = response
        .hits
        .iter()
        .map(
            |hit| json!({ "id": hit.id, "score": hit.score, "version": hit.version, "payload": payload(&hit.payload) }),
        )
        .collect();
    if output == Format::Json {
        output.record(&json!({ "hits": hits, "degraded_shards": response.degraded_shards }));
    } else {
        output.list(&hits, &["id", "score", "version", "payload"]);
    }
    if !response.degraded_shards.is_empty() {
        eprintln!(
            "degraded: shards {:?} did not answer; hits of theirs are missing. See quorate cluster status",
            response.degraded_shards
        );
    }
    Ok(ExitCode::from(u8::from(!response.degraded_shards.is_empty())))
}

fn payload(bytes: &[u8]) -> Value {
    if bytes.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(bytes)))
    }
}

fn shown(point: &api::Point, with_vector: bool) -> Value {
    let mut record = json!({ "id": point.id, "version": point.version, "payload": payload(&point.payload) });
    if with_vector {
        record["vector"] = json!(point.vector);
    }
    record
}
