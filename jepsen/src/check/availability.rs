//! Availability: a connected majority writes soon after each fault; soon after the heal the cluster is healthy, and all is
//! equal.
//!
//! What is asked for is asked of every *lane* of the probes by itself: each lane writes to one group, so that the groups that
//! are led elsewhere and answer at once do not hide one that has no leader. A lane goes through each node in turn with a client
//! that knows that node alone, so some of its writes reach the majority whatever is cut; and it is enough that one of them,
//! begun after the fault, is acknowledged in time.
//!
//! A fault is measured if it is certain what was to be expected: nothing else changes in the time that is allowed before a write
//! was acknowledged, nor did as long before, unless the cluster was seen to be well since; it leaves a connected majority, as
//! its detail says or as its nemesis always does on a cluster that is whole; the lane tried to write all the time; and the
//! machine, which others use as well, did not stand still. What is not measured is counted, by its reason. A run in
//! which nothing at all was measured, though a nemesis struck by itself that leaves a majority, proves nothing.
//!
//! The heal is when the last fault is over and every node runs again. From then on both clocks run: 5 s, and 60 s only where a
//! replica or a node was made anew. The load goes on for a little, because only that shows how soon writes succeed after the
//! last fault; so the cluster has less than the 5 s to itself, and what is found in time is found under more than was promised.
//! A group is *equal* at the first moment after the heal at which all its replicas told the same position and hash: whoever
//! was behind has caught up by then, whatever is written later. All is equal when the last of the groups has been. That groups
//! are not looked at in the same moment is what lets this be seen while tasks still come to their ends; that nothing parts
//! them again later is what the hashes at the end of the run are held against. A heal that nobody looked at proves nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Rules,
    verdict::{Findings, many, seconds},
};
use crate::{
    event::{Fault, Injection, MAJORITY, Micros, NO_MAJORITY, Note, Operation, Part, Phase, Stage, Verdict, WAS_WELL},
    history::{History, Span},
};

/// A lane that begins no write for longer than this was held up by the harness or the machine, and says nothing.
const HELD_UP: Micros = 1_000_000;
/// How many groups an explanation names.
const NAMED: usize = 4;
/// Nemeses each of whose faults, alone, leaves a majority of a whole cluster running and connected all the time.
///
/// Not among them, because no majority runs or is connected: `kill-all`, `pause-majority` and `power-cut-all`; `amnesia`,
/// which cuts off a second node. Nor `duplicate`: its proxy takes over the connections of nodes, and how soon writes go on then
/// has not been looked at. Of `links`, `link-enumeration`, `ring`, `bridge` and all other partitions the detail says
/// whether a majority was connected.
const LEAVE_A_MAJORITY: [&str; 28] = [
    "kill",
    "kill-leader",
    "pause",
    "pause-leader",
    "restart-loop",
    "rolling-restart",
    "failpoint",
    "power-cut",
    "power-cut-leader",
    "halves",
    "reset",
    "isolate-leader",
    "one-way",
    "flapping",
    "clock-jump",
    "clock-strobe",
    "clock-drift",
    "slow-fsync",
    "fsync-error",
    // One disk; the node may stay a member that answers, and the others must not wait for it: a leader hands over.
    "stalled-disk",
    "disk-full",
    // Packets come late, or are sent again: all nodes still reach each other.
    "loss",
    "delay",
    "reorder",
    // Who comes or goes does so by the log, with the others there.
    "join",
    "leave",
    "replace",
    // The node is killed first; the others go on, and it serves nothing that it has not made whole.
    "corruption",
];
/// Those of them that break a node more than once, or not at their beginning: then the time that is allowed runs from every
/// moment of the fault.
const AT_ANY_MOMENT: [&str; 7] = ["restart-loop", "failpoint", "fsync-error", "flapping", "join", "leave", "replace"];
/// Nemeses after which replicas are made anew: a cluster is not whole for a while, and one more fault may be one too many; and
/// after the heal it may take as long as that takes until all is well.
const MAKE_ANEW: [&str; 5] = ["corruption", "amnesia", "join", "leave", "replace"];

