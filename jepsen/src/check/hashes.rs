//! State hashes: replicas of a group are equal at the same position, always; and at the end all are at the same position.
//!
//! Replicas are asked in rounds, each of which names every replica of every group in order. The last round says how it ended:
//! a replica that has not told its hash there was not compared, and then the run proves nothing.

use std::collections::{BTreeMap, HashMap};

use super::verdict::Findings;
use crate::{
    event::{Injection, Micros, Operation, Phase, Verdict},
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

/// `required`: a run that compared nothing is void.
pub(super) fn judge(history: &History, spans: &[Span<'_>], required: bool) -> Verdict {
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
    at_rest(&last, &mut findings);
    findings.verdict(asked || required)
}

/// Whether every replica told its position, and all of a group the same.
fn at_rest(last: &Round, findings: &mut Findings) {
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
        if replicas.iter().any(|(_, position)| position.is_none()) {
            findings.void(format!("not all replicas of group {group} were compared: {}", told.join(", ")));
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
