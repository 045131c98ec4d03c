//! Random numbers without state: a number is a function of a key and an index. A pass that is computed again
//! (activation checkpointing, gradient caching, a resumed run) therefore drops the same activations.

/// The source of random numbers of one thing: a run, a step, a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// The key of a seed.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x5851_f42d_4c95_7f2d))
    }

    /// The key of a part: other numbers, but always the same ones.
    pub fn child(self, part: u64) -> Self {
        Self(mix(self.0 ^ mix(part.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// 64 random bits that belong to `index`.
    pub fn bits(self, index: u64) -> u64 {
        mix(self.0.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// A number from 0 to 1, 1 excluded.
    pub fn uniform(self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// SplitMix64's finaliser: every input bit changes every output bit with probability one half.
fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Which numbers of a matrix dropout sets to zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mask {
    key: Key,
    threshold: u32,
    /// What the others are multiplied with: 1 / (1 - p).
    scale: f32,
}

impl Mask {
    /// Drops a share `p` of the numbers, 0 < p < 1.
    pub(super) fn new(key: Key, p: f32) -> Self {
        Self { key, threshold: (f64::from(p) * 4_294_967_296.0) as u32, scale: 1.0 / (1.0 - p) }
    }

    /// The factors of a row.
    pub(super) fn row(self, row: usize) -> RowMask {
        RowMask { key: self.key.bits(row as u64) as u32, threshold: self.threshold, scale: self.scale }
    }
}

/// The factors of one row of a [`Mask`].
#[derive(Clone, Copy)]
pub(super) struct RowMask {
    key: u32,
    threshold: u32,
    scale: f32,
}

impl RowMask {
    /// 0 or 1 / (1 - p). Written so that a loop over columns becomes vector code.
    #[inline(always)]
    pub(super) fn factor(self, column: usize) -> f32 {
        // The finaliser "lowbias32" (C. Wellons, "Prospecting for hash functions").
        let mut x = (column as u32).wrapping_mul(0x9e37_79b9) ^ self.key;
        x ^= x >> 16;
        x = x.wrapping_mul(0x7feb_352d);
        x ^= x >> 15;
        x = x.wrapping_mul(0x846c_a68b);
        x ^= x >> 16;
        if x < self.threshold { 0.0 } else { self.scale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_numbers_fill_the_interval_and_differ_by_key() {
        let key = Key::new(7);
        let mean = (0..10_000).map(|i| key.uniform(i)).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert_ne!(key.bits(0), key.child(1).bits(0));
        assert_ne!(key.child(1).bits(0), key.child(2).bits(0));
        assert_eq!(key.child(3), Key::new(7).child(3));
    }

    #[test]
    fn a_mask_drops_its_share_independently_in_rows_and_columns() {
        let mask = Mask::new(Key::new(1), 0.1);
        let (rows, columns) = (400, 500);
        let dropped = |row: usize, column: usize| mask.row(row).factor(column) == 0.0;
        let mut total = 0;
        let mut both = 0; // a number and its right neighbour, or the one below
        for row in 0..rows {
            for column in 0..columns {
                total += usize::from(dropped(row, column));
                both += usize::from(dropped(row, column) && dropped(row, column + 1));
                both += usize::from(dropped(row, column) && dropped(row + 1, column));
            }
        }
        let cells = (rows * columns) as f64;
        assert!((total as f64 / cells - 0.1).abs() < 0.003, "{total}");
        assert!((both as f64 / (2.0 * cells) - 0.01).abs() < 0.001, "{both}");
        let scale = 1.0 / 0.9;
        assert!((0..columns).all(|c| [0.0, scale].contains(&mask.row(3).factor(c))));
    }
}