/// How much later something may be because the machine stood still: for as long as it did, and each time an election may follow.
fn excused(history: &History, from: Micros, to: Micros, rules: &Rules) -> Micros {
    let (count, total) = history.stalls(from, to);
    total.saturating_add(count.saturating_mul(rules.write_within))
}

/// The writes of one lane.
#[derive(Debug, Default)]
struct Lane {
    /// When each began.
    begun: Vec<Micros>,
    /// When each began that was acknowledged, and when the first one was that began then or later; by the beginning.
    acknowledged: Vec<(Micros, Micros)>,
}

pub(super) fn judge(history: &History, spans: &[Span<'_>], rules: &Rules) -> Verdict {
    let mut findings = Findings::of("availability");
    let faults: Vec<&Fault> = history.faults.iter().filter(|fault| fault.injection != Injection::Skipped).collect();
    writes_soon(history, spans, &faults, rules, &mut findings);
    healthy_soon(history, &faults, rules, &mut findings);
    equal_soon(history, spans, &faults, rules, &mut findings);
    findings.verdict(!faults.is_empty())
}

impl Lane {
    /// All lanes of the probes, by their numbers.
    fn all(spans: &[Span<'_>]) -> BTreeMap<u8, Lane> {
        let mut lanes: BTreeMap<u8, Lane> = BTreeMap::new();
        for span in spans {
            let Some(Part::Probe(lane)) = span.begun.part else { continue };
            if !matches!(span.operation(), Operation::Write { .. } | Operation::Enqueue { .. }) {
                continue;
            }
            let lane = lanes.entry(lane).or_default();
            lane.begun.push(span.begun.time);
            if let Some((event, _)) = span.ended.filter(|(event, _)| event.phase == Phase::Ok) {
                lane.acknowledged.push((span.begun.time, event.time));
            }
        }
        for lane in lanes.values_mut() {
            let mut first = Micros::MAX;
            for (_, ended) in lane.acknowledged.iter_mut().rev() {
                first = first.min(*ended);
                *ended = first;
            }
        }
        lanes
    }

    /// The first acknowledgement of a write that began at a time or later: what was acknowledged for an earlier one may have been
    /// decided before.
    fn first_after(&self, time: Micros) -> Option<Micros> {
        let place = self.acknowledged.partition_point(|(begun, _)| *begun < time);
        self.acknowledged.get(place).map(|(_, ended)| *ended)
    }

    /// Whether writes were begun all the time.
    fn tried(&self, from: Micros, to: Micros) -> bool {
        let within = self.begun.iter().copied().filter(|begun| (from..=to).contains(begun));
        let mut last = from;
        within.chain([to]).all(|begun| begun - std::mem::replace(&mut last, begun) <= HELD_UP)
    }

    /// The moment of some time from which on it took longest until a write was acknowledged, and when that was.
    fn slowest(&self, from: Micros, to: Micros) -> (Micros, Option<Micros>) {
        let begun = self.acknowledged.iter().map(|(begun, _)| *begun + 1);
        let moments = std::iter::once(from).chain(begun.filter(|begun| (from..=to).contains(begun)));
        let waits = moments.map(|moment| (moment, self.first_after(moment)));
        waits.max_by_key(|(moment, first)| first.map_or(Micros::MAX, |first| first - moment)).unwrap_or((from, None))
    }
}

fn named(lane: u8) -> String {
    if lane == 0 { "control".to_owned() } else { format!("the shard of probes-{lane}") }
}

/// From when until when a fault is looked at.
struct Window {
    from: Micros,
    /// The last moment from which on the time that is allowed runs.
    last: Micros,
    /// Until when a write that began at `from` must be acknowledged.
    deadline: Micros,
    /// When the next fault begins: from then on it is not certain any more what was to be expected.
    next: Micros,
}

impl Window {
    fn of(fault: &Fault, faults: &[&Fault], rules: &Rules) -> Window {
        // What ends early is over with its end: that may itself hold writes up once more.
        let is_short = fault.to - fault.from < rules.write_within;
        let deadline = if is_short { fault.to } else { fault.from }.saturating_add(rules.write_within);
        let any_moment = is_of(fault, &AT_ANY_MOMENT) && !is_short;
        let last = if any_moment { fault.to - rules.write_within } else { fault.from };
        let next = faults.iter().map(|other| other.from).filter(|from| *from > fault.from).min();
        Window { from: fault.from, last, deadline, next: next.unwrap_or(Micros::MAX) }
    }

    /// Until when a write must be acknowledged that begins at some moment of it.
    fn limit(&self, moment: Micros, rules: &Rules) -> Micros {
        self.deadline.max(moment.saturating_add(rules.write_within))
    }
}

/// What is found of one lane under one fault.
enum Found {
    /// It took so long, from the worst moment on.
    Wrote(Micros),
    /// From this moment on it was too late: when there was an acknowledgement, if ever.
    Late(Micros, Option<Micros>),
    /// The next fault came before it can be said.
    Overtaken,
    /// Nobody tried all the time.
    Untried,
    /// The machine stood still meanwhile.
    Stalled,
}

impl Lane {
    fn under(&self, window: &Window, history: &History, rules: &Rules) -> Found {
        let (_, end) = history.load();
        let (moment, first) = self.slowest(window.from, window.last);
        let limit = window.limit(moment, rules);
        match first.filter(|&at| at <= limit && at < window.next) {
            Some(at) => Found::Wrote(at - moment),
            None if limit >= window.next => Found::Overtaken,
            None if !self.tried(window.from, limit) => Found::Untried,
            None if first.unwrap_or(end) <= limit + excused(history, moment, limit, rules) => Found::Stalled,
            None => Found::Late(moment, first),
        }
    }
}

fn writes_soon(history: &History, spans: &[Span<'_>], faults: &[&Fault], rules: &Rules, findings: &mut Findings) {
    let lanes = Lane::all(spans);
    let (_, end) = history.load();
    let mut slowest: BTreeMap<u8, Micros> = BTreeMap::new();
    let mut any_measured = false;
    for fault in faults.iter().filter(|fault| fault.injection == Injection::Installed) {
        let window = Window::of(fault, faults, rules);
        if let Some(reason) = not_measured(fault, faults, &window, end, rules) {
            findings.count(reason, 1);
            continue;
        }
        let (mut measured, mut reason) = (false, None);
        for (number, lane) in &lanes {
            match lane.under(&window, history, rules) {
                Found::Wrote(took) => {
                    measured = true;
                    let slowest = slowest.entry(*number).or_default();
                    *slowest = (*slowest).max(took);
                }
                Found::Late(moment, first) => {
                    measured = true;
                    findings.violation(|| late(*number, fault, moment, first, rules));
                }
                Found::Overtaken => reason = Some("faults overtaken by the next"),
                Found::Stalled => reason = Some("faults while the machine stood still"),
                Found::Untried => {}
            }
        }
        any_measured |= measured;
        let without = if measured { "faults measured" } else { "faults without load" };
        findings.count(reason.unwrap_or(without), 1);
    }
    if let Some(alone) = struck_alone(faults, rules).filter(|_| !any_measured) {
        findings.void(format!(
            "after no fault it was measured how soon writes succeed again, though {} struck alone at {} and leaves \
             a majority",
            alone.nemesis,
            seconds(alone.from)
        ));
    }
    if let Some(slowest) = slowest.values().max() {
        findings.count("slowest write after a fault, ms", slowest / 1_000);
    }
    for (lane, slowest) in slowest {
        findings.count(&format!("slowest write after a fault to {}, ms", named(lane)), slowest / 1_000);
    }
}

/// Whether what another fault did, that began before, may not be over yet.
fn disturbs(other: &Fault, fault: &Fault, rules: &Rules) -> bool {
    let before = fault.from.saturating_sub(rules.write_within);
    let settled = other.to.saturating_add(if is_of(other, &MAKE_ANEW) { rules.moved_within } else { 0 });
    let was_before = other.to <= fault.from && fault.detail.contains(WAS_WELL);
    other.from <= fault.from && before <= settled && !was_before
}

/// A fault that should have been measured: no other nemesis was near, and its own leaves a majority.
fn struck_alone<'a>(faults: &[&'a Fault], rules: &Rules) -> Option<&'a Fault> {
    let leaves = |fault: &&&'a Fault| {
        fault.injection == Injection::Installed
            && is_of(fault, &LEAVE_A_MAJORITY)
            && !fault.detail.contains(NO_MAJORITY)
    };
    let is_near = |fault: &Fault, other: &Fault| {
        let until = fault.to.saturating_add(rules.write_within);
        disturbs(other, fault, rules) || (fault.from..=until).contains(&other.from)
    };
    let is_alone =
        |fault: &&&'a Fault| !faults.iter().any(|other| other.nemesis != fault.nemesis && is_near(fault, other));
    faults.iter().filter(leaves).find(is_alone).copied()
}

