//! Row-wise kernels: plain loops that the compiler turns into vector code.

use crate::cpu::{Kernel, dispatch, exp, sum_of_squares};

/// out = row / √(mean square + ε) · weight.
pub(super) fn rms_norm(out: &mut [f32], row: &[f32], weight: &[f32], epsilon: f32) {
    struct Op<'a>(&'a mut [f32], &'a [f32], &'a [f32], f32);
    impl Kernel for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            let scale = 1.0 / (sum_of_squares(self.1) / self.1.len() as f32 + self.3).sqrt();
            for ((out, value), weight) in self.0.iter_mut().zip(self.1).zip(self.2) {
                *out = *value * scale * *weight;
            }
        }
    }
    dispatch(Op(out, row, weight, epsilon));
}

/// out = silu(gate) · up, with silu(x) = x / (1 + e⁻ˣ).
pub(super) fn gated(out: &mut [f32], gate: &[f32], up: &[f32]) {
    struct Op<'a>(&'a mut [f32], &'a [f32], &'a [f32]);
    impl Kernel for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            for ((out, gate), up) in self.0.iter_mut().zip(self.1).zip(self.2) {
                *out = *gate / (1.0 + exp(-*gate)) * *up;
            }
        }
    }
    dispatch(Op(out, gate, up));
}

/// How a position turns each pair of a head's components: cosines, then sines.
pub(super) fn rotation(frequencies: &[f64], position: usize, out: &mut [f32]) {
    let (cosines, sines) = out.split_at_mut(frequencies.len());
    for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(frequencies) {
        let angle = frequency * position as f64;
        (*cosine, *sine) = (angle.cos() as f32, angle.sin() as f32);
    }
}

/// Turns the pairs (i, i + width / 2) of each head by [`rotation`], and scales them.
pub(super) fn rotate(heads: &mut [f32], width: usize, rotation: &[f32], scale: f32) {
    let (cosines, sines) = rotation.split_at(width / 2);
    for head in heads.chunks_exact_mut(width) {
        let (low, high) = head.split_at_mut(width / 2);
        for (((low, high), cosine), sine) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
            let (x, y) = (*low * scale, *high * scale);
            *low = x * cosine - y * sine;
            *high = y * cosine + x * sine;
        }
    }
}

/// Adds `bias` to every row; nothing when it is empty.
pub(super) fn add_bias(rows: &mut [f32], bias: &[f32]) {
    if bias.is_empty() {
        return;
    }
    for row in rows.chunks_exact_mut(bias.len()) {
        for (value, bias) in row.iter_mut().zip(bias) {
            *value += *bias;
        }
    }
}
