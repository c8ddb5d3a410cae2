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
//! The end of a fault changes the cluster once more: who was away comes back, perhaps with a higher term. So a fault that
//! lasted longer than the time that is allowed is looked at twice, from its beginning and from its end; one that was shorter
//! has its time from its end on. Where a fault changes the cluster again and again, as `flapping` does, the time that is allowed
//! begins anew with each change, and is held against the last one.
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
    struck::Struck,
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
const AT_ANY_MOMENT: [&str; 7] =
    ["restart-loop", "rolling-restart", "failpoint", "fsync-error", "join", "leave", "replace"];
/// Those of them that change the links more often than the time that is allowed ends: it begins anew with each change, so that
/// nothing is asked before the last one.
const NEVER_STILL: [&str; 1] = ["flapping"];
/// Nemeses after which replicas are made anew: a cluster is not whole for a while, and one more fault may be one too many; and
/// after the heal it may take as long as that takes until all is well.
const MAKE_ANEW: [&str; 5] = ["corruption", "amnesia", "join", "leave", "replace"];
/// Kinds of `failpoint` that are a join, of a node that ends within it...
const FAILPOINTS_OF_A_JOIN: [&str; 3] =
    ["failpoint admitted", "failpoint control_started", "failpoint cluster_adopted"];
/// ... unless their detail says that the node founded a cluster of its own, which passes the same points.
const OF_A_FOUNDING: &str = ", Founding";

/// Until when something may take that is due at `deadline`: later by as long as the machine stood still since `from`, and for
/// each time by as much as an election may take. What stood still only after it was due excuses nothing.
pub(super) fn extended(history: &History, from: Micros, deadline: Micros, rules: &Rules) -> Micros {
    let since = history.stalls().into_iter().filter(|(_, ended)| *ended >= from);
    since.fold(deadline, |until, (begun, ended)| match begun <= until {
        true => until.saturating_add(ended - begun.max(from)).saturating_add(rules.write_within),
        false => until,
    })
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
    let faults = Struck::all(history);
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

    /// The moments of some time from which on it may have taken long until a write was acknowledged: its beginning, and after
    /// each write that was acknowledged. From any other moment on it took less long than from the one before it.
    fn moments(&self, from: Micros, to: Micros) -> impl Iterator<Item = Micros> {
        let begun = self.acknowledged.iter().map(|(begun, _)| *begun + 1);
        std::iter::once(from).chain(begun.filter(move |begun| *begun > from && *begun <= to))
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
    /// The windows of a fault, each with what it is called in the counts: one from its beginning, and one from its end where
    /// that comes after the time that is allowed.
    fn of(fault: &Struck<'_>, faults: &[Struck<'_>], rules: &Rules) -> Vec<(&'static str, Window)> {
        if is_of(fault, &NEVER_STILL) {
            let change = fault.last_change;
            return vec![("", Window::new(change, change, change, faults, rules))];
        }
        // What ends early is over with its end: that may itself hold writes up once more.
        let is_short = fault.to - fault.from < rules.write_within;
        let last = match (is_of(fault, &AT_ANY_MOMENT), is_short) {
            (false, _) => fault.from,
            (true, true) => fault.to,
            (true, false) => fault.to - rules.write_within,
        };
        let counted_from = if is_short { fault.to } else { fault.from };
        let mut windows = vec![("", Window::new(fault.from, last, counted_from, faults, rules))];
        if !is_short {
            windows.push(("ends of ", Window::new(fault.to, fault.to, fault.to, faults, rules)));
        }
        windows
    }

    /// `counted_from`: from when on the time runs that is allowed for a write that began at `from`.
    fn new(from: Micros, last: Micros, counted_from: Micros, faults: &[Struck<'_>], rules: &Rules) -> Window {
        let next = faults.iter().map(|other| other.begun).filter(|other| *other > from).min().unwrap_or(Micros::MAX);
        // Of a moment whose time ends after that nothing could be said; those before it must not be hidden by it.
        let last = last.min(next.saturating_sub(rules.write_within)).max(from);
        Window { from, last, deadline: counted_from.saturating_add(rules.write_within), next }
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
    /// What is found from all moments of a window: the worst that is certain, else what keeps it from being so, else how long
    /// it took at most.
    fn under(&self, window: &Window, history: &History, rules: &Rules) -> Found {
        let mut late: Option<(Micros, Micros, Option<Micros>)> = None;
        let (mut took, mut unclear) = (0, None);
        for moment in self.moments(window.from, window.last) {
            match self.found_since(moment, window, history, rules) {
                Found::Wrote(wait) => took = took.max(wait),
                Found::Late(moment, first) => {
                    let wait = first.map_or(Micros::MAX, |first| first - moment);
                    if late.is_none_or(|(longest, ..)| wait > longest) {
                        late = Some((wait, moment, first));
                    }
                }
                other => unclear = unclear.or(Some(other)),
            }
        }
        let late = late.map(|(_, moment, first)| Found::Late(moment, first));
        late.or(unclear).unwrap_or(Found::Wrote(took))
    }

    /// What is found from one moment of a window on.
    fn found_since(&self, moment: Micros, window: &Window, history: &History, rules: &Rules) -> Found {
        let (_, end) = history.load();
        let first = self.first_after(moment);
        let limit = window.limit(moment, rules);
        match first.filter(|&at| at <= limit && at < window.next) {
            Some(at) => Found::Wrote(at - moment),
            None if limit >= window.next => Found::Overtaken,
            None if !self.tried(moment, limit) => Found::Untried,
            None if first.unwrap_or(end) <= extended(history, moment, limit, rules) => Found::Stalled,
            None => Found::Late(moment, first),
        }
    }
}

/// What is held against one another, and what came of it so far.
struct Look<'a> {
    history: &'a History,
    rules: &'a Rules,
    lanes: BTreeMap<u8, Lane>,
    /// How long a write to each lane took at most.
    slowest: BTreeMap<u8, Micros>,
}

impl Look<'_> {
    /// Looks at all lanes in one window of a fault. Says whether anything was measured, and how the window counts. `told` has
    /// the outages of the fault that were told before, by their ends: one that goes on over its end is one.
    fn at(
        &mut self,
        fault: &Fault,
        window: &Window,
        told: &mut BTreeSet<(u8, Option<Micros>)>,
        findings: &mut Findings,
    ) -> (bool, &'static str) {
        let (mut measured, mut reason) = (false, None);
        for (number, lane) in &self.lanes {
            match lane.under(window, self.history, self.rules) {
                Found::Wrote(took) => {
                    measured = true;
                    let slowest = self.slowest.entry(*number).or_default();
                    *slowest = (*slowest).max(took);
                }
                Found::Late(moment, first) => {
                    measured = true;
                    if told.insert((*number, first)) {
                        findings.violation(|| late(*number, fault, moment, first, self.rules));
                    }
                }
                Found::Overtaken => reason = Some("faults overtaken by the next"),
                Found::Stalled => reason = Some("faults while the machine stood still"),
                Found::Untried => {}
            }
        }
        let without = if measured { "faults measured" } else { "faults without load" };
        (measured, reason.unwrap_or(without))
    }
}

