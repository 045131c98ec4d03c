//! What prompts begin with, kept for the next ones.
//!
//! Every prompt of a service begins with the same template, and the keys and values of a token depend on nothing but the
//! tokens up to it. So full blocks of prompts are kept, found by exactly these tokens, and shared like those of samples.
//! A prompt that begins like an earlier one is read from where they part, with the same result to the last bit.

use std::collections::HashMap;

use super::cache::{BLOCK_TOKENS, Cache, SharedBlock};

/// Blocks by all the tokens up to their ends; the longest unused go first.
pub(super) struct Prefixes {
    blocks: HashMap<Box<[u32]>, Kept>,
    capacity: usize,
    uses: u64,
}

struct Kept {
    block: SharedBlock,
    used: u64,
}

impl Prefixes {
    /// Keeps at most `capacity` blocks.
    pub(super) fn new(capacity: usize) -> Self {
        Self { blocks: HashMap::new(), capacity, uses: 0 }
    }

    /// Puts the kept beginning of `prompt` into the empty `cache`; at least the last token is left to read, because the
    /// passage begins with its logits.
    pub(super) fn start(&mut self, cache: &mut Cache, prompt: &[u32]) {
        let mut end = BLOCK_TOKENS;
        while end < prompt.len() {
            let Some(kept) = self.blocks.get(&prompt[..end]) else { break };
            cache.push_shared(kept.block.clone());
            end += BLOCK_TOKENS;
        }
        self.touch(&prompt[..end - BLOCK_TOKENS]);
    }

    /// Keeps the full blocks of `cache`, which holds the beginning of `prompt`.
    pub(super) fn keep(&mut self, cache: &Cache, prompt: &[u32]) {
        if self.capacity == 0 {
            return;
        }
        for (index, block) in cache.full_blocks().iter().enumerate() {
            let tokens = &prompt[..(index + 1) * BLOCK_TOKENS];
            if !self.blocks.contains_key(tokens) {
                self.blocks.insert(tokens.into(), Kept { block: block.clone(), used: self.uses });
            }
        }
        self.touch(&prompt[..cache.full_blocks().len() * BLOCK_TOKENS]);
        while self.blocks.len() > self.capacity {
            let Some(oldest) = self.blocks.iter().min_by_key(|(_, kept)| kept.used) else { return };
            let oldest = oldest.0.clone();
            self.blocks.remove(&oldest);
        }
    }

    /// Notes the use of a prefix's blocks, the first as the latest, so that a block never outlives those before it.
    fn touch(&mut self, tokens: &[u32]) {
        for count in (1..=tokens.len() / BLOCK_TOKENS).rev() {
            self.uses += 1;
            if let Some(kept) = self.blocks.get_mut(&tokens[..count * BLOCK_TOKENS]) {
                kept.used = self.uses;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::cache::{Shape, tests::small_shape},
        *,
    };

    fn read(shape: Shape, prompt: &[u32]) -> Cache {
        let mut cache = Cache::new(shape);
        cache.reserve(prompt.len());
        cache.advance(prompt.len());
        cache
    }

    fn found(prefixes: &mut Prefixes, prompt: &[u32]) -> usize {
        let mut cache = Cache::new(small_shape());
        prefixes.start(&mut cache, prompt);
        cache.length()
    }

    #[test]
    fn a_prompt_starts_where_it_parts_from_what_was_read() {
        let mut prefixes = Prefixes::new(100);
        let prompt: Vec<u32> = (0..70).collect();
        assert_eq!(found(&mut prefixes, &prompt), 0);
        prefixes.keep(&read(small_shape(), &prompt), &prompt);
        assert_eq!(found(&mut prefixes, &prompt), 64);
        assert_eq!(found(&mut prefixes, &prompt[..65]), 64);
        assert_eq!(found(&mut prefixes, &prompt[..64]), 48, "one token is left to read");
        let mut other = prompt.clone();
        other[40] = 7;
        assert_eq!(found(&mut prefixes, &other), 32);
        other[0] = 7;
        assert_eq!(found(&mut prefixes, &other), 0);
    }

    #[test]
    fn the_longest_unused_go_first_and_never_before_their_ends() {
        let mut prefixes = Prefixes::new(4);
        let template: Vec<u32> = (0..32).collect();
        for question in 0..50 {
            let prompt: Vec<u32> = template.iter().copied().chain([1000 + question; 40]).collect();
            let start = found(&mut prefixes, &prompt);
            assert_eq!(start, if question == 0 { 0 } else { 32 }, "the template is kept");
            prefixes.keep(&read(small_shape(), &prompt), &prompt);
            assert!(prefixes.blocks.len() <= 4);
            assert_eq!(found(&mut prefixes, &prompt), 64);
        }
        let long: Vec<u32> = (500..900).collect();
        prefixes.keep(&read(small_shape(), &long), &long);
        assert_eq!(found(&mut prefixes, &long), 64, "of a prompt that is too long its beginning stays");
    }
}
