//! Stands in for the graph when the feature `faiss` is off: no segment has one, so every search is exact.

use std::convert::Infallible;

use crate::error::Error;
use crate::live::Live;

/// No graph: it cannot be made.
pub(crate) struct Graph(Infallible);

impl Graph {
    /// Never called: there is no graph to call it on.
    pub(crate) fn search(
        &self,
        _query: &[f32],
        _wanted: usize,
        _ef: usize,
        _live: Option<&Live>,
    ) -> Result<Vec<u32>, Error> {
        match self.0 {}
    }
}