fn writes_soon(history: &History, spans: &[Span<'_>], faults: &[Struck<'_>], rules: &Rules, findings: &mut Findings) {
    let mut look = Look { history, rules, lanes: Lane::all(spans), slowest: BTreeMap::new() };
    let (_, end) = history.load();
    let mut any_measured = false;
    for fault in faults.iter().filter(|fault| fault.injection == Injection::Installed) {
        let mut told = BTreeSet::new();
        for (whose, window) in Window::of(fault, faults, rules) {
            let (measured, reason) = match not_measured(fault, faults, &window, end, rules) {
                Some(reason) => (false, reason),
                None => look.at(fault, &window, &mut told, findings),
            };
            // That a fault ends well does not show what it did.
            any_measured |= measured && whose.is_empty();
            findings.count(&format!("{whose}{reason}"), 1);
        }
    }
    if let Some(alone) = struck_alone(faults, rules).filter(|_| !any_measured) {
        findings.void(format!(
            "after no fault it was measured how soon writes succeed again, though {} struck alone at {} and leaves \
             a majority",
            alone.nemesis,
            seconds(alone.from)
        ));
    }
    if let Some(slowest) = look.slowest.values().max() {
        findings.count("slowest write after a fault, ms", slowest / 1_000);
    }
    for (lane, slowest) in look.slowest {
        findings.count(&format!("slowest write after a fault to {}, ms", named(lane)), slowest / 1_000);
    }
}

/// Whether what another fault did, that began before a moment of this one, may not be over yet at that moment.
fn disturbs(other: &Struck<'_>, fault: &Fault, moment: Micros, rules: &Rules) -> bool {
    let before = moment.saturating_sub(rules.write_within);
    let settled = other.to.saturating_add(if makes_anew(other) { rules.moved_within } else { 0 });
    let was_before = other.to <= fault.from && fault.detail.contains(WAS_WELL);
    other.begun <= moment && before <= settled && !was_before
}

