//! Request ids: a request that is sent again is answered the same, so it took effect once.
//!
//! A request that was acknowledged must also be answered again, not refused: a repeat may end for want of a leader or of an
//! answer, but not for a reason that no further try changes. A node that belongs to no cluster knows of no request, and what
//! it says is no answer of the cluster: a client that is bound to an address meets one where a fresh node has just been started.

use std::collections::BTreeMap;

use quorate_client::v1::ErrorReason;

use super::verdict::Findings;
use crate::{
    event::{Operation, Phase, Verdict},
    history::Span,
};

pub(super) fn judge(spans: &[Span<'_>]) -> Verdict {
    let mut findings = Findings::of("request ids");
    // By payload: the first answer and its place.
    let mut answers: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
    let (mut repeats, mut answered) = (0_u64, 0_u64);
    let mut refused: Vec<(&Span<'_>, u64, &str)> = Vec::new();
    for span in spans {
        let (value, task, is_repeat) = match *span.operation() {
            Operation::Enqueue { value, task } => (value, task, false),
            Operation::Repeat { value, task } => (value, task, true),
            _ => continue,
        };
        if is_repeat {
            repeats += 1;
            answered += u64::from(span.outcome() == Phase::Ok);
            findings.count(&format!("repeats {:?}", span.outcome()).to_lowercase(), 1);
            match refused_for_good(span) {
                Some((ErrorReason::NotInitialized, _)) => findings.count("repeats asked outside of the cluster", 1),
                Some((_, reason)) => refused.push((span, value, reason)),
                None => {}
            }
        }
        let (Phase::Ok, Some(task), Some((_, at))) = (span.outcome(), task, span.ended) else { continue };
        let (first, place) = *answers.entry(value).or_insert((task, at));
        if first != task {
            findings.violation(|| {
                format!("the request for payload {value} was answered with task {first} (event {place}) and, repeated, with task {task} (event {at}): it took effect twice")
            });
        }
    }
    for (span, value, reason) in refused {
        // Spans come in the order of their beginnings, so the first answer may stand behind a later one's in the file.
        if let Some((task, place)) = answers.get(&value).filter(|(_, place)| *place < span.begin) {
            findings.violation(|| {
                format!("the request for payload {value} was answered with task {task} (event {place}) and, repeated at event {}, refused for good with {reason}", span.begin)
            });
        }
    }
    if repeats > 0 && answered == 0 {
        findings.void(format!("of {repeats} repeated requests none was answered"));
    }
    findings.verdict(repeats > 0)
}

/// Why a request was refused, if no further try of it could be answered.
fn refused_for_good<'a>(span: &Span<'a>) -> Option<(ErrorReason, &'a str)> {
    let (event, _) = span.ended.filter(|(event, _)| event.phase == Phase::Fail)?;
    let reason = event.error.as_deref()?;
    ErrorReason::from_name(reason).filter(|known| !known.is_retryable()).map(|known| (known, reason))
}
