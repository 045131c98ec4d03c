//! What the encoder is trained on, and what stands beside a query in training and search.

use expandr_models::expander::{behind_query, clean};
use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;

/// A line of examples.jsonl. With the members' own order it is a data set for sentence-transformers, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExampleLine {
    /// What is asked.
    pub query: String,
    /// What its vector is averaged with; none for training on queries alone, and where nothing was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expansion: Option<String>,
    /// A passage that answers it.
    pub positive: String,
    /// Passages that don't, at most `contrastive.negatives`.
    #[serde(default)]
    pub negatives: Vec<String>,
}

/// The passage in what a language model wrote; none when there is nothing in it.
pub fn passage(written: &str) -> Option<String> {
    let passage = clean(written);
    (!passage.trim().is_empty()).then_some(passage)
}

/// What is embedded for a passage: the passage, or the passage behind its query where the recipe encodes jointly.
pub fn beside(query: &str, passage: &str, recipe: &Recipe) -> String {
    if recipe.expansions.joint_encoding { behind_query(query, passage) } else { passage.to_owned() }
}

/// The query again and again until it has as many words as `expansion`: what length alone does for an encoder. At
/// least once, and none for a query without words.
pub fn repeated(query: &str, expansion: &str) -> Option<String> {
    let words: Vec<&str> = query.split_whitespace().collect();
    if words.is_empty() {
        return None;
    }
    let length = expansion.split_whitespace().count().max(words.len());
    Some(words.iter().cycle().take(length).copied().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_as_long_as_the_expansion() {
        assert_eq!(repeated("why  so?", "one two three four five").as_deref(), Some("why so? why so? why"));
        assert_eq!(repeated("why so?", "one").as_deref(), Some("why so?"));
        assert_eq!(repeated(" ", "one"), None);
    }

    #[test]
    fn an_empty_passage_is_none() {
        assert_eq!(passage("Here is a passage to answer the question:"), None);
        assert_eq!(passage("Passage: Herons wade.").as_deref(), Some("Herons wade."));
    }
}
