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
    dispatch::{Kernel, dispatch},
    simd::{Instructions, Unit, WIDTH, accumulate},
    storage::{BLOCK_INPUTS, Data, Precision},
};

/// Rows that pass a panel together are about this many numbers, so that they stay in the second-level cache.
const BLOCK_NUMBERS: usize = 64 << 10;
/// Inputs that are decoded at a time: with their rows of a tile about half of the first-level cache.
const DECODED_INPUTS: usize = 128;
/// Pieces of a product for each thread, so that a thread that was held up is helped by the others.
const PIECES_PER_THREAD: usize = 4;

/// Fewer numbers than these are arranged before another thread is told.
const SMALLEST_SHARED_FILL: usize = 1 << 13;

/// A weight matrix, `outputs × inputs`, in panels; the last one is filled up with zeros.
pub(crate) struct Panels {
    data: Data,
    inputs: usize,
    outputs: usize,
}

impl Panels {
    /// Arranges `weight`, which has a row of `inputs` for each output.
    pub(crate) fn new(weight: &[f32], inputs: usize, precision: Precision, team: &Team) -> Self {
        let outputs = weight.len() / inputs;
        let mut plain = vec![[0.0; WIDTH]; outputs.div_ceil(WIDTH) * inputs];
        let panels = plain.chunks_exact_mut(inputs).zip(weight.chunks(WIDTH * inputs));
        team.each(panels.collect(), |(panel, rows): (&mut [[f32; WIDTH]], &[f32])| {
            for (output, row) in rows.chunks_exact(inputs).enumerate() {
                for (column, value) in panel.iter_mut().zip(row) {
                    column[output] = *value;
                }
            }
        });
        Self { data: Data::new(plain, inputs, precision, team), inputs, outputs }
    }

    /// Numbers in a row that is multiplied.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Copies the weights of one output.
    pub(crate) fn copy_row(&self, output: usize, row: &mut [f32]) {
        let (panel, column) = (output / WIDTH, output % WIDTH);
        match &self.data {
            Data::F32(units) => {
                for (value, weights) in row.iter_mut().zip(&units[panel * self.inputs..]) {
                    *value = weights[column];
                }
            }
            Data::Bf16(units) => copy_row(row, panel, column, units),
            Data::F16(units) => copy_row(row, panel, column, units),
            Data::Q8(units) => copy_row(row, panel, column, units),
            Data::Q4(units) => copy_row(row, panel, column, units),
        }
    }

    /// Bytes that the weights take.
    pub(crate) fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(units) => size_of_val(&units[..]),
            Data::Bf16(units) => size_of_val(&units[..]),
            Data::F16(units) => size_of_val(&units[..]),
            Data::Q8(units) => size_of_val(&units[..]),
            Data::Q4(units) => size_of_val(&units[..]),
        }
    }
}

