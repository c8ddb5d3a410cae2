//! Leases and fencing: a task is held by one attempt at a time, and what an older attempt still does is refused.
//!
//! - *The fence*: once an effect by a token was accepted, none by an older token is accepted that begins after that.
//! - *One holder*: an agent that still believes that it holds a task, after a newer attempt of it was delivered, was lied to.
//!   The agent looks after the effect's beginning is recorded, and the delivery is recorded before, so the order is certain.
//!   An effect that was refused tells as much. An instant one does not tell when the agent looked and is not judged for this.
//! - *Refused is refused*: a completion that was refused as stale is not the one that the task ends with.

use std::collections::BTreeMap;

use super::verdict::Findings;
use crate::{
    event::{Operation, Phase, Token, Verdict},
    history::Span,
};

#[derive(Debug)]
struct Effect {
    begin: usize,
    end: usize,
    token: Token,
    held: bool,
    instant: bool,
    accepted: bool,
}

/// All that is known of the attempts of one task.
#[derive(Debug, Default)]
struct Attempts {
    /// Effects that ended.
    effects: Vec<Effect>,
    /// Where it is known that a token was granted.
    granted: Vec<(usize, Token)>,
    /// Tokens of completions, and what became of them.
    completions: Vec<(Token, Phase, usize)>,
    /// The tokens that the task ended with, as it was read, and where.
    results: Vec<(Token, usize)>,
}

impl Attempts {
    fn accepted(&self) -> impl Iterator<Item = &Effect> {
        self.effects.iter().filter(|effect| effect.accepted)
    }
}

pub(super) fn judge(spans: &[Span<'_>]) -> Verdict {
    let mut findings = Findings::of("leases");
    let mut tasks: BTreeMap<u64, Attempts> = BTreeMap::new();
    let mut unreadable = 0;
    for span in spans {
        if !take(span, &mut tasks, &mut findings) {
            unreadable += 1;
        }
    }
    if unreadable > 0 {
        findings.void(format!("{unreadable} operations have tokens that are not written as position.ordinal"));
    }
    for (task, attempts) in &mut tasks {
        fenced(*task, attempts, &mut findings);
        one_holder(*task, attempts, &mut findings);
        refused_is_refused(*task, attempts, &mut findings);
    }
    findings.verdict(!tasks.is_empty())
}

/// Takes in one operation; false if its token cannot be read.
fn take(span: &Span<'_>, tasks: &mut BTreeMap<u64, Attempts>, findings: &mut Findings) -> bool {
    let outcome = span.outcome();
    let end = span.ended.map_or(span.begin, |(_, at)| at);
    match span.operation() {
        Operation::Effect { task, token, held } => {
            let Ok(token) = token.parse() else { return false };
            let attempts = tasks.entry(*task).or_default();
            findings.count(&format!("effects {outcome:?}").to_lowercase(), 1);
            if span.ended.is_some() {
                let (begin, accepted) = (span.begin, outcome == Phase::Ok);
                let effect = Effect { begin, end, token, held: *held, instant: span.is_instant(), accepted };
                attempts.effects.push(effect);
            }
            // Whoever uses a token was granted it.
            attempts.granted.push((end, token));
        }
        Operation::Deliver { task, token, .. } if outcome == Phase::Ok => {
            let Ok(token) = token.parse() else { return false };
            tasks.entry(*task).or_default().granted.push((end, token));
        }
        Operation::Complete { task, token, .. } => {
            let Ok(token) = token.parse() else { return false };
            let attempts = tasks.entry(*task).or_default();
            attempts.completions.push((token, outcome, span.begin));
            findings.count("completions refused", u64::from(outcome == Phase::Fail));
        }
        Operation::Final { task, result: Some(result), .. } if outcome == Phase::Ok => {
            let Ok(token) = result.parse() else { return false };
            tasks.entry(*task).or_default().results.push((token, end));
        }
        _ => {}
    }
    true
}

/// The newest token of those with a place before another, for places that come in order.
struct Newest<'a> {
    told: &'a [(usize, Token)],
    newest: Option<(Token, usize)>,
}

impl Newest<'_> {
    fn before(&mut self, place: usize) -> Option<(Token, usize)> {
        while let Some((&(at, token), rest)) = self.told.split_first().filter(|((at, _), _)| *at < place) {
            if self.newest.is_none_or(|(newest, _)| token > newest) {
                self.newest = Some((token, at));
            }
            self.told = rest;
        }
        self.newest
    }
}

fn fenced(task: u64, attempts: &mut Attempts, findings: &mut Findings) {
    attempts.effects.sort_by_key(|effect| effect.begin);
    let mut ends: Vec<(usize, Token)> = attempts.accepted().map(|effect| (effect.end, effect.token)).collect();
    ends.sort_unstable();
    let mut newest = Newest { told: &ends, newest: None };
    for effect in attempts.accepted() {
        if let Some((token, at)) = newest.before(effect.begin).filter(|(token, _)| *token > effect.token) {
            findings.violation(|| {
                format!(
                    "an effect on task {task} by token {} was accepted at event {}, after one by the newer {token} (event {at})",
                    effect.token, effect.end
                )
            });
        }
    }
}

fn one_holder(task: u64, attempts: &mut Attempts, findings: &mut Findings) {
    attempts.granted.sort_unstable();
    let mut newest = Newest { told: &attempts.granted, newest: None };
    for effect in attempts.effects.iter().filter(|effect| effect.held) {
        if effect.instant {
            findings.count("effects not judged for overlap", 1);
            continue;
        }
        if let Some((token, at)) = newest.before(effect.begin).filter(|(token, _)| *token > effect.token) {
            findings.violation(|| {
                format!(
                    "task {task} was held twice: the attempt with token {} still held it in the effect of events {} to {}, but the newer {token} had been granted by event {at}",
                    effect.token, effect.begin, effect.end
                )
            });
        }
    }
}

fn refused_is_refused(task: u64, attempts: &Attempts, findings: &mut Findings) {
    for (result, read) in &attempts.results {
        let mut own = attempts.completions.iter().filter(|(token, ..)| token == result).peekable();
        let Some(&&(_, _, at)) = own.peek() else { continue };
        if own.all(|(_, outcome, _)| *outcome == Phase::Fail) {
            findings.violation(|| {
                format!("the completion of task {task} by token {result} was refused (begun at event {at}) and yet took effect (read at event {read})")
            });
        }
    }
}
