//! Choosing the instruction set at run time, and calling gemm.
//!
//! Both are wrapped so that a caller can't misuse them: [`dispatch`] checks the processor before it enters code
//! compiled for it, and [`multiply`] checks every index that gemm will touch against the slices it was given.
#![allow(unsafe_code)]

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
