//! The bugs that can be planted, each at another seam, and whether they are caught. PLANTED.md says what they are.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::campaign::Campaign;
use crate::check::names::checker_of;
use crate::report::Report;

/// At most so many seeds are run for one bug, unless another number is asked for.
pub(crate) const SEEDS: u64 = 40;
/// Of a hundred bugs so many must be caught.
const LEAST_PERCENT: usize = 95;
/// The page that says what the bugs are and who may catch them.
const PAGE: &str = include_str!("../PLANTED.md");

/// The names of the bugs that are in this program.
///
/// # Errors
/// If it was built without them.
pub(crate) fn names() -> anyhow::Result<BTreeSet<&'static str>> {
    #[cfg(feature = "planted")]
    let names: BTreeSet<&'static str> = quorate_node::planted::names().chain(quorate_client::planted::NAMES).collect();
    #[cfg(not(feature = "planted"))]
    let names = BTreeSet::new();
    anyhow::ensure!(
        !names.is_empty(),
        "this program was built without planted bugs: build it with the feature `planted`"
    );
    Ok(names)
}

/// The checkers that may catch a bug: those that stand in backticks in the last column of its row.
fn speakers(name: &str) -> BTreeSet<&'static str> {
    let begin = format!("| `{name}` |");
    let row = PAGE.lines().find(|line| line.starts_with(&begin)).unwrap_or_default();
    let last = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap_or_default();
    last.split('`').skip(1).step_by(2).collect()
}

/// Plants a bug into this process.
///
/// # Errors
/// If there is no such bug in this program.
pub(crate) fn plant(name: &str) -> anyhow::Result<()> {
    check(name)?;
    #[cfg(feature = "planted")]
    {
        quorate_node::planted::choose(name);
        quorate_client::planted::choose(name);
    }
    Ok(())
}

