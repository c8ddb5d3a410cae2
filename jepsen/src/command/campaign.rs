//! `quorate-jepsen campaign`: the long list, in pieces of minutes.
//!
//! What is still to do follows from the ledger alone, so a campaign may end at any time and go on at any other. The next
//! piece is always of the kind that is furthest from its goal.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::piece::{Piece, output_of};
use super::planted::{self, BUGS};
use super::{BROKEN, VOID, beside, runs_folder};
use crate::ledger::{Entry, Kind, Ledger, gap, now};
use crate::run::RunReport;

/// Subsets of links times leaders.
const LINK_ITEMS: u64 = 192;
const LINK_ITEMS_A_PIECE: u64 = 32;
/// Seconds that an item of the links takes: making the leader lead, the cut, calm.
const LINK_SECONDS: f64 = 9.0;
const POWER_CUTS: u64 = 200;
const CORRUPTIONS: u64 = 200;
/// Faults that a piece of those aims at, and the seconds that each takes.
const FAULTS_A_PIECE: u64 = 20;
const POWER_SECONDS: f64 = 8.0;
const CORRUPTION_SECONDS: f64 = 12.0;
const CHAOS_SECONDS: u64 = 7_200;
const CHAOS_FAULTS: u64 = 500;
const CHAOS_OPERATIONS: u64 = 1_000_000;
const CHAOS_SECONDS_A_PIECE: f64 = 300.0;
const SIM_SEEDS: u64 = 1_000;
const SIM_SEEDS_A_PIECE: u64 = 25;
const SIM_STEPS: u64 = 20_000;
/// Runs for a planted bug.
const TRIES: u64 = 3;
/// Pieces of one kind that may fail in one call before the kind is left alone.
const MOST_FAILURES: u64 = 3;

/// What overlaps in the chaos, in turn: nemeses and nodes.
const CHAOS: [(&[&str], usize); 8] = [
    (&["chaos", "power-cut"], 3),
    (&["chaos", "kill", "isolate-leader"], 3),
    (&["chaos", "chaos"], 5),
    (&["chaos", "clock-jump"], 3),
    (&["halves", "pause", "slow-fsync"], 3),
    (&["chaos", "power-cut-all"], 3),
    (&["one-way", "kill-leader", "loss"], 5),
    (&["rolling-restart", "ring", "delay"], 3),
];

/// The long list, in pieces of minutes.
#[derive(Debug, Args)]
pub(super) struct Campaign {
    /// The ledger.
    #[arg(long, default_value = "jepsen/LEDGER.md")]
    ledger: PathBuf,
    /// Pieces to run; absent: until all is done.
    #[arg(long)]
    pieces: Option<u64>,
    /// After so many minutes no further piece is begun.
    #[arg(long)]
    minutes: Option<f64>,
    /// Only pieces of this kind: links, power, corruption, chaos, sim, planted, sim-planted.
    #[arg(long)]
    only: Option<Kind>,
    /// Pieces at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// What all seeds are counted from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The program of the nodes; absent: `quorate` beside this program.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// A program with planted bugs; absent: `quorate-planted` beside this program.
    #[arg(long)]
    planted: Option<PathBuf>,
    /// The simulation; absent: `quorate-sim` beside this program.
    #[arg(long)]
    sim: Option<PathBuf>,
    /// The simulation with planted bugs; absent: `quorate-sim-planted` beside this program.
    #[arg(long)]
    sim_planted: Option<PathBuf>,
    /// The commit that is run, for the ledger.
    #[arg(long, default_value = "")]
    commit: String,
}

/// What a kind must come to.
pub(super) fn goal(kind: Kind) -> String {
    match kind {
        Kind::Links => format!("{LINK_ITEMS} items"),
        Kind::Power => format!("{POWER_CUTS} faults"),
        Kind::Corruption => format!("{CORRUPTIONS} faults"),
        Kind::Chaos => format!("{} h, {CHAOS_FAULTS} faults, {CHAOS_OPERATIONS} operations", CHAOS_SECONDS / 3_600),
        Kind::Sim => format!("{SIM_SEEDS} seeds of {SIM_STEPS} steps"),
        Kind::Planted => format!("{} bugs", BUGS.iter().filter(|bug| planted::can_hunt(bug)).count()),
        Kind::SimPlanted => "the table".into(),
        Kind::Soak => "hours".into(),
    }
}

/// A piece that is to be run.
#[derive(Debug, Clone, PartialEq)]
struct Job {
    kind: Kind,
    /// What the ledger will call it.
    piece: String,
    seed: u64,
}

