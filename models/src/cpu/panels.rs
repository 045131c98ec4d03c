//! Products with weights that are arranged once and used for ever.
//!
//! A step of a decoder multiplies a handful of rows by every weight of the model, so that a general matrix product,
//! which rearranges its operands every time, spends its time on that. Here the weights lie in panels of [`WIDTH`]
//! outputs, in the order in which they are read: input by input, the panel's outputs side by side.
//!
//! Every output is one chain of additions from the first input to the last, whatever else is computed beside it. So
//! a row's results are the same bits alone and in any company, on any number of threads.

use super::{
    Buffer, Team,
    dispatch::{Instructions, Kernel, WIDTH, accumulate, dispatch},
};

/// Rows that pass a panel together are about this many numbers, so that they stay in the second-level cache.
const BLOCK_NUMBERS: usize = 64 << 10;
/// Pieces of a product for each thread, so that a thread that was held up is helped by the others.
const PIECES_PER_THREAD: usize = 4;

/// Fewer numbers than these are arranged before another thread is told.
const SMALLEST_SHARED_FILL: usize = 1 << 13;

/// A weight matrix, `outputs × inputs`, in panels; the last one is filled up with zeros.
pub(crate) struct Panels {
    data: Vec<f32>,
    inputs: usize,
    outputs: usize,
}

impl Panels {
    /// Arranges `weight`, which has a row of `inputs` for each output.
    pub(crate) fn new(weight: &[f32], inputs: usize, team: &Team) -> Self {
        let outputs = weight.len() / inputs;
        let mut data = vec![0.0; outputs.div_ceil(WIDTH) * WIDTH * inputs];
        let panels = data.chunks_exact_mut(WIDTH * inputs).zip(weight.chunks(WIDTH * inputs));
        team.each(panels.collect(), |(panel, rows): (&mut [f32], &[f32])| {
            for (output, row) in rows.chunks_exact(inputs).enumerate() {
                for (column, value) in panel.as_chunks_mut::<WIDTH>().0.iter_mut().zip(row) {
                    column[output] = *value;
                }
            }
        });
        Self { data, inputs, outputs }
    }

    /// Copies the weights of one output.
    pub(crate) fn copy_row(&self, output: usize, row: &mut [f32]) {
        let panel = &self.data[output / WIDTH * WIDTH * self.inputs..];
        for (value, column) in row.iter_mut().zip(panel.as_chunks::<WIDTH>().0) {
            *value = column[output % WIDTH];
        }
    }
}

/// Rows to multiply, in tiles: input by input, a tile's rows side by side. Used again from step to step.
#[derive(Default)]
pub(crate) struct Tiles {
    data: Buffer,
    rows: usize,
    inputs: usize,
}

impl Tiles {
    /// Makes room for `rows` rows of `inputs`, and calls `fill` with each row's index and where to put it.
    pub(crate) fn fill(
        &mut self,
        rows: usize,
        inputs: usize,
        team: &Team,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        (self.rows, self.inputs) = (rows, inputs);
        let mut rest = self.data.get(rows * inputs);
        let mut tiles = Vec::new();
        for (first, height) in heights(rows, Instructions::detect().tile_rows()) {
            let (tile, other) = rest.split_at_mut(height * inputs);
            tiles.push((first, height, tile));
            rest = other;
        }
        let work = |(first, height, tile): (usize, usize, &mut [f32])| {
            let mut row = vec![0.0; inputs];
            for index in 0..height {
                fill(first + index, &mut row);
                for (place, value) in tile[index..].iter_mut().step_by(height).zip(&row) {
                    *place = *value;
                }
            }
        };
        if rows * inputs < SMALLEST_SHARED_FILL {
            tiles.into_iter().for_each(work);
        } else {
            team.each(tiles, work);
        }
    }
}

/// First row and number of rows of each tile: as few tiles as can be, of about the same height.
fn heights(rows: usize, tallest: usize) -> impl Iterator<Item = (usize, usize)> {
    let tiles = rows.div_ceil(tallest).max(1);
    let (height, taller) = (rows / tiles, rows % tiles);
    let first = move |tile: usize| tile * height + tile.min(taller);
    (0..tiles).map(move |tile| (first(tile), first(tile + 1) - first(tile))).filter(|tile| tile.1 > 0)
}

