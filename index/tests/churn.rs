//! Random histories of inserts, removals, seals and reopenings against brute force, for every metric.

mod oracle;

use std::sync::Arc;

use oracle::{Clusters, METRICS, Oracle, small};
use proptest::prelude::*;
use quorate_index::{Builder, Index, Metric, SearchParams};

#[derive(Debug, Clone)]
enum Step {
    Insert(usize),
    /// Removes the live row at this share of the order.
    Remove(f64),
    /// A new row for an old one, as the owner of points does.
    Update(f64),
    /// Removes a run of rows.
    Sweep(f64, usize),
    Seal,
    Settle,
    Reopen,
    Search(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_usize..120).prop_map(Step::Insert),
        3 => (0.0..1.0).prop_map(Step::Remove),
        3 => (0.0..1.0).prop_map(Step::Update),
        1 => ((0.0..1.0), 1_usize..200).prop_map(|(at, run)| Step::Sweep(at, run)),
        1 => Just(Step::Seal),
        1 => Just(Step::Settle),
        1 => Just(Step::Reopen),
        2 => (1_usize..40).prop_map(Step::Search),
    ]
}

struct Churn {
    dir: tempfile::TempDir,
    metric: Metric,
    builder: Builder,
    oracle: Oracle,
    index: Arc<Index>,
    next_row: u64,
    clusters: Clusters,
}

const DIMENSION: usize = 20;

impl Churn {
    fn new(metric: Metric, seed: u64) -> Churn {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // No threads: builds happen at `Settle`, so a failing history can be repeated.
        let builder = Builder::new(0);
        let oracle = Oracle::default();
        let index = oracle.open(dir.path(), &small(DIMENSION, metric), &builder);
        Churn { dir, metric, builder, oracle, index, next_row: 0, clusters: Clusters::new(seed, DIMENSION, 8) }
    }

    fn pick(&self, at: f64) -> Option<u64> {
        let place = (at * self.oracle.rows.len() as f64) as usize;
        self.oracle.rows.keys().nth(place).copied()
    }

    fn insert(&mut self) {
        let vector = self.clusters.vector();
        self.index.insert(self.next_row, &vector).expect("a sound vector");
        self.oracle.rows.insert(self.next_row, vector);
        self.next_row += 1 + self.next_row % 3;
    }

    fn remove(&mut self, row: u64) {
        assert!(self.index.remove(row), "row {row} is live");
        assert!(!self.index.remove(row), "row {row} is gone");
        self.oracle.rows.remove(&row);
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Insert(count) => (0..count).for_each(|_| self.insert()),
            Step::Remove(at) => {
                if let Some(row) = self.pick(at) {
                    self.remove(row);
                }
            }
            Step::Update(at) => {
                if let Some(row) = self.pick(at) {
                    self.insert();
                    self.remove(row);
                }
            }
            Step::Sweep(at, run) => {
                let first = self.pick(at).unwrap_or(0);
                let rows: Vec<u64> = self.oracle.rows.range(first..).take(run).map(|(&row, _)| row).collect();
                rows.into_iter().for_each(|row| self.remove(row));
            }
            Step::Seal => self.index.seal(),
            Step::Settle => self.index.wait_idle(),
            Step::Reopen => {
                let settings = small(DIMENSION, self.metric);
                // The old one is dropped first, as by a restart.
                self.index =
                    Oracle::default().open(tempfile::tempdir().expect("a directory").path(), &settings, &self.builder);
                self.index = self.oracle.open(self.dir.path(), &settings, &self.builder);
            }
            Step::Search(k) => {
                let query = self.clusters.vector();
                self.oracle.assert_exact(&self.index, &query, k);
                let near =
                    self.index.search(&query, SearchParams { k, ef: None, exact: false }).expect("a valid search");
                assert_eq!(near.len(), k.min(self.oracle.rows.len()), "a search is never short");
                assert!(near.iter().all(|answer| self.oracle.rows.contains_key(&answer.row)), "every answer is live");
            }
        }
        let stats = self.index.stats();
        assert_eq!(stats.rows, self.oracle.rows.len() as u64);
        assert_eq!(stats.rows, stats.sealed_rows + stats.head_rows);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_history_of_changes_equals_brute_force(metric in 0_usize..3, seed in any::<u64>(), steps in prop::collection::vec(step(), 1..60)) {
        let mut churn = Churn::new(METRICS[metric], seed);
        for step in steps {
            churn.run(step);
        }
        churn.run(Step::Search(10));
        churn.run(Step::Seal);
        churn.run(Step::Settle);
        churn.run(Step::Search(10));
        churn.run(Step::Reopen);
        churn.run(Step::Search(25));
    }
}

#[test]
fn a_head_of_updates_is_packed_and_not_sealed() {
    let mut churn = Churn::new(Metric::Cosine, 5);
    (0..50).for_each(|_| churn.insert());
    for _ in 0..1_000 {
        churn.run(Step::Update(0.3));
    }
    churn.index.wait_idle();
    let stats = churn.index.stats();
    assert_eq!((stats.rows, stats.segments), (50, 0));
    assert!(stats.dead_rows < 256, "packing drops dead rows: {stats:?}");
    churn.run(Step::Search(50));
}

#[test]
fn a_row_that_is_inserted_again_changes_nothing() {
    let mut churn = Churn::new(Metric::L2, 6);
    churn.run(Step::Insert(300));
    churn.run(Step::Settle);
    for (row, vector) in churn.oracle.rows.clone() {
        churn.index.insert(row, &vector).expect("a repeated row");
    }
    assert_eq!(churn.index.stats().rows, 300);
    churn.run(Step::Search(300));
}

#[test]
fn a_removed_row_can_come_back() {
    let mut churn = Churn::new(Metric::L2, 7);
    churn.run(Step::Insert(300));
    churn.run(Step::Settle);
    let (&row, vector) = churn.oracle.rows.iter().next().map(|(row, vector)| (row, vector.clone())).expect("rows");
    churn.remove(row);
    churn.index.insert(row, &vector).expect("a log applied again");
    churn.oracle.rows.insert(row, vector);
    churn.run(Step::Search(300));
    churn.run(Step::Insert(400));
    churn.run(Step::Settle);
    churn.run(Step::Reopen);
    churn.run(Step::Search(300));
}

#[test]
fn a_worn_segment_is_rewritten() {
    let mut churn = Churn::new(Metric::Cosine, 8);
    churn.run(Step::Insert(256 + 1));
    churn.run(Step::Settle);
    assert_eq!(churn.index.stats().segments, 1);
    let before = churn.index.stats().bytes;
    churn.run(Step::Sweep(0.0, 60));
    churn.run(Step::Settle);
    let stats = churn.index.stats();
    assert_eq!((stats.segments, stats.dead_rows), (1, 0), "{stats:?}");
    assert!(stats.bytes < before, "the files shrank");
    churn.run(Step::Search(100));
    churn.run(Step::Sweep(0.0, 1_000));
    churn.run(Step::Settle);
    assert_eq!(churn.index.stats().segments, 0, "a segment without live rows goes");
}

#[test]
fn four_segments_of_a_size_become_one() {
    let mut churn = Churn::new(Metric::InnerProduct, 9);
    for _ in 0..4 {
        churn.run(Step::Insert(150));
        churn.index.seal();
        // One run, so that the rest does not gather the segments two by two.
        churn.index.wait_idle();
    }
    assert!(churn.index.stats().segments < 4, "{:?}", churn.index.stats());
    churn.run(Step::Search(30));
}
