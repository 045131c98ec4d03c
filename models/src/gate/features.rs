//! What is known of a search before anything is generated for it.

/// How many raw hits are looked at.
pub const DEPTH: usize = 10;

/// How many features there are.
pub(super) const COUNT: usize = 7;

/// The features, in their order.
pub const NAMES: [&str; COUNT] = [
    "log_words",
    "question",
    "top1",
    "top1_minus_top2",
    "top1_minus_mean_2_to_10",
    "mean_top10",
    "deviation_top10",
];

/// English words that begin a question.
const QUESTION_WORDS: [&str; 27] = [
    "what", "who", "whom", "whose", "which", "when", "where", "why", "how", "is", "are", "was", "were", "am",
    "do", "does", "did", "can", "could", "should", "would", "will", "shall", "may", "has", "have", "had",
];

/// A query's features: how it is written, and how the best raw hits lie to each other.
///
/// - `log_words`: ln(1 + words), words being what stands between white space;
/// - `question`: 1 where the first word is an English question word or auxiliary, else 0;
/// - `top1`, `top1_minus_top2`, `top1_minus_mean_2_to_10`, `mean_top10`, `deviation_top10`: of the cosines of query and
///   document of the ten best raw hits; the deviation is the population's. Where there are fewer hits, of those there are;
///   what needs more is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Features([f64; COUNT]);

impl Features {
    /// Of a query as its user wrote it, and the cosines of its raw hits by vector, best first, of which the first
    /// [`DEPTH`] count. Training and service both call this, so that they see the same numbers.
    pub fn new(query: &str, cosines: &[f32]) -> Self {
        let cosines: Vec<f64> = cosines.iter().take(DEPTH).map(|cosine| f64::from(*cosine)).collect();
        let top1 = cosines.first().copied().unwrap_or_default();
        let others = cosines.get(1..).unwrap_or_default();
        let before = |second: f64| if others.is_empty() { 0.0 } else { top1 - second };
        let mean_top10 = mean(&cosines);
        let squares: Vec<f64> = cosines.iter().map(|cosine| (cosine - mean_top10).powi(2)).collect();
        Self([
            (query.split_whitespace().count() as f64).ln_1p(),
            f64::from(u8::from(is_question(query))),
            top1,
            before(others.first().copied().unwrap_or_default()),
            before(mean(others)),
            mean_top10,
            mean(&squares).sqrt(),
        ])
    }

    /// The values, in the order of [`NAMES`].
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    pub(super) fn array(&self) -> &[f64; COUNT] {
        &self.0
    }

    #[cfg(test)]
    pub(super) fn of(values: [f64; COUNT]) -> Self {
        Self(values)
    }
}

/// 0 for none.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn is_question(query: &str) -> bool {
    let first = query.split(|c: char| !c.is_alphanumeric()).find(|word| !word.is_empty());
    first.is_some_and(|word| QUESTION_WORDS.contains(&word.to_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_and_words_become_numbers() {
        let cosines = [0.5, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.9];
        let features = Features::new("  Why is the sky  blue?", &cosines);
        let mean = 2.75 / 10.0;
        let deviation = (((0.5_f64 - mean).powi(2) + 9.0 * (0.25 - mean).powi(2)) / 10.0).sqrt();
        let expected = [6f64.ln(), 1.0, 0.5, 0.25, 0.25, mean, deviation];
        for ((value, expected), name) in features.values().iter().zip(expected).zip(NAMES) {
            assert!((value - expected).abs() < 1e-12, "{name}: {value} is not {expected}");
        }
        assert_eq!(
            features,
            Features::new("why is the sky blue", &cosines[..10]),
            "the eleventh does not count"
        );
    }

    #[test]
    fn few_hits_and_no_words_are_numbers_too() {
        assert_eq!(Features::new("", &[]).values(), [0.0; COUNT]);
        let one = Features::new("vitamin", &[0.5]);
        assert_eq!(one.values(), [2f64.ln(), 0.0, 0.5, 0.0, 0.0, 0.5, 0.0]);
        let two = Features::new("vitamin", &[0.5, 0.25]);
        assert_eq!(two.values()[3..5], [0.25, 0.25]);
    }

    #[test]
    fn questions_are_known_by_their_first_word() {
        for (query, question) in [
            ("How?", true),
            ("\"is it\" so", true),
            ("what's new", true),
            ("whatever", false),
            ("bones how", false),
        ] {
            assert_eq!(is_question(query), question, "{query}");
        }
    }
}
