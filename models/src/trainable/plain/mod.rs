//! Layers by candle's own differentiable operations: on accelerators, and for comparison on a CPU.
//!
//! candle's fused operations (`softmax_last_dim`, `layer_norm`, `rms_norm`, `rope`) give no gradient, silently; the ones
//! used here do. A layer is differentiated at a time, from a leaf that holds its input, so that its graph can be dropped
//! or built again (activation checkpointing), and so that no gradient of a frozen weight is computed.
//!
//! - this file: layers as graphs; `ops`: what they consist of; `attention`: padded, with a mask.

pub(super) mod attention;
pub(super) mod ops;

use candle_core::{Tensor, Var};

use super::{Gradients, Parameters};
use crate::{Error, Result};

/// A layer that has been run: its input as a leaf, and its output with the graph between them.
pub(super) struct Graph {
    input: Var,
    output: Tensor,
}

impl Graph {
    /// Runs a layer on `input`.
    pub(super) fn run(input: &Tensor, layer: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let input = Var::from_tensor(&input.detach())?;
        let output = layer(input.as_tensor())?;
        Ok(Self { input, output })
    }

    /// The output, without the graph.
    pub(super) fn output(&self) -> Tensor {
        self.output.detach()
    }

    /// The gradient of the input, from that of the output; those of parameters are added to `gradients`.
    pub(super) fn backward(
        self,
        output: &Tensor,
        parameters: &Parameters,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let store = product(&self.output, output)?.backward()?;
        collect(&store, parameters, gradients)?;
        store.get(self.input.as_tensor()).cloned().ok_or_else(|| Error::Engine {
            what: "training",
            detail: "a layer's input has no gradient; one of its operations gives none".into(),
        })
    }
}

/// Adds the gradients of parameters that a graph without an input (embeddings) leads to.
pub(super) fn backward_to_parameters(
    graph: &Tensor,
    output: &Tensor,
    parameters: &Parameters,
    gradients: &mut Gradients,
) -> Result<()> {
    collect(&product(graph, output)?.backward()?, parameters, gradients)
}

/// A scalar whose gradient with respect to `value` is `gradient`.
fn product(value: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    Ok((value * gradient.detach().to_dtype(value.dtype())?)?.sum_all()?)
}

fn collect(
    store: &candle_core::backprop::GradStore,
    parameters: &Parameters,
    gradients: &mut Gradients,
) -> Result<()> {
    for (index, parameter) in parameters.iter().enumerate() {
        if let Some(gradient) = store.get(parameter.value.as_tensor()) {
            gradients.add(index, gradient)?;
        }
    }
    Ok(())
}

/// A layer that has been run, or only its input.
pub(super) enum Kept {
    Graph(Graph),
    Input(Tensor),
}

/// Runs layers one after the other, keeping what `keep` says.
pub(super) fn run_layers<L>(
    layers: &[L],
    mut states: Tensor,
    keep: super::options::Keep,
    run: impl Fn(usize, &L, &Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Vec<Kept>)> {
    use super::options::Keep;
    let mut kept = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let graph = Graph::run(&states, |input| run(index, layer, input))?;
        let input = std::mem::replace(&mut states, graph.output());
        match keep {
            Keep::Nothing => {}
            Keep::LayerInputs => kept.push(Kept::Input(input)),
            Keep::Activations => kept.push(Kept::Graph(graph)),
        }
    }
    Ok((states, kept))
}

/// The reverse: the gradient of the first layer's input, from that of the last one's output.
pub(super) fn backward_layers<L>(
    layers: &[L],
    mut kept: Vec<Kept>,
    mut gradient: Tensor,
    parameters: &Parameters,
    gradients: &mut Gradients,
    run: impl Fn(usize, &L, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if kept.len() != layers.len() {
        return Err(Error::Input("the forward pass kept nothing for a backward pass".into()));
    }
    for (index, layer) in layers.iter().enumerate().rev() {
        let graph = match kept.pop() {
            Some(Kept::Graph(graph)) => graph,
            Some(Kept::Input(input)) => Graph::run(&input, |input| run(index, layer, input))?,
            None => break,
        };
        gradient = graph.backward(&gradient, parameters, gradients)?;
    }
    Ok(gradient)
}
