//! Request ids: a request that is sent again is answered the same, so it took effect once.

use std::collections::BTreeMap;

use super::verdict::Findings;
use crate::{
    event::{Operation, Phase, Verdict},
    history::Span,
};

pub(super) fn judge(spans: &[Span<'_>]) -> Verdict {
    let mut findings = Findings::of("request ids");
    // By payload: the first answer and its place, and whether it was repeated at all.
    let mut answers: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
    let mut repeats = 0;
    for span in spans {
        let (value, task) = match *span.operation() {
            Operation::Enqueue { value, task } => (value, task),
            Operation::Repeat { value, task } => {
                repeats += 1;
                findings.count(&format!("repeats {:?}", span.outcome()).to_lowercase(), 1);
                (value, task)
            }
            _ => continue,
        };
        let (Phase::Ok, Some(task), Some((_, at))) = (span.outcome(), task, span.ended) else { continue };
        let (first, place) = *answers.entry(value).or_insert((task, at));
        if first != task {
            findings.violation(|| {
                format!("the request for payload {value} was answered with task {first} (event {place}) and, repeated, with task {task} (event {at}): it took effect twice")
            });
        }
    }
    findings.verdict(repeats > 0)
}
