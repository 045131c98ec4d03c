//! A search whose every value was checked against the server's limits, with the server's defaults filled in.

use expandr_index::{Filter, SearchMode};
use expandr_models::{Sampling, bundle::Defaults, expander::MAX_EXPANSIONS};

use super::check_ranking::CheckedRanking;
use super::defaults::Grounds;
use super::request::{
    ExpansionChoice, ExpansionMode, ExpansionRequest, MAX_TOP_K, OnFailure, Ranking, SearchRequest,
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
    /// Deadline of a request when the client doesn't say, and the most it may ask for, in milliseconds.
    pub timeout_ms: u64,
    /// Budget of an expansion when the client doesn't say, in milliseconds.
    pub expansion_timeout_ms: u64,
    /// What the server's flags say about searches that don't say; what they leave open is the bundle's to say.
    pub flags: Defaults,
    /// What ranks when the client doesn't say.
    pub default_ranking: Ranking,
    /// Whether documents can be searched by their words.
    pub lexical: bool,
}

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

/// An expansion whose every value was checked.
#[derive(Clone, Debug)]
pub struct CheckedExpansion {
    /// Whether the bundle's gate decides, by the raw hits, if it happens at all.
    pub gated: bool,
    /// Passages to use instead of generating some.
    pub texts: Option<Vec<String>>,
    /// How many passages to write; 1 where they are supplied.
    pub count: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Budget in milliseconds.
    pub timeout_ms: u64,
    /// Share of the query in the averaged vector.
    pub query_weight: f32,
    /// Whether each passage is embedded behind the query, as one text.
    pub joint_encoding: bool,
    /// What to do when no expansion came.
    pub on_failure: OnFailure,
}

impl CheckedSearch {
    /// Texts that this search embeds or generates at once: what it costs in permits.
    pub fn cost(&self) -> usize {
        self.expansion.as_ref().map_or(1, CheckedExpansion::cost)
    }
}

impl CheckedExpansion {
    /// Passages that are written or were supplied: what the expansion costs in permits.
    pub fn cost(&self) -> usize {
        self.texts.as_ref().map_or(self.count, Vec::len)
    }
}

