//! The crate's only `unsafe` code: choosing the instruction set at run time, the innermost loop of products, and
//! calling gemm.
//!
//! All are wrapped so that a caller can't misuse them: [`dispatch`] checks the processor before it enters code
//! compiled for it, [`accumulate`] is told by a value that only such a check makes, and [`multiply`] checks every index
//! that gemm will touch against the slices it was given.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Outputs of a panel of weights: two vectors of AVX2, one of AVX-512.
pub(crate) const WIDTH: usize = 16;

/// A computation over slices, written as plain loops, that is compiled once per instruction set.
///
/// `run` and everything it calls must be `#[inline(always)]`, or the compiler keeps it at the baseline
/// instruction set (still right, only slower).
pub(crate) trait Kernel {
    /// What comes out.
    type Output;
    /// The loops.
    fn run(self) -> Self::Output;
}

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
            let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
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
}

/// sums[r][j] += Σᵢ tile[i][r] · panel[i][j], one addition after the other, up to the end of the shorter of them.
#[inline(always)]
pub(crate) fn accumulate<const R: usize>(
    sums: &mut [[f32; WIDTH]; R],
    tile: &[f32],
    panel: &[f32],
    instructions: Instructions,
) {
    let (tile, panel) = (tile.as_chunks::<R>().0, panel.as_chunks::<WIDTH>().0);
    match instructions.0 {
        // SAFETY: the value is only made where the processor has the features.
        #[cfg(target_arch = "x86_64")]
        Set::Avx512 => unsafe { accumulate_avx512(sums, tile, panel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => unsafe { accumulate_avx2(sums, tile, panel) },
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

/// By hand, because the compiler turns some numbers of rows into code that is thirty times slower.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn accumulate_avx2<const R: usize>(sums: &mut [[f32; WIDTH]; R], tile: &[[f32; R]], panel: &[[f32; WIDTH]]) {
    let mut low = [_mm256_setzero_ps(); R];
    let mut high = low;
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: a row of sums has 16 numbers.
        (low[row], high[row]) =
            unsafe { (_mm256_loadu_ps(sums.as_ptr()), _mm256_loadu_ps(sums.as_ptr().add(8))) };
    }
    for (factors, weights) in tile.iter().zip(panel) {
        // SAFETY: a row of a panel has 16 numbers.
        let (left, right) =
            unsafe { (_mm256_loadu_ps(weights.as_ptr()), _mm256_loadu_ps(weights.as_ptr().add(8))) };
        for row in 0..R {
            let factor = _mm256_set1_ps(factors[row]);
            low[row] = _mm256_fmadd_ps(factor, left, low[row]);
            high[row] = _mm256_fmadd_ps(factor, right, high[row]);
        }
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(sums.as_mut_ptr(), low[row]);
            _mm256_storeu_ps(sums.as_mut_ptr().add(8), high[row]);
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

/// Runs `kernel` with the widest vectors that this processor has.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
        fn avx512<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<K: Kernel>(kernel: K) -> K::Output {
            kernel.run()
        }
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
        {
            // SAFETY: the processor has the features (a processor with AVX-512 has AVX2 and FMA).
            return unsafe { avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has the features.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run()
}

/// A read-only view of a matrix in a slice: element (i, j) is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows × columns`, one row after the other.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The same numbers with rows and columns exchanged; nothing is copied.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// One past the largest index that belongs to the matrix.
    fn end(&self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// `out = left · right`, `out` being `left.rows × right.columns`, row after row. Uses `threads` threads of the
/// current rayon pool.
///
/// # Panics
/// When the shapes don't fit together or a slice is too short for its shape: a mistake in this module's callers.
pub(crate) fn multiply(out: &mut [f32], left: Matrix<'_>, right: Matrix<'_>, threads: usize) {
    multiply_scaled(out, false, left, right, 1.0, threads);
}

/// `out = scale · left · right`, added to what `out` holds when `add` is set; otherwise as [`multiply`].
///
/// # Panics
/// As [`multiply`].
pub(crate) fn multiply_scaled(
    out: &mut [f32],
    add: bool,
    left: Matrix<'_>,
    right: Matrix<'_>,
    scale: f32,
    threads: usize,
) {
    assert_eq!(left.columns, right.rows, "inner dimensions differ");
    assert_eq!(out.len(), left.rows * right.columns, "the output has another shape");
    assert!(
        left.end() <= left.data.len() && right.end() <= right.data.len(),
        "a matrix is outside its slice"
    );
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: gemm reads element (i, j) of both operands, reads (when `add` is set) and writes element (i, j) of `out`,
    // and touches nothing else; the assertions above put all of them inside their slices. `out` is borrowed mutably, so
    // it overlaps neither operand. Slices are at most isize::MAX bytes long, so the strides of non-empty matrices fit
    // an isize.
    unsafe {
        gemm::gemm(
            left.rows,
            right.columns,
            left.columns,
            out.as_mut_ptr(),
            1,
            right.columns as isize,
            add,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0f32,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplies_plain_and_transposed_matrices() {
        let left = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // 2 × 3
        let right = [1.0, 0.0, 2.0, 1.0, 1.0, 1.0]; // 2 × 3, used as 3 × 2
        for threads in [1, 2] {
            let mut out = [0.0; 4];
            multiply(&mut out, Matrix::new(&left, 2, 3), Matrix::new(&right, 2, 3).transposed(), threads);
            assert_eq!(out, [7.0, 6.0, 16.0, 15.0]);
        }
    }

    #[test]
    fn adds_a_scaled_product() {
        let (left, right) = ([1.0, 2.0], [3.0, 4.0]);
        let mut out = [10.0, 20.0, 30.0, 40.0];
        multiply_scaled(&mut out, true, Matrix::new(&left, 2, 1), Matrix::new(&right, 1, 2), 0.5, 1);
        assert_eq!(out, [11.5, 22.0, 33.0, 44.0]);
    }

    #[test]
    #[should_panic(expected = "outside its slice")]
    fn refuses_a_matrix_that_reaches_beyond_its_slice() {
        multiply(&mut [0.0; 4], Matrix::new(&[0.0; 5], 2, 3), Matrix::new(&[0.0; 6], 3, 2), 1);
    }

    #[test]
    #[should_panic(expected = "another shape")]
    fn refuses_an_output_of_another_shape() {
        multiply(&mut [0.0; 5], Matrix::new(&[0.0; 6], 2, 3), Matrix::new(&[0.0; 6], 3, 2), 1);
    }
}
