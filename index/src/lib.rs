//! stub
mod builder;
mod error;
mod index;
mod settings;
pub use builder::Builder;
pub use error::Error;
pub use index::{Fetch, Index, Neighbour, SearchParams, Stats};
pub use settings::{MAX_DIMENSION, MAX_EF, MAX_K, MAX_LENGTH, MAX_SEGMENT_ROWS, Metric, Settings};
/// stub
pub fn check_cpu() -> Result<(), Error> { Ok(()) }
