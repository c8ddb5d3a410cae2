//! Quorate under real faults.
//!
//! A run starts a cluster of real processes, each in a network namespace of its own and, where power is to be cut, on a disk
//! of its own; lets real clients work on it; breaks it while they do; heals it; and holds what the clients saw against what
//! the product promises. A promise that is not attacked here, or in the simulation, is not one.
//!
//! ```text
//!  command ── run ──┬── cluster    processes, namespaces, disks, links, clocks
//!                   ├── workload   clients and agents, each operation recorded ──┐
//!                   ├── nemesis    faults, each recorded when it has ended ──────┤
//!                   └── check <── history <──────────────────────────────────────┘
//!                         └── plot
//! ```
//!
//! # Words
//! - An operation ends *ok*, *fail* (it certainly took no effect) or *info* (nobody knows).
//! - A fault is *installed* (it was seen to bite), *skipped* or *indeterminate*; never "failed".
//! - A run is *valid*, *invalid* (a promise was broken) or *void*: a nemesis never bit, throughput was under the floor, or
//!   the harness failed. A void run is no verdict.
//!
//! # Map
//! `event` is the data model, `history` records and reads it, `check` judges it, `plot` draws it. `cluster` builds what is
//! broken, `nemesis` breaks it, `workload` works on it; `run` puts them together. `command` is the command line, `ledger`
//! what a campaign has done so far. `planted` bugs (see `command`) show that the checkers see anything at all.

pub mod check;
pub mod cluster;
pub mod command;
pub mod event;
pub mod history;
pub mod ledger;
pub mod nemesis;
pub mod plot;
pub mod run;
pub mod workload;
