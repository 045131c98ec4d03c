//! Which examples are in which step.

use expandr_models::trainable::Key;

/// The batches of a training: each epoch in an order of its own that follows from the seed.
#[derive(Clone, Debug)]
pub struct Batches {
    lengths: Vec<usize>,
    size: usize,
    bucket: usize,
    key: Key,
}

impl Batches {
    /// Batches of `size` examples of these lengths. With a `bucket` above 1, that many batches at a time are sorted by
    /// length before they are cut, and then shuffled as batches.
    pub fn new(lengths: &[usize], size: usize, bucket: usize, seed: u64) -> Self {
        Self { lengths: lengths.to_vec(), size, bucket, key: Key::new(seed).child(1) }
    }

    /// Batches an epoch; the last may be smaller.
    pub fn per_epoch(&self) -> usize {
        self.lengths.len().div_ceil(self.size)
    }

    /// The batches of an epoch, counted from 0.
    pub fn epoch(&self, epoch: usize) -> Vec<Vec<usize>> {
        let key = self.key.child(epoch as u64);
        let mut order: Vec<usize> = (0..self.lengths.len()).collect();
        shuffle(&mut order, key.child(0));
        if self.bucket <= 1 {
            return order.chunks(self.size).map(<[usize]>::to_vec).collect();
        }
        let mut batches = Vec::with_capacity(self.per_epoch());
        for bucket in order.chunks_mut(self.size * self.bucket) {
            bucket.sort_by_key(|&example| (self.lengths[example], example));
            batches.extend(bucket.chunks(self.size).map(<[usize]>::to_vec));
        }
        shuffle(&mut batches, key.child(1));
        batches
    }
}

/// Fisher and Yates' shuffle.
fn shuffle<T>(items: &mut [T], key: Key) {
    for last in (1..items.len()).rev() {
        // The bias of the remainder is below 2⁻³² for any list that fits in memory.
        let other = (key.bits(last as u64) % (last as u64 + 1)) as usize;
        items.swap(last, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_example_once_in_its_own_order() {
        let lengths: Vec<usize> = (0..103).map(|i| (i * 37) % 50 + 1).collect();
        for bucket in [1, 4] {
            let batches = Batches::new(&lengths, 8, bucket, 5);
            assert_eq!(batches.per_epoch(), 13);
            let (first, second) = (batches.epoch(0), batches.epoch(1));
            for epoch in [&first, &second] {
                assert_eq!(epoch.len(), 13);
                let mut all = epoch.concat();
                all.sort_unstable();
                assert!(all.iter().copied().eq(0..103));
            }
            assert_ne!(first, second);
            assert_eq!(first, Batches::new(&lengths, 8, bucket, 5).epoch(0));
            assert_ne!(first, Batches::new(&lengths, 8, bucket, 6).epoch(0));
        }
    }

    #[test]
    fn buckets_bring_similar_lengths_together() {
        let lengths: Vec<usize> = (0..256).map(|i| (i * 37) % 101 + 1).collect();
        let spread = |bucket| -> usize {
            let batches = Batches::new(&lengths, 8, bucket, 1).epoch(0);
            let longest = |batch: &Vec<usize>| batch.iter().map(|&e| lengths[e]).max().unwrap() * batch.len();
            batches.iter().map(longest).sum()
        };
        assert!(spread(8) < spread(1) * 3 / 4, "{} {}", spread(8), spread(1));
    }
}
