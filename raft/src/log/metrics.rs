//! What the log writer counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, Registry};

/// Counters of the one log writer of a node. Shared: a clone counts into the same values.
#[derive(Clone, Debug)]
pub struct LogMetrics {
    commits: IntCounter,
    records: IntCounter,
    bytes: IntCounter,
    commit_seconds: Histogram,
    batch_records: Histogram,
    floor_seconds: Histogram,
}

impl LogMetrics {
    pub(crate) fn new() -> Self {
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("the name is a constant and valid");
        let histogram = |name: &str, help: &str, start: f64, factor: f64, count: usize| {
            let buckets = prometheus::exponential_buckets(start, factor, count).expect("the bounds are constants");
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)).expect("the name is a constant")
        };
        LogMetrics {
            commits: counter("quorate_log_commits_total", "Batches of the Raft log made durable, one fsync each."),
            records: counter("quorate_log_records_total", "Log records written."),
            bytes: counter("quorate_log_bytes_total", "Bytes of log records written."),
            commit_seconds: histogram(
                "quorate_log_commit_seconds",
                "Time to make one batch durable, in seconds.",
                50e-6,
                2.0,
                16,
            ),
            batch_records: histogram("quorate_log_batch_records", "Records in one batch.", 1.0, 2.0, 14),
            floor_seconds: histogram(
                "quorate_log_floor_seconds",
                "Time to write the floor once and make that durable, in seconds.",
                50e-6,
                2.0,
                16,
            ),
        }
    }

    /// Registers everything. Fails if the registry has metrics of these names already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.commits.clone()))?;
        registry.register(Box::new(self.records.clone()))?;
        registry.register(Box::new(self.bytes.clone()))?;
        registry.register(Box::new(self.commit_seconds.clone()))?;
        registry.register(Box::new(self.batch_records.clone()))?;
        registry.register(Box::new(self.floor_seconds.clone()))
    }

    /// Batches made durable so far, each with one commit of the engine and so one fsync.
    pub fn commits(&self) -> u64 {
        self.commits.get()
    }

    /// Records written so far.
    pub fn records(&self) -> u64 {
        self.records.get()
    }

    /// Bytes of records written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Mean time of a commit so far, in seconds, or zero before the first.
    pub fn mean_commit_seconds(&self) -> f64 {
        mean(&self.commit_seconds)
    }

    /// Writes of the floor so far, each with one sync.
    pub fn floor_writes(&self) -> u64 {
        self.floor_seconds.get_sample_count()
    }

    /// Mean time of a write of the floor so far, in seconds, or zero before the first.
    pub fn mean_floor_seconds(&self) -> f64 {
        mean(&self.floor_seconds)
    }

    pub(crate) fn count_floor(&self, seconds: f64) {
        self.floor_seconds.observe(seconds);
    }

    pub(crate) fn count(&self, records: u64, bytes: u64, seconds: f64) {
        self.commits.inc();
        self.records.inc_by(records);
        self.bytes.inc_by(bytes);
        self.commit_seconds.observe(seconds);
        self.batch_records.observe(records as f64);
    }
}

fn mean(times: &Histogram) -> f64 {
    let count = times.get_sample_count();
    if count == 0 { 0.0 } else { times.get_sample_sum() / count as f64 }
}
