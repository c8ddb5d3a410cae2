//! The clock settings of a group.

use std::time::Duration;

/// Heartbeat and election times of one group, in milliseconds. All replicas of a group must have the same: what a leader takes
/// for its lease, its followers must keep.
///
/// The leader's lease is the election maximum. The heartbeat interval must exceed the slow end of the disk's fsync:
/// a follower answers a heartbeat only after what came before it is on disk, and the leader cuts the answer off after
/// one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// How often a leader makes itself heard, in milliseconds.
    pub heartbeat_ms: u64,
    /// The least time without a leader after which a follower asks for votes, in milliseconds.
    pub election_min_ms: u64,
    /// The most time without a leader after which a follower asks for votes, in milliseconds; also the leader's lease.
    pub election_max_ms: u64,
}

impl Timers {
    /// Times for local disks whose fsync stays below some ten milliseconds.
    pub const fn fast() -> Self {
        Timers { heartbeat_ms: 30, election_min_ms: 100, election_max_ms: 150 }
    }

    /// The same proportions, `factor` times slower: for groups whose failover may take longer, so that many of them
    /// cost little when idle.
    pub const fn slower(self, factor: u64) -> Self {
        Timers {
            heartbeat_ms: self.heartbeat_ms * factor,
            election_min_ms: self.election_min_ms * factor,
            election_max_ms: self.election_max_ms * factor,
        }
    }

    /// How long a follower that has answered its leader votes for nobody else.
    pub(crate) const fn lease(&self) -> Duration {
        Duration::from_millis(self.election_max_ms)
    }

    /// Whether a group can keep a leader with these times: a follower must be able to miss a heartbeat, and election
    /// time-outs must differ between replicas.
    pub const fn is_sane(&self) -> bool {
        self.heartbeat_ms >= 10
            && self.election_min_ms >= 2 * self.heartbeat_ms
            && self.election_max_ms >= self.election_min_ms + self.heartbeat_ms
    }
}

impl Default for Timers {
    fn default() -> Self {
        Timers { heartbeat_ms: 50, election_min_ms: 150, election_max_ms: 300 }
    }
}
