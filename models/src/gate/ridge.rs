//! Ridge regression over a handful of standardised features, by the normal equations.

// Matrices are gone through by row and column.
#![allow(clippy::needless_range_loop)]

use super::features::COUNT;

/// A linear function of standardised features.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Linear {
    pub(super) means: [f64; COUNT],
    pub(super) scales: [f64; COUNT],
    pub(super) weights: [f64; COUNT],
    pub(super) bias: f64,
}

impl Linear {
    /// The weights that minimise the mean squared error + `strength` · |weights|². Features are standardised by their
    /// mean and standard deviation (1 for one that doesn't vary), the bias is not held back. `strength` must be above 0.
    pub(super) fn fit(rows: &[(&[f64; COUNT], f64)], strength: f64) -> Self {
        let count = rows.len().max(1) as f64;
        let bias = rows.iter().map(|(_, target)| target).sum::<f64>() / count;
        let (mut means, mut scales) = ([0.0; COUNT], [1.0; COUNT]);
        for feature in 0..COUNT {
            let mean = rows.iter().map(|(values, _)| values[feature]).sum::<f64>() / count;
            let variance =
                rows.iter().map(|(values, _)| (values[feature] - mean).powi(2)).sum::<f64>() / count;
            means[feature] = mean;
            // What differs by rounding alone does not vary.
            if variance.sqrt() > 1e-9 * (1.0 + mean.abs()) {
                scales[feature] = variance.sqrt();
            }
        }
        let mut linear = Self { means, scales, weights: [0.0; COUNT], bias };
        let (mut matrix, mut right) = ([[0.0; COUNT]; COUNT], [0.0; COUNT]);
        for (values, target) in rows {
            let standard = linear.standardise(values);
            for i in 0..COUNT {
                right[i] += standard[i] * (target - bias) / count;
                for j in 0..COUNT {
                    matrix[i][j] += standard[i] * standard[j] / count;
                }
            }
        }
        for (feature, row) in matrix.iter_mut().enumerate() {
            row[feature] += strength;
        }
        linear.weights = solve(matrix, right);
        linear
    }

    /// The function's value.
    pub(super) fn predict(&self, values: &[f64; COUNT]) -> f64 {
        let standard = self.standardise(values);
        self.bias + standard.iter().zip(&self.weights).map(|(value, weight)| value * weight).sum::<f64>()
    }

    fn standardise(&self, values: &[f64; COUNT]) -> [f64; COUNT] {
        std::array::from_fn(|feature| (values[feature] - self.means[feature]) / self.scales[feature])
    }
}

/// Solves a system whose matrix is symmetric and positive definite by Cholesky's decomposition.
fn solve(matrix: [[f64; COUNT]; COUNT], right: [f64; COUNT]) -> [f64; COUNT] {
    let mut lower = [[0.0; COUNT]; COUNT];
    for i in 0..COUNT {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| lower[i][k] * lower[j][k]).sum();
            let rest = matrix[i][j] - known;
            lower[i][j] = if i == j { rest.sqrt() } else { rest / lower[j][j] };
        }
    }
    let mut between = [0.0; COUNT];
    for i in 0..COUNT {
        let known: f64 = (0..i).map(|k| lower[i][k] * between[k]).sum();
        between[i] = (right[i] - known) / lower[i][i];
    }
    let mut solution = [0.0; COUNT];
    for i in (0..COUNT).rev() {
        let known: f64 = (i + 1..COUNT).map(|k| lower[k][i] * solution[k]).sum();
        solution[i] = (between[i] - known) / lower[i][i];
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plane_is_found_and_a_strong_ridge_flattens_it() {
        // Columns of different size, one of them constant, one the double of another.
        let values: Vec<[f64; COUNT]> = (0..50)
            .map(|n| {
                let n = f64::from(n);
                [n, (n * 7.0) % 13.0, 5.0, 2.0 * n, (n * n) % 17.0, 100.0 * (n % 3.0), -n]
            })
            .collect();
        let target = |row: &[f64; COUNT]| 3.0 + 0.5 * row[1] - 0.25 * row[4] + 0.01 * row[5];
        let rows: Vec<(&[f64; COUNT], f64)> = values.iter().map(|row| (row, target(row))).collect();
        let linear = Linear::fit(&rows, 1e-9);
        for row in &values {
            assert!((linear.predict(row) - target(row)).abs() < 1e-5);
        }
        assert_eq!((linear.weights[2], linear.scales[2]), (0.0, 1.0), "what doesn't vary says nothing");
        let flat = Linear::fit(&rows, 1e9);
        assert!((flat.predict(&values[7]) - flat.bias).abs() < 1e-6);
        assert_eq!(Linear::fit(&[], 1.0).predict(&values[3]), 0.0);
    }
}
