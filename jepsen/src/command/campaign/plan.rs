//! What is still to do: it follows from the ledger, from what flies, and from the programs that are there.

use std::collections::BTreeSet;

use crate::command::piece::Piece;
use crate::command::planted::BUGS;
use crate::ledger::{Entry, Kind, Ledger, gap};
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
/// A scrub that is waited for takes half a minute.
const CORRUPTION_SECONDS: f64 = 16.0;
const CHAOS_SECONDS: u64 = 7_200;
const CHAOS_FAULTS: u64 = 500;
const CHAOS_OPERATIONS: u64 = 1_000_000;
const CHAOS_SECONDS_A_PIECE: f64 = 300.0;
const SIM_SEEDS: u64 = 1_000;
const SIM_SEEDS_A_PIECE: u64 = 25;
pub(super) const SIM_STEPS: u64 = 20_000;
/// Seeds that the simulation has for a planted bug.
pub(super) const SIM_SEEDS_A_BUG: u64 = 40;
/// Of a hundred planted bugs the simulation must catch so many.
const SIM_BUGS_PERCENT: u64 = 95;

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

/// A piece that is to be run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Job {
    pub(super) kind: Kind,
    /// What the ledger will call it.
    pub(super) piece: String,
    pub(super) seed: u64,
}

/// What the campaign can do here.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    /// What all seeds are counted from.
    pub(super) base: u64,
    /// The commit that is run, if one was told that says what is run.
    pub(super) commit: Option<String>,
    /// The kinds whose programs are there.
    pub(super) kinds: Vec<Kind>,
    /// The planted bugs whose programs are there.
    pub(super) bugs: Vec<&'static str>,
    /// The planted bugs of the simulation.
    pub(super) sim_bugs: Vec<String>,
}

/// What a kind must come to, in words.
pub(in crate::command) fn goal(kind: Kind) -> String {
    match kind {
        Kind::Links => format!("{LINK_ITEMS} items"),
        Kind::Power => format!("{POWER_CUTS} faults"),
        Kind::Corruption => format!("{CORRUPTIONS} faults"),
        Kind::Chaos => format!("{} h, {CHAOS_FAULTS} faults, {CHAOS_OPERATIONS} operations", CHAOS_SECONDS / 3_600),
        Kind::Sim => format!("{SIM_SEEDS} seeds of {SIM_STEPS} steps"),
        Kind::Planted => format!("{} bugs", BUGS.len()),
        Kind::SimPlanted => format!("{SIM_BUGS_PERCENT}% of the bugs"),
        Kind::Soak => "hours".into(),
    }
}

/// How far a kind is of what it must come to, 1.0 being done; nothing where no number says so. Of the bugs of the simulation
/// those that were never tried are open too, so without the list of them nobody knows.
pub(in crate::command) fn done(ledger: &Ledger, kind: Kind, sim_bugs: &[String]) -> Option<f64> {
    let bugs = BUGS.iter().map(|bug| bug.name).collect();
    let plan = Plan { bugs, sim_bugs: sim_bugs.to_vec(), ..Plan::default() };
    match kind {
        Kind::Soak => None,
        Kind::SimPlanted if sim_bugs.is_empty() => None,
        _ => Some(plan.progress(ledger, &[], kind)),
    }
}

fn part(done: u64, whole: u64) -> f64 {
    done as f64 / whole.max(1) as f64
}

