//! Preferences and completions as tokens.

use expandr_models::trainable::DecoderText;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// A preference as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreferenceText {
    /// The user's message, without a chat template.
    pub prompt: String,
    /// The better answer.
    pub chosen: String,
    /// The worse one.
    pub rejected: String,
    /// Chosen, rejected: whether the model was cut short there, so that no end is to be learnt.
    pub cut: [bool; 2],
}

/// A preference as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreferenceExample {
    /// The prompt, up to where the answer begins.
    pub prompt: Vec<u32>,
    /// The better answer with its end.
    pub chosen: Vec<u32>,
    /// The worse one.
    pub rejected: Vec<u32>,
}

impl PreferenceExample {
    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.chosen.len() + self.rejected.len()
    }
}

/// An answer to be learnt, as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompletionText {
    /// The user's message, without a chat template.
    pub prompt: String,
    /// The answer.
    pub completion: String,
}

/// An answer to be learnt, as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompletionExample {
    /// The prompt, up to where the answer begins.
    pub prompt: Vec<u32>,
    /// The answer with its end.
    pub completion: Vec<u32>,
}

/// How long examples may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens of prompt and answer together; of longer answers the beginning is kept.
    pub max_length: usize,
    /// Most tokens of the prompt; of longer prompts the end is kept, as TRL does.
    pub max_prompt_length: usize,
}

/// How many texts were shortened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Shortened {
    /// Prompts that lost their beginning.
    pub prompts: usize,
    /// Answers that lost their end.
    pub completions: usize,
}

/// Preferences as the model reads them: the chat template around the prompt, the end token behind the answers.
///
/// # Errors
/// When the limits leave no room for an answer, and when template or tokenizer refuses a text.
pub fn tokenize_preferences(
    text: &DecoderText,
    preferences: &[PreferenceText],
    limits: Limits,
) -> Result<(Vec<PreferenceExample>, Shortened)> {
    limits.check()?;
    let mut shortened = Shortened::default();
    let mut examples = Vec::with_capacity(preferences.len());
    for preference in preferences {
        let prompt = limits.prompt(text.prompt(&preference.prompt)?, &mut shortened);
        let mut answer = |answer: &str, cut: bool| -> Result<Vec<u32>> {
            let end = (!cut).then(|| text.end());
            Ok(limits.completion(text.passage(answer)?, end, prompt.len(), &mut shortened))
        };
        let [chosen_cut, rejected_cut] = preference.cut;
        let chosen = answer(&preference.chosen, chosen_cut)?;
        let rejected = answer(&preference.rejected, rejected_cut)?;
        examples.push(PreferenceExample { prompt, chosen, rejected });
    }
    Ok((examples, shortened))
}

/// Answers to be learnt as the model reads them; see [`tokenize_preferences`].
///
/// # Errors
/// As [`tokenize_preferences`].
pub fn tokenize_completions(
    text: &DecoderText,
    completions: &[CompletionText],
    limits: Limits,
) -> Result<(Vec<CompletionExample>, Shortened)> {
    limits.check()?;
    let mut shortened = Shortened::default();
    let mut examples = Vec::with_capacity(completions.len());
    for example in completions {
        let prompt = limits.prompt(text.prompt(&example.prompt)?, &mut shortened);
        let answer = text.passage(&example.completion)?;
        let completion = limits.completion(answer, Some(text.end()), prompt.len(), &mut shortened);
        examples.push(CompletionExample { prompt, completion });
    }
    Ok((examples, shortened))
}

impl Limits {
    fn check(self) -> Result<()> {
        if self.max_prompt_length == 0 || self.max_prompt_length >= self.max_length {
            return Err(Error::Input(format!(
                "max_prompt_length = {} leaves no room within max_length = {}; use less for the prompt",
                self.max_prompt_length, self.max_length
            )));
        }
        Ok(())
    }

    fn prompt(self, mut prompt: Vec<u32>, shortened: &mut Shortened) -> Vec<u32> {
        let excess = prompt.len().saturating_sub(self.max_prompt_length);
        shortened.prompts += usize::from(excess > 0);
        prompt.split_off(excess)
    }

    fn completion(
        self,
        mut answer: Vec<u32>,
        end: Option<u32>,
        prompt: usize,
        shortened: &mut Shortened,
    ) -> Vec<u32> {
        answer.extend(end);
        let room = self.max_length - prompt;
        shortened.completions += usize::from(answer.len() > room);
        answer.truncate(room);
        answer
    }
}

/// What tells examples apart: their texts in order.
pub(super) trait Sequences {
    /// Prompt and answers.
    fn sequences(&self) -> Vec<&[u32]>;
}

impl Sequences for PreferenceExample {
    fn sequences(&self) -> Vec<&[u32]> {
        vec![&self.prompt, &self.chosen, &self.rejected]
    }
}

impl Sequences for CompletionExample {
    fn sequences(&self) -> Vec<&[u32]> {
        vec![&self.prompt, &self.completion]
    }
}

/// A hash of examples.
pub(super) fn fingerprint<E: Sequences>(examples: &[E]) -> String {
    let mut hash = Sha256::new();
    for sequence in examples.iter().flat_map(Sequences::sequences) {
        hash.update((sequence.len() as u64).to_le_bytes());
        sequence.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_prompts_lose_their_beginning_and_long_answers_their_end() {
        let limits = Limits { max_length: 6, max_prompt_length: 3 };
        let mut shortened = Shortened::default();
        assert_eq!(limits.prompt(vec![1, 2, 3, 4], &mut shortened), [2, 3, 4]);
        assert_eq!(limits.prompt(vec![1, 2], &mut shortened), [1, 2]);
        assert_eq!(limits.completion(vec![7, 8], Some(9), 3, &mut shortened), [7, 8, 9]);
        assert_eq!(limits.completion(vec![7, 8], None, 3, &mut shortened), [7, 8]);
        assert_eq!(limits.completion(vec![7, 8, 7], Some(9), 3, &mut shortened), [7, 8, 7]);
        assert_eq!(shortened, Shortened { prompts: 1, completions: 1 });
        assert!(Limits { max_length: 3, max_prompt_length: 3 }.check().is_err());
    }
}
