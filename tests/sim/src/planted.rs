//! The bugs that can be planted, each at another seam, and whether they are caught. PLANTED.md says what they are.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::campaign::Campaign;
use crate::report::Report;

/// At most so many seeds are run for one bug, unless another number is asked for.
pub(crate) const SEEDS: u64 = 40;
/// Of a hundred bugs so many must be caught.
const LEAST_PERCENT: usize = 95;

/// The names of the bugs that are in this program.
#[cfg(feature = "planted")]
pub(crate) fn names() -> BTreeSet<&'static str> {
    quorate_node::planted::names().chain(quorate_client::planted::NAMES).collect()
}

/// No bugs are in this program.
#[cfg(not(feature = "planted"))]
pub(crate) fn names() -> BTreeSet<&'static str> {
    BTreeSet::new()
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
    let names = names();
    anyhow::ensure!(
        !names.is_empty(),
        "this program was built without planted bugs: build it with the feature `planted`"
    );
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
    /// Whether a checker saw it.
    caught: bool,
    /// The checker that saw it first.
    checker: Option<String>,
    /// The seed in which it did.
    seed: Option<u64>,
    /// Seeds that were run until then.
    within: u64,
    /// What the checker said.
    violation: Option<String>,
}

impl Bug {
    fn line(&self) -> String {
        let seed = self.seed.map_or("-".to_owned(), |seed| seed.to_string());
        let caught = if self.caught { "yes" } else { "NO" };
        let checker = self.checker.as_deref().unwrap_or("-");
        format!("{:<26} {caught:<7} {checker:<28} {seed:>6} {:>7}", self.name, self.within)
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
        self.caught * 100 >= self.planted * LEAST_PERCENT
    }

    /// The last line.
    pub(crate) fn verdict(&self) -> String {
        let share = 100 * self.caught / self.planted.max(1);
        format!("{} of {} planted bugs are caught ({share}%; {LEAST_PERCENT}% must be)", self.caught, self.planted)
    }
}

/// Plants each bug into seeds of its own until one is caught. A seed in which something is wrong without the bug as well
/// catches nothing.
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
    let mut bug = Bug { name: name.to_owned(), caught: false, checker: None, seed: None, within: 0, violation: None };
    campaign.run(|report: Report| {
        bug.within += 1;
        let Some(violation) = report.violations.first().filter(|_| report.is_verdict()) else { return true };
        if !*sound.entry(report.seed).or_insert_with(|| is_sound(campaign, report.seed)) {
            return true;
        }
        bug.caught = true;
        bug.checker = Some(checker_of(violation).to_owned());
        (bug.seed, bug.violation) = (Some(report.seed), Some(violation.clone()));
        false
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

/// What only one checker says, with its name: these texts read better without it.
const SPEAKERS: [(&str, &str); 5] = [
    (" does not start: ", "restart"),
    (" contradicts itself", "self-check"),
    (" has stopped on ", "running groups"),
    (" was refused for good: ", "clients"),
    ("the machine has task ", "touched records"),
];

/// The checker that speaks: a violation is `step N: CHECKER: what`, and the audit's is `step N: what`.
fn checker_of(violation: &str) -> &str {
    let said =
        violation.strip_prefix("step ").and_then(|rest| rest.split_once(": ")).map_or(violation, |(_, said)| said);
    if let Some((_, checker)) = SPEAKERS.into_iter().find(|(phrase, _)| said.contains(phrase)) {
        return checker;
    }
    match said.split_once(": ") {
        Some((checker, _)) if checker.len() < 30 && !checker.contains(|letter: char| letter.is_ascii_digit()) => {
            checker
        }
        _ => "audit",
    }
}

#[cfg(test)]
mod tests {
    use super::checker_of;

    #[test]
    fn a_violation_names_its_checker() {
        assert_eq!(checker_of("step 12: state hashes: node-1 has 0 at position 3"), "state hashes");
        assert_eq!(checker_of("step 12: task 4 is granted twice: by 7"), "audit");
        assert_eq!(checker_of("step 12: token 4-0 was given twice"), "audit");
        assert_eq!(checker_of("step 12: node-3 does not start: its log is purged"), "restart");
    }
}
