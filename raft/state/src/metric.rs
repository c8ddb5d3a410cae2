//! How the vectors of a collection are compared.

use std::fmt;

use crate::codec::{Decode, Encode};

/// How the vectors of a collection are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Metric {
    /// By angle.
    #[default]
    Cosine,
    /// By inner product.
    InnerProduct,
    /// By Euclidean distance.
    L2,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Metric::Cosine => "cosine",
            Metric::InnerProduct => "inner_product",
            Metric::L2 => "l2",
        })
    }
}