/// Why it is not certain what was to be expected of a fault.
fn not_measured(fault: &Fault, faults: &[&Fault], window: &Window, end: Micros, rules: &Rules) -> Option<&'static str> {
    if fault.detail.contains(NO_MAJORITY) {
        Some("faults without a majority")
    } else if !fault.detail.contains(MAJORITY) && !is_of(fault, &LEAVE_A_MAJORITY) {
        Some("faults that may leave no majority")
    } else if window.deadline > end {
        Some("faults at the end, not measured")
    } else if faults.iter().any(|other| !std::ptr::eq(*other, fault) && disturbs(other, fault, rules)) {
        Some("faults beside another")
    } else {
        None
    }
}

fn is_of(fault: &Fault, nemeses: &[&str]) -> bool {
    nemeses.contains(&fault.nemesis.as_str())
}

fn late(lane: u8, fault: &Fault, moment: Micros, first: Option<Micros>, rules: &Rules) -> String {
    let wrote = match first {
        Some(at) => format!("the next write to {} was acknowledged after {}", named(lane), seconds(at - moment)),
        None => format!("no write to {} was acknowledged any more", named(lane)),
    };
    let since = if moment == fault.from { String::new() } else { format!(" (from {} on)", seconds(moment)) };
    format!(
        "{wrote}, not within {}, of {} {} at {}{since} {}",
        seconds(rules.write_within),
        fault.nemesis,
        fault.kind,
        seconds(fault.from),
        fault.detail
    )
}

