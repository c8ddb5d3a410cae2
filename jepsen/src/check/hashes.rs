//! State hashes: replicas of a group are equal at the same position, always; and at the end all are at the same position.
//!
//! Replicas are asked in rounds, each of which names every replica of every group in order. The last round says how it ended:
//! a replica that has not told its hash there was not compared, and then the run proves nothing. One that has, and is still
//! behind what another one told long before, while nobody wrote any more, is stuck, however equal it once was.

use std::collections::{BTreeMap, HashMap};

use super::{
    Rules,
    availability::{extended, limit_after},
    verdict::{Findings, seconds},
};
use crate::{
    event::{Injection, Micros, Operation, Phase, Stage, Verdict},
    history::{History, Span},
};

/// A hash that a node told.
#[derive(Debug, Clone, Copy)]
struct Told {
    hash: u64,
    node: usize,
    place: usize,
}

/// The replicas of all groups, with the positions that they told in one round; `None`: it told none.
type Round = BTreeMap<(u32, usize), Option<u64>>;

/// A replica that came to a position, and when it told that.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    position: u64,
    node: usize,
    time: Micros,
}

/// By the rules a run that compared nothing is void, or is not.
pub(super) fn judge(history: &History, spans: &[Span<'_>], rules: &Rules) -> Verdict {
    let required = rules.compared;
    let mut findings = Findings::of("hashes");
    let mut at: HashMap<(u32, u64), Told> = HashMap::new();
    let mut last = Round::new();
    let settled = settled(history, spans);
    let mut asked = false;
    for span in spans {
        let Operation::Hash { group, node, at: answer } = *span.operation() else { continue };
        asked = true;
        let told = answer.filter(|_| span.outcome() == Phase::Ok);
        if span.ended.is_some_and(|(event, _)| event.time >= settled) {
            if last.last_key_value().is_some_and(|(replica, _)| *replica >= (group, node)) {
                last.clear();
            }
            last.insert((group, node), told.map(|(position, _)| position));
        }
        let (Some((position, hash)), Some((_, place))) = (told, span.ended) else {
            findings.count("not answered", 1);
            continue;
        };
        findings.count("compared", 1);
        let first = *at.entry((group, position)).or_insert(Told { hash, node, place });
        if first.hash != hash {
            findings.violation(|| {
                format!(
                    "group {group} has two states at position {position}: {:016x} on node {} (event {}) and {hash:016x} on node {node} (event {place})",
                    first.hash, first.node, first.place
                )
            });
        }
    }
    if last.is_empty() && (asked || required) {
        findings.void("the states of no group were compared after the last fault".to_owned());
    }
    at_rest(&last, &long_before(history, spans, rules), &mut findings);
    findings.verdict(asked || required)
}

/// How far replicas of each group had come so long before the last answer that every other one must have come as far, though
/// the machine stood still meanwhile; told when nobody wrote any more. What is proposed without anybody writing may be
/// younger than that, and what is made anew may take as long as it may after the heal.
fn long_before(history: &History, spans: &[Span<'_>], rules: &Rules) -> BTreeMap<u32, Ahead> {
    let told = |span: &Span<'_>| match (span.operation(), span.ended) {
        (Operation::Hash { group, node, at: Some((position, _)) }, Some((event, _))) if event.phase == Phase::Ok => {
            Some((*group, Ahead { position: *position, node: *node, time: event.time }))
        }
        _ => None,
    };
    let asked = spans.iter().filter(|span| matches!(span.operation(), Operation::Hash { .. }));
    let end = asked.filter_map(|span| span.ended).map(|(event, _)| event.time).max().unwrap_or(0);
    let mut ahead: BTreeMap<u32, Ahead> = BTreeMap::new();
    let Some(rest) = history.reached(Stage::AtRest) else { return ahead };
    let whole = history.reached(Stage::Healed).map_or(0, |healed| healed + limit_after(healed, history, rules));
    for (group, other) in spans.iter().filter_map(told).filter(|(_, told)| told.time >= rest) {
        let is_furthest = ahead.get(&group).is_none_or(|known| known.position < other.position);
        let due = other.time.saturating_add(rules.rest_within).max(whole);
        if is_furthest && extended(history, other.time, due, rules) <= end {
            ahead.insert(group, other);
        }
    }
    ahead
}

/// Whether every replica told its position, and all of a group the same.
fn at_rest(last: &Round, long_before: &BTreeMap<u32, Ahead>, findings: &mut Findings) {
    let mut groups: BTreeMap<u32, Vec<(usize, Option<u64>)>> = BTreeMap::new();
    for (&(group, node), &position) in last {
        groups.entry(group).or_default().push((node, position));
    }
    for (group, replicas) in groups {
        let told: Vec<String> = replicas
            .iter()
            .map(|(node, position)| match position {
                Some(position) => format!("node {node} at {position}"),
                None => format!("node {node} told nothing"),
            })
            .collect();
        let first = replicas[0].1;
        let ahead = long_before.get(&group);
        let is_stuck =
            ahead.is_some_and(|ahead| replicas.iter().any(|(_, at)| at.is_some_and(|at| at < ahead.position)));
        if replicas.iter().any(|(_, position)| position.is_none()) {
            findings.void(format!("not all replicas of group {group} were compared: {}", told.join(", ")));
        } else if let Some(Ahead { position, node, time }) = ahead.filter(|_| is_stuck) {
            findings.violation(|| {
                format!(
                    "a replica of group {group} is stuck, though nobody writes: {}, and node {node} was at {position} at {}",
                    told.join(", "),
                    seconds(*time)
                )
            });
        } else if replicas.iter().any(|(_, position)| *position != first) {
            findings.void(format!(
                "group {group} was never seen at rest: {}; ask until all replicas are at one position",
                told.join(", ")
            ));
        } else if replicas.len() < 2 {
            findings.count("groups of one replica", 1);
        } else {
            findings.count("groups equal at the end", 1);
        }
    }
}

/// When the last fault and the last change of members were over: what was told before does not say who is there at the end.
fn settled(history: &History, spans: &[Span<'_>]) -> Micros {
    let faults = history.faults.iter().filter(|fault| fault.injection != Injection::Skipped).map(|fault| fault.to);
    let changes = spans.iter().filter(|span| matches!(span.operation(), Operation::Membership { .. }));
    let changes = changes.map(|span| span.ended.map_or(span.begun.time, |(event, _)| event.time));
    faults.chain(changes).max().unwrap_or(0)
}
