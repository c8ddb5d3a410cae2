//! A brute-force index, vectors to fill it with, and the row store that an index is opened from.

#![allow(dead_code, reason = "each test file uses a part of the oracle")]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use quorate_index::{Builder, Index, Metric, Neighbour, SearchParams, Settings};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Rows and vectors as the owner of an index keeps them, searched in wide arithmetic.
#[derive(Clone, Default)]
pub(crate) struct Oracle {
    pub(crate) rows: BTreeMap<u64, Vec<f32>>,
}

impl Oracle {
    pub(crate) fn score(metric: Metric, left: &[f32], right: &[f32]) -> f64 {
        let pairs = || left.iter().zip(right).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let dot: f64 = pairs().map(|(a, b)| a * b).sum();
        let length = |vector: &[f32]| vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        match metric {
            Metric::InnerProduct => dot,
            Metric::Cosine => dot / (length(left) * length(right)),
            Metric::L2 => -pairs().map(|(a, b)| (a - b).powi(2)).sum::<f64>(),
        }
    }

    pub(crate) fn nearest(&self, metric: Metric, query: &[f32], k: usize) -> Vec<(u64, f64)> {
        let mut scored: Vec<(u64, f64)> =
            self.rows.iter().map(|(&row, vector)| (row, Self::score(metric, query, vector))).collect();
        scored.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
        scored.truncate(k);
        scored
    }

    /// Opens an index of exactly these rows.
    pub(crate) fn open(&self, dir: &Path, settings: &Settings, builder: &Builder) -> Arc<Index> {
        self.open_counting(dir, settings, builder).0
    }

    /// The same, with the number of rows that it had to fetch.
    pub(crate) fn open_counting(&self, dir: &Path, settings: &Settings, builder: &Builder) -> (Arc<Index>, usize) {
        let fetched = std::cell::Cell::new(0);
        let fetch = |rows: &[u64]| -> io::Result<Vec<Option<Vec<f32>>>> {
            fetched.set(fetched.get() + rows.len());
            Ok(rows.iter().map(|row| self.rows.get(row).cloned()).collect())
        };
        let index = Index::open(dir, settings.clone(), builder.clone(), &mut self.rows.keys().copied(), &fetch)
            .expect("the index opens");
        (index, fetched.get())
    }

    /// Holds an exact search against brute force. Rows of nearly equal score may change places.
    pub(crate) fn assert_exact(&self, index: &Index, query: &[f32], k: usize) {
        let metric = index.settings().metric;
        let got = index.search(query, SearchParams { k, ef: None, exact: true }).expect("a valid search");
        let want = self.nearest(metric, query, k);
        assert_eq!(got.len(), want.len(), "an exact search finds min(k, rows)");
        let mut seen = std::collections::BTreeSet::new();
        for (place, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!(seen.insert(got.row), "row {} came twice", got.row);
            let vector = self.rows.get(&got.row).unwrap_or_else(|| panic!("row {} is not live", got.row));
            let tolerance = 1e-4 * (1.0 + want.1.abs());
            let real = Self::score(metric, query, vector);
            assert!((f64::from(got.score) - real).abs() < tolerance, "row {}: score {} is {real}", got.row, got.score);
            assert!((real - want.1).abs() < tolerance, "place {place}: {real} instead of {}", want.1);
        }
    }

    /// The share of the true nearest that a search with defaults finds. Every answer must be live and its score exact.
    pub(crate) fn recall(&self, index: &Index, queries: &[Vec<f32>], k: usize) -> f64 {
        let metric = index.settings().metric;
        let (mut found, mut wanted) = (0, 0);
        for query in queries {
            let truth = self.nearest(metric, query, k);
            let got = index.search(query, SearchParams { k, ef: None, exact: false }).expect("a valid search");
            assert_eq!(got.len(), truth.len(), "a search is never short");
            for Neighbour { row, score } in &got {
                let real = Self::score(metric, query, &self.rows[row]);
                assert!((f64::from(*score) - real).abs() < 1e-4 * (1.0 + real.abs()), "{score} is not exact: {real}");
            }
            wanted += truth.len();
            found += truth.iter().filter(|(row, _)| got.iter().any(|answer| answer.row == *row)).count();
        }
        f64::from(found as u32) / f64::from(wanted as u32)
    }
}

/// Vectors around cluster centres, as embeddings are.
pub(crate) struct Clusters {
    centres: Vec<Vec<f32>>,
    random: StdRng,
}

impl Clusters {
    pub(crate) fn new(seed: u64, dimension: usize, clusters: usize) -> Clusters {
        let mut random = StdRng::seed_from_u64(seed);
        let centres = (0..clusters).map(|_| (0..dimension).map(|_| random.random_range(-1.0..1.0)).collect()).collect();
        Clusters { centres, random }
    }

    pub(crate) fn vector(&mut self) -> Vec<f32> {
        let centre = self.random.random_range(0..self.centres.len());
        let random = &mut self.random;
        self.centres[centre].iter().map(|&value| value + random.random_range(-0.4..0.4)).collect()
    }

    pub(crate) fn vectors(&mut self, count: usize) -> Vec<Vec<f32>> {
        (0..count).map(|_| self.vector()).collect()
    }
}

/// Settings whose heads and segments are small enough for tests.
pub(crate) fn small(dimension: usize, metric: Metric) -> Settings {
    Settings { seal_rows: 256, flat_below: 100, ..Settings::new(dimension, metric) }
}

pub(crate) const METRICS: [Metric; 3] = [Metric::Cosine, Metric::InnerProduct, Metric::L2];
