//! The command line of Quorate: one binary that is the node, its operator's tool and its load generator.
//!
//! [`program`] parses and dispatches, and `main.rs` only calls it. A noun has a module (`cluster`, `task`, ...), `demo` and `bench` have folders.
//! Data goes to standard output through [`output`], everything else to standard error. This library exists so that the
//! whole-cluster tests start their clusters exactly as `dev`, `demo` and `bench --spawn` do: through [`local_cluster`].

pub mod bench;
pub mod cluster;
pub mod collection;
pub mod damage;
pub mod dataset;
pub mod demo;
pub mod exit;
pub mod local_cluster;
pub mod memory;
pub mod node;
pub mod output;
pub mod program;
pub mod task;
