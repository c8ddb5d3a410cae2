//! Linearizability of registers with read, write and compare-and-set, by key.
//!
//! Linearizability is a local property: a history is linearizable if and only if its part on each register is. So each key is
//! judged by itself, and the keys are shared out between threads. Two ways of deciding stand beside each other:
//!
//! - `zones`: values are unique on a key, as the workloads write them. Then who wrote what a reader saw is known, and so is
//!   the outcome of each unknown operation that matters. This takes the time of a sort.
//! - `configurations`: any history. Walks through it with the set of all states that the register could be in, which is
//!   exponential in what is pending at once, in the worst case, and bounded by a budget.
//!
//! Both are held against brute force on thousands of small histories.

mod configurations;
#[cfg(test)]
mod tests;
mod zones;

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use parking_lot::Mutex;

pub(super) use configurations::decide;

use super::verdict::{Findings, many, seconds};
use crate::{
    event::{Operation, Phase, Verdict},
    history::{History, Span},
};

/// How many operations an explanation names.
const NAMED: usize = 12;

/// An operation on a register that took effect or may have. What certainly took none, and reads without an answer, say
/// nothing and are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    /// The register.
    pub(super) key: u64,
    /// What was done.
    pub(super) kind: Kind,
    /// From when on it may have taken effect; greater than 0.
    pub(super) from: u64,
    /// Until when it took effect; `u64::MAX`: nobody knows whether it ever did or will.
    pub(super) to: u64,
    /// The place of its beginning in the history.
    pub(super) place: usize,
}

/// What an access does; `None` is the value of a register that was never written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// It saw this value.
    Read(Option<u64>),
    /// It wrote this value.
    Write(u64),
    /// It saw the first and wrote the second.
    Cas(Option<u64>, u64),
}

impl Kind {
    /// What it wrote.
    pub(super) fn writes(self) -> Option<u64> {
        match self {
            Kind::Read(_) => None,
            Kind::Write(value) | Kind::Cas(_, value) => Some(value),
        }
    }

    /// What it saw, if it saw something.
    pub(super) fn sees(self) -> Option<Option<u64>> {
        match self {
            Kind::Read(value) | Kind::Cas(value, _) => Some(value),
            Kind::Write(_) => None,
        }
    }
}

impl Access {
    /// Whether nobody knows if it took effect.
    pub(super) fn is_unknown(&self) -> bool {
        self.to == u64::MAX
    }
}

/// What became of the question whether the accesses of one key are linearizable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// They are.
    Linearizable,
    /// They are not: why, and the places of the operations that cannot be put into an order.
    Not(String, Vec<usize>),
    /// It would have taken too long to tell.
    Undecided,
}

/// Judges all registers of a history.
pub(super) fn judge(history: &History, spans: &[Span<'_>]) -> Verdict {
    let mut accesses: Vec<Access> = spans.iter().filter_map(access).collect();
    accesses.sort_unstable_by_key(|access| (access.key, access.from));
    let keys: Vec<&[Access]> = accesses.chunk_by(|a, b| a.key == b.key).collect();
    let mut findings = Findings::of("registers");
    findings.count("operations", many(accesses.len()));
    findings.count("of unknown outcome", many(accesses.iter().filter(|access| access.is_unknown()).count()));
    findings.count("keys", many(keys.len()));
    let mut undecided = 0;
    for (key, decision) in decide_all(&keys) {
        match decision {
            Decision::Linearizable => {}
            Decision::Undecided => undecided += 1,
            Decision::Not(why, places) => findings
                .violation(|| format!("register {key} is not linearizable: {why}{}", named(history, spans, &places))),
        }
    }
    if undecided > 0 {
        findings.void(format!(
            "{undecided} registers have values that are not unique and too many orders to try; write unique values"
        ));
    }
    findings.verdict(!accesses.is_empty())
}

/// Decides each key, on all processors; the answers that are not plain are in the order of the keys.
fn decide_all(keys: &[&[Access]]) -> Vec<(u64, Decision)> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(accesses) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let decision = decide_key(accesses);
                    if decision != Decision::Linearizable {
                        found.lock().push((accesses[0].key, decision));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner();
    found.sort_by_key(|(key, _)| *key);
    found
}

/// Decides one key.
fn decide_key(accesses: &[Access]) -> Decision {
    let mut values = HashSet::new();
    if accesses.iter().filter_map(|access| access.kind.writes()).all(|value| values.insert(value)) {
        zones::decide(accesses)
    } else {
        configurations::decide(accesses, None)
    }
}

fn access(span: &Span<'_>) -> Option<Access> {
    let outcome = span.outcome();
    let (key, kind) = match *span.operation() {
        Operation::Read { key, value } if outcome == Phase::Ok => (key, Kind::Read(value?)),
        Operation::Write { key, value } if outcome != Phase::Fail => (key, Kind::Write(value)),
        Operation::Cas { key, expected, value } if outcome != Phase::Fail => (key, Kind::Cas(expected, value)),
        _ => return None,
    };
    Some(Access { key, kind, from: span.earliest(), to: span.latest(), place: span.begin })
}

/// The operations at some places, for people: when, who, what.
pub(super) fn named(history: &History, spans: &[Span<'_>], places: &[usize]) -> String {
    use std::fmt::Write as _;
    let mut places = places.to_vec();
    places.sort_unstable();
    places.dedup();
    let mut text = String::new();
    for &place in places.iter().take(NAMED) {
        let found = spans.binary_search_by_key(&place, |span| span.begin).ok().map(|at| spans[at]);
        let Some(span) = found else { continue };
        let end = match span.ended {
            Some((event, at)) => format!("{:?} at event {at}, {}", event.phase, seconds(event.time)).to_lowercase(),
            None => "never ended".to_owned(),
        };
        let node = span.begun.node.map_or_else(String::new, |node| format!(" at node {node}"));
        write!(
            text,
            "\n    event {place}, {}: process {}{node} {:?}; {end}",
            seconds(history.events[place].time),
            span.process(),
            span.operation()
        )
        .expect("writing to a string does not fail");
    }
    if places.len() > NAMED {
        write!(text, "\n    and {} more", places.len() - NAMED).expect("writing to a string does not fail");
    }
    text
}
