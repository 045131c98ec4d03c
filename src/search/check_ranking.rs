//! Which ranking a search asks for, checked: what goes with it, and what contradicts it.

use expandr_index::SearchMode;
use serde::Serialize;

use super::check::{SearchLimits, wrong};
use super::request::{ExpansionChoice, ExpansionMode, HybridRequest, MAX_TOP_K, Ranking, SearchRequest};
use crate::http::problem::FieldError;

/// Hits of each ranking that `hybrid` fuses when the client doesn't say, unless `top_k` is more.
pub const HYBRID_DEPTH: usize = 100;

/// What ranks, with everything that it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CheckedRanking {
    /// The inner product of vectors.
    Dense,
    /// BM25 over words.
    Lexical,
    /// Both, fused by their ranks.
    Hybrid(Fusion),
}

/// How two rankings are fused.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fusion {
    /// How little the first ranks count more than the others.
    pub k: f64,
    /// Weight of the ranking by vectors.
    pub dense_weight: f64,
    /// Weight of the ranking by words.
    pub lexical_weight: f64,
    /// How many hits of each ranking are fused.
    pub depth: usize,
}

impl CheckedRanking {
    /// Without its details.
    pub fn kind(self) -> Ranking {
        match self {
            Self::Dense => Ranking::Dense,
            Self::Lexical => Ranking::Lexical,
            Self::Hybrid(_) => Ranking::Hybrid,
        }
    }
}

impl SearchRequest {
    pub(super) fn check_ranking(
        &self,
        limits: &SearchLimits,
        top_k: usize,
        errors: &mut Vec<FieldError>,
    ) -> CheckedRanking {
        let ranking = self.ranking.unwrap_or(limits.default_ranking);
        if ranking != Ranking::Dense && !limits.lexical {
            let detail = format!(
                "{} needs the lexical index, which this server runs without; use dense, or start the server with --lexical on",
                ranking.name()
            );
            errors.push(wrong("/ranking", detail));
        }
        if self.hybrid.is_some() && ranking != Ranking::Hybrid {
            let detail = format!(
                "is for ranking hybrid, this search is {}; set \"ranking\": \"hybrid\", or leave it out",
                ranking.name()
            );
            errors.push(wrong("/hybrid", detail));
        }
        match ranking {
            Ranking::Dense => CheckedRanking::Dense,
            Ranking::Lexical => CheckedRanking::Lexical,
            Ranking::Hybrid => {
                CheckedRanking::Hybrid(check_fusion(self.hybrid.unwrap_or_default(), top_k, errors))
            }
        }
    }

    /// Lexical ranking uses the query's words alone: what only searches by vector have is a contradiction.
    pub(super) fn refuse_expansion(&self, errors: &mut Vec<FieldError>) {
        let asked = match &self.expansion {
            None | Some(ExpansionChoice::Simple(false)) => false,
            Some(ExpansionChoice::Simple(true)) => true,
            Some(ExpansionChoice::Detailed(expansion)) => expansion.mode != Some(ExpansionMode::Off),
        };
        if asked {
            let detail = "ranking lexical uses no expansion; leave it out, or use ranking dense or hybrid";
            errors.push(wrong("/expansion", detail.to_owned()));
        }
        let detail = "is for searches by vector, and ranking lexical has none; leave it out, or use ranking dense or hybrid";
        if self.search_mode != SearchMode::Auto {
            errors.push(wrong("/search_mode", detail.to_owned()));
        }
        if self.ef.is_some() {
            errors.push(wrong("/ef", detail.to_owned()));
        }
    }
}

