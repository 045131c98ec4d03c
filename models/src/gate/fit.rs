//! From measured gains to a gate: cross-validation, the threshold, and whether there is anything to gain at all.

use sha2::{Digest, Sha256};

use super::features::{COUNT, Features};
use super::ridge::Linear;
use super::{Combination, FORM, Gate, NAMES, TrainedOn};

/// Parts of the rows; each is predicted from the others.
const FOLDS: usize = 5;
/// Ridges that are tried, the strongest first: of equally good ones it is taken.
const STRENGTHS: [f64; 6] = [10.0, 1.0, 0.3, 0.1, 0.01, 0.001];
/// With fewer rows nothing is proved.
const FEWEST: usize = 10;
/// The normal distribution's 95 % point.
const Z95: f64 = 1.644_853_626_951_472_2;

/// What expansion did to one query.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Names the query; rows of one query go into the same part in cross-validation.
    pub id: String,
    /// What was known before.
    pub features: Features,
    /// nDCG@10 of the expanded search less that of the raw one.
    pub gain: f64,
}

impl Gate {
    /// The gate that these rows speak for. Everything is decided on predictions for queries that were not trained on
    /// (5-fold cross-validation, folds by hash of the id): the strength of the ridge by their squared error, the
    /// threshold by the mean gain of expanding what lies above it. Whether to expand at all is decided by what thresholds
    /// gain that were chosen on the other folds: unless the one-sided 95 % lower bound of its mean (Student's t) is above
    /// 0, the gate never expands. The same rows give the same gate, in whatever order they come.
    pub fn fit(rows: &[Row], with: Combination) -> Self {
        let mut rows: Vec<&Row> = rows.iter().collect();
        rows.sort_by(|a, b| {
            let by_features = || a.features.values().partial_cmp(b.features.values());
            a.id.cmp(&b.id)
                .then_with(|| a.gain.total_cmp(&b.gain))
                .then_with(|| by_features().unwrap_or(std::cmp::Ordering::Equal))
        });
        let folds: Vec<usize> = rows.iter().map(|row| fold(&row.id)).collect();
        let (ridge, predictions) = best_ridge(&rows, &folds);
        let gains: Vec<f64> = rows.iter().map(|row| row.gain).collect();
        let gated = gated_gains(&predictions, &gains, &folds);
        let gain_gated_lower_bound = lower_bound(&gated);
        let proved = gain_gated_lower_bound.is_some_and(|bound| bound > 0.0);
        let threshold = if proved { best_threshold(&predictions, &gains) } else { None };
        let skipped =
            predictions.iter().filter(|prediction| !threshold.is_some_and(|t| **prediction > t)).count();
        let Linear { means, scales, weights, bias } = fit_all(&rows, ridge);
        Self {
            version: FORM,
            features: NAMES.map(str::to_owned).to_vec(),
            means: means.to_vec(),
            scales: scales.to_vec(),
            weights: weights.to_vec(),
            bias,
            threshold,
            query_weight: with.query_weight,
            joint_encoding: with.joint_encoding,
            encoder: with.encoder,
            expander: with.expander,
            expander_merged: None,
            trained_on: TrainedOn {
                queries: rows.len(),
                ridge,
                gain_always: mean(&gains),
                gain_gated: mean(&gated),
                gain_gated_lower_bound,
                share_skipped: skipped as f64 / rows.len().max(1) as f64,
            },
        }
    }
}

fn fold(id: &str) -> usize {
    let digest = Sha256::digest(id.as_bytes());
    usize::from(digest[0]) % FOLDS
}

fn fit_all(rows: &[&Row], strength: f64) -> Linear {
    let rows: Vec<(&[f64; COUNT], f64)> = rows.iter().map(|row| (row.features.array(), row.gain)).collect();
    Linear::fit(&rows, strength)
}

