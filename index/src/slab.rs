//! Vectors in memory at dense slots: what exact search scans and what the graph's candidates are rescored with.
//!
//! A slot is a `u32` that is reused after a removal, so that sets of slots stay compact bitmaps; a key is a `u64` that
//! is never reused. Vectors live in blocks of fixed size: growing never copies them.

use std::collections::HashMap;

use roaring::RoaringBitmap;

use crate::error::{Error, Result};
use crate::vector::{Hit, TopHits, dot};

/// Vectors in one allocation.
const BLOCK: usize = 1024;
/// Marks a free slot; no vector may have this key.
pub(crate) const VACANT: u64 = u64::MAX;

pub(crate) struct Slab {
    dimension: usize,
    blocks: Vec<Box<[f32]>>,
    keys: Vec<u64>,
    slots: HashMap<u64, u32>,
    free: Vec<u32>,
    live: RoaringBitmap,
}

impl Slab {
    pub(crate) fn new(dimension: usize) -> Self {
        Self {
            dimension,
            blocks: Vec::new(),
            keys: Vec::new(),
            slots: HashMap::new(),
            free: Vec::new(),
            live: RoaringBitmap::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes held for vectors, free slots included.
    pub(crate) fn bytes(&self) -> u64 {
        (self.blocks.len() * BLOCK * self.dimension * size_of::<f32>()) as u64
    }

    /// The slots in use.
    pub(crate) fn live(&self) -> &RoaringBitmap {
        &self.live
    }

    pub(crate) fn slot(&self, key: u64) -> Option<u32> {
        self.slots.get(&key).copied()
    }

    /// The key at a slot in use.
    pub(crate) fn key(&self, slot: u32) -> Option<u64> {
        self.keys.get(slot as usize).copied().filter(|&key| key != VACANT)
    }

    pub(crate) fn get(&self, key: u64) -> Option<&[f32]> {
        self.slot(key).map(|slot| self.at(slot))
    }

    /// Keys in use, in no particular order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = u64> + '_ {
        self.slots.keys().copied()
    }

    fn at(&self, slot: u32) -> &[f32] {
        let slot = slot as usize;
        let start = slot % BLOCK * self.dimension;
        &self.blocks[slot / BLOCK][start..start + self.dimension]
    }

    /// Stores a vector of the slab's dimension; the caller has validated it.
    pub(crate) fn insert(&mut self, key: u64, vector: &[f32]) -> Result<u32> {
        if key == VACANT || self.slots.contains_key(&key) {
            return Err(Error::Graph(format!("key {key} can't be added: it is reserved or in use")));
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.keys.len()).map_err(|_| {
                    Error::Graph("an index holds at most 2^32 documents; split the corpus".into())
                })?;
                if self.keys.len() == self.blocks.len() * BLOCK {
                    self.blocks.push(vec![0.0; BLOCK * self.dimension].into_boxed_slice());
                }
                self.keys.push(VACANT);
                slot
            }
        };
        let start = slot as usize % BLOCK * self.dimension;
        self.blocks[slot as usize / BLOCK][start..start + self.dimension].copy_from_slice(vector);
        self.keys[slot as usize] = key;
        self.slots.insert(key, slot);
        self.live.insert(slot);
        Ok(slot)
    }

    /// Frees a key's slot and returns it.
    pub(crate) fn remove(&mut self, key: u64) -> Option<u32> {
        let slot = self.slots.remove(&key)?;
        self.keys[slot as usize] = VACANT;
        self.live.remove(slot);
        self.free.push(slot);
        Some(slot)
    }

    /// The best `top_k` of the given slots (`None`: of all), by scanning them.
    pub(crate) fn search(&self, query: &[f32], top_k: usize, among: Option<&RoaringBitmap>) -> Vec<Hit> {
        let mut top = TopHits::new(top_k.min(self.len()));
        match among {
            None => {
                for (block, keys) in self.blocks.iter().zip(self.keys.chunks(BLOCK)) {
                    for (vector, &key) in block.chunks_exact(self.dimension).zip(keys) {
                        if key != VACANT {
                            top.push(Hit { key, score: dot(query, vector) });
                        }
                    }
                }
            }
            Some(slots) => {
                for slot in slots {
                    let key = self.keys[slot as usize];
                    if key != VACANT {
                        top.push(Hit { key, score: dot(query, self.at(slot)) });
                    }
                }
            }
        }
        top.into_sorted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_and_keys_are_not_mixed_up() {
        let mut slab = Slab::new(3);
        for key in 0..3000u64 {
            slab.insert(key, &[key as f32, 1.0, 0.0]).unwrap();
        }
        for key in (0..3000).step_by(2) {
            assert!(slab.remove(key).is_some());
        }
        assert_eq!(slab.remove(0), None);
        let before = slab.bytes();
        for key in 3000..4500u64 {
            slab.insert(key, &[key as f32, 1.0, 0.0]).unwrap();
        }
        assert_eq!((slab.len(), slab.bytes()), (3000, before));
        assert_eq!(slab.live().len(), 3000);
        assert_eq!(slab.get(4499), Some(&[4499.0, 1.0, 0.0][..]));
        assert_eq!(slab.get(2), None);
        let best: Vec<u64> = slab.search(&[1.0, 0.0, 0.0], 2, None).iter().map(|hit| hit.key).collect();
        assert_eq!(best, [4499, 4498]);
        assert!(slab.insert(4499, &[0.0; 3]).is_err() && slab.insert(VACANT, &[0.0; 3]).is_err());
    }
}