/// From the end of the last fault on, when was the cluster healthy again, while clients went on?
fn healthy_soon(history: &History, faults: &[&Fault], rules: &Rules, findings: &mut Findings) {
    let (Some(healed), false) = (history.reached(Stage::Healed), faults.is_empty()) else { return };
    // One that never was is told where it was waited for.
    let Some(healthy) = history.reached(Stage::Healthy) else { return };
    let took = healthy.saturating_sub(healed);
    findings.count("healthy after heal, ms", took / 1_000);
    let limit = limit_after(healed, history, faults, rules);
    if took > limit && took <= limit + excused(history, healed, healthy, rules) {
        findings.count("heals while the machine stood still", 1);
    } else if took > limit {
        findings.violation(|| {
            format!(
                "the cluster was healthy {} after all faults had ended at {}, not within {}",
                seconds(took),
                seconds(healed),
                seconds(limit)
            )
        });
    }
}

/// The replicas of all groups, each with the position and hash that it told in one round of asking, if it did.
type Round = BTreeMap<(u32, usize), Option<(u64, u64)>>;

/// How long after the heal all may take to be well.
fn limit_after(healed: Micros, history: &History, faults: &[&Fault], rules: &Rules) -> Micros {
    let anew = faults.iter().filter(|fault| is_of(fault, &MAKE_ANEW)).map(|fault| fault.to);
    let by_hand = history.notes.iter().filter_map(|note| match note {
        Note::Replaced { time, .. } => Some(*time),
        _ => None,
    });
    let is_moving = anew.chain(by_hand).any(|made| made.saturating_add(rules.moved_within) >= healed);
    if is_moving { rules.moved_within } else { rules.equal_within }
}

