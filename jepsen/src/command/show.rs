//! `list`, `check`, `clean` and `ledger`: what needs no cluster.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{Format, Usage, beside, campaign, exit, planted, table};
use crate::check::{Outcome, judged};
use crate::cluster;
use crate::event::Verdict;
use crate::history::History;
use crate::ledger::{Kind, Ledger, Total};
use crate::{check, nemesis, workload};

/// Workloads, nemeses and planted bugs.
#[derive(Debug, Args)]
pub(super) struct List {
    /// How they are printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl List {
    pub(super) fn execute(&self) -> Result<ExitCode> {
        let nemeses: Vec<(&str, &str)> = nemesis::NAMES.iter().map(|(name, what, _)| (*name, *what)).collect();
        let bugs: Vec<(&str, String)> = planted::BUGS.iter().map(|bug| (bug.name, bug.caught_by())).collect();
        if self.output == Format::Json {
            let list = json!({
                "workloads": workload::NAMES.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
                "nemeses": nemeses.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
                "planted": bugs.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            });
            println!("{list}");
            return Ok(ExitCode::SUCCESS);
        }
        let rows = |title: &str, items: Vec<(&str, String)>| {
            let head = vec![title.to_owned(), String::new()];
            let rows: Vec<_> = items.into_iter().map(|(name, what)| vec![name.to_owned(), what]).collect();
            table(&[vec![head], rows].concat());
            println!();
        };
        rows("WORKLOADS", workload::NAMES.iter().map(|(name, what)| (*name, (*what).to_owned())).collect());
        rows("NEMESES", nemeses.into_iter().map(|(name, what)| (name, what.to_owned())).collect());
        rows("PLANTED BUGS", bugs);
        Ok(ExitCode::SUCCESS)
    }
}

/// Checks a history that was recorded, by what was asked of its run.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// A file of JSON lines.
    history: PathBuf,
    /// How the verdict is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What a history comes to, for programs.
#[derive(Debug, Serialize)]
struct Judged<'a> {
    #[serde(flatten, with = "judged")]
    outcome: Outcome,
    #[serde(flatten)]
    verdict: &'a Verdict,
}

impl Check {
    pub(super) fn execute(&self) -> Result<ExitCode> {
        let history = History::read(&self.history)?;
        let verdict = check::recorded(&history);
        let outcome = verdict.outcome();
        if self.output == Format::Json {
            println!("{}", serde_json::to_string(&Judged { outcome, verdict: &verdict })?);
            return Ok(exit(outcome));
        }
        let mut rows = vec![vec!["verdict".to_owned(), outcome.to_string()]];
        rows.extend(verdict.counts.iter().map(|(name, count)| vec![name.clone(), count.to_string()]));
        rows.extend(verdict.violations.iter().map(|what| vec!["violation".into(), what.clone()]));
        rows.extend(verdict.void.iter().map(|why| vec!["void".into(), why.clone()]));
        table(&rows);
        Ok(exit(outcome))
    }
}

/// Removes what runs left behind.
#[derive(Debug, Args)]
pub(super) struct Clean {
    /// Also of runs whose program still lives.
    #[arg(long)]
    force: bool,
}

