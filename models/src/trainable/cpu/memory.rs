//! Buffers that are used again: allocating the activations of a step anew costs as much as a tenth of the step, because
//! the system hands out each page zeroed.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

/// Where buffers wait to be used again. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(Arc<Mutex<Shelf>>);

#[derive(Debug, Default)]
struct Shelf {
    free: Vec<Vec<f32>>,
    /// Numbers in buffers that wait.
    free_length: usize,
    /// Numbers in buffers that are in use.
    used_length: usize,
    /// The most that were in use at a time.
    most_used: usize,
}

/// A buffer that returns to its [`Memory`] when it is dropped. What it holds at first is whatever was left there.
#[derive(Debug)]
pub(crate) struct Scratch {
    values: Vec<f32>,
    memory: Memory,
}

impl Memory {
    /// A buffer of this length.
    pub(crate) fn take(&self, length: usize) -> Scratch {
        let mut shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = shelf.free.iter().enumerate().filter(|(_, buffer)| buffer.capacity() >= length);
        let best = fits.min_by_key(|(_, buffer)| buffer.capacity()).map(|(index, _)| index);
        // A buffer far larger than needed is left to those who need it.
        let best = best.filter(|&index| shelf.free[index].capacity() <= 2 * length.max(1024));
        let mut values = match best {
            Some(index) => {
                let buffer = shelf.free.swap_remove(index);
                shelf.free_length -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(rounded(length)),
        };
        shelf.used_length += values.capacity();
        shelf.most_used = shelf.most_used.max(shelf.used_length);
        drop(shelf);
        if values.len() < length {
            values.resize(length, 0.0);
        } else {
            values.truncate(length);
        }
        Scratch { values, memory: self.clone() }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.values);
        let mut shelf = self.memory.0.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.used_length -= buffer.capacity();
        // Batches differ in size; what waits never exceeds what was needed at a time.
        if shelf.free_length + buffer.capacity() + shelf.used_length <= shelf.most_used {
            shelf.free_length += buffer.capacity();
            shelf.free.push(buffer);
        }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

/// Lengths that differ a little share buffers: rounded up to eighths of a power of two.
fn rounded(length: usize) -> usize {
    let step = (length.next_power_of_two() / 16).max(64);
    length.div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_and_what_waits_is_bounded() {
        let memory = Memory::default();
        let first = memory.take(1000);
        let address = first.as_ptr();
        drop(first);
        let second = memory.take(990);
        assert_eq!((second.as_ptr(), second.len()), (address, 990));
        let third = memory.take(5000);
        drop((second, third));
        for length in (0..50).map(|i| 3000 + 137 * i) {
            drop(memory.take(length));
        }
        let shelf = memory.0.lock().unwrap();
        assert_eq!(shelf.used_length, 0);
        assert!(shelf.free_length <= shelf.most_used, "{shelf:?}");
    }

    #[test]
    fn rounding_wastes_little() {
        for length in [1, 63, 1000, 12_345, 1 << 20, (1 << 20) + 1] {
            assert!(rounded(length) >= length && rounded(length) <= length + length / 8 + 64, "{length}");
        }
    }
}
