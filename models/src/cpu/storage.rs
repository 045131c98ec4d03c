//! How weights lie in memory.
//!
//! With few rows a product takes as long as its weights take to arrive from memory, so that fewer bytes are faster. A
//! format is only used where it gives back every weight to the last bit: what was 16 bits wide or quantised in blocks on
//! disk is so in memory, too, and the results are those of 32-bit weights. ([`Precision`] may ask for more.)

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering},
};

use half::{bf16, f16};

use super::{
    Team,
    simd::{Unit, WIDTH},
};

/// Inputs of a block of quantised weights, as in the GGUF formats that they come from.
pub(crate) const BLOCK_INPUTS: usize = 32;

/// How exactly weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Every bit of them, in the smallest format that has it.
    #[default]
    Exact,
    /// Rounded to bf16: half the memory of 32 bits, and up to twice as fast with few passages at once.
    Bf16,
    /// Rounded to 8 bits in blocks of 32 with a common scale: a quarter of the memory.
    Q8,
}

/// Panels of weights: for each panel the units of its inputs, one after the other.
pub(super) enum Data {
    F32(Vec<[f32; WIDTH]>),
    Bf16(Vec<Bf16>),
    F16(Vec<F16>),
    Q8(Vec<Q8>),
    Q4(Vec<Q4>),
}

/// Panels of one thread at a time.
const PANELS_TOGETHER: usize = 16;

impl Data {
    /// Stores `plain`, panels of `inputs` rows.
    pub(super) fn new(plain: Vec<[f32; WIDTH]>, inputs: usize, precision: Precision, team: &Team) -> Self {
        let has_blocks = inputs.is_multiple_of(BLOCK_INPUTS);
        let all = |test: fn(&[[f32; WIDTH]]) -> bool| all_blocks(&plain, team, test);
        if has_blocks && all(is_q4) {
            return Self::Q4(coded(&plain, inputs, team, Q4::new));
        }
        if has_blocks && (precision == Precision::Q8 || all(is_q8)) {
            return Self::Q8(coded(&plain, inputs, team, Q8::new));
        }
        if precision == Precision::Bf16 || all(is_bf16) {
            return Self::Bf16(coded(&plain, inputs, team, |rows| Bf16::new(&rows[0])));
        }
        if all(is_f16) {
            return Self::F16(coded(&plain, inputs, team, |rows| F16::new(&rows[0])));
        }
        Self::F32(plain)
    }
}

/// Whether every block of `BLOCK_INPUTS` rows passes the test.
fn all_blocks(plain: &[[f32; WIDTH]], team: &Team, test: fn(&[[f32; WIDTH]]) -> bool) -> bool {
    // Most matrices fail at once.
    if !plain.chunks(BLOCK_INPUTS).take(8).all(test) {
        return false;
    }
    let failed = AtomicBool::new(false);
    let pieces = plain.chunks(BLOCK_INPUTS * 256).collect();
    team.each(pieces, |piece: &[[f32; WIDTH]]| {
        if !failed.load(Ordering::Relaxed) && !piece.chunks(BLOCK_INPUTS).all(test) {
            failed.store(true, Ordering::Relaxed);
        }
    });
    !failed.into_inner()
}

fn is_q4(rows: &[[f32; WIDTH]]) -> bool {
    columns(rows).all(|column| q4_form(&column).is_some())
}

fn is_q8(rows: &[[f32; WIDTH]]) -> bool {
    columns(rows).all(|column| q8_scale(&column).is_some())
}

fn is_bf16(rows: &[[f32; WIDTH]]) -> bool {
    rows.iter().flatten().all(|weight| bf16::from_f32(*weight).to_f32().to_bits() == weight.to_bits())
}

fn is_f16(rows: &[[f32; WIDTH]]) -> bool {
    let same = |weight: &f32| f16::from_f32(*weight).to_f32().to_bits() == weight.to_bits();
    rows.iter().flatten().all(|weight| weight.is_finite() && same(weight))
}

fn columns(rows: &[[f32; WIDTH]]) -> impl Iterator<Item = [f32; BLOCK_INPUTS]> {
    (0..WIDTH).map(|output| std::array::from_fn(|input| rows[input][output]))
}

fn coded<U: Unit>(
    plain: &[[f32; WIDTH]],
    inputs: usize,
    team: &Team,
    code: impl Fn(&[[f32; WIDTH]]) -> U + Sync,
) -> Vec<U> {
    let together = PANELS_TOGETHER * inputs;
    let pieces: Vec<_> = plain.chunks(together).map(|rows| (rows, OnceLock::new())).collect();
    team.each(pieces.iter().collect(), |(rows, units): &(&[[f32; WIDTH]], OnceLock<Vec<U>>)| {
        let _first = units.set(rows.chunks_exact(U::INPUTS).map(&code).collect());
    });
    pieces.into_iter().flat_map(|(_, units)| units.into_inner().unwrap_or_default()).collect()
}

