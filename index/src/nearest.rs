//! The best `k` of a stream of scored rows.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// One answer of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Number of the row.
    pub row: u64,
    /// Exact score, computed from the vector as it was given: higher is nearer. For L2 the negative squared distance.
    pub score: f32,
}

/// Orders neighbours from best to worst; equal scores go by row, so that equal contents give equal answers.
struct Ranked(Neighbour);

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.score.total_cmp(&self.0.score).then(self.0.row.cmp(&other.0.row))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// Keeps the best `k` neighbours that it was offered.
pub(crate) struct Nearest {
    k: usize,
    worst_first: BinaryHeap<Ranked>,
}

impl Nearest {
    pub(crate) fn new(k: usize) -> Nearest {
        // The room is bounded: a caller may ask for many more neighbours than there are rows.
        Nearest { k, worst_first: BinaryHeap::with_capacity(k.min(1024) + 1) }
    }

    pub(crate) fn offer(&mut self, row: u64, score: f32) {
        let offered = Ranked(Neighbour { row, score });
        if self.worst_first.len() < self.k {
            self.worst_first.push(offered);
        } else if let Some(mut worst) = self.worst_first.peek_mut()
            && offered < *worst
        {
            *worst = offered;
        }
    }

    /// Best first.
    pub(crate) fn into_sorted(self) -> Vec<Neighbour> {
        self.worst_first.into_sorted_vec().into_iter().map(|ranked| ranked.0).collect()
    }
}
