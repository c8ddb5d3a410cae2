//! `quorate bench`: measures a cluster that is there, or three fresh processes on this machine.

mod failover;
mod figures;
mod heal;
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

pub use heal::is_equal;

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// Whole task cycles: enqueue, grant, complete.
    Tasks(tasks::Tasks),
    /// Loading vectors and searching them.
    Memory(memory::Memory),
    /// The gap in acknowledged enqueues when the leader is killed.
    Failover(failover::Failover),
    /// How long a damaged replica takes to be found, replaced and equal to the others again.
    Heal(heal::Heal),
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
            let client = Client::connect(endpoints)?;
            // That nobody is there is an error, not a measurement of nothing.
            client.cluster_status().await?;
            return Ok(Measured { client, spawned: None });
        };
        ensure!((1..=9).contains(&size), Usage(format!("--spawn {size}: 1 to 9 nodes are possible on one machine")));
        let directory = tempfile::Builder::new().prefix("quorate-bench-").tempdir()?;
        let arguments = vec!["--timers".to_owned(), self.timers.clone()];
        let launch = Launch { binary: None, directory: directory.path().to_owned(), arguments };
        let cluster = LocalCluster::start(launch, size).await?;
        Ok(Measured { client: cluster.client()?, spawned: Some((cluster, directory)) })
    }
}

/// Refuses a length of load that is none: more than nothing, at most a day.
fn check_seconds(seconds: f64) -> Result<()> {
    ensure!(
        seconds > 0.0 && seconds <= 86_400.0,
        Usage(format!("--seconds {seconds}: more than 0 and at most 86400 are possible"))
    );
    Ok(())
}

/// Runs a measurement.
pub async fn run(bench: Bench, endpoints: &[String], output: Format) -> Result<ExitCode> {
    match bench {
        Bench::Tasks(tasks) => tasks::run(tasks, endpoints, output).await,
        Bench::Memory(memory) => memory::run(memory, endpoints, output).await,
        Bench::Failover(failover) => failover::run(failover, endpoints, output).await,
        Bench::Heal(heal) => heal::run(heal, endpoints, output).await,
    }
}
