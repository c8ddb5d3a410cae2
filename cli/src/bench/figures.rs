//! Latencies as every measurement states them.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Latencies from 1 microsecond to 10 minutes, to three digits.
#[derive(Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(super) fn new() -> Self {
        Latencies(Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are valid"))
    }

    pub(super) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// `{p50, p99, p999, max}` in milliseconds.
    pub(super) fn milliseconds(&self) -> Value {
        let at = |quantile: f64| self.0.value_at_quantile(quantile) as f64 / 1e3;
        json!({ "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": self.0.max() as f64 / 1e3 })
    }

    /// `{p50, p99, max}` in milliseconds, for few samples.
    pub(super) fn few_milliseconds(&self) -> Value {
        let mut figures = self.milliseconds();
        figures.as_object_mut().map(|fields| fields.remove("p999"));
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_milliseconds() {
        let mut latencies = Latencies::new();
        (1..=1_000).for_each(|millisecond| latencies.record(Duration::from_millis(millisecond)));
        let figures = latencies.milliseconds();
        assert!((figures["p50"].as_f64().expect("a number") - 500.0).abs() < 1.0, "{figures}");
        assert!((figures["max"].as_f64().expect("a number") - 1_000.0).abs() < 1.0, "{figures}");
        assert!(latencies.few_milliseconds().get("p999").is_none());
    }
}
