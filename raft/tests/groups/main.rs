//! Groups of three nodes on loopback, with disks in memory that can crash and a network that can be cut.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod cluster;
mod damage;
#[cfg(feature = "rocksdb")]
mod durable;
mod faults;
mod members;
mod peers;
mod scrub;
