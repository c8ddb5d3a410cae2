//! Checkers: what a history says about the promises.
//!
//! Each checker is a pure function of a history and gives a [`Verdict`]. A *violation* is something that no correct cluster
//! could have done, whatever became of the operations whose outcome is unknown: it is certain. A reason to be *void* says that
//! the run proves nothing, even if it looks well: a fault that did not bite, too little done, a history that is not well
//! formed, a question that was left open. A harness failure is never a violation.
//!
//! | checker | promise |
//! |---|---|
//! | [`registers`] | memory points are linearizable, each by itself |
//! | [`queue`] | a task that was acknowledged is not lost, runs, completes exactly once; children come with their parents |
//! | [`leases`] | a task is held by one attempt at a time; an older token is refused; what was refused took no effect |
//! | [`request_ids`] | a request that is repeated is answered the same and takes effect once |
//! | [`searches`] | an acknowledged point is found, a deleted one is not, and an answer with missing shards says so |
//! | [`set`] | in the end a collection holds what was acknowledged, and nothing that was deleted or never written |
//! | [`members`] | in the end those belong to the cluster who joined and did not leave, whoever is asked |
//! | [`hashes`] | all replicas of a group are equal at the same position |
//! | [`availability`] | a connected majority writes soon after a fault; the cluster is healthy, and all is equal, soon after the heal |
//! | [`finals`] | what was asked at the end was answered |
//! | [`bite`] | enough was done by every load, and every nemesis that was asked for struck |
//!
//! What a run comes to is [`recorded`], a function of its history alone: the run itself and `check` both ask it.
//!
//! Checkers compare places in the history and not times, except where a promise is about time.

mod availability;
mod bite;
mod finals;
mod freshness;
mod hashes;
mod leases;
mod members;
mod presence;
mod queue;
mod register;
mod request_ids;
mod set;
mod struck;
mod verdict;

#[cfg(test)]
mod tests;

use crate::{
    event::{Asked, Micros, Note, Part, Verdict},
    history::{History, Span},
};

pub use verdict::Outcome;
pub(crate) use verdict::judged;

pub(crate) use bite::{done_by_load, is_of_load};

/// How much is asked of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// The nemeses that were asked for, without their arguments: each must have struck once at least.
    pub asked: Vec<String>,
    /// The least number of operations of the load a second that ended well.
    pub floor: f64,
    /// The loads of the run: each must have done what its checker looks at.
    pub parts: Vec<Part>,
    /// Whether the states of all replicas must have been compared, and the members be known.
    pub compared: bool,
    /// How soon after a fault a connected majority must write.
    pub write_within: Micros,
    /// How soon after the heal the cluster must be healthy, and all replicas must have been equal.
    pub equal_within: Micros,
    /// The same, where replicas are made anew.
    pub moved_within: Micros,
    /// How long after another replica, while nobody writes, a replica may still be behind where that one was.
    pub rest_within: Micros,
    /// For how long nothing must have moved before an unfinished task is called stuck or lost.
    pub drain: Micros,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            asked: Vec::new(),
            floor: 1.0,
            parts: Vec::new(),
            compared: false,
            write_within: 2_000_000,
            equal_within: 5_000_000,
            moved_within: 60_000_000,
            rest_within: 15_000_000,
            drain: 30_000_000,
        }
    }
}

impl Rules {
    /// What is asked of a run that was to do this.
    pub fn of(asked: &Asked) -> Rules {
        let names = asked.nemeses.iter().map(|name| name.split(':').next().unwrap_or(name).to_owned());
        let (asked_for, parts) = (names.filter(|name| name != "none").collect(), asked.parts.clone());
        Rules { asked: asked_for, floor: asked.floor, parts, compared: true, ..Rules::default() }
    }
}

/// What a run comes to: everything, by the rules that its history names. A history that does not say what was asked of its run
/// proves nothing, whatever is in it.
pub fn recorded(history: &History) -> Verdict {
    let verdict = match history.asked() {
        Some(asked) => run(history, &Rules::of(asked)),
        None => {
            let void = vec!["the history does not say what was asked of its run".to_owned()];
            all(history).merge(Verdict { void, ..Verdict::default() })
        }
    };
    verdict.merge(noted(history))
}

