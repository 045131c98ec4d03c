//! Attention over packed rows, which are spread out into padded groups for it.

use candle_core::{D, DType, Device, Tensor};

use crate::{
    Result,
    trainable::{
        options::Pass,
        packing::{Group, Packed},
        plain::ops::random_factors,
        seed::Mask,
    },
};

/// Added to the scores that a row must not see; exp of it is 0.
const UNSEEN: f32 = -1e9;

/// Where packed rows stand when every group has as many rows as the longest.
pub(crate) struct Padded {
    groups: Vec<Group>,
    rows: usize,
    longest: usize,
    /// For each place the packed row that stands there; the first row where there is none.
    spread: Tensor,
    /// For each packed row its place.
    places: Tensor,
    /// What is added to scores: groups × 1 × longest × longest.
    mask: Tensor,
}

/// Heads of an attention layer.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) width: usize,
}

impl Padded {
    pub(crate) fn new(packed: &Packed, causal: bool, device: &Device) -> Result<Self> {
        let longest = packed.groups.iter().map(Group::rows).max().unwrap_or(0);
        let count = packed.groups.len();
        let mut spread = vec![0u32; count * longest];
        let mut places = vec![0u32; packed.rows()];
        let mut mask = vec![UNSEEN; count * longest * longest];
        for (index, group) in packed.groups.iter().enumerate() {
            for row in 0..group.rows() {
                spread[index * longest + row] = (group.start + row) as u32;
                places[group.start + row] = (index * longest + row) as u32;
            }
            for segment in group.segments() {
                for row in 0..segment.rows {
                    let seen = if causal { row + 1 } else { segment.rows };
                    let out = &mut mask[(index * longest + segment.start + row) * longest..][..longest];
                    out[..segment.prefix].fill(0.0);
                    out[segment.start..segment.start + seen].fill(0.0);
                }
            }
        }
        Ok(Self {
            groups: packed.groups.clone(),
            rows: packed.rows(),
            longest,
            spread: Tensor::from_vec(spread, count * longest, device)?,
            places: Tensor::from_vec(places, packed.rows(), device)?,
            mask: Tensor::from_vec(mask, (count, 1, longest, longest), device)?,
        })
    }

    /// groups × heads × longest × width.
    pub(crate) fn spread(&self, rows: &Tensor, heads: usize, width: usize) -> Result<Tensor> {
        let shape = (self.groups.len(), self.longest, heads, width);
        Ok(rows.index_select(&self.spread, 0)?.reshape(shape)?.transpose(1, 2)?.contiguous()?)
    }

    /// softmax(q·kᵀ / √width)·v; queries, keys and values are padded, the result is packed.
    pub(crate) fn attend(
        &self,
        [query, key, value]: [&Tensor; 3],
        heads: Heads,
        pass: Pass,
        dropout: (u64, f32),
    ) -> Result<Tensor> {
        let (key, value) = (self.share(key, heads)?, self.share(value, heads)?);
        let scale = 1.0 / (heads.width as f64).sqrt();
        let scores = (query.matmul(&key.t()?)?.to_dtype(DType::F32)? * scale)?;
        let weights = candle_nn::ops::softmax(&scores.broadcast_add(&self.mask)?, D::Minus1)?;
        let weights = self.drop(weights, heads, pass, dropout)?.to_dtype(query.dtype())?;
        let context = weights.matmul(&value)?.transpose(1, 2)?.contiguous()?;
        let context = context.reshape((self.groups.len() * self.longest, heads.queries * heads.width))?;
        Ok(context.index_select(&self.places, 0)?)
    }

    /// Repeats heads of keys or values for the queries that share them.
    fn share(&self, x: &Tensor, heads: Heads) -> Result<Tensor> {
        let sharing = heads.queries / heads.keys;
        if sharing == 1 {
            return Ok(x.clone());
        }
        let count = self.groups.len();
        let wide = (count, heads.keys, sharing, self.longest, heads.width);
        let shape = (count, heads.queries, self.longest, heads.width);
        Ok(x.unsqueeze(2)?.broadcast_as(wide)?.contiguous()?.reshape(shape)?)
    }

    /// Drops weights; on a CPU the same ones as the fused attention does.
    fn drop(&self, weights: Tensor, heads: Heads, pass: Pass, (site, p): (u64, f32)) -> Result<Tensor> {
        let Some(key) = pass.dropout.filter(|_| p > 0.0) else { return Ok(weights) };
        let key = key.child(site);
        if !weights.device().is_cpu() {
            let factors = random_factors(weights.shape(), p, key.bits(0), weights.device())?;
            return Ok((weights * factors)?);
        }
        let mask = Mask::new(key, p);
        let sharing = heads.queries / heads.keys;
        let longest = self.longest;
        let mut factors = vec![0f32; weights.elem_count()];
        for (index, group) in self.groups.iter().enumerate() {
            for (head, segment) in (0..heads.queries).flat_map(|h| group.segments().map(move |s| (h, s))) {
                let unit = index * heads.keys + head / sharing;
                let first = unit * self.rows + segment.start;
                for row in 0..segment.rows {
                    let mask = mask.row((first + row) * sharing + head % sharing);
                    let place = (index * heads.queries + head) * longest + segment.start + row;
                    let out = &mut factors[place * longest..][..longest];
                    for (column, factor) in out[..segment.prefix].iter_mut().enumerate() {
                        *factor = mask.factor(column);
                    }
                    for (column, factor) in
                        out[segment.start..segment.start + segment.rows].iter_mut().enumerate()
                    {
                        *factor = mask.factor(segment.prefix + column);
                    }
                }
            }
        }
        Ok((&weights * Tensor::from_vec(factors, weights.shape(), weights.device())?)?)
    }
}
