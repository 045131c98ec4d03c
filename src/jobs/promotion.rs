//! Whether a new bundle becomes active: the rule, the figures, and the reason in words.

use serde::Serialize;

use super::{
    outcome::{CollectionOutcome, EvaluationOutcome},
    request::{Promotion, When},
};

/// A decision, as a job's result has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Whether the new bundle is to become active.
    pub promote: bool,
    /// Why, or why not.
    pub why: String,
    /// The rule.
    pub rule: Promotion,
    /// Mean difference over the collections that decide, and its p-value; none where nothing was compared.
    pub difference: Option<f64>,
    /// Of the two-sided paired permutation test.
    pub p_value: Option<f64>,
    /// Collections that fall by more than the rule allows.
    pub regressions: Vec<Regression>,
}

/// A collection that falls.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Regression {
    /// Its name.
    pub collection: String,
    /// Mean difference, below 0.
    pub difference: f64,
}

/// Decides.
///
/// - `significant`: the mean is significantly above, and no collection falls by more than `max_regression`. Answers without the
///   expansion that was asked for make it fail, unless both bundles have as many on every collection.
/// - `not_worse`: the mean is not significantly below, and no collection falls by more than `max_regression`.
pub fn decide(rule: &Promotion, outcome: Option<&EvaluationOutcome>) -> Decision {
    let compared = outcome.and_then(|outcome| outcome.average);
    let regressions = outcome.map(|outcome| regressions(rule, outcome)).unwrap_or_default();
    let (promote, why) = match rule.when {
        When::Never => (false, "the rule is never: it waits to be activated by hand".to_owned()),
        When::Always => (true, "the rule is always".to_owned()),
        When::Significant | When::NotWorse => match (outcome, compared) {
            (Some(outcome), Some(compared)) => {
                let unequal =
                    outcome.collections.iter().find(|c| is_deciding(outcome, c) && degraded_unequally(c));
                weigh(rule, compared.difference, compared.p_value, &regressions, unequal)
            }
            _ => (false, "nothing was compared".to_owned()),
        },
    };
    Decision {
        promote,
        why,
        rule: rule.clone(),
        difference: compared.map(|compared| compared.difference),
        p_value: compared.map(|compared| compared.p_value),
        regressions,
    }
}

fn weigh(
    rule: &Promotion,
    difference: f64,
    p_value: f64,
    regressions: &[Regression],
    unequal: Option<&CollectionOutcome>,
) -> (bool, String) {
    let Promotion { metric, alpha, max_regression, .. } = rule;
    if let Some(Regression { collection, difference }) = regressions.first() {
        let why =
            format!("{metric} on {collection} falls by {:.4}, and {max_regression} is allowed", -difference);
        return (false, why);
    }
    let is_significant = p_value < *alpha;
    let figures = format!("{metric} differs by {difference:+.4} (p = {p_value:.4}, alpha {alpha})");
    if rule.when == When::NotWorse {
        return if is_significant && difference < 0.0 {
            (false, format!("{figures}: significantly worse"))
        } else {
            (true, format!("{figures}: not significantly worse"))
        };
    }
    if let Some(CollectionOutcome { name, candidate, against, .. }) = unequal {
        let against = against.as_ref().map_or(0, |side| side.degraded);
        let why = format!(
            "{} and {against} answers on {name} lack the expansion that was asked for, so that the figures are not of the \
             same thing; look at the reasons, and evaluate again",
            candidate.degraded
        );
        return (false, why);
    }
    if is_significant && difference > 0.0 {
        (true, format!("{figures}: significantly better"))
    } else {
        (false, format!("{figures}: not significantly better"))
    }
}

fn is_deciding(outcome: &EvaluationOutcome, collection: &CollectionOutcome) -> bool {
    outcome.decided_on.contains(&collection.name)
}

fn degraded_unequally(collection: &CollectionOutcome) -> bool {
    let against = collection.against.as_ref().map_or(0, |side| side.degraded);
    collection.candidate.degraded != against
}

