//! The vocabulary of the control machine: what can be asked of it, what it answers and what is to be done then. What each
//! command does is in the file of that command.

use std::sync::Arc;

use super::collections::CollectionRecord;
use super::members::NodeRecord;
use super::tasks::{NewTask, TaskState};
use crate::codec::{Decode, Encode};
use crate::{CollectionId, LogTime, Metric, NodeId, ReplicaId, SessionId, ShardId, TaskId, Token};

/// Something to do to the control state.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Command {
    /// Makes the cluster: its id, its first node and its number of shards, which never changes.
    /// Replies [`Reply::Member`].
    InitCluster {
        /// The cluster's id.
        cluster: u64,
        /// How many shards it has, 1 to 1,024.
        shards: u32,
        /// The first node.
        node: NodeRecord,
        /// The replica id under which the first node holds the control group; later ones are counted up from it.
        control_replica: ReplicaId,
    },
    /// Takes a node in, or takes note of its changed addresses. Replies [`Reply::Member`]; again, the same.
    AddMember {
        /// The node.
        node: NodeRecord,
    },
    /// Begins the leave of a node: it gets no new replicas and gives away those it has. Replies [`Reply::Done`].
    StartLeave {
        /// The node.
        node: NodeId,
        /// Whether each group may have fewer replicas afterwards.
        allow_fewer: bool,
    },
    /// Ends the leave of a node that holds nothing any more. Replies [`Reply::Done`].
    RemoveMember {
        /// The node.
        node: NodeId,
    },
    /// Places a replica of a shard on a node, as one that is joining. Replies [`Reply::Replica`]; again, the same.
    PlaceReplica {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// The replica has become a voter of its group. Replies [`Reply::Done`].
    ReplicaJoined {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// The replica is to go. Replies [`Reply::Done`].
    RetireReplica {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// The retiring replica is gone. Replies [`Reply::Done`], also if it is not known any more.
    ForgetReplica {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
    },
    /// The shard's group has been initialised; nobody may do so again. Replies [`Reply::Done`].
    ShardInitialized {
        /// The shard.
        shard: ShardId,
    },
    /// Makes a collection. Replies [`Reply::Collection`]. It reaches its shards through the outbox.
    CreateCollection {
        /// Its name, unique among collections that are not being deleted.
        name: String,
        /// Numbers in a vector, 1 to 4,096.
        dimension: u32,
        /// How vectors are compared.
        metric: Metric,
        /// Over how many shards it is spread.
        shards: u32,
    },
    /// An entry of the outbox has been delivered. Replies [`Reply::Done`]; an entry that is not there any more is ignored.
    ConfirmCollection {
        /// The collection.
        id: CollectionId,
        /// The shard that has it.
        shard: ShardId,
        /// The generation that was delivered: a late word about an older one is ignored.
        generation: u64,
    },
    /// Deletes a collection: its name is free at once, its points go as the outbox reaches its shards.
    /// Replies [`Reply::Collection`].
    DeleteCollection {
        /// Its name.
        name: String,
    },
    /// Enqueues tasks, all or none. Replies [`Reply::Tasks`].
    Enqueue {
        /// The tasks, at most 65,535.
        tasks: Vec<NewTask>,
    },
    /// Grants a task to a session. Replies [`Reply::Granted`].
    Grant {
        /// The task, which must be ready.
        task: TaskId,
        /// The session, which must have a free slot and the task's role.
        session: SessionId,
    },
    /// Grants a task that an operation before this one in the same entry has enqueued. Replies [`Reply::Granted`].
    GrantEnqueued {
        /// Which operation of the entry, from 0: an `Enqueue` or a `Complete` with children.
        operation: u32,
        /// Which of its tasks, from 0.
        nth: u32,
        /// The session, which must have a free slot and the task's role.
        session: SessionId,
    },
    /// The attempt has done the task. Replies [`Reply::Completed`]; the same token again gets the same reply.
    Complete {
        /// The task.
        task: TaskId,
        /// The token of the attempt.
        token: Token,
        /// What came of it.
        result: Vec<u8>,
        /// Tasks to enqueue in the same instant.
        children: Vec<NewTask>,
    },
    /// The attempt has failed. Replies [`Reply::Failed`]; the same token again gets the same reply.
    Fail {
        /// The task.
        task: TaskId,
        /// The token of the attempt.
        token: Token,
        /// Why, for people.
        error: String,
        /// Another attempt would fail as well: the task goes to the dead letters at once.
        permanent: bool,
        /// When the next attempt may begin, backoff and jitter decided; `None` is at once.
        retry_at: Option<LogTime>,
    },
    /// Cancels a task that has not finished. Replies [`Reply::Cancelled`].
    Cancel {
        /// The task.
        task: TaskId,
    },
    /// Lets log time pass, as every entry does. Replies [`Reply::Done`].
    Tick,
    /// Opens a session of an agent. Replies [`Reply::Session`].
    OpenSession {
        /// The agent's name.
        agent: String,
        /// The roles it can take.
        roles: Vec<String>,
        /// How many tasks it takes at once.
        slots: u32,
        /// After how many milliseconds of silence it is expired.
        ttl_ms: u64,
    },
    /// The session fell silent: its attempts have failed. Replies [`Reply::Done`].
    ExpireSession {
        /// The session.
        session: SessionId,
    },
    /// The session ended in good order: its attempts are given back and nothing has failed. Replies [`Reply::Done`].
    CloseSession {
        /// The session.
        session: SessionId,
        /// The stream on which its agent said so: refused if the agent has left that.
        attachment: u64,
    },
    /// The replica is damaged: it is to go, and another one takes its place on the same node, as one that is joining.
    /// Replies [`Reply::Replica`]; for a replica that was replaced already, with the one that has its place now.
    ReplaceReplica {
        /// The shard.
        shard: ShardId,
        /// The node that holds it.
        node: NodeId,
        /// The damaged replica.
        replica: ReplicaId,
    },
    /// The node's replica of the control group is damaged: the node gets another one. Replies [`Reply::Member`]; for a
    /// replica that was replaced already, with the one that has its place now.
    ReplaceControlReplica {
        /// The node.
        node: NodeId,
        /// The damaged replica.
        replica: ReplicaId,
    },
    /// The session's agent goes on by this stream; none of a lower number can end the session any more. Replies
    /// [`Reply::Done`], again if it is said again.
    AttachSession {
        /// The session.
        session: SessionId,
        /// The stream's number, higher than any that the session used before.
        attachment: u64,
    },
}

/// The answer to a command that was not refused.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// It is so.
    Done,
    /// The node is a member.
    Member {
        /// Its replica of the control group.
        control_replica: ReplicaId,
    },
    /// The replica is placed.
    Replica {
        /// Its id.
        replica: ReplicaId,
    },
    /// The collection as it is now.
    Collection(CollectionRecord),
    /// The tasks that were enqueued, in the order in which they were given.
    Tasks(Vec<TaskId>),
    /// The task is granted.
    Granted {
        /// The token of the attempt.
        token: Token,
        /// Which attempt it is, from 1.
        attempt: u32,
    },
    /// The task is completed.
    Completed {
        /// The children that were enqueued.
        children: Vec<TaskId>,
    },
    /// The failure is noted.
    Failed {
        /// Whether the task went to the dead letters.
        dead: bool,
    },
    /// The task is cancelled.
    Cancelled,
    /// The session is open.
    Session {
        /// Its id.
        session: SessionId,
    },
}

/// What is to be done about an entry, for the leader alone; followers drop it. It may be lost with the leader, so all of it
/// can be found again in the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tasks of these roles have become ready. At most once in an outcome.
    TasksReady {
        /// The roles, each once.
        roles: Vec<Arc<str>>,
    },
    /// Deliver the attempt to its session.
    Granted {
        /// The task.
        task: TaskId,
        /// Whose attempt it is.
        session: SessionId,
        /// Its token.
        token: Token,
        /// Which attempt it is, from 1.
        attempt: u32,
    },
    /// The attempt counts no more: tell its holder to drop it. A slot of the session is free.
    AttemptLost {
        /// The session that held it.
        session: SessionId,
        /// The task.
        task: TaskId,
        /// The token that is void now.
        token: Token,
    },
    /// The attempt has ended by its own word. A slot of the session is free.
    AttemptEnded {
        /// The session that held it.
        session: SessionId,
        /// The task.
        task: TaskId,
        /// Its token.
        token: Token,
    },
    /// The task waits for its next attempt; see `next_due`.
    TaskWaiting {
        /// The task.
        task: TaskId,
        /// When it becomes ready.
        due: LogTime,
    },
    /// The task has come to its end: wake who waits for it.
    Finished {
        /// The task.
        task: TaskId,
        /// Completed, dead or cancelled.
        state: TaskState,
    },
    /// A session is open and has free slots.
    SessionOpened {
        /// The session.
        session: SessionId,
    },
    /// A session is over. An [`Effect::AttemptLost`] for each of its attempts went before.
    SessionEnded {
        /// The session.
        session: SessionId,
    },
    /// Members came, changed or went.
    MembersChanged,
    /// Replicas were placed, changed or went.
    ShardMapChanged,
    /// A collection came, changed or went; there may be something in the outbox.
    CollectionChanged {
        /// The collection.
        collection: CollectionId,
    },
}
