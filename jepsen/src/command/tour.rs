//! `quorate-jepsen all`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use futures::StreamExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::piece::Piece;
use super::{Format, any_seed, exit, table};
use crate::check::Outcome;
use crate::run::RunReport;

/// The pairs of the tour. Each workload is met by what is most likely to break it, and each family of faults is there.
const PAIRS: [(&str, &[&str]); 14] = [
    ("register", &["isolate-leader"]),
    ("register", &["power-cut-all"]),
    ("queue", &["kill-leader"]),
    ("lease", &["isolate-leader"]),
    ("requests", &["restart-loop"]),
    ("search", &["kill", "one-way"]),
    ("membership", &["replace"]),
    ("mixed", &["corruption"]),
    ("queue", &["halves", "slow-fsync"]),
    ("lease", &["pause-leader"]),
    ("register", &["clock-jump"]),
    ("queue", &["fsync-error"]),
    ("register", &["bridge", "loss"]),
    ("mixed", &["chaos", "disk-full"]),
];
/// What a run needs beside its faults: forming the cluster, final reads, checking.
const OVERHEAD_SECONDS: f64 = 18.0;
/// The shortest run that shows anything.
const LEAST_SECONDS: f64 = 10.0;

/// A tour over pairs of workloads and nemeses.
#[derive(Debug, Args)]
pub(super) struct Tour {
    /// How long the whole tour takes, in seconds.
    #[arg(long, default_value_t = 600.0)]
    time_limit: f64,
    /// The seed of the first run; each further one has the next.
    #[arg(long)]
    seed: Option<u64>,
    /// Runs at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// The program of the nodes; absent: `quorate` beside this program.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// How the verdicts are printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Tour {
    pub(super) async fn execute(self, interrupted: CancellationToken) -> Result<ExitCode> {
        let seed = self.seed.unwrap_or_else(any_seed);
        let jobs = self.jobs.max(1);
        let seconds = seconds_each(self.time_limit, jobs);
        let runs = PAIRS.iter().enumerate().map(|(ordinal, (workload, nemeses))| {
            let piece = Piece {
                binary: self.binary.clone(),
                ..Piece::new(workload, nemeses, seconds, seed.wrapping_add(ordinal as u64))
            };
            let interrupted = interrupted.clone();
            async move {
                let report = piece.run(&interrupted).await.map(|ended| ended.report.clone());
                eprintln!("{}", told(&piece, &report));
                (piece, report)
            }
        });
        let runs: Vec<(Piece, Result<RunReport>)> = futures::stream::iter(runs).buffered(jobs).collect().await;
        let outcome =
            worst(runs.iter().map(|(_, report)| report.as_ref().map_or(Outcome::Void, |report| report.valid)));
        self.print(&runs, outcome, seed)?;
        Ok(exit(outcome))
    }

    fn print(&self, runs: &[(Piece, Result<RunReport>)], outcome: Outcome, seed: u64) -> Result<()> {
        if self.output == Format::Json {
            let reports: Vec<&RunReport> = runs.iter().filter_map(|(_, report)| report.as_ref().ok()).collect();
            let errors: Vec<String> =
                runs.iter().filter_map(|(_, report)| report.as_ref().err().map(|error| format!("{error:#}"))).collect();
            println!("{}", json!({"valid": outcome.to_string(), "seed": seed, "runs": reports, "errors": errors}));
            return Ok(());
        }
        let mut rows = vec![Vec::from(["workload", "nemesis", "operations", "faults", "verdict"].map(str::to_owned))];
        for (piece, report) in runs {
            let (operations, faults, words) = match report {
                Ok(report) => (report.operations.to_string(), report.installed().to_string(), report.words()),
                Err(error) => (String::new(), String::new(), format!("void: {error:#}")),
            };
            rows.push(vec![piece.workload.clone(), piece.nemeses.join(","), operations, faults, words]);
        }
        table(&rows);
        Ok(())
    }
}

fn seconds_each(whole: f64, jobs: usize) -> f64 {
    (whole * jobs as f64 / PAIRS.len() as f64 - OVERHEAD_SECONDS).max(LEAST_SECONDS)
}

/// A run in a line.
fn told(piece: &Piece, report: &Result<RunReport>) -> String {
    let what = format!("{} under {}, seed {}", piece.workload, piece.nemeses.join(","), piece.seed);
    match report {
        Ok(report) => {
            format!("{what}: {} ({} operations, {} faults)", report.words(), report.operations, report.installed())
        }
        Err(error) => format!("{what}: void: {error:#}"),
    }
}

/// A broken promise goes before nothing proved.
fn worst(outcomes: impl Iterator<Item = Outcome>) -> Outcome {
    outcomes.fold(Outcome::Valid, |worst, outcome| match (worst, outcome) {
        (Outcome::Invalid, _) | (_, Outcome::Invalid) => Outcome::Invalid,
        (Outcome::Void, _) | (_, Outcome::Void) => Outcome::Void,
        _ => Outcome::Valid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nemesis, workload};

    #[test]
    fn the_pairs_exist() {
        for (name, nemeses) in PAIRS {
            assert!(workload::by_name(name).is_some(), "{name}");
            assert!(nemeses.iter().all(|nemesis| nemesis::by_name(nemesis, 1).is_some()), "{nemeses:?}");
        }
        assert!(workload::NAMES.iter().all(|(name, _)| PAIRS.iter().any(|(paired, _)| paired == name)));
    }

    #[test]
    fn the_tour_fits_its_time() {
        let whole = PAIRS.len() as f64 * (seconds_each(600.0, 1) + OVERHEAD_SECONDS);
        assert!((599.0..=601.0).contains(&whole), "{whole}");
        assert!(seconds_each(1.0, 1) >= LEAST_SECONDS);
    }

    #[test]
    fn one_broken_promise_decides() {
        use Outcome::{Invalid, Valid, Void};
        assert_eq!(worst([Valid, Void].into_iter()), Void);
        assert_eq!(worst([Invalid, Void].into_iter()), Invalid);
        assert_eq!(worst([Valid].into_iter()), Valid);
    }
}
