//! Small histories, written by hand.

use crate::{
    event::{Event, Fault, Injection, Micros, Note, Operation, Part, Phase, Stage},
    history::History,
};

/// A history in the making. Times are microseconds and must differ where the order matters.
#[derive(Debug, Default)]
pub(super) struct Script(History, Option<Part>);

impl Script {
    pub(super) fn new() -> Script {
        Script::default()
    }

    fn event(mut self, process: u64, time: Micros, phase: Phase, operation: Operation) -> Script {
        self.0.events.push(Event { time, process, phase, operation, part: self.1, node: None, error: None });
        self
    }

    /// What follows belongs to that part of the run.
    pub(super) fn by(self, part: Part) -> Script {
        Script(self.0, Some(part))
    }

    /// The last event failed for this reason.
    pub(super) fn because(mut self, reason: &str) -> Script {
        self.0.events.last_mut().expect("an event").error = Some(reason.to_owned());
        self
    }

    pub(super) fn note(mut self, note: Note) -> Script {
        self.0.notes.push(note);
        self
    }

    pub(super) fn reached(self, stage: Stage, time: Micros) -> Script {
        self.note(Note::Reached { stage, time })
    }

    /// An operation that ends somehow.
    pub(super) fn op(self, process: u64, from: Micros, to: Micros, phase: Phase, operation: Operation) -> Script {
        let begun = asked(&operation);
        self.event(process, from, Phase::Invoke, begun).event(process, to, phase, operation)
    }

    pub(super) fn ok(self, process: u64, from: Micros, to: Micros, operation: Operation) -> Script {
        self.op(process, from, to, Phase::Ok, operation)
    }

    pub(super) fn fail(self, process: u64, from: Micros, to: Micros, operation: Operation) -> Script {
        self.op(process, from, to, Phase::Fail, operation)
    }

    pub(super) fn info(self, process: u64, from: Micros, to: Micros, operation: Operation) -> Script {
        self.op(process, from, to, Phase::Info, operation)
    }

    pub(super) fn instant(self, process: u64, at: Micros, operation: Operation) -> Script {
        self.event(process, at, Phase::Ok, operation)
    }

    pub(super) fn fault(self, from: Micros, to: Micros, injection: Injection, detail: &str) -> Script {
        self.fault_of("kill", from, to, injection, detail)
    }

    pub(super) fn fault_of(
        mut self,
        nemesis: &str,
        from: Micros,
        to: Micros,
        injection: Injection,
        detail: &str,
    ) -> Script {
        let (nemesis, kind) = (nemesis.to_owned(), format!("{nemesis} it"));
        self.0.faults.push(Fault { nemesis, kind, from, to, injection, detail: detail.to_owned() });
        self
    }

    /// The last fault was of this kind of its nemesis.
    pub(super) fn of_kind(mut self, kind: &str) -> Script {
        self.0.faults.last_mut().expect("a fault").kind = kind.to_owned();
        self
    }

    /// The history, in the order of its times.
    pub(super) fn build(mut self) -> History {
        self.0.events.sort_by_key(|event| event.time);
        self.0.validate().expect("a script is well formed");
        self.0
    }
}

/// The operation before it has an answer.
fn asked(operation: &Operation) -> Operation {
    let mut asked = operation.clone();
    match &mut asked {
        Operation::Read { value, .. } => *value = None,
        Operation::Enqueue { task, .. } | Operation::Repeat { task, .. } => *task = None,
        Operation::Search { found, missing, .. } => (*found, *missing) = (None, 0),
        Operation::List { points, missing, .. } => (*points, *missing) = (None, 0),
        Operation::Members { ids, .. } => *ids = None,
        Operation::Final { state, result, .. } => (*state, *result) = (None, None),
        Operation::Hash { at, .. } => *at = None,
        _ => {}
    }
    asked
}
