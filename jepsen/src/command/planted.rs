//! `quorate-jepsen planted`: bugs that are put in on purpose must be caught, or the checkers prove nothing.
//!
//! A bug is chosen by its name in `QUORATE_PLANTED`, which builds with the feature `planted` read; no release has it.
//! Each is hunted by the workload and the nemesis that should bring it to light, with new seeds, until a run shows a
//! violation that only this bug explains or its runs are used up. It explains a violation if the checker that spoke is
//! one of those that must find it, and if the same seed is valid without the bug: with the programs that have none.
//! Bugs of the client are in the harness, so they are hunted by `quorate-jepsen-planted`.

use std::path::{Path, PathBuf};
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
use crate::ledger::is_broken;
use crate::run::RunReport;

/// The program that has the bugs of the client.
const HARNESS: &str = "quorate-jepsen-planted";

/// A planted bug and what must catch it.
#[derive(Debug)]
pub(super) struct Bug {
    pub(super) name: &'static str,
    workload: &'static str,
    nemeses: &'static [&'static str],
    /// Who must speak: see [`speaker`].
    by: &'static [&'static str],
    /// What one node has beside the bug, and without it as well: something for the bug to make the worst of.
    beside: Option<&'static str>,
    /// Further arguments of the nodes.
    node: &'static [&'static str],
    /// How long a fault lasts, and the calm after it, if not as usual.
    pace: Option<(&'static str, &'static str)>,
    /// Seconds of faults in one run.
    seconds: f64,
    /// Operations a second.
    rate: f64,
    /// It is in the client.
    client: bool,
}

const fn bug(
    name: &'static str,
    workload: &'static str,
    nemeses: &'static [&'static str],
    by: &'static [&'static str],
) -> Bug {
    Bug { name, workload, nemeses, by, beside: None, node: &[], pace: None, seconds: 40.0, rate: 150.0, client: false }
}

const fn client_bug(
    name: &'static str,
    workload: &'static str,
    nemeses: &'static [&'static str],
    by: &'static [&'static str],
) -> Bug {
    Bug { client: true, ..bug(name, workload, nemeses, by) }
}

/// Faults that last for so many seconds, and little calm between them.
const fn lasting(fault: &'static str, bug: Bug) -> Bug {
    Bug { pace: Some((fault, "0.5..1.5")), ..bug }
}

/// As many writes as clients that wait for their answers can make.
const fn busy(bug: Bug) -> Bug {
    Bug { rate: 800.0, seconds: 60.0, ..bug }
}

/// For less time: what it does is there after the first fault or two, and the rest of the run waits for a cluster that
/// never comes back.
const fn short(bug: Bug) -> Bug {
    Bug { seconds: 30.0, ..bug }
}

/// The same with logs so small that they are purged, and snapshots taken, every few seconds.
const fn purged(bug: Bug) -> Bug {
    Bug { node: &["--snapshot-log-bytes", "65536", "--purge-tail", "20"], ..busy(bug) }
}

