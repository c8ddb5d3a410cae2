//! The queue as a whole: attempted, acknowledged, delivered, completed.
//!
//! Payloads are unique, so a payload is a task. Of each the checker asks:
//!
//! - *Nothing from nowhere*: what is delivered, read or completed was enqueued before, by a request or as the child of a
//!   completion, of which one at least did not fail for certain.
//! - *Nothing lost*: what was acknowledged is there at the end: finished, or not finished because the run ended early. When
//!   nothing has moved for long, what is not finished is stuck, and what was never seen is lost.
//! - *Enqueued once*: a payload has one task and a task one payload.
//! - *Delivered with a token of its own*: an attempt is delivered once, no two tasks share a token, later tokens are later
//!   attempts.
//! - *Completed exactly once*: no two tokens complete a task, none is granted after it was completed, and the state at the end
//!   tells the token that was acknowledged.
//! - *Children with their parents*: a child is there if its parent's completion was acknowledged, and only if that very
//!   completion took effect.

use std::collections::{BTreeMap, HashMap};

use super::verdict::{Findings, many, seconds};
use crate::{
    event::{Fault, Injection, Micros, Operation, Phase, Token, Verdict},
    history::{History, Span},
};

/// Something that enqueues: a request or the completion of a parent.
#[derive(Debug)]
struct Source {
    begin: usize,
    outcome: Phase,
    /// When it was acknowledged.
    ended: Option<Micros>,
    /// If it is a completion: the parent, and the token.
    parent: Option<(u64, Token)>,
}

#[derive(Debug)]
struct Delivery {
    place: usize,
    task: u64,
    token: Token,
    attempt: u32,
}

#[derive(Debug)]
struct Completion {
    place: usize,
    token: Token,
    outcome: Phase,
}

#[derive(Debug)]
struct Final {
    place: usize,
    time: Micros,
    task: u64,
    state: Option<String>,
    result: Option<Token>,
}

/// All that is known of one payload.
#[derive(Debug, Default)]
struct Work {
    sources: Vec<Source>,
    deliveries: Vec<Delivery>,
    completions: Vec<Completion>,
    finals: Vec<Final>,
    /// Task ids that were told for it, and where first.
    tasks: BTreeMap<u64, usize>,
}

/// All work of a history.
struct Ledger {
    works: BTreeMap<u64, Work>,
    /// When something of the queue moved last, or the last fault ended.
    moved: Micros,
    end: Micros,
    drain: Micros,
}

