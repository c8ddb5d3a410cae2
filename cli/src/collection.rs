//! `quorate collection`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use quorate_client::{Client, NewCollection, v1 as api};
use serde_json::{Value, json};

use crate::output::Format;

/// Verbs on collections.
#[derive(Subcommand)]
pub enum Collection {
    /// Makes a collection.
    Create {
        /// Its name.
        name: String,
        /// Length of its vectors, 1 to 4,096.
        #[arg(long)]
        dimension: u32,
        /// How nearness is measured.
        #[arg(long, value_enum, default_value_t)]
        metric: Metric,
        /// Over how many shards it is spread; 1 if absent.
        #[arg(long, default_value_t = 1)]
        shards: u32,
    },
    /// Lists collections.
    List,
    /// Deletes a collection with all its points.
    Delete {
        /// Its name.
        name: String,
    },
}

/// How nearness is measured.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Metric {
    /// The angle between vectors.
    #[default]
    Cosine,
    /// The inner product.
    InnerProduct,
    /// The squared Euclidean distance.
    L2,
}

impl Metric {
    /// As the protocol says it.
    pub fn wire(self) -> api::Metric {
        match self {
            Metric::Cosine => api::Metric::Cosine,
            Metric::InnerProduct => api::Metric::InnerProduct,
            Metric::L2 => api::Metric::L2,
        }
    }
}

/// Runs a verb on collections.
pub async fn run(verb: Collection, endpoints: &[String], output: Format) -> Result<ExitCode> {
    let client = Client::connect(endpoints)?;
    match verb {
        Collection::Create { name, dimension, metric, shards } => {
            output.record(&shown(
                &client
                    .create_collection(NewCollection::new(name, dimension).metric(metric.wire()).shards(shards))
                    .await?,
            ));
        }
        Collection::List => {
            let collections: Vec<Value> = client.list_collections().await?.iter().map(shown).collect();
            output
                .list(&collections, &["name", "dimension", "metric", "shards", "points", "sealed_points", "deleting"]);
        }
        Collection::Delete { name } => {
            client.delete_collection(&name).await?;
            output.record(&json!({ "deleted": name }));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(collection: &api::Collection) -> Value {
    json!({
        "name": collection.name, "dimension": collection.dimension,
        "metric": collection.metric().as_str_name().trim_start_matches("METRIC_").to_lowercase(),
        "shards": collection.shards, "points": collection.points, "sealed_points": collection.sealed_points,
        "deleting": collection.deleting,
    })
}
