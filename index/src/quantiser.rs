//! The codes of a segment's graph, as its manifest names them.

use serde::{Deserialize, Serialize};

/// One byte for each component either way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quantiser {
    /// `(component - centre) * scale + 128`, rounded: compared in integers. Moving and scaling all vectors alike keeps the
    /// order of distances, and for unit vectors that is the order of cosines.
    Direct {
        /// What is taken from each component.
        centre: Vec<f32>,
        /// Steps of the code for one unit.
        scale: f32,
    },
    /// Ranges for each component, kept by the vector library. The vectors go in as they are.
    Trained,
}

impl Quantiser {
    /// Refuses values that no `fit` gives.
    pub(crate) fn check(&self, stride: usize) -> Result<(), &'static str> {
        match self {
            Quantiser::Trained => Ok(()),
            Quantiser::Direct { centre, scale } => {
                let sound = centre.len() == stride && scale.is_finite() && centre.iter().all(|value| value.is_finite());
                if sound { Ok(()) } else { Err("the manifest's quantiser does not fit") }
            }
        }
    }
}