impl Plan {
    /// How far a kind is, 1.0 being done; pieces that fly count as if they were done.
    pub(super) fn progress(&self, ledger: &Ledger, flying: &[Job], kind: Kind) -> f64 {
        let total = ledger.total(kind);
        let here = flying.iter().filter(|job| job.kind == kind).count() as u64;
        match kind {
            Kind::Links => part(with_flying(ledger, flying, kind).len() as u64, LINK_ITEMS),
            Kind::Sim => part((with_flying(ledger, flying, kind).len() as u64).saturating_sub(total.apart), SIM_SEEDS),
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
                // A bug that is no more was caught in vain.
                let names = ledger.names(kind);
                let caught = self.bugs.iter().filter(|bug| names.contains(*bug)).count() as u64;
                part(caught + here, self.bugs.len() as u64)
            }
            Kind::SimPlanted => self.progress_of_sim_bugs(ledger, here),
            // A soak is asked for by itself.
            Kind::Soak => 1.0,
        }
    }

    /// Each must have been tried once, and enough of them be caught.
    fn progress_of_sim_bugs(&self, ledger: &Ledger, here: u64) -> f64 {
        let whole = self.sim_bugs.len() as u64;
        let count =
            |names: BTreeSet<&str>| self.sim_bugs.iter().filter(|bug| names.contains(bug.as_str())).count() as u64;
        let (caught, tried) = (count(ledger.names(Kind::SimPlanted)), count(ledger.tried(Kind::SimPlanted)));
        part((caught + here) * 100, whole * SIM_BUGS_PERCENT).min(part(tried + here, whole))
    }

    /// The next piece of a kind, if it is not done.
    pub(super) fn next(&self, ledger: &Ledger, flying: &[Job], kind: Kind) -> Option<Job> {
        if self.progress(ledger, flying, kind) >= 1.0 {
            return None;
        }
        let total = ledger.total(kind);
        // Those of history count here: no seed is taken twice.
        let ordinal = ledger.before(kind) + total.pieces + flying.iter().filter(|job| job.kind == kind).count() as u64;
        let seed = self.base.wrapping_mul(1_000_000) + kind as u64 * 10_000 + ordinal;
        let range = |end, most| {
            let range = gap(&with_flying(ledger, flying, kind), end, most)?;
            Some(format!("{}..{}", range.start, range.end))
        };
        let piece = match kind {
            Kind::Links => range(LINK_ITEMS, LINK_ITEMS_A_PIECE)?,
            // Seeds that are counted apart are made up for by further ones.
            Kind::Sim => {
                let mut done = with_flying(ledger, flying, kind);
                done.extend(self.spoiled(ledger));
                let range = gap(&done, SIM_SEEDS + total.apart, SIM_SEEDS_A_PIECE)?;
                format!("{}..{}", range.start, range.end)
            }
            Kind::Power | Kind::Corruption => format!("{FAULTS_A_PIECE} faults"),
            Kind::Chaos => {
                let turn = usize::try_from(ordinal).unwrap_or(0) % CHAOS.len();
                CHAOS[turn].0.join("+")
            }
            Kind::Planted => next_bug(ledger, flying, kind, self.bugs.iter().copied())?,
            Kind::SimPlanted => next_bug(ledger, flying, kind, self.sim_bugs.iter().map(String::as_str))?,
            Kind::Soak => return None,
        };
        Some(Job { kind, piece, seed })
    }

    /// Whether a kind is not done, and nothing is left that could be done for it.
    pub(super) fn is_stuck(&self, ledger: &Ledger, kind: Kind) -> bool {
        self.progress(ledger, &[], kind) < 1.0 && self.next(ledger, &[], kind).is_none()
    }

    /// Seeds of pieces that broke a promise at this very commit: once more they would do the same, until it is mended.
    fn spoiled(&self, ledger: &Ledger) -> BTreeSet<u64> {
        let is_this = |entry: &&Entry| Some(&entry.commit) == self.commit.as_ref();
        ledger
            .of(Kind::Sim)
            .filter(|entry| entry.is_broken())
            .filter(is_this)
            .filter_map(Entry::range)
            .flatten()
            .collect()
    }

    /// The next piece of all: of the kind that is furthest from its goal.
    pub(super) fn choose(&self, ledger: &Ledger, flying: &[Job]) -> Option<Job> {
        let mut open: Vec<(f64, Job)> = self
            .kinds
            .iter()
            .filter_map(|kind| Some((self.progress(ledger, flying, *kind), self.next(ledger, flying, *kind)?)))
            .collect();
        open.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        open.into_iter().next().map(|(_, job)| job)
    }
}

fn with_flying(ledger: &Ledger, flying: &[Job], kind: Kind) -> BTreeSet<u64> {
    let mut done = ledger.done(kind);
    for job in flying.iter().filter(|job| job.kind == kind) {
        if let Some((from, to)) = job.piece.split_once("..") {
            done.extend(from.parse().unwrap_or(0)..to.parse().unwrap_or(0));
        }
    }
    done
}