pub(super) fn judge(history: &History, spans: &[Span<'_>], drain: Micros) -> Verdict {
    let mut findings = Findings::of("queue");
    let ledger = Ledger::of(history, spans, drain, &mut findings);
    for (value, work) in &ledger.works {
        from_somewhere(*value, work, &mut findings);
        delivered_with_its_own_token(*value, work, &mut findings);
        completed_once(*value, work, &mut findings);
        ends_agree(*value, work, &mut findings);
        with_its_parent(*value, work, &ledger, &mut findings);
    }
    let mut unfinished = Unfinished::default();
    for (value, work) in &ledger.works {
        not_lost(*value, work, &ledger, &mut unfinished, &mut findings);
    }
    unfinished.tell(&mut findings);
    nothing_shared(&ledger, &mut findings);
    findings.verdict(!ledger.works.is_empty())
}

impl Ledger {
    fn of(history: &History, spans: &[Span<'_>], drain: Micros, findings: &mut Findings) -> Ledger {
        let struck = |fault: &&Fault| fault.injection != Injection::Skipped;
        let faults = history.faults.iter().filter(struck).map(|fault| fault.to).max().unwrap_or(0);
        let mut ledger = Ledger { works: BTreeMap::new(), moved: faults, end: history.end(), drain };
        let mut unreadable = 0;
        for span in spans {
            if !ledger.take(span, findings) {
                unreadable += 1;
            }
        }
        if unreadable > 0 {
            findings.void(format!("{unreadable} operations have tokens that are not written as position.ordinal"));
        }
        ledger
    }

    /// Takes in one operation; false if its token cannot be read.
    fn take(&mut self, span: &Span<'_>, findings: &mut Findings) -> bool {
        let (place, outcome) = (span.begin, span.outcome());
        let (end_place, ended) = match span.ended {
            Some((event, at)) => (at, Some(event.time)),
            None => (place, None),
        };
        match span.operation() {
            Operation::Enqueue { value, task } | Operation::Repeat { value, task } => {
                let work = self.works.entry(*value).or_default();
                work.sources.push(Source { begin: place, outcome, ended, parent: None });
                if let (Phase::Ok, Some(task)) = (outcome, task) {
                    work.tasks.entry(*task).or_insert(end_place);
                }
                let first = !matches!(span.operation(), Operation::Repeat { .. });
                findings.count("enqueues attempted", u64::from(first));
                findings.count("enqueues acknowledged", u64::from(first && outcome == Phase::Ok));
            }
            Operation::Deliver { value, task, token, attempt } if outcome == Phase::Ok => {
                let Ok(token) = token.parse() else { return false };
                let work = self.works.entry(*value).or_default();
                work.deliveries.push(Delivery { place: end_place, task: *task, token, attempt: *attempt });
                work.tasks.entry(*task).or_insert(end_place);
                findings.count("deliveries", 1);
            }
            Operation::Complete { value, task, token, child } => {
                let Ok(token) = token.parse() else { return false };
                let work = self.works.entry(*value).or_default();
                work.completions.push(Completion { place: end_place, token, outcome });
                work.tasks.entry(*task).or_insert(place);
                findings.count(&format!("completions {outcome:?}").to_lowercase(), 1);
                if let Some(child) = child {
                    let source = Source { begin: place, outcome, ended, parent: Some((*value, token)) };
                    self.works.entry(*child).or_default().sources.push(source);
                }
            }
            Operation::Final { value, task, state, result } if outcome == Phase::Ok => {
                let result = match result.as_ref().map(|token| token.parse()) {
                    Some(Err(_)) => return false,
                    Some(Ok(token)) => Some(token),
                    None => None,
                };
                let state = state.as_deref().map(plain).filter(|state| state != "not-found");
                let work = self.works.entry(*value).or_default();
                work.tasks.entry(*task).or_insert(end_place);
                work.finals.push(Final { place: end_place, time: ended.unwrap_or(0), task: *task, state, result });
                return true;
            }
            _ => return true,
        }
        self.moved = self.moved.max(ended.unwrap_or(span.begun.time));
        true
    }

    /// Whether nothing had moved for long at a time.
    fn was_quiet(&self, at: Micros) -> bool {
        at.saturating_sub(self.moved) >= self.drain
    }
}

/// A state without the trappings of its enum.
fn plain(state: &str) -> String {
    let state = state.to_ascii_lowercase().replace('_', "-");
    state.strip_prefix("task-state-").map_or_else(|| state.clone(), str::to_owned)
}

impl Work {
    fn acknowledged(&self) -> bool {
        self.sources.iter().any(|source| source.outcome == Phase::Ok)
    }

    /// The end that was read last.
    fn last(&self) -> Option<&Final> {
        self.finals.last()
    }

    /// The token that completed it, if that is known, and the place where it was told.
    fn completed_by(&self) -> Option<(Token, usize)> {
        let acknowledged = self.completions.iter().find(|completion| completion.outcome == Phase::Ok);
        let told = self.finals.iter().find_map(|end| Some((end.result?, end.place)));
        acknowledged.map(|completion| (completion.token, completion.place)).or(told)
    }

    /// The first trace of it besides requests to enqueue it.
    fn first_trace(&self) -> Option<(usize, &'static str)> {
        let delivered = self.deliveries.iter().map(|delivery| (delivery.place, "delivered"));
        let completed = self.completions.iter().filter(|completion| completion.outcome == Phase::Ok);
        let read = self.finals.iter().filter(|end| end.state.is_some()).map(|end| (end.place, "read"));
        delivered.chain(completed.map(|completion| (completion.place, "completed"))).chain(read).min()
    }
}

fn from_somewhere(value: u64, work: &Work, findings: &mut Findings) {
    let Some((place, how)) = work.first_trace() else { return };
    if work.sources.is_empty() {
        findings.violation(|| format!("payload {value} was {how} at event {place} and never enqueued"));
    } else if work.sources.iter().all(|source| source.outcome == Phase::Fail) {
        let begin = work.sources[0].begin;
        findings.violation(|| {
            format!("payload {value} was {how} at event {place}, but whatever enqueued it failed for certain (event {begin})")
        });
    } else if work.sources.iter().all(|source| source.outcome == Phase::Fail || source.begin > place) {
        findings.violation(|| format!("payload {value} was {how} at event {place}, before anything enqueued it"));
    }
}

fn delivered_with_its_own_token(value: u64, work: &Work, findings: &mut Findings) {
    let mut by_token: Vec<&Delivery> = work.deliveries.iter().collect();
    by_token.sort_by_key(|delivery| (delivery.task, delivery.token, delivery.place));
    for pair in by_token.windows(2).filter(|pair| pair[0].task == pair[1].task) {
        let (one, other) = (pair[0], pair[1]);
        if one.token == other.token {
            findings.violation(|| {
                format!(
                    "attempt {} of payload {value} was delivered twice, at events {} and {}",
                    one.token, one.place, other.place
                )
            });
        } else if one.attempt > other.attempt {
            findings.violation(|| {
                format!(
                    "payload {value}: token {} is older than {}, but its attempt {} is later than {}",
                    one.token, other.token, one.attempt, other.attempt
                )
            });
        }
    }
}

fn completed_once(value: u64, work: &Work, findings: &mut Findings) {
    let mut acknowledged = work.completions.iter().filter(|completion| completion.outcome == Phase::Ok);
    let first = acknowledged.next();
    if let (Some(first), Some(other)) =
        (first, acknowledged.find(|other| first.is_some_and(|f| f.token != other.token)))
    {
        findings.violation(|| {
            format!(
                "payload {value} was completed twice: by token {} at event {} and by {} at event {}",
                first.token, first.place, other.token, other.place
            )
        });
    }
    let Some((token, place)) = work.completed_by() else { return };
    if let Some(later) = work.deliveries.iter().find(|delivery| delivery.token > token) {
        findings.violation(|| {
            format!(
                "payload {value} was completed by token {token} (event {place}) although the newer {} was granted (event {})",
                later.token, later.place
            )
        });
    }
}

/// What was read at the end agrees with what was answered before.
fn ends_agree(value: u64, work: &Work, findings: &mut Findings) {
    let acknowledged = work.completions.iter().find(|completion| completion.outcome == Phase::Ok);
    for end in &work.finals {
        let (place, task) = (end.place, end.task);
        let state = end.state.as_deref().unwrap_or("not found");
        if let Some(done) = acknowledged.filter(|done| done.place < place) {
            if state != "completed" {
                findings.violation(|| {
                    format!("task {task} with payload {value} is {state} at event {place}, but its completion was acknowledged at event {}", done.place)
                });
            } else if end.result.is_some_and(|result| result != done.token) {
                findings.violation(|| {
                    format!("task {task} with payload {value} has another result at event {place} than the completion by {} that was acknowledged at event {}", done.token, done.place)
                });
            }
        }
        let unheard = |token: &Token| work.completions.iter().all(|completion| completion.token != *token);
        if let Some(token) = end.result.filter(unheard) {
            findings.violation(|| {
                format!(
                    "task {task} with payload {value} was completed by token {token}, which nobody used (event {place})"
                )
            });
        }
        if state == "completed" && work.completions.is_empty() {
            findings.violation(|| {
                format!("task {task} with payload {value} is completed at event {place}, and nobody completed it")
            });
        }
    }
}

/// A child is there only if the completion that carries it took effect.
fn with_its_parent(value: u64, work: &Work, ledger: &Ledger, findings: &mut Findings) {
    let Some((place, how)) = work.first_trace() else { return };
    let parents: Option<Vec<(u64, Token)>> =
        work.sources.iter().filter(|source| source.outcome != Phase::Fail).map(|source| source.parent).collect();
    let parents = parents.unwrap_or_default();
    let Some((parent, _)) = parents.first() else { return };
    let Some(end) = ledger.works.get(parent).and_then(Work::last) else { return };
    let completed = end.state.as_deref() == Some("completed");
    let by_another = end.result.is_some_and(|result| !parents.contains(&(*parent, result)));
    if parents.iter().all(|(other, _)| other == parent) && (!completed || by_another) {
        let state = end.state.as_deref().unwrap_or("not found");
        let by = end.result.map_or_else(String::new, |token| format!(" by {token}"));
        findings.violation(|| {
            format!("payload {value} was {how} at event {place} as a child of {parent}, which is {state}{by} by no completion with that child (event {})", end.place)
        });
    }
}

/// What was acknowledged and is not finished when the history ends.
#[derive(Debug, Default)]
struct Unfinished {
    unread: u64,
    running: u64,
}

impl Unfinished {
    fn tell(&self, findings: &mut Findings) {
        if self.unread > 0 {
            findings.void(format!(
                "{} acknowledged tasks were not read when the history ended; let the queue drain longer and read all tasks at the end",
                self.unread
            ));
        }
        if self.running > 0 {
            findings.void(format!(
                "{} tasks were not finished when they were read at the end; let the queue drain longer",
                self.running
            ));
        }
    }
}

fn not_lost(value: u64, work: &Work, ledger: &Ledger, unfinished: &mut Unfinished, findings: &mut Findings) {
    if !work.acknowledged() {
        return;
    }
    let at = work.sources.iter().filter(|source| source.outcome == Phase::Ok).filter_map(|source| source.ended).min();
    let at = seconds(at.unwrap_or(0));
    match work.last() {
        Some(end) => match end.state.as_deref() {
            None => findings.violation(|| {
                format!("task {} with payload {value} is not found at event {}, but was acknowledged at {at}", end.task, end.place)
            }),
            Some("completed") => findings.count("finished", 1),
            Some("dead-letter" | "cancelled") => findings.count("dead letters", 1),
            Some(state) if ledger.was_quiet(end.time) => findings.violation(|| {
                format!(
                    "task {} with payload {value} is stuck: acknowledged at {at}, still {state} at event {}, and nothing had moved since {}",
                    end.task,
                    end.place,
                    seconds(ledger.moved)
                )
            }),
            Some(_) => unfinished.running += 1,
        },
        None if work.first_trace().is_none() && ledger.was_quiet(ledger.end) => findings.violation(|| {
            format!("payload {value} is lost: acknowledged at {at}, never delivered, and nothing has moved since {}", seconds(ledger.moved))
        }),
        None => unfinished.unread += 1,
    }
}

/// One payload has one task, one task has one payload, one token belongs to one attempt.
fn nothing_shared(ledger: &Ledger, findings: &mut Findings) {
    let mut payloads: HashMap<u64, u64> = HashMap::new();
    let mut tokens: HashMap<Token, (u64, usize)> = HashMap::new();
    for (value, work) in &ledger.works {
        if work.tasks.len() > 1 {
            let told: Vec<String> = work.tasks.iter().map(|(task, at)| format!("{task} (event {at})")).collect();
            findings.violation(|| format!("payload {value} was enqueued more than once: as tasks {}", told.join(", ")));
        }
        for &task in work.tasks.keys() {
            if let Some(other) = payloads.insert(task, *value) {
                findings.violation(|| format!("task {task} has two payloads, {other} and {value}"));
            }
        }
        for delivery in &work.deliveries {
            let (other, place) = *tokens.entry(delivery.token).or_insert((delivery.task, delivery.place));
            if other != delivery.task {
                findings.violation(|| {
                    format!(
                        "tasks {other} and {} were granted with the same token {} (events {place} and {})",
                        delivery.task, delivery.token, delivery.place
                    )
                });
            }
        }
    }
    findings.count("payloads", many(ledger.works.len()));
}
