//! Vectors of one replica of one collection, searched while they change.
//!
//! An [`Index`] is a cache of rows: it maps row numbers to vectors and finds the nearest to a query. The owner of the rows
//! keeps the truth; whatever this crate loses or distrusts, it asks for again when it is opened. It knows nothing of
//! replication, points or payloads.
//!
//! # Shape
//!
//! New rows go to the *head*: memory that is searched exactly. A head that is full, or large enough while writes pause, is
//! sealed into a *segment*: an immutable set of files with an HNSW graph over 8-bit codes and the vectors as they came. A
//! *live bitmap* beside each part says which of its rows still count. Segments of one size are merged when four have
//! gathered; one with a fifth of its rows dead is rewritten; while nobody writes, small ones are gathered.
//!
//! # Invariants
//!
//! - A row is live in at most one part. A part that is being replaced stays searchable until its replacement is, and the
//!   swap is one pointer: a search sees all parts from before or all from after.
//! - A search is no snapshot of the rows: it keeps the parts that it began with, and their live bits change under it. Every
//!   row that is live from its beginning to its end counts in it, none that was removed before does, and of what comes or goes
//!   meanwhile it may see either. So both rows of an update can escape it; [`Index::search`] says what to do about that.
//! - Segment files never change. They are made under another name, synced, then renamed; opening reads every byte against
//!   checksums. A file that fails is removed with its segment, and its rows are fetched again.
//! - Scores are always exact: graphs only choose candidates, which are compared by their `f32` vectors.
//! - Nothing that FAISS would assert on reaches it: an assertion there ends the process.
//!
//! # Features
//!
//! `faiss` (default) builds graphs through FAISS. Without it segments are scanned, answers are exact, and no C++ is
//! compiled; files with graphs can still be opened.

mod assemble;
mod builder;
mod core;
#[cfg(feature = "faiss")]
mod encode;
mod error;
mod files;
#[cfg_attr(not(feature = "faiss"), path = "graph_absent.rs")]
mod graph;
mod head;
mod index;
mod kernel;
mod live;
mod nearest;
mod open;
mod policy;
mod quantiser;
mod segment;
mod settings;
mod upkeep;
mod view;

pub use builder::Builder;
pub use error::Error;
pub use index::{Fetch, Index, SearchParams, Stats};
pub use kernel::check_cpu;
pub use nearest::Neighbour;
pub use settings::{MAX_DIMENSION, MAX_EF, MAX_K, MAX_LENGTH, MAX_SEGMENT_ROWS, Metric, Settings};