/// The planted bugs that matter for real processes.
pub(super) const BUGS: &[Bug] = &[
    short(busy(bug("unsynced-log", "register", &["power-cut-all"], &["registers", "quarantine"]))),
    short(busy(bug(
        "acknowledge-before-flush",
        "register",
        &["power-cut-all"],
        &["registers", "quarantine", "hashes"],
    ))),
    short(purged(bug("purge-ahead", "queue", &["kill-all"], &["restart", "quarantine"]))),
    // The probes write to control, whose replica is the first that is taken up again; the load goes to the shards. One
    // strike is all: the node never says that it is whole.
    short(bug("reused-replica", "register", &["amnesia"], &["registers", "queue"])),
    // A replica that has forgotten the ends of sessions after a restart is the diverged one.
    purged(Bug {
        beside: Some("unwritten-row@0"),
        ..bug("convicting-leader", "mixed", &["kill-all"], &["quarantine"])
    }),
    // Longer than a lease, so that the next leader gives its task to another.
    lasting("4..7", bug("cut-off-renewals", "lease", &["isolate-leader"], &["leases"])),
    // A node that has not heard that a session has left it still takes a close from it, and passes it on when it can.
    lasting("2..5", Bug { seconds: 80.0, ..bug("late-close", "lease", &["halves"], &["leases"]) }),
    bug("stale-token", "lease", &["none"], &["leases", "queue"]),
    bug("silent-expiry", "lease", &["kill-leader"], &["leases", "queue"]),
    bug("kept-attempts", "lease", &["none"], &["leases", "queue"]),
    bug("stale-read", "register", &["isolate-leader"], &["registers"]),
    bug("early-read", "register", &["delay"], &["registers"]),
    bug("unversioned-put", "register", &["none"], &["registers"]),
    bug("minority-commit", "register", &["isolate-leader", "kill"], &["registers", "hashes", "quarantine"]),
    bug("early-acknowledge", "queue", &["isolate-leader"], &["queue"]),
    bug("early-grant", "queue", &["isolate-leader"], &["queue", "leases"]),
    bug("shared-token", "queue", &["kill"], &["queue"]),
    bug("double-completion", "queue", &["kill"], &["queue"]),
    bug("lost-child", "queue", &["none"], &["queue"]),
    bug("lost-retry", "queue", &["kill-all"], &["queue", "quarantine"]),
    bug("forgotten-requests", "requests", &["kill-all"], &["request ids", "queue", "quarantine"]),
    bug("jumping-clock", "requests", &["clock-jump"], &["request ids", "queue"]),
    bug("clock-in-apply", "mixed", &["none"], &["quarantine", "hashes"]),
    bug("lost-point", "search", &["kill-all"], &["search", "set", "quarantine"]),
    purged(bug(
        "half-snapshot",
        "membership",
        &["replace"],
        &["hashes", "quarantine", "registers", "search", "set", "queue"],
    )),
    client_bug("fresh-request-id", "queue", &["kill-leader"], &["queue"]),
    client_bug("failed-on-timeout", "register", &["pause-leader"], &["registers"]),
    client_bug("late-surrender", "lease", &["pause-leader"], &["leases"]),
];

/// Who says a violation: the checker that it begins with, or what it is about where a nemesis or the run itself says
/// it.
fn speaker(violation: &str) -> &str {
    const TOPICS: [(&str, &str); 5] = [
        (" does not come back after ", "restart"),
        (" does not start after ", "restart"),
        (" ended by itself ", "end"),
        (" panicked: ", "panic"),
        ("the cluster is not healthy ", "health"),
    ];
    if let Some((_, topic)) = TOPICS.iter().find(|(phrase, _)| violation.contains(phrase)) {
        return topic;
    }
    violation.split_once(": ").map_or(violation, |(checker, _)| checker)
}

impl Bug {
    /// What must catch it, in words.
    pub(super) fn caught_by(&self) -> String {
        let place = if self.client { " (in the client)" } else { "" };
        let (by, nemeses) = (self.by.join(" or "), self.nemeses.join(", "));
        format!("must be caught by {by}, by {} under {nemeses}{place}", self.workload)
    }

    /// The violation among these that it explains.
    fn shown_by<'a>(&self, violations: &'a [String]) -> Option<&'a String> {
        violations.iter().find(|violation| self.by.contains(&speaker(violation)))
    }

    /// A run with the bug.
    fn run(&self, programs: &Programs, seed: u64) -> Piece {
        let planted = self.beside.map_or_else(|| self.name.to_owned(), |beside| format!("{},{beside}", self.name));
        Piece {
            planted: Some(planted),
            binary: Some(programs.planted.clone()),
            harness: self.client.then(|| programs.harness.clone()),
            rate: self.rate,
            node: self.node,
            fault: self.pace.map(|(fault, _)| fault),
            calm: self.pace.map(|(_, calm)| calm),
            ..Piece::new(self.workload, self.nemeses, self.seconds, seed)
        }
    }

    /// The same without it.
    fn control(&self, programs: &Programs, seed: u64) -> Piece {
        let binary = if self.beside.is_some() { &programs.planted } else { &programs.sound };
        Piece {
            planted: self.beside.map(str::to_owned),
            binary: Some(binary.clone()),
            harness: None,
            ..self.run(programs, seed)
        }
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
    /// The program without any; absent: `quorate` beside this program.
    #[arg(long)]
    sound: Option<PathBuf>,
    /// How the table is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What hunts are made with.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    planted: PathBuf,
    sound: PathBuf,
    harness: PathBuf,
}

