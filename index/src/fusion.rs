//! Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009) with a weight for each list.

use std::collections::HashMap;

use crate::vector::Hit;

/// A ranked list to be fused.
#[derive(Debug, Clone, Copy)]
pub struct Leg<'a> {
    /// Best first.
    pub hits: &'a [Hit],
    /// Its share in the sum. A leg of weight 0 adds nothing, its documents neither.
    pub weight: f64,
}

/// Where a leg had a document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LegPlace {
    /// From 1.
    pub rank: usize,
    /// The leg's own score.
    pub score: f32,
}

/// A document of at least one leg.
#[derive(Debug, Clone, PartialEq)]
pub struct Fused {
    /// Its key, and the sum of weight / (k + rank) over the legs that have it.
    pub hit: Hit,
    /// In the order of the legs; none where a leg does not have it.
    pub places: Vec<Option<LegPlace>>,
}

/// The best `top_k` documents of all legs by the sum of weight / (k + rank), equal sums by key. Scores of the legs are not
/// compared, so they may be on any scale. A larger `k` (60 in the paper) makes the first ranks count less.
///
/// `k` and the weights are not negative; a document that a leg has twice counts where it is first.
pub fn reciprocal_rank_fusion(legs: &[Leg<'_>], k: f64, top_k: usize) -> Vec<Fused> {
    let mut places: HashMap<u64, (f64, Vec<Option<LegPlace>>)> = HashMap::new();
    for (number, leg) in legs.iter().enumerate() {
        if leg.weight <= 0.0 {
            continue;
        }
        for (hit, rank) in leg.hits.iter().zip(1usize..) {
            let (sum, places) = places.entry(hit.key).or_insert_with(|| (0.0, vec![None; legs.len()]));
            if places[number].is_none() {
                places[number] = Some(LegPlace { rank, score: hit.score });
                *sum += leg.weight / (k + rank as f64);
            }
        }
    }
    let mut fused: Vec<(f64, u64, Vec<Option<LegPlace>>)> =
        places.into_iter().map(|(key, (sum, places))| (sum, key, places)).collect();
    fused.sort_by(|(sum, key, _), (other_sum, other_key, _)| {
        other_sum.total_cmp(sum).then(key.cmp(other_key))
    });
    fused.truncate(top_k);
    let with_places = |(sum, key, places)| Fused { hit: Hit { key, score: sum as f32 }, places };
    fused.into_iter().map(with_places).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hits(keys: &[u64]) -> Vec<Hit> {
        keys.iter().zip(0..).map(|(&key, n)| Hit { key, score: 9.0 - n as f32 }).collect()
    }

    #[test]
    fn scores_are_the_formula_and_places_are_told() {
        let (dense, lexical) = (hits(&[7, 3, 5]), hits(&[5, 7]));
        let legs = [Leg { hits: &dense, weight: 1.0 }, Leg { hits: &lexical, weight: 0.5 }];
        let fused = reciprocal_rank_fusion(&legs, 60.0, 10);
        let keys: Vec<u64> = fused.iter().map(|fused| fused.hit.key).collect();
        assert_eq!(keys, [7, 5, 3]);
        let expected = [1.0 / 61.0 + 0.5 / 62.0, 1.0 / 63.0 + 0.5 / 61.0, 1.0 / 62.0];
        for (fused, expected) in fused.iter().zip(expected) {
            assert!((f64::from(fused.hit.score) - expected).abs() < 1e-8);
        }
        assert_eq!(
            fused[1].places,
            [Some(LegPlace { rank: 3, score: 7.0 }), Some(LegPlace { rank: 1, score: 9.0 })]
        );
        assert_eq!(fused[2].places, [Some(LegPlace { rank: 2, score: 8.0 }), None]);
    }

    #[test]
    fn ties_go_to_the_older_key_and_depth_is_kept() {
        let (one, other) = (hits(&[9, 1]), hits(&[2, 8]));
        let legs = [Leg { hits: &one, weight: 1.0 }, Leg { hits: &other, weight: 1.0 }];
        let keys = |top_k| -> Vec<u64> {
            reciprocal_rank_fusion(&legs, 60.0, top_k).iter().map(|fused| fused.hit.key).collect()
        };
        assert_eq!(keys(9), [2, 9, 1, 8]);
        assert_eq!(keys(3), [2, 9, 1]);
        assert!(reciprocal_rank_fusion(&[], 60.0, 5).is_empty());
    }

    proptest! {
        #[test]
        fn one_leg_keeps_its_order_and_a_leg_of_weight_0_changes_nothing(
            keys in prop::collection::btree_set(0u64..50, 0..30), seed in any::<u64>(), k in 0.0f64..100.0
        ) {
            let mut order: Vec<u64> = keys.into_iter().collect();
            order.sort_by_key(|key| (key ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let (own, reversed): (Vec<Hit>, Vec<Hit>) = (hits(&order), hits(&order).into_iter().rev().collect());
            let legs = [Leg { hits: &own, weight: 0.7 }, Leg { hits: &reversed, weight: 0.0 }];
            let fused = reciprocal_rank_fusion(&legs, k, 100);
            prop_assert_eq!(fused.iter().map(|fused| fused.hit.key).collect::<Vec<_>>(), order);
            prop_assert!(fused.iter().all(|fused| fused.places[1].is_none()));
        }

        #[test]
        fn better_ranks_in_every_leg_give_a_better_place(first in prop::collection::vec(0u64..30, 2..20), second in prop::collection::vec(0u64..30, 2..20)) {
            let unique = |keys: Vec<u64>| -> Vec<u64> {
                let mut seen = std::collections::HashSet::new();
                keys.into_iter().filter(|key| seen.insert(*key)).collect()
            };
            let (first, second) = (hits(&unique(first)), hits(&unique(second)));
            let legs = [Leg { hits: &first, weight: 1.0 }, Leg { hits: &second, weight: 2.0 }];
            let fused = reciprocal_rank_fusion(&legs, 60.0, 100);
            for (at, better) in fused.iter().enumerate() {
                for worse in &fused[at + 1..] {
                    let beaten = better.places.iter().zip(&worse.places).all(|(a, b)| match (a, b) {
                        (Some(a), Some(b)) => a.rank > b.rank,
                        (None, _) => true,
                        (Some(_), None) => false,
                    });
                    prop_assert!(!beaten || better.places == worse.places);
                }
            }
        }
    }
}
