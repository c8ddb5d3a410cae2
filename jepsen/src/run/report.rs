//! What a run comes to, for programs and for the ledger.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::check::{Outcome, judged};
use crate::event::{Fault, Injection, Verdict};

/// How often a nemesis struck, and what became of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Struck {
    /// Faults that were seen to bite.
    pub installed: u64,
    /// Faults that were left out because there was nothing to break, or another fault was there.
    pub skipped: u64,
    /// Faults of which it could not be seen.
    pub indeterminate: u64,
}

/// The outcome of a run, as all commands print it: see [`judged`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Whether all promises were kept; void: nothing is proved.
    #[serde(flatten, with = "judged")]
    pub outcome: Outcome,
    /// The load.
    pub workload: String,
    /// The faults that were asked for.
    pub nemeses: Vec<String>,
    /// The bug that was asked for, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planted: Option<String>,
    /// How many nodes the cluster began with.
    pub nodes: usize,
    /// What everything random followed from.
    pub seed: u64,
    /// How long the load ran, in seconds.
    pub seconds: f64,
    /// Operations of the load that ended, whatever their outcome. `counts` has all that the checkers judge.
    pub operations: u64,
    /// Those of them that took effect.
    pub ok: u64,
    /// Operations by load.
    #[serde(default)]
    pub loads: BTreeMap<String, u64>,
    /// Faults by nemesis.
    pub faults: BTreeMap<String, Struck>,
    /// Faults that were seen to bite, by nemesis and kind within it.
    #[serde(default)]
    pub kinds: BTreeMap<String, u64>,
    /// What contradicts a promise.
    pub violations: Vec<String>,
    /// Why nothing is proved.
    pub void: Vec<String>,
    /// What the checkers counted.
    pub counts: BTreeMap<String, u64>,
    /// Where the history, the plots and the logs are.
    pub directory: PathBuf,
}

impl RunReport {
    /// Faults that were seen to bite.
    #[must_use]
    pub fn installed(&self) -> u64 {
        self.faults.values().map(|struck| struck.installed).sum()
    }

    /// Faults of which it could not be seen whether they bit.
    #[must_use]
    pub fn indeterminate(&self) -> u64 {
        self.faults.values().map(|struck| struck.indeterminate).sum()
    }

    /// Takes over what the checkers say.
    pub(super) fn judge(&mut self, verdict: Verdict) {
        self.outcome = verdict.outcome();
        self.violations = verdict.violations;
        self.void = verdict.void;
        self.counts = verdict.counts;
    }

    /// The run proves nothing, because of this; what was violated was violated all the same.
    pub(super) fn unproved(&mut self, why: String) {
        tracing::error!(why, "the run is void");
        self.void.push(why);
        if self.violations.is_empty() {
            self.outcome = Outcome::Void;
        }
    }

    /// The verdict in a few words.
    #[must_use]
    pub fn words(&self) -> String {
        match self.outcome {
            Outcome::Valid => "valid".into(),
            Outcome::Invalid => format!("{} violations: {}", self.violations.len(), first(&self.violations)),
            Outcome::Void => format!("void: {}", first(&self.void)),
        }
    }
}

fn first(sentences: &[String]) -> &str {
    sentences.first().map_or("", String::as_str)
}

/// Counts faults by the nemesis that made them.
#[must_use]
pub fn struck(faults: &[Fault]) -> BTreeMap<String, Struck> {
    let mut by_nemesis: BTreeMap<String, Struck> = BTreeMap::new();
    for fault in faults {
        let struck = by_nemesis.entry(fault.nemesis.clone()).or_default();
        match fault.injection {
            Injection::Installed => struck.installed += 1,
            Injection::Skipped => struck.skipped += 1,
            Injection::Indeterminate => struck.indeterminate += 1,
        }
    }
    by_nemesis
}

/// Counts the faults that were seen to bite by nemesis and kind.
#[must_use]
pub fn kinds(faults: &[Fault]) -> BTreeMap<String, u64> {
    let mut by_kind = BTreeMap::new();
    for fault in faults.iter().filter(|fault| fault.injection == Injection::Installed) {
        *by_kind.entry(format!("{}: {}", fault.nemesis, fault.kind)).or_default() += 1;
    }
    by_kind
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report for tests of what reads reports.
    pub(crate) fn sample(outcome: Outcome) -> RunReport {
        RunReport {
            outcome,
            workload: "register".into(),
            nemeses: vec!["kill".into()],
            planted: None,
            nodes: 3,
            seed: 7,
            seconds: 10.0,
            operations: 1_000,
            ok: 900,
            loads: BTreeMap::from([("register".into(), 1_000)]),
            faults: BTreeMap::from([("kill".into(), Struck { installed: 4, skipped: 1, indeterminate: 0 })]),
            kinds: BTreeMap::new(),
            violations: Vec::new(),
            void: Vec::new(),
            counts: BTreeMap::new(),
            directory: "/tmp/x".into(),
        }
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        for (outcome, text) in [(Outcome::Valid, "true"), (Outcome::Invalid, "false"), (Outcome::Void, "false")] {
            let json = serde_json::to_string(&sample(outcome)).expect("writable");
            assert!(json.contains(&format!("\"valid\":{text},\"outcome\":\"{outcome}\"")), "{json}");
            assert_eq!(serde_json::from_str::<RunReport>(&json).expect("readable"), sample(outcome));
        }
    }

    #[test]
    fn what_proves_nothing_does_not_hide_what_was_violated() {
        let after = |violations: Vec<String>| {
            let mut report = sample(Outcome::Valid);
            report.judge(Verdict { violations, ..Verdict::default() });
            report.unproved("the disk is full".into());
            report.outcome
        };
        assert_eq!((after(Vec::new()), after(vec!["lost".into()])), (Outcome::Void, Outcome::Invalid));
    }

    #[test]
    fn faults_are_counted_by_nemesis_and_outcome() {
        let fault = |nemesis: &str, injection| Fault {
            nemesis: nemesis.into(),
            kind: "x".into(),
            from: 0,
            to: 0,
            injection,
            detail: String::new(),
        };
        let faults = [
            fault("kill", Injection::Installed),
            fault("kill", Injection::Skipped),
            fault("pause", Injection::Installed),
        ];
        let counted = struck(&faults);
        assert_eq!(counted["kill"], Struck { installed: 1, skipped: 1, indeterminate: 0 });
        assert_eq!(counted["pause"].installed, 1);
        assert_eq!(kinds(&faults), BTreeMap::from([("kill: x".into(), 1), ("pause: x".into(), 1)]));
    }
}
