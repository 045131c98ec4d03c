//! Attention of some rows, each over the tokens of its own sequence up to itself.
//!
//! Scores and outputs are products with the cache's panels, and the heads that share keys and values go through them
//! together. A row's result depends on its own sequence only, down to the last bit.

use super::cache::{BLOCK_TOKENS, Cache};
use crate::cpu::{Instructions, Kernel, Team, WIDTH, accumulate, dispatch, exp, maximum, sum};

/// Less work than this (numbers of keys and values to read) is done before another thread is told.
const SMALLEST_SHARED: usize = 1 << 15;
/// Pieces for each thread; rows have histories of different lengths.
const PIECES_PER_THREAD: usize = 6;

/// A row's query belongs to this sequence and stands at this position.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) cache: &'a Cache,
    pub(super) position: usize,
}

/// The sizes that attention needs.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) count: usize,
    pub(super) kv_count: usize,
    pub(super) width: usize,
}

/// context = softmax(q·kᵀ)·v for each head of each row. `queries` are turned and scaled, `stride` numbers from row to
/// row; `context` has `heads.count × heads.width` a row.
pub(super) fn attend(
    context: &mut [f32],
    queries: &[f32],
    stride: usize,
    places: &[Place<'_>],
    layer: usize,
    heads: Heads,
    team: &Team,
) {
    let group_width = heads.count / heads.kv_count * heads.width;
    let instructions = Instructions::detect();
    let work = |scratch: &mut Scratch, index: usize, out: &mut [f32]| {
        let (row, head) = (index / heads.kv_count, index % heads.kv_count);
        let query = &queries[row * stride + head * group_width..][..group_width];
        dispatch(Group {
            out,
            query,
            place: places[row],
            layer,
            head,
            width: heads.width,
            instructions,
            scratch,
        });
    };
    let tokens: usize = places.iter().map(|place| place.position + 1).sum();
    let groups = places.len() * heads.kv_count;
    let is_small = tokens * heads.kv_count * heads.width * 2 < SMALLEST_SHARED;
    let pieces = if is_small { 1 } else { (team.threads() * PIECES_PER_THREAD).min(groups) };
    let each = groups.div_ceil(pieces.max(1)).max(1);
    let pieces = context.chunks_mut(each * group_width).enumerate().collect();
    team.each(pieces, |(piece, out): (usize, &mut [f32])| {
        let mut scratch = Scratch::default();
        for (index, out) in out.chunks_exact_mut(group_width).enumerate() {
            work(&mut scratch, piece * each + index, out);
        }
    });
}

#[derive(Default)]
struct Scratch {
    query: Vec<f32>,
    scores: Vec<f32>,
    weights: Vec<f32>,
}

/// The heads of one row that share keys and values.
struct Group<'a> {
    out: &'a mut [f32],
    query: &'a [f32],
    place: Place<'a>,
    layer: usize,
    /// Of keys and values.
    head: usize,
    width: usize,
    instructions: Instructions,
    scratch: &'a mut Scratch,
}

impl Kernel for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let heads = self.out.len() / self.width;
        let mut first = 0;
        while first < heads {
            match heads - first {
                1 => self.some::<1>(&mut first),
                2 => self.some::<2>(&mut first),
                3 => self.some::<3>(&mut first),
                5 | 6 => self.some::<3>(&mut first),
                _ => self.some::<4>(&mut first),
            }
        }
    }
}

impl Group<'_> {
    /// `R` heads from `first` on.
    #[inline(always)]
    fn some<const R: usize>(&mut self, first: &mut usize) {
        let width = self.width;
        let tokens = self.place.position + 1;
        let padded = tokens.next_multiple_of(BLOCK_TOKENS);
        let heads = *first * width..(*first + R) * width;
        *first += R;
        let query = resized(&mut self.scratch.query, R * width);
        for (head, source) in self.query[heads.clone()].chunks_exact(width).enumerate() {
            for (place, value) in query[head..].iter_mut().step_by(R).zip(source) {
                *place = *value;
            }
        }
        let scores = resized(&mut self.scratch.scores, R * padded);
        let blocks = self.place.cache.head(self.layer, self.head).take(padded / BLOCK_TOKENS);
        for (index, (keys, _)) in blocks.enumerate() {
            let mut sums = [[0.0; WIDTH]; R];
            accumulate::<R>(&mut sums, query, keys.as_chunks().0, self.instructions);
            for (row, sums) in scores.chunks_exact_mut(padded).zip(&sums) {
                row[index * BLOCK_TOKENS..][..BLOCK_TOKENS].copy_from_slice(sums);
            }
        }
        let weights = resized(&mut self.scratch.weights, R * tokens);
        let mut inverse = [0.0; R];
        for (head, row) in scores.chunks_exact_mut(padded).enumerate() {
            let row = &mut row[..tokens];
            let max = maximum(row);
            for value in row.iter_mut() {
                *value = exp(*value - max);
            }
            inverse[head] = 1.0 / sum(row);
            for (place, value) in weights[head..].iter_mut().step_by(R).zip(row) {
                *place = *value;
            }
        }
        let out = &mut self.out[heads];
        for (panel, column) in (0..width).step_by(WIDTH).enumerate() {
            let mut sums = [[0.0; WIDTH]; R];
            let blocks = self.place.cache.head(self.layer, self.head);
            for ((_, values), weights) in blocks.zip(weights.chunks(BLOCK_TOKENS * R)) {
                let values = &values[panel * BLOCK_TOKENS * WIDTH..][..BLOCK_TOKENS * WIDTH];
                accumulate::<R>(&mut sums, weights, values.as_chunks().0, self.instructions);
            }
            let columns = WIDTH.min(width - column);
            for (head, sums) in sums.iter().enumerate() {
                let out = &mut out[head * width + column..][..columns];
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = *sum * inverse[head];
                }
            }
        }
    }
}

#[inline(always)]
fn resized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}
