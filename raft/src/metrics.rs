//! The metrics of this crate, beside those of the log writer.

use std::sync::{Arc, Weak};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::group::Directory;

/// Counters of the transport. Shared: a clone counts into the same values.
#[derive(Clone, Debug)]
pub(crate) struct TransportMetrics {
    pub(crate) heartbeats: IntCounter,
    pub(crate) heartbeat_frames: IntCounter,
}

impl TransportMetrics {
    pub(crate) fn new() -> Self {
        let counter = |name: &str, help: &str| IntCounter::new(name, help).expect("the name is a constant and valid");
        TransportMetrics {
            heartbeats: counter("quorate_raft_heartbeats_total", "Heartbeats sent to peers."),
            heartbeat_frames: counter("quorate_raft_heartbeat_frames_total", "Frames in which heartbeats were sent."),
        }
    }

    pub(crate) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.heartbeats.clone()))?;
        registry.register(Box::new(self.heartbeat_frames.clone()))
    }
}

/// What a scrub looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Log,
    Floor,
    State,
}

impl Part {
    const ALL: [Part; 3] = [Part::Log, Part::Floor, Part::State];

    fn name(self) -> &'static str {
        match self {
            Part::Log => "log",
            Part::Floor => "floor",
            Part::State => "state",
        }
    }
}

/// Counters of the scrub. Shared: a clone counts into the same values.
#[derive(Clone, Debug)]
pub(crate) struct ScrubMetrics {
    passes: IntCounterVec,
    bytes: IntCounterVec,
    damage: IntCounterVec,
}

impl ScrubMetrics {
    pub(crate) fn new() -> Self {
        let counter = |name: &str, help: &str| {
            let counter =
                IntCounterVec::new(Opts::new(name, help), &["part"]).expect("the name is a constant and valid");
            // Shown before anything is counted, so that nothing can be told from nobody.
            Part::ALL.iter().for_each(|part| counter.with_label_values(&[part.name()]).inc_by(0));
            counter
        };
        ScrubMetrics {
            passes: counter("quorate_scrub_passes_total", "Passes of the scrub over all groups of the node."),
            bytes: counter("quorate_scrub_bytes_total", "Bytes that the scrub has read back whole."),
            damage: counter("quorate_scrub_damage_total", "Damage that the scrub has found."),
        }
    }

    pub(crate) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.passes.clone()))?;
        registry.register(Box::new(self.bytes.clone()))?;
        registry.register(Box::new(self.damage.clone()))
    }

    /// Everything of this kind was read once.
    pub(crate) fn passed(&self, part: Part) {
        self.passes.with_label_values(&[part.name()]).inc();
    }

    pub(crate) fn read(&self, part: Part, bytes: u64) {
        self.bytes.with_label_values(&[part.name()]).inc_by(bytes);
    }

    pub(crate) fn found(&self, part: Part) {
        self.damage.with_label_values(&[part.name()]).inc();
    }
}

/// Reads the state of each group when it is asked, so that nothing is counted while nobody looks.
pub(crate) struct GroupCollector {
    groups: Weak<Directory>,
    gauges: [IntGaugeVec; 6],
}

impl GroupCollector {
    pub(crate) fn new(groups: &Arc<Directory>) -> Self {
        let gauge = |name: &str, help: &str| {
            IntGaugeVec::new(Opts::new(name, help), &["group"]).expect("the name is a constant and valid")
        };
        GroupCollector {
            groups: Arc::downgrade(groups),
            gauges: [
                gauge("quorate_raft_term", "The current term of the group."),
                gauge("quorate_raft_leading", "1 where this node's replica leads the group and may act."),
                gauge("quorate_raft_last_position", "The last position in the local log."),
                gauge("quorate_raft_committed_position", "The last position known to be committed."),
                gauge("quorate_raft_applied_position", "The last position applied here."),
                gauge("quorate_raft_log_bytes", "Bytes of the local log above the purged position."),
            ],
        }
    }
}

impl Collector for GroupCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // One scrape at a time would see a stopped group's last values without this.
        self.gauges.iter().for_each(IntGaugeVec::reset);
        let Some(groups) = self.groups.upgrade() else { return Vec::new() };
        for group in groups.all() {
            let view = group.view();
            let values = [
                view.term,
                u64::from(group.leadership.borrow().mine),
                view.last_position,
                view.committed,
                view.applied,
                group.log.bytes(),
            ];
            for (gauge, value) in self.gauges.iter().zip(values) {
                gauge.with_label_values(&[&group.id.to_string()]).set(value as i64);
            }
        }
        self.gauges.iter().flat_map(Collector::collect).collect()
    }
}
