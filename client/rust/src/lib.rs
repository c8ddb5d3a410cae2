//! The Rust client and the agent SDK of Quorate.
//!
//! A [`Client`] talks to a cluster through any of its nodes. It follows hints to the leader, retries what is safe within
//! the deadline of the call, and sends every mutation under one request id, so that a retry takes effect at most once.
//! An error says whether the call was refused ([`Error::Refused`], [`Error::Unreachable`]: nothing took effect) or whether
//! that is open ([`Error::OutcomeUnknown`]).
//!
//! ```no_run
//! use quorate_client::{Client, NewTask};
//!
//! # async fn example() -> Result<(), quorate_client::Error> {
//! let client = Client::connect(["10.0.0.1:7701", "10.0.0.2:7701"])?;
//! let id = client.enqueue(NewTask::new("mail", "hello")).await?;
//! println!("task {id}");
//! # Ok(())
//! # }
//! ```
//!
//! An [`Agent`] performs tasks. It holds one session; a change of the leader, a node that dies or a stream that breaks is
//! not seen by the handlers.
//!
//! ```no_run
//! use quorate_client::{Agent, Client, NewTask, Output};
//!
//! # async fn example() -> Result<(), quorate_client::Error> {
//! let client = Client::connect(["10.0.0.1:7701"])?;
//! let agent = Agent::builder(&client, "writer")
//!     .role("mail")
//!     .slots(4)
//!     .handler(async |attempt| {
//!         let text = String::from_utf8(attempt.payload.to_vec())?;
//!         Ok(Output::new(text.to_uppercase()).child(NewTask::new("review", text)))
//!     })
//!     .start()?;
//! agent.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Promises
//! - A handler's outcome is sent until the cluster has answered it; a completion and its children take effect together,
//!   once.
//! - The agent stops acting for a session before the cluster can give its tasks to others, as long as the clocks of
//!   both run at the same rate; beyond that the grant's token fences (see [`Attempt::token`]).
//! - Everything that waits is bounded: calls by their deadline, enqueues by size, attempts by slots.
//!
//! # Map
//! `nodes` knows addresses, channels and the leader; `call` is the retry loop of unary calls; `enqueue` gathers single
//! enqueues over one stream; `verbs` are the calls by service; `agent` is the SDK; [`Connector`] is the seam to the network.

mod agent;
mod backoff;
mod call;
mod client;
mod connector;
mod enqueue;
mod error;
mod nodes;
#[cfg(feature = "planted")]
pub mod planted;
mod verbs;

pub use agent::{Agent, AgentBuilder, AgentHandle, AgentStats, Attempt, LeaseKeeper, Output, TaskError};
pub use client::Client;
pub use connector::{Connector, Io, TcpConnector, host_and_port};
pub use error::Error;
pub use quorate_api::{ApiError, limits, v1};
pub use verbs::{NewCollection, NewTask, Search, TaskFilter};
