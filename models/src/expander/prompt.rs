//! The paper's prompts, and keeping a user's text from steering the model's chat template.

use std::{borrow::Cow, path::Path};

use serde::Deserialize;

use crate::{Error, Result};

/// Table 4's prompt that turns a query into a document (Q2D).
pub const Q2D: &str = "Please write a passage to answer the question:\nQuestion: {}\nPassage:";

/// Table 4's prompt that answers a query from a document (Q2A); its slots are the query and the document.
pub const Q2A: &str = "You are given a query and a related document. Based on the query, generate a direct and relevant \
                       answer using the information in the document. If the query is a statement, expand on it. If it is \
                       a question, provide a direct answer. Avoid any extra description or irrelevant content.\n\
                       Query: {}\nRelated Document: {}\nAnswer:";

const SLOT: &str = "{}";

/// A prompt with slots, written `{}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTemplate {
    text: String,
    slots: usize,
}

impl PromptTemplate {
    /// A template with one slot, for the query.
    ///
    /// # Errors
    /// When `{}` does not occur exactly once.
    pub fn for_query(text: &str) -> Result<Self> {
        Self::with_slots(text, 1)
    }

    /// The paper's Q2D prompt.
    pub fn q2d() -> Self {
        Self { text: Q2D.into(), slots: 1 }
    }

    /// The paper's Q2A prompt: the query, then the document.
    pub fn q2a() -> Self {
        Self { text: Q2A.into(), slots: 2 }
    }

    /// A template with `slots` slots.
    ///
    /// # Errors
    /// When `{}` does not occur exactly that often.
    pub fn with_slots(text: &str, slots: usize) -> Result<Self> {
        let found = text.matches(SLOT).count();
        if found != slots {
            return Err(Error::Input(format!(
                "a prompt template must have `{{}}` exactly {slots} times, where the input goes; this one has it {found} \
                 times: {text:?}"
            )));
        }
        Ok(Self { text: text.into(), slots })
    }

    /// The template as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Puts `values` into the slots, in order. A `{}` inside a value stays what it is.
    ///
    /// # Errors
    /// When there are not as many values as slots.
    pub fn render(&self, values: &[&str]) -> Result<String> {
        if values.len() != self.slots {
            return Err(Error::Input(format!(
                "the prompt template has {} slots and was given {} values",
                self.slots,
                values.len()
            )));
        }
        let mut rendered =
            String::with_capacity(self.text.len() + values.iter().map(|value| value.len()).sum::<usize>());
        let mut values = values.iter();
        for (index, part) in self.text.split(SLOT).enumerate() {
            if index > 0 {
                rendered.push_str(values.next().copied().unwrap_or_default());
            }
            rendered.push_str(part);
        }
        Ok(rendered)
    }
}

/// Strings that mean something to a model beyond their letters (`<|im_end|>` ends the user's turn), so that a query
/// with them could write the assistant's turn itself. [`SpecialTokens::neutralise`] takes that meaning away.
#[derive(Clone, Debug)]
pub struct SpecialTokens {
    tokens: Vec<String>,
}

/// Markers of well-known chat templates that are not always tokens of their own, so that no tokenizer names them.
/// `<|word|>` is recognised as a pattern besides.
const COMMON_MARKERS: &[&str] = &[
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<sep>",
    "<cls>",
    "[CLS]",
    "[SEP]",
    "[PAD]",
    "[MASK]",
    "[UNK]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<turn>",
    "</turn>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[IMG]",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "[gMASK]",
];

/// The longest `<|word|>` that is taken for a marker, in bytes.
const LONGEST_PIPE_MARKER: usize = 64;

impl SpecialTokens {
    /// The markers of well-known chat templates, for engines whose tokenizer can't be seen.
    pub fn common() -> Self {
        Self { tokens: COMMON_MARKERS.iter().map(|marker| (*marker).to_owned()).collect() }
    }

    /// The same and every special token of a `tokenizer.json`.
    ///
    /// # Errors
    /// When the file can't be read or understood.
    pub fn of_tokenizer(tokenizer_json: &Path) -> Result<Self> {
        let text = fs_err::read_to_string(tokenizer_json)?;
        let parsed: TokenizerFile = serde_json::from_str(&text).map_err(|error| Error::Checkpoint {
            path: tokenizer_json.to_path_buf(),
            detail: format!("not a tokenizer.json ({error}); fetch the checkpoint again"),
        })?;
        let mut special = Self::common();
        special.extend(parsed.added_tokens.into_iter().filter(AddedToken::steers).map(|token| token.content));
        Ok(special)
    }

    /// Adds tokens.
    pub fn extend(&mut self, tokens: impl IntoIterator<Item = String>) {
        for token in tokens {
            if !token.trim().is_empty() && !self.tokens.contains(&token) {
                self.tokens.push(token);
            }
        }
        self.tokens.sort_by_key(|token| std::cmp::Reverse(token.len()));
    }

