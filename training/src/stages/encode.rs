//! Texts to vectors in calls of bounded size.

use std::time::Duration;

use expandr_models::{Encoder, Error as ModelError, Priority, TextKind};

use crate::{Error, Result};

/// For each group of texts the mean of their vectors, which have length 1 before; none for a group without texts.
pub(super) async fn encode_means(
    encoder: &dyn Encoder,
    groups: Vec<Vec<String>>,
    batch: usize,
) -> Result<Vec<Option<Vec<f32>>>> {
    let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
    let mut vectors =
        encode(encoder, TextKind::Document, groups.into_iter().flatten().collect(), batch).await?.into_iter();
    let mean = |size: usize| {
        let mut mean: Option<Vec<f32>> = None;
        for mut vector in vectors.by_ref().take(size) {
            normalize(&mut vector);
            let share = 1.0 / size as f32;
            match &mut mean {
                None => mean = Some(vector.into_iter().map(|x| share * x).collect()),
                Some(mean) => mean.iter_mut().zip(vector).for_each(|(sum, x)| *sum += share * x),
            }
        }
        mean
    };
    Ok(sizes.into_iter().map(mean).collect())
}

/// The vectors of `texts`, in order. An encoder whose queue is full is asked again.
pub(crate) async fn encode(
    encoder: &dyn Encoder,
    kind: TextKind,
    texts: Vec<String>,
    batch: usize,
) -> Result<Vec<Vec<f32>>> {
    let mut vectors = Vec::with_capacity(texts.len());
    for texts in texts.chunks(batch.max(1)) {
        let mut pause = Duration::from_millis(20);
        loop {
            match encoder.encode(kind, Priority::Bulk, texts.to_vec()).await {
                Ok(encoded) => {
                    vectors.extend(encoded);
                    break;
                }
                Err(ModelError::Overloaded { .. }) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    if let Some(vector) = vectors.iter().find(|vector| vector.iter().any(|c| !c.is_finite())) {
        let broken = vector.iter().position(|c| !c.is_finite()).unwrap_or_default();
        return Err(Error::Input(format!(
            "encoder {}: component {broken} of a vector is not finite; the checkpoint is damaged or its training diverged",
            encoder.info().id
        )));
    }
    Ok(vectors)
}

/// Brings a vector to length 1; one without length stays.
pub(crate) fn normalize(vector: &mut [f32]) {
    let norm = dot(vector, vector).sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|component| *component /= norm);
    }
}

/// The inner product.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums side by side, so that the compiler can use vector instructions.
    let mut sums = [0f32; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for index in 0..8 {
            sums[index] += a[index] * b[index];
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use expandr_models::testing::HashEncoder;

    use super::*;

    #[test]
    fn products_and_lengths() {
        let a: Vec<f32> = (0..19).map(|n| n as f32).collect();
        assert_eq!(dot(&a, &a), 2109.0);
        let mut vector = vec![3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = vec![0.0; 3];
        normalize(&mut zero);
        assert_eq!(zero, [0.0; 3]);
    }

    #[tokio::test]
    async fn batches_keep_the_order() {
        let encoder = HashEncoder::new(8);
        let texts: Vec<String> = (0..7).map(|n| format!("text {n}")).collect();
        let vectors = encode(&encoder, TextKind::Document, texts.clone(), 3).await.unwrap();
        assert_eq!(vectors, texts.iter().map(|text| encoder.vector(text)).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn means_are_of_vectors_of_length_one() {
        let encoder = HashEncoder::new(8);
        let group = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let groups = vec![group(&["a b"]), group(&[]), group(&["c", "a b", "d e f"])];
        let means = encode_means(&encoder, groups, 2).await.unwrap();
        let unit = |text: &str| {
            let mut vector = encoder.vector(text);
            vector.iter_mut().for_each(|x| *x *= 3.0);
            normalize(&mut vector);
            vector
        };
        let near = |found: &Option<Vec<f32>>, expected: Vec<f32>| {
            let found = found.as_ref().unwrap();
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
        };
        assert!(means.len() == 3 && means[1].is_none());
        near(&means[0], unit("a b"));
        let third = |n: usize| (unit("c")[n] + unit("a b")[n] + unit("d e f")[n]) / 3.0;
        near(&means[2], (0..8).map(third).collect());
    }
}