#[derive(Clone, Copy)]
pub(super) struct Bf16(pub(super) [u16; WIDTH]);

#[derive(Clone, Copy)]
pub(super) struct F16(pub(super) [u16; WIDTH]);

/// weight = q · scale.
#[derive(Clone, Copy)]
pub(super) struct Q8 {
    pub(super) scales: F16,
    pub(super) quants: [[i8; WIDTH]; BLOCK_INPUTS],
}

/// weight = q · scale + offset; a byte has the q of an input and, above it, of that half a block later.
#[derive(Clone, Copy)]
pub(super) struct Q4 {
    pub(super) scales: F16,
    pub(super) offsets: F16,
    pub(super) quants: [[u8; WIDTH]; BLOCK_INPUTS / 2],
}

impl Bf16 {
    /// Hands the weights to `row`.
    #[inline(always)]
    pub(super) fn rows(&self, mut row: impl FnMut([f32; WIDTH])) {
        row(self.0.map(|bits| f32::from_bits(u32::from(bits) << 16)));
    }
}

impl F16 {
    /// Hands the weights to `row`.
    #[inline(always)]
    pub(super) fn rows(&self, mut row: impl FnMut([f32; WIDTH])) {
        row(self.widen());
    }

    fn widen(&self) -> [f32; WIDTH] {
        self.0.map(|bits| f16::from_bits(bits).to_f32())
    }
}

impl Q8 {
    /// Hands the weights to `row`, one input after the other.
    #[inline(always)]
    pub(super) fn rows(&self, mut row: impl FnMut([f32; WIDTH])) {
        let scales = self.scales.widen();
        for quants in &self.quants {
            row(std::array::from_fn(|j| f32::from(quants[j]) * scales[j]));
        }
    }
}

impl Q4 {
    /// Hands the weights to `row`, one input after the other.
    #[inline(always)]
    pub(super) fn rows(&self, mut row: impl FnMut([f32; WIDTH])) {
        let (scales, offsets) = (self.scales.widen(), self.offsets.widen());
        for quants in &self.quants {
            row(std::array::from_fn(|j| f32::from(quants[j] & 15) * scales[j] + offsets[j]));
        }
        for quants in &self.quants {
            row(std::array::from_fn(|j| f32::from(quants[j] >> 4) * scales[j] + offsets[j]));
        }
    }
}

impl Bf16 {
    pub(super) fn new(weights: &[f32; WIDTH]) -> Self {
        Self(weights.map(|weight| bf16::from_f32(weight).to_bits()))
    }
}

impl F16 {
    pub(super) fn new(weights: &[f32; WIDTH]) -> Self {
        Self(weights.map(|weight| f16::from_f32(weight).to_bits()))
    }
}

impl Q8 {
    /// Rounds `BLOCK_INPUTS` rows of a panel; those that have the form come out as they were.
    pub(super) fn new(rows: &[[f32; WIDTH]]) -> Self {
        let (mut scales, mut quants) = ([0.0; WIDTH], [[0; WIDTH]; BLOCK_INPUTS]);
        for output in 0..WIDTH {
            let column: [f32; BLOCK_INPUTS] = std::array::from_fn(|input| rows[input][output]);
            let scale = q8_scale(&column).unwrap_or_else(|| nearest_q8_scale(&column));
            scales[output] = scale;
            for (quants, weight) in quants.iter_mut().zip(column) {
                quants[output] = q8(weight, scale);
            }
        }
        Self { scales: F16::new(&scales), quants }
    }
}

impl Q4 {
    /// `BLOCK_INPUTS` rows of a panel that have the form.
    pub(super) fn new(rows: &[[f32; WIDTH]]) -> Self {
        let (mut scales, mut offsets) = ([0.0; WIDTH], [0.0; WIDTH]);
        let mut quants = [[0; WIDTH]; BLOCK_INPUTS / 2];
        for output in 0..WIDTH {
            let column: [f32; BLOCK_INPUTS] = std::array::from_fn(|input| rows[input][output]);
            let (scale, offset) = q4_form(&column).unwrap_or_default();
            (scales[output], offsets[output]) = (scale, offset);
            for (input, weight) in column.into_iter().enumerate() {
                let quant = q4(weight, scale, offset);
                quants[input % (BLOCK_INPUTS / 2)][output] |= quant << (input / (BLOCK_INPUTS / 2) * 4);
            }
        }
        Self { scales: F16::new(&scales), offsets: F16::new(&offsets), quants }
    }
}

fn q8(weight: f32, scale: f32) -> i8 {
    if scale == 0.0 { 0 } else { (weight / scale).round_ties_even().clamp(-127.0, 127.0) as i8 }
}

fn q4(weight: f32, scale: f32, offset: f32) -> u8 {
    if scale == 0.0 { 0 } else { ((weight - offset) / scale).round_ties_even().clamp(0.0, 15.0) as u8 }
}

fn nearest_q8_scale(column: &[f32; BLOCK_INPUTS]) -> f32 {
    let largest = column.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
    f16::from_f32(largest / 127.0).to_f32()
}

