//! The loss of direct preference optimisation (Rafailov et al. 2023; Eq. 17).

/// The loss of one pair, and what it says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// -log σ(β · (how much more the policy than the reference prefers chosen over rejected)).
    pub loss: f64,
    /// By how much the loss falls with the log-probability of the chosen completion; it rises as much with the rejected
    /// one's.
    pub slope: f64,
    /// β · (policy - reference) of chosen and rejected.
    pub rewards: [f64; 2],
    /// An estimate of the divergence of the policy from the reference, in nats a completion: the mean of reference minus
    /// policy over both completions. They were drawn from the reference, so that its expectation is KL(reference ‖
    /// policy) but for the choice of the best and the worst of the candidates.
    pub divergence: f64,
}

/// The loss of a pair from the log-probabilities of its chosen and rejected completion, by the policy and by the
/// reference.
pub fn pair_loss(policy: [f64; 2], reference: [f64; 2], beta: f64) -> PairLoss {
    let ratios = [policy[0] - reference[0], policy[1] - reference[1]];
    let rewards = ratios.map(|ratio| beta * ratio);
    let margin = rewards[0] - rewards[1];
    // -log σ(x) = log(1 + exp(-x)), written so that exp never overflows.
    let loss = (-margin).max(0.0) + (-margin.abs()).exp().ln_1p();
    let slope = beta / (1.0 + margin.exp());
    PairLoss { loss, slope, rewards, divergence: -(ratios[0] + ratios[1]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_models_give_log_two_and_a_better_policy_less() {
        let equal = pair_loss([-10.0, -20.0], [-10.0, -20.0], 0.1);
        assert!((equal.loss - 2f64.ln()).abs() < 1e-12);
        assert!((equal.slope - 0.05).abs() < 1e-12);
        assert_eq!((equal.rewards, equal.divergence), ([0.0, 0.0], 0.0));
        let better = pair_loss([-8.0, -25.0], [-10.0, -20.0], 0.1);
        assert!((better.loss - (1.0 + (-0.7f64).exp()).ln()).abs() < 1e-12);
        assert_eq!(better.divergence, 1.5);
    }

    #[test]
    fn the_slope_is_the_derivative_and_extremes_stay_finite() {
        let h = 1e-5;
        for chosen in [-30.0, -11.0, -9.0, 15.0] {
            let loss = |x: f64| pair_loss([x, -12.0], [-10.0, -11.0], 0.3).loss;
            let numeric = -(loss(chosen + h) - loss(chosen - h)) / (2.0 * h);
            assert!((pair_loss([chosen, -12.0], [-10.0, -11.0], 0.3).slope - numeric).abs() < 1e-8);
        }
        for margin in [1e6, -1e6] {
            let loss = pair_loss([margin, 0.0], [0.0, 0.0], 1.0);
            assert!(loss.loss.is_finite() && loss.slope.is_finite(), "{loss:?}");
        }
    }
}
