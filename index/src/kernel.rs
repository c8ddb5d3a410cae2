//! Exact scores on `f32` vectors, with AVX2 and FMA where the processor has them.

use crate::error::Error;
use crate::settings::Metric;

/// Floats that one step of a kernel takes; every stored vector is padded to a multiple of it.
const STEP: usize = 16;

/// Refuses a processor that lacks the instructions which the vector library was compiled for.
///
/// Call it once before anything else: on such a processor the first search would end the process.
pub fn check_cpu() -> Result<(), Error> {
    #[cfg(all(target_arch = "x86_64", feature = "faiss"))]
    require(&[
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        ("FMA", std::arch::is_x86_feature_detected!("fma")),
        ("F16C", std::arch::is_x86_feature_detected!("f16c")),
        ("BMI2", std::arch::is_x86_feature_detected!("bmi2")),
        ("LZCNT", std::arch::is_x86_feature_detected!("lzcnt")),
        ("MOVBE", std::arch::is_x86_feature_detected!("movbe")),
    ])?;
    Ok(())
}

/// Names what is missing of the instruction sets, each given with whether the processor has it.
#[cfg(any(test, all(target_arch = "x86_64", feature = "faiss")))]
fn require(needed: &[(&str, bool)]) -> Result<(), Error> {
    let missing: Vec<&str> = needed.iter().filter(|(_, present)| !present).map(|(name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(Error::Cpu { missing: missing.join(", ") }) }
}

/// The score of two stored vectors of one length: higher is nearer.
pub(crate) fn score(metric: Metric, left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len(), "vectors of one index have one length");
    assert_eq!(left.len() % STEP, 0, "stored vectors are padded");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has AVX2 and FMA, and both slices have the same length, a multiple of STEP.
        return unsafe {
            match metric {
                Metric::Cosine | Metric::InnerProduct => avx2::dot(left, right),
                Metric::L2 => -avx2::squared_distance(left, right),
            }
        };
    }
    match metric {
        Metric::Cosine | Metric::InnerProduct => plain::dot(left, right),
        Metric::L2 => -plain::squared_distance(left, right),
    }
}

mod plain {
    //! For processors without AVX2. Independent lanes let the compiler use the vectors it has.

    use super::STEP;

    fn sum(left: &[f32], right: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [0.0_f32; STEP];
        for (left, right) in left.chunks_exact(STEP).zip(right.chunks_exact(STEP)) {
            for (lane, (&left, &right)) in lanes.iter_mut().zip(left.iter().zip(right)) {
                *lane += term(left, right);
            }
        }
        lanes.iter().sum()
    }

    pub(super) fn dot(left: &[f32], right: &[f32]) -> f32 {
        sum(left, right, |left, right| left * right)
    }

    pub(super) fn squared_distance(left: &[f32], right: &[f32]) -> f32 {
        sum(left, right, |left, right| (left - right) * (left - right))
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Two accumulators of eight lanes hide the latency of the fused multiply-add.

    use std::arch::x86_64::{
        __m256, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps, _mm256_add_ps,
        _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_sub_ps,
    };

    use super::STEP;

    #[target_feature(enable = "avx2,fma")]
    fn horizontal_sum(lanes: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }

    /// # Safety
    /// The slices have one length, a multiple of `STEP`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn dot(left: &[f32], right: &[f32]) -> f32 {
        let (mut first, mut second) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for at in (0..left.len()).step_by(STEP) {
            // SAFETY: `at + 16` is within both slices, as the caller promises.
            unsafe {
                let (a, b) = (left.as_ptr().add(at), right.as_ptr().add(at));
                first = _mm256_fmadd_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b), first);
                second = _mm256_fmadd_ps(_mm256_loadu_ps(a.add(8)), _mm256_loadu_ps(b.add(8)), second);
            }
        }
        horizontal_sum(_mm256_add_ps(first, second))
    }

    /// # Safety
    /// The slices have one length, a multiple of `STEP`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn squared_distance(left: &[f32], right: &[f32]) -> f32 {
        let (mut first, mut second) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for at in (0..left.len()).step_by(STEP) {
            // SAFETY: `at + 16` is within both slices, as the caller promises.
            unsafe {
                let (a, b) = (left.as_ptr().add(at), right.as_ptr().add(at));
                let low = _mm256_sub_ps(_mm256_loadu_ps(a), _mm256_loadu_ps(b));
                let high = _mm256_sub_ps(_mm256_loadu_ps(a.add(8)), _mm256_loadu_ps(b.add(8)));
                first = _mm256_fmadd_ps(low, low, first);
                second = _mm256_fmadd_ps(high, high, second);
            }
        }
        horizontal_sum(_mm256_add_ps(first, second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_refused_with_what_it_lacks_and_what_to_do() {
        assert!(require(&[("AVX2", true), ("FMA", true)]).is_ok());
        let refused = require(&[("AVX2", true), ("FMA", false), ("BMI2", true), ("MOVBE", false)]);
        let message = refused.expect_err("two are missing").to_string();
        assert!(message.starts_with("this processor lacks FMA, MOVBE: run on a machine of the x86-64-v3"), "{message}");
        assert!(message.contains("without the feature `faiss`"), "{message}");
        assert!(!message.contains("AVX2") && !message.contains("BMI2"), "{message}");
    }

    #[test]
    fn both_kernels_agree_with_wide_arithmetic() {
        for length in [16, 32, 48, 384] {
            let left: Vec<f32> = (0..length).map(|i| ((i * 7 % 23) as f32 - 11.0) / 5.0).collect();
            let right: Vec<f32> = (0..length).map(|i| ((i * 13 % 29) as f32 - 14.0) / 9.0).collect();
            let pairs = || left.iter().zip(&right).map(|(&a, &b)| (f64::from(a), f64::from(b)));
            let dot: f64 = pairs().map(|(a, b)| a * b).sum();
            let distance: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
            for (got, want) in [
                (score(Metric::Cosine, &left, &right), dot),
                (score(Metric::InnerProduct, &left, &right), dot),
                (plain::dot(&left, &right), dot),
                (score(Metric::L2, &left, &right), -distance),
                (-plain::squared_distance(&left, &right), -distance),
            ] {
                assert!((f64::from(got) - want).abs() < 1e-3, "{got} against {want} at {length}");
            }
        }
    }
}
