//! The replicated machines of Quorate as pure functions.

pub mod codec;
pub mod control;
mod entry;
mod ids;
mod metric;
mod reject;
mod records;
mod requests;
pub mod shard;

pub use entry::{Entry, Fault, MAX_OPERATIONS, Operation, Outcome, Row};
pub use ids::{
    CollectionId, LogTime, NodeId, Position, ReplicaId, RequestId, SessionId, ShardId, TaskId, Token,
};
pub use metric::Metric;
pub use reject::Reject;
