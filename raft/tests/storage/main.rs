//! The storage under the Raft groups: openraft's own suite, crashes, damage, fsyncs, and the state stores.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod crash;
mod damage;
mod destroy;
mod floor;
mod fsync;
mod model;
mod rot;
mod space;
mod states;
mod suite;
mod support;
