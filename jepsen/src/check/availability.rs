//! Availability: a connected majority writes soon after each fault, and soon after the last one all is equal.
//!
//! A fault is measured if it is certain what was to be expected: it stands alone, with nothing else that changes in the time
//! that is allowed and as long before; it leaves a connected majority, as its detail says (`majority=true`) or as its nemesis
//! always does on a cluster that is whole; and a client that knows all nodes tried to write. What is not measured is counted,
//! by its reason, so that a run in which nothing was measured shows.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Rules,
    verdict::{Findings, many, seconds},
};
use crate::{
    event::{Fault, Injection, Micros, Operation, Phase, Verdict},
    history::{History, Span},
};

/// How long after a fault an answer may still be one that was given before it, in microseconds.
const SETTLE: Micros = 200_000;
/// How many groups an explanation names.
const NAMED: usize = 4;
/// In the detail of a fault after which no majority is left of which all members run and reach each other.
const NO_MAJORITY: &str = "majority=false";
/// In the detail of a fault after which there is one.
const MAJORITY: &str = "majority=true";
/// Nemeses each of whose faults, alone, leaves a majority of a whole cluster running and connected.
const LEAVE_A_MAJORITY: [&str; 15] = [
    "kill",
    "kill-leader",
    "pause",
    "pause-leader",
    "power-cut",
    "power-cut-leader",
    "halves",
    "reset",
    "isolate-leader",
    "one-way",
    "clock-jump",
    "clock-strobe",
    "clock-drift",
    "slow-fsync",
    "fsync-error",
];

/// Writes of a history.
struct Writes {
    /// When each was acknowledged.
    acknowledged: Vec<Micros>,
    /// From when until when each was tried that must go through while there is a majority, by the beginning.
    tried: Vec<(Micros, Micros)>,
}

