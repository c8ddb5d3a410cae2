//! How long the agent may believe that its session lives.
//!
//! The leader counts the session's time to live from when it *received* a heartbeat; the agent counts from when it
//! *sent* the one that was acknowledged, and stops a margin earlier. So the agent's lease ends first, whatever the
//! network and the clocks' offsets do; only a difference in the clocks' rates beyond the margin could change that, and
//! then the token still fences.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

const LEAST_MARGIN: Duration = Duration::from_millis(100);
const MOST_MARGIN: Duration = Duration::from_secs(1);
const MOST_INTERVAL: Duration = Duration::from_secs(2);
/// Heartbeats whose acknowledgement is still awaited. More are never useful: the newest acknowledged one counts.
const AWAITED: usize = 64;

/// The lease of one session, on the monotonic clock.
#[derive(Debug)]
pub(crate) struct Lease {
    ttl: Duration,
    renewed_at: Instant,
    next_seq: u64,
    awaited: VecDeque<(u64, Instant)>,
}

impl Lease {
    /// The session was opened by a request that was sent at `sent_at`.
    pub(crate) fn opened(ttl: Duration, sent_at: Instant) -> Self {
        Self { ttl, renewed_at: sent_at, next_seq: 1, awaited: VecDeque::new() }
    }

    /// A heartbeat is about to be sent. Returns its sequence number.
    pub(crate) fn beat(&mut self, now: Instant) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        if self.awaited.len() == AWAITED {
            self.awaited.pop_front();
        }
        self.awaited.push_back((seq, now));
        seq
    }

    /// The heartbeat was acknowledged: the lease runs from when it was sent. An unknown or older number changes nothing.
    pub(crate) fn acknowledged(&mut self, seq: u64) {
        while let Some((first, sent_at)) = self.awaited.front().copied() {
            if first > seq {
                return;
            }
            self.awaited.pop_front();
            if first == seq {
                self.renewed_at = self.renewed_at.max(sent_at);
            }
        }
    }

    /// From this moment on the agent must not act for the session.
    pub(crate) fn expires_at(&self) -> Instant {
        #[cfg(feature = "planted")]
        if crate::planted::is("late-surrender") {
            return self.renewed_at + 5 * self.ttl;
        }
        self.renewed_at + self.ttl - margin(self.ttl)
    }

    /// When the stream that stays silent until then should be given up for another node: half of the lease is gone.
    pub(crate) fn doubtful_at(&self) -> Instant {
        self.renewed_at + self.ttl / 2
    }

    /// The pause between heartbeats.
    pub(crate) fn interval(&self) -> Duration {
        (self.ttl / 4).min(MOST_INTERVAL)
    }
}

fn margin(ttl: Duration) -> Duration {
    (ttl / 10).clamp(LEAST_MARGIN, MOST_MARGIN).min(ttl / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[test]
    fn the_lease_runs_from_the_sending_of_what_was_acknowledged() {
        let start = Instant::now();
        let mut lease = Lease::opened(TTL, start);
        assert_eq!(lease.expires_at(), start + Duration::from_secs(9));
        let first = lease.beat(start + Duration::from_secs(2));
        let second = lease.beat(start + Duration::from_secs(4));
        assert_eq!(lease.expires_at(), start + Duration::from_secs(9), "an unacknowledged heartbeat renews nothing");
        lease.acknowledged(first);
        assert_eq!(lease.expires_at(), start + Duration::from_secs(11));
        lease.acknowledged(second);
        assert_eq!(lease.expires_at(), start + Duration::from_secs(13));
    }

    #[test]
    fn late_and_unknown_acknowledgements_change_nothing() {
        let start = Instant::now();
        let mut lease = Lease::opened(TTL, start);
        let first = lease.beat(start + Duration::from_secs(1));
        let second = lease.beat(start + Duration::from_secs(2));
        lease.acknowledged(second);
        let expires = lease.expires_at();
        lease.acknowledged(first);
        lease.acknowledged(99);
        assert_eq!(lease.expires_at(), expires);
    }

    #[test]
    fn the_lease_ends_before_the_session_can() {
        for ttl_ms in [1, 150, 1_000, 10_000, 300_000] {
            let ttl = Duration::from_millis(ttl_ms);
            let start = Instant::now();
            let lease = Lease::opened(ttl, start);
            assert!(lease.expires_at() < start + ttl, "{ttl:?}");
            assert!(lease.interval() * 3 < ttl, "{ttl:?}");
            assert!(lease.doubtful_at() <= lease.expires_at(), "{ttl:?}");
        }
    }

    #[test]
    fn awaited_heartbeats_are_bounded() {
        let start = Instant::now();
        let mut lease = Lease::opened(TTL, start);
        for _ in 0..1_000 {
            lease.beat(start);
        }
        assert_eq!(lease.awaited.len(), AWAITED);
    }
}
