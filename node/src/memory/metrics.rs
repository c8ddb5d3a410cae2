//! What the memory of a node measures.

use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

use super::Inner;

/// Counters of the calls that this node answered to clients.
pub(super) struct MemoryMetrics {
    searches: IntCounter,
    search_seconds: Histogram,
    degraded_searches: IntCounter,
    upserted_points: IntCounter,
}

impl MemoryMetrics {
    /// Registers the counters.
    pub(super) fn new(registry: &Registry) -> prometheus::Result<MemoryMetrics> {
        let metrics = MemoryMetrics {
            searches: IntCounter::new("quorate_searches_total", "Searches that this node answered to clients.")?,
            search_seconds: Histogram::with_opts(
                HistogramOpts::new("quorate_search_seconds", "Time of a search from its arrival to its answer.")
                    .buckets(vec![0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.25, 1.0, 4.0]),
            )?,
            degraded_searches: IntCounter::new(
                "quorate_degraded_searches_total",
                "Searches that were answered without all of their shards.",
            )?,
            upserted_points: IntCounter::new(
                "quorate_upserted_points_total",
                "Points of upserts that this node sent to their shards.",
            )?,
        };
        registry.register(Box::new(metrics.searches.clone()))?;
        registry.register(Box::new(metrics.search_seconds.clone()))?;
        registry.register(Box::new(metrics.degraded_searches.clone()))?;
        registry.register(Box::new(metrics.upserted_points.clone()))?;
        Ok(metrics)
    }

    pub(super) fn searched(&self, took: Duration, missing_shards: usize) {
        self.searches.inc();
        self.search_seconds.observe(took.as_secs_f64());
        if missing_shards > 0 {
            self.degraded_searches.inc();
        }
    }

    pub(super) fn upserted(&self, points: usize) {
        self.upserted_points.inc_by(points as u64);
    }
}

/// What the replicas of this node hold, counted when it is asked for.
pub(super) struct Holdings {
    memory: Weak<Inner>,
    points: IntGauge,
    sealed_points: IntGauge,
    segments: IntGauge,
}

impl Holdings {
    /// Registers the gauges. They show nothing once the memory is gone.
    pub(super) fn register(registry: &Registry, memory: &Arc<Inner>) -> prometheus::Result<()> {
        let holdings = Holdings {
            memory: Arc::downgrade(memory),
            points: IntGauge::new("quorate_points", "Points in the replicas of this node.")?,
            sealed_points: IntGauge::new("quorate_sealed_points", "Points in sealed segments of this node.")?,
            segments: IntGauge::new("quorate_segments", "Sealed segments of this node.")?,
        };
        registry.register(Box::new(holdings))
    }
}

impl Collector for Holdings {
    fn desc(&self) -> Vec<&Desc> {
        [&self.points, &self.sealed_points, &self.segments].into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(memory) = self.memory.upgrade() else { return Vec::new() };
        let (mut points, mut sealed_points, mut segments) = (0, 0, 0);
        for part in memory.replicas().iter().flat_map(|replica| replica.stats()) {
            points += part.points;
            sealed_points += part.sealed_points;
            segments += part.segments;
        }
        self.points.set(signed(points));
        self.sealed_points.set(signed(sealed_points));
        self.segments.set(signed(segments));
        [&self.points, &self.sealed_points, &self.segments].into_iter().flat_map(Collector::collect).collect()
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
