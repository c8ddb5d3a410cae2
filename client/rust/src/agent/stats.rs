//! What an agent tells about itself.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

/// Counts since the agent was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentStats {
    /// Sessions that were opened.
    pub sessions: u64,
    /// Streams that broke and were resumed.
    pub resumes: u64,
    /// Attempts that were started.
    pub started: u64,
    /// Completions that were acknowledged.
    pub completed: u64,
    /// Failures that were acknowledged.
    pub failed: u64,
    /// Outcomes that came too late: refused here after the lease, or by the cluster as stale.
    pub refused: u64,
    /// Attempts that were given up: the lease ran out, or the cluster said that they were lost.
    pub lost: u64,
    /// Attempts whose task was cancelled.
    pub cancelled: u64,
    /// Attempts that run now.
    pub running: u64,
}

/// One of the counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    Sessions,
    Resumes,
    Started,
    Completed,
    Failed,
    Refused,
    Lost,
    Cancelled,
    Running,
}

const COUNTS: usize = Count::Running as usize + 1;

/// The agent's session as others see it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SessionState {
    pub(crate) id: Option<u64>,
    pub(crate) ended: bool,
}

/// What the driver writes and the handle reads.
#[derive(Debug)]
pub(crate) struct Shared {
    counts: [AtomicU64; COUNTS],
    session: watch::Sender<SessionState>,
    last_error: Mutex<Option<String>>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { counts, session: watch::Sender::new(SessionState::default()), last_error: Mutex::new(None) }
    }

    pub(crate) fn add(&self, count: Count, number: usize) {
        self.counts[count as usize].fetch_add(number as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_running(&self, number: usize) {
        self.counts[Count::Running as usize].store(number as u64, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> AgentStats {
        let read = |count: Count| self.counts[count as usize].load(Ordering::Relaxed);
        AgentStats {
            sessions: read(Count::Sessions),
            resumes: read(Count::Resumes),
            started: read(Count::Started),
            completed: read(Count::Completed),
            failed: read(Count::Failed),
            refused: read(Count::Refused),
            lost: read(Count::Lost),
            cancelled: read(Count::Cancelled),
            running: read(Count::Running),
        }
    }

    pub(crate) fn session(&self) -> watch::Receiver<SessionState> {
        self.session.subscribe()
    }

    pub(crate) fn set_session(&self, id: Option<u64>) {
        self.session.send_modify(|state| state.id = id);
    }

    pub(crate) fn set_ended(&self) {
        self.session.send_replace(SessionState { id: None, ended: true });
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    pub(crate) fn set_error(&self, why: &str) {
        *self.last_error.lock() = Some(why.to_owned());
    }
}