/// 16-bit numbers at and beside `number`.
fn neighbours(number: f32) -> impl Iterator<Item = f32> {
    let bits = i32::from(f16::from_f32(number).to_bits());
    [0, 1, -1, 2, -2].into_iter().filter_map(move |step| {
        let neighbour = f16::from_bits(u16::try_from(bits + step).ok()?);
        neighbour.is_finite().then(|| neighbour.to_f32())
    })
}

/// The scale with which the weights are q · scale, q from -127 to 127, to the last bit.
pub(super) fn q8_scale(column: &[f32; BLOCK_INPUTS]) -> Option<f32> {
    let largest = column.iter().fold(0.0_f32, |largest, weight| largest.max(weight.abs()));
    let same = |weight: &f32, scale: f32| {
        (f32::from(q8(*weight, scale)) * scale).to_bits() == weight.to_bits() || is_zero(*weight)
    };
    // The largest has q = ±127 wherever such weights were made from others.
    neighbours(largest / 127.0).find(|scale| column.iter().all(|weight| same(weight, *scale)))
}

/// Scale and offset with which the weights are q · scale + offset, q from 0 to 15, to the last bit.
pub(super) fn q4_form(column: &[f32; BLOCK_INPUTS]) -> Option<(f32, f32)> {
    let (least, largest) = column.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), weight| {
        (low.min(*weight), high.max(*weight))
    });
    let offset = f16::from_f32(least).to_f32();
    if offset != least {
        return None;
    }
    let same = |weight: &f32, scale: f32| {
        (f32::from(q4(*weight, scale, offset)) * scale + offset).to_bits() == weight.to_bits()
            || is_zero(*weight) && (f32::from(q4(0.0, scale, offset)) * scale + offset) == 0.0
    };
    // The least has q = 0 and the largest q = 15 wherever such weights were made from others.
    let mut scales = neighbours((largest - least) / 15.0);
    let scale = scales.find(|scale| column.iter().all(|weight| same(weight, *scale)))?;
    Some((scale, offset))
}

/// Zeros may lose their sign, which changes no sum.
fn is_zero(weight: f32) -> bool {
    weight == 0.0
}

#[cfg(test)]
mod tests {
    use super::{super::simd::Instructions, *};

    fn random(seed: u32) -> impl FnMut() -> u32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        }
    }

    #[test]
    fn quantised_weights_are_recognised_and_come_back() {
        let mut random = random(7);
        for _ in 0..200 {
            let scale = f16::from_f32(0.001 + (random() % 1000) as f32 / 1e4).to_f32();
            let offset = f16::from_f32(-((random() % 1000) as f32) / 1e3).to_f32();
            let mut eight: [f32; BLOCK_INPUTS] =
                std::array::from_fn(|_| ((random() % 255) as f32 - 127.0) * scale);
            eight[(random() % 32) as usize] = 127.0 * scale;
            assert_eq!(q8_scale(&eight), Some(scale));
            let mut four: [f32; BLOCK_INPUTS] =
                std::array::from_fn(|_| (random() % 16) as f32 * scale + offset);
            (four[3], four[20]) = (offset, 15.0 * scale + offset);
            let (rows, mut back) = (four.map(|weight| [weight; WIDTH]), [[0.0; WIDTH]; BLOCK_INPUTS]);
            Q4::new(&rows).decode(&mut back, Instructions::detect());
            assert_eq!(back, rows);
            assert!(q4_form(&four).is_some());
            four[5] = f32::from_bits(four[5].to_bits() + 1);
            assert_eq!(q4_form(&four), None);
            let (rows, mut back) = (eight.map(|weight| [weight; WIDTH]), [[0.0; WIDTH]; BLOCK_INPUTS]);
            Q8::new(&rows).decode(&mut back, Instructions::detect());
            assert_eq!(back, rows);
            eight[5] = f32::from_bits(eight[5].to_bits() ^ 1);
            assert!(eight[5].is_subnormal() || q8_scale(&eight).is_none());
        }
        assert_eq!(q8_scale(&[0.0; BLOCK_INPUTS]), Some(0.0));
        assert_eq!(q4_form(&[0.5; BLOCK_INPUTS]), Some((0.0, 0.5)));
        assert_eq!(q4_form(&[0.1; BLOCK_INPUTS]), None);
    }

    #[test]
    fn rounding_to_eight_bits_is_near() {
        let mut random = random(3);
        let rows: Vec<[f32; WIDTH]> = (0..BLOCK_INPUTS)
            .map(|_| std::array::from_fn(|_| (random() % 2001) as f32 / 1e3 - 1.0))
            .collect();
        let mut back = [[0.0; WIDTH]; BLOCK_INPUTS];
        Q8::new(&rows).decode(&mut back, Instructions::detect());
        for (back, row) in back.iter().flatten().zip(rows.iter().flatten()) {
            assert!((back - row).abs() < 0.6 / 127.0, "{back} {row}");
        }
    }
}
