//! stub
use std::{io, path::Path, sync::Arc};
use crate::{builder::Builder, error::Error, settings::Settings};

/// What one search asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SearchParams {
    /// Neighbours wanted, 1 to [`crate::MAX_K`].
    pub k: usize,
    /// Candidate list of the graph search; `None` takes the setting. It is widened where `k` or deleted rows ask for more.
    pub ef: Option<usize>,
    /// Compares the query with every live row; no graph is used.
    pub exact: bool,
}

/// One answer of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Number of the row.
    pub row: u64,
    /// Exact score; higher is nearer.
    pub score: f32,
}

/// What an index holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Live rows.
    pub rows: u64,
    /// Live rows in segments.
    pub sealed_rows: u64,
    /// Live rows in the head.
    pub head_rows: u64,
    /// Number of segments.
    pub segments: usize,
    /// Deleted rows that still take space.
    pub dead_rows: u64,
    /// A build runs, is queued, or starts as soon as writes pause.
    pub building: bool,
    /// Bytes of the segments' files.
    pub bytes: u64,
}

/// stub
pub struct Index {}
impl Index {
    /// stub
    pub fn open(_dir: &Path, _settings: Settings, _builder: Builder, _live_rows: &mut dyn Iterator<Item = u64>, _fetch: Fetch<'_>) -> Result<Arc<Index>, Error> { unimplemented!() }
    /// stub
    pub fn insert(&self, _row: u64, _vector: &[f32]) -> Result<(), Error> { unimplemented!() }
    /// stub
    pub fn remove(&self, _row: u64) -> bool { unimplemented!() }
    /// stub
    pub fn search(&self, _query: &[f32], _params: SearchParams) -> Result<Vec<Neighbour>, Error> { unimplemented!() }
    /// stub
    pub fn stats(&self) -> Stats { unimplemented!() }
    /// stub
    pub fn settings(&self) -> &Settings { unimplemented!() }
    /// stub
    pub fn seal(&self) { unimplemented!() }
    /// stub
    pub fn wait_idle(&self) { unimplemented!() }
    /// Deletes the files; later calls answer [`Error::Destroyed`].
    pub fn destroy(&self) -> Result<(), Error> { unimplemented!() }
}
/// Reads the vectors of rows from the caller's store, `None` where a row is gone; as long as its argument.
pub type Fetch<'a> = &'a dyn Fn(&[u64]) -> io::Result<Vec<Option<Vec<f32>>>>;
