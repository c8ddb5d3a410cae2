//! The refusals of the machines.

use crate::codec::{Decode, Encode};
use crate::control::TaskState;
use crate::{NodeId, ReplicaId, SessionId, ShardId, TaskId};

/// A deterministic refusal: every replica comes to it, nothing has changed, and it is the reply. Trying again without
/// changing anything gives the same answer unless the text says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum Reject {
    /// A value is out of bounds. `what` names it and its bounds.
    #[error("{what}")]
    InvalidArgument {
        /// What is wrong and what is allowed.
        what: String,
    },
    /// The request id is older than the replies that are kept, so nobody can tell whether it ran.
    #[error(
        "the request id is older than the replies that are kept (for {kept_hours} h at most): look up what became of the request, then send a new one with a new id; if it is new, the clock of this client is behind"
    )]
    RequestExpired {
        /// For how long replies are kept at most, hours.
        kept_hours: u32,
    },
    /// More ids were asked for than one entry can hand out. Retrying helps.
    #[error("too much was asked for at once: try again, with smaller batches")]
    EntryFull,
    /// A bound on the number of things of a kind is reached.
    #[error("there are already {limit} {what}, the most there may be: remove some first")]
    LimitReached {
        /// The things, in the plural.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// The cluster has been initialised already.
    #[error("the cluster is initialised already")]
    AlreadyInitialized,
    /// Nothing can be done before the cluster is initialised.
    #[error("the cluster is not initialised: run `quorate cluster init` first")]
    NotInitialized,
    /// No such member.
    #[error("node {node} is not a member of this cluster: see `quorate cluster status` for those that are")]
    NodeNotFound {
        /// The node that was named.
        node: NodeId,
    },
    /// The node is on its way out.
    #[error("node {node} is leaving the cluster and takes no new replicas")]
    NodeLeaving {
        /// The node that was named.
        node: NodeId,
    },
    /// The only node cannot leave.
    #[error("node {node} is the last one: a cluster without nodes would lose its data")]
    LastNode {
        /// The node that was named.
        node: NodeId,
    },
    /// Leaving would lower the number of replicas.
    #[error(
        "without node {node} the replicas of each group go from {before} to {after}, and fewer failures are survived: add a node first, or say explicitly that fewer are enough"
    )]
    FewerReplicas {
        /// The node that was named.
        node: NodeId,
        /// Replicas of each group now.
        before: u32,
        /// Replicas of each group afterwards.
        after: u32,
    },
    /// The shard map places something on the node.
    #[error("node {node} still holds data (replicas: {replicas}): wait until they have moved")]
    StillHolding {
        /// The node that was named.
        node: NodeId,
        /// How many replicas are placed there.
        replicas: u32,
    },
    /// No such shard.
    #[error("there is no shard {shard}")]
    ShardNotFound {
        /// The shard that was named.
        shard: ShardId,
    },
    /// No such replica.
    #[error("shard {shard} has no replica {replica}")]
    ReplicaNotFound {
        /// The shard that was named.
        shard: ShardId,
        /// The replica that was named.
        replica: ReplicaId,
    },
    /// The replica is being retired; wait until it is gone.
    #[error("replica {replica} of shard {shard} is being retired: wait until it is gone")]
    ReplicaRetiring {
        /// The shard that was named.
        shard: ShardId,
        /// The replica that was named.
        replica: ReplicaId,
    },
    /// Only a retiring replica can be forgotten.
    #[error("replica {replica} of shard {shard} is in use: retire it before it is forgotten")]
    ReplicaInUse {
        /// The shard that was named.
        shard: ShardId,
        /// The replica that was named.
        replica: ReplicaId,
    },
    /// A shard must keep one replica that has its data.
    #[error("replica {replica} is the last voter of shard {shard}: let another one join first")]
    LastReplica {
        /// The shard that was named.
        shard: ShardId,
        /// The replica that was named.
        replica: ReplicaId,
    },
    /// The name is taken.
    #[error("a collection named {name:?} exists already")]
    CollectionExists {
        /// The name.
        name: String,
    },
    /// No such collection, or a newer one has taken its place.
    #[error("there is no collection {name:?}: see `quorate collection list`")]
    CollectionNotFound {
        /// The name, or the number if only that is known.
        name: String,
    },
    /// No such task, or it finished so long ago that it was forgotten.
    #[error("there is no task {task}: it never was, or it finished so long ago that its record is gone")]
    TaskNotFound {
        /// The task that was named.
        task: TaskId,
    },
    /// The task has come to its end.
    #[error("task {task} has finished already ({state})")]
    TaskFinished {
        /// The task that was named.
        task: TaskId,
        /// Its end.
        state: TaskState,
    },
    /// The task is not there to be granted.
    #[error("task {task} is not ready")]
    TaskNotReady {
        /// The task that was named.
        task: TaskId,
    },
    /// The attempt was given up, and perhaps given to another agent: what this one says no longer counts.
    #[error("the attempt at task {task} is no longer the current one: drop its work")]
    StaleToken {
        /// The task that was named.
        task: TaskId,
    },
    /// No such session, or it has ended.
    #[error("there is no session {session}: it has ended; open a new one")]
    SessionNotFound {
        /// The session that was named.
        session: SessionId,
    },
    /// All slots of the session are taken.
    #[error("session {session} has no free slot")]
    NoFreeSlot {
        /// The session that was named.
        session: SessionId,
    },
    /// The session's agent does not have the task's role.
    #[error("session {session} does not have the role that task {task} asks for")]
    RoleMissing {
        /// The session that was named.
        session: SessionId,
        /// The task that was named.
        task: TaskId,
    },
    /// The node was a member and is none any more, for good.
    #[error(
        "node {node} was a member of this cluster and was removed: empty its data directory and start it again to join as a new node"
    )]
    NodeRemoved {
        /// The node that was named.
        node: NodeId,
    },
    /// The session's agent goes on by another stream.
    #[error(
        "session {session} has left this stream for number {attachment}: whoever speaks here holds the session no more"
    )]
    StreamLeft {
        /// The session that was named.
        session: SessionId,
        /// The number of the stream that it has now.
        attachment: u64,
    },
}

impl Reject {
    /// A value that is out of bounds; `what` says which and what is allowed.
    pub fn invalid(what: impl Into<String>) -> Reject {
        Reject::InvalidArgument { what: what.into() }
    }
}