fn copy_row<U: Unit>(row: &mut [f32], panel: usize, column: usize, units: &[U]) {
    let mut weights = [[0.0; WIDTH]; BLOCK_INPUTS];
    let units = &units[panel * row.len() / U::INPUTS..];
    for (values, unit) in row.chunks_exact_mut(U::INPUTS).zip(units) {
        unit.decode(&mut weights[..U::INPUTS], Instructions::detect());
        for (value, weights) in values.iter_mut().zip(&weights) {
            *value = weights[column];
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
    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

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

/// Calls `$body` with `$height` as a constant `$R`.
macro_rules! with_height {
    ($height:expr, $R:ident => $body:expr, [$($n:literal)*]) => {
        match $height {
            $($n => { const $R: usize = $n; $body })*
            other => unreachable!("a tile of {other} rows"),
        }
    };
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
    if rows.rows == 0 {
        return;
    }
    let panels = weight.outputs.div_ceil(WIDTH);
    let pieces = if team.threads() == 1 { 1 } else { (team.threads() * PIECES_PER_THREAD).min(panels) };
    let panels_each = panels.div_ceil(pieces).max(1);
    let mut parts: Vec<Vec<&mut [f32]>> = (0..panels.div_ceil(panels_each)).map(|_| Vec::new()).collect();
    for row in out.chunks_exact_mut(weight.outputs) {
        for (part, columns) in parts.iter_mut().zip(row.chunks_mut(panels_each * WIDTH)) {
            part.push(columns);
        }
    }
    let tiles = &*rows.data.get(rows.rows * weight.inputs);
    let shape = Shape { inputs: weight.inputs, store, instructions: Instructions::detect() };
    match &weight.data {
        Data::F32(units) => {
            let pieces = parts.into_iter().zip(units.chunks(panels_each * weight.inputs));
            team.each(pieces.collect(), |(out, panels)| dispatch(PlainPiece { out, panels, tiles, shape }));
        }
        Data::Bf16(units) => coded_pieces(parts, units, panels_each, tiles, shape, team),
        Data::F16(units) => coded_pieces(parts, units, panels_each, tiles, shape, team),
        Data::Q8(units) => coded_pieces(parts, units, panels_each, tiles, shape, team),
        Data::Q4(units) => coded_pieces(parts, units, panels_each, tiles, shape, team),
    }
}

fn coded_pieces<U: Unit>(
    parts: Vec<Vec<&mut [f32]>>,
    units: &[U],
    panels_each: usize,
    tiles: &[f32],
    shape: Shape,
    team: &Team,
) {
    let pieces = parts.into_iter().zip(units.chunks(panels_each * shape.inputs / U::INPUTS));
    team.each(pieces.collect(), |(out, panels)| dispatch(CodedPiece { out, panels, tiles, shape }));
}

/// What all pieces of a product have in common.
#[derive(Clone, Copy)]
struct Shape {
    inputs: usize,
    store: Store,
    instructions: Instructions,
}

impl Shape {
    /// First row and height of each tile, in blocks of rows that stay in the cache.
    #[inline(always)]
    fn blocks(&self, rows: usize) -> Vec<Vec<(usize, usize)>> {
        let block_rows = (BLOCK_NUMBERS / self.inputs).max(1);
        let mut blocks: Vec<Vec<(usize, usize)>> = Vec::new();
        for (first, height) in heights(rows, self.instructions.tile_rows()) {
            match blocks.last_mut() {
                Some(block) if first + height <= block[0].0 + block_rows => block.push((first, height)),
                _ => blocks.push(vec![(first, height)]),
            }
        }
        blocks
    }
}

/// Some panels' share of a product, with weights that need no decoding.
struct PlainPiece<'a> {
    /// For each row its columns of these panels.
    out: Vec<&'a mut [f32]>,
    panels: &'a [[f32; WIDTH]],
    tiles: &'a [f32],
    shape: Shape,
}

impl Kernel for PlainPiece<'_> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let inputs = self.shape.inputs;
        for block in self.shape.blocks(self.out.len()) {
            for (index, panel) in self.panels.chunks_exact(inputs).enumerate() {
                for &(first, height) in &block {
                    let tile = &self.tiles[first * inputs..(first + height) * inputs];
                    with_height!(height, R => {
                        let mut sums = [[0.0; WIDTH]; R];
                        accumulate::<R>(&mut sums, tile, panel, self.shape.instructions);
                        store(&mut self.out[first..first + R], index * WIDTH, &sums, self.shape.store);
                    }, [1 2 3 4 5 6 7 8 9 10 11 12]);
                }
            }
        }
    }
}

/// The same with weights that have to be decoded: for a few rows on the way, for more some inputs at a time into the
/// first-level cache.
struct CodedPiece<'a, U> {
    out: Vec<&'a mut [f32]>,
    panels: &'a [U],
    tiles: &'a [f32],
    shape: Shape,
}

impl<U: Unit> Kernel for CodedPiece<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let Shape { inputs, instructions, .. } = self.shape;
        let rows = self.out.len();
        if rows <= U::ROWS_ON_THE_WAY && instructions.decodes() {
            for (index, panel) in self.panels.chunks_exact(inputs / U::INPUTS).enumerate() {
                with_height!(rows, R => {
                    let mut sums = [[0.0; WIDTH]; R];
                    U::accumulate::<R>(&mut sums, self.tiles, panel, instructions);
                    store(&mut self.out, index * WIDTH, &sums, self.shape.store);
                }, [1 2 3 4 5 6]);
            }
            return;
        }
        let tiles: Vec<(usize, usize)> = heights(rows, instructions.tile_rows()).collect();
        let mut weights = [[0.0; WIDTH]; DECODED_INPUTS];
        let mut sums = vec![[0.0; WIDTH]; rows];
        for (index, panel) in self.panels.chunks_exact(inputs / U::INPUTS).enumerate() {
            sums.fill([0.0; WIDTH]);
            let mut start = 0;
            for units in panel.chunks(DECODED_INPUTS / U::INPUTS) {
                for (unit, weights) in units.iter().zip(weights.chunks_exact_mut(U::INPUTS)) {
                    unit.decode(weights, instructions);
                }
                let end = start + units.len() * U::INPUTS;
                for &(first, height) in &tiles {
                    let tile = &self.tiles[first * inputs + start * height..first * inputs + end * height];
                    with_height!(height, R => {
                        if let Some(sums) = sums[first..].first_chunk_mut::<R>() {
                            accumulate::<R>(sums, tile, &weights[..end - start], instructions);
                        }
                    }, [1 2 3 4 5 6 7 8 9 10 11 12]);
                }
                start = end;
            }
            store(&mut self.out, index * WIDTH, &sums, self.shape.store);
        }
    }
}

