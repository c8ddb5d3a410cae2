//! `quorate-jepsen all`: a tour, workloads and nemeses in rotation.
//!
//! A run is a place in one endless list: the place says which nemesis and which workload it has, each from its own ring. The
//! rings have no common factor, so that every workload meets every nemesis in the end. A tour goes through as many places as
//! its time allows, and where it begins follows from its seed: the next seed begins where this one ends. In ten minutes that
//! is a third of the nemeses and every workload twice; in half an hour it is every nemesis.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use futures::StreamExt;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::piece::Piece;
use super::{Format, any_seed, beside, exit, table};
use crate::check::{Outcome, judged};
use crate::run::RunReport;
use crate::{nemesis, workload};

/// Not on the tour: nothing breaks.
const LEFT_OUT: [&str; 1] = ["none"];
/// How long the faults of a run take at least, if there is time for more than one.
const USUAL_SECONDS: f64 = 24.0;
/// Of so many runs one has five nodes; of fewer the last one.
const ONE_OF_FIVE_NODES: u64 = 5;
/// What a run needs beside its faults: forming the cluster, final reads, checking.
const OVERHEAD_SECONDS: f64 = 18.0;
/// The shortest run that shows anything.
const LEAST_SECONDS: f64 = 10.0;

/// A tour over workloads and nemeses.
#[derive(Debug, Args)]
pub(super) struct Tour {
    /// How long the whole tour takes, in seconds.
    #[arg(long, default_value_t = 600.0)]
    time_limit: f64,
    /// Where the tour begins, and what everything random in it follows from. The next seed goes on where this one ends.
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

/// What a tour came to, for programs.
#[derive(Debug, Serialize)]
struct Told<'a> {
    #[serde(flatten, with = "judged")]
    outcome: Outcome,
    seed: u64,
    runs: Vec<&'a RunReport>,
    /// Why runs ended without a report.
    errors: Vec<String>,
}

/// A run of a tour.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stop {
    workload: &'static str,
    nemesis: String,
    nodes: usize,
}

