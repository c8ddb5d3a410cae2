//! Raft groups of Quorate: everything between "here are some bytes" and "they are on the disks of a majority, in this
//! order, and have been applied here".
//!
//! A node opens one [`Groups`]. It holds what all groups of the node share: the log database with its single writer,
//! the connections to the other nodes, and a runtime of its own, so that searches and HTTP cannot starve a heartbeat.
//! From it the node starts a [`Group`] for the control log and one for each shard that it holds. A group is driven by
//! openraft; this crate is the only one that names it.
//!
//! The crate does not know what it replicates. Proposals are opaque bytes; the [`Machine`] behind a group, which the
//! node implements, applies them and says which rows changed; the rows and the applied position reach the group's
//! [`StateStore`] in one atomic batch. That store needs no fsync, because the Raft log is its write-ahead log: the log
//! is purged only below what a checkpoint of the store has on disk, and only once a majority has confirmed the checkpoint.
//!
//! ```text
//!   propose ─► openraft core ─► log writer (one thread, one fsync for all that waits) ─► committed
//!                  │  ▲                                                                      │
//!        append stream (one per peer, all groups)                              Machine::apply ─► rows ─► StateStore
//! ```
//!
//! Four seams make the crate run on a simulated network, disk and clock: [`LogEngine`], [`FloorFile`], [`StateStores`]
//! and [`Connector`]. Time is tokio's clock and nothing else.
//!
//! Invariants that the rest of the project builds on:
//! - A [`Committed`] proposal is fsynced on a majority and applied here.
//! - A time-out or a lost leader means *unknown*, never *failed*: [`ProposeError::Unknown`].
//! - [`Leadership::mine`] is true only after an entry of the leader's own term has been applied locally, so a leader
//!   that acts on its machine sees everything that any earlier leader acknowledged.
//! - A replica whose disk is damaged is quarantined durably before anybody is told: [`Stop::Damaged`]. It never votes again.
//! - A message of another cluster, from a node that is not who it was, or to a group that is not here, is refused.

pub mod engine;
pub mod ids;
pub mod log;
pub mod machine;
pub mod memory;
#[cfg(feature = "planted")]
pub mod planted;
#[cfg(feature = "rocksdb")]
pub mod rocks;

mod apply;
mod aside;
mod blocking;
mod checkpoints;
mod followers;
mod group;
mod groups;
mod hashes;
mod health;
mod identity;
mod metrics;
mod observe;
mod proto;
mod purge;
mod reads;
mod scrub;
mod snapshot;
mod start;
mod timers;
mod transport;
pub mod types;
mod watched;

pub use engine::{FloorFile, LogChange, LogEngine, MarkKind};
pub use group::{Committed, Group, GroupView, Leadership, MembershipError, Pending, ProposeError, ReadError};
pub use groups::{GroupConfig, Groups, GroupsConfig, OpenError, Seams};
pub use health::Stop;
pub use identity::{Identity, IdentityError};
pub use ids::{ClusterId, GroupId, LogPosition, NodeId, ReplicaId};
pub use log::{LogError, StoredReplica, TaskHooks, WriterMode};
pub use machine::{Fault, Machine, Reply, Reread, RowBatch, RowVisitor, StateStore, StateStores, Table};
pub use observe::{Applying, Observer, failpoint};
pub use timers::Timers;
pub use transport::{BoxIo, Connector, Io, Peer, PeerError, PeerHandler, TcpConnector};
pub use types::Member;
