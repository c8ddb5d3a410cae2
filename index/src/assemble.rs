//! Making one segment out of heads and segments.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fs_err as fs;

use crate::error::Error;
use crate::files::{self, Manifest, Mapped};
#[cfg(feature = "faiss")]
use crate::graph;
use crate::head::Head;
use crate::live::Live;
use crate::segment::Segment;
use crate::settings::Settings;

/// Rows between two looks at the cancel flag while files are written.
const CHECK_ROWS: usize = 4_096;

/// Where a new segment takes rows from.
pub(crate) enum Source {
    Head(Arc<Head>),
    Segment(Arc<Segment>),
}

impl Source {
    fn len(&self) -> usize {
        match self {
            Source::Head(head) => head.len(),
            Source::Segment(segment) => segment.len(),
        }
    }

    pub(crate) fn live(&self) -> &Live {
        match self {
            Source::Head(head) => head.live(),
            Source::Segment(segment) => segment.live(),
        }
    }

    fn row(&self, slot: usize) -> u64 {
        match self {
            Source::Head(head) => head.row(slot),
            Source::Segment(segment) => segment.row(slot),
        }
    }

    fn vector(&self, slot: usize) -> &[f32] {
        match self {
            Source::Head(head) => head.vector(slot),
            Source::Segment(segment) => segment.vector(slot),
        }
    }
}

/// One slot of the new segment: its row, and the source and slot that it came from.
pub(crate) struct Origin {
    row: u64,
    pub(crate) source: u32,
    pub(crate) slot: u32,
}

/// How an assembly ended.
pub(crate) enum Assembled {
    /// The segment is durable under its final name; no row of it is marked live yet. `origins` are by slot.
    Segment { segment: Segment, origins: Vec<Origin> },
    /// No source had a live row.
    Empty,
    /// The cancel flag was raised; nothing is left.
    Cancelled,
}

/// The live rows of the sources by row number. Each is live in one source alone.
fn gather(sources: &[Source]) -> Vec<Origin> {
    let mut origins = Vec::with_capacity(sources.iter().map(|source| source.live().count()).sum());
    for (number, source) in sources.iter().enumerate() {
        let live = (0..source.len()).filter(|&slot| source.live().get(slot));
        origins.extend(live.map(|slot| Origin { row: source.row(slot), source: number as u32, slot: slot as u32 }));
    }
    origins.sort_unstable_by_key(|origin| origin.row);
    origins
}

/// Writes segment `number` in `directory` out of what is live in `sources` now. Rows that are removed meanwhile are in
/// it, and the caller leaves them dead.
pub(crate) fn assemble(
    directory: &Path,
    number: u64,
    settings: &Settings,
    sources: &[Source],
    threads: usize,
    cancel: &AtomicBool,
) -> Result<Assembled, Error> {
    let origins = gather(sources);
    if origins.is_empty() {
        return Ok(Assembled::Empty);
    }
    let unfinished = directory.join(files::unfinished_name(number));
    let finished = directory.join(files::segment_name(number));
    let made = write_files(&unfinished, settings, sources, &origins, threads, cancel).and_then(|manifest| {
        let Some(manifest) = manifest else { return Ok(None) };
        manifest.write(&unfinished)?;
        files::sync_directory(&unfinished)?;
        fs::rename(&unfinished, &finished)?;
        files::sync_directory(directory)?;
        Segment::open(&finished, manifest, settings).map(Some)
    });
    match made {
        Ok(Some(segment)) => Ok(Assembled::Segment { segment, origins }),
        other => {
            // Best effort: what stays behind has an unfinished name, or is a whole segment that an opening would find.
            for path in [&unfinished, &finished] {
                if path.exists() {
                    fs::remove_dir_all(path)?;
                }
            }
            other.map(|_| Assembled::Cancelled)
        }
    }
}

/// Everything but the manifest, synced. `None`: cancelled.
fn write_files(
    directory: &Path,
    settings: &Settings,
    sources: &[Source],
    origins: &[Origin],
    threads: usize,
    cancel: &AtomicBool,
) -> Result<Option<Manifest>, Error> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    fs::create_dir(directory)?;
    let rows = files::write(&directory.join(files::ROWS), |file| {
        origins.iter().try_for_each(|origin| file.write_all(&origin.row.to_le_bytes()))
    })?;
    let path = directory.join(files::VECTORS);
    let mut cancelled = false;
    let vectors = files::write(&path, |file| {
        for (at, origin) in origins.iter().enumerate() {
            if at % CHECK_ROWS == 0 && cancel.load(Ordering::Relaxed) {
                cancelled = true;
                return Ok(());
            }
            file.write_all(files::bytes_of(sources[origin.source as usize].vector(origin.slot as usize)))?;
        }
        Ok(())
    })?;
    if cancelled {
        return Ok(None);
    }
    let manifest = Manifest::new(settings, origins.len(), rows, vectors);
    if origins.len() < settings.flat_below {
        return Ok(Some(manifest));
    }
    add_graph(directory, settings, manifest, &Mapped::open(&path)?, threads, cancel)
}

#[cfg(feature = "faiss")]
fn add_graph(
    directory: &Path,
    settings: &Settings,
    mut manifest: Manifest,
    vectors: &Mapped<f32>,
    threads: usize,
    cancel: &AtomicBool,
) -> Result<Option<Manifest>, Error> {
    let path = directory.join(files::GRAPH);
    let Some(quantiser) = graph::build(settings, vectors, &path, threads, cancel)? else {
        return Ok(None);
    };
    files::sync(&path)?;
    manifest.graph = Some((files::extent(&path)?, quantiser));
    Ok(Some(manifest))
}

#[cfg(not(feature = "faiss"))]
fn add_graph(
    _: &Path,
    _: &Settings,
    manifest: Manifest,
    _: &Mapped<f32>,
    _: usize,
    _: &AtomicBool,
) -> Result<Option<Manifest>, Error> {
    Ok(Some(manifest))
}