impl Programs {
    /// Those that were given, or that are beside this program.
    pub(super) fn find(planted: Option<&Path>, sound: Option<&Path>) -> Result<Programs> {
        let found = |given: Option<&Path>, name| given.map_or_else(|| beside(name), |path| Ok(path.to_owned()));
        Ok(Programs {
            planted: found(planted, "quorate-planted")?,
            sound: found(sound, "quorate")?,
            harness: beside(HARNESS)?,
        })
    }

    /// Whether a bug can be hunted, or which program is missing.
    pub(super) fn can_hunt(&self, bug: &Bug) -> Result<(), String> {
        let harness = bug.client.then_some(&self.harness);
        match [&self.planted, &self.sound].into_iter().chain(harness).find(|program| !program.is_file()) {
            Some(missing) => Err(format!("{} is not there", missing.display())),
            None => Ok(()),
        }
    }

    /// The bugs among these that can be hunted. Says of the others why they are left out.
    pub(super) fn huntable(&self, bugs: impl IntoIterator<Item = &'static Bug>) -> Vec<&'static Bug> {
        let can = |bug: &&'static Bug| match self.can_hunt(bug) {
            Ok(()) => true,
            Err(why) => {
                eprintln!("{}: left out, {why}", bug.name);
                false
            }
        };
        bugs.into_iter().filter(can).collect()
    }
}

/// What came of the hunt for one bug.
#[derive(Debug)]
pub(super) struct Hunt {
    pub(super) bug: &'static Bug,
    /// The violation that showed it.
    pub(super) caught: Option<String>,
    /// A violation without the bug: a finding, and not about planted bugs.
    pub(super) finding: Option<String>,
    pub(super) runs: u64,
    pub(super) seconds: u64,
    pub(super) operations: u64,
    pub(super) faults: u64,
    /// The seed of the last run.
    pub(super) seed: u64,
    /// Why runs proved nothing.
    pub(super) void: Vec<String>,
    /// Violations that somebody else said than those who must find it.
    pub(super) other: Vec<String>,
}

impl Hunt {
    fn of(bug: &'static Bug, seed: u64) -> Hunt {
        Hunt {
            bug,
            caught: None,
            finding: None,
            runs: 0,
            seconds: 0,
            operations: 0,
            faults: 0,
            seed,
            void: Vec::new(),
            other: Vec::new(),
        }
    }

    /// The verdict as the ledger has it. A bug is missed only if some run would have been valid.
    pub(super) fn verdict(&self) -> String {
        match (&self.finding, self.void.first()) {
            (Some(finding), _) => format!("1 violations: without the bug, seed {}: {finding}", self.seed),
            _ if self.caught.is_some() => "caught".into(),
            (None, Some(why)) if self.void.len() as u64 == self.runs => format!("void: {why}"),
            _ => "missed".into(),
        }
    }

    fn is_over(&self) -> bool {
        self.caught.is_some() || self.finding.is_some()
    }

    /// One run with the bug and, if it shows something, one without.
    async fn try_once(&mut self, programs: &Programs, interrupted: &CancellationToken) -> Result<()> {
        let report = self.piece(self.bug.run(programs, self.seed), true, interrupted).await?;
        match report.outcome {
            Outcome::Void => self.void.extend(report.void.first().cloned()),
            Outcome::Valid => {}
            Outcome::Invalid => match self.bug.shown_by(&report.violations).cloned() {
                None => self.other.extend(report.violations.first().cloned()),
                Some(shown) => self.judge(shown, programs, interrupted).await?,
            },
        }
        Ok(())
    }