#[inline(always)]
fn store(out: &mut [&mut [f32]], column: usize, sums: &[[f32; WIDTH]], store: Store) {
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sum) in out[column..].iter_mut().zip(sums) {
            *out = if store == Store::Add { *out + *sum } else { *sum };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    fn multiplied(rows: &[f32], weight: &Panels, store: Store, out: &mut [f32], team: &Team) {
        let inputs = weight.inputs;
        let mut tiles = Tiles::default();
        tiles.fill(rows.len() / inputs, inputs, team, |row, place| {
            place.copy_from_slice(&rows[row * inputs..(row + 1) * inputs]);
        });
        product(out, &mut tiles, weight, store, team);
    }

    #[test]
    fn products_are_right_for_every_shape() {
        for threads in [1, 3] {
            let team = Team::new(threads, "test").unwrap();
            for (outputs, inputs) in [(1, 1), (16, 5), (40, 33), (7, 200), (100, 64)] {
                let weight = numbers(outputs * inputs, 1);
                let panels = Panels::new(&weight, inputs, Precision::Exact, &team);
                for count in [0, 1, 2, 5, 6, 7, 13, 31] {
                    let rows = numbers(count * inputs, 2);
                    let mut out = vec![f32::NAN; count * outputs];
                    multiplied(&rows, &panels, Store::Replace, &mut out, &team);
                    for (index, found) in out.iter().enumerate() {
                        let row = &rows[index / outputs * inputs..][..inputs];
                        let weights = &weight[index % outputs * inputs..][..inputs];
                        let sum: f64 =
                            row.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                        assert!((f64::from(*found) - sum).abs() < 1e-4, "{count} × {inputs} · {outputs}");
                    }
                    let once = out.clone();
                    multiplied(&rows, &panels, Store::Add, &mut out, &team);
                    assert!(out.iter().zip(&once).all(|(twice, once)| *twice == *once + *once));
                }
                let mut row = vec![0.0; inputs];
                panels.copy_row(outputs - 1, &mut row);
                assert_eq!(row, weight[(outputs - 1) * inputs..]);
            }
        }
    }

    /// The format of the weights and the number of rows change no bit of a row's results.
    #[test]
    fn formats_and_company_change_no_bit() {
        let team = Team::new(2, "test").unwrap();
        let (outputs, inputs) = (50, 320);
        let rows = numbers(40 * inputs, 3);
        let made = |make: fn(usize, f32) -> f32| {
            let plain = numbers(outputs * inputs, 5);
            plain
                .iter()
                .enumerate()
                .map(|(index, value)| make(index % BLOCK_INPUTS, *value))
                .collect::<Vec<f32>>()
        };
        let bf16 = made(|_, value| f32::from_bits(value.to_bits() & 0xffff_0000));
        let f16 = made(|_, value| half::f16::from_f32(value).to_f32());
        let q8 = made(|place, value| if place == 3 { 127.0 } else { (value * 126.0).round() } * 0.0625);
        let q4 = made(|place, value| match place {
            3 => -0.5,
            4 => 15.0 * 0.125 - 0.5,
            _ => ((value + 1.0) * 7.0).round() * 0.125 - 0.5,
        });
        for (weight, bits) in [(numbers(outputs * inputs, 5), 32), (bf16, 16), (f16, 16), (q8, 8), (q4, 4)] {
            let panels = Panels::new(&weight, inputs, Precision::Exact, &team);
            let is_block = bits < 16;
            let bytes = outputs.next_multiple_of(WIDTH) * inputs * bits / 8;
            let scales = if is_block { panels.bytes() - bytes } else { 0 };
            assert_eq!(panels.bytes(), bytes + scales, "{bits} bits");
            assert!(scales <= bytes / 4, "{bits} bits");
            let units = Panels::new(&weight, inputs, Precision::Exact, &team);
            let plain = Panels { data: plain(&units), ..units };
            let mut expected = vec![0.0; 40 * outputs];
            multiplied(&rows, &plain, Store::Replace, &mut expected, &team);
            for count in [1, 2, 4, 5, 6, 7, 12, 40] {
                let mut out = vec![0.0; count * outputs];
                multiplied(&rows[..count * inputs], &panels, Store::Replace, &mut out, &team);
                assert_eq!(out, expected[..count * outputs], "{bits} bits, {count} rows");
            }
        }
    }

    /// The same weights, not in a smaller format.
    fn plain(panels: &Panels) -> Data {
        let mut rows = vec![[0.0; WIDTH]; panels.outputs.div_ceil(WIDTH) * panels.inputs];
        for output in 0..panels.outputs {
            let mut row = vec![0.0; panels.inputs];
            panels.copy_row(output, &mut row);
            for (input, value) in row.into_iter().enumerate() {
                rows[output / WIDTH * panels.inputs + input][output % WIDTH] = value;
            }
        }
        Data::F32(rows)
    }
}