/// How often a name was tried in vain.
pub(super) fn in_vain(ledger: &Ledger, kind: Kind, name: &str) -> u64 {
    ledger.of(kind).filter(|entry| entry.piece == name && !entry.counts()).count() as u64
}

/// The next of the names that are not done. One that was missed is tried again after all others.
fn next_bug<'a>(ledger: &Ledger, flying: &[Job], kind: Kind, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let done = ledger.names(kind);
    let flies = |name: &str| flying.iter().any(|job| job.kind == kind && job.piece == name);
    let open = names.filter(|name| !done.contains(name) && !flies(name));
    open.min_by_key(|name| in_vain(ledger, kind, name)).map(str::to_owned)
}

/// The run of a job that is one.
pub(super) fn run_of(job: &Job) -> Option<Piece> {
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

/// The line of a run that has ended.
pub(super) fn entry_of(job: &Job, commit: &str, report: &RunReport) -> Entry {
    let name = if job.kind == Kind::Links { link_items(job, report) } else { job.piece.clone() };
    let mut entry = Entry::of(job.kind, name, commit, report);
    if entry.is_broken() && job.kind == Kind::Links {
        // Any item may have broken it, one that was not seen to be cut too: later lines must cover all of them.
        entry.piece = link_items_begun(job, report);
    }
    if entry.counts() && entry.range().is_some_and(|range| range.is_empty()) {
        // A piece that counts must bring the campaign on.
        return Entry { verdict: "void: its first item was skipped".into(), ..entry };
    }
    entry
}

/// What the ledger says of the links that a run cut: the items from the first on that were all cut.
fn link_items(job: &Job, report: &RunReport) -> String {
    let from = first_item(job);
    let to = (from..LINK_ITEMS).take_while(|item| is_cut(report, *item)).count() as u64 + from;
    format!("{from}..{to}")
}

/// All items of the links that a run may have begun: those that it was to cut, and until the last one that it cut.
fn link_items_begun(job: &Job, report: &RunReport) -> String {
    let from = first_item(job);
    let told = job.piece.split_once("..").and_then(|(_, to)| to.parse().ok()).unwrap_or(from);
    let cut = (from..LINK_ITEMS).rev().find(|item| is_cut(report, *item)).map_or(from, |last| last + 1);
    format!("{from}..{}", told.max(cut))
}

fn first_item(job: &Job) -> u64 {
    job.piece.split_once("..").and_then(|(from, _)| from.parse().ok()).unwrap_or(0)
}

fn is_cut(report: &RunReport, item: u64) -> bool {
    report.kinds.contains_key(&format!("link-enumeration: links {} leader {}", item / 3, item % 3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Outcome;
    use crate::ledger::valid_but;
    use crate::run::sample;

    fn entry(kind: Kind, piece: &str, verdict: &str) -> Entry {
        let report = RunReport { seconds: 300.0, ..sample(Outcome::Valid) };
        Entry { verdict: verdict.into(), ..Entry::of(kind, piece.into(), "", &report) }
    }

    fn of(entries: Vec<Entry>) -> Ledger {
        Ledger { entries, since: None }
    }

    fn plan() -> Plan {
        let bugs = BUGS.iter().map(|bug| bug.name).collect();
        let sim_bugs = ["a", "b", "c"].map(str::to_owned).to_vec();
        Plan { base: 1, commit: Some("abc".into()), kinds: Kind::ALL.to_vec(), bugs, sim_bugs }
    }

    #[test]
    fn a_campaign_goes_on_where_the_ledger_ends() {
        let plan = plan();
        let mut ledger = of(vec![entry(Kind::Links, "0..32", "valid")]);
        let job = plan.next(&ledger, &[], Kind::Links).expect("open");
        assert_eq!(job.piece, "32..64");
        let two = plan.next(&ledger, std::slice::from_ref(&job), Kind::Links).expect("open");
        assert_eq!(two.piece, "64..96");
        assert_ne!(two.seed, job.seed);
        ledger.entries.push(entry(Kind::Links, "32..192", "valid"));
        assert_eq!(plan.next(&ledger, &[], Kind::Links), None);
        assert_eq!(plan.next(&ledger, &[], Kind::Soak), None);
    }

    #[test]
    fn what_failed_is_done_again_under_another_seed() {
        let plan = plan();
        let mut ledger = Ledger::default();
        let first = plan.next(&ledger, &[], Kind::Power).expect("open");
        ledger.entries.push(entry(Kind::Power, &first.piece, "void: x"));
        let second = plan.next(&ledger, &[], Kind::Power).expect("open");
        assert_ne!(first.seed, second.seed);
        assert!(plan.progress(&ledger, &[], Kind::Power) < 0.001);
    }

    #[test]
    fn no_two_jobs_at_once_have_one_seed_whatever_became_of_those_before() {
        let plan = plan();
        let mut ledger = Ledger::default();
        let first = plan.next(&ledger, &[], Kind::Power).expect("open");
        let second = plan.next(&ledger, std::slice::from_ref(&first), Kind::Power).expect("open");
        // The first one ends without a report: that is a line too.
        ledger.entries.push(entry(Kind::Power, &first.piece, "void: it ended without a report"));
        let third = plan.next(&ledger, std::slice::from_ref(&second), Kind::Power).expect("open");
        assert_eq!(BTreeSet::from([first.seed, second.seed, third.seed]).len(), 3);
    }

    #[test]
    fn the_kind_that_is_furthest_from_its_goal_comes_first() {
        let ledger = of(vec![entry(Kind::Links, "0..96", "valid")]);
        let plan = Plan { kinds: vec![Kind::Links, Kind::Sim], ..plan() };
        let job = plan.choose(&ledger, &[]).expect("open");
        assert_eq!((job.kind, job.piece.as_str()), (Kind::Sim, "0..25"));
    }

    #[test]
    fn seeds_that_are_counted_apart_are_made_up_for() {
        let plan = plan();
        let mut ledger = Ledger::default();
        let mut pieces = 0;
        while let Some(job) = plan.next(&ledger, &[], Kind::Sim) {
            // One seed under a floor in every fourth piece: the same piece again would have the same one.
            let apart = u64::from(pieces % 4 == 0);
            ledger.entries.push(entry(Kind::Sim, &job.piece, &valid_but(apart)));
            pieces += 1;
            assert!(pieces < 100, "it never ends");
        }
        assert!(ledger.total(Kind::Sim).items >= SIM_SEEDS);
        assert!(ledger.done(Kind::Sim).len() as u64 > SIM_SEEDS);
        assert_eq!(done(&ledger, Kind::Sim, &[]).map(|done| done >= 1.0), Some(true));
    }

    #[test]
    fn seeds_that_broke_a_promise_are_run_again_when_something_was_changed() {
        let broken = Entry { commit: "abc".into(), ..entry(Kind::Sim, "0..25", "1 violations: x") };
        let ledger = of(vec![broken]);
        let piece = |commit: Option<&str>| {
            let plan = Plan { commit: commit.map(str::to_owned), ..plan() };
            plan.next(&ledger, &[], Kind::Sim).map(|job| job.piece)
        };
        assert_eq!(piece(Some("abc")).as_deref(), Some("25..50"));
        assert_eq!(piece(Some("def")).as_deref(), Some("0..25"));
        assert_eq!(piece(None).as_deref(), Some("0..25"), "nobody knows what is run");
    }

    #[test]
    fn a_missed_bug_is_hunted_after_the_others() {
        let plan = plan();
        let first = BUGS[0].name;
        let ledger = of(vec![entry(Kind::Planted, first, "missed")]);
        let job = plan.next(&ledger, &[], Kind::Planted).expect("open");
        assert_ne!(job.piece, first);
        let caught = BUGS.iter().map(|bug| entry(Kind::Planted, bug.name, "caught")).collect();
        assert_eq!(plan.next(&of(caught), &[], Kind::Planted), None);
    }

    #[test]
    fn a_caught_bug_that_is_no_more_does_not_stand_for_one_that_is() {
        let plan = Plan { bugs: vec![BUGS[0].name, BUGS[1].name], ..plan() };
        let ledger =
            of(["gone-one", "gone-two", BUGS[0].name].map(|name| entry(Kind::Planted, name, "caught")).to_vec());
        assert_eq!(plan.progress(&ledger, &[], Kind::Planted), 0.5);
        assert_eq!(plan.next(&ledger, &[], Kind::Planted).map(|job| job.piece).as_deref(), Some(BUGS[1].name));
    }

    #[test]
    fn what_is_history_is_done_again_under_seeds_of_its_own() {
        let plan = plan();
        let lines = ["0..192", "0..32"].map(|piece| entry(Kind::Links, piece, "valid"));
        let [old, new] = lines;
        let since = Some("abc".to_owned());
        let ledger = Ledger { entries: vec![old, Entry { commit: "abc1234".into(), ..new }], since };
        let job = plan.next(&ledger, &[], Kind::Links).expect("open");
        assert_eq!((job.piece.as_str(), job.seed % 10_000), ("32..64", 2));
        assert_eq!(done(&ledger, Kind::Links, &[]), Some(32.0 / 192.0));
    }

    #[test]
    fn each_bug_of_the_simulation_is_a_piece_and_enough_must_be_caught() {
        let plan = plan();
        let mut ledger = of(vec![entry(Kind::SimPlanted, "a", "missed"), entry(Kind::SimPlanted, "b", "caught")]);
        assert_eq!(plan.next(&ledger, &[], Kind::SimPlanted).map(|job| job.piece).as_deref(), Some("c"));
        ledger.entries.push(entry(Kind::SimPlanted, "c", "caught"));
        let again = plan.next(&ledger, &[], Kind::SimPlanted).expect("two of three are not enough");
        assert_eq!((again.piece.as_str(), in_vain(&ledger, Kind::SimPlanted, "a")), ("a", 1));
        let all = ["b", "c", "d", "e"].map(str::to_owned);
        assert_eq!(done(&ledger, Kind::SimPlanted, &all).map(|done| done < 0.6), Some(true), "two were never tried");
        assert_eq!(done(&ledger, Kind::SimPlanted, &all[..2]).map(|done| done >= 1.0), Some(true));
        assert_eq!(done(&ledger, Kind::SimPlanted, &[]), None, "nobody knows how many there are");
        let many: Vec<String> = (0..40).map(|number| format!("bug-{number}")).collect();
        let lines =
            many.iter().map(|name| entry(Kind::SimPlanted, name, if name == "bug-7" { "missed" } else { "caught" }));
        let ledger = of(lines.collect());
        assert_eq!(Plan { sim_bugs: many, ..plan }.next(&ledger, &[], Kind::SimPlanted), None, "39 of 40 are");
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
        assert_eq!(entry_of(&job, "", &cut(&[3, 4, 5, 7])).piece, "3..6");
        let none = entry_of(&job, "", &cut(&[4]));
        assert_eq!((none.piece.as_str(), none.counts()), ("3..3", false));
        // What broke a promise is open until all of it is covered, what was skipped in it too.
        let broken =
            |items: &[u64]| RunReport { violations: vec!["x".into()], outcome: Outcome::Invalid, ..cut(items) };
        assert_eq!(entry_of(&job, "", &broken(&[3, 5])).piece, "3..9");
        assert_eq!(entry_of(&job, "", &broken(&[])).piece, "3..9");
        assert_eq!(entry_of(&job, "", &broken(&[3, 11])).piece, "3..12");
        let line = Entry { commit: "aaa1111".into(), ..entry_of(&job, "", &broken(&[3, 7])) };
        let again = |piece| Entry { commit: "bbb2222".into(), ..entry(Kind::Links, piece, "valid") };
        let violated = |piece| of(vec![line.clone(), again(piece)]).total(Kind::Links).violated;
        assert_eq!((violated("3..4"), violated("3..9")), (1, 0));
    }

    #[test]
    fn chaos_names_what_exists() {
        for (turn, (nemeses, nodes)) in CHAOS.iter().enumerate() {
            assert!(nemeses.iter().all(|name| crate::nemesis::by_name(name, 1).is_some()), "{nemeses:?}");
            let job = Job { kind: Kind::Chaos, piece: nemeses.join("+"), seed: turn as u64 };
            assert_eq!(run_of(&job).map(|piece| piece.nodes), Some(*nodes));
        }
    }
}