/// From the heal on, when had the replicas of each group been equal?
fn equal_soon(history: &History, spans: &[Span<'_>], faults: &[&Fault], rules: &Rules, findings: &mut Findings) {
    let Some(over) = faults.iter().map(|fault| fault.to).max() else { return };
    let healed = history.reached(Stage::Healed).unwrap_or(over);
    let limit = limit_after(healed, history, faults, rules);
    let deadline = healed.saturating_add(limit);
    let rounds = rounds(spans, healed);
    let (Some((first, _)), Some((last, round))) = (rounds.first(), rounds.last()) else {
        return not_measured_heal(history, findings);
    };
    match equal_at(&rounds) {
        Some(at) if at <= deadline => findings.count("equal after heal, ms", (at - healed) / 1_000),
        // Nobody asked in time, or went on asking for long enough.
        Some(_) if *first > deadline => not_measured_heal(history, findings),
        None if *last < deadline => not_measured_heal(history, findings),
        Some(at) if at <= deadline + excused(history, healed, at, rules) => {
            findings.count("heals while the machine stood still", 1);
        }
        Some(at) => findings.violation(|| {
            format!(
                "the {} replicas were equal {} after all faults had ended at {}, not within {}",
                many(round.len()),
                seconds(at - healed),
                seconds(healed),
                seconds(limit)
            )
        }),
        None => findings.violation(|| never_equal(round, last - healed)),
    }
}

/// Nobody saw whether all became equal in time. A run that did not come to the heal is void without that.
fn not_measured_heal(history: &History, findings: &mut Findings) {
    findings.count("heals not measured", 1);
    if history.reached(Stage::Healed).is_some() {
        findings.void("after the heal nobody saw how soon all replicas were equal".to_owned());
    }
}

/// When the last of the groups was first equal, of those that the last round names.
fn equal_at(rounds: &[(Micros, Round)]) -> Option<Micros> {
    let groups: BTreeSet<u32> = rounds.last()?.1.keys().map(|(group, _)| *group).collect();
    let first = |group| rounds.iter().find(|(_, round)| is_equal(round, group)).map(|(at, _)| *at);
    groups.into_iter().map(first).try_fold(0, |latest, at| Some(latest.max(at?)))
}

/// The replicas of one group in a round.
fn of_group(round: &Round, group: u32) -> impl Iterator<Item = (usize, Option<(u64, u64)>)> {
    round.range((group, 0)..=(group, usize::MAX)).map(|((_, node), at)| (*node, *at))
}

/// Whether the replicas of a group told the same position and hash, all of them.
fn is_equal(round: &Round, group: u32) -> bool {
    let mut told = of_group(round, group).map(|(_, at)| at);
    told.next().flatten().is_some_and(|first| told.all(|other| other == Some(first)))
}

/// What was told from some time on, round by round, each with its end. A round names every replica once, in order.
fn rounds(spans: &[Span<'_>], from: Micros) -> Vec<(Micros, Round)> {
    let mut rounds: Vec<(Micros, Round)> = Vec::new();
    for span in spans {
        let Operation::Hash { group, node, at } = *span.operation() else { continue };
        let Some((event, _)) = span.ended.filter(|(event, _)| event.time >= from) else { continue };
        let goes_on = |(_, round): &&mut (Micros, Round)| {
            round.last_key_value().is_none_or(|(replica, _)| *replica < (group, node))
        };
        let told = at.filter(|_| event.phase == Phase::Ok);
        match rounds.last_mut().filter(goes_on) {
            Some((end, round)) => {
                *end = event.time;
                round.insert((group, node), told);
            }
            None => rounds.push((event.time, Round::from([((group, node), told)]))),
        }
    }
    rounds
}

fn never_equal(round: &Round, after: Micros) -> String {
    let groups: BTreeSet<u32> = round.keys().map(|(group, _)| *group).collect();
    let named: Vec<String> = groups
        .into_iter()
        .filter(|group| !is_equal(round, *group))
        .take(NAMED)
        .map(|group| {
            let replicas = of_group(round, group).map(|(node, at)| match at {
                Some((position, hash)) => format!("node {node} {hash:016x} at {position}"),
                None => format!("node {node} nothing"),
            });
            format!("group {group}: {}", replicas.collect::<Vec<_>>().join(", "))
        })
        .collect();
    format!(
        "replicas were never equal at one position in the {} after all faults had ended: {}",
        seconds(after),
        named.join("; ")
    )
}
