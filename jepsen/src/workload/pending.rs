//! Completions that were sent and are not answered, of an agent of the SDK.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::event::Operation;
use crate::history::Process;

/// What an agent's handlers have finished, by task. What is never answered ends as unknown when this is dropped, or when
/// the same task is finished again.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending(Arc<Mutex<HashMap<u64, Sent>>>);

#[derive(Debug)]
struct Sent {
    process: Process,
    operation: Operation,
}

impl Pending {
    /// The handler is done: its completion is on the way from now on.
    pub(super) fn begin(&self, mut process: Process, task: u64, operation: Operation) {
        process.invoke(operation.clone(), None);
        self.0.lock().insert(task, Sent { process, operation });
    }

    /// The completion of a task was acknowledged. Returns what it was.
    pub(super) fn acknowledged(&self, task: u64) -> Option<Operation> {
        let Sent { mut process, operation } = self.0.lock().remove(&task)?;
        process.ok(operation.clone());
        Some(operation)
    }
}
