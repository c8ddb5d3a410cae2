//! Verdicts: how they are put together, and what they come to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::{Micros, Verdict};

/// How many violations of one kind of promise are told in full; the others are only counted.
const TOLD: u64 = 10;

/// What a run comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing contradicts a promise, and enough happened for that to mean something.
    Valid,
    /// A promise was broken.
    Invalid,
    /// Nothing is proved.
    Void,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Valid => "valid",
            Outcome::Invalid => "invalid",
            Outcome::Void => "void",
        })
    }
}

/// How every command prints an outcome, flattened into its document: `valid` is true of what is valid alone, so that whoever
/// asks for no more need not know the words; `outcome` has the word.
pub(crate) mod judged {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::Outcome;

    #[derive(Serialize, Deserialize)]
    struct Judged {
        valid: bool,
        outcome: Outcome,
    }

    pub(crate) fn serialize<S: Serializer>(outcome: &Outcome, serializer: S) -> Result<S::Ok, S::Error> {
        Judged { valid: *outcome == Outcome::Valid, outcome: *outcome }.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Outcome, D::Error> {
        let Judged { valid, outcome } = Judged::deserialize(deserializer)?;
        if valid != (outcome == Outcome::Valid) {
            return Err(D::Error::custom(format!("valid is {valid}, and the outcome {outcome}")));
        }
        Ok(outcome)
    }
}

impl Verdict {
    /// What the verdict comes to. A violation counts even in a run that is void otherwise: it happened.
    pub fn outcome(&self) -> Outcome {
        match (self.violations.is_empty(), self.void.is_empty()) {
            (false, _) => Outcome::Invalid,
            (true, false) => Outcome::Void,
            (true, true) => Outcome::Valid,
        }
    }

    /// Whether nothing contradicts a promise and the run proves it.
    pub fn is_valid(&self) -> bool {
        self.outcome() == Outcome::Valid
    }

    /// Both verdicts as one: counts of the same name are added, sentences that both have stand once.
    #[must_use]
    pub fn merge(mut self, other: Verdict) -> Verdict {
        for (mine, others) in [(&mut self.violations, other.violations), (&mut self.void, other.void)] {
            for sentence in others {
                if !mine.contains(&sentence) {
                    mine.push(sentence);
                }
            }
        }
        for (name, count) in other.counts {
            *self.counts.entry(name).or_default() += count;
        }
        self
    }
}

/// A verdict while it is found.
#[derive(Debug)]
pub(super) struct Findings {
    checker: &'static str,
    verdict: Verdict,
    violations: u64,
}

impl Findings {
    /// Nothing found yet by the checker of this name, which begins the names of its counts.
    pub(super) fn of(checker: &'static str) -> Findings {
        Findings { checker, verdict: Verdict::default(), violations: 0 }
    }

    /// A promise was broken. The sentence is made only if it will be told.
    pub(super) fn violation(&mut self, sentence: impl FnOnce() -> String) {
        self.violations += 1;
        if self.violations <= TOLD {
            self.verdict.violations.push(format!("{}: {}", self.checker, sentence()));
        }
    }

    /// The run proves nothing, because of this.
    pub(super) fn void(&mut self, reason: String) {
        self.verdict.void.push(format!("{}: {reason}", self.checker));
    }

    /// Counts more of something.
    pub(super) fn count(&mut self, what: &str, more: u64) {
        *self.verdict.counts.entry(format!("{} {what}", self.checker)).or_default() += more;
    }

    /// The verdict. What checkers counted nothing at all is left out if `used` is false: their operations are not in the
    /// history.
    pub(super) fn verdict(mut self, used: bool) -> Verdict {
        if self.violations > TOLD {
            let more = self.violations - TOLD;
            self.verdict.violations.push(format!("{}: and {more} more", self.checker));
        }
        if self.violations > 0 {
            self.count("violations", self.violations);
        }
        if !used {
            self.verdict.counts.clear();
        }
        self.verdict
    }
}

/// A number of things for a count.
pub(super) fn many(number: usize) -> u64 {
    u64::try_from(number).expect("what is counted fits memory")
}

/// A time for people.
pub(super) fn seconds(time: Micros) -> String {
    format!("{}.{:06}s", time / 1_000_000, time % 1_000_000)
}
