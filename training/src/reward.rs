//! The paper's reward for an expansion, and the choice of the pair that DPO learns from.
//!
//! Everything here works on plain similarities: the caller embeds and multiplies. For one query with k candidate
//! expansions there are two lists of k numbers: sim(y, d_i) with the answer y that the language model gave knowing
//! the gold document (Eq. 12), and sim(d*, d_i) with the gold document d* itself.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which terms of Eq. 11 count; the paper's ablation (Table 3) leaves out one or the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardTerms {
    /// R = R_self + R_retriever.
    #[default]
    Both,
    /// R = R_self: rank by the answer alone ("w/o Retriever Reward").
    SelfOnly,
    /// R = R_retriever: rank by the gold document alone ("w/o Self-Reward").
    RetrieverOnly,
}

/// Which queries are worth learning from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Filter {
    /// All.
    #[default]
    None,
    /// Those whose best candidate reaches this value of sim(y, d_i) + sim(d*, d_i) (the paper's code: 0.6).
    AnswerPlusGold(f32),
    /// Those with a candidate whose similarity to the query reaches this value (the paper's text, which names no value).
    Query(f32),
}

/// Similarities of the k candidates of one query.
#[derive(Clone, Copy, Debug)]
pub struct Similarities<'a> {
    /// sim(y, d_i), y being the answer.
    pub answer: &'a [f32],
    /// sim(d*, d_i), d* being the gold document.
    pub gold: &'a [f32],
    /// sim(q, d_i); only [`Filter::Query`] needs it.
    pub query: Option<&'a [f32]>,
}

/// The candidates that DPO gets for a query, as indices (Eq. 16).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preference {
    /// The candidate of the highest reward.
    pub chosen: usize,
    /// The candidate of the lowest reward.
    pub rejected: usize,
    /// R of the chosen one.
    pub chosen_reward: f32,
    /// R of the rejected one.
    pub rejected_reward: f32,
}

/// 1 / rank of each candidate by similarity, the most similar having rank 1 (Eq. 13 and 14). Equal similarities
/// share the better rank, so that the order of the candidates does not matter.
///
/// # Errors
/// When a similarity is not finite.
pub fn reciprocal_ranks(similarities: &[f32]) -> Result<Vec<f32>> {
    if let Some(index) = similarities.iter().position(|similarity| !similarity.is_finite()) {
        return Err(Error::Input(format!(
            "the similarity of candidate {index} is {}; embed it again, an encoder must give finite vectors",
            similarities[index]
        )));
    }
    let mut sorted = similarities.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let rank = |similarity: f32| sorted.partition_point(|other| *other > similarity) + 1;
    Ok(similarities.iter().map(|similarity| 1.0 / rank(*similarity) as f32).collect())
}

/// R(d_i) of each candidate (Eq. 11).
///
/// # Errors
/// When the two lists differ in length or a similarity is not finite.
pub fn rewards(similarities: &Similarities<'_>, terms: RewardTerms) -> Result<Vec<f32>> {
    let lengths_differ = similarities.query.is_some_and(|query| query.len() != similarities.gold.len());
    if similarities.answer.len() != similarities.gold.len() || lengths_differ {
        return Err(Error::Input(format!(
            "{} similarities with the answer, {} with the gold document; every candidate needs one of each kind",
            similarities.answer.len(),
            similarities.gold.len()
        )));
    }
    let by_answer = reciprocal_ranks(similarities.answer)?;
    let by_gold = reciprocal_ranks(similarities.gold)?;
    Ok(match terms {
        RewardTerms::Both => by_answer.iter().zip(&by_gold).map(|(answer, gold)| answer + gold).collect(),
        RewardTerms::SelfOnly => by_answer,
        RewardTerms::RetrieverOnly => by_gold,
    })
}

/// What is to be learnt from one query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The filter drops it.
    Filtered,
    /// All rewards are equal, or there is but one candidate.
    NothingToPrefer,
    /// This.
    Prefer(Preference),
}

/// The preference pair of one query (Eq. 16): chosen = argmax R, rejected = argmin R. Among equal rewards the sum of
/// the two similarities decides (higher for chosen, lower for rejected), then the position.
///
/// # Errors
/// As [`rewards`], and when the filter needs similarities with the query that are not given.
pub fn judge(similarities: &Similarities<'_>, terms: RewardTerms, filter: Filter) -> Result<Verdict> {
    let rewards = rewards(similarities, terms)?;
    if !keeps(filter, similarities)? {
        return Ok(Verdict::Filtered);
    }
    let closeness = |index: usize| similarities.answer[index] + similarities.gold[index];
    let mut order: Vec<usize> = (0..rewards.len()).collect();
    order.sort_by(|a, b| {
        rewards[*b].total_cmp(&rewards[*a]).then_with(|| closeness(*b).total_cmp(&closeness(*a)))
    });
    let (Some(&chosen), Some(&rejected)) = (order.first(), order.last()) else {
        return Ok(Verdict::NothingToPrefer);
    };
    if rewards[chosen] <= rewards[rejected] {
        return Ok(Verdict::NothingToPrefer);
    }
    Ok(Verdict::Prefer(Preference {
        chosen,
        rejected,
        chosen_reward: rewards[chosen],
        rejected_reward: rewards[rejected],
    }))
}

