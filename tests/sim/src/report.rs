//! What is told about seeds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::history::History;
use crate::nemesis::Nemesis;

/// What came of one seed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The seed.
    pub(crate) seed: u64,
    /// Steps with faults; a step is 1 ms of simulated time.
    pub(crate) steps: u64,
    /// The step at which everything had settled, or a violation was found.
    pub(crate) ended: u64,
    /// Faults that were injected, by kind.
    pub(crate) faults: BTreeMap<String, u64>,
    /// Entries of all groups that took effect.
    pub(crate) commits: u64,
    /// Leaders of whom at least one entry took effect.
    pub(crate) elections: u64,
    /// Nodes that were killed.
    pub(crate) crashes: u64,
    /// Operations that clients were answered.
    pub(crate) operations: u64,
    /// Those among them that are about memory points.
    pub(crate) memory_operations: u64,
    /// Replicas that were taken out of service because they were damaged.
    pub(crate) quarantined: u64,
    /// Requests between nodes that arrived twice, by kind.
    pub(crate) repeated: BTreeMap<String, u64>,
    /// What a repetition of the seed must have too.
    pub(crate) trace: String,
    /// What was wrong.
    pub(crate) violations: Vec<String>,
}

/// Under this a run says nothing, for so many steps each. [`FLOORS`] says the same to people.
const STEPS_PER_COMMIT: u64 = 50;
const STEPS_PER_OPERATION: u64 = 50;
const STEPS_PER_MEMORY_OPERATION: u64 = 400;
const STEPS_PER_ELECTION: u64 = 4_000;
const STEPS_PER_CRASH: u64 = 5_000;
/// Of a hundred seeds so many must be valid: many seeds in which nothing happens prove nothing. [`FLOORS`] says it too.
const VALID_PERCENT: u64 = 90;

/// The floors, for the help.
pub(crate) const FLOORS: &str = "\
A seed is invalid, and counted apart, if less than this has happened in 20,000 steps (in proportion for another number):
400 commits (entries of all groups that took effect), 400 operations (that clients were answered), 50 of them about memory
points, 5 elections (leaders of
all groups of whom an entry took effect), 4 crashes (nodes that lost their process).

The exit status is 1 if there is a violation, if fewer than 90% of the seeds are valid, or with --planted if fewer than 95% of
the bugs are caught, each by a checker that PLANTED.md names for it.";

impl Report {
    /// The report of a run that has ended.
    pub(crate) fn new(seed: u64, steps: u64, history: &History, nemesis: &Nemesis) -> Report {
        Report {
            seed,
            steps,
            ended: history.step,
            faults: nemesis.faults.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
            commits: history.machines.entries(),
            elections: history.machines.leaders(),
            crashes: nemesis.crashes,
            operations: history.operations,
            memory_operations: history.memory_operations,
            quarantined: 0,
            repeated: BTreeMap::new(),
            trace: format!("{:016x}", history.trace.value()),
            violations: history.violations(),
        }
    }

    /// The report of a process that ended without one.
    pub(crate) fn lost(seed: u64, steps: u64, why: String) -> Report {
        Report { seed, steps, violations: vec![why], ..Report::default() }
    }

    /// Whether nothing was wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// Whether the run came to a verdict of its own. A process that hung or died did not: that is a violation to look at,
    /// but no planted bug is proved by it.
    pub(crate) fn is_verdict(&self) -> bool {
        !self.trace.is_empty()
    }

    /// Whether so much happened that a run without violations says something.
    pub(crate) fn is_valid(&self) -> bool {
        self.commits >= self.steps.div_ceil(STEPS_PER_COMMIT)
            && self.operations >= self.steps.div_ceil(STEPS_PER_OPERATION)
            && self.memory_operations >= self.steps.div_ceil(STEPS_PER_MEMORY_OPERATION)
            && self.elections >= self.steps.div_ceil(STEPS_PER_ELECTION)
            && self.crashes >= self.steps.div_ceil(STEPS_PER_CRASH)
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let verdict = match (self.is_clean(), self.is_valid()) {
            (false, _) => "VIOLATION",
            (true, false) => "invalid",
            (true, true) => "ok",
        };
        let faults: u64 = self.faults.values().sum();
        let mut line = format!(
            "seed {}: {verdict}, {} steps, {} entries, {} leaders, {} crashes, {faults} faults, {} operations ({} of memory), {} quarantined, trace {}",
            self.seed,
            self.ended,
            self.commits,
            self.elections,
            self.crashes,
            self.operations,
            self.memory_operations,
            self.quarantined,
            self.trace
        );
        if let Some(first) = self.violations.first() {
            line = format!("{line}\n  {first}");
        }
        line
    }
}