/// The ridge with the smallest squared error, and its predictions of each row from the other folds.
fn best_ridge(rows: &[&Row], folds: &[usize]) -> (f64, Vec<f64>) {
    let mut best = (STRENGTHS[0], Vec::new());
    let mut least = f64::INFINITY;
    for strength in STRENGTHS {
        let predictions = out_of_fold(rows, folds, strength);
        let error: f64 = predictions.iter().zip(rows).map(|(p, row)| (p - row.gain).powi(2)).sum();
        if error < least {
            least = error;
            best = (strength, predictions);
        }
    }
    best
}

fn out_of_fold(rows: &[&Row], folds: &[usize], strength: f64) -> Vec<f64> {
    let mut predictions = vec![0.0; rows.len()];
    for fold in 0..FOLDS {
        let others: Vec<&Row> =
            rows.iter().zip(folds).filter(|(_, of)| **of != fold).map(|(row, _)| *row).collect();
        let linear = fit_all(&others, strength);
        for (position, row) in rows.iter().enumerate().filter(|(position, _)| folds[*position] == fold) {
            predictions[position] = linear.predict(row.features.array());
        }
    }
    predictions
}

/// The gain of each row (0 where it is not expanded) with the threshold that is best on the other folds.
fn gated_gains(predictions: &[f64], gains: &[f64], folds: &[usize]) -> Vec<f64> {
    let thresholds: Vec<Option<f64>> = (0..FOLDS)
        .map(|fold| {
            let others = |values: &[f64]| -> Vec<f64> {
                values.iter().zip(folds).filter(|(_, of)| **of != fold).map(|(value, _)| *value).collect()
            };
            best_threshold(&others(predictions), &others(gains))
        })
        .collect();
    let expanded = |position: usize| thresholds[folds[position]].is_some_and(|t| predictions[position] > t);
    (0..gains.len()).map(|position| if expanded(position) { gains[position] } else { 0.0 }).collect()
}

/// The threshold above which expanding gains most: between two predictions, or, where all are above it, a whole gain
/// below the least. None where nothing is gained whatever it is.
fn best_threshold(predictions: &[f64], gains: &[f64]) -> Option<f64> {
    let mut order: Vec<usize> = (0..predictions.len()).collect();
    order.sort_by(|a, b| predictions[*b].total_cmp(&predictions[*a]));
    let (mut sum, mut most, mut threshold) = (0.0, 0.0, None);
    for (place, position) in order.iter().enumerate() {
        sum += gains[*position];
        let own = predictions[*position];
        let next = order.get(place + 1).map(|next| predictions[*next]);
        // Equal predictions go together.
        if next == Some(own) || sum <= most {
            continue;
        }
        most = sum;
        threshold = Some(next.map_or(own - 1.0, |next| next + (own - next) / 2.0));
    }
    threshold
}

/// The one-sided 95 % lower bound of the mean by Student's t; none for too few values.
fn lower_bound(values: &[f64]) -> Option<f64> {
    if values.len() < FEWEST {
        return None;
    }
    let count = values.len() as f64;
    let mean = mean(values);
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    Some(mean - t95(count - 1.0) * (variance / count).sqrt())
}

