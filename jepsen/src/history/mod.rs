//! Histories: what a run did and what became of it, written as it happens and read again to be judged.
//!
//! A history is a file of JSON lines: an [`Event`] for each beginning and each end of an operation, in the order in which
//! the harness saw them, and a [`Fault`] for each fault, written when it ended. The order of the lines is the order of real
//! time: the [`Recorder`] takes the time and the place in the file under one lock, a beginning is recorded before the request
//! is sent and an end after the answer came. So if one operation's end stands before another's beginning, the first was over
//! before the second began, and checkers compare places in the file and never times, which may tie.
//!
//! - `recorder`: takes events from many tasks at once and streams them to the file.
//! - `lines`: reads and writes JSON lines.
//! - `span`: pairs beginnings with ends; refuses a history that is not well formed.
//! - `edn`: writes what Knossos and Elle read.

mod edn;
mod lines;
mod recorder;
mod span;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

pub use edn::Dialect;
pub use recorder::{Counts, Process, Recorder};
pub use span::Span;

use crate::event::{Event, Fault, Micros};

/// All that a run recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Events of operations, in the order in which they happened.
    pub events: Vec<Event>,
    /// Faults, in the order in which they ended.
    pub faults: Vec<Fault>,
}

/// A history cannot be written, read or understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("history {}: {source}; check the path and the space on its disk", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is no event and no fault.
    #[error(
        "line {line} of the history is no event and no fault ({source}); the file is damaged or of another version, run the workload again"
    )]
    Line {
        /// The number of the line, from 1.
        line: usize,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The events contradict each other: this is a defect of the harness, not of what it tests.
    #[error(
        "event {place} of the history is not well formed: {what}; this is a defect of the workload, not of the cluster"
    )]
    Malformed {
        /// The place of the event, from 0.
        place: usize,
        /// What is wrong with it.
        what: String,
    },
}

impl History {
    /// When the last event or fault was over; 0 for an empty history.
    pub fn end(&self) -> Micros {
        let faults = self.faults.iter().map(|fault| fault.to).max().unwrap_or(0);
        self.events.last().map_or(0, |event| event.time).max(faults)
    }
}
