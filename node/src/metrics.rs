//! Everything that a node measures. Names start with `quorate_`, units are base units, and no label holds an id.

use std::sync::Arc;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// The collectors of a node and the registry that `GET /metrics` shows.
pub struct Metrics {
    /// The registry. Parts may register collectors of their own.
    pub registry: Registry,
    /// Times the log clock and the wall clock were found apart.
    pub log_clock_alarms: IntCounter,
    /// Entries formed by the proposers, by kind of group (`control`, `shard`).
    pub entries: IntCounterVec,
    /// Operations in an entry, by kind of group.
    pub entry_operations: HistogramVec,
    /// Seconds from the submission of an entry until its replies are there, by kind of group.
    pub entry_seconds: HistogramVec,
    /// Operations refused because too many waited, by kind of group.
    pub shed_operations: IntCounterVec,
    /// Operations that wait to be proposed, by kind of group (summed over the groups of this node).
    pub queued_operations: IntGaugeVec,
    /// Calls from other nodes, by kind.
    pub peer_calls: IntCounterVec,
    /// Resident memory of the process.
    pub process_resident_bytes: IntGauge,
    /// Anonymous resident memory of the process: without mapped files.
    pub process_anonymous_bytes: IntGauge,
    /// User and system CPU time of the process so far, in milliseconds.
    pub process_cpu_milliseconds: IntGauge,
    /// Seconds that one small write with fsync took at the start.
    pub start_fsync_seconds: Histogram,
    /// Groups that run on this node.
    pub groups: IntGauge,
    /// Groups that this node leads.
    pub groups_led: IntGauge,
    /// Members of the cluster, as this node's replica of control sees them.
    pub members: IntGauge,
    /// Times the disk did not answer.
    pub disk_stalls: IntCounter,
    /// Replicas of this node that were found damaged or diverged.
    pub replicas_quarantined: IntCounter,
    /// Replicas of this node that took the place of a quarantined one and are in full service.
    pub replicas_healed: IntCounter,
    /// Seconds from a quarantine until its successor was in full service.
    pub heal_seconds: Histogram,
    /// Groups that have stopped here because their replicas disagree and none has a majority.
    pub groups_halted: IntGauge,
}

/// What one proposer measures: the collectors of [`Metrics`] with the label of its group in place.
pub struct ProposerMetrics {
    /// See [`Metrics::entries`].
    pub entries: IntCounter,
    /// See [`Metrics::entry_operations`].
    pub entry_operations: Histogram,
    /// See [`Metrics::entry_seconds`].
    pub entry_seconds: Histogram,
    /// See [`Metrics::shed_operations`].
    pub shed_operations: IntCounter,
    /// See [`Metrics::queued_operations`].
    pub queued_operations: IntGauge,
}

impl Metrics {
    /// The collectors of a proposer; `group` is `control` or `shard`.
    pub fn proposer(&self, group: &str) -> ProposerMetrics {
        ProposerMetrics {
            entries: self.entries.with_label_values(&[group]),
            entry_operations: self.entry_operations.with_label_values(&[group]),
            entry_seconds: self.entry_seconds.with_label_values(&[group]),
            shed_operations: self.shed_operations.with_label_values(&[group]),
            queued_operations: self.queued_operations.with_label_values(&[group]),
        }
    }