/// Student's 95 % point by its expansion around the normal one (Abramowitz and Stegun 26.7.5); to 0.002 from 9 degrees
/// of freedom on.
fn t95(freedom: f64) -> f64 {
    let z = Z95;
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    z + first / freedom + second / freedom.powi(2)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of [-1, 1) from a linear congruential generator (Knuth's MMIX).
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        }
    }

    fn with() -> Combination {
        Combination { encoder: "encoder@1".into(), expander: None, query_weight: 0.5, joint_encoding: false }
    }

    fn rows(count: usize, seed: u64, gain: impl Fn(&[f64], f64) -> f64) -> Vec<Row> {
        let mut noise = Noise(seed);
        (0..3).for_each(|_| _ = noise.next());
        (0..count)
            .map(|n| {
                let features = Features::of(std::array::from_fn(|_| noise.next()));
                let gain = gain(features.values(), noise.next());
                Row { id: format!("q{n}"), features, gain }
            })
            .collect()
    }

    #[test]
    fn a_planted_relation_is_found() {
        // On the whole expansion loses; where the best hit is far it wins.
        let rows = rows(400, 1, |values, noise| -0.2 * values[2] - 0.05 + 0.2 * noise);
        let gate = Gate::fit(&rows, with());
        let figures = gate.trained_on();
        assert!(figures.gain_always < 0.0 && figures.gain_gated > 0.01, "{figures:?}");
        assert!(figures.gain_gated_lower_bound.unwrap() > 0.0);
        assert!((0.4..0.9).contains(&figures.share_skipped), "{figures:?}");
        let decide = |top1: f64| gate.decide(&Features::of([0.0, 0.0, top1, 0.0, 0.0, 0.0, 0.0]));
        assert!(decide(-0.8).expand && !decide(0.8).expand);
        // -0.2 · top1 - 0.05 on both sides of the threshold.
        assert!((decide(-0.8).predicted_gain - 0.11).abs() < 0.04, "{:?}", decide(-0.8));
        assert!((decide(0.8).predicted_gain + 0.21).abs() < 0.04, "{:?}", decide(0.8));
        let top1 = NAMES.iter().position(|name| *name == "top1").unwrap();
        let largest = (0..COUNT).max_by(|a, b| gate.weights[*a].abs().total_cmp(&gate.weights[*b].abs()));
        assert_eq!(largest, Some(top1));
    }

    #[test]
    fn a_gain_everywhere_expands_everything() {
        let gate = Gate::fit(&rows(200, 2, |_, noise| 0.1 + 0.05 * noise), with());
        assert_eq!(gate.trained_on().share_skipped, 0.0);
        assert!(
            gate.decide(&Features::of([-0.9; COUNT])).expand
                && gate.decide(&Features::of([0.9; COUNT])).expand
        );
    }

    #[test]
    fn noise_and_losses_never_expand() {
        let opened =
            |seed: u64| Gate::fit(&rows(300, seed, |_, noise| 0.3 * noise), with()).threshold().is_some();
        // 5 % of the time luck looks like a gain; more than 6 of 60 would be a bound that doesn't hold (p < 0.05).
        let lucky = (100..160).filter(|seed| opened(*seed)).count();
        assert!(lucky <= 6, "{lucky} of 60");
        let gate = Gate::fit(&rows(300, 3, |values, noise| -0.3 + 0.1 * values[2] + 0.1 * noise), with());
        assert_eq!((gate.threshold(), gate.trained_on().share_skipped), (None, 1.0));
        assert!(!gate.decide(&Features::of([1e6; COUNT])).expand, "never means never");
    }

    #[test]
    fn little_data_proves_nothing() {
        for count in [0, 1, 9] {
            let gate = Gate::fit(&rows(count, 4, |_, _| 0.5), with());
            assert_eq!((gate.threshold(), gate.trained_on().gain_gated_lower_bound), (None, None), "{count}");
        }
    }

    #[test]
    fn the_order_of_the_rows_changes_nothing() {
        let rows = rows(150, 5, |values, noise| 0.2 * values[5] + 0.1 * noise);
        let gate = Gate::fit(&rows, with());
        let mut turned = rows.clone();
        turned.reverse();
        turned.swap(3, 70);
        assert_eq!(Gate::fit(&turned, with()), gate);
        assert!(gate.threshold().is_some());
    }

    #[test]
    fn equal_predictions_are_decided_together() {
        assert_eq!(best_threshold(&[0.1, 0.1, 0.0], &[0.5, -0.6, -1.0]), None);
        assert_eq!(best_threshold(&[0.2, 0.1, 0.0], &[0.5, 0.5, -1.0]), Some(0.05));
        assert_eq!(best_threshold(&[0.2, 0.1], &[0.5, 0.5]), Some(-0.9));
        assert_eq!(best_threshold(&[], &[]), None);
    }

    #[test]
    fn bounds_are_students() {
        // Tabulated: t(0.95, 9) = 1.8331, t(0.95, 100) = 1.6602.
        assert!((t95(9.0) - 1.8331).abs() < 2e-3 && (t95(100.0) - 1.6602).abs() < 1e-4);
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
        // 5.5 - 1.8331 · 3.02765 / √10
        assert!((lower_bound(&values).unwrap() - 3.7449).abs() < 3e-3);
    }
}
