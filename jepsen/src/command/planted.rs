//! `quorate-jepsen planted`: bugs that are put in on purpose must be caught, or the checkers prove nothing.
//!
//! A bug is chosen by its name in `QUORATE_PLANTED`, which a build with the feature `planted` reads; no release has it. Each
//! is hunted by the workload and the nemesis that should bring it to light, with new seeds, until a run shows a violation
//! or its runs are used up. Bugs of the client are in this program: they need it to be built with that feature too.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use futures::StreamExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::piece::Piece;
use super::{BROKEN, Format, Usage, VOID, any_seed, beside, table};
use crate::check::Outcome;

/// A planted bug and what must catch it.
#[derive(Debug)]
pub(super) struct Bug {
    pub(super) name: &'static str,
    workload: &'static str,
    nemeses: &'static [&'static str],
    /// Seconds of faults in one run.
    seconds: f64,
    /// Operations a second.
    rate: f64,
    /// It is in the client.
    client: bool,
}

const fn bug(name: &'static str, workload: &'static str, nemeses: &'static [&'static str]) -> Bug {
    Bug { name, workload, nemeses, seconds: 40.0, rate: 150.0, client: false }
}

const fn client_bug(name: &'static str, workload: &'static str, nemeses: &'static [&'static str]) -> Bug {
    Bug { client: true, ..bug(name, workload, nemeses) }
}

/// Many writes, so that logs are purged and snapshots taken.
const fn busy(bug: Bug) -> Bug {
    Bug { rate: 800.0, seconds: 60.0, ..bug }
}

/// The planted bugs that matter for real processes.
pub(super) const BUGS: &[Bug] = &[
    busy(bug("unsynced-log", "register", &["power-cut-all"])),
    busy(bug("acknowledge-before-flush", "register", &["power-cut-all"])),
    busy(bug("purge-ahead", "register", &["kill-all"])),
    busy(bug("reused-replica", "register", &["corruption"])),
    busy(bug("convicting-leader", "mixed", &["corruption"])),
    bug("cut-off-renewals", "lease", &["isolate-leader"]),
    bug("late-close", "lease", &["none"]),
    bug("stale-token", "lease", &["none"]),
    bug("silent-expiry", "lease", &["kill-leader"]),
    bug("kept-attempts", "lease", &["none"]),
    bug("stale-read", "register", &["isolate-leader"]),
    bug("early-read", "register", &["delay"]),
    bug("unversioned-put", "register", &["none"]),
    bug("minority-commit", "register", &["isolate-leader", "kill"]),
    bug("early-acknowledge", "queue", &["isolate-leader"]),
    bug("early-grant", "queue", &["isolate-leader"]),
    bug("shared-token", "queue", &["kill"]),
    bug("double-completion", "queue", &["kill"]),
    bug("lost-child", "queue", &["none"]),
    bug("lost-retry", "queue", &["kill-all"]),
    bug("forgotten-requests", "requests", &["kill-all"]),
    bug("jumping-clock", "requests", &["clock-jump"]),
    bug("lost-point", "search", &["kill-all"]),
    bug("half-snapshot", "membership", &["replace"]),
    client_bug("fresh-request-id", "queue", &["kill-leader"]),
    client_bug("failed-on-timeout", "register", &["pause-leader"]),
    client_bug("late-surrender", "lease", &["pause-leader"]),
];

impl Bug {
    /// What must catch it, in words.
    pub(super) fn caught_by(&self) -> String {
        let place = if self.client { " (in the client)" } else { "" };
        format!("must be caught by {} under {}{place}", self.workload, self.nemeses.join(", "))
    }
}

/// Whether planted bugs are caught.
#[derive(Debug, Args)]
pub(super) struct Planted {
    /// Which; absent: all.
    names: Vec<String>,
    /// Runs for each bug, until one catches it.
    #[arg(long, default_value_t = 3)]
    tries: u64,
    /// The first seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Bugs that are hunted at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// A program with planted bugs; absent: `quorate-planted` beside this program.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// How the table is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What came of the hunt for one bug.
#[derive(Debug)]
pub(super) struct Hunt {
    pub(super) bug: &'static Bug,
    /// The violation that showed it.
    pub(super) caught: Option<String>,
    pub(super) runs: u64,
    pub(super) seconds: u64,
    pub(super) operations: u64,
    pub(super) faults: u64,
    /// The seed of the last run.
    pub(super) seed: u64,
    /// Why runs proved nothing.
    pub(super) void: Vec<String>,
}

impl Hunt {
    /// The verdict as the ledger has it. A bug is missed only if some run would have been valid.
    pub(super) fn verdict(&self) -> String {
        match self.void.first() {
            _ if self.caught.is_some() => "caught".into(),
            Some(why) if self.void.len() as u64 == self.runs => format!("void: {why}"),
            _ => "missed".into(),
        }
    }
}

/// The bug of that name.
pub(super) fn by_name(name: &str) -> Option<&'static Bug> {
    BUGS.iter().find(|bug| bug.name == name)
}

/// Whether this build can hunt it at all.
pub(super) fn can_hunt(bug: &Bug) -> bool {
    !bug.client || cfg!(feature = "planted")
}

