//! What happened in a run, told to the checkers.

use std::collections::{BTreeMap, BTreeSet};

use quorate_raft::memory::view_change;
use quorate_raft::{Applying, GroupId, LogChange, MarkKind, ReplicaId};
use quorate_state::TaskId;
use quorate_state::control::Effect;

use crate::audit::Audit;
use crate::check::ends::Ends;
use crate::check::leases::Leases;
use crate::check::log_time::LogTimes;
use crate::check::logs::Logs;
use crate::check::machines::{Applied, Machines};
use crate::check::names::{CHECKERS, checker_of};
use crate::check::points::Points;
use crate::check::quorum::Quorums;
use crate::check::registers::Registers;
use crate::check::sessions::Sessions;
use crate::check::votes::Votes;
use crate::check::{Disks, Id, Wrong, completeness, leads};
use crate::slot::Running;
use crate::trace::Trace;
use crate::world::Written;

/// What a violation looks like is told in full only so often; the first one is what matters.
const TOLD: usize = 20;

/// The history of one run.
#[derive(Default)]
pub(crate) struct History {
    logs: Logs,
    votes: Votes,
    quorums: Quorums,
    log_times: LogTimes,
    /// The reference machines.
    pub(crate) machines: Machines,
    /// The promises about tasks.
    pub(crate) audit: Audit,
    /// Who performs what.
    pub(crate) leases: Leases,
    /// Sessions, and what an agent is told of them.
    pub(crate) sessions: Sessions,
    /// Where the logs on the disks end.
    ends: Ends,
    /// Memory points by the log.
    pub(crate) points: Points,
    /// Memory points by what clients saw.
    pub(crate) registers: Registers,
    /// Leaders that have written an entry of their own.
    led: BTreeSet<(GroupId, (u64, ReplicaId))>,
    /// The terms in which replicas can have led before they were restarted.
    past: BTreeMap<(GroupId, ReplicaId), u64>,
    /// The leader (with its term) that committed the entry at a position.
    committed_by: BTreeMap<(GroupId, u64), (u64, ReplicaId)>,
    violations: Vec<String>,
    wrong: usize,
    /// What the run is recognised by.
    pub(crate) trace: Trace,
    /// The current step.
    pub(crate) step: u64,
    /// Operations that clients were answered.
    pub(crate) operations: u64,
    /// Those among them that are about memory points.
    pub(crate) memory_operations: u64,
}

impl History {
    /// An empty history with this trace.
    pub(crate) fn new(trace: Trace) -> History {
        History { trace, ..History::default() }
    }

    /// Notes that something is wrong. It begins with the name of the checker that says so.
    pub(crate) fn violation(&mut self, what: impl Into<String>) {
        let what = what.into();
        debug_assert!(CHECKERS.contains(&checker_of(&what)), "no checker has the name before the colon: {what}");
        self.wrong += 1;
        if self.violations.len() < TOLD {
            self.violations.push(format!("step {}: {what}", self.step));
        }
    }

    /// Notes what a checker has found.
    pub(crate) fn note(&mut self, wrong: impl IntoIterator<Item = String>) {
        wrong.into_iter().for_each(|what| self.violation(what));
    }