fn check_fusion(request: HybridRequest, top_k: usize, errors: &mut Vec<FieldError>) -> Fusion {
    let fusion = Fusion {
        k: request.k.unwrap_or(60.0),
        dense_weight: request.dense_weight.unwrap_or(1.0),
        lexical_weight: request.lexical_weight.unwrap_or(1.0),
        depth: request.depth.unwrap_or(HYBRID_DEPTH.max(top_k)),
    };
    if !(1.0..=10_000.0).contains(&fusion.k) {
        errors.push(wrong("/hybrid/k", format!("{} is not between 1 and 10000", fusion.k)));
    }
    let weights = [("dense_weight", fusion.dense_weight), ("lexical_weight", fusion.lexical_weight)];
    for (name, weight) in weights {
        if !(0.0..=1000.0).contains(&weight) {
            errors.push(wrong(format!("/hybrid/{name}"), format!("{weight} is not between 0 and 1000")));
        }
    }
    if weights.iter().all(|(_, weight)| *weight == 0.0) {
        errors.push(wrong("/hybrid", "both weights are 0; give one of the rankings some weight".to_owned()));
    }
    if !(top_k..=MAX_TOP_K).contains(&fusion.depth) {
        let detail = format!("{} is not between top_k ({top_k}) and {MAX_TOP_K}", fusion.depth);
        errors.push(wrong("/hybrid/depth", detail));
    }
    fusion
}

#[cfg(test)]
mod tests {
    use super::super::check::tests::{check, grounds, limits, pointers};
    use super::*;
    use crate::http::body::parse;

    #[test]
    fn rankings_have_defaults_and_limits() {
        assert_eq!(check(r#"{"query":"q"}"#).unwrap().ranking, CheckedRanking::Dense);
        let plain = Fusion { k: 60.0, dense_weight: 1.0, lexical_weight: 1.0, depth: 100 };
        let hybrid = |body: &str| check(body).unwrap().ranking;
        assert_eq!(hybrid(r#"{"query":"q","ranking":"hybrid"}"#), CheckedRanking::Hybrid(plain));
        let deep = r#"{"query":"q","ranking":"hybrid","top_k":300,"hybrid":{"k":10,"lexical_weight":0}}"#;
        let expected = Fusion { k: 10.0, lexical_weight: 0.0, depth: 300, ..plain };
        assert_eq!(hybrid(deep), CheckedRanking::Hybrid(expected));
        for (hybrid, pointer) in [
            (r#"{"k":0}"#, "/hybrid/k"),
            (r#"{"dense_weight":-1}"#, "/hybrid/dense_weight"),
            (r#"{"dense_weight":0,"lexical_weight":0}"#, "/hybrid"),
            (r#"{"depth":9}"#, "/hybrid/depth"),
            (r#"{"depth":1001}"#, "/hybrid/depth"),
            (r#"{"weights":1}"#, "/hybrid/weights"),
        ] {
            let body = format!(r#"{{"query":"q","ranking":"hybrid","hybrid":{hybrid}}}"#);
            assert_eq!(pointers(&body), [pointer], "{hybrid}");
        }
        assert_eq!(pointers(r#"{"query":"q","ranking":"bm25"}"#), ["/ranking"]);
        assert_eq!(pointers(r#"{"query":"q","hybrid":{}}"#), ["/hybrid"]);
    }

    #[test]
    fn lexical_ranking_contradicts_what_is_for_vectors() {
        let lexical = |rest: &str| format!(r#"{{"query":"q","ranking":"lexical"{rest}}}"#);
        for agreeable in
            ["", r#","expansion":false"#, r#","expansion":{"mode":"off"}"#, r#","search_mode":"auto""#]
        {
            let search = check(&lexical(agreeable)).unwrap();
            assert!(search.ranking == CheckedRanking::Lexical && search.expansion.is_none());
        }
        for (rest, pointer) in [
            (r#","expansion":true"#, "/expansion"),
            (r#","expansion":{"max_tokens":8}"#, "/expansion"),
            (r#","search_mode":"exact""#, "/search_mode"),
            (r#","ef":10"#, "/ef"),
        ] {
            assert_eq!(pointers(&lexical(rest)), [pointer], "{rest}");
        }
        let off = SearchLimits { lexical: false, ..limits() };
        let request =
            |body: &str| parse::<SearchRequest>(body.as_bytes()).unwrap().check(&off, &grounds(&off, None));
        let problem = request(&lexical("")).unwrap_err();
        assert!(problem.detail.contains("--lexical on"), "{}", problem.detail);
        assert!(request(r#"{"query":"q"}"#).is_ok());
    }
}