    /// Puts a space after the first character of every special token in `text`, so that it stays readable but is only
    /// text to the tokenizer. Upper and lower case are not told apart.
    pub fn neutralise<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.find(text, 0).is_none() {
            return Cow::Borrowed(text);
        }
        let mut neutral = String::with_capacity(text.len() + 16);
        let mut position = 0;
        while let Some((start, _)) = self.find(text, position) {
            let first = text[start..].chars().next().map_or(1, char::len_utf8);
            neutral.push_str(&text[position..start + first]);
            neutral.push(' ');
            position = start + first;
        }
        neutral.push_str(&text[position..]);
        // A token of one character, or one with a space in it, can't be broken by a space: it is taken out.
        while let Some((start, length)) = self.find(&neutral, 0) {
            neutral.replace_range(start..start + length, "");
        }
        Cow::Owned(neutral)
    }

    /// Where the first special token at or after `from` begins, and how long it is.
    fn find(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        text[from..].char_indices().map(|(offset, _)| from + offset).find_map(|start| {
            let here = &text[start..];
            let listed =
                self.tokens.iter().find(|token| starts_with_ignoring_case(here, token)).map(String::len);
            listed.or_else(|| pipe_marker(here)).map(|length| (start, length))
        })
    }
}

/// The length of a `<|word|>` (or with full-width bars, as some models have it) at the beginning of `text`.
fn pipe_marker(text: &str) -> Option<usize> {
    for (open, close) in [("<|", "|>"), ("<｜", "｜>")] {
        let Some(rest) = text.strip_prefix(open) else { continue };
        let end = rest.find(close)?;
        let word = &rest[..end];
        let is_word =
            word.chars().all(|c| c.is_alphanumeric() || "_-.:▁/ ".contains(c)) && !word.trim().is_empty();
        let length = open.len() + end + close.len();
        return (is_word && length <= LONGEST_PIPE_MARKER).then_some(length);
    }
    None
}

fn starts_with_ignoring_case(text: &str, token: &str) -> bool {
    text.get(..token.len()).is_some_and(|start| start.eq_ignore_ascii_case(token))
}

#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    content: String,
    #[serde(default)]
    special: bool,
}

impl AddedToken {
    /// Special ones do; so do those that look like markup (`<tool_call>`), which some checkpoints don't call special.
    fn steers(&self) -> bool {
        let looks_like_markup = self.content.starts_with('<') && self.content.ends_with('>');
        self.special || looks_like_markup
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_papers_prompts_are_laid_out_as_in_table_4() {
        assert_eq!(
            PromptTemplate::q2d().render(&["why is the sky {} blue?"]).unwrap(),
            "Please write a passage to answer the question:\nQuestion: why is the sky {} blue?\nPassage:"
        );
        let q2a = PromptTemplate::q2a().render(&["Q", "D {}"]).unwrap();
        assert!(q2a.ends_with("irrelevant content.\nQuery: Q\nRelated Document: D {}\nAnswer:"), "{q2a}");
        assert_eq!(PromptTemplate::with_slots(Q2A, 2).unwrap(), PromptTemplate::q2a());
        assert_eq!(PromptTemplate::for_query(Q2D).unwrap(), PromptTemplate::q2d());
    }

    #[test]
    fn a_template_without_its_slot_is_refused() {
        for text in ["", "no slot", "{} and {}", "{query}"] {
            let error = PromptTemplate::for_query(text).unwrap_err().to_string();
            assert!(error.contains("exactly 1 times"), "{error}");
        }
        assert!(PromptTemplate::q2d().render(&["a", "b"]).is_err());
    }

    #[test]
    fn markers_of_chat_templates_become_text() {
        let special = SpecialTokens::common();
        for (text, neutral) in [
            ("what is <|im_start|>system?", "what is < |im_start|>system?"),
            ("<|eot_id|><|eot_id|>", "< |eot_id|>< |eot_id|>"),
            ("<S>[inst] x [/INST]</s>", "< S>[ inst] x [ /INST]< /s>"),
            ("<｜User｜>hi", "< ｜User｜>hi"),
        ] {
            assert_eq!(special.neutralise(text), neutral);
        }
        for text in ["a <| b", "x |> f <| y", "1 < 2 > 0", "vec![INSTANCE]", "generic Vec<String>", ""] {
            assert!(matches!(special.neutralise(text), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn tokens_that_a_space_cannot_break_are_taken_out() {
        let mut special = SpecialTokens::common();
        special.extend(["§".to_owned(), "< s>".to_owned(), " ".to_owned()]);
        assert_eq!(special.neutralise("a§b"), "a b");
        assert_eq!(special.neutralise("a<s>b"), "ab");
    }

    proptest! {
        #[test]
        fn nothing_special_is_left_and_twice_is_once(
            parts in proptest::collection::vec(
                prop_oneof!["[a-z ]{0,5}", Just("<|im_end|>".to_owned()), Just("<s>".to_owned()), Just("<|".to_owned()),
                    Just("|>".to_owned()), Just("<".to_owned()), Just("[INST]".to_owned()), "\\PC{0,3}"],
                0..12,
            )
        ) {
            let special = SpecialTokens::common();
            let text = parts.concat();
            let neutral = special.neutralise(&text).into_owned();
            prop_assert_eq!(special.find(&neutral, 0), None);
            prop_assert_eq!(special.neutralise(&neutral), neutral.as_str());
            let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(letters(&neutral), letters(&text));
        }
    }
}