    /// Notes what the audit has found, which does not say its name.
    pub(crate) fn audited(&mut self, wrong: impl IntoIterator<Item = String>) {
        self.note(wrong.into_iter().map(|what| format!("audit: {what}")));
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

    /// A disk has made something durable.
    pub(crate) fn written(&mut self, disks: &dyn Disks, node: usize, written: &Written) {
        let wrong = self.ends.durable(node, &written.change);
        self.note(wrong);
        match &written.change {
            LogChange::Append { .. } => {
                // A torn record is nothing to anybody.
                let Some((group, record)) = view_change(&written.change) else { return };
                let id = Id::of(&record);
                self.trace.note(self.step, format_args!("node-{} keeps {} {id}", node + 1, group));
                let wrong = self.logs.appended(node, group, &record);
                self.note(wrong);
                let past = self.past.get(&(group, id.leader)).is_some_and(|past| id.term <= *past);
                if disks.owner(node, group) == Some(id.leader) && !past {
                    self.log_times.written(group, id, written.gathered);
                    if self.led.insert((group, id.lead())) {
                        self.leads(disks, node, group, id);
                    }
                }
            }
            LogChange::Mark { group, kind: MarkKind::Vote, .. } => {
                let (replica, vote) = (disks.owner(node, *group), disks.vote(node, *group));
                if let (Some(replica), Some(vote)) = (replica, vote) {
                    self.trace.note(self.step, format_args!("node-{} votes {group} {vote:?}", node + 1));
                    let wrong = self.votes.voted(node, *group, replica, vote);
                    self.note(wrong);
                }
            }
            LogChange::Truncate { group, .. } | LogChange::Destroy { group } => self.logs.cut(node, *group),
            _ => {}
        }
    }

    /// A leader has its first entry on its own disk.
    fn leads(&mut self, disks: &dyn Disks, node: usize, group: GroupId, first: Id) {
        self.trace.note(self.step, format_args!("node-{} leads {group} {first}", node + 1));
        let here = self.logs.voters_below(disks, node, group, first.position);
        let voters = here.or_else(|| self.quorums.voters_at(group, first.position));
        let mut wrong = voters.map_or_else(Wrong::new, |voters| self.votes.leads(disks, group, first, voters));
        let by = |id: &Id| self.committed_by.get(&(group, id.position)).copied().unwrap_or_else(|| id.lead());
        let committed = self.machines.committed(group).map(|id| (id, by(&id)));
        wrong.extend(completeness::leads(disks, node, group, first, committed));
        self.note(wrong);
    }

    /// A replica applies an entry.
    pub(crate) fn applying(&mut self, disks: &dyn Disks, node: usize, entry: &Applying<'_>) {
        let (group, id) = (entry.group, Id::new(entry.at, entry.leader));
        self.trace.note(self.step, format_args!("node-{} applies {group} {id}", node + 1));
        let (applied, wrong) = self.machines.applying(node, group, id, entry.payload);
        self.note(wrong);
        if matches!(applied, Applied::Again) {
            return;
        }
        // Who applies it first has it from a leader that it follows.
        let follows = disks.vote(node, group).map(|vote| (vote.term, vote.leader));
        self.committed_by.insert((group, id.position), follows.map_or(id.lead(), |follows| follows.max(id.lead())));
        let wrong = self.quorums.applied(disks, &self.logs, group, id);
        self.note(wrong);
        match applied {
            Applied::Again | Applied::Nothing => {}
            Applied::Control(entry, outcome) => {
                let audited = self.audit.entry(id.position, &entry.operations, &outcome.replies);
                self.audited(audited);
                let mut wrong = self.log_times.committed(group, id, entry.time.0);
                wrong.extend(self.audit.look_at_touched(&self.machines.control));
                wrong.extend(self.sessions.entry(self.step, &entry.operations, &outcome.replies));
                for effect in &outcome.effects {
                    if let Effect::Granted { task, token, .. } = effect {
                        wrong.extend(self.leases.granted(*task, *token));
                    }
                }
                self.note(wrong);
            }
            Applied::Shard(entry, outcome) => {
                let mut wrong = self.log_times.committed(group, id, entry.time.0);
                wrong.extend(self.points.entry(self.step, group.0, &entry.operations, &outcome.replies));
                self.note(wrong);
            }
        }
    }

    /// A node runs: if it acts as a leader, it must have applied what a leader has.
    pub(crate) fn leads_on(&mut self, node: usize, running: &Running) {
        for (id, group) in running.groups() {
            let leadership = group.leadership();
            let term = leadership.borrow().term;
            if leadership.borrow().mine {
                let applied = self.machines.term_at(id, group.applied());
                let wrong = leads::leads(node, id, term, applied);
                self.note(wrong);
            }
        }
    }

    /// A replica of a group has reached a position.
    pub(crate) fn reached(&mut self, node: usize, group: GroupId, position: u64, hash: u64) {
        let wrong = self.machines.reached(node, group, position, hash);
        self.note(wrong);
    }

    /// A node has lost its process.
    pub(crate) fn lost(&mut self, disks: &dyn Disks, node: usize, groups: impl Iterator<Item = GroupId>) {
        for group in groups {
            self.logs.cut(node, group);
            // What it proposed in these terms it may get back from others later, which says nothing of when it proposed it.
            if let (Some(replica), Some(vote)) = (disks.owner(node, group), disks.vote(node, group)) {
                self.past.insert((group, replica), vote.term);
            }
        }
        self.look_again(disks);
    }

    /// The disks are not what they were: what was committed of late must still be on a quorum.
    pub(crate) fn look_again(&mut self, disks: &dyn Disks) {
        self.ends.look_again(disks);
        let wrong = self.quorums.look_again(disks, &self.logs);
        self.note(wrong);
    }

    /// A client was answered about memory points.
    pub(crate) fn memory_operation(&mut self) {
        self.operations += 1;
        self.memory_operations += 1;
    }

    /// A client was told that its task is enqueued.
    pub(crate) fn acknowledged_enqueue(&mut self, payload: &[u8], task: u64) {
        self.operations += 1;
        self.trace.note(self.step, format_args!("task {task} is enqueued"));
        let audited = self.audit.acknowledged_enqueue(payload, TaskId(task));
        self.audited(audited);
    }

    /// An agent was told that its completion took effect.
    pub(crate) fn acknowledged_completion(&mut self, task: u64, children: &[u64]) {
        self.operations += 1;
        self.trace.note(self.step, format_args!("task {task} is completed"));
        self.leases.completed(TaskId(task));
        let audited = self.audit.acknowledged_completion(TaskId(task), children);
        self.audited(audited);
    }

    /// A client was told that its task is cancelled.
    pub(crate) fn acknowledged_cancel(&mut self, task: u64) {
        self.operations += 1;
        self.trace.note(self.step, format_args!("task {task} is cancelled"));
        let audited = self.audit.acknowledged_cancel(TaskId(task));
        self.audited(audited);
    }

    /// Whether everything that was ever enqueued has come to an end.
    pub(crate) fn is_done(&self) -> bool {
        self.audit.unfinished() == 0
    }

    /// Asks the references whether they contradict themselves.
    pub(crate) fn check(&mut self) {
        let wrong = self.machines.check();
        self.note(wrong);
    }

    /// The client oracle, at the end.
    pub(crate) fn conclude(&mut self) {
        let audited = self.audit.conclude(&self.machines.control);
        self.audited(audited);
        let wrong = self.registers.check();
        self.note(wrong);
    }
}
