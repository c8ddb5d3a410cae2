//! Opening: keep what verifies, drop the rest, and fetch the rows that no segment covers.

use std::path::Path;
use std::sync::Arc;

use fs_err as fs;
use tracing::{info, warn};

use crate::builder::Queue;
use crate::core::Core;
use crate::error::Error;
use crate::files;
use crate::index::Fetch;
use crate::segment::Segment;
use crate::settings::Settings;

/// Rows that are fetched at once.
const FETCH_ROWS: usize = 1_024;

/// The finished segments of `directory` that verify, newest first. Everything else in it is removed.
fn usable_segments(directory: &Path, settings: &Settings) -> Result<Vec<(u64, Segment)>, Error> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(files::segment_number);
        let opened = number.map(|number| (number, Segment::open_verified(&entry.path(), settings)));
        match opened {
            Some((number, Ok(segment))) => segments.push((number, segment)),
            Some((number, Err(error))) => {
                warn!(directory = %directory.display(), number, %error, "a segment cannot be used; its rows are fetched again");
                remove(&entry)?;
            }
            None => {
                info!(path = %entry.path().display(), "removing what an unfinished build left");
                remove(&entry)?;
            }
        }
    }
    segments.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
    Ok(segments)
}

fn remove(entry: &fs::DirEntry) -> Result<(), Error> {
    if entry.file_type()?.is_dir() {
        fs::remove_dir_all(entry.path())?;
    } else {
        fs::remove_file(entry.path())?;
    }
    Ok(())
}

/// Marks the segment's rows live that are in `rows` and not `covered` yet. Both are ascending.
fn cover(segment: &Segment, rows: &[u64], covered: &mut [bool]) {
    let mut at = 0;
    for (slot, &row) in segment.rows().iter().enumerate() {
        while at < rows.len() && rows[at] < row {
            at += 1;
        }
        if at < rows.len() && rows[at] == row && !covered[at] {
            covered[at] = true;
            segment.live().set(slot);
        }
    }
}

/// Builds the inner part of an index from its files and the caller's rows.
pub(crate) fn open(
    directory: &Path,
    settings: Settings,
    queue: Queue,
    live_rows: &mut dyn Iterator<Item = u64>,
    fetch: Fetch<'_>,
) -> Result<Arc<Core>, Error> {
    settings.check()?;
    fs::create_dir_all(directory)?;
    let mut rows: Vec<u64> = live_rows.collect();
    rows.sort_unstable();
    rows.dedup();
    let mut covered = vec![false; rows.len()];
    let found = usable_segments(directory, &settings)?;
    let next_segment = found.first().map_or(0, |(number, _)| number + 1);
    let mut segments = Vec::new();
    for (_, segment) in found {
        // Newest first: a merge that was cut off before it deleted its sources leaves rows twice.
        cover(&segment, &rows, &mut covered);
        if segment.live().count() == 0 {
            segment.delete()?;
        } else {
            segments.push(Arc::new(segment));
        }
    }
    segments.reverse();
    files::sync_directory(directory)?;
    let core = Arc::new(Core::new(directory, settings, queue, segments, next_segment));
    let missing: Vec<u64> = rows.iter().zip(&covered).filter(|(_, covered)| !**covered).map(|(&row, _)| row).collect();
    for batch in missing.chunks(FETCH_ROWS) {
        let loaded = load(&core, batch, fetch);
        if loaded.is_err() {
            core.stop();
        }
        loaded?;
    }
    if !core.view().segments.is_empty() {
        core.schedule(false);
        core.watch();
    }
    Ok(core)
}

/// Fetches rows into the head.
fn load(core: &Arc<Core>, batch: &[u64], fetch: Fetch<'_>) -> Result<(), Error> {
    let vectors = fetch(batch).map_err(Error::Fetch)?;
    if vectors.len() != batch.len() {
        return Err(Error::Fetch(files::damaged(
            "the reader answered for another number of rows than it was asked for",
        )));
    }
    let mut writer = core.write();
    for (&row, vector) in batch.iter().zip(vectors) {
        let Some(vector) = vector else {
            warn!(row, "a live row has no vector in the store; searches will not find it");
            continue;
        };
        let stored = core.settings.prepare(&vector).map_err(|source| Error::Row { row, source: Box::new(source) })?;
        core.insert(&mut writer, row, &stored);
    }
    Ok(())
}
