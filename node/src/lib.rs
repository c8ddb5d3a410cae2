//! One Quorate server.
//!
//! A node is a peer among equals. It hosts replicas of Raft groups: *control*, which holds the task queue, the sessions
//! of agents, the members and the shard map, and *shards*, which hold the memory. This crate turns the parts into a
//! server: [`start`](start::start) is the only place where they are wired together, and everything else here gets what
//! it needs in a [`Context`].
//!
//! How a write travels: a gRPC handler builds an operation and hands it to the [`Proposer`] of the group, here if this
//! node leads, else by the [`Peers`] on the leader. The proposer gathers what waits into one entry, stamps it with log
//! time and submits it to `quorate-raft`. When a majority has it on disk every replica's machine applies it, and the
//! replies go back the way the operations came.
//!
//! Nothing that the cluster must remember lives in this crate: who is a member, which node holds which replica and who
//! is leaving are all facts of the control state. The loops in [`cluster`] compare those facts with what runs and do
//! the next step, so that each of them can be stopped at any point and taken up by another leader.
//!
//! Lock order: the control state's lock is taken last and held shortly; nothing is awaited under a lock.

pub mod cluster;
pub mod config;
pub mod context;
pub mod control;
pub mod error;
pub mod grpc;
pub mod hosting;
pub mod http;
pub mod limits;
pub mod log_clock;
pub mod memory;
pub mod metrics;
pub mod peers;
#[cfg(feature = "planted")]
pub mod planted;
pub mod proposer;
pub mod quarantine;
pub mod request;
pub mod start;
pub mod tasks;
#[cfg(test)]
mod testing;

pub use config::{Config, TimersProfile};
pub use context::Context;
pub use control::{Applied, ControlHandle};
pub use error::{Error, ErrorReason};
pub use hosting::ShardHost;
pub use log_clock::{Clock, SystemClock};
pub use metrics::Metrics;
pub use peers::{CallHandler, Dispatch, Peers, StreamHandler};
pub use proposer::{Matcher, Proposable, Proposer, Replies};
#[cfg(feature = "rocksdb")]
pub use start::start;
pub use start::{Addresses, Node, NodeHandle, StartError};
