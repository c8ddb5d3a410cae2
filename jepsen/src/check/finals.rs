//! Final reads: what was acknowledged is held against what is there in the end, so each of them must have an answer.
//!
//! A read that has none is asked again a few times. If it never has one, the promise that it stands for was not looked at, and
//! the run proves nothing.

use std::collections::BTreeMap;

use super::verdict::{Findings, many};
use crate::{
    event::{Operation, Phase, Stage, Verdict},
    history::{History, Span},
};

/// How many reads without an answer are named.
const NAMED: usize = 4;

/// What a final read asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Register(u64),
    Task(u64),
    Point(u64),
    Points { from: u64, rest: u64 },
}

/// Where it was asked for last, and whether it was ever answered.
#[derive(Debug, Default)]
struct Asked {
    place: usize,
    answered: bool,
}

pub(super) fn judge(history: &History, spans: &[Span<'_>]) -> Verdict {
    let mut findings = Findings::of("finals");
    let begun = history.reached(Stage::Finals);
    let mut reads: BTreeMap<Wanted, Asked> = BTreeMap::new();
    for span in spans {
        let Some(wanted) = wanted(span.operation()) else { continue };
        let is_final = begun.is_some_and(|begun| span.begun.time >= begun) || matches!(wanted, Wanted::Task(_));
        if is_final {
            let asked = reads.entry(wanted).or_default();
            asked.place = span.begin;
            asked.answered |= is_answered(span);
        }
    }
    let unanswered: Vec<(&Wanted, &Asked)> = reads.iter().filter(|(_, asked)| !asked.answered).collect();
    findings.count("asked", many(reads.len()));
    findings.count("answered", many(reads.len() - unanswered.len()));
    if !unanswered.is_empty() {
        let named = unanswered.iter().take(NAMED).map(|(wanted, asked)| format!("{wanted:?} (event {})", asked.place));
        findings.void(format!(
            "{} of {} reads at the end have no answer, such as that of {}",
            unanswered.len(),
            reads.len(),
            named.collect::<Vec<_>>().join(", ")
        ));
    }
    if begun.is_some() && reads.is_empty() {
        findings.void("nothing was read at the end".to_owned());
    }
    findings.verdict(begun.is_some() || !reads.is_empty())
}

fn wanted(operation: &Operation) -> Option<Wanted> {
    match *operation {
        Operation::Read { key, .. } => Some(Wanted::Register(key)),
        Operation::Final { task, .. } => Some(Wanted::Task(task)),
        Operation::Search { point, .. } => Some(Wanted::Point(point)),
        Operation::List { from, rest, .. } => Some(Wanted::Points { from, rest }),
        _ => None,
    }
}

fn is_answered(span: &Span<'_>) -> bool {
    span.outcome() == Phase::Ok
        && match span.operation() {
            Operation::Read { value, .. } => value.is_some(),
            // A task that is not there is an answer too, and a bad one.
            Operation::Final { .. } => true,
            Operation::Search { found, missing, .. } => found.is_some() && *missing == 0,
            Operation::List { points, missing, .. } => points.is_some() && *missing == 0,
            _ => false,
        }
}
