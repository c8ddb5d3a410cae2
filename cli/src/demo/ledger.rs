//! What was acknowledged to the demo, so that it can be looked for at the end.

use std::collections::BTreeMap;

use anyhow::Result;
use parking_lot::Mutex;
use quorate_client::Client;

use crate::task::is_completed;

#[derive(Default)]
pub(super) struct Ledger(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    /// Acknowledged tasks with the number of completions that were acknowledged for each.
    tasks: BTreeMap<u64, u64>,
    /// Acknowledged completions by role.
    by_role: BTreeMap<String, usize>,
}

impl Ledger {
    pub(super) fn enqueued(&self, tasks: &[u64]) {
        let mut entries = self.0.lock();
        for task in tasks {
            entries.tasks.entry(*task).or_default();
        }
    }

    pub(super) fn completed_by(&self, role: &str, task: u64, children: &[u64]) {
        let mut entries = self.0.lock();
        *entries.tasks.entry(task).or_default() += 1;
        for child in children {
            entries.tasks.entry(*child).or_default();
        }
        *entries.by_role.entry(role.to_owned()).or_default() += 1;
    }

    pub(super) fn done(&self, role: &str) -> usize {
        self.0.lock().by_role.get(role).copied().unwrap_or_default()
    }

    pub(super) fn tasks(&self) -> usize {
        self.0.lock().tasks.len()
    }

    pub(super) fn completed(&self) -> usize {
        self.0.lock().tasks.values().filter(|times| **times > 0).count()
    }

    pub(super) fn duplicate_completions(&self) -> u64 {
        self.0.lock().tasks.values().map(|times| times.saturating_sub(1)).sum()
    }

    /// Acknowledged tasks that are not completed. One whose acknowledgement was lost with a leader is found by asking.
    pub(super) async fn lost_tasks(&self, client: &Client) -> Result<usize> {
        let unseen: Vec<u64> =
            self.0.lock().tasks.iter().filter(|(_, times)| **times == 0).map(|(task, _)| *task).collect();
        let mut lost = 0;
        for id in unseen {
            if is_completed(client, id).await? {
                self.0.lock().tasks.insert(id, 1);
            } else {
                lost += 1;
            }
        }
        Ok(lost)
    }
}
