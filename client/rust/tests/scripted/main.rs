//! The client and the agent SDK against scripted nodes.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod agents;
mod calls;
mod enqueues;
mod fake;
mod leases;
