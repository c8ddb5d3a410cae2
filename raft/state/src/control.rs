//! The control machine: members, shard map, collections, queues, tasks and sessions of a cluster.
//!
//! A command is applied in the file that has its name. `apply` brings log time forward, hands each operation to its
//! command and puts the rows together; it knows nothing of what commands do.

mod check;
mod collections;
mod command;
mod load;
mod members;
mod meta;
mod names;
mod read;
mod reply;
mod sessions;
mod shards;
mod step;
mod table;
mod tasks;

mod add_member;
mod attach_session;
mod cancel;
mod close_session;
mod complete;
mod confirm_collection;
mod create_collection;
mod delete_collection;
mod enqueue;
mod expire_session;
mod fail;
mod forget_replica;
mod grant;
mod grant_enqueued;
mod init_cluster;
mod open_session;
mod pass_time;
mod place_replica;
mod remove_member;
mod replace_control_replica;
mod replace_replica;
mod replica_joined;
mod retire_replica;
mod shard_initialized;
mod start_leave;
#[cfg(test)]
pub(crate) mod testing;

pub use collections::{BUCKETS, CollectionRecord, CollectionState, OutboxAction, OutboxEntry, bucket_of};
pub use command::{Command, Effect, Reply};
pub use complete::MAX_RESULT_BYTES;
pub use create_collection::MAX_DIMENSION;
pub use enqueue::MAX_PAYLOAD_BYTES;
pub use load::Loader;
pub use members::{MemberRecord, NodeRecord, replica_target};
pub use names::MAX_NAME_BYTES;
pub use read::{PAGE_SCAN, QueueCounts, SessionView, TaskFilter, TaskPage, TaskView};
pub use shards::{ReplicaRecord, ReplicaState, ShardRecord};
pub use tasks::{NewTask, RetryPolicy, TaskState};

use self::collections::Collections;
use self::members::RemovedNode;
use self::meta::MetaRecord;
use self::names::{Names, QueueName, RoleName};
use self::reply::KeptReply;
use self::sessions::Sessions;
use self::step::Step;
use self::tasks::Tasks;
use crate::records::{Only, Records};
use crate::requests::Requests;
use crate::{Entry, Fault, MAX_OPERATIONS, Operation, Outcome, Position, Reject};

/// The control machine.
///
/// - It is a function of the entries that were applied: equal entries make equal machines, rows and replies everywhere.
/// - [`Control::load`] of all rows makes an equal machine.
/// - A refused operation changes nothing, and an operation sees what those before it in its entry did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Control {
    meta: Records<MetaRecord>,
    members: Records<MemberRecord>,
    removed: Records<RemovedNode>,
    shards: Records<ShardRecord>,
    collections: Collections,
    queues: Names<QueueName>,
    roles: Names<RoleName>,
    tasks: Tasks,
    sessions: Sessions,
    requests: Requests<KeptReply>,
    /// Set hash of the rows of all records.
    hash: u64,
}

impl Control {
    /// The machine before the first entry.
    pub fn new() -> Self {
        Control::default()
    }

    /// Applies one entry.
    ///
    /// # Errors
    /// Faults when the entry is out of order or too large; the machine must not be used afterwards.
    pub fn apply(&mut self, at: Position, entry: Entry<Command>) -> Result<Outcome<Reply, Effect>, Fault> {
        let mut meta = self.meta().clone();
        if at <= meta.position {
            return Err(Fault::OutOfOrder { at: at.0, last: meta.position.0 });
        }
        if entry.operations.len() > MAX_OPERATIONS {
            return Err(Fault::TooManyOperations { at: at.0, operations: entry.operations.len() });
        }
        meta.position = at;
        #[cfg(feature = "planted")]
        let entry = Entry { time: crate::planted::time_of(entry.time), ..entry };
        meta.time = meta.time.max(entry.time);
        let mut step = Step::new(meta, self.hash);
        self.pass_time(&mut step);
        step.replies.reserve_exact(entry.operations.len());
        for operation in entry.operations {
            let reply = self.operate(&mut step, operation);
            step.replies.push(reply);
        }
        Ok(self.finish(step))
    }

