//! The clocks of a node: as wrong as clocks of hosts are.
//!
//! A wall clock may be ahead, jump, drift and flap. A monotonic clock never goes back and runs at most
//! [`MONOTONIC_PPM_MOST`] too fast or too slow; real ones stay within a hundredth of that. Both are what log time is made of,
//! and nothing else.
//!
//! What is not attacked: **timers that run wrong**. Whatever waits by tokio's clock (heartbeats, elections and the leases of
//! Raft's leaders, the terms of sessions in the leader loop, the renewals and the surrender of agents, time-outs) runs equally
//! fast on all hosts, however wrong their clocks here are. So no run shows what happens if a leader's lease is longer than its
//! followers' patience, or an agent surrenders after its leader has given it up, for the sole reason that one host's time is
//! slower: those margins are only reasoned about. The chaos suite does not show it either; it moves wall clocks alone.
//!
//! turmoil moves the runtime of each host by the same tick and has no setting for that. `tokio::time::advance` in a host, by
//! more than a tick, would make its timers fast (never slow); but turmoil reckons the time that hosts are told from the same
//! instants within a tick, so that the clocks here and those of the standard library would step back at the next one.

use std::sync::Arc;

use parking_lot::Mutex;
use quorate_node::Clock;

/// The most by which a monotonic clock runs wrong, in parts of a million.
pub(crate) const MONOTONIC_PPM_MOST: u64 = 10_000;
/// Log time begins somewhere after the epoch, where 0 means none.
const BEGIN_US: i64 = 1_000_000;
/// How long a flapping wall clock stays on each side.
const FLAP_US: u64 = 7_000;

/// Microseconds since the beginning of the simulation.
pub(crate) fn elapsed_us() -> u64 {
    let elapsed = turmoil::sim_elapsed().unwrap_or_default();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

/// The hands as they were at some moment, and how they have moved since.
#[derive(Debug, Default, Clone, Copy)]
struct Hands {
    since_us: u64,
    monotonic_us: i64,
    wall_us: i64,
    monotonic_ppm: i64,
    wall_ppm: i64,
    flaps_by_us: i64,
}

fn run(us: u64, ppm: i64) -> i64 {
    let us = i64::try_from(us).unwrap_or(i64::MAX);
    us + us / 1_000 * ppm / 1_000
}

impl Hands {
    fn at(self, now_us: u64) -> Hands {
        let passed = now_us.saturating_sub(self.since_us);
        Hands {
            since_us: now_us.max(self.since_us),
            monotonic_us: self.monotonic_us + run(passed, self.monotonic_ppm),
            wall_us: self.wall_us + run(passed, self.wall_ppm),
            ..self
        }
    }
}

/// The clocks of one host. They go on while its node is down.
#[derive(Debug)]
pub(crate) struct HostClocks(Mutex<Hands>);

impl HostClocks {
    /// The wall clock is ahead by so much.
    pub(crate) fn new(ahead_us: u64) -> Arc<HostClocks> {
        let ahead = i64::try_from(ahead_us).unwrap_or_default();
        Arc::new(HostClocks(Mutex::new(Hands { wall_us: BEGIN_US + ahead, ..Hands::default() })))
    }

    fn change(&self, now_us: u64, change: impl FnOnce(&mut Hands)) {
        let mut hands = self.0.lock();
        *hands = hands.at(now_us);
        change(&mut hands);
    }

    /// Sets the wall clock forward or back.
    pub(crate) fn jump(&self, now_us: u64, by_us: i64) {
        self.change(now_us, |hands| hands.wall_us = (hands.wall_us + by_us).max(0));
    }

    /// Lets the wall clock run wrong.
    pub(crate) fn drift(&self, now_us: u64, ppm: i64) {
        self.change(now_us, |hands| hands.wall_ppm = ppm);
    }

    /// Lets the monotonic clock run wrong, within its bound.
    pub(crate) fn run_wrong(&self, now_us: u64, ppm: i64) {
        let most = MONOTONIC_PPM_MOST as i64;
        self.change(now_us, |hands| hands.monotonic_ppm = ppm.clamp(-most, most));
    }

    /// Lets the wall clock flap to and fro; 0 ends it.
    pub(crate) fn flap(&self, now_us: u64, by_us: i64) {
        self.change(now_us, |hands| hands.flaps_by_us = by_us);
    }
}

impl Clock for HostClocks {
    fn monotonic_us(&self) -> u64 {
        u64::try_from(self.0.lock().at(elapsed_us()).monotonic_us).unwrap_or_default()
    }

    fn wall_us(&self) -> u64 {
        let now = elapsed_us();
        let hands = self.0.lock().at(now);
        let flapped = if (now / FLAP_US).is_multiple_of(2) { hands.flaps_by_us } else { 0 };
        u64::try_from(hands.wall_us + flapped).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hands(clocks: &HostClocks, now: u64) -> (i64, i64) {
        let hands = clocks.0.lock().at(now);
        (hands.monotonic_us, hands.wall_us - BEGIN_US)
    }

    #[test]
    fn clocks_run_jump_and_drift() {
        let clocks = HostClocks::new(500);
        assert_eq!(hands(&clocks, 1_000_000), (1_000_000, 1_000_500));
        clocks.jump(1_000_000, -400_000);
        assert_eq!(hands(&clocks, 2_000_000), (2_000_000, 1_600_500));
        clocks.drift(2_000_000, 20_000);
        clocks.run_wrong(2_000_000, -99_999);
        assert_eq!(hands(&clocks, 3_000_000), (2_990_000, 2_620_500), "the monotonic clock keeps its bound");
    }
}
