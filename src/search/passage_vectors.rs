//! The vectors of passages, kept beside the cache of passages: a passage that comes out of that one was embedded before, and
//! embedding it again would be two thirds of the search.

use std::{sync::Arc, time::Duration};

use expandr_models::{Encoder, Priority, Result, TextKind};
use moka::future::Cache;

/// What a vector belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    bundle: Arc<str>,
    text: String,
}

/// Vectors of texts, as the encoder of their bundle gave them.
pub(super) struct PassageVectors {
    cache: Cache<Key, Arc<[f32]>>,
}

/// Where the vectors of one call came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// From the cache.
    pub(super) kept: usize,
    /// From the encoder.
    pub(super) made: usize,
}

impl PassageVectors {
    /// A cache of at most `bytes` bytes (0 switches it off) whose vectors are forgotten after `time_to_live`.
    pub(super) fn new(bytes: u64, time_to_live: Duration) -> Self {
        let cache = Cache::builder()
            .max_capacity(bytes)
            .weigher(|key: &Key, vector: &Arc<[f32]>| {
                let bytes = size_of::<Key>() + key.text.len() + size_of_val(&**vector);
                u32::try_from(bytes).unwrap_or(u32::MAX)
            })
            .time_to_live(time_to_live)
            .support_invalidation_closures()
            .build();
        Self { cache }
    }

    /// Bytes in the cache.
    pub(super) fn bytes(&self) -> u64 {
        self.cache.weighted_size()
    }

    /// Frees the vectors of a bundle that answers no more.
    pub(super) fn forget(&self, bundle: &str) {
        let bundle = bundle.to_owned();
        // Fails only where the cache was built without closures.
        if let Err(error) = self.cache.invalidate_entries_if(move |key, _| *key.bundle == *bundle) {
            tracing::error!(%error, "the old bundle's vectors stay in the cache");
        }
    }

    /// The vectors of `texts`, in order: those that are kept, and the others from `encoder`, which is the one of `bundle`.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub(super) async fn get(
        &self,
        bundle: &Arc<str>,
        encoder: &dyn Encoder,
        texts: Vec<String>,
    ) -> Result<(Vec<Vec<f32>>, Counts)> {
        let mut found = Vec::with_capacity(texts.len());
        let mut missing = Vec::new();
        for text in texts {
            let key = Key { bundle: bundle.clone(), text };
            let kept = self.cache.get(&key).await;
            if kept.is_none() {
                missing.push(key);
            }
            found.push(kept);
        }
        let counts = Counts { kept: found.len() - missing.len(), made: missing.len() };
        let mut made = Vec::new();
        if !missing.is_empty() {
            let texts = missing.iter().map(|key| key.text.clone()).collect();
            made = encoder.encode(TextKind::Document, Priority::Interactive, texts).await?;
            for (key, vector) in missing.into_iter().zip(&made) {
                self.cache.insert(key, Arc::from(vector.as_slice())).await;
            }
        }
        let mut made = made.into_iter();
        let vectors = found
            .into_iter()
            .filter_map(|kept| kept.map(|vector| vector.to_vec()).or_else(|| made.next()))
            .collect();
        Ok((vectors, counts))
    }
}

#[cfg(test)]
mod tests {
    use expandr_models::testing::HashEncoder;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[tokio::test]
    async fn a_text_is_embedded_once_a_bundle() {
        let vectors = PassageVectors::new(1 << 20, HOUR);
        let encoder = HashEncoder::new(8);
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let expected: Vec<Vec<f32>> = ["a b", "c"].map(|text| encoder.vector(text)).to_vec();

        let (found, counts) = vectors.get(&one, &encoder, texts(&["c"])).await.unwrap();
        assert_eq!((&found[..], counts), (&expected[1..], Counts { kept: 0, made: 1 }));
        let (found, counts) = vectors.get(&one, &encoder, texts(&["a b", "c"])).await.unwrap();
        assert_eq!((found, counts), (expected.clone(), Counts { kept: 1, made: 1 }));

        // What is kept needs no encoder, what isn't does.
        encoder.set_failing(true);
        let (found, counts) = vectors.get(&one, &encoder, texts(&["a b", "c"])).await.unwrap();
        assert_eq!((found, counts), (expected, Counts { kept: 2, made: 0 }));
        vectors.get(&other, &encoder, texts(&["c"])).await.unwrap_err();
        vectors.forget("one");
        vectors.get(&one, &encoder, texts(&["c"])).await.unwrap_err();
    }

    #[tokio::test]
    async fn without_room_nothing_is_kept() {
        let vectors = PassageVectors::new(0, HOUR);
        let encoder = HashEncoder::new(8);
        let bundle: Arc<str> = "one".into();
        for _ in 0..2 {
            let (_, counts) = vectors.get(&bundle, &encoder, texts(&["a", "b"])).await.unwrap();
            assert_eq!(counts, Counts { kept: 0, made: 2 });
        }
        assert_eq!(vectors.bytes(), 0);
    }
}