/// A fault that should have been measured: no other nemesis was near, and its own leaves a majority.
fn struck_alone<'a>(faults: &'a [Struck<'a>], rules: &Rules) -> Option<&'a Struck<'a>> {
    let leaves = |fault: &&Struck<'_>| {
        fault.injection == Injection::Installed
            && is_of(fault, &LEAVE_A_MAJORITY)
            && !fault.detail.contains(NO_MAJORITY)
    };
    let is_near = |fault: &Struck<'_>, other: &Struck<'_>| {
        let until = fault.to.saturating_add(rules.write_within);
        disturbs(other, fault, fault.from, rules) || (fault.from..=until).contains(&other.begun)
    };
    let is_alone =
        |fault: &&Struck<'_>| !faults.iter().any(|other| other.nemesis != fault.nemesis && is_near(fault, other));
    faults.iter().filter(leaves).find(is_alone)
}

/// Why it is not certain what was to be expected of a fault in one of its windows.
fn not_measured(
    fault: &Struck<'_>,
    faults: &[Struck<'_>],
    window: &Window,
    end: Micros,
    rules: &Rules,
) -> Option<&'static str> {
    if fault.detail.contains(NO_MAJORITY) {
        Some("faults without a majority")
    } else if !fault.detail.contains(MAJORITY) && !is_of(fault, &LEAVE_A_MAJORITY) {
        Some("faults that may leave no majority")
    } else if window.deadline > end {
        Some("faults at the end, not measured")
    } else if faults.iter().any(|other| !std::ptr::eq(other, fault) && disturbs(other, fault, window.from, rules)) {
        Some("faults beside another")
    } else {
        None
    }
}

fn is_of(fault: &Fault, nemeses: &[&str]) -> bool {
    nemeses.contains(&fault.nemesis.as_str())
}

/// Whether replicas are made anew in the course of a fault or after it.
fn makes_anew(fault: &Fault) -> bool {
    let is_join = FAILPOINTS_OF_A_JOIN.contains(&fault.kind.as_str()) && !fault.detail.contains(OF_A_FOUNDING);
    is_of(fault, &MAKE_ANEW) || is_join
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
fn healthy_soon(history: &History, faults: &[Struck<'_>], rules: &Rules, findings: &mut Findings) {
    let (Some(healed), false) = (history.reached(Stage::Healed), faults.is_empty()) else { return };
    // One that never was is told where it was waited for.
    let Some(healthy) = history.reached(Stage::Healthy) else { return };
    let took = healthy.saturating_sub(healed);
    findings.count("healthy after heal, ms", took / 1_000);
    let limit = limit_after(healed, history, rules);
    if took > limit && healthy <= extended(history, healed, healed.saturating_add(limit), rules) {
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
pub(super) fn limit_after(healed: Micros, history: &History, rules: &Rules) -> Micros {
    let struck = history.faults.iter().filter(|fault| fault.injection != Injection::Skipped);
    let anew = struck.filter(|fault| makes_anew(fault)).map(|fault| fault.to);
    let by_hand = history.notes.iter().filter_map(|note| match note {
        Note::Replaced { time, .. } => Some(*time),
        _ => None,
    });
    let is_moving = anew.chain(by_hand).any(|made| made.saturating_add(rules.moved_within) >= healed);
    if is_moving { rules.moved_within } else { rules.equal_within }
}

/// From the heal on, when had the replicas of each group been equal?
fn equal_soon(history: &History, spans: &[Span<'_>], faults: &[Struck<'_>], rules: &Rules, findings: &mut Findings) {
    let Some(over) = faults.iter().map(|fault| fault.to).max() else { return };
    let healed = history.reached(Stage::Healed).unwrap_or(over);
    let limit = limit_after(healed, history, rules);
    let deadline = healed.saturating_add(limit);
    let excused = extended(history, healed, deadline, rules);
    let rounds = rounds(spans, healed);
    let (Some((first, _)), Some((last, round))) = (rounds.first(), rounds.last()) else {
        return not_measured_heal(history, findings);
    };
    match equal_at(&rounds) {
        Some(at) if at <= deadline => findings.count("equal after heal, ms", (at - healed) / 1_000),
        // Nobody asked in time, or went on asking for long enough.
        Some(_) if *first > deadline => not_measured_heal(history, findings),
        None if *last < excused => not_measured_heal(history, findings),
        Some(at) if at <= excused => {
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
