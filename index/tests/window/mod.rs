//! What the writer and the searchers of one test agree on: which rows are promised to a search that is under way.

use std::ops::Range;
use std::thread;

use parking_lot::{Condvar, Mutex};

/// Rows that one search counts on: the youngest so many.
pub(crate) const HELD: u64 = 200;

/// The rows that are written and not removed yet, oldest to youngest.
///
/// A search may stand still for as long as the machine likes, and thousands of rows come and go meanwhile. Only what stays
/// until its end is promised to it. So a search holds the rows that it counts on, and the writer waits for it before it
/// removes one of them; otherwise a test accuses the index of what the test's own writer did.
#[derive(Default)]
pub(crate) struct Window {
    rows: Mutex<Rows>,
    changed: Condvar,
}

#[derive(Default)]
struct Rows {
    written: u64,
    removed: u64,
    /// The oldest row of each search.
    held: Vec<u64>,
    /// How many searches have ended.
    ended: u64,
    /// A searcher panicked.
    failed: bool,
    /// The writer waits before it removes a row.
    waiting: bool,
    /// The writer has done everything that it will do.
    finished: bool,
}

/// The writer at work.
pub(crate) struct Writing<'a>(&'a Window);

/// A search under way.
pub(crate) struct Held<'a> {
    window: &'a Window,
    /// They stay until this is dropped.
    pub(crate) rows: Range<u64>,
    /// All rows below were removed before.
    pub(crate) removed: u64,
}

impl Window {
    /// The row is acknowledged.
    pub(crate) fn wrote(&self, row: u64) {
        self.rows.lock().written = row + 1;
    }

    /// Runs `remove` for the oldest row, once no search counts on it.
    pub(crate) fn remove_oldest(&self, row: u64, remove: impl FnOnce()) {
        let mut rows = self.rows.lock();
        assert_eq!(row, rows.removed, "rows go in the order in which they came");
        while rows.held.iter().any(|&oldest| oldest <= row) {
            rows.waiting = true;
            self.changed.notify_all();
            self.changed.wait(&mut rows);
        }
        rows.waiting = false;
        // `hold` never gives the oldest row, so no lock is needed to keep it from this one.
        drop(rows);
        remove();
        self.rows.lock().removed = row + 1;
    }

    /// Ends with what it gives, by a panic of the writer as well: then nobody waits for it for ever.
    pub(crate) fn writing(&self) -> Writing<'_> {
        Writing(self)
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.rows.lock().finished
    }

    /// Returns when one more search has ended. There must be enough rows for one.
    pub(crate) fn wait_for_search(&self) {
        let mut rows = self.rows.lock();
        let ended = rows.ended;
        // After a panic there may be nobody left to end one, and the test fails anyway.
        while rows.ended == ended && !rows.failed {
            self.changed.wait(&mut rows);
        }
    }

    /// Returns when the writer waits before it removes a row, or is finished.
    pub(crate) fn wait_for_writer(&self) {
        let mut rows = self.rows.lock();
        while !rows.waiting && !rows.finished {
            self.changed.wait(&mut rows);
        }
    }

    /// Begins a search of the youngest rows; `None` while there are too few.
    pub(crate) fn hold(&self) -> Option<Held<'_>> {
        let mut rows = self.rows.lock();
        let (written, removed) = (rows.written, rows.removed);
        if written <= removed + HELD {
            return None;
        }
        rows.held.push(written - HELD);
        Some(Held { window: self, rows: written - HELD..written, removed })
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.rows.lock().finished = true;
        self.0.changed.notify_all();
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut rows = self.window.rows.lock();
        if let Some(place) = rows.held.iter().position(|&oldest| oldest == self.rows.start) {
            rows.held.swap_remove(place);
        }
        rows.ended += 1;
        rows.failed |= thread::panicking();
        drop(rows);
        self.window.changed.notify_all();
    }
}
