//! A node's wall clock: libfaketime adds what a file says. The monotonic clock is left alone, as a host's is when its wall
//! clock is set.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::process::Command;

/// How long the process may take to look at the file again. It looks whenever it asks for the time, which a node with work
/// does all the time.
const LOOK: Duration = Duration::from_secs(2);

/// The clock of one node.
#[derive(Debug)]
pub(super) struct NodeClock {
    library: PathBuf,
    file: PathBuf,
}

impl NodeClock {
    pub(super) fn make(file: PathBuf) -> Result<NodeClock> {
        let clock = NodeClock { library: library()?, file };
        clock.set(0)?;
        Ok(clock)
    }

    /// Puts the clock under a process that is to be started.
    pub(super) fn put_under(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            // The name changed between versions of the library.
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1");
    }

    /// Sets it so many milliseconds off, at once.
    pub(super) fn set(&self, offset_ms: i64) -> Result<()> {
        let new = self.file.with_extension("new");
        let sign = if offset_ms < 0 { '-' } else { '+' };
        let ms = offset_ms.unsigned_abs();
        fs_err::write(&new, format!("{sign}{}.{:03}", ms / 1000, ms % 1000))?;
        // A rename: the process must never read half of it.
        Ok(fs_err::rename(&new, &self.file)?)
    }

    /// Whether the process was seen to read what [`Self::set`] wrote last.
    pub(super) async fn was_read(&self) -> bool {
        let read = || {
            let meta = std::fs::metadata(&self.file).ok()?;
            Some((meta.atime(), meta.atime_nsec()) > (meta.mtime(), meta.mtime_nsec()))
        };
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let seen = async {
            while read() != Some(true) {
                tick.tick().await;
            }
        };
        tokio::time::timeout(LOOK, seen).await.is_ok()
    }
}

/// The library for programs with threads, wherever this distribution keeps it.
fn library() -> Result<PathBuf> {
    for root in ["/usr/lib", "/usr/local/lib", "/usr/lib64"] {
        let inner = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        for folder in std::iter::once(PathBuf::from(root)).chain(inner) {
            let library = folder.join("faketime/libfaketimeMT.so.1");
            if library.exists() {
                return Ok(library);
            }
        }
    }
    bail!("libfaketimeMT.so.1 is not there: install libfaketime, or run without faults of clocks")
}
