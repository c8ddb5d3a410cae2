//! The simulation of Quorate: three real nodes, the real client and the real agent SDK on a simulated network, disk and
//! clock, all of it decided by a seed.
//!
//! ```text
//! cargo run --release -- --seeds 20 --steps 20000      20 seeds, one line each
//! cargo run --release -- --seed 7                      one of them again
//! cargo run --release -- --planted all                 does it find the bugs of PLANTED.md?
//! ```
//!
//! What is real: Raft groups with their log writer and transport, snapshots, the machines, the proposer, the leader loop,
//! the gRPC services, the client with its retries, the agent SDK. What is not: TCP ([`network`]), the disk (the engines of
//! `quorate_raft::memory`, which forget what was not durable), time and randomness (a process has those of its seed).
//!
//! What is checked, by [`history`] and [`audit`] after every entry, and by [`run`] after every step: replicas apply the
//! same entries, from leaders in order; their state hashes agree with a machine that was never restarted; nothing that was
//! acknowledged is lost or was not yet there; a request takes effect once; a token is given once and counts only while it
//! is current; a task completes once; reads show what was acknowledged before; no node fails to start, stops or panics; and
//! when the faults end everything is completed in bounded time.
//!
//! A run in which too little happened is *invalid* and counted apart. The exit status is 1 if there was a violation, or a
//! planted bug was not found.

mod audit;
mod campaign;
mod clients;
mod digest;
mod history;
mod nemesis;
mod network;
mod node;
mod planted;
mod report;
mod run;
mod work;
mod world;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::campaign::Campaign;
use crate::report::{Report, Summary};

/// Runs Quorate in simulation.
#[derive(Debug, Parser)]
#[command(name = "quorate-sim")]
struct Arguments {
    /// How many seeds; with --planted: at most so many for each bug.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// Steps with faults of each seed; a step is 1 ms of simulated time.
    #[arg(long, default_value_t = 20_000)]
    steps: u64,
    /// Runs this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// The first of the seeds.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Plants a bug of PLANTED.md, or one after another (`all`), and says whether it is found.
    #[arg(long)]
    planted: Option<String>,
    /// Seeds at the same time. By default one for each core.
    #[arg(long)]
    jobs: Option<usize>,
    /// How results are written.
    #[arg(short, long, default_value = "text")]
    output: Output,
    #[command(subcommand)]
    inner: Option<Inner>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A line for each seed.
    Text,
    /// One document at the end.
    Json,
}

#[derive(Debug, Subcommand)]
enum Inner {
    /// Runs one seed in this process and writes its report as JSON.
    #[command(hide = true)]
    One {
        /// The seed.
        seed: u64,
        /// The steps.
        steps: u64,
        /// The planted bug.
        #[arg(long)]
        planted: Option<String>,
    },
}

/// Whether a planted bug was found.
#[derive(Debug, Serialize)]
struct Found {
    /// The seed that found it.
    seed: Option<u64>,
    /// Seeds that were run until then.
    seeds: u64,
    /// What was seen of it.
    violation: Option<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(Inner::One { seed, steps, planted }) = arguments.inner {
        one(seed, steps, planted.as_deref())?;
    }
    let campaign = Campaign {
        first: arguments.seed.unwrap_or(arguments.first),
        seeds: if arguments.seed.is_some() { 1 } else { arguments.seeds },
        steps: arguments.steps,
        planted: None,
        jobs: arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
    };
    let clean = match arguments.planted.as_deref() {
        None => all_seeds(&campaign, arguments.output)?,
        Some("all") => all_planted(&campaign, &planted::NAMES, arguments.output)?,
        Some(name) => all_planted(&campaign, &[name], arguments.output)?,
    };
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a seed and ends the process: a world that is stopped in the middle is not taken apart.
fn one(seed: u64, steps: u64, planted: Option<&str>) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("QUORATE_SIM_LOG"))
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    if let Some(name) = planted {
        planted::plant(name)?;
    }
    let report = run::run(seed, steps)?;
    let mut stdout = std::io::stdout();
    serde_json::to_writer(&mut stdout, &report)?;
    stdout.flush()?;
    std::process::exit(0)
}

fn all_seeds(campaign: &Campaign, output: Output) -> anyhow::Result<bool> {
    let mut summary = Summary::default();
    campaign.run(|report| {
        if output == Output::Text {
            println!("{}", report.line());
        }
        summary.add(&report);
        true
    });
    match output {
        Output::Text => println!("{}", summary.lines()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&summary)?),
    }
    Ok(summary.violations.is_empty())
}

fn all_planted(campaign: &Campaign, names: &[&str], output: Output) -> anyhow::Result<bool> {
    let mut found = BTreeMap::new();
    for name in names {
        anyhow::ensure!(planted::NAMES.contains(name), "there is no planted bug {name:?}; see PLANTED.md");
        let one = find(&Campaign { planted: Some((*name).to_owned()), ..campaign.clone() });
        if output == Output::Text {
            match (&one.seed, &one.violation) {
                (Some(seed), Some(what)) => {
                    println!("{name}: found by seed {seed}, within {} seeds\n  {what}", one.seeds)
                }
                _ => println!("{name}: NOT FOUND within {} seeds", one.seeds),
            }
        }
        found.insert((*name).to_owned(), one);
    }
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    }
    Ok(found.values().all(|one| one.seed.is_some()))
}

fn find(campaign: &Campaign) -> Found {
    let mut found = Found { seed: None, seeds: 0, violation: None };
    campaign.run(|report: Report| {
        found.seeds += 1;
        if let Some(violation) = report.violations.first().filter(|_| report.is_verdict()) {
            (found.seed, found.violation) = (Some(report.seed), Some(violation.clone()));
        }
        found.seed.is_none()
    });
    found
}
