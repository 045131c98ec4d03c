//! What the encoder is trained on, and what stands beside a query in training and search.

use expandr_models::expander::{behind_query, clean};
use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;
use crate::stages::WrittenLine;

/// A line of examples.jsonl. With the members' own order it is a data set for sentence-transformers, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExampleLine {
    /// What is asked.
    pub query: String,
    /// What its vector is averaged with; none for training on queries alone, and where nothing was written. In the file one
    /// is a text, several are a list.
    #[serde(default, rename = "expansion", with = "one_or_several", skip_serializing_if = "Vec::is_empty")]
    pub expansions: Vec<String>,
    /// A passage that answers it.
    pub positive: String,
    /// Passages that don't, at most `contrastive.negatives`.
    #[serde(default)]
    pub negatives: Vec<String>,
}

mod one_or_several {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Expansions {
        Several(Vec<String>),
        One(Option<String>),
    }

    pub(super) fn serialize<S: Serializer>(texts: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        match texts {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        Ok(match Expansions::deserialize(deserializer)? {
            Expansions::Several(texts) => texts,
            Expansions::One(text) => text.into_iter().collect(),
        })
    }
}

/// What is embedded for the passages that a language model wrote for a query: each passage, or each behind the query where the
/// recipe encodes jointly. None for a text in which there is nothing.
pub fn expansions(line: &WrittenLine, recipe: &Recipe) -> Vec<String> {
    let beside = |passage: String| match recipe.expansions.joint_encoding {
        true => behind_query(&line.query, &passage),
        false => passage,
    };
    passages(line, recipe).map(beside).collect()
}

/// For each passage the query repeated to its length; once where there is none.
pub fn repetitions(line: &WrittenLine, recipe: &Recipe) -> Vec<String> {
    let mut passages: Vec<String> = passages(line, recipe).collect();
    if passages.is_empty() {
        passages.push(String::new());
    }
    passages.iter().filter_map(|passage| repeated(&line.query, passage)).collect()
}

fn passages(line: &WrittenLine, recipe: &Recipe) -> impl Iterator<Item = String> {
    let texts = line.texts.iter().take(recipe.expansions.count);
    texts.map(|text| clean(&text.text)).filter(|passage| !passage.trim().is_empty())
}

/// The query again and again until it has as many words as `expansion`: what length alone does for an encoder. At
/// least once, and none for a query without words.
fn repeated(query: &str, expansion: &str) -> Option<String> {
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

    fn line(texts: &[&str]) -> WrittenLine {
        let texts: Vec<_> = texts.iter().map(|text| serde_json::json!(text)).collect();
        serde_json::from_value(serde_json::json!({ "id": "i", "query": "why so?", "texts": texts })).unwrap()
    }

    #[test]
    fn as_many_passages_as_the_recipe_says_and_no_empty_ones() {
        let mut recipe = Recipe::default();
        let empty = "Here is a passage to answer the question:";
        let written = line(&[empty, "Passage: Herons wade.", "They do so often.", "No."]);
        assert!(expansions(&written, &recipe).is_empty(), "the first alone counts");
        assert_eq!(repetitions(&written, &recipe), ["why so?"]);
        recipe.expansions.count = 3;
        assert_eq!(expansions(&written, &recipe), ["Herons wade.", "They do so often."]);
        assert_eq!(repetitions(&written, &recipe), ["why so?", "why so? why so?"]);
        recipe.expansions.joint_encoding = true;
        assert_eq!(expansions(&written, &recipe), ["why so? Herons wade.", "why so? They do so often."]);
    }

    #[test]
    fn one_expansion_is_a_text_in_the_file_and_several_are_a_list() {
        let line = |expansions: &[&str]| ExampleLine {
            query: "q".into(),
            expansions: expansions.iter().map(|text| (*text).to_owned()).collect(),
            positive: "p".into(),
            negatives: Vec::new(),
        };
        for (line, json) in [
            (line(&[]), r#"{"query":"q","positive":"p","negatives":[]}"#),
            (line(&["e"]), r#"{"query":"q","expansion":"e","positive":"p","negatives":[]}"#),
            (line(&["e", "f"]), r#"{"query":"q","expansion":["e","f"],"positive":"p","negatives":[]}"#),
        ] {
            assert_eq!(serde_json::to_string(&line).unwrap(), json);
            assert_eq!(serde_json::from_str::<ExampleLine>(json).unwrap(), line);
        }
        let null = r#"{"query":"q","expansion":null,"positive":"p"}"#;
        assert_eq!(serde_json::from_str::<ExampleLine>(null).unwrap(), line(&[]));
    }
}