/// What the harness saw itself.
fn noted(history: &History) -> Verdict {
    let mut findings = verdict::Findings::of("run");
    let mut verdict = Verdict::default();
    for note in &history.notes {
        match note {
            Note::Violation { what, .. } => verdict.violations.push(what.clone()),
            Note::Void { why, .. } => verdict.void.push(why.clone()),
            Note::Replaced { refusal, .. } if refuses_rightly(refusal) => findings.count("nodes replaced by hand", 1),
            Note::Replaced { node, refusal, .. } => findings
                .violation(|| format!("node {node} was damaged in one file and had to be replaced by hand: {refusal}")),
            Note::Stalled { from, to, .. } => {
                findings.count("stalls of the machine", 1);
                findings.count("stalls of the machine, ms", to.saturating_sub(*from) / 1_000);
            }
            Note::Asked(_) | Note::Reached { .. } | Note::Moment { .. } => {}
        }
    }
    findings.verdict(true).merge(verdict)
}

/// Whether a refusal to start is one that is documented: a node of whose identity no copy can be read any more cannot know who
/// it is. From all other damage it must come back by itself.
fn refuses_rightly(refusal: &str) -> bool {
    refusal.contains("identity") && refusal.contains("is damaged")
}

/// Every promise about what was answered; none about time or effort. Which checkers have something to say follows from the
/// operations that are in the history: the others count nothing and find nothing.
pub fn all(history: &History) -> Verdict {
    on_spans(history, |spans| answered(history, spans, &Rules::default()))
}

/// Everything: [`all`], and what the rules ask of the run.
pub fn run(history: &History, rules: &Rules) -> Verdict {
    on_spans(history, |spans| {
        answered(history, spans, rules)
            .merge(availability::judge(history, spans, rules))
            .merge(bite::judge(history, rules))
    })
}

fn answered(history: &History, spans: &[Span<'_>], rules: &Rules) -> Verdict {
    registers_of(history, spans)
        .merge(queue::judge(history, spans, rules.drain))
        .merge(leases::judge(spans))
        .merge(request_ids::judge(spans))
        .merge(freshness::judge(history, spans))
        .merge(set::judge(history, spans))
        .merge(members::judge(history, spans, rules.compared))
        .merge(hashes::judge(history, spans, rules))
        .merge(finals::judge(history, spans))
}

/// Linearizability of registers, by key.
pub fn registers(history: &History) -> Verdict {
    on_spans(history, |spans| registers_of(history, spans))
}

/// The queue as a whole: nothing acknowledged lost, nothing from nowhere, completed exactly once, children with their parents.
pub fn queue(history: &History) -> Verdict {
    on_spans(history, |spans| queue::judge(history, spans, Rules::default().drain))
}

/// Leases and fencing.
pub fn leases(history: &History) -> Verdict {
    on_spans(history, leases::judge)
}

/// Requests that were sent again.
pub fn request_ids(history: &History) -> Verdict {
    on_spans(history, request_ids::judge)
}

/// Freshness of linearizable searches.
pub fn searches(history: &History) -> Verdict {
    on_spans(history, |spans| freshness::judge(history, spans))
}

/// What collections hold in the end.
pub fn set(history: &History) -> Verdict {
    on_spans(history, |spans| set::judge(history, spans))
}

/// Who belongs to the cluster in the end.
pub fn members(history: &History) -> Verdict {
    on_spans(history, |spans| members::judge(history, spans, false))
}

/// Equal replicas.
pub fn hashes(history: &History) -> Verdict {
    on_spans(history, |spans| hashes::judge(history, spans, &Rules::default()))
}

/// Answers to the reads at the end.
pub fn finals(history: &History) -> Verdict {
    on_spans(history, |spans| finals::judge(history, spans))
}

/// Writes soon after a fault, equality soon after the last.
pub fn availability(history: &History, rules: &Rules) -> Verdict {
    on_spans(history, |spans| availability::judge(history, spans, rules))
}

/// Whether enough was done and every nemesis that was asked for struck.
pub fn bite(history: &History, rules: &Rules) -> Verdict {
    bite::judge(history, rules)
}

fn registers_of(history: &History, spans: &[Span<'_>]) -> Verdict {
    register::judge(history, spans)
}

/// A history that is not well formed says nothing about the cluster.
fn on_spans<'a>(history: &'a History, judge: impl FnOnce(&[Span<'a>]) -> Verdict) -> Verdict {
    match history.spans() {
        Ok(spans) => judge(&spans),
        Err(error) => Verdict { void: vec![error.to_string()], ..Verdict::default() },
    }
}
