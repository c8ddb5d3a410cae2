//! The simulation of Quorate: three real nodes and room for a fourth, the real client and the real agent SDK on a simulated
//! network, disk and clock, all of it decided by a seed.
//!
//! ```text
//! cargo run --release -- --seeds 20 --steps 20000      20 seeds, one line each
//! cargo run --release -- --seed 7                      one of them again
//! cargo run --release -- --planted all                 does it catch the bugs of PLANTED.md?
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
//! A run in which too little happened is *invalid* and counted apart. The exit status is 1 if there was a violation, if fewer
//! than 90% of the seeds were valid, or if fewer than 95% of the planted bugs were caught.

mod agents;
mod audit;
mod campaign;
mod check;
mod clients;
mod clock;
mod damage;
mod digest;
mod faults;
mod history;
mod memory;
mod nemesis;
mod network;
mod node;
mod planted;
mod repeat;
mod report;
mod run;
mod slot;
mod trace;
mod witness;
mod work;
mod world;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::campaign::Campaign;
use crate::planted::Table;
use crate::report::Summary;

/// Seeds of a run, unless another number is asked for.
const SEEDS: u64 = 20;
/// The most seeds, and the most steps, that can be asked for.
const MOST: u64 = 1_000_000_000;

/// Runs Quorate in simulation.
#[derive(Debug, Parser)]
#[command(name = "quorate-sim", after_help = report::FLOORS)]
struct Arguments {
    /// How many seeds, one after another: by default 20, or 1 with --seed; with --planted at most so many for each bug, by
    /// default 40.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MOST))]
    seeds: Option<u64>,
    /// Steps with faults of each seed; a step is 1 ms of simulated time.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=MOST))]
    steps: u64,
    /// The first seed, by default 1.
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=u64::MAX - MOST))]
    seed: Option<u64>,
    /// Plants a bug of PLANTED.md, or one after another (`all`), and says whether it is caught; `list` names them.
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

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(Inner::One { seed, steps, planted }) = arguments.inner {
        one(seed, steps, planted.as_deref())?;
    }
    let campaign = Campaign {
        first: arguments.seed.unwrap_or(1),
        seeds: arguments.seeds.unwrap_or(match (arguments.seed, &arguments.planted) {
            (Some(_), _) => 1,
            (None, None) => SEEDS,
            (None, Some(_)) => planted::SEEDS,
        }),
        steps: arguments.steps,
        planted: None,
        jobs: arguments.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
    };
    let clean = match arguments.planted.as_deref() {
        None => all_seeds(&campaign, arguments.output)?,
        Some("list") => list_planted(arguments.output)?,
        Some(name) => hunt_planted(&campaign, name, arguments.output)?,
    };
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The simulated step in front of a log line: a trace, a violation and a log name the same moment by the same number.
struct Steps;

impl FormatTime for Steps {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{}", run::current_step())
    }
}

/// Runs a seed and ends the process: a world that is stopped in the middle is not taken apart.
fn one(seed: u64, steps: u64, planted: Option<&str>) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("QUORATE_SIM_LOG"))
        .with_writer(std::io::stderr)
        .with_timer(Steps)
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
    Ok(summary.is_enough())
}

fn list_planted(output: Output) -> anyhow::Result<bool> {
    let names = planted::names()?;
    match output {
        Output::Text => names.iter().for_each(|name| println!("{name}")),
        Output::Json => println!("{}", serde_json::to_string_pretty(&names)?),
    }
    Ok(true)
}

fn hunt_planted(campaign: &Campaign, name: &str, output: Output) -> anyhow::Result<bool> {
    let all = planted::names()?;
    let names: Vec<&str> = if name == "all" { all.iter().copied().collect() } else { vec![name] };
    names.iter().try_for_each(|name| planted::check(name))?;
    let tell = |line: &str| {
        if output == Output::Text {
            println!("{line}");
        }
    };
    tell(&Table::head());
    let table = planted::hunt(campaign, &names, tell);
    tell(&table.verdict());
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&table)?);
    }
    Ok(table.is_enough())
}
