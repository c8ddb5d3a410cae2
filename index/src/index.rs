//! The index as its users see it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use fs_err as fs;

use crate::builder::Builder;
use crate::core::Core;
use crate::error::Error;
use crate::nearest::Neighbour;
use crate::open;
use crate::settings::{MAX_EF, MAX_K, Settings};

/// Reads the vectors of rows from the caller's store, as they were given to [`Index::insert`]; one answer for each row, `None`
/// where a row is gone.
pub type Fetch<'a> = &'a dyn Fn(&[u64]) -> io::Result<Vec<Option<Vec<f32>>>>;

/// What one search asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SearchParams {
    /// Neighbours wanted, 1 to [`MAX_K`].
    pub k: usize,
    /// Candidate list of the graph search, 1 to [`MAX_EF`]; `None` takes the setting. It is widened where `k` or removed rows
    /// ask for more.
    pub ef: Option<usize>,
    /// Compares the query with every live row; no graph is used.
    pub exact: bool,
}

/// What an index holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Live rows.
    pub rows: u64,
    /// Live rows in segments.
    pub sealed_rows: u64,
    /// Live rows in memory: in the head, and in full heads that no segment has replaced yet.
    pub head_rows: u64,
    /// Number of segments.
    pub segments: usize,
    /// Removed rows that still take space.
    pub dead_rows: u64,
    /// A build runs, is queued, or will be looked for as soon as writes pause.
    pub building: bool,
    /// Bytes of the segments' files.
    pub bytes: u64,
}

/// The vectors of one replica of one collection: a cache of rows that their owner can always give again.
///
/// - A row number names one vector for ever: an update is a new row and the removal of the old one.
/// - `insert` and `remove` are for one thread, in the order of the rows' log; `search` is for any number, at any time.
/// - What is only in the head is lost when the process ends; [`Index::open`] fetches it again.
///
/// Dropping it stops its builds and waits for the one that runs to notice, a second at most.
pub struct Index {
    core: Arc<Core>,
    // Keeps the build threads alive.
    _builder: Builder,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index")
            .field("directory", &self.core.directory)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Index {
    /// Opens the files in `dir` (made if missing), which belongs to this index alone: anything in it that is not a whole,
    /// verified segment is removed.
    ///
    /// `live_rows` names all rows that should be found, in any order. Those that no segment covers come from `fetch`, in
    /// batches of at most 1,024. Rows of segments that are not named are dead.
    pub fn open(
        dir: &Path,
        settings: Settings,
        builder: Builder,
        live_rows: &mut dyn Iterator<Item = u64>,
        fetch: Fetch<'_>,
    ) -> Result<Arc<Index>, Error> {
        let core = open::open(dir, settings, builder.queue(), live_rows, fetch)?;
        Ok(Arc::new(Index { core, _builder: builder }))
    }

    /// Adds a row, visible to searches when it returns. A row that is live already is left as it is, so a log can be
    /// applied again from an earlier position.
    ///
    /// Refuses what [`Settings::check_vector`] refuses, and changes nothing then.
    pub fn insert(&self, row: u64, vector: &[f32]) -> Result<(), Error> {
        let stored = self.core.settings.prepare(vector)?;
        let mut writer = self.core.write();
        if writer.destroyed {
            return Err(Error::Destroyed);
        }
        self.core.insert(&mut writer, row, &stored);
        Ok(())
    }

    /// Takes a row out of every search that starts after the return; says whether it was live.
    pub fn remove(&self, row: u64) -> bool {
        let mut writer = self.core.write();
        !writer.destroyed && self.core.remove(&mut writer, row)
    }

    /// The nearest `k` live rows, best first; fewer only when there are fewer. Scores are exact; which rows are found is
    /// approximate in segments with a graph, unless `params.exact`. Equal scores go by row number.
    pub fn search(&self, query: &[f32], params: SearchParams) -> Result<Vec<Neighbour>, Error> {
        let SearchParams { k, ef, exact } = params;
        if !(1..=MAX_K).contains(&k) {
            return Err(Error::K { k, limit: MAX_K });
        }
        let settings = &self.core.settings;
        let ef = ef.unwrap_or(settings.ef_search);
        if !(1..=MAX_EF).contains(&ef) {
            return Err(Error::Ef { ef, limit: MAX_EF });
        }
        let query = settings.prepare(query)?;
        if self.core.is_destroyed() {
            return Err(Error::Destroyed);
        }
        Ok(self.core.view().search(settings, &query, k, (!exact).then_some(ef)))
    }

    /// Counts. While rows are written they are a moment's, not one instant's.
    pub fn stats(&self) -> Stats {
        let view = self.core.view();
        let sealed: usize = view.segments.iter().map(|segment| segment.live().count()).sum();
        let head: usize = view.heads().map(|head| head.live().count()).sum();
        let used: usize =
            view.segments.iter().map(|segment| segment.len()).chain(view.heads().map(|head| head.len())).sum();
        Stats {
            rows: (sealed + head) as u64,
            sealed_rows: sealed as u64,
            head_rows: head as u64,
            segments: view.segments.len(),
            dead_rows: used.saturating_sub(sealed + head) as u64,
            building: self.core.is_building(),
            bytes: view.segments.iter().map(|segment| segment.bytes()).sum(),
        }
    }

    /// The settings that it was opened with.
    pub fn settings(&self) -> &Settings {
        &self.core.settings
    }

    /// Asks for what a pause of writes would bring: the head is sealed in the background if it has at least
    /// [`Settings::flat_below`] rows, and small segments are gathered.
    pub fn seal(&self) {
        self.core.freeze_head();
        self.core.schedule(true);
    }

    /// Returns when no build is queued or running. With a builder of no threads it does the builds itself.
    pub fn wait_idle(&self) {
        self.core.wait_settled();
    }

    /// Forgets every row and deletes the files and the directory; later calls answer [`Error::Destroyed`]. What it could not
    /// delete, a new opening of the directory removes.
    pub fn destroy(&self) -> Result<(), Error> {
        self.core.stop();
        let mut writer = self.core.write();
        self.core.forget(&mut writer);
        match fs::remove_dir_all(&self.core.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.core.stop();
    }
}
