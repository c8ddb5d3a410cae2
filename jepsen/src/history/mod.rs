//! Histories: what a run did and what became of it, written as it happens and read again to be judged.
//!
//! A history is a file of JSON lines: an [`Event`] for each beginning and each end of an operation, in the order in which
//! the harness saw them, a [`Fault`] for each fault, written when it ended, and a [`Note`] for what was asked of the run,
//! how far it came and what the harness itself saw; so that the file alone says what the run comes to. The order of the lines is the order of real
//! time: the [`Recorder`] takes the time and the place in the file under one lock, a beginning is recorded before the request
//! is sent and an end after the answer came. So if one operation's end stands before another's beginning, the first was over
//! before the second began, and checkers compare places in the file and never times, which may tie.
//!
//! - `recorder`: takes events from many tasks at once and streams them to the file.
//! - `lines`: reads and writes JSON lines.
//! - `span`: pairs beginnings with ends; refuses a history that is not well formed.
//! - `edn`: writes all registers as Knossos and Elle read them.
//! - `objects`: writes a file for each object, for readers that know one only.

mod edn;
mod lines;
mod objects;
mod recorder;
mod span;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

pub use edn::Dialect;
pub use recorder::{Counts, Process, Recorder};
pub use span::Span;

use crate::event::{Asked, Event, Fault, Micros, Note, Stage};

/// Stalls that are no further apart are one: the machine is not asked more often whether it works.
const ONE_STALL: Micros = 100_000;

/// All that a run recorded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Events of operations, in the order in which they happened.
    pub events: Vec<Event>,
    /// Faults, in the order in which they ended.
    pub faults: Vec<Fault>,
    /// Notes, in the order in which they were made.
    pub notes: Vec<Note>,
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
    /// A line is no event, no fault and no note.
    #[error(
        "line {line} of the history is no event, no fault and no note ({source}); the file is damaged or of another version, run the workload again"
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
    /// What was asked of the run, if the history says it.
    pub fn asked(&self) -> Option<&Asked> {
        self.notes.iter().find_map(|note| match note {
            Note::Asked(asked) => Some(asked),
            _ => None,
        })
    }

    /// When the run came to a stage, if it did.
    pub fn reached(&self, wanted: Stage) -> Option<Micros> {
        self.notes.iter().find_map(|note| match *note {
            Note::Reached { stage, time } if stage == wanted => Some(time),
            _ => None,
        })
    }

    /// From when until when the machine stood still, each time once and in order: of one stall timers and disk tell each by
    /// itself, one after the other.
    pub fn stalls(&self) -> Vec<(Micros, Micros)> {
        let told = self.notes.iter().filter_map(|note| match *note {
            Note::Stalled { from, to, .. } => Some((from, to)),
            _ => None,
        });
        let mut told: Vec<_> = told.collect();
        told.sort_unstable();
        let mut stalls: Vec<(Micros, Micros)> = Vec::with_capacity(told.len());
        for (from, to) in told {
            match stalls.last_mut() {
                Some((_, end)) if from <= end.saturating_add(ONE_STALL) => *end = to.max(*end),
                _ => stalls.push((from, to)),
            }
        }
        stalls
    }

    /// From when until when the load ran; from beginning to end for a history that does not say it.
    pub fn load(&self) -> (Micros, Micros) {
        let first = || self.events.first().map_or(0, |event| event.time);
        let last = || self.events.last().map_or(0, |event| event.time);
        (self.reached(Stage::Load).unwrap_or_else(first), self.reached(Stage::LoadEnded).unwrap_or_else(last))
    }

    /// When the last event or fault was over; 0 for an empty history.
    pub fn end(&self) -> Micros {
        let faults = self.faults.iter().map(|fault| fault.to).max().unwrap_or(0);
        self.events.last().map_or(0, |event| event.time).max(faults)
    }
}
