//! A segment: an immutable set of rows on disk, searched through its graph or by a scan.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use tracing::warn;

use crate::error::Error;
use crate::files::{self, Manifest, Mapped};
use crate::graph::Graph;
use crate::live::Live;
use crate::nearest::Nearest;
use crate::settings::{MAX_EF, Settings};

/// Immutable but for its live bitmap, which is rebuilt from the caller's rows at each start.
pub(crate) struct Segment {
    directory: PathBuf,
    stride: usize,
    bytes: u64,
    /// Ascending; the place of a row is its slot.
    rows: Mapped<u64>,
    vectors: Mapped<f32>,
    live: Live,
    graph: Option<Graph>,
}

impl Segment {
    /// Verifies every byte of the segment in `directory` and opens it with no row live. An error says that it cannot be used.
    pub(crate) fn open_verified(directory: &Path, settings: &Settings) -> Result<Segment, Error> {
        let manifest = Manifest::verified(directory, settings)?;
        let segment = Segment::open(directory, manifest, settings)?;
        if cfg!(feature = "faiss") && segment.graph.is_none() && segment.len() >= settings.flat_below {
            return Err(files::damaged("a segment of this size needs a graph and has none").into());
        }
        if !segment.rows.is_sorted_by(|left, right| left < right) {
            return Err(files::damaged("the rows are not ascending").into());
        }
        Ok(segment)
    }

    /// Opens files that were just written or verified.
    pub(crate) fn open(directory: &Path, manifest: Manifest, settings: &Settings) -> Result<Segment, Error> {
        let count = manifest.count();
        let bytes = manifest.bytes();
        let rows: Mapped<u64> = Mapped::open(&directory.join(files::ROWS))?;
        let vectors: Mapped<f32> = Mapped::open(&directory.join(files::VECTORS))?;
        let stride = settings.stride();
        if rows.len() != count || vectors.len() != count * stride {
            return Err(files::damaged("the files have other lengths than the manifest says").into());
        }
        #[cfg(feature = "faiss")]
        let graph = match manifest.graph {
            None => None,
            Some((_, quantiser)) => Some(Graph::open(&directory.join(files::GRAPH), settings, count, quantiser)?),
        };
        #[cfg(not(feature = "faiss"))]
        let graph = None;
        Ok(Segment { directory: directory.to_owned(), stride, bytes, rows, vectors, live: Live::new(count), graph })
    }

    /// Slots, dead ones among them.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn dead(&self) -> usize {
        self.len() - self.live.count()
    }

    pub(crate) fn live(&self) -> &Live {
        &self.live
    }

    pub(crate) fn rows(&self) -> &[u64] {
        &self.rows
    }

    pub(crate) fn row(&self, slot: usize) -> u64 {
        self.rows[slot]
    }

    pub(crate) fn vector(&self, slot: usize) -> &[f32] {
        &self.vectors[slot * self.stride..(slot + 1) * self.stride]
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The slot of a live row.
    pub(crate) fn find(&self, row: u64) -> Option<usize> {
        self.rows.binary_search(&row).ok().filter(|&slot| self.live.get(slot))
    }

    /// Offers every live row.
    pub(crate) fn scan(&self, settings: &Settings, query: &[f32], nearest: &mut Nearest) {
        for (slot, vector) in self.vectors.chunks_exact(self.stride).enumerate() {
            if self.live.get(slot) {
                nearest.offer(self.rows[slot], crate::kernel::score(settings.metric, query, vector));
            }
        }
    }

    /// Offers the best candidates of the graph with their exact scores; scans where the graph would not be cheaper, brings
    /// too few, or fails.
    pub(crate) fn search(&self, settings: &Settings, query: &[f32], k: usize, ef: usize, nearest: &mut Nearest) {
        let live = self.live.count();
        let Some(graph) = &self.graph else {
            return self.scan(settings, query, nearest);
        };
        let wanted = k.saturating_mul(settings.rerank).min(self.len());
        // Dead rows take places in the candidate list, so it is widened by their share.
        let ef = ef.max(wanted).saturating_mul(self.len()).div_ceil(live.max(1));
        if ef > MAX_EF || ef > live / 4 {
            return self.scan(settings, query, nearest);
        }
        let bitmap = (live < self.len()).then_some(&self.live);
        match graph.search(query, wanted, ef, bitmap) {
            Ok(slots) if slots.len() >= k.min(live) => {
                for slot in slots {
                    let slot = slot as usize;
                    if self.live.get(slot) {
                        nearest.offer(self.rows[slot], crate::kernel::score(settings.metric, query, self.vector(slot)));
                    }
                }
            }
            Ok(_) => self.scan(settings, query, nearest),
            Err(error) => {
                warn!(segment = %self.directory.display(), %error, "a graph search failed; the segment was scanned");
                self.scan(settings, query, nearest);
            }
        }
    }

    /// Deletes the files; searches that still hold the segment finish on the mapped ones.
    pub(crate) fn delete(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.directory)
    }
}
