//! The invariants of the control state, all walked.

use std::collections::{BTreeMap, BTreeSet};

use super::Control;
use super::collections::CollectionState;
use super::shards::ReplicaState;
use super::tasks::Stage;
use crate::{ReplicaId, SessionId, TaskId, Token};

impl Control {
    /// Walks all invariants. Takes time in proportion to the state: for tests, the simulator and `quorate doctor`.
    ///
    /// # Errors
    /// Says everything that is wrong.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        self.check_tasks(&mut wrong);
        self.check_sessions(&mut wrong);
        self.check_replicas(&mut wrong);
        self.check_collections(&mut wrong);
        self.check_hash(&mut wrong);
        self.requests.check(&mut wrong);
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn check_tasks(&self, wrong: &mut Vec<String>) {
        let mut derived = self.tasks.clone();
        derived.derive();
        if derived != self.tasks {
            wrong.push("what is derived from tasks (ready, waiting, counts) is not what the tasks say".to_owned());
        }
        let (position, time) = (self.last_position().0, self.time());
        for (id, task) in self.tasks.live().iter() {
            if self.tasks.finished().contains(&id) {
                wrong.push(format!("task {id} is live and finished"));
            }
            if id.0 >> 16 > position || task.token.position > position {
                wrong.push(format!("task {id} is from an entry that is not applied"));
            }
            if task.failures > task.attempts || task.failures >= task.retry.max_attempts {
                wrong.push(format!(
                    "task {id} is live after {} failures in {} attempts of {}",
                    task.failures, task.attempts, task.retry.max_attempts
                ));
            }
            if task.created > time {
                wrong.push(format!("task {id} was enqueued in the future"));
            }
        }
        for (id, task) in self.tasks.finished().iter() {
            if task.finished > time || task.finished < task.created {
                wrong.push(format!("task {id} finished before it began or in the future"));
            }
        }
    }

    fn check_sessions(&self, wrong: &mut Vec<String>) {
        let mut running: BTreeMap<SessionId, Vec<(TaskId, Token)>> =
            self.sessions.records().iter().map(|(session, _)| (session, Vec::new())).collect();
        for (id, task) in self.tasks.live().iter() {
            if let Stage::Granted { session } = task.stage {
                match running.get_mut(&session) {
                    Some(tasks) => tasks.push((id, task.token)),
                    None => wrong.push(format!("task {id} is granted to session {session}, which is not there")),
                }
            }
        }
        for (session, tasks) in running {
            if self.sessions.running(session) != tasks {
                wrong.push(format!("what session {session} runs is not what the tasks say"));
            }
            if self.sessions.get(session).is_some_and(|record| tasks.len() > record.slots as usize) {
                wrong.push(format!("session {session} runs more tasks than it has slots"));
            }
        }
    }

    fn check_replicas(&self, wrong: &mut Vec<String>) {
        let mut seen: BTreeSet<ReplicaId> = BTreeSet::new();
        let mut note = |replica: ReplicaId, wrong: &mut Vec<String>| {
            if !seen.insert(replica) || replica >= self.meta().next_replica {
                wrong.push(format!("replica id {replica} is used twice or was never minted"));
            }
        };
        for member in self.members() {
            note(member.control_replica, wrong);
        }
        for shard in self.shards() {
            let mut nodes = BTreeSet::new();
            for replica in &shard.replicas {
                note(replica.replica, wrong);
                if replica.state != ReplicaState::Retiring && !nodes.insert(replica.node) {
                    wrong.push(format!("shard {} keeps two replicas on node {}", shard.shard, replica.node));
                }
                if self.member(replica.node).is_none() {
                    wrong.push(format!("shard {} has a replica on node {}, no member", shard.shard, replica.node));
                }
            }
        }
        if self.cluster().is_some() != (self.members.len() > 0) {
            wrong.push("a cluster has members from its first moment to its last".to_owned());
        }
    }

    fn check_collections(&self, wrong: &mut Vec<String>) {
        let mut derived = self.collections.clone();
        derived.derive();
        if derived != self.collections {
            wrong.push("the names of collections are not those of their records".to_owned());
        }
        for collection in self.collections() {
            let name = &collection.name;
            if collection.shards.is_empty() || collection.shards.iter().any(|shard| self.shard(*shard).is_none()) {
                wrong.push(format!("collection {name} is on a shard that is not there, or on none"));
            }
            if collection.pending.iter().any(|shard| !collection.shards.contains(shard)) {
                wrong.push(format!("collection {name} waits for a shard that it is not on"));
            }
            if collection.pending.is_empty() != (collection.state == CollectionState::Ready) {
                wrong
                    .push(format!("collection {name} is {:?} with {:?} pending", collection.state, collection.pending));
            }
        }
    }

    fn check_hash(&self, wrong: &mut Vec<String>) {
        let hash = [
            self.meta.hash(),
            self.members.hash(),
            self.removed.hash(),
            self.shards.hash(),
            self.collections.records().hash(),
            self.queues.records().hash(),
            self.roles.records().hash(),
            self.tasks.live().hash(),
            self.tasks.finished().hash(),
            self.sessions.records().hash(),
            self.requests.hash(),
        ]
        .into_iter()
        .fold(0u64, u64::wrapping_add);
        if hash != self.hash {
            wrong.push("the set hash is not that of the records".to_owned());
        }
    }
}
