//! What happened in a run, and the checks of it.
//!
//! Every replica tells every entry that it applies. The first telling of a position makes the history; all others must
//! agree with it. The entries of control are applied to a reference machine, whose state hash each replica must have at
//! the same position, and are read by the [`Audit`], which knows the promises and none of the code that keeps them.

use std::collections::{BTreeMap, BTreeSet};

use quorate_raft::{Applying, GroupId};
use quorate_state::control::{Command, Control, TaskState};
use quorate_state::{Entry, Position, TaskId, codec};

use crate::audit::Audit;
use crate::digest::Digest;

/// What a violation looks like is told in full only so often; the first one is what matters.
const TOLD: usize = 20;

/// One applied entry, as all replicas must see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    term: u64,
    leader: u64,
    payload: u64,
}

/// The history of one run.
#[derive(Default)]
pub(crate) struct History {
    entries: BTreeMap<(GroupId, u64), Seen>,
    reference: Control,
    /// The state hash of control after each of its positions.
    hashes: BTreeMap<u64, u64>,
    leaders: BTreeSet<(GroupId, u64, u64)>,
    /// The promises about tasks.
    pub(crate) audit: Audit,
    /// Everything that was wrong.
    violations: Vec<String>,
    wrong: usize,
    /// What a run is recognised by: the same seed must give the same one.
    pub(crate) trace: Digest,
    /// The current step.
    pub(crate) step: u64,
    /// Operations that clients were answered.
    pub(crate) operations: u64,
}

impl History {
    /// Notes that something is wrong.
    pub(crate) fn violation(&mut self, what: impl Into<String>) {
        self.wrong += 1;
        if self.violations.len() < TOLD {
            self.violations.push(format!("step {}: {}", self.step, what.into()));
        }
    }

    /// What was wrong, the first things in full.
    pub(crate) fn violations(&self) -> Vec<String> {
        let mut told = self.violations.clone();
        if self.wrong > told.len() {
            told.push(format!("and {} more", self.wrong - told.len()));
        }
        told
    }

    /// Whether nothing was wrong so far.
    pub(crate) fn is_clean(&self) -> bool {
        self.wrong == 0
    }

    /// Entries of all groups.
    pub(crate) fn commits(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Leaders of all groups of whom at least one entry took effect.
    pub(crate) fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// A replica applies an entry.
    pub(crate) fn applying(&mut self, node: usize, entry: &Applying<'_>) {
        let payload = entry.payload.map_or(0, |payload| Digest::of(payload).value());
        let seen = Seen { term: entry.at.term, leader: entry.leader, payload };
        let position = entry.at.position;
        self.trace.add(&[self.step, node as u64, u64::from(entry.group.0), position, seen.term, seen.leader, payload]);
        match self.entries.get(&(entry.group, position)) {
            Some(before) if *before == seen => {}
            Some(before) => {
                let (group, node) = (entry.group, node + 1);
                self.violation(format!(
                    "state machine safety: node-{node} applies {seen:?} at position {position} of {group}, another replica {before:?}"
                ));
            }
            None => self.first(entry, seen),
        }
    }

    /// The first replica applies an entry.
    fn first(&mut self, entry: &Applying<'_>, seen: Seen) {
        let (group, position) = (entry.group, entry.at.position);
        let before = self.entries.range((group, 0)..(group, position)).next_back().map(|(key, seen)| (key.1, *seen));
        if let Some((last, before)) = before {
            if last + 1 != position {
                self.violation(format!("{group} goes from position {last} to {position}"));
            }
            if (seen.term, seen.leader) < (before.term, before.leader) {
                self.violation(format!(
                    "election safety: {seen:?} of {group} follows {before:?}: a deposed leader committed"
                ));
            }
        }
        self.entries.insert((group, position), seen);
        self.leaders.insert((group, seen.term, seen.leader));
        if let (GroupId::CONTROL, Some(payload)) = (group, entry.payload) {
            self.control(position, payload);
        }
    }

    fn control(&mut self, position: u64, payload: &[u8]) {
        let decoded: Result<Entry<Command>, _> = codec::decode(payload);
        let entry = match decoded {
            Ok(entry) => entry,
            Err(error) => return self.violation(format!("entry {position} of control does not decode: {error}")),
        };
        let commands: Vec<_> = entry.operations.clone();
        let replies = match self.reference.apply(Position(position), entry) {
            Ok(outcome) => outcome.replies,
            Err(fault) => return self.violation(format!("entry {position} of control is a fault: {fault}")),
        };
        self.hashes.insert(position, self.reference.hash());
        for wrong in self.audit.entry(position, &commands, &replies) {
            self.violation(wrong);
        }
    }

    /// A replica of control has reached a position.
    pub(crate) fn reached(&mut self, node: usize, position: Position, hash: u64) {
        match self.hashes.get(&position.0) {
            _ if position.0 == 0 => {}
            Some(expected) if *expected == hash => {}
            Some(expected) => self.violation(format!(
                "state hashes: node-{} has {hash:016x} at position {} of control, the log says {expected:016x}",
                node + 1,
                position.0
            )),
            None => self.violation(format!("node-{} is at position {}, which nobody applied", node + 1, position.0)),
        }
    }

    /// A client was told that its task is enqueued.
    pub(crate) fn acknowledged_enqueue(&mut self, payload: &[u8], task: u64) {
        self.operations += 1;
        self.trace.add(&[self.step, 1, task]);
        let wrong = self.audit.acknowledged_enqueue(payload, TaskId(task));
        self.note(wrong);
    }

    /// An agent was told that its completion took effect.
    pub(crate) fn acknowledged_completion(&mut self, task: u64, children: &[u64]) {
        self.operations += 1;
        self.trace.add(&[self.step, 2, task]);
        let wrong = self.audit.acknowledged_completion(TaskId(task), children);
        self.note(wrong);
    }

    fn note(&mut self, wrong: Option<String>) {
        if let Some(wrong) = wrong {
            self.violation(wrong);
        }
    }

    /// Whether everything that was ever enqueued is completed.
    pub(crate) fn is_done(&self) -> bool {
        self.audit.unfinished() == 0
    }

    /// Looks at everything once more, at the end.
    pub(crate) fn conclude(&mut self) {
        if let Err(wrong) = self.reference.check() {
            self.violation(format!("the reference machine contradicts itself: {}", wrong.join("; ")));
        }
        let lost: Vec<TaskId> = self
            .audit
            .acknowledged()
            .filter(|task| self.reference.task_state(*task) != Some(TaskState::Completed))
            .collect();
        for task in lost {
            let state = self.reference.task_state(task);
            self.violation(format!("task {task} was acknowledged and is {state:?} at the end"));
        }
    }
}
