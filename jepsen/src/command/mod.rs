//! The command line.
//!
//! `run` is one run in this process. Everything that makes many runs (`all`, `planted`, `campaign`, `soak`) starts each
//! as a process of its own by `piece`: what one run does to this program then stays with that run.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 valid, 1 a promise was broken (or a
//! planted bug was missed), 2 usage, 4 nothing is proved.

mod campaign;
mod piece;
mod planted;
mod run;
mod show;
mod soak;
mod tour;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use tokio_util::sync::CancellationToken;

use crate::check::Outcome;

/// A promise was broken.
const BROKEN: u8 = 1;
/// What was typed does not fit.
const USAGE: u8 = 2;
/// Nothing is proved.
const VOID: u8 = 4;

/// A mistake in what was typed that only shows after parsing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Breaks clusters of real Quorate nodes and checks that promises are kept. Needs root.
#[derive(Debug, Parser)]
#[command(name = "quorate-jepsen", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One workload under some nemeses.
    Run(run::Run),
    /// A tour over pairs of workloads and nemeses.
    All(tour::Tour),
    /// Workloads, nemeses and planted bugs.
    List(show::List),
    /// Checks a history that was recorded.
    Check(show::Check),
    /// Removes what runs left on this machine that did not end by themselves.
    Clean(show::Clean),
    /// Whether the planted bugs are caught.
    Planted(planted::Planted),
    /// The long list, in pieces of minutes; each is written to the ledger.
    Campaign(campaign::Campaign),
    /// Hours of everything, with a floor on throughput.
    Soak(soak::Soak),
    /// What the ledger adds up to.
    Ledger(show::Totals),
}

/// How data is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("QUORATE_JEPSEN_LOG");
    let filter = filter.unwrap_or_else(|_| "quorate_jepsen=info,warn".into());
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(execute(arguments.command)));
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(if error.chain().any(|cause| cause.is::<Usage>()) { USAGE } else { VOID })
    })
}

async fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(run) => run.execute(interrupted()?).await,
        Command::All(tour) => tour.execute(interrupted()?).await,
        Command::List(list) => list.execute(),
        Command::Check(check) => check.execute(),
        Command::Clean(clean) => clean.execute(),
        Command::Planted(planted) => planted.execute(interrupted()?).await,
        Command::Campaign(campaign) => campaign.execute(interrupted()?).await,
        Command::Soak(soak) => soak.execute(interrupted()?).await,
        Command::Ledger(totals) => totals.execute(interrupted()?).await,
    }
}

/// Is cancelled by the first SIGINT or SIGTERM, so that what was begun is ended and removed.
fn interrupted() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = CancellationToken::new();
    let seen = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::warn!("interrupted: ending the run and removing what it made");
        seen.cancel();
    });
    Ok(token)
}

fn exit(outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Valid => ExitCode::SUCCESS,
        Outcome::Invalid => ExitCode::from(BROKEN),
        Outcome::Void => ExitCode::from(VOID),
    }
}

/// A program beside this one.
fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    Ok(own.with_file_name(name))
}

/// Where runs put their files unless they are told: one folder for each.
fn runs_folder() -> PathBuf {
    std::env::temp_dir().join("quorate-jepsen")
}

/// A seed for who gives none; short, so that it can be typed again.
fn any_seed() -> u64 {
    u64::from(rand::random::<u32>())
}

/// Prints rows as a table; the first is its head.
fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let line: Vec<String> =
            (0..columns).map(|column| format!("{:width$}", cell(row, column), width = widths[column])).collect();
        println!("{}", line.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
