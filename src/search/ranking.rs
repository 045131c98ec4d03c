//! From what was found by vector and by words to one ranked list.

use expandr_index::{Hit, Leg, LegPlace, reciprocal_rank_fusion};

use expandr_models::gate;

use super::{
    answer::Place,
    check::CheckedSearch,
    check_ranking::{CheckedRanking, Fusion},
};

/// A document of the answer, with its place in each ranking that there was; none inside where that did not have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranked {
    pub(super) hit: Hit,
    pub(super) dense: Option<Option<Place>>,
    pub(super) lexical: Option<Option<Place>>,
}

/// Raw hits that `explain` ranks, at least.
const EXPLAINED_RAW_HITS: usize = 100;

/// Hits that are compared with and without expansion.
const COMPARED_HITS: usize = 10;

/// How many hits of the ranking by vectors the answer is made of.
fn dense_depth(request: &CheckedSearch) -> usize {
    match request.ranking {
        CheckedRanking::Hybrid(fusion) => fusion.depth,
        CheckedRanking::Dense | CheckedRanking::Lexical => request.top_k,
    }
}

/// How many hits to look for with the query alone.
pub(super) fn raw_depth(request: &CheckedSearch) -> usize {
    let explained = if request.explain { EXPLAINED_RAW_HITS } else { 0 };
    let compared = if request.expansion.is_some() { COMPARED_HITS.max(gate::DEPTH) } else { 0 };
    dense_depth(request).max(explained).max(compared)
}

/// How many hits to look for with the averaged vector.
pub(super) fn expanded_depth(request: &CheckedSearch) -> usize {
    dense_depth(request).max(COMPARED_HITS)
}

/// Share of the ten best expanded hits (all, if there are fewer) that are among the ten best raw ones; none without hits.
pub(super) fn overlap(raw: &[Hit], expanded: &[Hit]) -> Option<f32> {
    let raw = &raw[..raw.len().min(COMPARED_HITS)];
    let expanded = &expanded[..expanded.len().min(COMPARED_HITS)];
    let common = expanded.iter().filter(|hit| raw.iter().any(|other| other.key == hit.key)).count();
    (!expanded.is_empty()).then(|| common as f32 / expanded.len() as f32)
}

/// One ranking as it is.
pub(super) fn by_vectors(mut hits: Vec<Hit>, top_k: usize) -> Vec<Ranked> {
    hits.truncate(top_k);
    let ranked = |(hit, place)| Ranked { hit, dense: Some(Some(place)), lexical: None };
    with_places(hits).map(ranked).collect()
}

/// One ranking as it is.
pub(super) fn by_words(hits: Vec<Hit>) -> Vec<Ranked> {
    let ranked = |(hit, place)| Ranked { hit, dense: None, lexical: Some(Some(place)) };
    with_places(hits).map(ranked).collect()
}

fn with_places(hits: Vec<Hit>) -> impl Iterator<Item = (Hit, Place)> {
    hits.into_iter().zip(1..).map(|(hit, rank)| (hit, Place { rank, score: hit.score }))
}

/// Both rankings fused.
pub(super) fn fuse(dense: &[Hit], lexical: &[Hit], fusion: Fusion, top_k: usize) -> Vec<Ranked> {
    let dense = &dense[..dense.len().min(fusion.depth)];
    let lexical = &lexical[..lexical.len().min(fusion.depth)];
    let legs = [
        Leg { hits: dense, weight: fusion.dense_weight },
        Leg { hits: lexical, weight: fusion.lexical_weight },
    ];
    let place = |place: Option<&Option<LegPlace>>| {
        place.copied().flatten().map(|place| Place { rank: place.rank, score: place.score })
    };
    reciprocal_rank_fusion(&legs, fusion.k, top_k)
        .into_iter()
        .map(|fused| Ranked {
            hit: fused.hit,
            dense: Some(place(fused.places.first())),
            lexical: Some(place(fused.places.get(1))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(keys: impl IntoIterator<Item = u64>) -> Vec<Hit> {
        keys.into_iter().map(|key| Hit { key, score: 0.5 }).collect()
    }

    #[test]
    fn overlap_compares_the_ten_best() {
        assert_eq!(overlap(&hits(0..100), &hits(5..50)), Some(0.5));
        assert_eq!(overlap(&hits(0..3), &hits([2, 1, 7])), Some(2.0 / 3.0));
        assert_eq!(overlap(&hits([]), &hits([])), None);
        assert_eq!(overlap(&hits(10..30), &hits(0..10)), Some(0.0));
    }

    #[test]
    fn only_depth_hits_of_each_ranking_are_fused() {
        let fusion = Fusion { k: 60.0, dense_weight: 1.0, lexical_weight: 1.0, depth: 2 };
        let fused = fuse(&hits([1, 2, 3]), &hits([4, 3, 1]), fusion, 10);
        let keys: Vec<u64> = fused.iter().map(|ranked| ranked.hit.key).collect();
        assert_eq!(keys, [1, 4, 2, 3]);
        assert_eq!(
            (fused[0].dense, fused[0].lexical),
            (Some(Some(Place { rank: 1, score: 0.5 })), Some(None))
        );
    }
}
