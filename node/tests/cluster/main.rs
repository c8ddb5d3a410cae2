//! Nodes in one process, on loopback and temporary directories: how they start, form a cluster, grow, shrink and tell.

mod formation;
mod harness;
mod leaving;
mod proposing;
mod memory;
mod starting;
mod telling;