/// Refuses a name that is no bug of this program.
///
/// # Errors
/// Says which there are.
pub(crate) fn check(name: &str) -> anyhow::Result<()> {
    let names = names()?;
    anyhow::ensure!(
        names.contains(name),
        "there is no planted bug {name:?}; PLANTED.md describes them: {}",
        names.iter().copied().collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

/// What came of one bug.
#[derive(Debug, Serialize)]
pub(crate) struct Bug {
    /// Its name.
    name: String,
    /// Whether a checker that PLANTED.md names for it saw it.
    caught: bool,
    /// The checker that saw it first.
    checker: Option<String>,
    /// The seed in which it did.
    seed: Option<u64>,
    /// Seeds that were run until then.
    within: u64,
    /// What the checker said.
    violation: Option<String>,
    /// Seeds in which only others spoke, which prove nothing of the checkers that are named, by who spoke first.
    others: BTreeMap<String, u64>,
}

impl Bug {
    fn new(name: &str) -> Bug {
        Bug {
            name: name.to_owned(),
            caught: false,
            checker: None,
            seed: None,
            within: 0,
            violation: None,
            others: BTreeMap::new(),
        }
    }

    /// Looks at what was wrong in a seed. Says whether one of the checkers has caught the bug.
    fn judge(&mut self, report: &Report, speakers: &BTreeSet<&str>) -> bool {
        let found = report.violations.iter().find(|violation| speakers.contains(checker_of(violation)));
        if let Some(violation) = found {
            self.caught = true;
            self.checker = Some(checker_of(violation).to_owned());
            (self.seed, self.violation) = (Some(report.seed), Some(violation.clone()));
        } else if let Some(other) = report.violations.first() {
            *self.others.entry(checker_of(other).to_owned()).or_default() += 1;
        }
        self.caught
    }

    fn line(&self) -> String {
        let seed = self.seed.map_or("-".to_owned(), |seed| seed.to_string());
        let caught = if self.caught { "yes" } else { "NO" };
        let checker = self.checker.as_deref().unwrap_or("-");
        let line = format!("{:<26} {caught:<7} {checker:<28} {seed:>6} {:>7}", self.name, self.within);
        let others: Vec<_> = self.others.iter().map(|(other, seeds)| format!("{other} {seeds}")).collect();
        if others.is_empty() { line } else { format!("{line}  not counted: {}", others.join(", ")) }
    }
}

/// What came of all bugs that were planted.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Table {
    /// How many were planted.
    planted: usize,
    /// How many were caught.
    caught: usize,
    /// Each of them.
    bugs: Vec<Bug>,
}

impl Table {
    /// What stands above the lines of [`hunt`].
    pub(crate) fn head() -> String {
        format!("{:<26} {:<7} {:<28} {:>6} {:>7}", "planted", "caught", "by", "seed", "within")
    }

    /// Whether enough were caught.
    pub(crate) fn is_enough(&self) -> bool {
        self.planted > 0 && self.caught * 100 >= self.planted * LEAST_PERCENT
    }

    /// The last line.
    pub(crate) fn verdict(&self) -> String {
        let share = 100 * self.caught / self.planted.max(1);
        format!("{} of {} planted bugs are caught ({share}%; {LEAST_PERCENT}% must be)", self.caught, self.planted)
    }
}

/// Plants each bug into seeds of its own until it is caught by a checker that PLANTED.md names for it. A seed in which
/// something is wrong without the bug as well catches nothing.
pub(crate) fn hunt(campaign: &Campaign, names: &[&str], mut told: impl FnMut(&str)) -> Table {
    let mut table = Table::default();
    let mut sound = BTreeMap::new();
    for name in names {
        let bug = hunt_one(&Campaign { planted: Some((*name).to_owned()), ..campaign.clone() }, name, &mut sound);
        told(&bug.line());
        table.planted += 1;
        table.caught += usize::from(bug.caught);
        table.bugs.push(bug);
    }
    table
}

/// `sound` remembers of seeds whether they are without a violation when nothing is planted.
fn hunt_one(campaign: &Campaign, name: &str, sound: &mut BTreeMap<u64, bool>) -> Bug {
    let mut bug = Bug::new(name);
    let speakers = speakers(name);
    campaign.run(|report: Report| {
        bug.within += 1;
        let is_sign = !report.is_clean()
            && report.is_verdict()
            && *sound.entry(report.seed).or_insert_with(|| is_sound(campaign, report.seed));
        !(is_sign && bug.judge(&report, &speakers))
    });
    bug
}

fn is_sound(campaign: &Campaign, seed: u64) -> bool {
    let mut sound = false;
    Campaign { planted: None, first: seed, seeds: 1, jobs: 1, ..campaign.clone() }.run(|report| {
        sound = report.is_clean();
        true
    });
    sound
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::names::CHECKERS;

    #[test]
    fn every_bug_of_the_page_names_checkers_that_exist() {
        let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let names: Vec<_> = rows.map(|(name, _)| name).collect();
        assert!(names.len() >= 25, "{names:?}");
        for name in names {
            let speakers = speakers(name);
            assert!(!speakers.is_empty(), "PLANTED.md names no checker for {name}");
            let unknown: Vec<_> = speakers.iter().filter(|speaker| !CHECKERS.contains(speaker)).collect();
            assert!(unknown.is_empty(), "PLANTED.md names {unknown:?} for {name}");
        }
        assert!(speakers("no-such-bug").is_empty());
    }

    #[test]
    fn a_catch_by_a_checker_that_is_not_named_does_not_count() {
        let report = |violation: &str| Report { violations: vec![violation.to_owned()], ..Report::default() };
        let mut bug = Bug::new("forgotten-vote");
        let speakers = BTreeSet::from(["election safety"]);
        assert!(!bug.judge(&report("step 3: liveness: nobody leads"), &speakers));
        assert!(!bug.caught && bug.line().contains("not counted: liveness 1"), "{}", bug.line());
        assert!(bug.judge(&report("step 3: election safety: node-1 takes its vote back"), &speakers));
        assert_eq!(bug.checker.as_deref(), Some("election safety"));
    }

    #[test]
    fn no_bugs_are_not_enough() {
        let table = |planted, caught| Table { planted, caught, bugs: Vec::new() };
        assert!(!table(0, 0).is_enough());
        assert!(table(38, 37).is_enough());
        assert!(!table(38, 36).is_enough());
    }
}