    /// All collectors, registered in a new registry.
    pub fn new() -> Arc<Metrics> {
        let registry = Registry::new();
        let metrics = Metrics {
            log_clock_alarms: counter(
                &registry,
                "quorate_log_clock_alarms_total",
                "Times log time and the wall clock were found apart.",
            ),
            entries: counters(&registry, "quorate_entries_total", "Entries proposed by this node.", "group"),
            entry_operations: histogram(
                &registry,
                "quorate_entry_operations",
                "Operations in one entry.",
                "group",
                vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0],
            ),
            entry_seconds: histogram(
                &registry,
                "quorate_entry_seconds",
                "Time from submitting an entry until it is committed and applied here.",
                "group",
                vec![0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.5, 1.0, 5.0],
            ),
            shed_operations: counters(
                &registry,
                "quorate_shed_operations_total",
                "Operations refused because too many waited.",
                "group",
            ),
            queued_operations: gauges(
                &registry,
                "quorate_queued_operations",
                "Operations that wait to be proposed.",
                "group",
            ),
            peer_calls: counters(&registry, "quorate_peer_calls_total", "Calls from other nodes.", "kind"),
            process_resident_bytes: gauge(
                &registry,
                "quorate_process_resident_bytes",
                "Resident memory of the process.",
            ),
            process_anonymous_bytes: gauge(
                &registry,
                "quorate_process_anonymous_bytes",
                "Resident memory of the process without mapped files.",
            ),
            process_cpu_milliseconds: gauge(
                &registry,
                "quorate_process_cpu_milliseconds",
                "User and system CPU time of the process.",
            ),
            start_fsync_seconds: registered(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new("quorate_start_fsync_seconds", "Writes with fsync measured at the start.")
                        .buckets(vec![0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]),
                ),
            ),
            groups: gauge(&registry, "quorate_groups", "Raft groups that run on this node."),
            groups_led: gauge(&registry, "quorate_groups_led", "Raft groups that this node leads."),
            members: gauge(&registry, "quorate_members", "Members of the cluster, as this node knows it."),
            disk_stalls: counter(
                &registry,
                "quorate_disk_stalls_total",
                "Times the disk of this node did not answer for a second, so that it handed over what it led.",
            ),
            replicas_quarantined: counter(
                &registry,
                "quorate_replicas_quarantined_total",
                "Replicas of this node that were found damaged or diverged.",
            ),
            replicas_healed: counter(
                &registry,
                "quorate_replicas_healed_total",
                "Replicas that took the place of a quarantined one and are in full service.",
            ),
            heal_seconds: registered(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "quorate_heal_seconds",
                        "Time from a quarantine to the service of its successor.",
                    )
                    .buckets(vec![0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 120.0, 300.0, 1_200.0]),
                ),
            ),
            groups_halted: gauge(
                &registry,
                "quorate_groups_halted",
                "Groups that have stopped here because their replicas disagree and none has a majority.",
            ),
            registry,
        };
        Arc::new(metrics)
    }

    /// Reads what the system knows of the process. Called before each exposition.
    pub fn observe_process(&self) {
        if let Ok(status) = fs_err::read_to_string("/proc/self/status") {
            let kib = |name: &str| {
                status
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<i64>().ok())
                    .unwrap_or(0)
            };
            self.process_resident_bytes.set(kib("VmRSS:") * 1024);
            self.process_anonymous_bytes.set(kib("RssAnon:") * 1024);
        }
        if let Ok(stat) = fs_err::read_to_string("/proc/self/stat") {
            self.process_cpu_milliseconds.set(cpu_milliseconds(&stat));
        }
    }
}

/// The kernel counts CPU time in ticks of 10 ms on every Linux that this runs on (`USER_HZ` is 100 by its ABI).
fn cpu_milliseconds(stat: &str) -> i64 {
    let Some((_, after_name)) = stat.rsplit_once(") ") else { return 0 };
    after_name.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<i64>().ok()).sum::<i64>() * 10
}

fn registered<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let collector = made.expect("the name and labels are constant and valid");
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::new(name, help))
}

fn gauges(registry: &Registry, name: &str, help: &str, label: &str) -> IntGaugeVec {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), &[label]))
}

fn histogram(registry: &Registry, name: &str, help: &str, label: &str, buckets: Vec<f64>) -> HistogramVec {
    registered(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &[label]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_the_prefix_and_a_help() {
        let metrics = Metrics::new();
        metrics.entries.with_label_values(&["control"]).inc();
        for family in metrics.registry.gather() {
            assert!(family.name().starts_with("quorate_"), "{}", family.name());
            assert!(family.help().ends_with('.'), "{}", family.name());
        }
    }

    #[test]
    fn the_process_is_observed() {
        let metrics = Metrics::new();
        metrics.observe_process();
        assert!(metrics.process_resident_bytes.get() > 0);
        assert!(metrics.process_anonymous_bytes.get() > 0);
    }

    #[test]
    fn cpu_time_is_read_behind_a_name_with_blanks() {
        let stat = "7 (a b) c) S 1 1 1 0 -1 4194560 1 0 0 0 12 30 0 0 20 0 1 0 1 1 1";
        assert_eq!(cpu_milliseconds(stat), 420);
    }
}