/// What came of many seeds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Summary {
    /// Seeds that ran.
    pub(crate) seeds: u64,
    /// Seeds in which too little happened.
    pub(crate) invalid: Vec<u64>,
    /// Steps with faults of all seeds.
    pub(crate) steps: u64,
    /// Faults by kind.
    pub(crate) faults: BTreeMap<String, u64>,
    /// Entries that took effect.
    pub(crate) commits: u64,
    /// Leaders of whom at least one entry took effect.
    pub(crate) elections: u64,
    /// Nodes that were killed.
    pub(crate) crashes: u64,
    /// Operations that clients were answered.
    pub(crate) operations: u64,
    /// Those among them that are about memory points.
    pub(crate) memory_operations: u64,
    /// Replicas that were taken out of service because they were damaged.
    pub(crate) quarantined: u64,
    /// Requests between nodes that arrived twice, by kind.
    pub(crate) repeated: BTreeMap<String, u64>,
    /// What was wrong, by seed.
    pub(crate) violations: BTreeMap<u64, Vec<String>>,
}

impl Summary {
    /// Adds a seed.
    pub(crate) fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.steps += report.steps;
        self.commits += report.commits;
        self.elections += report.elections;
        self.crashes += report.crashes;
        self.operations += report.operations;
        self.memory_operations += report.memory_operations;
        self.quarantined += report.quarantined;
        for (kind, count) in &report.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
        for (kind, count) in &report.repeated {
            *self.repeated.entry(kind.clone()).or_default() += count;
        }
        if !report.is_clean() {
            self.violations.insert(report.seed, report.violations.clone());
        } else if !report.is_valid() {
            self.invalid.push(report.seed);
        }
    }

    /// Whether nothing was wrong, and enough seeds say so.
    pub(crate) fn is_enough(&self) -> bool {
        let valid = self.seeds - self.invalid.len() as u64;
        self.violations.is_empty() && self.seeds > 0 && valid * 100 >= self.seeds * VALID_PERCENT
    }

    /// A few lines for people.
    pub(crate) fn lines(&self) -> String {
        let told = |counts: &BTreeMap<String, u64>| {
            counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
        };
        format!(
            "{} seeds, {} of them invalid, {} with violations; {} steps, {} entries, {} leaders, {} crashes, {} operations ({} of memory), {} quarantined\nfaults: {}\narrived twice: {}",
            self.seeds,
            self.invalid.len(),
            self.violations.len(),
            self.steps,
            self.commits,
            self.elections,
            self.crashes,
            self.operations,
            self.memory_operations,
            self.quarantined,
            told(&self.faults),
            told(&self.repeated)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_under_any_floor_is_invalid() {
        let floor = Report {
            steps: 20_000,
            commits: 400,
            operations: 400,
            elections: 5,
            crashes: 4,
            memory_operations: 50,
            ..Report::default()
        };
        assert!(floor.is_valid());
        for less in [
            Report { commits: 399, ..floor.clone() },
            Report { operations: 399, ..floor.clone() },
            Report { elections: 4, ..floor.clone() },
            Report { memory_operations: 49, ..floor.clone() },
            Report { crashes: 3, ..floor.clone() },
        ] {
            assert!(!less.is_valid(), "{less:?}");
        }
        for number in [
            format!("{VALID_PERCENT}% of the seeds").as_str(),
            "400 commits",
            "400 operations",
            "50 of them",
            "5 elections",
            "4 crashes",
        ] {
            assert!(FLOORS.contains(number), "{number}");
        }
    }

    #[test]
    fn seeds_that_say_nothing_are_not_enough() {
        let summary = |valid, invalid| {
            let mut summary = Summary::default();
            let report = Report { steps: 20_000, ..Report::default() };
            let full = Report { commits: 400, operations: 400, memory_operations: 50, ..report.clone() };
            let full = Report { elections: 5, crashes: 4, ..full };
            (0..valid).for_each(|seed| summary.add(&Report { seed, ..full.clone() }));
            (0..invalid).for_each(|seed| summary.add(&Report { seed: valid + seed, ..report.clone() }));
            summary
        };
        assert!(summary(9, 1).is_enough());
        assert!(!summary(17, 3).is_enough());
        assert!(!summary(0, 3).is_enough());
        assert!(!summary(0, 0).is_enough(), "no seed at all");
        let mut wrong = summary(10, 0);
        wrong.add(&Report::lost(10, 20_000, "it hangs".to_owned()));
        assert!(!wrong.is_enough());
    }
}
