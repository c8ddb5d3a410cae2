//! Sets: in the end a collection holds every point whose write was acknowledged, and none that was deleted or never written.
//!
//! A search for one point says nothing of the others. So at the end each collection is listed as a whole, range by range, and
//! each listing is held against all that was ever done to any point of the range, both ways. What has an unknown outcome may
//! be there or not. A point that was written and is in no range that was listed in full was not looked for: the run proves
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    presence::{Presence, When, Wrong, may_count},
    verdict::{Findings, many},
};
use crate::{
    event::{Operation, Phase, Stage, Verdict},
    history::{History, Span},
};

/// The answer to one listing.
struct Listing<'a> {
    from: u64,
    to: u64,
    rest: u64,
    points: &'a [u64],
    when: When,
    place: usize,
}

impl<'a> Listing<'a> {
    /// One that is whole.
    fn of(span: &Span<'a>) -> Option<Listing<'a>> {
        match span.operation() {
            Operation::List { from, to, rest, points: Some(points), missing: 0 } if span.outcome() == Phase::Ok => {
                let (when, place) = (When::of(span), span.begin);
                Some(Listing { from: *from, to: *to, rest: *rest, points, when, place })
            }
            _ => None,
        }
    }

    fn covers(&self, point: u64) -> bool {
        (self.from..self.to).contains(&point) && point % 2 == self.rest
    }
}

pub(super) fn judge(history: &History, spans: &[Span<'_>]) -> Verdict {
    let mut findings = Findings::of("set");
    let mut points: BTreeMap<u64, Presence> = BTreeMap::new();
    for span in spans.iter().filter(|span| may_count(span)) {
        match *span.operation() {
            Operation::Upsert { point } => points.entry(point).or_default().add(When::of(span)),
            Operation::Delete { point } => points.entry(point).or_default().remove(When::of(span)),
            _ => {}
        }
    }
    let listings: Vec<Listing<'_>> = spans.iter().filter_map(Listing::of).collect();
    let mut looked_for: BTreeSet<u64> = BTreeSet::new();
    for listing in &listings {
        look(listing, &points, &mut looked_for, &mut findings);
    }
    let missed = points.keys().filter(|point| !looked_for.contains(point));
    let (first, count) = (missed.clone().next(), missed.count());
    if let Some(first) = first.filter(|_| history.reached(Stage::Finals).is_some()) {
        findings.void(format!("{count} of {} points were not looked for at the end, such as {first}", points.len()));
    }
    findings.count("points looked for", many(looked_for.len()));
    findings.verdict(!listings.is_empty())
}

/// Holds one listing against what was done.
fn look(
    listing: &Listing<'_>,
    points: &BTreeMap<u64, Presence>,
    looked_for: &mut BTreeSet<u64>,
    findings: &mut Findings,
) {
    findings.count("listings", 1);
    let there: BTreeSet<u64> = listing.points.iter().copied().collect();
    if there.len() < listing.points.len() {
        findings.violation(|| format!("a point is listed twice (event {})", listing.place));
    }
    findings.count("points there", many(there.len()));
    let never = Presence::default();
    for point in &there {
        // What belongs to another collection or range is as strange here as what nobody wrote.
        let done = points.get(point).filter(|_| listing.covers(*point)).unwrap_or(&never);
        if let Some(wrong) = done.contradiction(&listing.when, true) {
            tell(*point, wrong, listing, findings);
        }
    }
    for (point, done) in points.range(listing.from..listing.to).filter(|(point, _)| listing.covers(**point)) {
        looked_for.insert(*point);
        if !done.is_certain(&listing.when) {
            findings.count("points that may be there or not", 1);
        } else if !there.contains(point)
            && let Some(wrong) = done.contradiction(&listing.when, false)
        {
            tell(*point, wrong, listing, findings);
        }
    }
}

fn tell(point: u64, wrong: Wrong, listing: &Listing<'_>, findings: &mut Findings) {
    let what = match wrong {
        Wrong::Lost => "was acknowledged and is not there",
        Wrong::Back => "was deleted and is there",
        Wrong::Unknown => "was never written and is there",
    };
    findings.violation(|| format!("point {point} {what}, by the listing of event {}", listing.place));
}
