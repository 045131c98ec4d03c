//! A [`VectorIndex`] that scans everything: the reference that approximate search is measured against.

use parking_lot::RwLock;
use roaring::RoaringBitmap;

use crate::error::Result;
use crate::slab::{Slab, VACANT};
use crate::vector::{self, Hit};
use crate::vector_index::{Allow, Image, VectorIndex};

/// Exact search over f32 vectors in memory.
pub struct Exact {
    dimension: usize,
    slab: RwLock<Slab>,
}

impl Exact {
    /// An empty index for vectors of one dimension.
    pub fn new(dimension: usize) -> Self {
        Self { dimension, slab: RwLock::new(Slab::new(dimension)) }
    }
}

impl VectorIndex for Exact {
    fn add(&self, vectors: &[(u64, &[f32])]) -> Result<()> {
        let mut slab = self.slab.write();
        for (key, vector) in vectors {
            vector::validate(vector, self.dimension, || format!("vector {key}"))?;
        }
        for (position, (key, vector)) in vectors.iter().enumerate() {
            if let Err(error) = slab.insert(*key, vector) {
                vectors[..position].iter().for_each(|(key, _)| _ = slab.remove(*key));
                return Err(error);
            }
        }
        Ok(())
    }

    fn remove(&self, keys: &[u64]) -> usize {
        let mut slab = self.slab.write();
        keys.iter().filter(|&&key| key != VACANT && slab.remove(key).is_some()).count()
    }

    fn search(&self, query: &[f32], top_k: usize, _ef: usize, allow: Option<Allow<'_>>) -> Result<Vec<Hit>> {
        vector::validate(query, self.dimension, || "query vector".into())?;
        let slab = self.slab.read();
        let Some(allow) = allow else {
            return Ok(slab.search(query, top_k, None));
        };
        let allowed: RoaringBitmap =
            slab.keys().filter(|&key| allow(key)).filter_map(|key| slab.slot(key)).collect();
        Ok(slab.search(query, top_k, Some(&allowed)))
    }

    fn snapshot(&self) -> Result<Image> {
        let slab = self.slab.read();
        let keys: roaring::RoaringTreemap = slab.keys().collect();
        let payload =
            keys.iter().filter_map(|key| slab.get(key)).flatten().flat_map(|value| value.to_le_bytes());
        Ok(Image { payload: payload.collect(), scale: 1.0, keys })
    }

    fn len(&self) -> usize {
        self.slab.read().len()
    }
}
