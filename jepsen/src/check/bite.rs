//! Whether a run proves anything: enough was done, by every load that it has, and what was asked for struck.

use std::collections::BTreeMap;

use super::{
    Rules,
    verdict::{Findings, many, seconds},
};
use crate::{
    event::{Event, Injection, Micros, Operation, Part, Phase, Verdict},
    history::History,
};

/// The least that each load does of each kind: in a run of any length, and one in so long a time. Far below what a cluster does
/// that is down for half of the time; a checker that looked at less looked at nothing.
const LEAST: u64 = 5;
const ONE_IN: Micros = 5_000_000;
const MINUTE: Micros = 60_000_000;

/// A nemesis that strikes under the names of others.
const CHAOS: &str = "chaos";

pub(super) fn judge(history: &History, rules: &Rules) -> Verdict {
    let mut findings = Findings::of("run");
    // Hashes are asked for by the harness, as often as it likes.
    let asked = history.events.iter().filter(|event| !matches!(event.operation, Operation::Hash { .. }));
    for event in asked {
        let name = match event.phase {
            Phase::Invoke => "operations",
            Phase::Ok => "ok",
            Phase::Fail => "fail",
            Phase::Info => "info",
        };
        findings.count(name, 1);
    }
    let (from, to) = history.load();
    let length = to.saturating_sub(from);
    let done: Vec<&Event> =
        history.events.iter().filter(|event| event.phase == Phase::Ok && (from..=to).contains(&event.time)).collect();
    enough(&done, length, rules, &mut findings);
    struck(history, length, rules, &mut findings);
    findings.verdict(true)
}

/// Whether the load did enough, as a whole and each part of it.
fn enough(done: &[&Event], length: Micros, rules: &Rules, findings: &mut Findings) {
    let of_load = many(done.iter().filter(|event| is_of_load(event)).count());
    findings.count("ok of the load", of_load);
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
    let rate = of_load as f64 / (length.max(1) as f64 / 1e6);
    if of_load == 0 {
        findings.void("no operation ended well".to_owned());
    } else if rate < rules.floor {
        findings.void(format!(
            "{rate:.1} operations a second of the load ended well over {}, which is under the floor of {:.1}",
            seconds(length),
            rules.floor
        ));
    }
    let least = LEAST.max(length / ONE_IN);
    for part in &rules.parts {
        for (what, is_such) in kinds(*part) {
            let count =
                many(done.iter().filter(|event| event.part == Some(*part) && is_such(&event.operation)).count());
            if count < least {
                findings.void(format!("the load {part} did too little: {count} {what} ended well, not {least}"));
            }
        }
    }
}

/// Whether a client of the load asked the cluster for it. What a cluster delivers, what the harness asks for at the end, and
/// probes, are done whatever the load does.
pub(crate) fn is_of_load(event: &Event) -> bool {
    use Operation as O;
    let asked = match event.operation {
        O::Read { .. } | O::Write { .. } | O::Cas { .. } | O::Enqueue { .. } | O::Complete { .. } => true,
        O::Repeat { .. } | O::Upsert { .. } | O::Delete { .. } | O::Search { .. } => true,
        O::Deliver { .. } | O::Effect { .. } | O::Final { .. } | O::List { .. } | O::Hash { .. } => false,
        O::Membership { .. } | O::Members { .. } => false,
    };
    asked && !matches!(event.part, Some(Part::Probe(_)))
}

/// What clients of the load asked for and what became of it, answered or not, while the load ran: not the final reads.
pub(crate) fn done_by_load(history: &History) -> impl Iterator<Item = &Event> {
    let (from, to) = history.load();
    let ended = history.events.iter().filter(move |event| event.phase != Phase::Invoke);
    ended.filter(move |event| is_of_load(event) && (from..=to).contains(&event.time))
}

type Kind = (&'static str, fn(&Operation) -> bool);

/// What the checker of a load needs to have anything to look at.
fn kinds(part: Part) -> [Kind; 2] {
    use Operation as O;
    let enqueues: Kind = ("enqueues", |operation| matches!(operation, O::Enqueue { .. }));
    let completions: Kind = ("completions", |operation| matches!(operation, O::Complete { .. }));
    match part {
        Part::Register => [
            ("reads", |operation| matches!(operation, O::Read { .. })),
            ("writes", |operation| matches!(operation, O::Write { .. } | O::Cas { .. })),
        ],
        Part::Queue | Part::Probe(_) => [enqueues, completions],
        Part::Lease => [("effects", |operation| matches!(operation, O::Effect { .. })), completions],
        Part::Requests => [("repeats", |operation| matches!(operation, O::Repeat { .. })), enqueues],
        Part::Search => [
            ("upserts", |operation| matches!(operation, O::Upsert { .. })),
            ("whole searches", |operation| matches!(operation, O::Search { found: Some(_), missing: 0, .. })),
        ],
    }
}

/// Whether every nemesis that was asked for struck.
fn struck(history: &History, length: Micros, rules: &Rules, findings: &mut Findings) {
    let mut struck: BTreeMap<&str, u64> = BTreeMap::new();
    for fault in &history.faults {
        *struck.entry(&fault.nemesis).or_default() += u64::from(fault.injection == Injection::Installed);
        findings.count(&format!("faults {:?}", fault.injection).to_lowercase(), 1);
    }
    for nemesis in &rules.asked {
        if nemesis == CHAOS {
            // What was asked for by name as well strikes without it.
            let its_own = struck.iter().filter(|(name, _)| !rules.asked.iter().any(|asked| asked == *name));
            // They are looked at together: of several each is to strike once a minute.
            let of_its_kind = rules.asked.iter().filter(|asked| *asked == CHAOS).count() as u64;
            let installed: u64 = its_own.map(|(_, count)| count).sum();
            let minutes = length.div_ceil(MINUTE).max(1);
            let least = minutes * of_its_kind;
            if installed < least {
                findings.void(format!("{CHAOS} hardly struck: {installed} faults were installed in {minutes} minutes"));
            }
        } else if struck.get(nemesis.as_str()).copied().unwrap_or(0) == 0 {
            let tried = history.faults.iter().filter(|fault| fault.nemesis == *nemesis).count();
            findings.void(format!("nemesis {nemesis} never struck: of {tried} faults none was installed"));
        }
    }
}
