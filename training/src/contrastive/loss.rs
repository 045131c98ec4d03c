//! From vectors to the contrastive loss and its gradient.

use candle_core::{D, DType, Tensor, Var};

use super::{ContrastiveOptions, examples::Layout};
use crate::trainer::Figures;
use crate::{Error, Result};

/// Added to the score of a passage that is no negative.
const NO_NEGATIVE: f32 = -1e9;

/// The mean over queries of -log softmax over all passages of the batch, at the query's positive (Eq. 9), with the
/// averages of query and expansions (Eq. 8); the gradient with respect to `vectors` (zeros unless it is wanted); and
/// figures: the share of queries whose positive is the nearest passage, the mean score of positives, and the positive's
/// mean reciprocal rank.
pub(super) fn loss(
    vectors: &Tensor,
    layout: &Layout<'_>,
    settings: &ContrastiveOptions,
    gradient: bool,
) -> Result<(f64, Tensor, Figures)> {
    let leaf = Var::from_tensor(&vectors.detach())?;
    let scores = scores(leaf.as_tensor(), layout, settings)?;
    let device = vectors.device();
    let targets = Tensor::arange(0u32, layout.queries as u32, device)?.unsqueeze(1)?;
    let log_probabilities = candle_nn::ops::log_softmax(&scores, D::Minus1)?.gather(&targets, 1)?;
    let loss = log_probabilities.mean_all()?.neg()?;
    let figures = figures(&scores.detach(), &targets)?;
    let value = f64::from(loss.to_scalar::<f32>()?);
    if !gradient {
        return Ok((value, vectors.zeros_like()?, figures));
    }
    let slopes = loss.backward()?.remove(leaf.as_tensor());
    let slopes = slopes.ok_or_else(|| Error::Training("the loss gives the vectors no gradient".into()))?;
    Ok((value, slopes, figures))
}

/// queries × passages, divided by the temperature.
fn scores(vectors: &Tensor, layout: &Layout<'_>, settings: &ContrastiveOptions) -> Result<Tensor> {
    let device = vectors.device();
    let vectors = if settings.normalize {
        vectors.broadcast_div(&(vectors.sqr()?.sum_keepdim(1)? + 1e-24)?.sqrt()?)?
    } else {
        vectors.clone()
    };
    let mut queries = vectors.narrow(0, 0, layout.queries)?;
    let expansions = layout.expansions.len();
    if expansions > 0 {
        let mut alone = vec![1f32; layout.queries];
        let mut shares = vec![0f32; layout.queries * expansions];
        for (place, (query, count)) in layout.expansions.iter().enumerate() {
            alone[*query] = settings.query_weight as f32;
            shares[query * expansions + place] = ((1.0 - settings.query_weight) / *count as f64) as f32;
        }
        let alone = Tensor::from_vec(alone, (layout.queries, 1), device)?;
        let shares = Tensor::from_vec(shares, (layout.queries, expansions), device)?;
        let mean = shares.matmul(&vectors.narrow(0, layout.queries, expansions)?)?;
        queries = (queries.broadcast_mul(&alone)? + mean)?;
    }
    let passages = vectors.narrow(0, layout.queries + expansions, layout.passages())?;
    let scores = (queries.matmul(&passages.t()?)? / settings.temperature)?;
    if !settings.mask_duplicates || layout.duplicates.iter().all(Vec::is_empty) {
        return Ok(scores);
    }
    let mut mask = vec![0f32; layout.queries * layout.passages()];
    for (query, duplicates) in layout.duplicates.iter().enumerate() {
        for passage in duplicates {
            mask[query * layout.passages() + passage] = NO_NEGATIVE;
        }
    }
    Ok((scores + Tensor::from_vec(mask, (layout.queries, layout.passages()), device)?)?)
}

fn figures(scores: &Tensor, targets: &Tensor) -> Result<Figures> {
    let own = scores.gather(targets, 1)?;
    let better = scores.broadcast_gt(&own)?.to_dtype(DType::F32)?.sum(1)?.to_vec1::<f32>()?;
    let count = better.len() as f64;
    let first = better.iter().filter(|better| **better == 0.0).count() as f64;
    let reciprocal: f64 = better.iter().map(|better| 1.0 / (1.0 + f64::from(*better))).sum();
    Ok(Figures::from([
        ("accuracy".to_owned(), first / count),
        ("reciprocal_rank".to_owned(), reciprocal / count),
        ("positive_score".to_owned(), f64::from(own.mean_all()?.to_scalar::<f32>()?)),
    ]))
}
