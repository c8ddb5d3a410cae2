//! The replicated machines of Quorate, as pure functions.
//!
//! Quorate keeps two kinds of state, each behind the log of a Raft group: [`control::Control`] has the members, the shard
//! map, the collections, the queues, tasks and sessions of the cluster; [`shard::Shard`] has the points of one slice of all
//! collections. A machine is fed with committed entries, in order, and each gives an [`Outcome`]:
//!
//! ```text
//!            position, Entry { time, operations }
//!                          |
//!                        apply                      pure and total: equal inputs, equal outputs, on every replica
//!                          |
//!      replies  ------   rows   ------  effects
//!      to those who      to the state   to the leader (control), or to
//!      proposed          database       the index (shard)
//! ```
//!
//! - **Nothing but the entry counts.** There is no clock, no randomness, no environment and no hash map in here; clippy holds
//!   the crate to it. Time is in the entry ([`LogTime`]), and so is everything that the leader has chosen.
//! - **An operation is all or nothing.** One that is refused ([`Reject`]) has changed nothing. It sees what the ones before it
//!   in its entry did. A command checks first and changes afterwards.
//! - **Once.** An operation with a [`RequestId`] that took effect before is not run again: it gets the same reply.
//! - **Rows are the state.** All that must survive is a record, and records cannot change without a row: `load` of all rows is
//!   an equal machine. What is too large for memory (payloads, results, vectors) is only a row.
//! - **A [`Fault`] is not an answer.** It means that this replica is no longer a function of the log, and must stop.
//! - The *set hash* ([`control::Control::hash`]) is the sum over the hashes of all rows, kept up with each change: replicas that
//!   have applied the same entries have the same one.
//!
//! To add a command: a variant of `Command` (at the end: the encoding counts them), a file with its name that applies it
//! and holds its refusals and tests, and a line in `dispatch`. If it keeps something new, a record with a table number that
//! was never used, and a line in `load`.

pub mod codec;
pub mod control;
mod entry;
mod ids;
mod metric;
#[cfg(feature = "planted")]
pub mod planted;
mod records;
mod reject;
mod requests;
pub mod shard;

pub use entry::{Entry, Fault, MAX_OPERATIONS, Operation, Outcome, Row};
pub use ids::{CollectionId, LogTime, NodeId, Position, ReplicaId, RequestId, SessionId, ShardId, TaskId, Token};
pub use metric::Metric;
pub use records::HASH_VERSION;
pub use reject::Reject;