fn keeps(filter: Filter, similarities: &Similarities<'_>) -> Result<bool> {
    match filter {
        Filter::None => Ok(true),
        Filter::AnswerPlusGold(threshold) => {
            let sums = similarities.answer.iter().zip(similarities.gold).map(|(answer, gold)| answer + gold);
            Ok(sums.fold(f32::NEG_INFINITY, f32::max) >= threshold)
        }
        Filter::Query(threshold) => match similarities.query {
            Some(query) => Ok(query.iter().any(|similarity| *similarity >= threshold)),
            None => Err(Error::Input(
                "the filter by similarity to the query needs those similarities; embed the query too".into(),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By answer the ranks are 2, 1, 4, 3; by gold document 1, 3, 2, 4.
    const ANSWER: [f32; 4] = [0.5, 0.9, 0.1, 0.3];
    const GOLD: [f32; 4] = [0.8, 0.4, 0.6, 0.2];

    fn both() -> Similarities<'static> {
        Similarities { answer: &ANSWER, gold: &GOLD, query: None }
    }

    fn close(ours: &[f32], expected: &[f32]) -> bool {
        ours.len() == expected.len() && ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
    }

    #[test]
    fn rewards_are_the_sum_of_reciprocal_ranks() {
        let sum = rewards(&both(), RewardTerms::Both).unwrap();
        assert!(close(&sum, &[0.5 + 1.0, 1.0 + 1.0 / 3.0, 0.25 + 0.5, 1.0 / 3.0 + 0.25]), "{sum:?}");
        assert!(close(&rewards(&both(), RewardTerms::SelfOnly).unwrap(), &[0.5, 1.0, 0.25, 1.0 / 3.0]));
        assert!(close(&rewards(&both(), RewardTerms::RetrieverOnly).unwrap(), &[1.0, 1.0 / 3.0, 0.5, 0.25]));
    }

    #[test]
    fn equal_similarities_share_the_better_rank() {
        assert!(close(&reciprocal_ranks(&[0.5, 0.9, 0.5, 0.1]).unwrap(), &[0.5, 1.0, 0.5, 0.25]));
        assert!(reciprocal_ranks(&[]).unwrap().is_empty());
    }

    fn prefer(
        similarities: &Similarities<'_>,
        terms: RewardTerms,
        filter: Filter,
    ) -> Result<Option<Preference>> {
        judge(similarities, terms, filter).map(|verdict| match verdict {
            Verdict::Prefer(preference) => Some(preference),
            Verdict::Filtered | Verdict::NothingToPrefer => None,
        })
    }

    #[test]
    fn the_best_is_chosen_and_the_worst_rejected() {
        let preference = |terms| prefer(&both(), terms, Filter::None).unwrap().unwrap();
        let sum = preference(RewardTerms::Both);
        assert_eq!((sum.chosen, sum.rejected), (0, 3));
        assert!((sum.chosen_reward - 1.5).abs() < 1e-6 && (sum.rejected_reward - 7.0 / 12.0).abs() < 1e-6);
        let own = preference(RewardTerms::SelfOnly);
        assert_eq!((own.chosen, own.rejected), (1, 2));
    }

    #[test]
    fn equal_rewards_are_settled_by_closeness() {
        // First and second have 1 + 1/2 each.
        let similarities = Similarities { answer: &[0.9, 0.8, 0.1], gold: &[0.5, 0.7, 0.1], query: None };
        let preference = prefer(&similarities, RewardTerms::Both, Filter::None).unwrap().unwrap();
        assert_eq!((preference.chosen, preference.rejected), (1, 2));
    }

    #[test]
    fn nothing_to_prefer() {
        for (answer, gold) in
            [(&[][..], &[][..]), (&[0.5][..], &[0.5][..]), (&[0.5, 0.5][..], &[0.2, 0.2][..])]
        {
            let similarities = Similarities { answer, gold, query: None };
            assert_eq!(prefer(&similarities, RewardTerms::Both, Filter::None).unwrap(), None);
        }
    }

    #[test]
    fn filters_drop_queries_without_a_good_candidate() {
        let keeps = |filter, query| {
            let similarities = Similarities { query, ..both() };
            prefer(&similarities, RewardTerms::Both, filter).map(|preference| preference.is_some())
        };
        assert!(keeps(Filter::AnswerPlusGold(1.29), None).unwrap());
        assert!(!keeps(Filter::AnswerPlusGold(1.31), None).unwrap());
        assert_eq!(
            judge(&both(), RewardTerms::Both, Filter::AnswerPlusGold(1.31)).unwrap(),
            Verdict::Filtered
        );
        let query = [0.1, 0.2, 0.3, 0.2];
        assert!(keeps(Filter::Query(0.3), Some(&query)).unwrap());
        assert!(!keeps(Filter::Query(0.31), Some(&query)).unwrap());
        assert!(keeps(Filter::Query(0.3), None).unwrap_err().to_string().contains("embed the query too"));
    }

    #[test]
    fn broken_similarities_are_refused() {
        let uneven = Similarities { answer: &[0.1], gold: &[0.1, 0.2], query: None };
        assert!(
            rewards(&uneven, RewardTerms::Both)
                .unwrap_err()
                .to_string()
                .contains("1 similarities with the answer, 2")
        );
        let nan = Similarities { answer: &[0.1, f32::NAN], gold: &[0.1, 0.2], query: None };
        assert!(rewards(&nan, RewardTerms::Both).unwrap_err().to_string().contains("candidate 1 is NaN"));
    }
}