/// How far a kind is, 1.0 being done; pieces that fly count as if they were done.
fn progress(ledger: &Ledger, flying: &[Job], kind: Kind) -> f64 {
    let total = ledger.total(kind);
    let here = flying.iter().filter(|job| job.kind == kind).count() as u64;
    let part = |done: u64, whole: u64| done as f64 / whole as f64;
    match kind {
        Kind::Links => part(with_flying(ledger, flying, kind).len() as u64, LINK_ITEMS),
        Kind::Sim => part(with_flying(ledger, flying, kind).len() as u64, SIM_SEEDS),
        Kind::Power => part(total.faults + here * FAULTS_A_PIECE, POWER_CUTS),
        Kind::Corruption => part(total.faults + here * FAULTS_A_PIECE, CORRUPTIONS),
        Kind::Chaos => {
            let ahead = here as f64 * CHAOS_SECONDS_A_PIECE / CHAOS_SECONDS as f64;
            let parts = [
                part(total.seconds, CHAOS_SECONDS),
                part(total.faults, CHAOS_FAULTS),
                part(total.operations, CHAOS_OPERATIONS),
            ];
            parts.into_iter().fold(f64::INFINITY, f64::min) + ahead
        }
        Kind::Planted => {
            let whole = BUGS.iter().filter(|bug| planted::can_hunt(bug)).count() as u64;
            part(ledger.names(kind).len() as u64 + here, whole)
        }
        Kind::SimPlanted => part(total.counted + here, 1),
        // A soak is asked for by itself.
        Kind::Soak => 1.0,
    }
}

fn with_flying(ledger: &Ledger, flying: &[Job], kind: Kind) -> std::collections::BTreeSet<u64> {
    let mut done = ledger.done(kind);
    for job in flying.iter().filter(|job| job.kind == kind) {
        if let Some((from, to)) = job.piece.split_once("..") {
            done.extend(from.parse().unwrap_or(0)..to.parse().unwrap_or(0));
        }
    }
    done
}

/// The next piece of a kind, if it is not done.
fn next(ledger: &Ledger, flying: &[Job], kind: Kind, base: u64) -> Option<Job> {
    if progress(ledger, flying, kind) >= 1.0 {
        return None;
    }
    let total = ledger.total(kind);
    let ordinal = total.pieces + flying.iter().filter(|job| job.kind == kind).count() as u64;
    let seed = base.wrapping_mul(1_000_000) + kind as u64 * 10_000 + ordinal;
    let range = |end, most| {
        let range = gap(&with_flying(ledger, flying, kind), end, most)?;
        Some(format!("{}..{}", range.start, range.end))
    };
    let piece = match kind {
        Kind::Links => range(LINK_ITEMS, LINK_ITEMS_A_PIECE)?,
        Kind::Sim => range(SIM_SEEDS, SIM_SEEDS_A_PIECE)?,
        Kind::Power | Kind::Corruption => format!("{FAULTS_A_PIECE} faults"),
        Kind::Chaos => {
            let turn = usize::try_from(ordinal).unwrap_or(0) % CHAOS.len();
            CHAOS[turn].0.join("+")
        }
        Kind::Planted => {
            let done = ledger.names(kind);
            let flies = |name: &str| flying.iter().any(|job| job.kind == kind && job.piece == name);
            // One that was missed is tried again after all others.
            let missed =
                |name: &str| ledger.entries.iter().filter(|entry| entry.kind == kind && entry.piece == name).count();
            let open = BUGS.iter().filter(|bug| planted::can_hunt(bug) && !done.contains(bug.name) && !flies(bug.name));
            open.min_by_key(|bug| missed(bug.name))?.name.to_owned()
        }
        Kind::SimPlanted => "all".into(),
        Kind::Soak => return None,
    };
    Some(Job { kind, piece, seed })
}

/// The next piece of all: of the kind that is furthest from its goal.
fn choose(ledger: &Ledger, flying: &[Job], kinds: &[Kind], base: u64) -> Option<Job> {
    let mut open: Vec<(f64, Job)> = kinds
        .iter()
        .filter_map(|kind| Some((progress(ledger, flying, *kind), next(ledger, flying, *kind, base)?)))
        .collect();
    open.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    open.into_iter().next().map(|(_, job)| job)
}