impl Clean {
    pub(super) fn execute(&self) -> Result<ExitCode> {
        for removed in cluster::clean(self.force)? {
            println!("removed {removed}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What the ledger adds up to.
#[derive(Debug, Args)]
pub(super) struct Totals {
    /// The ledger.
    #[arg(long, default_value = "jepsen/LEDGER.md")]
    ledger: PathBuf,
    /// Only lines from the first one of this commit on count; absent: as the ledger's line `Counted from:` says.
    #[arg(long)]
    since: Option<String>,
    /// The simulation, which says what planted bugs there are; absent: `quorate-sim` beside this program, if it is there.
    #[arg(long)]
    sim: Option<PathBuf>,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Totals {
    pub(super) async fn execute(&self, interrupted: CancellationToken) -> Result<ExitCode> {
        if !self.ledger.is_file() {
            return Err(Usage(format!("{} is no ledger: give --ledger", self.ledger.display())).into());
        }
        let mut ledger = Ledger::read(&self.ledger)?;
        if self.since.is_some() {
            ledger.since.clone_from(&self.since);
        }
        let bugs = self.sim_bugs(&interrupted).await?;
        if self.output == Format::Json {
            println!("{}", totals(&ledger, &bugs));
            return Ok(ExitCode::SUCCESS);
        }
        println!("{}", said(&ledger, &bugs));
        Ok(ExitCode::SUCCESS)
    }

    /// The planted bugs of the simulation; none where nobody says them, and that is told.
    async fn sim_bugs(&self, interrupted: &CancellationToken) -> Result<Vec<String>> {
        let program = self.sim.clone().map_or_else(|| beside("quorate-sim"), Ok)?;
        Ok(campaign::sim_bugs(&program, interrupted).await.unwrap_or_else(|error| {
            eprintln!("{}: how many planted bugs there are is not known: {error:#}", Kind::SimPlanted);
            Vec::new()
        }))
    }
}

/// The totals by kind, and beside them of which commits the lines are that count.
fn totals(ledger: &Ledger, sim_bugs: &[String]) -> Value {
    let of = |kind| {
        let (total, (loads, faults)) = (ledger.total(kind), ledger.apart(kind));
        json!({
            "pieces": total.pieces, "counted": total.counted, "violated": total.violated, "items": total.items,
            "seconds": total.seconds, "operations": total.operations, "faults": total.faults,
            "indeterminate": total.indeterminate, "mended": total.mended, "before": ledger.before(kind),
            "apart": total.apart, "tried": total.tried, "loads": loads, "kinds": faults,
            "goal": campaign::goal(kind), "done": campaign::done(ledger, kind, sim_bugs),
        })
    };
    let commits: Map<String, Value> =
        ledger.commits().into_iter().map(|(commit, lines)| (commit.to_owned(), lines.into())).collect();
    let kinds = Kind::ALL.into_iter().map(|kind| (kind.name().to_owned(), of(kind)));
    Value::Object(kinds.chain([("commits".to_owned(), commits.into())]).collect())
}

/// What a kind is called where people read it who do not know its name.
fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Links => "64 subsets of directed links x 3 leaders",
        Kind::Power => "power cuts of the whole cluster",
        Kind::Corruption => "damage to the files of one node, noticed and healed by itself",
        Kind::Chaos => "overlapping faults of all kinds, all workloads",
        Kind::Sim => "simulation",
        Kind::Planted => "planted bugs, real processes",
        Kind::SimPlanted => "planted bugs, simulation",
        Kind::Soak => "soak",
    }
}

/// What of a kind was done, in the unit of its goal.
fn came_to(kind: Kind, ledger: &Ledger, total: &Total, sim_bugs: &[String]) -> String {
    match kind {
        Kind::Planted => {
            // Names that are no bugs any more are no news.
            let of_now = |names: &BTreeSet<&str>| planted::BUGS.iter().filter(|bug| names.contains(bug.name)).count();
            format!("{} of {} caught", of_now(&ledger.names(kind)), of_now(&ledger.tried(kind)))
        }
        Kind::Links => format!("{} items", total.items),
        Kind::Power | Kind::Corruption => format!("{} faults", total.faults),
        Kind::Sim if total.apart > 0 => format!("{} seeds, {} counted apart", total.items, total.apart),
        Kind::Sim => format!("{} seeds", total.items),
        Kind::SimPlanted if !sim_bugs.is_empty() => {
            let (caught, tried) = (ledger.names(kind), ledger.tried(kind));
            let of_now = |names: &BTreeSet<&str>| sim_bugs.iter().filter(|bug| names.contains(bug.as_str())).count();
            format!("{} of {} caught", of_now(&caught), of_now(&tried))
        }
        Kind::SimPlanted => format!("{} of {} caught", total.items, total.tried),
        Kind::Chaos | Kind::Soak => format!("{} pieces", total.counted),
    }
}

/// The totals as a table for the README. What is void is told and does not count; of what was violated that is apart
/// which changed code has done again; and what is history is only told how much it is.
fn markdown(ledger: &Ledger, sim_bugs: &[String]) -> String {
    let mut lines = vec![
        "| what | goal | done | hours | operations | faults | not seen to bite | violated | mended | void | history |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    for kind in Kind::ALL {
        let total = ledger.total(kind);
        let reached = match campaign::done(ledger, kind, sim_bugs) {
            Some(done) => format!(" ({}%)", (done * 100.0).min(100.0).floor()),
            None => String::new(),
        };
        lines.push(format!(
            "| {} | {} | {}{reached} | {:.1} | {} | {} | {} | {} | {} | {} | {} |",
            title(kind),
            campaign::goal(kind),
            came_to(kind, ledger, &total, sim_bugs),
            total.seconds as f64 / 3_600.0,
            total.operations,
            total.faults,
            total.indeterminate,
            total.violated,
            total.mended,
            total.pieces - total.counted - total.violated - total.mended,
            ledger.before(kind),
        ));
    }
    lines.join("\n")
}

/// The table, and below it of what the lines are that count.
fn said(ledger: &Ledger, sim_bugs: &[String]) -> String {
    let mut lines = vec![markdown(ledger, sim_bugs), String::new()];
    for kind in [Kind::Chaos, Kind::Soak] {
        let (loads, kinds) = ledger.apart(kind);
        for (what, counts) in [("operations by load", loads), ("faults by kind", kinds)] {
            let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            if !parts.is_empty() {
                lines.push(format!("{kind}, {what}: {}.", parts.join(", ")));
            }
        }
    }
    let named = |commit: &str| if commit.is_empty() { "no named commit" } else { commit }.to_owned();
    let commits: Vec<String> =
        ledger.commits().into_iter().map(|(commit, lines)| format!("{} ({lines})", named(commit))).collect();
    if !commits.is_empty() {
        lines.push(format!("The pieces that count are of: {}.", commits.join(", ")));
    }
    if let Some(commit) = &ledger.since {
        lines.push(format!("Counted from: {commit}; history is the pieces before its first line."));
    }
    lines.join("\n").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Entry, valid_but};

    #[test]
    fn the_table_says_what_was_done_of_what_is_to_be_done() {
        let entry = |kind, piece: &str, verdict: &str| Entry {
            seconds: 1_800,
            operations: 1_000,
            faults: 20,
            indeterminate: 3,
            verdict: verdict.into(),
            ..Entry::blank(kind, piece.into(), 1, "abc1234")
        };
        let ledger = Ledger {
            entries: vec![
                entry(Kind::Power, "20 faults", "valid"),
                entry(Kind::Power, "20 faults", "void: x"),
                entry(Kind::Power, "20 faults", "1 violations: y"),
                entry(Kind::Sim, "0..25", &valid_but(1)),
                entry(Kind::SimPlanted, "stale-read", "caught"),
            ],
            since: None,
        };
        let bugs = ["stale-read", "lost-write"].map(str::to_owned);
        let table = markdown(&ledger, &bugs);
        let line =
            |kind| table.lines().find(|line| line.starts_with(&format!("| {}", title(kind)))).unwrap_or_default();
        assert!(
            line(Kind::Power).contains("| 200 faults | 20 faults (10%) | 0.5 | 1000 | 20 | 3 | 1 | 0 | 1 | 0 |"),
            "{table}"
        );
        assert!(line(Kind::Sim).contains("| 24 seeds, 1 counted apart (2%) |"), "{table}");
        assert!(line(Kind::SimPlanted).contains("| 1 of 1 caught (50%) |"), "one of two was never tried: {table}");
        assert!(markdown(&ledger, &[]).contains("| 1 of 1 caught |"), "of how many is not known");
        assert!(table.lines().all(|line| line.matches('|').count() == 12), "{table}");
        let told = |since: &str| said(&Ledger { since: Some(since.into()), ..ledger.clone() }, &bugs);
        let power = |line: &str| line.contains("| 0 faults (0%)") && line.ends_with("| 0 | 0 | 3 |");
        assert!(told("def").lines().any(power), "{}", told("def"));
        assert!(told("def").ends_with("Counted from: def; history is the pieces before its first line."));
        assert!(told("abc").contains("\nThe pieces that count are of: abc1234 (3)."), "{}", told("abc"));
    }

    #[test]
    fn a_history_that_is_checked_tells_its_outcome_as_a_run_does() {
        let verdict = Verdict { violations: vec!["lost".into()], ..Verdict::default() };
        let json = serde_json::to_string(&Judged { outcome: verdict.outcome(), verdict: &verdict }).expect("writable");
        assert_eq!(json, r#"{"valid":false,"outcome":"invalid","violations":["lost"],"void":[],"counts":{}}"#);
    }

    #[test]
    fn what_overlapping_faults_were_made_of_is_told() {
        let counts = |name: &str, count| [(name.to_owned(), count)].into();
        let piece = Entry {
            loads: counts("queue", 400),
            kinds: counts("kill", 12),
            verdict: "valid".into(),
            ..Entry::blank(Kind::Chaos, "chaos+kill".into(), 1, "")
        };
        let text = said(&Ledger { entries: vec![piece], since: None }, &[]);
        assert!(text.contains("\nchaos, faults by kind: kill 12."), "{text}");
        assert!(text.contains("\nchaos, operations by load: queue 400."), "{text}");
        assert!(text.contains("are of: no named commit (1)."), "{text}");
    }
}
