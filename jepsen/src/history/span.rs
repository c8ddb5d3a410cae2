//! Operations from beginning to end; refuses a history that is not well formed.

use std::collections::HashMap;

use super::{Error, History};
use crate::event::{Event, Operation, Phase};

/// One operation: its beginning and, if it has one, its end.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// How it began. For something instant, which only has an end, this is the end as well.
    pub begun: &'a Event,
    /// The place of the beginning among the events.
    pub begin: usize,
    /// How it ended, and the place of that; `None` if the history ends before.
    pub ended: Option<(&'a Event, usize)>,
}

impl<'a> Span<'a> {
    /// What became of it; [`Phase::Info`] if it never ended.
    pub fn outcome(&self) -> Phase {
        self.ended.map_or(Phase::Info, |(event, _)| event.phase)
    }

    /// The operation with its answer, if there is one.
    pub fn operation(&self) -> &'a Operation {
        &self.ended.map_or(self.begun, |(event, _)| event).operation
    }

    /// Who did it.
    pub fn process(&self) -> u64 {
        self.begun.process
    }

    /// Whether it is an event without a beginning.
    pub fn is_instant(&self) -> bool {
        self.ended.is_some_and(|(_, end)| end == self.begin)
    }

    /// From when on it may have taken effect, on a line where no two operations' beginnings and ends fall together and which
    /// begins after 0.
    pub fn earliest(&self) -> u64 {
        2 * place(self.begin) + 1
    }

    /// Until when it took effect, on the same line. What is unknown may take effect at any time: `u64::MAX`.
    pub fn latest(&self) -> u64 {
        match self.ended {
            Some((event, end)) if event.phase != Phase::Info => 2 * place(end) + 2,
            _ => u64::MAX,
        }
    }
}

fn place(place: usize) -> u64 {
    u64::try_from(place).expect("a place in memory fits 64 bits")
}

/// Where a process is.
enum State {
    Idle,
    /// It has an operation pending: its place among the spans.
    Pending(usize),
    /// Its last operation ended as unknown, so it must not go on.
    Over,
}

impl History {
    /// Pairs each beginning with its end, in the order of the beginnings.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the history is not well formed: times go back, a process has two operations at once, an
    /// operation ends twice, ends as another one than it began, or ends well without having begun (only what comes unasked may
    /// do that), a process goes on after an unknown end, or a fault ends before it begins.
    pub fn spans(&self) -> Result<Vec<Span<'_>>, Error> {
        let mut spans = Vec::with_capacity(self.events.len() / 2 + 1);
        let mut processes: HashMap<u64, State> = HashMap::new();
        let mut last = 0;
        for (at, event) in self.events.iter().enumerate() {
            let malformed = |what: String| Err(Error::Malformed { place: at, what });
            if event.time < last {
                return malformed(format!("its time {} is before {last}, that of the event before it", event.time));
            }
            last = event.time;
            let state = processes.entry(event.process).or_insert(State::Idle);
            match (event.phase, &*state) {
                (_, State::Over) => {
                    return malformed(format!(
                        "process {} goes on after an operation of unknown outcome",
                        event.process
                    ));
                }
                (Phase::Invoke, State::Pending(pending)) => {
                    let begin = spans.get(*pending).map_or(0, |span: &Span<'_>| span.begin);
                    return malformed(format!(
                        "process {} begins an operation while that of event {begin} is pending",
                        event.process
                    ));
                }
                (Phase::Invoke, State::Idle) => {
                    *state = State::Pending(spans.len());
                    spans.push(Span { begun: event, begin: at, ended: None });
                }
                (phase, State::Pending(pending)) => {
                    let span = &mut spans[*pending];
                    if !same(&span.begun.operation, &event.operation) {
                        return malformed(format!(
                            "process {} began {:?} and ends {:?}",
                            event.process, span.begun.operation, event.operation
                        ));
                    }
                    span.ended = Some((event, at));
                    *state = if phase == Phase::Info { State::Over } else { State::Idle };
                }
                (Phase::Ok, State::Idle) if comes_unasked(&event.operation) => {
                    spans.push(Span { begun: event, begin: at, ended: Some((event, at)) });
                }
                (_, State::Idle) => {
                    return malformed(format!(
                        "process {} ends {:?}, which it never began",
                        event.process, event.operation
                    ));
                }
            }
        }
        self.faults_are_well_formed()?;
        Ok(spans)
    }

    /// Whether the history is well formed; see [`History::spans`].
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn validate(&self) -> Result<(), Error> {
        self.spans().map(|_| ())
    }

    fn faults_are_well_formed(&self) -> Result<(), Error> {
        match self.faults.iter().find(|fault| fault.to < fault.from) {
            None => Ok(()),
            Some(fault) => Err(Error::Malformed {
                place: self.events.len(),
                what: format!(
                    "fault {} of {} ends at {} before it begins at {}",
                    fault.kind, fault.nemesis, fault.to, fault.from
                ),
            }),
        }
    }
}

/// Whether an operation may end without having begun.
fn comes_unasked(operation: &Operation) -> bool {
    use Operation as O;
    matches!(operation, O::Deliver { .. } | O::Effect { .. } | O::Hash { .. } | O::Final { .. })
}

/// Whether an end belongs to a beginning: all that is asked for is equal.
fn same(begun: &Operation, ended: &Operation) -> bool {
    use Operation as O;
    match (begun, ended) {
        (O::Read { key: a, .. }, O::Read { key: b, .. }) => a == b,
        (O::Enqueue { value: a, .. }, O::Enqueue { value: b, .. })
        | (O::Repeat { value: a, .. }, O::Repeat { value: b, .. }) => a == b,
        (O::Search { point: a, .. }, O::Search { point: b, .. }) => a == b,
        (O::Effect { task: a, token: s, .. }, O::Effect { task: b, token: t, .. }) => (a, s) == (b, t),
        (O::Final { value: a, task: s, .. }, O::Final { value: b, task: t, .. }) => (a, s) == (b, t),
        (O::List { from: a, to: s, rest: m, .. }, O::List { from: b, to: t, rest: n, .. }) => (a, s, m) == (b, t, n),
        (O::Members { node: a, .. }, O::Members { node: b, .. }) => a == b,
        (O::Hash { group: a, node: s, .. }, O::Hash { group: b, node: t, .. }) => (a, s) == (b, t),
        (a, b) => a == b,
    }
}
