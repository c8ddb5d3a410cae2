//! JSON lines: one event, fault or note a line.

use std::{
    io::{self, BufWriter, Write},
    path::Path,
    thread,
};

use super::{Error, History};
use crate::event::{Event, Fault, Line, Note};

/// How a line of a fault begins: `nemesis` is its first field, and no event has one.
const FAULT: &[u8] = b"{\"nemesis\"";
/// How a line of a note begins.
const NOTE: &[u8] = b"{\"note\"";

impl History {
    /// Reads a history. The lines are parsed on all processors.
    ///
    /// A last line that was cut off, by a harness that was killed, is left out.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be read, [`Error::Line`] if a line cannot be understood.
    pub fn read(path: &Path) -> Result<History, Error> {
        let text = fs_err::read(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut lines: Vec<&[u8]> = text[..whole].split(|&byte| byte == b'\n').collect();
        lines.pop();
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let share = lines.len().div_ceil(threads).max(1);
        let parsed: Vec<Result<History, Error>> = thread::scope(|scope| {
            let parts: Vec<_> = lines.chunks(share).enumerate().collect();
            let running: Vec<_> =
                parts.into_iter().map(|(part, lines)| scope.spawn(move || parse(lines, part * share + 1))).collect();
            running.into_iter().map(|part| part.join().expect("parsing lines does not panic")).collect()
        });
        let mut history = History::default();
        for part in parsed {
            let part = part?;
            history.events.extend(part.events);
            history.faults.extend(part.faults);
            history.notes.extend(part.notes);
        }
        // The line that was cut off may still be whole but for its end: then it is good.
        if let Ok(line) = serde_json::from_slice::<Line>(&text[whole..]) {
            history.push(line);
        }
        Ok(history)
    }

    /// Writes the history as JSON lines: the notes, the events, then the faults.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            let mut file = BufWriter::new(fs_err::File::create(path)?);
            for note in &self.notes {
                put(&mut file, note)?;
            }
            for event in &self.events {
                put(&mut file, event)?;
            }
            for fault in &self.faults {
                put(&mut file, fault)?;
            }
            file.flush()
        };
        write().map_err(|source| Error::File { path: path.to_owned(), source })
    }

    fn push(&mut self, line: Line) {
        match line {
            Line::Note(note) => self.notes.push(note),
            Line::Fault(fault) => self.faults.push(fault),
            Line::Event(event) => self.events.push(event),
        }
    }
}

/// Writes one line.
pub(super) fn put(out: &mut impl Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Parses lines of which the first has the number `first`.
fn parse(lines: &[&[u8]], first: usize) -> Result<History, Error> {
    let mut history = History::default();
    for (line, text) in lines.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        let told = |source| Error::Line { line: first + line, source };
        if text.starts_with(FAULT) {
            history.faults.push(serde_json::from_slice::<Fault>(text).map_err(told)?);
        } else if text.starts_with(NOTE) {
            history.notes.push(serde_json::from_slice::<Note>(text).map_err(told)?);
        } else {
            history.events.push(serde_json::from_slice::<Event>(text).map_err(told)?);
        }
    }
    Ok(history)
}
