//! Writes what Knossos and Elle read: one map a line, times in nanoseconds, the line of a fault as `:process :nemesis`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, BufWriter, Write},
    path::Path,
};

use serde_json::Value;

use super::{Error, History};
use crate::event::{Event, Fault, Operation, Phase};

/// For whom registers are written; all else is the same for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `:read`, `:write` and `:cas` on tuples `[key value]`: Knossos with one register for each key.
    Knossos,
    /// `:txn` with micro-operations `[:r key value]` and `[:w key value]`: Elle's `rw-register`.
    Elle,
}

impl History {
    /// Writes the history as EDN.
    ///
    /// Something instant, which has no beginning of its own, is written with one right before it. A fault is two lines, at its
    /// beginning and at its end.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be written, [`Error::Malformed`] if the history is not well formed.
    pub fn write_edn(&self, path: &Path, dialect: Dialect) -> Result<(), Error> {
        let instants: Vec<usize> =
            self.spans()?.iter().filter(|span| span.is_instant()).map(|span| span.begin).collect();
        let write = || -> io::Result<()> {
            let mut file = BufWriter::new(fs_err::File::create(path)?);
            self.edn(&instants, dialect, &mut file)?;
            file.flush()
        };
        write().map_err(|source| Error::File { path: path.to_owned(), source })
    }

    fn edn(&self, instants: &[usize], dialect: Dialect, out: &mut impl Write) -> io::Result<()> {
        let mut marks: Vec<(u64, &Fault, bool)> = self.faults.iter().map(|fault| (fault.from, fault, true)).collect();
        marks.extend(self.faults.iter().map(|fault| (fault.to, fault, false)));
        // Sorting is stable, so a fault without length begins before it ends.
        marks.sort_by_key(|&(at, _, _)| at);
        let (mut marks, mut instants) = (marks.into_iter().peekable(), instants.iter().peekable());
        let mut number = 0_u64;
        let mut line = |type_: &str, process: &str, f: &str, value: &str, micros: u64| -> io::Result<()> {
            writeln!(
                out,
                "{{:type :{type_}, :f :{f}, :value {value}, :process {process}, :time {}, :index {number}}}",
                micros.saturating_mul(1_000)
            )?;
            number += 1;
            Ok(())
        };
        for (at, event) in self.events.iter().enumerate() {
            while let Some((time, fault, begins)) = marks.next_if(|&(time, _, _)| time <= event.time) {
                line("info", ":nemesis", &name(&fault.nemesis), &mark(fault, begins), time)?;
            }
            let (f, process) = (f(&event.operation, dialect), event.process.to_string());
            if instants.next_if_eq(&&at).is_some() {
                let begins = Event { phase: Phase::Invoke, ..event.clone() };
                line("invoke", &process, f, &value(&begins, dialect), event.time)?;
            }
            line(phase(event.phase), &process, f, &value(event, dialect), event.time)?;
        }
        for (time, fault, begins) in marks {
            line("info", ":nemesis", &name(&fault.nemesis), &mark(fault, begins), time)?;
        }
        Ok(())
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Invoke => "invoke",
        Phase::Ok => "ok",
        Phase::Fail => "fail",
        Phase::Info => "info",
    }
}

/// A name as a keyword: what EDN does not allow in one becomes a dash.
fn name(text: &str) -> String {
    let name: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect();
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) { name } else { format!("fault-{name}") }
}

fn mark(fault: &Fault, begins: bool) -> String {
    format!("[{} {}]", if begins { ":start" } else { ":stop" }, text(&fault.kind))
}

fn text(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

fn f(operation: &Operation, dialect: Dialect) -> &'static str {
    match operation {
        Operation::Read { .. } | Operation::Write { .. } | Operation::Cas { .. } if dialect == Dialect::Elle => "txn",
        other => other.name(),
    }
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "nil".to_owned(), |value| value.to_string())
}

fn value(event: &Event, dialect: Dialect) -> String {
    // Only an answer says what was read.
    let known = |value: Option<u64>| number(value.filter(|_| event.phase == Phase::Ok));
    match (&event.operation, dialect) {
        (Operation::Read { key, value }, Dialect::Knossos) => format!("[{key} {}]", known(value.flatten())),
        (Operation::Read { key, value }, Dialect::Elle) => format!("[[:r {key} {}]]", known(value.flatten())),
        (Operation::Write { key, value }, Dialect::Knossos) => format!("[{key} {value}]"),
        (Operation::Write { key, value }, Dialect::Elle) => format!("[[:w {key} {value}]]"),
        (Operation::Cas { key, expected, value }, Dialect::Knossos) => {
            format!("[{key} [{} {value}]]", number(*expected))
        }
        (Operation::Cas { key, expected, value }, Dialect::Elle) => {
            format!("[[:r {key} {}] [:w {key} {value}]]", known(*expected))
        }
        (operation, _) => fields(operation),
    }
}

/// The fields of an operation as a map of keywords.
fn fields(operation: &Operation) -> String {
    let Ok(Value::Object(fields)) = serde_json::to_value(operation) else { return "nil".to_owned() };
    let mut map = String::from("{");
    let sorted: BTreeMap<&String, &Value> = fields.iter().filter(|(field, _)| *field != "f").collect();
    for (field, value) in sorted {
        let separator = if map.len() > 1 { ", " } else { "" };
        let value = match value {
            Value::Null => "nil".to_owned(),
            // JSON and EDN agree on numbers, texts, truth and vectors of them.
            value => value.to_string(),
        };
        write!(map, "{separator}:{field} {value}").expect("writing to a string does not fail");
    }
    map.push('}');
    map
}
