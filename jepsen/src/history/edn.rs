//! Writes what Knossos and Elle read: one map a line with its dense `:index`, times in nanoseconds.
//!
//! Only registers are written. What a checker of registers does not know, such as a delivery, would be no value to it, and
//! would make it refuse the history or take it for an operation on a register.
//!
//! A fault is an operation of `:process :nemesis` at its beginning and one at its end. Each is two lines, because readers of
//! histories pair the lines of the nemesis one after the other. Their values are texts: a pair `[a b]` is always a key with
//! its value.

use std::{
    io::{self, BufWriter, Write},
    path::Path,
};

use serde_json::Value;

use super::{Error, History};
use crate::event::{Event, Fault, Operation, Phase};

/// For whom registers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `:read`, `:write` and `:cas` on tuples `[key value]`: Knossos with one register for each key.
    Knossos,
    /// `:read`, `:write` and `:cas` on plain values: one register, for a file that has no other.
    Single,
    /// `:txn` with micro-operations `[:r key value]` and `[:w key value]`: Elle's `rw-register`.
    Elle,
}

impl History {
    /// Writes the operations on registers as EDN, and the faults.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be written, [`Error::Malformed`] if the history is not well formed.
    pub fn write_edn(&self, path: &Path, dialect: Dialect) -> Result<(), Error> {
        self.validate()?;
        let write = || -> io::Result<()> {
            let mut file = BufWriter::new(fs_err::File::create(path)?);
            self.edn(dialect, &mut file)?;
            file.flush()
        };
        write().map_err(|source| Error::File { path: path.to_owned(), source })
    }

    fn edn(&self, dialect: Dialect, out: &mut impl Write) -> io::Result<()> {
        let mut marks: Vec<(u64, &Fault, bool)> = self.faults.iter().map(|fault| (fault.from, fault, true)).collect();
        marks.extend(self.faults.iter().map(|fault| (fault.to, fault, false)));
        // Sorting is stable, so a fault without length begins before it ends.
        marks.sort_by_key(|&(at, _, _)| at);
        let mut marks = marks.into_iter().peekable();
        let mut lines = Lines { out, number: 0 };
        for event in &self.events {
            while let Some((time, fault, begins)) = marks.next_if(|&(time, _, _)| time <= event.time) {
                lines.fault(fault, begins, time)?;
            }
            if let Some((_, f, value)) = register_op(event, dialect) {
                lines.put(phase(event.phase), f, &value, &event.process.to_string(), event.time)?;
            }
        }
        for (time, fault, begins) in marks {
            lines.fault(fault, begins, time)?;
        }
        Ok(())
    }
}

/// Lines with their numbers.
pub(super) struct Lines<W> {
    pub(super) out: W,
    pub(super) number: u64,
}

impl<W: Write> Lines<W> {
    pub(super) fn put(&mut self, type_: &str, f: &str, value: &str, process: &str, micros: u64) -> io::Result<()> {
        let (time, number) = (micros.saturating_mul(1_000), self.number);
        self.number += 1;
        writeln!(
            self.out,
            "{{:type :{type_}, :f :{f}, :value {value}, :process {process}, :time {time}, :index {number}}}"
        )
    }

    fn fault(&mut self, fault: &Fault, begins: bool, micros: u64) -> io::Result<()> {
        let f = format!("{}-{}", if begins { "start" } else { "stop" }, name(&fault.nemesis));
        self.put("info", &f, "nil", ":nemesis", micros)?;
        self.put("info", &f, &Value::String(fault.kind.clone()).to_string(), ":nemesis", micros)
    }
}

pub(super) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Invoke => "invoke",
        Phase::Ok => "ok",
        Phase::Fail => "fail",
        Phase::Info => "info",
    }
}

/// A name as a part of a keyword: what EDN does not allow in one becomes a dash.
fn name(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect()
}

pub(super) fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "nil".to_owned(), |value| value.to_string())
}

/// Which register something is done to, what, and the value; `None` if it is no operation on one.
pub(super) fn register_op(event: &Event, dialect: Dialect) -> Option<(u64, &'static str, String)> {
    // Only an answer says what was read.
    let known = |value: Option<u64>| number(value.filter(|_| event.phase == Phase::Ok));
    let (key, f, value, transaction) = match event.operation {
        Operation::Read { key, value } => {
            let value = known(value.flatten());
            let transaction = format!("[:r {key} {value}]");
            (key, "read", value, transaction)
        }
        Operation::Write { key, value } => (key, "write", value.to_string(), format!("[:w {key} {value}]")),
        Operation::Cas { key, expected, value } => {
            let transaction = format!("[:r {key} {}] [:w {key} {value}]", known(expected));
            (key, "cas", format!("[{} {value}]", number(expected)), transaction)
        }
        _ => return None,
    };
    Some(match dialect {
        Dialect::Knossos => (key, f, format!("[{key} {value}]")),
        Dialect::Single => (key, f, value),
        Dialect::Elle => (key, "txn", format!("[{transaction}]")),
    })
}
