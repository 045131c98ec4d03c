//! Linear layers with their adapters.

use super::{
    activation,
    memory::{Memory, Scratch},
    products,
    rows::{add, column_sums},
    view::View,
};
use crate::{
    Result,
    trainable::{
        Gradients,
        modules::{Adapter, Linear, Weight},
        options::Pass,
        seed::Mask,
    },
};

/// What the parts of a layer need besides their inputs.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// Where buffers come from.
    pub(crate) memory: &'a Memory,
    /// How this layer is run.
    pub(crate) pass: Pass,
    /// Tokens.
    pub(crate) rows: usize,
}

impl Context<'_> {
    /// What a dropout of share `p` drops at a place of this layer.
    pub(crate) fn mask(&self, site: u64, p: f32) -> Option<Mask> {
        self.pass.dropout.filter(|_| p > 0.0).map(|key| Mask::new(key.child(site), p))
    }
}

/// Adds the gradient of a weight, if it trains.
pub(crate) fn add_gradient(gradients: &mut Gradients, weight: &Weight, values: &[f32]) {
    if let Some(index) = weight.trains {
        add(gradients.zeroed_memory(index), values);
    }
}

/// The bias of a layer as a slice; empty when there is none.
pub(crate) struct Bias<'a>(Option<View<'a>>);

impl std::ops::Deref for Bias<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl Linear {
    /// The bias, which [`Linear::forward`] leaves to the step that follows.
    pub(crate) fn bias(&self) -> Result<Bias<'_>> {
        self.bias.as_ref().map(|bias| View::of(&bias.tensor)).transpose().map(Bias)
    }

    /// x·Wᵀ and the adapter's part, without the bias.
    pub(crate) fn forward(&self, x: &[f32], context: Context<'_>) -> Result<Scratch> {
        let outputs = self.outputs();
        let mut y = context.memory.take(context.rows * outputs);
        products::forward(&mut y, false, x, &View::of(&self.weight.tensor)?, outputs, 1.0);
        if let Some(adapter) = self.adapter(context) {
            let low = adapter.down(x, self.site, context)?.1;
            let up = View::of(&adapter.up.tensor)?;
            products::forward(&mut y, true, &low, &up, outputs, adapter.scale as f32);
        }
        Ok(y)
    }

    /// Adds the gradients of what trains here, from the layer's input and the gradient of its output. With `dx`, the
    /// gradient of the input goes there, added when the flag is set.
    pub(crate) fn backward(
        &self,
        x: &[f32],
        dy: &[f32],
        mut dx: Option<(&mut [f32], bool)>,
        context: Context<'_>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let outputs = self.outputs();
        if let Some(index) = self.weight.trains {
            let (dw, add) = gradients.memory(index);
            products::weight_gradient(dw, add, dy, x, context.rows, 1.0);
        }
        if let Some(bias) = self.bias.as_ref().filter(|bias| bias.trains.is_some()) {
            add_gradient(gradients, bias, &column_sums(dy, outputs));
        }
        if let Some((dx, add)) = &mut dx {
            products::input_gradient(dx, *add, dy, &View::of(&self.weight.tensor)?, outputs, 1.0);
        }
        match self.adapter(context) {
            Some(adapter) => adapter.backward(x, dy, dx.map(|(dx, _)| dx), self.site, context, gradients),
            None => Ok(()),
        }
    }

    fn adapter(&self, context: Context<'_>) -> Option<&Adapter> {
        self.adapter.as_ref().filter(|_| context.pass.adapters)
    }
}

impl Adapter {
    /// dropout(x), unless that is x itself, and dropout(x)·Aᵀ.
    fn down(&self, x: &[f32], site: u64, context: Context<'_>) -> Result<(Option<Scratch>, Scratch)> {
        let rank = self.rank();
        let mut low = context.memory.take(context.rows * rank);
        let down = View::of(&self.down.tensor)?;
        let dropped = context.mask(site, self.dropout).map(|mask| {
            let mut dropped = context.memory.take(x.len());
            activation::dropout(&mut dropped, x, x.len() / context.rows, mask);
            dropped
        });
        products::forward(&mut low, false, dropped.as_deref().unwrap_or(x), &down, rank, 1.0);
        Ok((dropped, low))
    }

    fn backward(
        &self,
        x: &[f32],
        dy: &[f32],
        dx: Option<&mut [f32]>,
        site: u64,
        context: Context<'_>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let (rank, rows, scale) = (self.rank(), context.rows, self.scale as f32);
        let (dropped, low) = self.down(x, site, context)?;
        let (down, up) = (View::of(&self.down.tensor)?, View::of(&self.up.tensor)?);
        if let Some(index) = self.up.trains {
            let (d_up, add) = gradients.memory(index);
            products::weight_gradient(d_up, add, dy, &low, rows, scale);
        }
        let mut d_low = low;
        products::input_gradient(&mut d_low, false, dy, &up, dy.len() / rows, scale);
        if let Some(index) = self.down.trains {
            let (d_down, add) = gradients.memory(index);
            products::weight_gradient(d_down, add, &d_low, dropped.as_deref().unwrap_or(x), rows, 1.0);
        }
        let Some(dx) = dx else { return Ok(()) };
        match (context.mask(site, self.dropout), dropped) {
            (Some(mask), Some(mut buffer)) => {
                products::input_gradient(&mut buffer, false, &d_low, &down, rank, 1.0);
                activation::add_dropout(dx, &buffer, x.len() / rows, mask);
            }
            _ => products::input_gradient(dx, true, &d_low, &down, rank, 1.0),
        }
        Ok(())
    }

    fn rank(&self) -> usize {
        self.down.tensor.dims()[0]
    }
}
