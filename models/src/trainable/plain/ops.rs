//! Differentiable operations.

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, D, DType, Device, Layout, MetalStorage, Shape, Storage, Tensor,
    backend::BackendStorage,
};

use crate::{
    Result,
    trainable::{
        modules::{Adapter, Linear, Norm, Weight},
        options::Pass,
        seed::Mask,
    },
};

/// x·Wᵀ for a W that does not train. candle's own product would compute W's gradient too, and throw it away.
struct FrozenProduct {
    weight: Tensor,
}

impl FrozenProduct {
    fn multiply<S: BackendStorage>(
        &self,
        x: &S,
        layout: &Layout,
        weight: &S,
    ) -> candle_core::Result<(S, Shape)> {
        let (outputs, inputs) = self.weight.dims2()?;
        let rows = layout.shape().elem_count() / inputs;
        let x_layout = Layout::contiguous_with_offset((rows, inputs), layout.start_offset());
        let weight_layout = self.weight.layout().transpose(0, 1)?;
        let out = x.matmul(weight, (1, rows, outputs, inputs), &x_layout, &weight_layout)?;
        let mut shape = layout.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = outputs;
        }
        Ok((out, shape.into()))
    }

    fn elsewhere<T>(&self) -> candle_core::Result<T> {
        candle_core::bail!("a frozen weight is on another device than its input")
    }
}

impl CustomOp1 for FrozenProduct {
    fn name(&self) -> &'static str {
        "frozen-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        match &*self.weight.storage_and_layout().0 {
            Storage::Cpu(weight) => self.multiply(x, layout, weight),
            _ => self.elsewhere(),
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        match &*self.weight.storage_and_layout().0 {
            Storage::Cuda(weight) => self.multiply(x, layout, weight),
            _ => self.elsewhere(),
        }
    }

    fn metal_fwd(&self, x: &MetalStorage, layout: &Layout) -> candle_core::Result<(MetalStorage, Shape)> {
        match &*self.weight.storage_and_layout().0 {
            Storage::Metal(weight) => self.multiply(x, layout, weight),
            _ => self.elsewhere(),
        }
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let outputs = self.weight.dim(0)?;
        let gradient = gradient.contiguous()?.reshape(((), outputs))?;
        Ok(Some(gradient.matmul(&self.weight)?.reshape(x.shape())?))
    }
}

/// x·Wᵀ for rows x.
pub(crate) fn product(x: &Tensor, weight: &Weight) -> Result<Tensor> {
    if weight.trains.is_some() {
        return Ok(x.matmul(&weight.tensor.t()?)?);
    }
    Ok(x.contiguous()?.apply_op1(FrozenProduct { weight: weight.tensor.detach() })?)
}

/// A linear layer with its bias and adapter, for rows x.
pub(crate) fn linear(x: &Tensor, layer: &Linear, pass: Pass) -> Result<Tensor> {
    let mut y = product(x, &layer.weight)?;
    if let Some(bias) = &layer.bias {
        y = y.broadcast_add(&bias.tensor)?;
    }
    match layer.adapter.as_ref().filter(|_| pass.adapters) {
        None => Ok(y),
        Some(adapter) => Ok((&y + adapted(x, adapter, layer.site, pass)?.to_dtype(y.dtype())?)?),
    }
}

/// The adapter's part, in f32.
fn adapted(x: &Tensor, adapter: &Adapter, site: u64, pass: Pass) -> Result<Tensor> {
    let x = dropout(&x.to_dtype(DType::F32)?, pass, site, adapter.dropout)?;
    let low = product(&x, &adapter.down)?;
    Ok((product(&low, &adapter.up)? * adapter.scale)?)
}

/// Drops a share `p` of the numbers of rows x. On a CPU the same ones as the fused layers drop.
pub(crate) fn dropout(x: &Tensor, pass: Pass, site: u64, p: f32) -> Result<Tensor> {
    let Some(key) = pass.dropout.filter(|_| p > 0.0) else { return Ok(x.clone()) };
    let key = key.child(site);
    let factors = if x.device().is_cpu() {
        let (rows, columns) = x.dims2()?;
        let mask = Mask::new(key, p);
        let row = |row| (0..columns).map(move |column| mask.row(row).factor(column));
        let factors: Vec<f32> = (0..rows).flat_map(row).collect();
        Tensor::from_vec(factors, (rows, columns), x.device())?
    } else {
        random_factors(x.shape(), p, key.bits(0), x.device())?
    };
    Ok((x * factors.to_dtype(x.dtype())?)?)
}

/// 0 for a share `p`, otherwise 1 / (1 - p), from the device's generator with a seed of its own.
pub(crate) fn random_factors(shape: &Shape, p: f32, seed: u64, device: &Device) -> Result<Tensor> {
    device.set_seed(seed)?;
    let keep = Tensor::rand(0f32, 1f32, shape, device)?.ge(p)?;
    Ok((keep.to_dtype(DType::F32)? / f64::from(1.0 - p))?)
}

/// LayerNorm(x), computed in f32.
pub(crate) fn layer_norm(x: &Tensor, norm: &Norm, epsilon: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let wide = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = wide.broadcast_div(&(variance + epsilon)?.sqrt()?)?.to_dtype(x.dtype())?;
    let scaled = normal.broadcast_mul(&norm.weight.tensor)?;
    match &norm.shift {
        Some(shift) => Ok(scaled.broadcast_add(&shift.tensor)?),
        None => Ok(scaled),
    }
}

/// x / rms(x), scaled; computed in f32.
pub(crate) fn rms_norm(x: &Tensor, norm: &Norm, epsilon: f64) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = wide.broadcast_div(&(square + epsilon)?.sqrt()?)?.to_dtype(x.dtype())?;
    Ok(normal.broadcast_mul(&norm.weight.tensor)?)
}

/// Rows of a table that may train.
pub(crate) fn rows(table: &Weight, ids: &[u32]) -> Result<Tensor> {
    let ids = Tensor::from_slice(ids, ids.len(), table.tensor.device())?;
    Ok(table.tensor.index_select(&ids, 0)?)
}
