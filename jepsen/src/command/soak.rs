//! `quorate-jepsen soak`: hours of everything. The floor on throughput holds for each whole minute of it, not for the
//! mean: a cluster that stands still for a while must not hide behind one that was quick before.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::piece::{Ended, Piece};
use super::{BROKEN, Usage, VOID, any_seed};
use crate::check::is_of_load;
use crate::event::{Micros, Phase};
use crate::history::History;
use crate::ledger::{Book, Entry, Kind, now};

/// A cluster lives for so long at most; then the history is checked and the next one begins.
const MOST_SECONDS: f64 = 1_800.0;
/// Pieces that may fail one after the other before the soak ends.
const MOST_FAILURES: u32 = 3;
const MINUTE: Micros = 60_000_000;

/// Hours of everything, with a floor on throughput.
#[derive(Debug, Args)]
pub(super) struct Soak {
    /// How long.
    #[arg(long)]
    hours: f64,
    /// Operations a second that must end well, in each minute.
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
        if !(self.floor.is_finite() && self.floor >= 0.0 && self.rate.is_finite() && self.rate > 0.0) {
            return Err(Usage("--rate is a number above 0, --floor one from 0".into()).into());
        }
        let began = Instant::now();
        let whole = Duration::from_secs_f64(self.hours * 3_600.0);
        let first = self.seed.unwrap_or_else(any_seed);
        let book = Book::open(&self.ledger)?;
        let (mut outcome, mut failed) = (ExitCode::SUCCESS, 0);
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
            let entry = self.entry(&piece, piece.run(&interrupted).await);
            eprintln!(
                "soak, seed {}: {} ({} operations, {} faults)",
                entry.seed, entry.verdict, entry.operations, entry.faults
            );
            book.append(&entry)?;
            if entry.is_broken() {
                return Ok(ExitCode::from(BROKEN));
            }
            if entry.counts() {
                failed = 0;
                continue;
            }
            // A failure of the harness says nothing about the cluster, and one is no reason to end.
            outcome = ExitCode::from(VOID);
            failed += 1;
            if failed >= MOST_FAILURES {
                eprintln!("{failed} pieces one after the other did not count: the soak ends");
                break;
            }
        }
        println!("soaked until {}", now());
        Ok(outcome)
    }
}

impl Soak {
    fn entry(&self, piece: &Piece, ended: Result<Ended>) -> Entry {
        let name = piece.nemeses.join("+");
        match ended.map(|ended| (self.slow_minute(&ended), ended)) {
            Ok((slow, mut ended)) => {
                let entry = Entry::of(Kind::Soak, name, &self.commit, &ended.report);
                match slow.filter(|_| entry.counts()) {
                    Some(slow) => {
                        ended.keep();
                        Entry { verdict: format!("void: {slow}"), ..entry }
                    }
                    None => entry,
                }
            }
            Err(error) => {
                let verdict = format!("void: {error:#}");
                Entry { verdict, ..Entry::blank(Kind::Soak, name, piece.seed, &self.commit) }
            }
        }
    }

    /// What is to be said of a run in which a minute was under the floor.
    fn slow_minute(&self, ended: &Ended) -> Option<String> {
        let history = match History::read(&ended.directory().join("history.jsonl")) {
            Ok(history) => history,
            Err(error) => return Some(format!("its history cannot be read again: {error:#}")),
        };
        let (minute, rate) = slowest_minute(&history, ended.report.seconds)?;
        (rate < self.floor)
            .then(|| format!("minute {minute} had {rate:.1} operations a second, under the floor of {:.1}", self.floor))
    }
}

/// The whole minute of the load in which the fewest operations ended well, from 1, and how many a second. The load
/// begins with the first event; the final reads come after its end. Only what clients of the load asked for is counted:
/// deliveries, effects and probes go on however little the load does.
fn slowest_minute(history: &History, load_seconds: f64) -> Option<(usize, f64)> {
    let began = history.events.first()?.time;
    let mut minutes = vec![0_u32; (load_seconds / 60.0) as usize];
    for event in history.events.iter().filter(|event| event.phase == Phase::Ok && is_of_load(event)) {
        let minute = usize::try_from((event.time - began) / MINUTE).unwrap_or(usize::MAX);
        if let Some(count) = minutes.get_mut(minute) {
            *count += 1;
        }
    }
    let slowest = minutes.iter().enumerate().min_by_key(|(_, count)| **count);
    slowest.map(|(minute, count)| (minute + 1, f64::from(*count) / 60.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Operation, Part};

    fn soak(words: &[&str]) -> Soak {
        use clap::Parser;
        let words = ["quorate-jepsen", "soak", "--hours", "1"].iter().chain(words);
        match crate::command::Arguments::try_parse_from(words).expect("understood").command {
            crate::command::Command::Soak(soak) => soak,
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn a_failure_of_the_harness_has_a_line_and_proves_nothing() {
        let piece = Piece::new("mixed", &["chaos", "power-cut"], 60.0, 7);
        let entry = soak(&["--commit", "abc"]).entry(&piece, Err(anyhow::anyhow!("no namespaces")));
        assert_eq!((entry.verdict.as_str(), entry.counts(), entry.is_broken()), ("void: no namespaces", false, false));
        assert_eq!((entry.piece.as_str(), entry.seed, entry.commit.as_str()), ("chaos+power-cut", 7, "abc"));
    }

    #[test]
    fn one_slow_minute_is_found_in_a_good_hour() {
        let event = |second: u64| Event {
            time: 5_000_000 + second * 1_000_000,
            process: 1,
            phase: Phase::Ok,
            operation: Operation::Read { key: 1, value: None },
            part: None,
            node: None,
            error: None,
        };
        // One operation a second, but for the third minute; then final reads without end.
        let load = (0..300).filter(|second| !(120..180).contains(second)).chain([130]);
        let events = load.chain(300..900).map(event).collect();
        let history = History { events, ..History::default() };
        assert_eq!(slowest_minute(&history, 300.0), Some((3, 1.0 / 60.0)));
        assert_eq!(slowest_minute(&history, 119.0).map(|(minute, _)| minute), Some(1));
        assert_eq!(slowest_minute(&history, 59.0), None, "no whole minute");
        // Probes and deliveries in the slow minute are not the load's.
        let other = |n: u64| match n % 2 {
            0 => Event { part: Some(Part::Probe(1)), ..event(120 + n % 60) },
            _ => Event {
                operation: Operation::Deliver { value: n, task: n, token: "1.0".into(), attempt: 1 },
                ..event(120 + n % 60)
            },
        };
        let mut padded = history.events.clone();
        padded.extend((0..600).map(other));
        let padded = History { events: padded, ..History::default() };
        assert_eq!(slowest_minute(&padded, 300.0), Some((3, 1.0 / 60.0)));
    }
}
