//! The innermost loops of products, written for the processor's vectors.
//!
//! By hand, because the compiler turns some of the plain loops into code that is thirty times slower. What calls them needs
//! no `unsafe`: they take arrays, never pointers, and [`Instructions`] is only made by asking the processor.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::storage::{Bf16, F16, Q4, Q8};

/// Outputs of a panel of weights: two vectors of AVX2, one of AVX-512.
pub(crate) const WIDTH: usize = 16;

/// What this processor multiplies and adds with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instructions(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Left to the compiler.
    Portable,
}

impl Instructions {
    /// The best that there are.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if is_x86_feature_detected!("avx512f") && has_avx2 {
                return Self(Set::Avx512);
            }
            if has_avx2 {
                return Self(Set::Avx2);
            }
        }
        Self(Set::Portable)
    }

    /// Rows that are multiplied by a panel together: their sums, the panel's row and a factor fill the registers.
    pub(crate) fn tile_rows(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => 12,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => 6,
            Set::Portable => 4,
        }
    }

    /// Whether these vectors decode weights while they multiply ([`Unit::accumulate`]).
    pub(crate) fn decodes(self) -> bool {
        self.0 != Set::Portable
    }
}

/// sums[r][j] += Σᵢ tile[i][r] · panel[i][j], one addition after the other, up to the end of the shorter of them.
#[inline(always)]
pub(crate) fn accumulate<const R: usize>(
    sums: &mut [[f32; WIDTH]; R],
    tile: &[f32],
    panel: &[[f32; WIDTH]],
    instructions: Instructions,
) {
    let tile = tile.as_chunks::<R>().0;
    match instructions.0 {
        // SAFETY: the value is only made where the processor has the features.
        #[cfg(target_arch = "x86_64")]
        Set::Avx512 => unsafe { accumulate_avx512(sums, tile, panel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => unsafe { avx2::accumulate(sums, tile, panel) },
        Set::Portable => {
            for (factors, weights) in tile.iter().zip(panel) {
                for (sums, factor) in sums.iter_mut().zip(factors) {
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum += *factor * *weight;
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn accumulate_avx512<const R: usize>(
    sums: &mut [[f32; WIDTH]; R],
    tile: &[[f32; R]],
    panel: &[[f32; WIDTH]],
) {
    let mut totals = [_mm512_setzero_ps(); R];
    for (total, sums) in totals.iter_mut().zip(sums.iter()) {
        // SAFETY: a row of sums has 16 numbers.
        *total = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
    }
    for (factors, weights) in tile.iter().zip(panel) {
        // SAFETY: a row of a panel has 16 numbers.
        let weights = unsafe { _mm512_loadu_ps(weights.as_ptr()) };
        for row in 0..R {
            totals[row] = _mm512_fmadd_ps(_mm512_set1_ps(factors[row]), weights, totals[row]);
        }
    }
    for (total, sums) in totals.iter().zip(sums.iter_mut()) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *total) };
    }
}

/// Weights in a format that is not what is computed with: some inputs of a panel in one piece.
pub(crate) trait Unit: Copy + Send + Sync {
    /// How many inputs.
    const INPUTS: usize;
    /// Up to so many rows, at most 6, [`Unit::accumulate`] is faster than decoding first (measured with AVX2).
    const ROWS_ON_THE_WAY: usize = if Self::INPUTS == 1 { 6 } else { 4 };

    /// Writes the weights, `INPUTS` rows of a panel.
    fn decode(&self, out: &mut [[f32; WIDTH]], instructions: Instructions);

    /// [`accumulate`] with weights that are decoded on the way: less work for a few rows, more for many. The same result.
    fn accumulate<const R: usize>(
        sums: &mut [[f32; WIDTH]; R],
        tile: &[f32],
        units: &[Self],
        instructions: Instructions,
    );
}

/// Implements [`Unit`] by a function of module `avx2` and a portable one, that each hand every row of weights to a closure.
macro_rules! unit {
    ($unit:ty, $inputs:expr, $rows:ident) => {
        impl Unit for $unit {
            const INPUTS: usize = $inputs;

            #[inline(always)]
            fn decode(&self, out: &mut [[f32; WIDTH]], instructions: Instructions) {
                #[cfg(target_arch = "x86_64")]
                if instructions.decodes() {
                    #[inline]
                    #[target_feature(enable = "avx2,fma,f16c")]
                    fn decode(unit: &$unit, out: &mut [[f32; WIDTH]]) {
                        let mut out = out.iter_mut();
                        avx2::$rows(unit, |weights| {
                            if let Some(out) = out.next() {
                                avx2::store(out, weights);
                            }
                        });
                    }
                    // SAFETY: the value is only made where the processor has the features.
                    return unsafe { decode(self, out) };
                }
                let _ = instructions;
                let mut out = out.iter_mut();
                self.rows(|weights| {
                    if let Some(out) = out.next() {
                        *out = weights;
                    }
                });
            }

            #[inline(always)]
            fn accumulate<const R: usize>(
                sums: &mut [[f32; WIDTH]; R],
                tile: &[f32],
                units: &[Self],
                instructions: Instructions,
            ) {
                let tile = tile.as_chunks::<R>().0;
                #[cfg(target_arch = "x86_64")]
                if instructions.decodes() {
                    #[inline]
                    #[target_feature(enable = "avx2,fma,f16c")]
                    fn accumulate<const R: usize>(
                        sums: &mut [[f32; WIDTH]; R],
                        tile: &[[f32; R]],
                        units: &[$unit],
                    ) {
                        let mut totals = avx2::load_all(sums);
                        for (unit, factors) in units.iter().zip(tile.chunks_exact($inputs)) {
                            let mut factors = factors.iter();
                            avx2::$rows(unit, |weights| {
                                if let Some(factors) = factors.next() {
                                    avx2::step(&mut totals, factors, weights);
                                }
                            });
                        }
                        avx2::store_all(sums, &totals);
                    }
                    // SAFETY: as above.
                    return unsafe { accumulate(sums, tile, units) };
                }
                let _ = instructions;
                for (unit, factors) in units.iter().zip(tile.chunks_exact($inputs)) {
                    let mut factors = factors.iter();
                    unit.rows(|weights| {
                        for (sums, factor) in sums.iter_mut().zip(factors.next().into_iter().flatten()) {
                            for (sum, weight) in sums.iter_mut().zip(weights) {
                                *sum += *factor * weight;
                            }
                        }
                    });
                }
            }
        }
    };
}

unit!(Bf16, 1, bf16_rows);
unit!(F16, 1, f16_rows);
unit!(Q8, 32, q8_rows);
unit!(Q4, 32, q4_rows);

/// For processors with AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;

    /// 16 numbers.
    type Pair = (__m256, __m256);

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn load(numbers: &[f32; WIDTH]) -> Pair {
        // SAFETY: there are 16 numbers.
        unsafe { (_mm256_loadu_ps(numbers.as_ptr()), _mm256_loadu_ps(numbers.as_ptr().add(8))) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn store(out: &mut [f32; WIDTH], numbers: Pair) {
        // SAFETY: there is room for 16 numbers.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), numbers.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), numbers.1);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn load_all<const R: usize>(sums: &[[f32; WIDTH]; R]) -> [Pair; R] {
        let mut totals = [(_mm256_setzero_ps(), _mm256_setzero_ps()); R];
        for (total, sums) in totals.iter_mut().zip(sums) {
            *total = load(sums);
        }
        totals
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn store_all<const R: usize>(sums: &mut [[f32; WIDTH]; R], totals: &[Pair; R]) {
        for (sums, total) in sums.iter_mut().zip(totals) {
            store(sums, *total);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn step<const R: usize>(totals: &mut [Pair; R], factors: &[f32; R], weights: Pair) {
        for (total, factor) in totals.iter_mut().zip(factors) {
            let factor = _mm256_set1_ps(*factor);
            total.0 = _mm256_fmadd_ps(factor, weights.0, total.0);
            total.1 = _mm256_fmadd_ps(factor, weights.1, total.1);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn accumulate<const R: usize>(
        sums: &mut [[f32; WIDTH]; R],
        tile: &[[f32; R]],
        panel: &[[f32; WIDTH]],
    ) {
        let mut totals = load_all(sums);
        for (factors, weights) in tile.iter().zip(panel) {
            step(&mut totals, factors, load(weights));
        }
        store_all(sums, &totals);
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn load_bits(bits: &[u16; WIDTH]) -> (__m128i, __m128i) {
        // SAFETY: there are 16 numbers of 16 bits.
        unsafe { (_mm_loadu_si128(bits.as_ptr().cast()), _mm_loadu_si128(bits.as_ptr().add(8).cast())) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn widen(halves: &F16) -> Pair {
        let bits = load_bits(&halves.0);
        (_mm256_cvtph_ps(bits.0), _mm256_cvtph_ps(bits.1))
    }

    /// 16 bytes as numbers.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn unsigned(bytes: __m128i) -> Pair {
        let upper = _mm_srli_si128::<8>(bytes);
        (_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(upper)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn bf16_rows(unit: &Bf16, mut row: impl FnMut(Pair)) {
        let bits = load_bits(&unit.0);
        let wide = |bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)));
        row((wide(bits.0), wide(bits.1)));
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn f16_rows(unit: &F16, mut row: impl FnMut(Pair)) {
        row(widen(unit));
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn q8_rows(unit: &Q8, mut row: impl FnMut(Pair)) {
        let scales = widen(&unit.scales);
        for quants in &unit.quants {
            // SAFETY: a row of quants has 16 bytes.
            let bytes = unsafe { _mm_loadu_si128(quants.as_ptr().cast()) };
            let upper = _mm_srli_si128::<8>(bytes);
            let left = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
            let right = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(upper));
            row((_mm256_mul_ps(left, scales.0), _mm256_mul_ps(right, scales.1)));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn q4_rows(unit: &Q4, mut row: impl FnMut(Pair)) {
        let (scales, offsets) = (widen(&unit.scales), widen(&unit.offsets));
        let low_half = _mm_set1_epi8(15);
        // Multiplied and added in two roundings, as the weights were made.
        let mut quants = |quants: Pair| {
            let left = _mm256_add_ps(_mm256_mul_ps(quants.0, scales.0), offsets.0);
            let right = _mm256_add_ps(_mm256_mul_ps(quants.1, scales.1), offsets.1);
            row((left, right));
        };
        for bytes in &unit.quants {
            // SAFETY: a row of quants has 16 bytes.
            let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
            quants(unsigned(_mm_and_si128(bytes, low_half)));
        }
        for bytes in &unit.quants {
            // SAFETY: as above.
            let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
            quants(unsigned(_mm_and_si128(_mm_srli_epi16::<4>(bytes), low_half)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every set of instructions of this processor decodes the same and adds up what it decodes.
    #[test]
    fn decoding_is_the_same_by_every_way() {
        fn check<U: Unit>(units: &[U]) {
            let tile: Vec<f32> = (0..3 * units.len() * U::INPUTS).map(|i| (i % 13) as f32 - 5.5).collect();
            let best = Instructions::detect();
            let mut decoded = Vec::new();
            for instructions in [Instructions(Set::Portable), best] {
                let mut panel = vec![[0.0; WIDTH]; units.len() * U::INPUTS];
                for (unit, rows) in units.iter().zip(panel.chunks_exact_mut(U::INPUTS)) {
                    unit.decode(rows, instructions);
                }
                let (mut plain, mut on_the_way) = ([[0.25; WIDTH]; 3], [[0.25; WIDTH]; 3]);
                accumulate(&mut plain, &tile, &panel, instructions);
                U::accumulate(&mut on_the_way, &tile, units, instructions);
                assert_eq!(plain, on_the_way);
                decoded.push(panel);
            }
            assert_eq!(decoded[0], decoded[1]);
            assert!(decoded[0].iter().flatten().any(|weight| *weight != 0.0));
        }
        let rows: Vec<[f32; WIDTH]> =
            (0..64).map(|i| std::array::from_fn(|j| ((i * 31 + j * 17) % 16) as f32 * 0.25 - 1.5)).collect();
        check(&rows.iter().map(Bf16::new).collect::<Vec<_>>());
        check(&rows.iter().map(F16::new).collect::<Vec<_>>());
        check(&rows.chunks(32).map(Q8::new).collect::<Vec<_>>());
        check(&rows.chunks(32).map(Q4::new).collect::<Vec<_>>());
    }
}
