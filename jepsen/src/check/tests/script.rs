//! Small histories, written by hand.

use crate::{
    event::{Event, Fault, Injection, Micros, Operation, Phase},
    history::History,
};

/// A history in the making. Times are microseconds and must differ where the order matters.
#[derive(Debug, Default)]
pub(super) struct Script(History);

impl Script {
    pub(super) fn new() -> Script {
        Script::default()
    }

    fn event(mut self, process: u64, time: Micros, phase: Phase, operation: Operation) -> Script {
        self.0.events.push(Event { time, process, phase, operation, node: None, error: None });
        self
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

    pub(super) fn fault(mut self, from: Micros, to: Micros, injection: Injection, detail: &str) -> Script {
        let (nemesis, kind) = ("kill".to_owned(), "kill -9".to_owned());
        self.0.faults.push(Fault { nemesis, kind, from, to, injection, detail: detail.to_owned() });
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
        Operation::Final { state, result, .. } => (*state, *result) = (None, None),
        Operation::Hash { at, .. } => *at = None,
        _ => {}
    }
    asked
}
