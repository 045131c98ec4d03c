//! The averaged vector of Eq. 8: v = w·q̂ + (1 − w)·mean(d̂), with query and expansions L2-normalised first. The
//! sum is not normalised again, as in the paper's evaluation.

/// Scales `vector` to length 1; leaves a zero vector as it is.
pub fn normalize(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if norm > 0.0 {
        let scale = 1.0 / norm;
        for x in vector {
            *x = (f64::from(*x) * scale) as f32;
        }
    }
}

/// The inner product; of normalised vectors, the cosine.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Averages a normalised query with normalised expansions, `query_weight` being the query's share (0.5 in the
/// paper). Without expansions the query itself comes back. All vectors have the same number of components.
pub fn expanded_query(query: &[f32], expansions: &[Vec<f32>], query_weight: f32) -> Vec<f32> {
    if expansions.is_empty() {
        return query.to_vec();
    }
    let share = (1.0 - query_weight) / expansions.len() as f32;
    let mut vector: Vec<f32> = query.iter().map(|x| query_weight * x).collect();
    for expansion in expansions {
        for (sum, x) in vector.iter_mut().zip(expansion) {
            *sum += share * x;
        }
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_and_half_by_default() {
        let v = expanded_query(&[1.0, 0.0], &[vec![0.0, 1.0]], 0.5);
        assert_eq!(v, [0.5, 0.5]);
    }

    #[test]
    fn several_expansions_share_their_half() {
        let v = expanded_query(&[1.0, 0.0, 0.0], &[vec![0.0, 1.0, 0.0], vec![0.0, 0.0, 1.0]], 0.6);
        assert!((v[0] - 0.6).abs() < 1e-6 && (v[1] - 0.2).abs() < 1e-6 && (v[2] - 0.2).abs() < 1e-6);
    }

    #[test]
    fn no_expansion_leaves_the_query() {
        assert_eq!(expanded_query(&[0.6, 0.8], &[], 0.5), [0.6, 0.8]);
    }

    #[test]
    fn normalising_gives_length_one() {
        let mut v = vec![3.0, 4.0];
        normalize(&mut v);
        assert!((v[0] - 0.6).abs() < 1e-6 && (dot(&v, &v) - 1.0).abs() < 1e-6);
        let mut zero = vec![0.0, 0.0];
        normalize(&mut zero);
        assert_eq!(zero, [0.0, 0.0]);
    }
}