/// What happens to the numbers that were in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// They are replaced.
    Replace,
    /// The product is added to them.
    Add,
}

/// `out = rows · weightᵀ`, or that added to it: `rows × outputs`, row after row, by the team.
///
/// # Panics
/// When the shapes don't fit together: a mistake in this crate.
pub(crate) fn product(out: &mut [f32], rows: &mut Tiles, weight: &Panels, store: Store, team: &Team) {
    assert_eq!(rows.inputs, weight.inputs, "inner dimensions differ");
    assert_eq!(out.len(), rows.rows * weight.outputs, "the output has another shape");
    let panels = weight.outputs.div_ceil(WIDTH);
    let pieces = if team.threads() == 1 { 1 } else { (team.threads() * PIECES_PER_THREAD).min(panels) };
    let panels_each = panels.div_ceil(pieces).max(1);
    let mut parts: Vec<Vec<&mut [f32]>> = (0..panels.div_ceil(panels_each)).map(|_| Vec::new()).collect();
    for row in out.chunks_exact_mut(weight.outputs) {
        for (part, columns) in parts.iter_mut().zip(row.chunks_mut(panels_each * WIDTH)) {
            part.push(columns);
        }
    }
    let (inputs, instructions) = (weight.inputs, Instructions::detect());
    let tiles = &*rows.data.get(rows.rows * inputs);
    let count = rows.rows;
    let work = |(out, panels): (Vec<&mut [f32]>, &[f32])| {
        debug_assert_eq!(out.len(), count);
        dispatch(Piece { out, panels, tiles, inputs, store, instructions });
    };
    let panels = weight.data.chunks(panels_each * WIDTH * inputs);
    team.each(parts.into_iter().zip(panels).collect(), work);
}

/// Some panels' share of a product.
struct Piece<'a> {
    /// For each row its columns of these panels.
    out: Vec<&'a mut [f32]>,
    panels: &'a [f32],
    tiles: &'a [f32],
    inputs: usize,
    store: Store,
    instructions: Instructions,
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let rows = self.out.len();
        let block_rows = BLOCK_NUMBERS / self.inputs;
        let tiles: Vec<(usize, usize)> = heights(rows, self.instructions.tile_rows()).collect();
        let mut next = 0;
        while next < tiles.len() {
            let first_row = tiles[next].0;
            let end =
                tiles[next..].iter().position(|(first, height)| first + height > first_row + block_rows);
            let end = end.map_or(tiles.len(), |count| next + count.max(1));
            for (index, panel) in self.panels.chunks_exact(WIDTH * self.inputs).enumerate() {
                for &(first, height) in &tiles[next..end] {
                    let tile = &self.tiles[first * self.inputs..(first + height) * self.inputs];
                    let out = &mut self.out[first..first + height];
                    one_tile(out, index * WIDTH, tile, panel, self.store, self.instructions);
                }
            }
            next = end;
        }
    }
}

/// Calls `$body` with `$height` as a constant `$R`.
macro_rules! with_height {
    ($height:expr, $R:ident => $body:expr, [$($n:literal)*]) => {
        match $height {
            $($n => { const $R: usize = $n; $body })*
            other => unreachable!("a tile of {other} rows"),
        }
    };
}

#[inline(always)]
fn one_tile(
    out: &mut [&mut [f32]],
    column: usize,
    tile: &[f32],
    panel: &[f32],
    store: Store,
    instructions: Instructions,
) {
    with_height!(out.len(), R => {
        let mut sums = [[0.0; WIDTH]; R];
        accumulate::<R>(&mut sums, tile, panel, instructions);
        for (out, sums) in out.iter_mut().zip(&sums) {
            for (out, sum) in out[column..].iter_mut().zip(sums) {
                *out = if store == Store::Add { *out + *sum } else { *sum };
            }
        }
    }, [1 2 3 4 5 6 7 8 9 10 11 12]);
}