/// The run of a job that is one.
fn run_of(job: &Job) -> Option<Piece> {
    let piece = |workload, nemesis: &str, seconds| Piece::new(workload, &[nemesis], seconds, job.seed);
    Some(match job.kind {
        Kind::Links => {
            let (from, to) = job.piece.split_once("..")?;
            let items = to.parse::<u64>().ok()? - from.parse::<u64>().ok()?;
            let nemesis = format!("link-enumeration:{from}");
            Piece {
                fault: Some("2.5..3"),
                calm: Some("0.2..0.5"),
                ..piece("membership", &nemesis, items as f64 * LINK_SECONDS)
            }
        }
        Kind::Power => Piece {
            fault: Some("0.2..2"),
            calm: Some("1..4"),
            ..piece("mixed", "power-cut-all", FAULTS_A_PIECE as f64 * POWER_SECONDS)
        },
        Kind::Corruption => Piece {
            fault: Some("0.2..2"),
            calm: Some("1..3"),
            ..piece("mixed", "corruption", FAULTS_A_PIECE as f64 * CORRUPTION_SECONDS)
        },
        Kind::Chaos => {
            let nemeses: Vec<&str> = job.piece.split('+').collect();
            let nodes = CHAOS.iter().find(|(names, _)| *names == nemeses).map_or(3, |(_, nodes)| *nodes);
            Piece { nodes, rate: 300.0, ..Piece::new("mixed", &nemeses, CHAOS_SECONDS_A_PIECE, job.seed) }
        }
        Kind::Sim | Kind::SimPlanted | Kind::Planted | Kind::Soak => return None,
    })
}

/// What the ledger says of the links that a run cut: the items from the first on that were all cut.
fn link_items(job: &Job, report: &RunReport) -> String {
    let from: u64 = job.piece.split_once("..").and_then(|(from, _)| from.parse().ok()).unwrap_or(0);
    let is_done = |item: &u64| {
        let kind = format!("link-enumeration: links {} leader {}", item / 3, item % 3);
        report.kinds.contains_key(&kind)
    };
    let to = (from..LINK_ITEMS).take_while(is_done).count() as u64 + from;
    format!("{from}..{to}")
}

impl Campaign {
    pub(super) async fn execute(self, interrupted: CancellationToken) -> Result<ExitCode> {
        let campaign = std::sync::Arc::new(self);
        let began = Instant::now();
        let limit = campaign.minutes.map(|minutes| Duration::from_secs_f64(minutes.max(0.0) * 60.0));
        let mut kinds = campaign.kinds()?;
        let mut failures: BTreeMap<Kind, u64> = BTreeMap::new();
        let mut flying: Vec<Job> = Vec::new();
        let mut running: JoinSet<(Job, Result<Entry>)> = JoinSet::new();
        let (mut begun, mut broken, mut void) = (0, false, false);
        loop {
            let ledger = Ledger::read(&campaign.ledger)?;
            while running.len() < campaign.jobs.max(1)
                && campaign.pieces.is_none_or(|pieces| begun < pieces)
                && limit.is_none_or(|limit| began.elapsed() < limit)
                && !interrupted.is_cancelled()
            {
                let Some(job) = choose(&ledger, &flying, &kinds, campaign.seed) else { break };
                begun += 1;
                flying.push(job.clone());
                let (campaign, interrupted) = (campaign.clone(), interrupted.clone());
                running.spawn(async move {
                    let entry = campaign.perform(&job, &interrupted).await;
                    (job, entry)
                });
            }
            let Some(ended) = running.join_next().await else { break };
            let (job, entry) = ended?;
            flying.retain(|other| *other != job);
            let counts = match entry {
                Ok(entry) => {
                    eprintln!(
                        "{} {}: {} ({} operations, {} faults)",
                        job.kind, entry.piece, entry.verdict, entry.operations, entry.faults
                    );
                    Ledger::append(&campaign.ledger, &entry)?;
                    broken |= entry.verdict.contains("violations") || entry.verdict == "missed";
                    entry.counts()
                }
                Err(error) => {
                    eprintln!("{} {}: {error:#}", job.kind, job.piece);
                    false
                }
            };
            if !counts {
                void = true;
                let failed = failures.entry(job.kind).or_default();
                *failed += 1;
                if *failed >= MOST_FAILURES {
                    eprintln!("{}: {failed} pieces did not count; it is left alone", job.kind);
                    kinds.retain(|kind| *kind != job.kind);
                }
            }
        }
        Ok(match (broken, void) {
            (true, _) => ExitCode::from(BROKEN),
            (false, true) => ExitCode::from(VOID),
            (false, false) => ExitCode::SUCCESS,
        })
    }

