//! State hashes: replicas of a group are equal at the same position, always; and at the end all are at the same position.

use std::collections::{BTreeMap, HashMap};

use super::verdict::Findings;
use crate::{
    event::{Injection, Operation, Phase, Verdict},
    history::{History, Span},
};

/// A hash that a node told.
#[derive(Debug, Clone, Copy)]
struct Told {
    hash: u64,
    node: usize,
    place: usize,
}

pub(super) fn judge(history: &History, spans: &[Span<'_>]) -> Verdict {
    let mut findings = Findings::of("hashes");
    let mut at: HashMap<(u32, u64), Told> = HashMap::new();
    let mut last: BTreeMap<u32, BTreeMap<usize, u64>> = BTreeMap::new();
    let settled = settled(history, spans);
    let mut asked = false;
    for span in spans {
        let Operation::Hash { group, node, at: answer } = *span.operation() else { continue };
        asked = true;
        let (Phase::Ok, Some((position, hash)), Some((event, place))) = (span.outcome(), answer, span.ended) else {
            findings.count("not answered", 1);
            continue;
        };
        findings.count("compared", 1);
        let told = *at.entry((group, position)).or_insert(Told { hash, node, place });
        if told.hash != hash {
            findings.violation(|| {
                format!(
                    "group {group} has two states at position {position}: {:016x} on node {} (event {}) and {hash:016x} on node {node} (event {place})",
                    told.hash, told.node, told.place
                )
            });
        }
        if event.time >= settled {
            last.entry(group).or_default().insert(node, position);
        }
    }
    for (group, nodes) in last {
        let mut positions: Vec<u64> = nodes.values().copied().collect();
        positions.dedup();
        if positions.len() > 1 {
            let told: Vec<String> = nodes.iter().map(|(node, position)| format!("node {node} at {position}")).collect();
            findings.void(format!(
                "group {group} was never seen at rest: {}; ask until all replicas are at one position",
                told.join(", ")
            ));
        } else {
            findings.count("groups equal at the end", 1);
        }
    }
    findings.verdict(asked)
}

/// When the last fault and the last change of members were over: what was told before does not say who is there at the end.
fn settled(history: &History, spans: &[Span<'_>]) -> u64 {
    let faults = history.faults.iter().filter(|fault| fault.injection != Injection::Skipped).map(|fault| fault.to);
    let changes = spans.iter().filter(|span| matches!(span.operation(), Operation::Membership { .. }));
    let changes = changes.map(|span| span.ended.map_or(span.begun.time, |(event, _)| event.time));
    faults.chain(changes).max().unwrap_or(0)
}