    /// The set hash of all rows: equal on replicas that have applied the same entries.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn meta(&self) -> &MetaRecord {
        self.meta.get(&Only).unwrap_or(&MetaRecord::BEFORE_FIRST)
    }

    /// Applies an operation, unless its request has taken effect already: then that reply is given again.
    fn operate(&mut self, step: &mut Step, operation: Operation<Command>) -> Result<Reply, Reject> {
        let Some(id) = operation.request else {
            return self.dispatch(step, operation.command);
        };
        if let Some(kept) = self.requests.look_up(id, step.meta.time, step.meta.horizon)? {
            return Ok(kept.reply());
        }
        let reply = self.dispatch(step, operation.command)?;
        self.requests.keep(id, step.meta.time, KeptReply::new(&reply), &mut step.changes);
        Ok(reply)
    }

    fn dispatch(&mut self, step: &mut Step, command: Command) -> Result<Reply, Reject> {
        match command {
            Command::InitCluster { cluster, shards, node, control_replica } => {
                self.init_cluster(step, cluster, shards, node, control_replica)
            }
            Command::AddMember { node } => self.add_member(step, node),
            Command::StartLeave { node, allow_fewer } => self.start_leave(step, node, allow_fewer),
            Command::RemoveMember { node } => self.remove_member(step, node),
            Command::PlaceReplica { shard, node } => self.place_replica(step, shard, node),
            Command::ReplicaJoined { shard, replica } => self.replica_joined(step, shard, replica),
            Command::RetireReplica { shard, replica } => self.retire_replica(step, shard, replica),
            Command::ForgetReplica { shard, replica } => self.forget_replica(step, shard, replica),
            Command::ShardInitialized { shard } => self.shard_initialized(step, shard),
            Command::CreateCollection { name, dimension, metric, shards } => {
                self.create_collection(step, name, dimension, metric, shards)
            }
            Command::ConfirmCollection { id, shard, generation } => {
                self.confirm_collection(step, id, shard, generation)
            }
            Command::DeleteCollection { name } => self.delete_collection(step, &name),
            Command::Enqueue { tasks } => self.enqueue(step, tasks),
            Command::Grant { task, session } => self.grant(step, task, session),
            Command::GrantEnqueued { operation, nth, session } => self.grant_enqueued(step, operation, nth, session),
            Command::Complete { task, token, result, children } => self.complete(step, task, token, result, children),
            Command::Fail { task, token, error, permanent, retry_at } => {
                self.fail(step, task, token, error, permanent, retry_at)
            }
            Command::Cancel { task } => self.cancel(step, task),
            Command::Tick => Ok(Reply::Done),
            Command::OpenSession { agent, roles, slots, ttl_ms } => {
                self.open_session(step, agent, roles, slots, ttl_ms)
            }
            Command::ExpireSession { session } => self.expire_session(step, session),
            Command::CloseSession { session, attachment } => self.close_session(step, session, attachment),
            Command::ReplaceReplica { shard, node, replica } => self.replace_replica(step, shard, node, replica),
            Command::AttachSession { session, attachment } => self.attach_session(step, session, attachment),
            Command::ReplaceControlReplica { node, replica } => self.replace_control_replica(step, node, replica),
        }
    }

    /// Puts the outcome together once all operations are applied.
    fn finish(&mut self, mut step: Step) -> Outcome<Reply, Effect> {
        let woken = self.tasks.take_woken();
        let roles: Vec<_> = woken
            .into_iter()
            .filter(|role| self.tasks.ready().contains_key(role))
            .map(|role| self.roles.text(role).clone())
            .collect();
        if !roles.is_empty() {
            step.effects.push(Effect::TasksReady { roles });
        }
        self.meta.put(Only, step.meta, &mut step.changes);
        self.hash = step.changes.hash();
        let rows = step.changes.take_rows();
        #[cfg(feature = "planted")]
        let rows = crate::planted::without_rows("unwritten-row", rows, |row| {
            row.table == table::SESSION && row.value.is_none()
        });
        Outcome { replies: step.replies, rows, effects: step.effects }
    }
}