    /// Whether what was shown is not there without the bug. What one node has beside it breaks promises of its own.
    async fn judge(&mut self, shown: String, programs: &Programs, interrupted: &CancellationToken) -> Result<()> {
        let control = self.piece(self.bug.control(programs, self.seed), false, interrupted).await?;
        match control.outcome {
            Outcome::Valid => self.caught = Some(shown),
            Outcome::Invalid if self.bug.beside.is_some() && self.bug.shown_by(&control.violations).is_none() => {
                self.void.push(format!("without the bug: {}", control.words()));
            }
            Outcome::Invalid => self.finding = Some(control.words()),
            Outcome::Void => self.void.push(format!("without the bug: {}", control.words())),
        }
        Ok(())
    }

    async fn piece(&mut self, piece: Piece, has_bug: bool, interrupted: &CancellationToken) -> Result<RunReport> {
        let mut ended = piece.run(interrupted).await?;
        self.operations += ended.report.operations;
        self.faults += ended.report.installed();
        let is_explained = has_bug && self.bug.shown_by(&ended.report.violations).is_some();
        if ended.report.outcome == Outcome::Invalid && !is_explained {
            // That is to be looked at.
            ended.keep();
        }
        Ok(ended.report.clone())
    }
}

/// The bug of that name.
pub(super) fn by_name(name: &str) -> Option<&'static Bug> {
    BUGS.iter().find(|bug| bug.name == name)
}

/// Runs until the bug is caught or the tries are used up.
pub(super) async fn hunt(
    bug: &'static Bug,
    programs: &Programs,
    seed: u64,
    tries: u64,
    interrupted: &CancellationToken,
) -> Result<Hunt> {
    let began = Instant::now();
    let mut hunt = Hunt::of(bug, seed);
    while hunt.runs < tries && !hunt.is_over() && !interrupted.is_cancelled() {
        hunt.seed = seed.wrapping_add(hunt.runs);
        hunt.runs += 1;
        if let Err(error) = hunt.try_once(programs, interrupted).await {
            hunt.void.push(format!("{error:#}"));
        }
    }
    hunt.seconds = began.elapsed().as_secs();
    if interrupted.is_cancelled() && !hunt.is_over() {
        bail!("it was interrupted");
    }
    Ok(hunt)
}

