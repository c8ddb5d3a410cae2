//! What a search sees: an immutable list of parts, swapped whole.

use std::sync::Arc;

use crate::head::Head;
use crate::kernel;
use crate::nearest::{Nearest, Neighbour};
use crate::policy::Size;
use crate::segment::Segment;
use crate::settings::Settings;

/// The parts of an index. A row is live in at most one of them.
#[derive(Clone)]
pub(crate) struct View {
    /// Oldest first.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// Full heads that wait for a segment to replace them.
    pub(crate) frozen: Vec<Arc<Head>>,
    /// The head that takes new rows.
    pub(crate) head: Arc<Head>,
}

impl View {
    pub(crate) fn heads(&self) -> impl Iterator<Item = &Arc<Head>> {
        self.frozen.iter().chain([&self.head])
    }

    pub(crate) fn contains(&self, row: u64) -> bool {
        self.heads().any(|head| head.contains(row)) || self.segments.iter().any(|segment| segment.find(row).is_some())
    }

    /// Clears the row's live bit wherever it is set; gives the segment if it was in one. `None`: the row was not here.
    pub(crate) fn remove(&self, row: u64) -> Option<Option<&Arc<Segment>>> {
        if self.heads().any(|head| head.remove(row)) {
            return Some(None);
        }
        self.segments.iter().rev().find_map(|segment| {
            let slot = segment.find(row)?;
            segment.live().clear(slot).then_some(Some(segment))
        })
    }

    pub(crate) fn sizes(&self) -> Vec<Size> {
        self.segments.iter().map(|segment| Size { live: segment.live().count(), dead: segment.dead() }).collect()
    }

    /// The nearest `k` live rows to a prepared query; `ef` of `None` compares with every row.
    pub(crate) fn search(&self, settings: &Settings, query: &[f32], k: usize, ef: Option<usize>) -> Vec<Neighbour> {
        let mut nearest = Nearest::new(k);
        for head in self.heads() {
            scan(head, settings, query, &mut nearest);
        }
        for segment in &self.segments {
            match ef {
                Some(ef) => segment.search(settings, query, k, ef, &mut nearest),
                None => segment.scan(settings, query, &mut nearest),
            }
        }
        nearest.into_sorted()
    }
}

fn scan(head: &Head, settings: &Settings, query: &[f32], nearest: &mut Nearest) {
    for slot in 0..head.len() {
        if head.live().get(slot) {
            nearest.offer(head.row(slot), kernel::score(settings.metric, query, head.vector(slot)));
        }
    }
}
