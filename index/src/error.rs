//! What can go wrong, and what the caller does next.

use std::io;

/// Why the index refused a call or could not do its work.
///
/// Only [`Error::Io`] and [`Error::Engine`] speak of this machine; every other variant depends on the arguments alone, so
/// it is the same on every replica.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The vector has another length than the index.
    #[error("the vector has {actual} dimensions and the index has {expected}: embed it with the collection's model")]
    Dimension {
        /// Dimension of the index.
        expected: usize,
        /// Length of the vector that was given.
        actual: usize,
    },
    /// A component is NaN or infinite.
    #[error("component {component} of the vector is {value}, which is not a finite number: check the embedding")]
    NotFinite {
        /// Zero-based place of the component.
        component: usize,
        /// Its value.
        value: f32,
    },
    /// A vector of length zero has no direction, so cosine cannot compare it.
    #[error("the vector is zero, which has no direction: cosine needs a vector that is not zero")]
    Zero,
    /// The vector is so long that scores would overflow.
    #[error("the vector has length {length:e}, above the limit of {limit:e}: scale the vectors down")]
    TooLong {
        /// Euclidean length of the vector.
        length: f64,
        /// Greatest length that is accepted.
        limit: f64,
    },
    /// `k` is zero or above the limit.
    #[error("k is {k}; ask for 1 to {limit} neighbours")]
    K {
        /// What was asked.
        k: usize,
        /// Greatest `k` that is accepted.
        limit: usize,
    },
    /// `ef` is zero or above the limit.
    #[error("ef is {ef}; give 1 to {limit}, or leave it out")]
    Ef {
        /// What was asked.
        ef: usize,
        /// Greatest `ef` that is accepted.
        limit: usize,
    },
    /// A setting is outside of its range.
    #[error("setting `{setting}` is {value}: {rule}")]
    Setting {
        /// Name of the field of [`crate::Settings`].
        setting: &'static str,
        /// The value that was given.
        value: usize,
        /// The range that is accepted.
        rule: &'static str,
    },
    /// The processor lacks instructions that the vector kernels were compiled for.
    #[error(
        "this processor lacks {missing}: run on a machine of the x86-64-v3 level (2013 or newer), or build without the feature `faiss`"
    )]
    Cpu {
        /// The missing instruction sets.
        missing: String,
    },
    /// Reading or writing the index's files failed; the message names the file.
    #[error("files of the index: {0}: check the disk and its free space")]
    Io(#[from] io::Error),
    /// The caller's rows could not be read while the index was opened.
    #[error("reading vectors to rebuild the index: {0}: check the state database")]
    Fetch(#[source] io::Error),
    /// A row of the caller's does not fit the index.
    #[error("row {row} of the state database does not fit the index: {source}")]
    Row {
        /// Its number.
        row: u64,
        /// Why.
        source: Box<Error>,
    },
    /// The vector library reported a failure.
    #[error("the vector library failed while {action}: {message}: the segment will be rebuilt from rows")]
    Engine {
        /// What was being done.
        action: &'static str,
        /// Its own words.
        message: String,
    },
    /// The index was destroyed.
    #[error("the index was destroyed: open it again")]
    Destroyed,
}
