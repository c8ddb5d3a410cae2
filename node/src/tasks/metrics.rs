//! What a node measures of tasks and sessions. Counted by the node that leads, so the sum over the nodes is the cluster's.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use quorate_state::control::TaskState;

/// Queues that the depth gauge names; the rest is left out, so that its labels are bounded.
const GAUGE_QUEUES: usize = 100;

/// The collectors.
pub(super) struct TaskMetrics {
    enqueued: IntCounter,
    granted: IntCounter,
    finished: IntCounterVec,
    attempts_failed: IntCounter,
    attempts_lost: IntCounter,
    dispatch_seconds: Histogram,
    cycle_seconds: Histogram,
    sessions: IntGauge,
    sessions_expired: IntCounter,
    queue_ready: IntGaugeVec,
}

impl TaskMetrics {
    /// Registers the collectors.
    pub(super) fn new(registry: &Registry) -> prometheus::Result<TaskMetrics> {
        let buckets = vec![
            0.001, 0.002, 0.004, 0.006, 0.008, 0.012, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 4.0, 16.0, 64.0,
            256.0,
        ];
        let histogram = |name: &str, help: &str| {
            registered(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.clone())))
        };
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help));
        Ok(TaskMetrics {
            enqueued: counter("quorate_tasks_enqueued_total", "Tasks that clients enqueued through this node.")?,
            granted: counter("quorate_tasks_granted_total", "Attempts that this node granted as leader.")?,
            finished: registered(
                registry,
                IntCounterVec::new(
                    Opts::new("quorate_tasks_finished_total", "Tasks that ended while this node led, by how."),
                    &["state"],
                ),
            )?,
            attempts_failed: counter("quorate_attempts_failed_total", "Attempts that their agents gave up.")?,
            attempts_lost: counter("quorate_attempts_lost_total", "Attempts that were taken from their agents.")?,
            dispatch_seconds: histogram(
                "quorate_task_dispatch_seconds",
                "Time from a task's enqueue until its first grant is sent to an agent.",
            )?,
            cycle_seconds: histogram(
                "quorate_task_cycle_seconds",
                "Time from a task's enqueue until it is completed.",
            )?,
            sessions: registered(registry, IntGauge::new("quorate_sessions", "Sessions of agents, at the leader."))?,
            sessions_expired: counter(
                "quorate_sessions_expired_total",
                "Sessions whose expiry was proposed: silent, or without a stream.",
            )?,
            queue_ready: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "quorate_queue_ready",
                        "Ready tasks of a queue, at the leader, for the first queues only.",
                    ),
                    &["queue"],
                ),
            )?,
        })
    }

    pub(super) fn enqueued(&self, tasks: usize) {
        self.enqueued.inc_by(tasks as u64);
    }

    pub(super) fn granted(&self) {
        self.granted.inc();
    }

    pub(super) fn attempt_failed(&self) {
        self.attempts_failed.inc();
    }

    pub(super) fn attempt_lost(&self) {
        self.attempts_lost.inc();
    }

    pub(super) fn dispatched(&self, seconds: f64) {
        self.dispatch_seconds.observe(seconds);
    }

    pub(super) fn finished(&self, state: TaskState) {
        let state = match state {
            TaskState::Completed => "completed",
            TaskState::Dead => "dead_letter",
            TaskState::Cancelled => "cancelled",
            TaskState::Ready | TaskState::Waiting | TaskState::Granted => return,
        };
        self.finished.with_label_values(&[state]).inc();
    }

    pub(super) fn completed_after(&self, seconds: f64) {
        self.cycle_seconds.observe(seconds);
    }

    pub(super) fn expired(&self, sessions: usize) {
        self.sessions_expired.inc_by(sessions as u64);
    }

    /// Sets what the leader sees now; queues with nothing ready go away.
    pub(super) fn set_gauges<'a>(&self, sessions: usize, ready: impl Iterator<Item = (&'a str, u64)>) {
        self.sessions.set(i64::try_from(sessions).unwrap_or(i64::MAX));
        self.queue_ready.reset();
        for (queue, ready) in ready.take(GAUGE_QUEUES) {
            self.queue_ready.with_label_values(&[queue]).set(i64::try_from(ready).unwrap_or(i64::MAX));
        }
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> prometheus::Result<C> {
    let collector = made?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
