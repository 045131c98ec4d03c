//! A search whose every value was checked against the server's limits, with the server's defaults filled in.

use expandr_index::{Filter, SearchMode};
use expandr_models::Sampling;
use serde::Serialize;

use super::request::{
    ExpansionChoice, ExpansionMode, ExpansionRequest, HybridRequest, MAX_EXPANSIONS, MAX_TOP_K, OnFailure,
    Ranking, SearchRequest,
};
use crate::http::problem::{FieldError, Problem};

/// What the server grants and what it does when the client says nothing.
#[derive(Clone, Debug)]
pub struct SearchLimits {
    /// Longest query in bytes.
    pub query_bytes: usize,
    /// Longest supplied expansion text in bytes.
    pub expansion_text_bytes: usize,
    /// Most tokens of a passage.
    pub max_tokens: usize,
    /// Tokens of a passage when the client doesn't say.
    pub default_max_tokens: usize,
    /// Deadline of a request when the client doesn't say, and the most it may ask for, in milliseconds.
    pub timeout_ms: u64,
    /// Budget of an expansion when the client doesn't say, in milliseconds.
    pub expansion_timeout_ms: u64,
    /// Whether to expand when the client doesn't say.
    pub expand_by_default: bool,
    /// What ranks when the client doesn't say.
    pub default_ranking: Ranking,
    /// Whether documents can be searched by their words.
    pub lexical: bool,
}

/// Hits of each ranking that `hybrid` fuses when the client doesn't say, unless `top_k` is more.
pub const HYBRID_DEPTH: usize = 100;

/// A search whose every value was checked.
#[derive(Clone, Debug)]
pub struct CheckedSearch {
    /// The query as given.
    pub query: String,
    /// How many hits.
    pub top_k: usize,
    /// What ranks the documents.
    pub ranking: CheckedRanking,
    /// How to expand; none: not at all.
    pub expansion: Option<CheckedExpansion>,
    /// Only documents whose metadata matches.
    pub filter: Option<Filter>,
    /// Whether to say per hit how it was found.
    pub explain: bool,
    /// Whether hits carry title, text and metadata of their documents.
    pub include_text: bool,
    /// Which way the index searches.
    pub search_mode: SearchMode,
    /// How many candidates the HNSW graph keeps.
    pub ef: Option<usize>,
    /// Deadline of the whole request in milliseconds.
    pub timeout_ms: u64,
}

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

/// An expansion whose every value was checked.
#[derive(Clone, Debug)]
pub struct CheckedExpansion {
    /// Passages to use instead of generating some.
    pub texts: Option<Vec<String>>,
    /// How many passages to write.
    pub count: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Budget in milliseconds.
    pub timeout_ms: u64,
    /// Share of the query in the averaged vector.
    pub query_weight: f32,
    /// What to do when no expansion came.
    pub on_failure: OnFailure,
}

impl SearchRequest {
    /// Checks every value and fills in the server's defaults.
    ///
    /// # Errors
    /// `invalid_request` that lists everything that is wrong.
    pub fn check(self, limits: &SearchLimits) -> Result<CheckedSearch, Problem> {
        let mut errors = Vec::new();
        check_query(&self.query, limits.query_bytes, &mut errors);
        let top_k = self.top_k.unwrap_or(10);
        if !(1..=MAX_TOP_K).contains(&top_k) {
            errors.push(wrong("/top_k", format!("{top_k} is not between 1 and {MAX_TOP_K}")));
        }
        if let Some(ef) = self.ef
            && !(1..=10_000).contains(&ef)
        {
            errors.push(wrong("/ef", format!("{ef} is not between 1 and 10000")));
        }
        let timeout_ms = self.timeout_ms.unwrap_or(limits.timeout_ms);
        if !(1..=limits.timeout_ms).contains(&timeout_ms) {
            let detail =
                format!("{timeout_ms} is not between 1 and {} (the server's limit)", limits.timeout_ms);
            errors.push(wrong("/timeout_ms", detail));
        }
        let ranking = self.check_ranking(limits, top_k, &mut errors);
        let expansion = if ranking == CheckedRanking::Lexical {
            self.refuse_expansion(&mut errors);
            None
        } else {
            check_expansion(self.expansion, limits, &mut errors)
        };
        if !errors.is_empty() {
            return Err(Problem::fields(errors));
        }
        Ok(CheckedSearch {
            query: self.query,
            top_k,
            ranking,
            expansion,
            filter: self.filter,
            explain: self.explain,
            include_text: self.include_text,
            search_mode: self.search_mode,
            ef: self.ef,
            timeout_ms,
        })
    }