    /// The kinds whose programs are there.
    fn kinds(&self) -> Result<Vec<Kind>> {
        let mut kinds = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| self.only.is_none_or(|only| only == *kind)) {
            let program = self.program(kind)?;
            if program.is_file() {
                kinds.push(kind);
            } else {
                eprintln!("{kind}: left out, {} is not there", program.display());
            }
        }
        ensure!(!kinds.is_empty(), "there is nothing that could be run: build the programs first");
        Ok(kinds)
    }

    fn program(&self, kind: Kind) -> Result<PathBuf> {
        let (given, name) = match kind {
            Kind::Sim => (&self.sim, "quorate-sim"),
            Kind::SimPlanted => (&self.sim_planted, "quorate-sim-planted"),
            Kind::Planted => (&self.planted, "quorate-planted"),
            _ => (&self.binary, "quorate"),
        };
        given.clone().map_or_else(|| beside(name), Ok)
    }

    async fn perform(&self, job: &Job, interrupted: &CancellationToken) -> Result<Entry> {
        let program = self.program(job.kind)?;
        let began = Instant::now();
        let blank = Entry {
            when: now(),
            kind: job.kind,
            piece: job.piece.clone(),
            seed: job.seed,
            commit: self.commit.clone(),
            seconds: 0,
            operations: 0,
            faults: 0,
            verdict: String::new(),
        };
        let entry = match job.kind {
            Kind::Sim => simulate(blank, &program, interrupted).await?,
            Kind::SimPlanted => simulate_planted(blank, &program, interrupted).await?,
            Kind::Planted => {
                let bug =
                    planted::by_name(&job.piece).ok_or_else(|| anyhow::anyhow!("{} is no planted bug", job.piece))?;
                let hunt = planted::hunt(bug, Some(program), job.seed, TRIES, interrupted).await?;
                let verdict = hunt.verdict();
                Entry { seed: hunt.seed, operations: hunt.operations, faults: hunt.faults, verdict, ..blank }
            }
            _ => {
                let piece = run_of(job).ok_or_else(|| anyhow::anyhow!("{} is no run", job.kind))?;
                let report = Piece { binary: Some(program), ..piece }.run(interrupted).await?;
                let name = if job.kind == Kind::Links { link_items(job, &report) } else { job.piece.clone() };
                let entry = Entry::of(job.kind, name, &self.commit, &report);
                if entry.counts() && entry.range().is_some_and(|range| range.is_empty()) {
                    // A piece that counts must bring the campaign on.
                    return Ok(Entry { verdict: "void: its first item was skipped".into(), ..entry });
                }
                return Ok(entry);
            }
        };
        Ok(Entry { seconds: began.elapsed().as_secs(), when: now(), ..entry })
    }
}

/// A slice of the seeds of the simulation.
async fn simulate(blank: Entry, program: &std::path::Path, interrupted: &CancellationToken) -> Result<Entry> {
    let range = blank.range().unwrap_or(0..0);
    let mut command = Command::new(program);
    command.args(["--seeds", &(range.end - range.start).to_string(), "--steps", &SIM_STEPS.to_string()]);
    command.args(["--seed", &range.start.to_string(), "-o", "json"]);
    fs_err::create_dir_all(runs_folder())?;
    let log = runs_folder().join(format!("sim-{}.log", range.start));
    let told: serde_json::Value = output_of(command, &log, interrupted).await?;
    let operations = count(&told["operations"]);
    let violations = count(&told["violations"]);
    let verdict = match (violations, count(&told["invalid"])) {
        (0, 0) => "valid".to_owned(),
        (0, invalid) => format!("void: {invalid} seeds under a floor"),
        (violations, _) => format!("{violations} violations, see {}", log.display()),
    };
    Ok(Entry { seed: range.start, operations, faults: count(&told["faults"]), verdict, ..blank })
}

/// A number, the length of a list, or the sum of what an object has.
fn count(value: &serde_json::Value) -> u64 {
    match value {
        serde_json::Value::Array(items) => items.len() as u64,
        serde_json::Value::Object(parts) => parts.values().map(count).sum(),
        other => other.as_u64().unwrap_or(0),
    }
}

