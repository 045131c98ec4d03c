//! Low-rank adapters beside the weights: W·x + scale · B·(A·x).
//!
//! Merged into the weights an adapter costs nothing, but then they are no longer the numbers that a few bits hold without
//! loss. Beside them it costs a twentieth of the time and leaves them as small as they are.

use candle_core::Tensor;

use crate::{
    Error, Result,
    cpu::{Buffer, Panels, Precision, Store, Team, Tiles, product},
    trainable::AdapterFile,
};

/// The adapters of the layers that share a product.
pub(super) struct Adapter {
    /// Every layer's A, one below the other.
    down: Panels,
    /// Every layer's B times its scale, along the diagonal.
    up: Panels,
    /// Rows of `down`.
    width: usize,
    /// Layers that have an adapter.
    pub(super) modules: usize,
}

/// Buffers of an adapter's products.
#[derive(Default)]
pub(super) struct Scratch {
    narrow: Buffer,
    tiles: Tiles,
}

impl Adapter {
    /// Of the layers `parts` (name, outputs) of the transformer layer whose names begin with `prefix`.
    pub(super) fn read(
        file: &AdapterFile,
        prefix: &str,
        parts: &[(&str, usize)],
        inputs: usize,
        team: &Team,
    ) -> Result<Option<Self>> {
        // PEFT's names are those of the model with its head.
        let prefix = if prefix.starts_with("model.") { prefix.to_owned() } else { format!("model.{prefix}") };
        let mut found = Vec::new();
        for (part, (name, outputs)) in parts.iter().enumerate() {
            let module = format!("{prefix}{name}");
            if let Some([a, b]) = file.matrices(&module) {
                let (a, b) = (
                    numbers(a, &module, [None, Some(inputs)])?,
                    numbers(b, &module, [Some(*outputs), None])?,
                );
                found.push((part, a, b));
            }
        }
        if found.is_empty() {
            return Ok(None);
        }
        let (rank, scale) = (file.settings.rank, file.settings.scale() as f32);
        let width = rank * found.len();
        let all: usize = parts.iter().map(|(_, outputs)| outputs).sum();
        let (mut down, mut up) = (Vec::with_capacity(width * inputs), vec![0.0; all * width]);
        for (index, (part, a, b)) in found.iter().enumerate() {
            down.extend_from_slice(a);
            let first: usize = parts[..*part].iter().map(|(_, outputs)| outputs).sum();
            for (row, values) in b.chunks_exact(rank).enumerate() {
                let place = (first + row) * width + index * rank;
                for (to, value) in up[place..place + rank].iter_mut().zip(values) {
                    *to = scale * value;
                }
            }
        }
        let panels = |weight: &[f32], inputs| Panels::new(weight, inputs, Precision::Exact, team);
        let modules = found.len();
        Ok(Some(Self { down: panels(&down, inputs), up: panels(&up, width), width, modules }))
    }

    pub(super) fn bytes(&self) -> usize {
        self.down.bytes() + self.up.bytes()
    }

    /// Adds what the adapter makes of `rows` rows to `out`.
    pub(super) fn add(
        &self,
        out: &mut [f32],
        tiles: &mut Tiles,
        rows: usize,
        scratch: &mut Scratch,
        team: &Team,
    ) {
        let narrow = scratch.narrow.get(rows * self.width);
        product(narrow, tiles, &self.down, Store::Replace, team);
        scratch.tiles.fill(rows, self.width, team, |row, to| {
            to.copy_from_slice(&narrow[row * self.width..(row + 1) * self.width]);
        });
        product(out, &mut scratch.tiles, &self.up, Store::Add, team);
    }
}

/// A matrix's numbers, row by row, if it has these sides.
fn numbers(matrix: &Tensor, module: &str, sides: [Option<usize>; 2]) -> Result<Vec<f32>> {
    let dims = matrix.dims();
    if dims.len() != 2 || dims.iter().zip(sides).any(|(dim, side)| side.is_some_and(|side| side != *dim)) {
        let wanted = sides.map(|side| side.map_or("rank".to_owned(), |side| side.to_string()));
        return Err(Error::Input(format!(
            "the adapter's matrix of `{module}` has shape {dims:?}, and the model wants {} × {}; it belongs to another \
             model",
            wanted[0], wanted[1]
        )));
    }
    Ok(matrix.flatten_all()?.to_vec1()?)
}
