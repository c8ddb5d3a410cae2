//! Members: in the end those nodes belong to the cluster that did at the beginning or joined, and did not leave.
//!
//! Nodes are told apart by their ids: one that left and came back with an empty disk is another one. Who belongs at the
//! beginning is what was said before the load began. A change that was refused took no effect, and one of unknown outcome may
//! have or not. At the end, when all is equal, every member is asked by itself, and each must name exactly those; one that never
//! answers may name others, so that the run proves nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    presence::{Presence, When, Wrong, may_count},
    verdict::{Findings, many},
};
use crate::{
    event::{Change, Micros, Operation, Phase, Stage, Verdict},
    history::{History, Span},
};

/// `required`: a run in which nobody said who the members are is void.
pub(super) fn judge(history: &History, spans: &[Span<'_>], required: bool) -> Verdict {
    let mut findings = Findings::of("members");
    // A history that does not say when its load began does not say who was there at the beginning.
    let began = history.reached(Stage::Load).unwrap_or(Micros::MAX);
    let mut nodes: BTreeMap<&str, Presence> = BTreeMap::new();
    let (mut first, mut last) = (0_usize, 0_usize);
    for (_, ids) in answers(spans).filter(|(span, _)| span.begun.time < began) {
        first += 1;
        ids.iter().for_each(|id| nodes.entry(id).or_default().add(When::BEFORE));
    }
    for span in spans.iter().filter(|span| may_count(span)) {
        let Operation::Membership { what, id, .. } = span.operation() else { continue };
        let node = nodes.entry(id).or_default();
        let known = if span.outcome() == Phase::Ok { "" } else { " of unknown outcome" };
        match what {
            Change::Join => node.add(When::of(span)),
            Change::Leave => node.remove(When::of(span)),
        }
        findings.count(&format!("{}{known}", if *what == Change::Join { "joins" } else { "leaves" }), 1);
    }
    for (span, ids) in answers(spans).filter(|(span, _)| span.begun.time >= began) {
        last += 1;
        look(span, ids, &nodes, &mut findings);
    }
    for node in silent(spans, began) {
        findings.void(format!("node {node} was asked at the end who the members are, and did not say"));
    }
    findings.count("answers", many(last));
    if required && (first == 0 || last == 0) {
        findings
            .void(format!("nobody said who the members are at the {}", if first == 0 { "beginning" } else { "end" }));
    }
    findings.verdict(required || first + last > 0)
}

/// The nodes that were asked from some time on who the members are, and never said.
fn silent(spans: &[Span<'_>], from: Micros) -> BTreeSet<usize> {
    let asked = spans.iter().filter(|span| span.begun.time >= from).filter_map(|span| match span.begun.operation {
        Operation::Members { node, .. } => Some(node),
        _ => None,
    });
    let said: BTreeSet<usize> = answers(spans)
        .filter(|(span, _)| span.begun.time >= from)
        .filter_map(|(span, _)| match span.begun.operation {
            Operation::Members { node, .. } => Some(node),
            _ => None,
        })
        .collect();
    asked.filter(|node| !said.contains(node)).collect()
}

/// What nodes answered that were asked who the members are.
fn answers<'a>(spans: &[Span<'a>]) -> impl Iterator<Item = (Span<'a>, &'a [String])> {
    spans.iter().filter_map(|span| match span.operation() {
        Operation::Members { ids: Some(ids), .. } if span.outcome() == Phase::Ok => Some((*span, ids.as_slice())),
        _ => None,
    })
}

/// Holds what one node said against what was done.
fn look(span: Span<'_>, ids: &[String], nodes: &BTreeMap<&str, Presence>, findings: &mut Findings) {
    let (when, place) = (When::of(&span), span.begin);
    let there: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
    let never = Presence::default();
    for id in there.iter().copied().chain(nodes.keys().copied().filter(|id| !there.contains(id))) {
        let what = match nodes.get(id).unwrap_or(&never).contradiction(&when, there.contains(id)) {
            None => continue,
            Some(Wrong::Lost) => "joined and did not leave, and is no member",
            Some(Wrong::Back) => "left, and is a member",
            Some(Wrong::Unknown) => "never joined, and is a member",
        };
        findings.violation(|| format!("node {id} {what} (event {place})"));
    }
}