/// Runs until the bug is caught or the tries are used up.
pub(super) async fn hunt(
    bug: &'static Bug,
    binary: Option<PathBuf>,
    seed: u64,
    tries: u64,
    interrupted: &CancellationToken,
) -> Result<Hunt> {
    let began = Instant::now();
    let mut hunt = Hunt { bug, caught: None, runs: 0, seconds: 0, operations: 0, faults: 0, seed, void: Vec::new() };
    while hunt.runs < tries && hunt.caught.is_none() && !interrupted.is_cancelled() {
        hunt.seed = seed.wrapping_add(hunt.runs);
        hunt.runs += 1;
        let piece = Piece {
            planted: Some(bug.name.into()),
            binary: binary.clone(),
            rate: bug.rate,
            ..Piece::new(bug.workload, bug.nemeses, bug.seconds, hunt.seed)
        };
        match piece.run(interrupted).await {
            Ok(report) => {
                hunt.operations += report.operations;
                hunt.faults += report.installed();
                hunt.void.extend(report.void.first().filter(|_| report.valid == Outcome::Void).cloned());
                if report.valid == Outcome::Invalid {
                    hunt.caught = report.violations.first().cloned();
                }
            }
            Err(error) => hunt.void.push(format!("{error:#}")),
        }
    }
    hunt.seconds = began.elapsed().as_secs();
    if interrupted.is_cancelled() && hunt.caught.is_none() {
        bail!("it was interrupted");
    }
    Ok(hunt)
}

impl Planted {
    pub(super) async fn execute(self, interrupted: CancellationToken) -> Result<ExitCode> {
        let bugs: Vec<&'static Bug> = if self.names.is_empty() {
            BUGS.iter().filter(|bug| can_hunt(bug)).collect()
        } else {
            let known = |name: &String| {
                by_name(name).ok_or_else(|| Usage(format!("{name:?} is no planted bug: see `quorate-jepsen list`")))
            };
            self.names.iter().map(known).collect::<Result<_, _>>()?
        };
        let binary = self.binary.clone().map_or_else(|| beside("quorate-planted"), Ok)?;
        if !binary.is_file() {
            return Err(Usage(format!("{} is no binary: give --binary", binary.display())).into());
        }
        let seed = self.seed.unwrap_or_else(any_seed);
        let hunts =
            bugs.into_iter().map(|bug| hunt_and_tell(bug, binary.clone(), seed, self.tries, interrupted.clone()));
        let hunts: Vec<Hunt> =
            futures::stream::iter(hunts).buffered(self.jobs.max(1)).filter_map(std::future::ready).collect().await;
        self.print(&hunts);
        let verdicts: Vec<String> = hunts.iter().map(Hunt::verdict).collect();
        Ok(if verdicts.iter().any(|verdict| verdict == "missed") {
            ExitCode::from(BROKEN)
        } else if interrupted.is_cancelled() || verdicts.iter().any(|verdict| verdict != "caught") {
            ExitCode::from(VOID)
        } else {
            ExitCode::SUCCESS
        })
    }

    fn print(&self, hunts: &[Hunt]) {
        if self.output == Format::Json {
            let rows: Vec<_> = hunts
                .iter()
                .map(|hunt| {
                    json!({
                        "name": hunt.bug.name, "caught": hunt.caught.is_some(), "by": hunt.caught, "runs": hunt.runs,
                        "seconds": hunt.seconds, "seed": hunt.seed, "void": hunt.void,
                        "workload": hunt.bug.workload, "nemeses": hunt.bug.nemeses,
                    })
                })
                .collect();
            println!("{}", serde_json::Value::Array(rows));
            return;
        }
        let mut rows =
            vec![Vec::from(["bug", "workload", "nemesis", "verdict", "runs", "seconds", "by"].map(str::to_owned))];
        for hunt in hunts {
            let by = hunt.caught.clone().unwrap_or_default();
            rows.push(vec![
                hunt.bug.name.into(),
                hunt.bug.workload.into(),
                hunt.bug.nemeses.join(","),
                hunt.verdict().chars().take(80).collect(),
                hunt.runs.to_string(),
                hunt.seconds.to_string(),
                by.chars().take(100).collect(),
            ]);
        }
        table(&rows);
        println!("{} of {} caught", hunts.iter().filter(|hunt| hunt.caught.is_some()).count(), hunts.len());
    }
}

async fn hunt_and_tell(
    bug: &'static Bug,
    binary: PathBuf,
    seed: u64,
    tries: u64,
    interrupted: CancellationToken,
) -> Option<Hunt> {
    let hunted = hunt(bug, Some(binary), seed, tries, &interrupted).await;
    match &hunted {
        Ok(hunt) => eprintln!("{}: {} in {} runs, {} s", bug.name, hunt.verdict(), hunt.runs, hunt.seconds),
        Err(error) => eprintln!("{}: {error:#}", bug.name),
    }
    hunted.ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{nemesis, workload};

    #[test]
    fn a_bug_is_missed_only_by_runs_that_prove_something() {
        let hunt = |caught: Option<&str>, void: &[&str]| Hunt {
            bug: &BUGS[0],
            caught: caught.map(str::to_owned),
            runs: 2,
            seconds: 1,
            operations: 1,
            faults: 1,
            seed: 1,
            void: void.iter().map(|why| (*why).to_owned()).collect(),
        };
        assert_eq!(hunt(Some("lost"), &["x"]).verdict(), "caught");
        assert_eq!(hunt(None, &["x"]).verdict(), "missed");
        assert_eq!(hunt(None, &["x", "y"]).verdict(), "void: x");
    }

    #[test]
    fn each_bug_has_what_must_catch_it() {
        let names: BTreeSet<_> = BUGS.iter().map(|bug| bug.name).collect();
        assert_eq!(names.len(), BUGS.len(), "no name twice");
        for bug in BUGS {
            assert!(workload::by_name(bug.workload).is_some(), "{}", bug.name);
            assert!(bug.nemeses.iter().all(|name| nemesis::by_name(name, 1).is_some()), "{}", bug.name);
        }
    }
}
