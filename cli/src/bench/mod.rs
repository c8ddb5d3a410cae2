//! `quorate bench`: measures a cluster that is there, or three fresh processes on this machine.

mod failover;
mod figures;
mod memory;
mod tasks;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use quorate_client::Client;
use tempfile::TempDir;

use crate::exit::Usage;
use crate::local_cluster::{Launch, LocalCluster};
use crate::output::Format;

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// Whole task cycles: enqueue, grant, complete.
    Tasks(tasks::Tasks),
    /// Loading vectors and searching them.
    Memory(memory::Memory),
    /// The gap in acknowledged enqueues when the leader is killed.
    Failover(failover::Failover),
}

/// Which cluster is measured.
#[derive(Args, Clone)]
pub struct Target {
    /// Start a fresh local cluster of so many processes and measure that, instead of --endpoints.
    #[arg(long)]
    spawn: Option<usize>,
    /// Timers of the spawned nodes.
    #[arg(long, default_value = "default", requires = "spawn")]
    timers: String,
}

/// A cluster under measurement; what was spawned ends with it.
struct Measured {
    client: Client,
    spawned: Option<(LocalCluster, TempDir)>,
}

impl Target {
    async fn reach(&self, endpoints: &[String]) -> Result<Measured> {
        let Some(size) = self.spawn else {
            return Ok(Measured { client: Client::connect(endpoints)?, spawned: None });
        };
        ensure!((1..=9).contains(&size), Usage(format!("--spawn {size}: 1 to 9 nodes are possible on one machine")));
        let directory = tempfile::Builder::new().prefix("quorate-bench-").tempdir()?;
        let arguments = vec!["--timers".to_owned(), self.timers.clone()];
        let launch = Launch { binary: None, directory: directory.path().to_owned(), arguments };
        let cluster = LocalCluster::start(launch, size).await?;
        Ok(Measured { client: cluster.client()?, spawned: Some((cluster, directory)) })
    }
}

/// Runs a measurement.
pub async fn run(bench: Bench, endpoints: &[String], output: Format) -> Result<ExitCode> {
    match bench {
        Bench::Tasks(tasks) => tasks::run(tasks, endpoints, output).await,
        Bench::Memory(memory) => memory::run(memory, endpoints, output).await,
        Bench::Failover(failover) => failover::run(failover, endpoints, output).await,
    }
}
