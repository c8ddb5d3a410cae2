//! The machine behind the control group: `quorate_state::control::Control` and those who watch it.

use std::ops::ControlFlow;
use std::sync::Arc;

use quorate_raft::{Fault, LogPosition, Machine, Reply, RowBatch, StateStore};
use quorate_state::control::{Command, Control, Effect, Loader};
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

    fn tell(&self, applied: Applied) {
        // Nobody may be listening.
        let _ = self.shared.effects.send(applied);
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
            let effects: Arc<[Effect]> = std::mem::take(&mut self.effects).into();
            if effects.iter().any(|effect| matches!(effect, Effect::MembersChanged | Effect::ShardMapChanged)) {
                self.shared.map.send_replace(at.position);
            }
            self.tell(Applied { at: Position(at.position), effects, reloaded: false });
        }
        self.shared.applied.send_replace(at.position);
    }

    fn hash(&self) -> u64 {
        self.shared.state.read().hash()
    }

    fn load(&mut self, store: Arc<dyn StateStore>, at: Option<LogPosition>) -> Result<(), Fault> {
        let mut loader = Loader::new();
        for table in Control::TABLES {
            let mut refused = None;
            store
                .scan(table, &[], &mut |key, value| match loader.row(table, key, value) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        refused = Some(fault(error));
                        ControlFlow::Break(())
                    }
                })
                .map_err(fault)?;
            if let Some(refused) = refused {
                return Err(refused);
            }
        }
        let state = loader.finish().map_err(fault)?;
        let at = at.map_or(0, |at| at.position);
        {
            // Under one lock: who reads of this state must not take it for the one before, which may have had more or less.
            let mut current = self.shared.state.write();
            *current = state;
            self.shared.applied.send_replace(at);
        }
        self.effects.clear();
        self.tell(Applied { at: Position(at), effects: Arc::new([]), reloaded: true });
        self.shared.map.send_replace(at);
        Ok(())
    }
}
