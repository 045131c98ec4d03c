//! Sharing rows out among threads.

use rayon::prelude::*;

/// Rows that a thread takes at a time. Fixed, so that sums over blocks don't depend on the number of threads.
const BLOCK: usize = 32;

/// Calls `work` with blocks of rows, in parallel: the index of a block's first row, and the block.
pub(crate) fn over_rows(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if width == 0 {
        return;
    }
    out.par_chunks_mut(BLOCK * width).enumerate().for_each(|(index, block)| work(index * BLOCK, block));
}

/// As [`over_rows`] for two outputs of the same number of rows.
pub(crate) fn over_two(
    first: (&mut [f32], usize),
    second: (&mut [f32], usize),
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let blocks = first.0.par_chunks_mut(BLOCK * first.1).zip(second.0.par_chunks_mut(BLOCK * second.1));
    blocks.enumerate().for_each(|(index, (first, second))| work(index * BLOCK, first, second));
}

/// As [`over_rows`], where each block also gives `sums` numbers; the blocks' numbers are added up, block after block.
pub(crate) fn over_rows_summing(
    out: &mut [f32],
    width: usize,
    sums: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let blocks = out.par_chunks_mut(BLOCK * width).enumerate();
    let partial: Vec<Vec<f32>> = blocks
        .map(|(index, block)| {
            let mut sum = vec![0.0; sums];
            work(index * BLOCK, block, &mut sum);
            sum
        })
        .collect();
    add_up(partial, sums)
}

/// The sums of the columns.
pub(crate) fn column_sums(rows: &[f32], width: usize) -> Vec<f32> {
    let partial = rows.par_chunks(BLOCK * width).map(|block| {
        let mut sum = vec![0.0; width];
        for row in block.chunks_exact(width) {
            add(&mut sum, row);
        }
        sum
    });
    add_up(partial.collect(), width)
}

/// sum += values.
pub(crate) fn add(sum: &mut [f32], values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += *value;
    }
}

/// The part of `rows` that belongs to the block of `count` rows from `first` on.
pub(crate) fn part(rows: &[f32], width: usize, first: usize, count: usize) -> &[f32] {
    &rows[first * width..(first + count) * width]
}

fn add_up(partial: Vec<Vec<f32>>, length: usize) -> Vec<f32> {
    let mut total = vec![0.0; length];
    for sum in &partial {
        add(&mut total, sum);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_depend_on_the_number_of_threads() {
        let rows: Vec<f32> = (0..1000 * 3).map(|i| ((i * 7919) % 1013) as f32 * 1e-3).collect();
        let sums: Vec<Vec<f32>> = [1, 2, 5]
            .iter()
            .map(|&threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| column_sums(&rows, 3))
            })
            .collect();
        assert_eq!(sums[0], sums[1]);
        assert_eq!(sums[0], sums[2]);
        let exact: f64 = rows.iter().step_by(3).map(|v| f64::from(*v)).sum();
        assert!((f64::from(sums[0][0]) - exact).abs() < 1e-3 * exact);
    }

    #[test]
    fn every_row_is_visited_once_and_sums_are_collected() {
        let mut rows = vec![0.0; 70 * 2];
        let sum = over_rows_summing(&mut rows, 2, 1, |first, block, sum| {
            for (index, row) in block.chunks_exact_mut(2).enumerate() {
                row.fill((first + index) as f32);
                sum[0] += 1.0;
            }
        });
        assert_eq!(sum, [70.0]);
        assert!(rows.chunks(2).enumerate().all(|(index, row)| row == [index as f32; 2]));
    }
}
