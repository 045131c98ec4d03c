//! Tensors on a CPU as slices.

use std::sync::RwLockReadGuard;

use candle_core::{Storage, Tensor};

use crate::{Error, Result};

/// The numbers of a contiguous f32 tensor on a CPU, while it may not be changed.
pub(crate) struct View<'a> {
    storage: RwLockReadGuard<'a, Storage>,
    start: usize,
    end: usize,
}

impl<'a> View<'a> {
    /// Opens a tensor.
    ///
    /// # Errors
    /// When it is on another device, of another type, or not contiguous.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let range = layout.contiguous_offsets();
        let view = range.map(|(start, end)| Self { storage, start, end });
        view.filter(|view| view.whole().is_some_and(|values| view.end <= values.len())).ok_or_else(|| {
            let detail = format!("{tensor:?} is not a contiguous f32 tensor on a CPU");
            Error::Engine { what: "training", detail }
        })
    }

    fn whole(&self) -> Option<&[f32]> {
        match &*self.storage {
            Storage::Cpu(storage) => storage.as_slice().ok(),
            _ => None,
        }
    }
}

impl std::ops::Deref for View<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // `of` has made sure that there is a slice.
        self.whole().map(|values| &values[self.start..self.end]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn sees_a_part_and_refuses_what_is_no_slice() {
        let tensor = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((3, 2)).unwrap();
        let rows = tensor.narrow(0, 1, 2).unwrap();
        assert_eq!(View::of(&rows).unwrap()[..], [2.0, 3.0, 4.0, 5.0]);
        assert!(View::of(&tensor.t().unwrap()).is_err());
        assert!(View::of(&tensor.to_dtype(DType::F64).unwrap()).is_err());
    }
}
