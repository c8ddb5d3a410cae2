//! Where work that may block runs.

use std::io;

/// On the pool of the runtime, or in place where a simulation must stay deterministic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocking {
    /// On a thread of tokio's blocking pool.
    Pool,
    /// On the caller's thread.
    InPlace,
}

/// More bytes than this in one batch of entries are applied with the rest of the runtime warned.
const LARGE_BATCH_BYTES: usize = 64 << 10;

impl Blocking {
    /// Runs `work` and waits for it.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        match self {
            Blocking::InPlace => work(),
            Blocking::Pool => tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?,
        }
    }

    /// Runs `work` on this thread. When it is expected to take long, the other tasks of the thread move elsewhere
    /// first; that costs more than a short piece of work itself does.
    pub(crate) fn in_place<T>(self, bytes: usize, work: impl FnOnce() -> T) -> T {
        if self == Blocking::Pool && bytes > LARGE_BATCH_BYTES { tokio::task::block_in_place(work) } else { work() }
    }
}
