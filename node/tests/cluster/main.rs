//! Nodes in one process, on loopback and temporary directories: how they start, form a cluster, grow, shrink and tell.

#[cfg(feature = "rocksdb")]
mod deleting;
#[cfg(feature = "rocksdb")]
mod diverging;
mod failing;
mod formation;
mod harness;
mod leaving;
mod memory;
mod points;
mod proposing;
mod serving;
mod starting;
mod telling;
