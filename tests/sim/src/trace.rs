//! What a run is recognised by: the same seed must make the same trace, byte for byte.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write as _};

use crate::digest::Digest;

/// Names a file that the trace of `quorate-sim one SEED STEPS` is written to.
const FILE: &str = "QUORATE_SIM_TRACE";

/// The lines of a run, hashed, and written down where somebody wants to read them.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    digest: Digest,
    line: String,
    file: Option<BufWriter<File>>,
}

impl Trace {
    /// A trace that is written down if the environment names a file for it.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub(crate) fn open() -> std::io::Result<Trace> {
        let file = std::env::var_os(FILE).map(File::create).transpose()?;
        Ok(Trace { file: file.map(BufWriter::new), ..Trace::default() })
    }

    /// Adds a line.
    pub(crate) fn note(&mut self, step: u64, what: fmt::Arguments<'_>) {
        use fmt::Write as _;
        self.line.clear();
        // Writing to a string cannot fail.
        let _ = writeln!(self.line, "{step} {what}");
        self.digest.bytes(self.line.as_bytes());
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(self.line.as_bytes())
        {
            eprintln!("the trace is cut off: {error}");
            self.file = None;
        }
    }

    /// The hash of all lines.
    pub(crate) fn value(&self) -> u64 {
        self.digest.value()
    }

    /// Puts what was written on the disk.
    pub(crate) fn flush(&mut self) {
        if let Some(Err(error)) = self.file.as_mut().map(std::io::Write::flush) {
            eprintln!("the trace is cut off: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_line_is_another_trace() {
        let trace = |lines: &[&str]| {
            let mut trace = Trace::default();
            lines.iter().for_each(|line| trace.note(1, format_args!("{line}")));
            trace.value()
        };
        assert_eq!(trace(&["a", "b"]), trace(&["a", "b"]));
        assert_ne!(trace(&["a", "b"]), trace(&["b", "a"]));
        assert_ne!(trace(&["a"]), trace(&["a", "b"]));
    }
}
