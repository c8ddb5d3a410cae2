//! Log time: the only clock that the replicated machines know.
//!
//! A leader stamps each entry with *last log time + its own monotonic elapsed time*, and slews that towards the wall
//! clock by at most 5%. So a jump of a leader's wall clock, or a new leader whose wall clock is off, moves nothing at
//! once: it raises an alarm and is worked off slowly.
//!
//! A new leader goes on from the moment at which it applied the last entry, not from the moment at which it begins to lead:
//! an idle group must not lose its idle time with each leader. What is lost is the time in which no node of the group ran, and
//! of an idle group whose new leader has only just started the time since the last entry, at most a minute.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use quorate_raft::{Fault, LogPosition, Machine, Reply, RowBatch, StateStore};
use quorate_state::LogTime;

use crate::metrics::Metrics;

/// A difference to the wall clock from which on the alarm is raised, in microseconds.
const ALARM_US: u64 = 1_000_000;
/// The slew is at most one part in this many of the elapsed time.
const SLEW_PARTS: u64 = 20;

/// Where time comes from. The simulation brings its own.
pub trait Clock: Send + Sync + 'static {
    /// Microseconds since some fixed moment; never goes back.
    fn monotonic_us(&self) -> u64;
    /// Microseconds since the Unix epoch, as far as the host knows; may jump.
    fn wall_us(&self) -> u64;
}

