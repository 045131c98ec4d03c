//! Keys and values of the tokens so far, in blocks.
//!
//! A sequence's blocks are its own while they are being filled. Full blocks never change again, so that the samples of
//! one prompt share them.

use std::sync::Arc;

use super::config::DecoderConfig;
use crate::cpu::WIDTH;

/// Tokens of a block. Their keys are a panel, so that scores are a product like any other.
pub(super) const BLOCK_TOKENS: usize = WIDTH;

/// Where things are in a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    layers: usize,
    kv_heads: usize,
    head_width: usize,
    /// `head_width`, filled up to whole panels.
    value_width: usize,
}

impl Shape {
    pub(super) fn new(config: &DecoderConfig) -> Self {
        Self {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_width: config.head_width,
            value_width: config.head_width.next_multiple_of(WIDTH),
        }
    }

    /// Numbers of one head's keys.
    fn keys(&self) -> usize {
        self.head_width * BLOCK_TOKENS
    }

    /// Numbers of one head's values.
    fn values(&self) -> usize {
        self.value_width * BLOCK_TOKENS
    }

    fn head(&self) -> usize {
        self.keys() + self.values()
    }

    fn offset(&self, layer: usize, head: usize) -> usize {
        (layer * self.kv_heads + head) * self.head()
    }

    /// Bytes of a block.
    pub(super) fn block_bytes(&self) -> usize {
        self.layers * self.kv_heads * self.head() * size_of::<f32>()
    }
}

/// Keys and values of `BLOCK_TOKENS` tokens in every layer. For each layer and head: a panel of keys (component by
/// component, the tokens side by side), then the values' panels (for 16 components each: token by token, the components
/// side by side).
pub(super) struct Block(Box<[f32]>);

/// A block that several sequences may have.
pub(super) type SharedBlock = Arc<Block>;

/// One sequence's keys and values.
pub(super) struct Cache {
    shape: Shape,
    blocks: Vec<SharedBlock>,
    length: usize,
}

impl Cache {
    pub(super) fn new(shape: Shape) -> Self {
        Self { shape, blocks: Vec::new(), length: 0 }
    }

    /// Tokens whose keys and values are in every layer.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The same tokens once more, to be continued otherwise. Full blocks are shared.
    pub(super) fn fork(&self) -> Self {
        let mut blocks = self.blocks[..self.length / BLOCK_TOKENS].to_vec();
        if self.length > blocks.len() * BLOCK_TOKENS {
            blocks.push(Arc::new(Block(self.blocks[blocks.len()].0.clone())));
        }
        Self { shape: self.shape, blocks, length: self.length }
    }

    /// The blocks that will not change any more.
    pub(super) fn full_blocks(&self) -> &[SharedBlock] {
        &self.blocks[..self.length / BLOCK_TOKENS]
    }

    /// Takes a full block over as the next one. There must be no unfinished block.
    pub(super) fn push_shared(&mut self, block: SharedBlock) {
        debug_assert_eq!(self.length, self.blocks.len() * BLOCK_TOKENS);
        self.blocks.push(block);
        self.length += BLOCK_TOKENS;
    }

    /// Makes room for `tokens` more tokens, which [`Cache::write`] fills and [`Cache::advance`] counts.
    pub(super) fn reserve(&mut self, tokens: usize) {
        let numbers = self.shape.block_bytes() / size_of::<f32>();
        while self.blocks.len() * BLOCK_TOKENS < self.length + tokens {
            self.blocks.push(Arc::new(Block(vec![0.0; numbers].into_boxed_slice())));
        }
    }

    /// Writes a token's keys and values of one layer: `kv_heads × head_width` numbers each.
    ///
    /// # Panics
    /// When the position lies in a full or missing block: a mistake in this module's callers.
    pub(super) fn write(&mut self, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let shape = self.shape;
        let block = &mut self.blocks[position / BLOCK_TOKENS];
        let block = Arc::get_mut(block).expect("only full blocks are shared, and they are not written");
        let token = position % BLOCK_TOKENS;
        let heads = keys.chunks_exact(shape.head_width).zip(values.chunks_exact(shape.head_width));
        for (head, (key, value)) in heads.enumerate() {
            let head = &mut block.0[shape.offset(layer, head)..][..shape.head()];
            let (key_panel, value_panels) = head.split_at_mut(shape.keys());
            for (column, component) in key_panel.as_chunks_mut::<WIDTH>().0.iter_mut().zip(key) {
                column[token] = *component;
            }
            let panels = value_panels.chunks_exact_mut(BLOCK_TOKENS * WIDTH);
            for (panel, components) in panels.zip(value.chunks(WIDTH)) {
                panel[token * WIDTH..][..components.len()].copy_from_slice(components);
            }
        }
    }

    /// Counts `tokens` more tokens as written in every layer.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }

    /// For each block the keys and the values of one head in one layer.
    pub(super) fn head(&self, layer: usize, head: usize) -> impl Iterator<Item = (&[f32], &[f32])> {
        let (start, length, keys) = (self.shape.offset(layer, head), self.shape.head(), self.shape.keys());
        self.blocks.iter().map(move |block| block.0[start..start + length].split_at(keys))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two layers, two heads of 8.
    pub(in crate::decoder) fn small_shape() -> Shape {
        Shape { layers: 2, kv_heads: 2, head_width: 8, value_width: WIDTH }
    }

    /// What `write` gets for a token: components that tell layer, position, head and component apart.
    fn numbers(layer: usize, position: usize, offset: f32) -> Vec<f32> {
        (0..16).map(|i| offset + (layer * 10_000 + position * 100 + i) as f32).collect()
    }

    fn fill(cache: &mut Cache, tokens: usize, offset: f32) {
        cache.reserve(tokens);
        for layer in 0..2 {
            for position in cache.length()..cache.length() + tokens {
                let values = numbers(layer, position, offset + 0.5);
                cache.write(layer, position, &numbers(layer, position, offset), &values);
            }
        }
        cache.advance(tokens);
    }

    fn check(cache: &Cache, positions: std::ops::Range<usize>, offset: f32) {
        for layer in 0..2 {
            for head in 0..2 {
                let blocks: Vec<_> = cache.head(layer, head).collect();
                for position in positions.clone() {
                    let (keys, values) = blocks[position / BLOCK_TOKENS];
                    let token = position % BLOCK_TOKENS;
                    for component in 0..8 {
                        let expected =
                            offset + (layer * 10_000 + position * 100 + head * 8 + component) as f32;
                        assert_eq!(keys[component * BLOCK_TOKENS + token], expected);
                        assert_eq!(values[token * WIDTH + component], expected + 0.5);
                    }
                }
            }
        }
    }

    #[test]
    fn a_fork_shares_full_blocks_and_goes_its_own_way() {
        let mut cache = Cache::new(small_shape());
        fill(&mut cache, 21, 0.0);
        let mut fork = cache.fork();
        assert!(Arc::ptr_eq(&cache.blocks[0], &fork.blocks[0]));
        fill(&mut cache, 30, 0.25);
        fill(&mut fork, 30, 0.125);
        for (cache, offset) in [(&cache, 0.25), (&fork, 0.125)] {
            assert_eq!(cache.length(), 51);
            check(cache, 0..21, 0.0);
            check(cache, 21..51, offset);
        }
        assert_eq!(cache.full_blocks().len(), 3);
    }
}