/// Every collection that decides and falls by more than is allowed, the worst first.
fn regressions(rule: &Promotion, outcome: &EvaluationOutcome) -> Vec<Regression> {
    let mut found: Vec<Regression> = outcome
        .collections
        .iter()
        .filter(|collection| is_deciding(outcome, collection))
        .filter_map(|collection| {
            let difference = collection.compared?.difference;
            // Rounding must not make a fall of exactly the allowed size too large.
            let too_far = difference < -(rule.max_regression + 1e-12);
            too_far.then(|| Regression { collection: collection.name.clone(), difference })
        })
        .collect();
    found.sort_by(|a, b| a.difference.total_cmp(&b.difference));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::outcome::{Compared, SideOutcome};

    /// Collections by difference and degraded answers of both; the average's difference and p-value.
    fn outcome(
        collections: &[(&str, f64, usize, usize)],
        difference: f64,
        p_value: f64,
    ) -> EvaluationOutcome {
        let collections: Vec<CollectionOutcome> = collections
            .iter()
            .map(|(name, difference, ours, theirs)| CollectionOutcome {
                name: (*name).into(),
                candidate: SideOutcome { degraded: *ours, ..SideOutcome::default() },
                against: Some(SideOutcome { degraded: *theirs, ..SideOutcome::default() }),
                compared: Some(Compared { difference: *difference, ..Compared::default() }),
                ..CollectionOutcome::default()
            })
            .collect();
        EvaluationOutcome {
            decided_on: collections.iter().map(|collection| collection.name.clone()).collect(),
            average: Some(Compared { difference, p_value, ..Compared::default() }),
            collections,
            ..EvaluationOutcome::default()
        }
    }

    fn promotes(when: When, outcome: &EvaluationOutcome) -> bool {
        decide(&Promotion { when, ..Promotion::default() }, Some(outcome)).promote
    }

    #[test]
    fn significant_wants_a_gain_and_not_worse_only_no_loss() {
        for (difference, p_value, significant, not_worse) in [
            (0.03, 0.01, true, true),
            (0.03, 0.2, false, true),
            (0.0, 1.0, false, true),
            (-0.005, 0.2, false, true),
            (-0.005, 0.01, false, false),
        ] {
            let outcome = outcome(&[("a", difference, 0, 0)], difference, p_value);
            let found = (promotes(When::Significant, &outcome), promotes(When::NotWorse, &outcome));
            assert_eq!(found, (significant, not_worse), "{difference} {p_value}");
        }
    }

    #[test]
    fn one_collection_that_falls_too_far_is_enough() {
        let falls = outcome(&[("a", 0.2, 0, 0), ("b", -0.011, 0, 0), ("c", -0.3, 0, 0)], 0.05, 0.001);
        for when in [When::Significant, When::NotWorse] {
            let decision = decide(&Promotion { when, ..Promotion::default() }, Some(&falls));
            assert!(!decision.promote);
            assert_eq!(decision.regressions[0].collection, "c", "the worst first");
            assert!(decision.why.contains("c falls by 0.3"), "{}", decision.why);
        }
        let within = outcome(&[("a", 0.2, 0, 0), ("b", -0.01, 0, 0)], 0.05, 0.001);
        assert!(promotes(When::Significant, &within));
        // Only those that decide count.
        let mut others = falls.clone();
        others.decided_on = vec!["a".into()];
        assert!(promotes(When::Significant, &others));
    }

    #[test]
    fn degraded_answers_count_unless_they_are_equal() {
        let unequal = outcome(&[("a", 0.1, 3, 0)], 0.1, 0.001);
        let decision = decide(&Promotion { when: When::Significant, ..Promotion::default() }, Some(&unequal));
        assert!(!decision.promote && decision.why.contains("3 and 0 answers on a"), "{}", decision.why);
        assert!(promotes(When::NotWorse, &unequal));
        assert!(promotes(When::Significant, &outcome(&[("a", 0.1, 2, 2)], 0.1, 0.001)));
    }

    #[test]
    fn always_and_never_ask_nobody() {
        let decide = |when| decide(&Promotion { when, ..Promotion::default() }, None);
        assert!(decide(When::Always).promote);
        assert!(!decide(When::Never).promote);
        assert!(!decide(When::Significant).promote && !decide(When::NotWorse).promote);
        let bad = outcome(&[("a", -0.9, 0, 0)], -0.9, 0.001);
        assert!(promotes(When::Always, &bad));
    }
}
