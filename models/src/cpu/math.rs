//! Functions of numbers and rows that kernels are made of.
//!
//! Sums use several accumulators, because one would chain every addition to the one before.

/// Smaller exponents give 0. Numbers near exp(-87) would, divided by a row's sum, become denormal, and a product
/// with denormal numbers runs ten times slower; a weight below exp(-80) changes no f32 sum anyway.
pub(crate) const SMALLEST_EXPONENT: f32 = -80.0;

/// eˣ for x ≤ 88, to about 1e-7 relative (Cephes' expf, without branches).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let flush = x < SMALLEST_EXPONENT;
    let x = x.clamp(SMALLEST_EXPONENT, 88.0);
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0; // rounds to the nearest integer
    let r = x - n * 0.693_359_4;
    let r = r + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let mantissa = p * r * r + r + 1.0;
    let power = f32::from_bits((((n as i32) + 127) << 23) as u32);
    if flush { 0.0 } else { mantissa * power }
}

/// The sum.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 32];
    let chunks = x.chunks_exact(32);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += *value;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The sum of squares.
#[inline(always)]
pub(crate) fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 32];
    let chunks = x.chunks_exact(32);
    let rest: f32 = chunks.remainder().iter().map(|v| v * v).sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += *value * *value;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The largest number; −∞ of an empty row.
#[inline(always)]
pub(crate) fn maximum(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 32];
    let chunks = x.chunks_exact(32);
    let mut max = f32::NEG_INFINITY;
    for &value in chunks.remainder() {
        max = if value > max { value } else { max };
    }
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    for lane in lanes {
        max = if lane > max { lane } else { max };
    }
    max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_and_never_denormal() {
        for i in -900..880 {
            let x = i as f32 / 10.0;
            let y = exp(x);
            assert!(y == 0.0 || y.is_normal(), "exp({x}) = {y:e}");
            if x >= SMALLEST_EXPONENT {
                let truth = (x as f64).exp();
                assert!(((y as f64 - truth) / truth).abs() < 4e-7, "exp({x}) = {y:e}, not {truth:e}");
            }
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }
}
