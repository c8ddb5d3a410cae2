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
    ///
    /// All this is said of the rows that are live from the call to the return; one that is inserted or removed meanwhile is
    /// found or not. A thread can stand still in here while thousands of rows are replaced, and then it finds neither the old
    /// ones, which are gone, nor the new ones, which are in parts that it does not know, and fewer than `k`. Whoever replaces
    /// rows must insert the new ones first, count the removals, and search again when one came in between.
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

#[cfg(test)]
mod tests {
    //! A search takes the view and then looks through it. Here everything happens between these two steps, which is what a
    //! busy machine does now and then.

    use super::*;
    use crate::settings::Metric;
    use crate::view::View;

    const SEAL_ROWS: u64 = 256;

    struct Stage {
        index: Arc<Index>,
        _files: tempfile::TempDir,
    }

    impl Stage {
        /// An index that builds only when it is told to, with the first `rows` rows.
        fn new(rows: u64) -> Stage {
            let files = tempfile::tempdir().expect("a temporary directory");
            let settings = Settings { seal_rows: SEAL_ROWS as usize, flat_below: 100, ..Settings::new(2, Metric::L2) };
            let index = Index::open(files.path(), settings, Builder::new(0), &mut std::iter::empty(), &|_| Ok(vec![]))
                .expect("an empty index");
            let stage = Stage { index, _files: files };
            (0..rows).for_each(|row| stage.insert(row, row));
            stage
        }

        /// Rows lie on a line.
        fn insert(&self, row: u64, place: u64) {
            self.index.insert(row, &[place as f32, 0.0]).expect("a sound vector");
        }

        /// The second step of an exact search for what lies about `place`: the rows, nearest first.
        fn finish(&self, begun: &View, place: u64, k: usize) -> Vec<u64> {
            let query = self.index.settings().prepare(&[place as f32, 0.0]).expect("a sound vector");
            let found = begun.search(self.index.settings(), &query, k, None);
            found.into_iter().map(|neighbour| neighbour.row).collect()
        }
    }

    #[test]
    fn a_search_that_stands_still_finds_what_stays_though_all_its_parts_are_replaced() {
        let stage = Stage::new(300);
        assert!(stage.index.remove(150));
        let begun = stage.index.core.view();
        assert_eq!((begun.frozen.len(), begun.segments.len(), begun.head.len()), (1, 0, 44));
        for row in 300..2_000 {
            stage.insert(row, row);
            let oldest = row - 300;
            if oldest % 10 != 0 {
                assert!(stage.index.remove(oldest));
            }
            // The head is handed over, and what is worn by now is rewritten or merged.
            if row % 150 == 149 {
                stage.index.seal();
                stage.index.wait_idle();
            }
        }
        let now = stage.index.core.view();
        assert!(begun.heads().all(|head| now.heads().all(|other| !Arc::ptr_eq(head, other))), "all parts are replaced");
        let found = stage.finish(&begun, 0, 2_000);
        for staying in (0..300).step_by(10).filter(|&row| row != 150) {
            assert!(found.contains(&staying), "row {staying} was live all the time: {found:?}");
        }
        assert!(!found.contains(&150), "it was removed before the search began: {found:?}");
        assert!(found.is_sorted(), "each row comes once: {found:?}");
    }

    /// What callers must reckon with, and the reason why a search is repeated when rows were removed meanwhile. Whoever makes
    /// searches snapshots may delete this, and those repetitions.
    #[test]
    fn a_search_that_stands_still_may_miss_both_rows_of_an_update() {
        let stage = Stage::new(SEAL_ROWS);
        let begun = stage.index.core.view();
        // The first of these fills the head, so they go to one that the search does not know.
        for row in 0..SEAL_ROWS {
            stage.insert(SEAL_ROWS + row, row);
            assert!(stage.index.remove(row));
            let found = stage.finish(&begun, row, 1);
            assert!(!found.contains(&row) && !found.contains(&(SEAL_ROWS + row)), "{found:?}");
            assert_eq!(stage.finish(&stage.index.core.view(), row, 1), [SEAL_ROWS + row], "a later search sees it");
        }
        assert_eq!(stage.index.stats().rows, SEAL_ROWS);
        assert!(stage.finish(&begun, 0, 5).is_empty(), "it comes out short though as many rows are live as ever");
    }
}