pub(super) fn judge(history: &History, spans: &[Span<'_>], rules: &Rules) -> Verdict {
    let mut findings = Findings::of("availability");
    let faults: Vec<&Fault> = history.faults.iter().filter(|fault| fault.injection != Injection::Skipped).collect();
    writes_soon(history, spans, &faults, rules, &mut findings);
    equal_soon(spans, &faults, rules, &mut findings);
    findings.verdict(!faults.is_empty())
}

impl Writes {
    fn of(spans: &[Span<'_>]) -> Writes {
        let mut writes = Writes { acknowledged: Vec::new(), tried: Vec::new() };
        for span in spans {
            let ended = span.ended.map(|(event, _)| event.time);
            if must_go_through(span) {
                writes.tried.push((span.begun.time, ended.unwrap_or(Micros::MAX)));
            }
            if is_write(span.operation()) && span.outcome() == Phase::Ok {
                writes.acknowledged.extend(ended);
            }
        }
        writes.acknowledged.sort_unstable();
        writes
    }

    /// The first acknowledgement after a time.
    fn next_after(&self, time: Micros) -> Option<Micros> {
        self.acknowledged.get(self.acknowledged.partition_point(|&at| at <= time)).copied()
    }

    /// Whether somebody tried to write over some of a time.
    fn tried_within(&self, from: Micros, to: Micros) -> bool {
        let begun = self.tried.partition_point(|&(begin, _)| begin <= to);
        self.tried[..begun].iter().rev().any(|&(_, end)| end > from)
    }
}

fn is_write(operation: &Operation) -> bool {
    use Operation as O;
    must_be_taken(operation) || matches!(operation, O::Cas { .. } | O::Complete { .. })
}

/// Whether it is a write that no state refuses.
fn must_be_taken(operation: &Operation) -> bool {
    use Operation as O;
    matches!(operation, O::Write { .. } | O::Enqueue { .. } | O::Upsert { .. } | O::Delete { .. })
}

/// A client that knows one node only may be cut off with it.
fn must_go_through(span: &Span<'_>) -> bool {
    must_be_taken(span.operation()) && span.begun.node.is_none()
}

fn writes_soon(history: &History, spans: &[Span<'_>], faults: &[&Fault], rules: &Rules, findings: &mut Findings) {
    let writes = Writes::of(spans);
    let end = history.events.last().map_or(0, |event| event.time);
    let mut slowest = 0;
    for fault in faults.iter().filter(|fault| fault.injection == Injection::Installed) {
        let deadline = fault.from.saturating_add(rules.write_within);
        let before = fault.from.saturating_sub(rules.write_within);
        let others = faults.iter().filter(|other| !std::ptr::eq(**other, *fault));
        let reason = if fault.detail.contains(NO_MAJORITY) {
            "faults without a majority"
        } else if !fault.detail.contains(MAJORITY) && !LEAVE_A_MAJORITY.contains(&fault.nemesis.as_str()) {
            "faults that may leave no majority"
        } else if deadline > end {
            "faults at the end, not measured"
        } else if others.into_iter().any(|other| other.from <= deadline && before <= other.to) {
            "faults beside another"
        } else if fault.to != fault.from && fault.to <= deadline {
            "faults that ended early"
        } else if !writes.tried_within(fault.from + SETTLE, fault.from + rules.write_within / 2) {
            "faults without load"
        } else {
            let first = writes.next_after(fault.from + SETTLE);
            match first.filter(|&at| at <= deadline) {
                Some(at) => slowest = slowest.max(at - fault.from),
                None => findings.violation(|| late(fault, first, rules)),
            }
            "faults measured"
        };
        findings.count(reason, 1);
    }
    findings.count("slowest write after a fault, ms", slowest / 1_000);
}

fn late(fault: &Fault, first: Option<Micros>, rules: &Rules) -> String {
    let wrote = match first {
        Some(at) => format!("the next write was acknowledged after {}", seconds(at - fault.from)),
        None => "no write was acknowledged any more".to_owned(),
    };
    format!(
        "{wrote}, not within {}, of {} {} at {} {}",
        seconds(rules.write_within),
        fault.nemesis,
        fault.kind,
        seconds(fault.from),
        fault.detail
    )
}

/// The position and hash that a replica told, if it did.
type Told = Option<(u64, u64)>;

/// From the end of the last fault on, when were the replicas of all groups first equal?
fn equal_soon(spans: &[Span<'_>], faults: &[&Fault], rules: &Rules, findings: &mut Findings) {
    let Some(healed) = faults.iter().map(|fault| fault.to).max() else { return };
    let deadline = healed.saturating_add(rules.equal_within);
    let mut told: Vec<(Micros, u32, usize, Told)> = Vec::new();
    for span in spans {
        let Operation::Hash { group, node, at } = *span.operation() else { continue };
        let Some((event, _)) = span.ended.filter(|(event, _)| event.time >= healed) else { continue };
        told.push((event.time, group, node, at.filter(|_| event.phase == Phase::Ok)));
    }
    told.sort_unstable();
    let replicas: BTreeSet<(u32, usize)> = told.iter().map(|&(_, group, node, _)| (group, node)).collect();
    let (Some(first), Some(last)) = (told.first(), told.last()) else {
        findings.count("heals not measured", 1);
        return;
    };
    let (first, last) = (first.0, last.0);
    let mut now: BTreeMap<(u32, usize), (u64, u64)> = BTreeMap::new();
    let equal = told.iter().find_map(|&(time, group, node, at)| {
        match at {
            Some(at) => now.insert((group, node), at),
            None => now.remove(&(group, node)),
        };
        (now.len() == replicas.len() && all_equal(&now)).then_some(time)
    });
    match equal {
        Some(at) if at <= deadline => findings.count("equal after heal, ms", (at - healed) / 1_000),
        // Nobody asked in time, or went on asking for long enough.
        Some(_) if first > deadline => findings.count("heals not measured", 1),
        None if last < deadline => findings.count("heals not measured", 1),
        Some(at) => findings.violation(|| {
            format!(
                "the {} replicas were equal {} after the last fault, not within {}",
                many(replicas.len()),
                seconds(at - healed),
                seconds(rules.equal_within)
            )
        }),
        None => findings.violation(|| never_equal(&replicas, &now, last - healed)),
    }
}

/// Whether all replicas of each group told the same position and hash.
fn all_equal(now: &BTreeMap<(u32, usize), (u64, u64)>) -> bool {
    let mut groups: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    now.iter().all(|(&(group, _), &at)| *groups.entry(group).or_insert(at) == at)
}

fn never_equal(replicas: &BTreeSet<(u32, usize)>, now: &BTreeMap<(u32, usize), (u64, u64)>, after: Micros) -> String {
    let told = |group: u32| replicas.range((group, 0)..=(group, usize::MAX)).map(|replica| now.get(replica));
    let groups: BTreeSet<u32> = replicas.iter().map(|(group, _)| *group).collect();
    let apart = groups.into_iter().filter(|&group| {
        let mut told = told(group);
        let first = told.next().flatten();
        first.is_none() || told.any(|other| other != first)
    });
    let named: Vec<String> = apart
        .take(NAMED)
        .map(|group| {
            let replicas = replicas.range((group, 0)..=(group, usize::MAX)).map(|replica| match now.get(replica) {
                Some((position, hash)) => format!("node {} {hash:016x} at {position}", replica.1),
                None => format!("node {} nothing", replica.1),
            });
            format!("group {group}: {}", replicas.collect::<Vec<_>>().join(", "))
        })
        .collect();
    format!(
        "replicas were never equal at one position in the {} after the last fault: {}",
        seconds(after),
        named.join("; ")
    )
}
