//! The verbs of the client, by service. Each is one [`call`](crate::call::call) with its request.

mod cluster;
mod memory;
mod tasks;

pub use memory::{NewCollection, Search};
pub(crate) use tasks::check_task;
pub use tasks::{NewTask, TaskFilter};