/// The table of planted bugs of the simulation: it says by its exit code whether enough were caught.
async fn simulate_planted(blank: Entry, program: &std::path::Path, interrupted: &CancellationToken) -> Result<Entry> {
    fs_err::create_dir_all(runs_folder())?;
    let log = fs_err::File::create(runs_folder().join("sim-planted.log"))?;
    let mut command = Command::new(program);
    command.args(["--planted", "all"]).stdout(log.into_parts().0).kill_on_drop(true);
    let status = tokio::select! {
        status = command.status() => status?,
        () = interrupted.cancelled() => anyhow::bail!("it was interrupted"),
    };
    let verdict = if status.success() { "caught" } else { "missed" };
    Ok(Entry { verdict: verdict.into(), ..blank })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Outcome;
    use crate::run::sample;

    fn entry(kind: Kind, piece: &str, verdict: &str) -> Entry {
        let report = RunReport { seconds: 300.0, ..sample(Outcome::Valid) };
        Entry { verdict: verdict.into(), ..Entry::of(kind, piece.into(), "", &report) }
    }

    #[test]
    fn a_campaign_goes_on_where_the_ledger_ends() {
        let mut ledger = Ledger { entries: vec![entry(Kind::Links, "0..32", "valid")] };
        let job = next(&ledger, &[], Kind::Links, 1).expect("open");
        assert_eq!(job.piece, "32..64");
        let two = next(&ledger, std::slice::from_ref(&job), Kind::Links, 1).expect("open");
        assert_eq!(two.piece, "64..96");
        assert_ne!(two.seed, job.seed);
        ledger.entries.push(entry(Kind::Links, "32..192", "valid"));
        assert_eq!(next(&ledger, &[], Kind::Links, 1), None);
        assert_eq!(next(&ledger, &[], Kind::Soak, 1), None);
    }

    #[test]
    fn what_failed_is_done_again_under_another_seed() {
        let mut ledger = Ledger::default();
        let first = next(&ledger, &[], Kind::Power, 1).expect("open");
        ledger.entries.push(entry(Kind::Power, &first.piece, "void: x"));
        let second = next(&ledger, &[], Kind::Power, 1).expect("open");
        assert_ne!(first.seed, second.seed);
        assert!(progress(&ledger, &[], Kind::Power) < 0.001);
    }

    #[test]
    fn the_kind_that_is_furthest_from_its_goal_comes_first() {
        let ledger = Ledger { entries: vec![entry(Kind::Links, "0..96", "valid")] };
        let kinds = [Kind::Links, Kind::Sim];
        let job = choose(&ledger, &[], &kinds, 1).expect("open");
        assert_eq!((job.kind, job.piece.as_str()), (Kind::Sim, "0..25"));
    }

    #[test]
    fn a_missed_bug_is_hunted_after_the_others() {
        let first = BUGS[0].name;
        let ledger = Ledger { entries: vec![entry(Kind::Planted, first, "missed")] };
        let job = next(&ledger, &[], Kind::Planted, 1).expect("open");
        assert_ne!(job.piece, first);
        let caught = BUGS.iter().map(|bug| entry(Kind::Planted, bug.name, "caught")).collect();
        assert_eq!(next(&Ledger { entries: caught }, &[], Kind::Planted, 1), None);
    }

    #[test]
    fn only_links_that_were_cut_are_done() {
        let job = Job { kind: Kind::Links, piece: "3..9".into(), seed: 1 };
        let cut = |items: &[u64]| RunReport {
            kinds: items
                .iter()
                .map(|item| (format!("link-enumeration: links {} leader {}", item / 3, item % 3), 1))
                .collect(),
            ..sample(Outcome::Valid)
        };
        assert_eq!(link_items(&job, &cut(&[3, 4, 5, 7])), "3..6");
        assert_eq!(link_items(&job, &cut(&[4])), "3..3");
    }

    #[test]
    fn chaos_names_what_exists() {
        for (turn, (nemeses, nodes)) in CHAOS.iter().enumerate() {
            assert!(nemeses.iter().all(|name| crate::nemesis::by_name(name, 1).is_some()), "{nemeses:?}");
            let job = Job { kind: Kind::Chaos, piece: nemeses.join("+"), seed: turn as u64 };
            assert_eq!(run_of(&job).map(|piece| piece.nodes), Some(*nodes));
        }
    }

    #[test]
    fn counts_are_numbers_lists_or_sums() {
        let told = serde_json::json!({"a": 3, "b": [1, 2], "c": {"x": 1, "y": 4}});
        assert_eq!((count(&told["a"]), count(&told["b"]), count(&told["c"]), count(&told["d"])), (3, 2, 5, 0));
    }
}