/// The clocks of the host.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// The clocks of the host, the monotonic one counted from now.
    pub fn new() -> SystemClock {
        SystemClock { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn monotonic_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn wall_us(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

/// The log time that a machine has reached, and when that was.
pub struct Reached {
    clock: Arc<dyn Clock>,
    /// With the monotonic clock of that moment.
    last: Mutex<(LogTime, u64)>,
}

impl Reached {
    /// Nothing is applied yet.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Reached> {
        let last = Mutex::new((LogTime(0), clock.monotonic_us()));
        Arc::new(Reached { clock, last })
    }

    /// The log time of the last entry.
    pub fn time(&self) -> LogTime {
        self.last.lock().0
    }

    fn note(&self, time: LogTime) {
        *self.last.lock() = (time, self.clock.monotonic_us());
    }
}

/// A machine whose log time is noted as it goes on.
pub struct Timed<F> {
    machine: Box<dyn Machine>,
    reached: Arc<Reached>,
    time: F,
    /// Whether an entry with a stamp was applied since the last note.
    stamped: bool,
}

impl<F: Fn() -> LogTime> Timed<F> {
    /// Notes what `time` says of `machine` whenever that has applied something.
    pub fn new(machine: Box<dyn Machine>, reached: Arc<Reached>, time: F) -> Timed<F> {
        Timed { machine, reached, time, stamped: false }
    }
}

impl<F: Fn() -> LogTime + Send + 'static> Machine for Timed<F> {
    fn apply(&mut self, at: LogPosition, payload: &[u8], rows: &mut RowBatch) -> Result<Reply, Fault> {
        self.stamped = true;
        self.machine.apply(at, payload, rows)
    }
    fn applied(&mut self, at: LogPosition) {
        // A leader that was behind itself may have stamped an entry with the time of the one before: time counts from the later
        // one all the same, or the next leader would make a leap of what that one had lost. Entries of Raft's own have no stamp.
        if std::mem::take(&mut self.stamped) {
            // First of all: whoever is woken by the batch may be about to lead.
            self.reached.note((self.time)());
        }
        self.machine.applied(at);
    }
    fn load(&mut self, store: Arc<dyn StateStore>, at: Option<LogPosition>) -> Result<(), Fault> {
        self.machine.load(store, at)?;
        self.reached.note((self.time)());
        Ok(())
    }
    fn hash(&self) -> u64 {
        self.machine.hash()
    }
}

/// The stamps of one leader's term. Made anew when leadership begins, from the log time reached by then.
pub struct LogClock {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    last_us: u64,
    monotonic_us: u64,
    alarmed: bool,
}

impl LogClock {
    /// Goes on from what is reached. A log without any time yet starts at the wall clock.
    pub fn new(reached: &Reached, metrics: Arc<Metrics>) -> LogClock {
        let clock = reached.clock.clone();
        let (last_us, monotonic_us) = match *reached.last.lock() {
            (LogTime(0), _) => (clock.wall_us(), clock.monotonic_us()),
            (last, at) => (last.0, at),
        };
        LogClock { clock, metrics, last_us, monotonic_us, alarmed: false }
    }

    /// The time of the entry that is formed now; never less than the one before.
    pub fn stamp(&mut self) -> LogTime {
        let now = self.clock.monotonic_us();
        let elapsed = now.saturating_sub(self.monotonic_us);
        self.monotonic_us = now;
        let free_running = self.last_us.saturating_add(elapsed);
        let wall = self.clock.wall_us();
        let slew = free_running.abs_diff(wall).min(elapsed / SLEW_PARTS);
        #[cfg(feature = "planted")]
        let slew = if crate::planted::is("jumping-clock") { wall.saturating_sub(free_running) } else { slew };
        self.last_us = if wall >= free_running { free_running + slew } else { free_running - slew };
        self.watch(free_running.abs_diff(wall));
        LogTime(self.last_us)
    }

    /// Raises the alarm when the wall clock is far away, and lets it go again below half of that.
    fn watch(&mut self, difference_us: u64) {
        if !self.alarmed && difference_us > ALARM_US {
            self.alarmed = true;
            self.metrics.log_clock_alarms.inc();
            tracing::warn!(
                difference_ms = difference_us / 1_000,
                "log time and this host's wall clock differ; log time moves towards it by at most 5%, check the host's time synchronisation"
            );
        } else if self.alarmed && difference_us < ALARM_US / 2 {
            self.alarmed = false;
            tracing::info!("log time and the wall clock agree again");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::testing::{Hands, Still};

    fn hands(wall: u64) -> Arc<Hands> {
        let hands = Arc::new(Hands::default());
        hands.wall.store(wall, Ordering::Relaxed);
        hands
    }

    fn reached(hands: &Arc<Hands>, time_us: u64) -> Arc<Reached> {
        let reached = Reached::new(hands.clone());
        reached.note(LogTime(time_us));
        reached
    }

    /// Otherwise a request id that is dated by a right clock would be newer than what is guarded, and run twice.
    #[test]
    fn a_new_leader_loses_nothing_of_the_time_in_which_nothing_was_proposed() {
        let hands = hands(5_000_000);
        let metrics = Metrics::new();
        let reached = reached(&hands, 5_000_000);
        hands.pass(7_200_000_000);
        let mut clock = LogClock::new(&reached, metrics.clone());
        assert_eq!(clock.stamp(), LogTime(7_205_000_000));
        assert_eq!(metrics.log_clock_alarms.get(), 0);
    }

    /// The simulation found it (seed 10).
    #[test]
    fn time_counts_from_the_last_entry_with_a_stamp_though_it_says_what_the_one_before_said() {
        let hands = hands(1_000);
        let reached = Reached::new(hands.clone());
        let mut machine = Timed::new(Box::new(Still), reached.clone(), || LogTime(1_000));
        let stamp = || LogClock::new(&reached, Metrics::new()).stamp().0;
        let at = LogPosition { term: 1, position: 1 };
        machine.apply(at, &[], &mut RowBatch::default()).expect("applied");
        machine.applied(at);
        hands.pass(500);
        machine.applied(at);
        assert_eq!(stamp(), 1_500, "an entry without a stamp changes nothing");
        machine.apply(at, &[], &mut RowBatch::default()).expect("applied");
        machine.applied(at);
        hands.pass(10);
        assert_eq!(stamp(), 1_010);
    }

    #[test]
    fn a_new_log_starts_at_the_wall_clock_and_follows_it() {
        let hands = hands(1_000_000_000);
        let mut clock = LogClock::new(&reached(&hands, 0), Metrics::new());
        hands.pass(5_000);
        assert_eq!(clock.stamp(), LogTime(1_000_005_000));
    }

    #[test]
    fn a_jump_forward_is_worked_off_at_five_percent_and_alarms_once() {
        let hands = hands(1_000_000_000);
        let metrics = Metrics::new();
        let mut clock = LogClock::new(&reached(&hands, 1_000_000_000), metrics.clone());
        hands.wall.fetch_add(3_600_000_000, Ordering::Relaxed);
        hands.pass(1_000_000);
        assert_eq!(clock.stamp(), LogTime(1_000_000_000 + 1_050_000));
        hands.pass(1_000_000);
        assert_eq!(clock.stamp(), LogTime(1_000_000_000 + 2_100_000));
        assert_eq!(metrics.log_clock_alarms.get(), 1);
    }

    #[test]
    fn a_jump_back_slows_log_time_but_never_turns_it() {
        let hands = hands(5_000_000_000);
        let mut clock = LogClock::new(&reached(&hands, 5_000_000_000), Metrics::new());
        hands.wall.store(1_000_000_000, Ordering::Relaxed);
        let before = clock.stamp();
        hands.pass(1_000_000);
        let after = clock.stamp();
        assert_eq!(before, LogTime(5_000_000_000));
        assert_eq!(after, LogTime(5_000_950_000));
    }

    #[test]
    fn a_small_difference_is_closed_and_not_overshot() {
        let hands = hands(1_000_000_000);
        let mut clock = LogClock::new(&reached(&hands, 1_000_000_000 - 10_000), Metrics::new());
        hands.pass(1_000_000);
        assert_eq!(clock.stamp(), LogTime(1_001_000_000));
        hands.pass(1_000);
        assert_eq!(clock.stamp(), LogTime(1_001_001_000));
    }
}
