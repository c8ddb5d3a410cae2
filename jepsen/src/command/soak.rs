//! `quorate-jepsen soak`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::piece::Piece;
use super::{BROKEN, Usage, VOID, any_seed};
use crate::check::Outcome;
use crate::ledger::{Entry, Kind, Ledger, now};

/// A cluster lives for so long at most; then the history is checked and the next one begins.
const MOST_SECONDS: f64 = 1_800.0;

/// Hours of everything, with a floor on throughput.
#[derive(Debug, Args)]
pub(super) struct Soak {
    /// How long.
    #[arg(long)]
    hours: f64,
    /// Operations a second that must end well.
    #[arg(long, default_value_t = 40.0)]
    floor: f64,
    /// Operations a second that clients aim at.
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// The first seed.
    #[arg(long)]
    seed: Option<u64>,
    /// The program of the nodes; absent: `quorate` beside this program.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// The commit that is run, for the ledger.
    #[arg(long, default_value = "")]
    commit: String,
    /// The ledger.
    #[arg(long, default_value = "jepsen/LEDGER.md")]
    ledger: PathBuf,
}

impl Soak {
    pub(super) async fn execute(self, interrupted: CancellationToken) -> Result<ExitCode> {
        if !(0.001..=1_000.0).contains(&self.hours) {
            return Err(Usage("--hours is between 0.001 and 1000".into()).into());
        }
        let began = Instant::now();
        let whole = Duration::from_secs_f64(self.hours * 3_600.0);
        let first = self.seed.unwrap_or_else(any_seed);
        let mut outcome = ExitCode::SUCCESS;
        for ordinal in 0.. {
            let left = whole.saturating_sub(began.elapsed()).as_secs_f64();
            if left < 1.0 || interrupted.is_cancelled() {
                break;
            }
            let piece = Piece {
                nodes: self.nodes,
                rate: self.rate,
                floor: self.floor,
                binary: self.binary.clone(),
                ..Piece::new("mixed", &["chaos", "power-cut"], left.min(MOST_SECONDS), first.wrapping_add(ordinal))
            };
            let report = piece.run(&interrupted).await;
            eprintln!("{}", super::tour::told(&piece, &report));
            let report = report?;
            Ledger::append(&self.ledger, &Entry::of(Kind::Soak, piece.nemeses.join("+"), &self.commit, &report))?;
            match report.valid {
                Outcome::Valid => {}
                Outcome::Invalid => return Ok(ExitCode::from(BROKEN)),
                Outcome::Void => outcome = ExitCode::from(VOID),
            }
        }
        println!("soaked until {}", now());
        Ok(outcome)
    }
}
