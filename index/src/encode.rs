//! How stored vectors become the numbers that a graph compares.

use crate::quantiser::Quantiser;
use crate::settings::{Metric, Settings};

/// Rows that are looked at to choose ranges, and the floats of them at most.
const SAMPLE_ROWS: usize = 8_192;
const SAMPLE_FLOATS: usize = 4 << 20;
/// Share of absolute values that is represented without clipping.
const KEPT: f64 = 0.999;
const MIDDLE: f32 = 128.0;
const REACH: f32 = 127.0;

impl Quantiser {
    /// Chooses the codes for stored vectors, `stride` floats each.
    pub(crate) fn fit(settings: &Settings, vectors: &[f32]) -> Quantiser {
        if settings.metric != Metric::Cosine {
            return Quantiser::Trained;
        }
        let stride = settings.stride();
        let sample: Vec<&[f32]> = sample(vectors, stride).collect();
        let mut centre = vec![0.0_f64; stride];
        for vector in &sample {
            for (sum, &value) in centre.iter_mut().zip(*vector) {
                *sum += f64::from(value);
            }
        }
        let centre: Vec<f32> = centre.into_iter().map(|sum| (sum / sample.len().max(1) as f64) as f32).collect();
        let mut offsets: Vec<f32> = Vec::with_capacity(sample.len() * settings.dimension);
        for vector in &sample {
            offsets.extend(
                vector.iter().zip(&centre).take(settings.dimension).map(|(value, centre)| (value - centre).abs()),
            );
        }
        let at = ((offsets.len() as f64 * KEPT) as usize).min(offsets.len().saturating_sub(1));
        let reach = if offsets.is_empty() { 0.0 } else { *offsets.select_nth_unstable_by(at, f32::total_cmp).1 };
        // Equal vectors leave no reach; any scale represents them.
        let scale = if reach > 1e-12 { REACH / reach } else { 1.0 };
        Quantiser::Direct { centre, scale }
    }

    /// Appends what the graph takes for `vector`.
    pub(crate) fn encode(&self, vector: &[f32], out: &mut Vec<f32>) {
        match self {
            Quantiser::Trained => out.extend_from_slice(vector),
            Quantiser::Direct { centre, scale } => out.extend(
                vector
                    .iter()
                    .zip(centre)
                    .map(|(value, centre)| ((value - centre) * scale + MIDDLE).round().clamp(0.0, 255.0)),
            ),
        }
    }
}

/// Vectors evenly spread over all, at most [`SAMPLE_ROWS`] and [`SAMPLE_FLOATS`].
pub(crate) fn sample(vectors: &[f32], stride: usize) -> impl Iterator<Item = &[f32]> {
    let step = (vectors.len() / stride).div_ceil(SAMPLE_ROWS.min(SAMPLE_FLOATS / stride)).max(1);
    vectors.chunks_exact(stride).step_by(step)
}
