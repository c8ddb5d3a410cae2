//! What an index is told when it is opened, and the check of every vector that enters it.

use std::time::Duration;

use crate::error::Error;

/// Greatest number of dimensions.
pub const MAX_DIMENSION: usize = 4096;
/// Greatest number of neighbours that one search returns.
pub const MAX_K: usize = 16_384;
/// Greatest candidate list of one graph search.
pub const MAX_EF: usize = 65_536;
/// Greatest number of rows in one segment; a graph search allocates a byte for each.
pub const MAX_SEGMENT_ROWS: usize = 1 << 20;
/// Greatest Euclidean length of a vector: the square of a distance stays far inside of `f32`.
pub const MAX_LENGTH: f64 = 1e15;

/// How nearness is measured. A score is always "higher is nearer".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Cosine of the angle, -1 to 1. Vectors are normalised when they are inserted; a zero vector is refused.
    Cosine,
    /// Inner product, as given.
    InnerProduct,
    /// Negative squared Euclidean distance.
    L2,
}

/// The settings of one index. Changing `dimension` or `metric` of an index that has files rebuilds it from rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Components of a vector, 1 to [`MAX_DIMENSION`].
    pub dimension: usize,
    /// How nearness is measured.
    pub metric: Metric,
    /// The head is sealed when it holds this many rows, at least twice `flat_below` and at most [`MAX_SEGMENT_ROWS`].
    pub seal_rows: usize,
    /// A segment of fewer rows gets no graph and is scanned; a head of fewer rows is never sealed.
    pub flat_below: usize,
    /// Links of a row in the graph (twice as many on the lowest level), 4 to 64.
    pub m: usize,
    /// Candidate list while a graph is built, 8 to 1,024.
    pub ef_construction: usize,
    /// Candidate list of a search that names none, 1 to [`MAX_EF`].
    pub ef_search: usize,
    /// Candidates for each wanted neighbour that a graph search brings to the exact rerank, 1 to 64.
    pub rerank: usize,
    /// A head of `flat_below` rows or more is sealed after this time without a write; segments are then gathered, too.
    pub idle: Duration,
}

impl Settings {
    /// The defaults for vectors of `dimension` components.
    pub fn new(dimension: usize, metric: Metric) -> Settings {
        Settings {
            dimension,
            metric,
            seal_rows: 32_768,
            flat_below: 16_384,
            m: 16,
            ef_construction: 100,
            ef_search: 64,
            rerank: 3,
            idle: Duration::from_secs(2),
        }
    }

    /// Refuses settings outside of their ranges.
    pub fn check(&self) -> Result<(), Error> {
        let rules = [
            ("dimension", self.dimension, 1..=MAX_DIMENSION, "give 1 to 4096"),
            ("flat_below", self.flat_below, 1..=MAX_SEGMENT_ROWS / 2, "give 1 to 524288"),
            (
                "seal_rows",
                self.seal_rows,
                self.flat_below.saturating_mul(2)..=MAX_SEGMENT_ROWS,
                "give twice flat_below to 1048576",
            ),
            ("m", self.m, 4..=64, "give 4 to 64"),
            ("ef_construction", self.ef_construction, 8..=1024, "give 8 to 1024"),
            ("ef_search", self.ef_search, 1..=MAX_EF, "give 1 to 65536"),
            ("rerank", self.rerank, 1..=64, "give 1 to 64"),
        ];
        for (setting, value, range, rule) in rules {
            if !range.contains(&value) {
                return Err(Error::Setting { setting, value, rule });
            }
        }
        Ok(())
    }

    /// Says whether an index of these settings takes `vector`: its length, finite components, a bounded length, and for
    /// cosine a direction. [`crate::Index::insert`] and [`crate::Index::search`] refuse exactly what this refuses, so a
    /// gateway can call it before a write is replicated.
    pub fn check_vector(&self, vector: &[f32]) -> Result<(), Error> {
        self.length(vector).map(drop)
    }

    /// The Euclidean length of a vector that passes the check.
    fn length(&self, vector: &[f32]) -> Result<f64, Error> {
        if vector.len() != self.dimension {
            return Err(Error::Dimension { expected: self.dimension, actual: vector.len() });
        }
        if let Some(component) = vector.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite { component, value: vector[component] });
        }
        let length = vector.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
        if length > MAX_LENGTH {
            return Err(Error::TooLong { length, limit: MAX_LENGTH });
        }
        if self.metric == Metric::Cosine && length == 0.0 {
            return Err(Error::Zero);
        }
        Ok(length)
    }

    /// Floats between the starts of two rows: the dimension, padded with zeros for whole SIMD registers.
    pub(crate) fn stride(&self) -> usize {
        self.dimension.next_multiple_of(16)
    }

    /// Checks `vector` and gives it as it is stored: normalised for cosine, padded to the stride.
    pub(crate) fn prepare(&self, vector: &[f32]) -> Result<Vec<f32>, Error> {
        let length = self.length(vector)?;
        let mut stored = Vec::with_capacity(self.stride());
        match self.metric {
            Metric::Cosine => stored.extend(vector.iter().map(|&value| (f64::from(value) / length) as f32)),
            Metric::InnerProduct | Metric::L2 => stored.extend_from_slice(vector),
        }
        stored.resize(self.stride(), 0.0);
        Ok(stored)
    }
}
