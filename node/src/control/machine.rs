//! The machine behind the control group: `quorate_state::control::Control` and those who watch it.

use std::ops::ControlFlow;
use std::sync::Arc;

use quorate_raft::{Fault, LogPosition, Machine, Reply, RowBatch, StateStore};
use quorate_state::control::{Command, Control, Effect, TABLES};
use quorate_state::{Entry, Position, codec};

use super::{Applied, Shared};

/// Applies entries to the shared state and tells watchers once a batch is readable.
pub(super) struct ControlMachine {
    shared: Arc<Shared>,
    effects: Vec<Effect>,
}

impl ControlMachine {
    pub(super) fn new(shared: Arc<Shared>) -> ControlMachine {
        ControlMachine { shared, effects: Vec::new() }
    }

    fn tell(&self, applied: &Applied) {
        self.shared.subscribers.lock().retain(|subscriber| subscriber.send(applied.clone()).is_ok());
    }
}

fn fault(error: impl std::fmt::Display) -> Fault {
    Fault { reason: format!("control: {error}") }
}

impl Machine for ControlMachine {
    fn apply(&mut self, at: LogPosition, payload: &[u8], rows: &mut RowBatch) -> Result<Reply, Fault> {
        let entry: Entry<Command> = codec::decode(payload).map_err(fault)?;
        let outcome = self.shared.state.write().apply(Position(at.position), entry).map_err(fault)?;
        rows.changes.extend(outcome.rows.into_iter().map(|row| (row.table, row.key, row.value)));
        self.effects.extend(outcome.effects);
        Ok(Reply::new(outcome.replies))
    }

    fn applied(&mut self, at: LogPosition) {
        if !self.effects.is_empty() {
            let effects = Arc::new(std::mem::take(&mut self.effects));
            self.tell(&Applied::Effects { at: at.position, effects });
        }
        self.shared.applied.send_replace(at.position);
    }

    fn load(&mut self, store: Arc<dyn StateStore>, at: Option<LogPosition>) -> Result<(), Fault> {
        let mut rows = Vec::new();
        for table in TABLES {
            store
                .scan(table, &[], &mut |key, value| {
                    rows.push((table, key.to_vec(), value.to_vec()));
                    ControlFlow::Continue(())
                })
                .map_err(fault)?;
        }
        let state = Control::load(rows.iter().map(|(table, key, value)| (*table, key, value))).map_err(fault)?;
        *self.shared.state.write() = state;
        self.effects.clear();
        let at = at.map_or(0, |at| at.position);
        self.tell(&Applied::Reloaded { at });
        self.shared.applied.send_replace(at);
        Ok(())
    }
}
