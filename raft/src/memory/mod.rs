//! A disk in memory, for simulation and tests: it forgets what was not made durable, and fails where it is told to.
//!
//! A [`MemoryLog`], [`MemoryFloor`] or [`MemoryStates`] is the disk itself. Clones share it, and it outlives the node that uses
//! it: a crash is [`MemoryLog::crash`], [`MemoryFloor::crash`] and [`MemoryStates::crash`], after which everything that a dead
//! node still holds fails, and a new node opens the same disk.

mod floor;
mod log;
mod states;
mod view;

pub use floor::{FloorFault, FloorHook, MemoryFloor};
pub use log::{CommitFault, CommitHook, MemoryLog};
pub use states::MemoryStates;
pub use view::{RecordView, VoteView, view_change};
