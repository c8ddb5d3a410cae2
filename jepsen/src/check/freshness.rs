//! Freshness of searches: an acknowledged point is found by every linearizable search that begins after, and a deleted one is
//! not.
//!
//! Each point is a register that is present or absent, and a complete search reads it. Two looks at each:
//!
//! - Plain rules give the sentence that people understand: the write after which nothing can explain the answer.
//! - Where they find nothing, the configurations of the register are walked through, which also sees what only several
//!   searches together show. A point whose unknown writes are too many for that is left to the rules, and counted.
//!
//! An answer with missing shards is counted and says nothing: it named what is missing.

use super::{
    register::{Access, Decision, Kind, decide, named},
    verdict::{Findings, many},
};
use crate::{
    event::{Operation, Phase, Verdict},
    history::{History, Span},
};

/// What a register of presence holds.
const ABSENT: u64 = 0;
const PRESENT: u64 = 1;

pub(super) fn judge(history: &History, spans: &[Span<'_>]) -> Verdict {
    let mut findings = Findings::of("search");
    let mut accesses: Vec<Access> = spans.iter().filter_map(|span| access(span, &mut findings)).collect();
    accesses.sort_unstable_by_key(|access| (access.key, access.from));
    let mut points = 0;
    for point in accesses.chunk_by(|a, b| a.key == b.key) {
        points += 1;
        if stale(point, history, spans, &mut findings) {
            continue;
        }
        match decide(point, Some(ABSENT)) {
            Decision::Linearizable => {}
            Decision::Undecided => findings.count("points judged by single searches only", 1),
            Decision::Not(_, places) => findings.violation(|| {
                format!(
                    "point {}: no order of its writes explains all searches together{}",
                    point[0].key,
                    named(history, spans, &places)
                )
            }),
        }
    }
    findings.count("points", points);
    let used = !accesses.is_empty() || spans.iter().any(|span| matches!(span.operation(), Operation::Search { .. }));
    findings.verdict(used)
}

fn access(span: &Span<'_>, findings: &mut Findings) -> Option<Access> {
    let outcome = span.outcome();
    let (key, kind) = match *span.operation() {
        Operation::Upsert { point } if outcome != Phase::Fail => (point, Kind::Write(PRESENT)),
        Operation::Delete { point } if outcome != Phase::Fail => (point, Kind::Write(ABSENT)),
        Operation::Search { point, found, missing } if outcome == Phase::Ok => {
            if missing > 0 {
                findings.count("answers with missing shards", 1);
                findings.count("missing shards named", u64::from(missing));
                return None;
            }
            let found = found?;
            findings.count(if found { "found" } else { "not found" }, 1);
            (point, Kind::Read(Some(if found { PRESENT } else { ABSENT })))
        }
        _ => return None,
    };
    Some(Access { key, kind, from: span.earliest(), to: span.latest(), place: span.begin })
}

/// What was done to a point, by what it does, so that each search is judged in logarithmic time.
struct Writes {
    /// Acknowledged ones by their end, each with the one among those before it that began last.
    acknowledged: Vec<(u64, Access)>,
    /// All by their beginning, each with the last end until there.
    attempted: Vec<(u64, u64)>,
}

impl Writes {
    fn of(point: &[Access], value: u64) -> Writes {
        let own = || point.iter().filter(move |access| access.kind == Kind::Write(value)).copied();
        let mut acknowledged: Vec<(u64, Access)> =
            own().filter(|access| !access.is_unknown()).map(|access| (access.to, access)).collect();
        acknowledged.sort_unstable_by_key(|(end, _)| *end);
        for at in 1..acknowledged.len() {
            if acknowledged[at - 1].1.from > acknowledged[at].1.from {
                acknowledged[at].1 = acknowledged[at - 1].1;
            }
        }
        let mut attempted: Vec<(u64, u64)> = own().map(|access| (access.from, access.to)).collect();
        attempted.sort_unstable();
        for at in 1..attempted.len() {
            attempted[at].1 = attempted[at].1.max(attempted[at - 1].1);
        }
        Writes { acknowledged, attempted }
    }

    /// Of those that were acknowledged before a search began, the one that began last.
    fn before(&self, search: &Access) -> Option<Access> {
        let after = self.acknowledged.partition_point(|(end, _)| *end < search.from);
        after.checked_sub(1).map(|last| self.acknowledged[last].1)
    }

    /// Whether one of them can have taken effect after another write and before the end of a search.
    fn between(&self, write: &Access, search: &Access) -> bool {
        let after = self.attempted.partition_point(|(begin, _)| *begin < search.to);
        after.checked_sub(1).is_some_and(|last| self.attempted[last].1 > write.from)
    }
}

/// Tells the searches of a point that a write contradicts, whatever else happened; whether there are any.
fn stale(point: &[Access], history: &History, spans: &[Span<'_>], findings: &mut Findings) -> bool {
    let (upserts, deletes) = (Writes::of(point, PRESENT), Writes::of(point, ABSENT));
    let mut any = false;
    for search in point {
        let (against, excuse, what) = match search.kind {
            Kind::Read(Some(PRESENT)) => (&deletes, &upserts, "was found, but was deleted before the search began"),
            Kind::Read(_) => (&upserts, &deletes, "was not found, but was acknowledged before the search began"),
            Kind::Write(_) | Kind::Cas(..) => continue,
        };
        let key = search.key;
        if let Some(write) = against.before(search).filter(|write| !excuse.between(write, search)) {
            any = true;
            findings.violation(|| format!("point {key} {what}{}", named(history, spans, &[write.place, search.place])));
        } else if search.kind == Kind::Read(Some(PRESENT))
            && excuse.attempted.iter().all(|(begin, _)| *begin > search.to)
        {
            any = true;
            findings.violation(|| {
                format!("point {key} was found and never written{}", named(history, spans, &[search.place]))
            });
        }
    }
    findings.count("searches", many(point.iter().filter(|access| access.kind.writes().is_none()).count()));
    any
}