impl SearchRequest {
    /// Checks every value and fills in the defaults of server and bundle.
    ///
    /// # Errors
    /// `invalid_request` that lists everything that is wrong.
    pub fn check(self, limits: &SearchLimits, grounds: &Grounds<'_>) -> Result<CheckedSearch, Problem> {
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
            check_expansion(self.expansion, limits, grounds, &mut errors)
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
}

/// Checks an `expansion` value; none means that it is off.
pub fn check_expansion(
    choice: Option<ExpansionChoice>,
    limits: &SearchLimits,
    grounds: &Grounds<'_>,
    errors: &mut Vec<FieldError>,
) -> Option<CheckedExpansion> {
    let defaults = &grounds.defaults;
    let request = match choice {
        None if defaults.expansion != ExpansionMode::Off => ExpansionRequest::default(),
        Some(ExpansionChoice::Simple(true)) => ExpansionRequest::default(),
        None | Some(ExpansionChoice::Simple(false)) => return None,
        Some(ExpansionChoice::Detailed(request)) => *request,
    };
    let before = errors.len();
    let temperature = request.temperature.unwrap_or(defaults.temperature);
    // Greedy passages would all be the same.
    let one = temperature == 0.0 || request.texts.is_some();
    let count = request.count.unwrap_or(if one { 1 } else { defaults.count });
    let max_tokens = request.max_tokens.unwrap_or(defaults.max_tokens);
    let usual_top_p = if temperature == 0.0 { 1.0 } else { defaults.top_p.unwrap_or(0.9) };
    let top_p = request.top_p.unwrap_or(usual_top_p);
    let timeout_ms = request.timeout_ms.unwrap_or(limits.expansion_timeout_ms);
    let gated = match request.mode {
        Some(mode) => mode == ExpansionMode::Auto,
        None => defaults.expansion == ExpansionMode::Auto,
    };
    let gate = grounds.gate.filter(|_| gated);
    let fitted_for = gate.map(|gate| gate.query_weight() as f32);
    let query_weight = request.query_weight.or(defaults.query_weight).or(fitted_for).unwrap_or(0.5);
    let fitted_for = gate.map(|gate| gate.joint_encoding());
    let joint_encoding =
        request.joint_encoding.or(defaults.joint_encoding).or(fitted_for).unwrap_or_default();
    if gated && gate.is_none() {
        let detail = "auto needs a gate, and this server runs without one; start it with --gate FILE (stage gate of \
                      `expandr train` makes the file), or use always";
        errors.push(wrong("/expansion", detail.to_owned()));
    }
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
    if request.mode == Some(ExpansionMode::Off) || errors.len() > before {
        return None;
    }
    Some(CheckedExpansion {
        gated,
        texts: request.texts,
        count,
        sampling: Sampling { max_tokens, temperature, top_p, seed: request.seed },
        timeout_ms,
        query_weight,
        joint_encoding,
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

pub(super) fn wrong(pointer: impl Into<String>, detail: String) -> FieldError {
    FieldError { pointer: pointer.into(), detail }
}

#[cfg(test)]
pub(super) mod tests {
    use expandr_models::{
        bundle::ExpansionDefault,
        gate::{Combination, Gate},
    };

    use super::*;
    use crate::{http::body::parse, search::defaults::SearchDefaults};

    pub(in crate::search) fn limits() -> SearchLimits {
        SearchLimits {
            query_bytes: 100,
            expansion_text_bytes: 1000,
            max_tokens: 256,
            timeout_ms: 10_000,
            expansion_timeout_ms: 5_000,
            flags: Defaults::default(),
            default_ranking: Ranking::Dense,
            lexical: true,
        }
    }

    pub(in crate::search) fn grounds<'a>(limits: &SearchLimits, gate: Option<&'a Gate>) -> Grounds<'a> {
        Grounds { defaults: SearchDefaults::of(limits, Defaults::default(), true), gate }
    }

    pub(in crate::search) fn check(body: &str) -> Result<CheckedSearch, Problem> {
        parse::<SearchRequest>(body.as_bytes())?.check(&limits(), &grounds(&limits(), None))
    }

    pub(in crate::search) fn pointers(body: &str) -> Vec<String> {
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
    fn auto_needs_a_gate_and_takes_its_weight() {
        let with =
            Combination { encoder: "e".into(), expander: None, query_weight: 0.75, joint_encoding: true };
        let gate = Gate::fit(&[], with);
        let with_gate = |body: &str, limits: &SearchLimits| {
            let request = parse::<SearchRequest>(body.as_bytes()).unwrap();
            request.check(limits, &grounds(limits, Some(&gate))).unwrap().expansion
        };
        let facts = |expansion: Option<CheckedExpansion>| expansion.map(|e| (e.gated, e.query_weight));
        let joint = |body: &str| with_gate(body, &limits()).unwrap().joint_encoding;
        assert!(joint(r#"{"query":"q","expansion":"auto"}"#));
        assert!(!joint(r#"{"query":"q","expansion":{"mode":"auto","joint_encoding":false}}"#));
        assert!(!joint(r#"{"query":"q","expansion":"always"}"#));
        assert!(joint(r#"{"query":"q","expansion":{"joint_encoding":true}}"#));
        for (expansion, expected) in [
            (r#""auto""#, Some((true, 0.75))),
            (r#"{"mode":"auto","query_weight":0.25}"#, Some((true, 0.25))),
            (r#""always""#, Some((false, 0.5))),
            (r#"{"max_tokens":9}"#, Some((false, 0.5))),
            ("true", Some((false, 0.5))),
            (r#""off""#, None),
        ] {
            let body = format!(r#"{{"query":"q","expansion":{expansion}}}"#);
            assert_eq!(facts(with_gate(&body, &limits())), expected, "{expansion}");
        }
        // Where auto is the server's default, only who names a mode gets another.
        let flags = Defaults { expansion: Some(ExpansionDefault::Auto), ..Defaults::default() };
        let auto = SearchLimits { flags, ..limits() };
        for (rest, expected) in [
            ("", Some((true, 0.75))),
            (r#","expansion":true"#, Some((true, 0.75))),
            (r#","expansion":{"max_tokens":9}"#, Some((true, 0.75))),
            (r#","expansion":"always""#, Some((false, 0.5))),
            (r#","expansion":false"#, None),
        ] {
            assert_eq!(facts(with_gate(&format!(r#"{{"query":"q"{rest}}}"#), &auto)), expected, "{rest}");
        }
        let problem = check(r#"{"query":"q","expansion":"auto"}"#).unwrap_err();
        assert!(problem.detail.contains("--gate") && problem.detail.contains("always"), "{}", problem.detail);
        assert_eq!(pointers(r#"{"query":"q","expansion":{"mode":"auto"}}"#), ["/expansion"]);
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
    fn cost_counts_texts() {
        let cost = |body: &str| check(body).unwrap().cost();
        assert_eq!(cost(r#"{"query":"q"}"#), 1);
        assert_eq!(cost(r#"{"query":"q","expansion":{"count":4,"temperature":1}}"#), 4);
        assert_eq!(cost(r#"{"query":"q","expansion":{"texts":["a","b"]}}"#), 2);
        assert_eq!(cost(r#"{"query":"q","expansion":{"mode":"off"}}"#), 1);
    }

    #[test]
    fn a_request_that_says_no_count_gets_the_default_where_passages_can_differ() {
        let flags = Defaults { count: Some(4), temperature: Some(0.7), ..Defaults::default() };
        let count = |body: &str| {
            let limits = SearchLimits { flags, ..limits() };
            let request = parse::<SearchRequest>(body.as_bytes()).unwrap();
            let expansion = request.check(&limits, &grounds(&limits, None)).unwrap().expansion.unwrap();
            (expansion.count, expansion.cost(), expansion.sampling.temperature)
        };
        assert_eq!(count(r#"{"query":"q"}"#), (4, 4, 0.7));
        assert_eq!(count(r#"{"query":"q","expansion":{"temperature":0}}"#), (1, 1, 0.0));
        assert_eq!(count(r#"{"query":"q","expansion":{"count":2}}"#), (2, 2, 0.7));
        assert_eq!(count(r#"{"query":"q","expansion":{"texts":["a","b","c"]}}"#), (1, 3, 0.7));
    }
}