impl Tour {
    pub(super) async fn execute(self, interrupted: CancellationToken) -> Result<ExitCode> {
        let seed = self.seed.unwrap_or_else(any_seed);
        let jobs = self.jobs.max(1);
        let (count, seconds) = divided(self.time_limit, jobs);
        let stops = stops(seed, count, &nemeses(beside("quorate-planted")?.is_file()));
        let runs = stops.iter().zip(0..).map(|(stop, ordinal)| {
            let seed = seed.wrapping_mul(count).wrapping_add(ordinal);
            let piece = Piece {
                binary: self.binary.clone(),
                nodes: stop.nodes,
                ..Piece::new(stop.workload, &[&stop.nemesis], seconds, seed)
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
            worst(runs.iter().map(|(_, report)| report.as_ref().map_or(Outcome::Void, |report| report.outcome)));
        self.print(&runs, outcome, seed)?;
        Ok(exit(outcome))
    }

    fn print(&self, runs: &[(Piece, Result<RunReport>)], outcome: Outcome, seed: u64) -> Result<()> {
        if self.output == Format::Json {
            let reports: Vec<&RunReport> = runs.iter().filter_map(|(_, report)| report.as_ref().ok()).collect();
            let errors: Vec<String> =
                runs.iter().filter_map(|(_, report)| report.as_ref().err().map(|error| format!("{error:#}"))).collect();
            println!("{}", serde_json::to_string(&Told { outcome, seed, runs: reports, errors })?);
            return Ok(());
        }
        let mut rows =
            vec![Vec::from(["workload", "nemesis", "nodes", "operations", "faults", "verdict"].map(str::to_owned))];
        for (piece, report) in runs {
            let (operations, faults, words) = match report {
                Ok(report) => (report.operations.to_string(), report.installed().to_string(), report.words()),
                Err(error) => (String::new(), String::new(), format!("void: {error:#}")),
            };
            let (nemeses, nodes) = (piece.nemeses.join(","), piece.nodes.to_string());
            rows.push(vec![piece.workload.clone(), nemeses, nodes, operations, faults, words]);
        }
        table(&rows);
        Ok(())
    }
}

/// How many runs there are, and for how many seconds each of them is attacked.
fn divided(whole: f64, jobs: usize) -> (u64, f64) {
    let whole = whole.max(0.0) * jobs as f64;
    let count = (whole / (USUAL_SECONDS + OVERHEAD_SECONDS)).floor().max(1.0);
    (count as u64, (whole / count - OVERHEAD_SECONDS).max(LEAST_SECONDS))
}

/// The nemeses of the tour, with the argument that one needs left open.
fn nemeses(has_failpoints: bool) -> Vec<&'static str> {
    let goes = |(name, _, needs): &&(&'static str, &str, nemesis::Needs)| {
        !LEFT_OUT.contains(name) && (has_failpoints || !needs.failpoints)
    };
    nemesis::NAMES.iter().filter(goes).map(|(name, ..)| *name).collect()
}

/// The runs of a tour.
fn stops(seed: u64, count: u64, nemeses: &[&'static str]) -> Vec<Stop> {
    let workloads: Vec<&str> = workload::NAMES.iter().map(|(name, _)| *name).collect();
    let first = seed.wrapping_mul(count);
    let stop = |ordinal: u64| {
        let place = first.wrapping_add(ordinal);
        let is_last_of_few = count < ONE_OF_FIVE_NODES && ordinal + 1 == count;
        let is_large = ordinal % ONE_OF_FIVE_NODES == ONE_OF_FIVE_NODES - 1 || is_last_of_few;
        Stop {
            workload: at(&workloads, place),
            nemesis: with_argument(at(nemeses, place), place),
            nodes: if is_large { 5 } else { 3 },
        }
    };
    (0..count).map(stop).collect()
}

fn at<T: Copy>(ring: &[T], place: u64) -> T {
    ring[(place % ring.len() as u64) as usize]
}

/// `links` needs a subset to cut. The first one is empty.
fn with_argument(name: &str, place: u64) -> String {
    if name == "links" { format!("links:{}", 1 + place % 63) } else { name.to_owned() }
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

    #[test]
    fn what_is_on_the_tour_exists() {
        let nemeses = nemeses(true);
        for stop in stops(0, 60, &nemeses) {
            assert!(workload::by_name(stop.workload).is_some(), "{stop:?}");
            let needs = nemesis::needs(&stop.nemesis).expect("a nemesis");
            assert!(nemesis::by_name(&stop.nemesis, 1).is_some() && needs.nodes <= stop.nodes, "{stop:?}");
        }
        assert!(nemeses.contains(&"failpoint") && !super::nemeses(false).contains(&"failpoint"));
    }

    #[test]
    fn the_next_seed_goes_on_until_every_workload_has_met_every_nemesis() {
        let nemeses = nemeses(true);
        let all = nemeses.len() * workload::NAMES.len();
        let (count, _) = divided(600.0, 1);
        let tours = (all as u64).div_ceil(count);
        let met = |tours: u64| -> std::collections::BTreeSet<(String, &str)> {
            let stops = (1..=tours).flat_map(|seed| stops(seed, count, &nemeses));
            stops.map(|stop| (stop.nemesis.split(':').next().unwrap_or_default().to_owned(), stop.workload)).collect()
        };
        assert_eq!(met(tours).len(), all, "the rings have no common factor");
        let third: std::collections::BTreeSet<_> = met(3).into_iter().map(|(nemesis, _)| nemesis).collect();
        assert_eq!(third.len(), nemeses.len(), "half an hour has every nemesis");
    }

    #[test]
    fn every_tour_has_five_nodes_once() {
        for count in [1, 2, 7, 14, 40] {
            let stops = stops(3, count, &nemeses(true));
            assert_eq!(stops.len() as u64, count);
            assert!(stops.iter().any(|stop| stop.nodes == 5), "{count}");
            assert!(count < 3 || stops.iter().filter(|stop| stop.nodes == 3).count() as u64 > count / 2);
        }
    }

    #[test]
    fn the_tour_fits_its_time() {
        for (whole, jobs) in [(600.0, 1), (600.0, 2), (1_800.0, 1), (100.0, 1)] {
            let (count, seconds) = divided(whole, jobs);
            let took = count as f64 * (seconds + OVERHEAD_SECONDS) / jobs as f64;
            assert!((whole - 1.0..=whole + 1.0).contains(&took), "{whole}: {took}");
            assert!(seconds >= USUAL_SECONDS);
        }
        assert_eq!(divided(1.0, 1), (1, LEAST_SECONDS));
        assert_eq!(divided(600.0, 1).0, 14);
    }

    #[test]
    fn a_tour_tells_its_outcome_as_a_run_does() {
        let told = Told { outcome: Outcome::Void, seed: 3, runs: Vec::new(), errors: vec!["x".into()] };
        let json = serde_json::to_string(&told).expect("writable");
        assert_eq!(json, r#"{"valid":false,"outcome":"void","seed":3,"runs":[],"errors":["x"]}"#);
    }

    #[test]
    fn one_broken_promise_decides() {
        use Outcome::{Invalid, Valid, Void};
        assert_eq!(worst([Valid, Void].into_iter()), Void);
        assert_eq!(worst([Invalid, Void].into_iter()), Invalid);
        assert_eq!(worst([Valid].into_iter()), Valid);
    }
}