impl Planted {
    pub(super) async fn execute(self, interrupted: CancellationToken) -> Result<ExitCode> {
        let bugs: Vec<&'static Bug> = if self.names.is_empty() {
            BUGS.iter().collect()
        } else {
            let known = |name: &String| {
                by_name(name).ok_or_else(|| Usage(format!("{name:?} is no planted bug: see `quorate-jepsen list`")))
            };
            self.names.iter().map(known).collect::<Result<_, _>>()?
        };
        let programs = Programs::find(self.binary.as_deref(), self.sound.as_deref())?;
        let wanted = bugs.len();
        let bugs = programs.huntable(bugs);
        if bugs.is_empty() {
            return Err(
                Usage("none of the bugs can be hunted: build the programs first (`make planted`)".into()).into()
            );
        }
        let seed = self.seed.unwrap_or_else(any_seed);
        let hunts =
            bugs.into_iter().map(|bug| hunt_and_tell(bug, programs.clone(), seed, self.tries, interrupted.clone()));
        let hunts: Vec<Hunt> =
            futures::stream::iter(hunts).buffered(self.jobs.max(1)).filter_map(std::future::ready).collect().await;
        self.print(&hunts, wanted);
        let verdicts: Vec<String> = hunts.iter().map(Hunt::verdict).collect();
        let all_caught = verdicts.len() == wanted && verdicts.iter().all(|verdict| verdict == "caught");
        Ok(if verdicts.iter().any(|verdict| is_broken(verdict)) {
            ExitCode::from(BROKEN)
        } else if interrupted.is_cancelled() || !all_caught {
            ExitCode::from(VOID)
        } else {
            ExitCode::SUCCESS
        })
    }

    fn print(&self, hunts: &[Hunt], wanted: usize) {
        if self.output == Format::Json {
            let rows: Vec<_> = hunts
                .iter()
                .map(|hunt| {
                    json!({
                        "name": hunt.bug.name, "caught": hunt.caught.is_some(), "by": hunt.caught, "runs": hunt.runs,
                        "seconds": hunt.seconds, "seed": hunt.seed, "void": hunt.void, "other": hunt.other,
                        "finding": hunt.finding,
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
            let by =
                hunt.caught.clone().or_else(|| Some(format!("(not by) {}", hunt.other.first()?))).unwrap_or_default();
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
        println!("{} of {wanted} caught", hunts.iter().filter(|hunt| hunt.caught.is_some()).count());
    }
}

async fn hunt_and_tell(
    bug: &'static Bug,
    programs: Programs,
    seed: u64,
    tries: u64,
    interrupted: CancellationToken,
) -> Option<Hunt> {
    let hunted = hunt(bug, &programs, seed, tries, &interrupted).await;
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
            caught: caught.map(str::to_owned),
            runs: 2,
            void: void.iter().map(|why| (*why).to_owned()).collect(),
            ..Hunt::of(&BUGS[0], 1)
        };
        assert_eq!(hunt(Some("lost"), &["x"]).verdict(), "caught");
        assert_eq!(hunt(None, &["x"]).verdict(), "missed");
        assert_eq!(hunt(None, &["x", "y"]).verdict(), "void: x");
        let finding = Hunt { finding: Some("y".into()), ..hunt(None, &["x", "x"]) };
        assert_eq!(finding.verdict(), "1 violations: without the bug, seed 1: y");
    }

    #[test]
    fn only_those_who_must_find_a_bug_can_find_it() {
        let bug = by_name("stale-read").expect("a bug");
        let said = |violations: &[&str]| violations.iter().map(|what| (*what).to_owned()).collect::<Vec<_>>();
        let late = "availability: no write was acknowledged any more";
        assert_eq!(bug.shown_by(&said(&[late])), None);
        let stale = "registers: key 7 has no order";
        assert_eq!(bug.shown_by(&said(&[late, stale])).map(String::as_str), Some(stale));
        let restart = "node 1 does not come back after kill-all: it ended: entries are gone";
        assert_eq!((speaker(restart), speaker("node 2 panicked: at x")), ("restart", "panic"));
        assert_eq!(speaker("the cluster is not healthy 120s after all faults ended: x"), "health");
    }

    #[test]
    fn the_control_is_the_same_run_without_the_bug() {
        let programs = Programs { planted: "p".into(), sound: "s".into(), harness: "h".into() };
        for bug in BUGS {
            let (run, control) = (bug.run(&programs, 3), bug.control(&programs, 3));
            let names: Vec<&str> = run.planted.as_deref().expect("a bug").split(',').collect();
            assert_eq!(names[0], bug.name);
            assert!(!control.planted.as_deref().unwrap_or_default().contains(bug.name));
            assert_eq!(control.binary.as_deref(), Some(Path::new(if control.planted.is_some() { "p" } else { "s" })));
            assert_eq!((run.harness.is_some(), control.harness.is_some()), (bug.client, false));
            let same = Piece { planted: control.planted.clone(), binary: control.binary.clone(), harness: None, ..run };
            assert_eq!(same, control);
        }
    }

    #[test]
    fn a_bug_without_its_program_is_left_out() {
        let programs = Programs { planted: "/bin/sh".into(), sound: "/bin/sh".into(), harness: "/nowhere".into() };
        let hunted = programs.huntable(BUGS);
        assert!(hunted.iter().all(|bug| !bug.client));
        assert_eq!(hunted.len(), BUGS.iter().filter(|bug| !bug.client).count());
        assert!(
            programs.can_hunt(by_name("late-surrender").expect("a bug")).expect_err("no harness").contains("/nowhere")
        );
    }

    #[test]
    fn each_bug_has_what_must_catch_it() {
        let names: BTreeSet<_> = BUGS.iter().map(|bug| bug.name).collect();
        assert_eq!(names.len(), BUGS.len(), "no name twice");
        for bug in BUGS {
            assert!(workload::by_name(bug.workload).is_some(), "{}", bug.name);
            assert!(bug.nemeses.iter().all(|name| nemesis::by_name(name, 1).is_some()), "{}", bug.name);
            assert!(!bug.by.is_empty(), "{}", bug.name);
        }
    }
}