    fn check_ranking(
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
    fn refuse_expansion(&self, errors: &mut Vec<FieldError>) {
        let asked = match &self.expansion {
            None | Some(ExpansionChoice::Simple(false)) => false,
            Some(ExpansionChoice::Simple(true)) => true,
            Some(ExpansionChoice::Detailed(expansion)) => expansion.mode == ExpansionMode::Always,
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

/// Checks an `expansion` value; none means that it is off.
pub fn check_expansion(
    choice: Option<ExpansionChoice>,
    limits: &SearchLimits,
    errors: &mut Vec<FieldError>,
) -> Option<CheckedExpansion> {
    let request = match choice {
        None if limits.expand_by_default => ExpansionRequest::default(),
        Some(ExpansionChoice::Simple(true)) => ExpansionRequest::default(),
        None | Some(ExpansionChoice::Simple(false)) => return None,
        Some(ExpansionChoice::Detailed(request)) => *request,
    };
    let before = errors.len();
    let temperature = request.temperature.unwrap_or(0.0);
    let count = request.count.unwrap_or(1);
    let max_tokens = request.max_tokens.unwrap_or(limits.default_max_tokens);
    let top_p = request.top_p.unwrap_or(if temperature == 0.0 { 1.0 } else { 0.9 });
    let timeout_ms = request.timeout_ms.unwrap_or(limits.expansion_timeout_ms);
    let query_weight = request.query_weight.unwrap_or(0.5);
    let mut require = |holds: bool, field: &str, detail: String| {
        if !holds {
            errors.push(wrong(format!("/expansion/{field}"), detail));
        }
    };
    require(
        (1..=MAX_EXPANSIONS).contains(&count),
        "count",
        format!("{count} is not between 1 and {MAX_EXPANSIONS}"),
    );
    require(
        count == 1 || temperature > 0.0 || request.texts.is_some(),
        "count",
        format!("{count} greedy passages would be {count} times the same one; set a temperature above 0"),
    );
    require(
        (1..=limits.max_tokens).contains(&max_tokens),
        "max_tokens",
        format!("{max_tokens} is not between 1 and {} (the server's limit)", limits.max_tokens),
    );
    require(
        (0.0..=2.0).contains(&temperature),
        "temperature",
        format!("{temperature} is not between 0 and 2"),
    );
    require(top_p > 0.0 && top_p <= 1.0, "top_p", format!("{top_p} is not above 0 and at most 1"));
    require(
        (1..=limits.timeout_ms).contains(&timeout_ms),
        "timeout_ms",
        format!("{timeout_ms} is not between 1 and {} (the server's limit)", limits.timeout_ms),
    );
    require(
        (0.0..=1.0).contains(&query_weight),
        "query_weight",
        format!("{query_weight} is not between 0 and 1"),
    );
    if let Some(texts) = &request.texts {
        check_texts(texts, request.count, limits.expansion_text_bytes, &mut require);
    }
    if request.mode == ExpansionMode::Off || errors.len() > before {
        return None;
    }
    Some(CheckedExpansion {
        texts: request.texts,
        count,
        sampling: Sampling { max_tokens, temperature, top_p, seed: request.seed },
        timeout_ms,
        query_weight,
        on_failure: request.on_failure,
    })
}

fn check_texts(
    texts: &[String],
    count: Option<usize>,
    longest: usize,
    require: &mut impl FnMut(bool, &str, String),
) {
    require(
        (1..=MAX_EXPANSIONS).contains(&texts.len()),
        "texts",
        format!("{} texts are not between 1 and {MAX_EXPANSIONS}", texts.len()),
    );
    require(
        count.is_none_or(|count| count == texts.len()),
        "count",
        "does not agree with the number of texts; leave it out when texts are supplied".to_owned(),
    );
    for (i, text) in texts.iter().enumerate() {
        let field = format!("texts/{i}");
        require(!text.trim().is_empty(), &field, "is blank; leave it out".to_owned());
        require(text.len() <= longest, &field, format!("has {} bytes, the limit is {longest}", text.len()));
    }
}

/// Checks a query's length.
pub fn check_query(query: &str, longest: usize, errors: &mut Vec<FieldError>) {
    if query.trim().is_empty() {
        errors.push(wrong("/query", "is blank; say what to search for".to_owned()));
    }
    if query.len() > longest {
        errors.push(wrong("/query", format!("has {} bytes, the limit is {longest}", query.len())));
    }
}

fn wrong(pointer: impl Into<String>, detail: String) -> FieldError {
    FieldError { pointer: pointer.into(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::parse;

    fn limits() -> SearchLimits {
        SearchLimits {
            query_bytes: 100,
            expansion_text_bytes: 1000,
            max_tokens: 256,
            default_max_tokens: 64,
            timeout_ms: 10_000,
            expansion_timeout_ms: 5_000,
            expand_by_default: true,
            default_ranking: Ranking::Dense,
            lexical: true,
        }
    }

    fn check(body: &str) -> Result<CheckedSearch, Problem> {
        parse::<SearchRequest>(body.as_bytes())?.check(&limits())
    }

    fn pointers(body: &str) -> Vec<String> {
        check(body).unwrap_err().errors.into_iter().map(|e| e.pointer).collect()
    }

    #[test]
    fn defaults_are_the_papers() {
        let search = check(r#"{"query":"why is the sky blue"}"#).unwrap();
        let expansion = search.expansion.unwrap();
        assert_eq!(search.top_k, 10);
        assert_eq!(expansion.query_weight, 0.5);
        assert_eq!(expansion.sampling, Sampling::greedy(64));
        assert_eq!(expansion.on_failure, OnFailure::Degrade);
    }

    #[test]
    fn expansion_takes_all_its_forms() {
        assert!(check(r#"{"query":"q","expansion":true}"#).unwrap().expansion.is_some());
        assert!(check(r#"{"query":"q","expansion":false}"#).unwrap().expansion.is_none());
        assert!(check(r#"{"query":"q","expansion":{"mode":"off"}}"#).unwrap().expansion.is_none());
        let sampled = check(r#"{"query":"q","expansion":{"count":3,"temperature":1,"seed":7}}"#).unwrap();
        let expansion = sampled.expansion.unwrap();
        assert_eq!((expansion.count, expansion.sampling.top_p, expansion.sampling.seed), (3, 0.9, Some(7)));
    }

    #[test]
    fn top_k_has_aliases() {
        for field in ["top_k", "limit", "k"] {
            assert_eq!(check(&format!(r#"{{"query":"q","{field}":7}}"#)).unwrap().top_k, 7);
        }
    }

    #[test]
    fn everything_wrong_is_reported_at_once() {
        let body = r#"{"query":" ","top_k":0,"timeout_ms":99999,"expansion":{"count":2,"query_weight":1.5}}"#;
        assert_eq!(
            pointers(body),
            ["/query", "/top_k", "/timeout_ms", "/expansion/count", "/expansion/query_weight"]
        );
    }

    #[test]
    fn nested_values_are_pointed_at() {
        assert_eq!(pointers(r#"{"query":"q","expansion":{"max_tokens":"many"}}"#), ["/expansion/max_tokens"]);
        assert_eq!(pointers(r#"{"query":"q","expansion":{"colour":1}}"#), ["/expansion/colour"]);
        assert_eq!(pointers(r#"{"query":"q","expansion":"yes"}"#), ["/expansion"]);
        assert_eq!(pointers(r#"{"query":"q","expansion":{"texts":["a"," "]}}"#), ["/expansion/texts/1"]);
    }

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
        let request = |body: &str| parse::<SearchRequest>(body.as_bytes()).unwrap().check(&off);
        let problem = request(&lexical("")).unwrap_err();
        assert!(problem.detail.contains("--lexical on"), "{}", problem.detail);
        assert!(request(r#"{"query":"q"}"#).is_ok());
    }

    #[test]
    fn cost_counts_texts() {
        let cost = |body: &str| parse::<SearchRequest>(body.as_bytes()).unwrap().cost();
        assert_eq!(cost(r#"{"query":"q"}"#), 1);
        assert_eq!(cost(r#"{"query":"q","expansion":{"count":4,"temperature":1}}"#), 4);
        assert_eq!(cost(r#"{"query":"q","expansion":{"count":4000000000}}"#), MAX_EXPANSIONS);
        assert_eq!(cost(r#"{"query":"q","expansion":{"mode":"off","count":4}}"#), 1);
    }
}
