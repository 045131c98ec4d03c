//! Prompts and passages as tokens, as they are when the model serves.

use std::path::Path;

use crate::{
    Error, Result,
    decoder::{config::DecoderConfig, text::Text},
};

/// A checkpoint's tokenizer and chat template.
pub struct DecoderText {
    text: Text,
    end: u32,
}

impl DecoderText {
    /// Reads a folder in Hugging Face layout.
    ///
    /// # Errors
    /// When tokenizer or chat template is missing or broken, and when no token ends a turn.
    pub fn read(folder: &Path) -> Result<Self> {
        let config = DecoderConfig::read(folder)?;
        let text = Text::read(folder, &config)?;
        let end =
            text.end_token().or(config.end_tokens.first().copied()).ok_or_else(|| Error::Checkpoint {
                path: folder.to_path_buf(),
                detail: "no token ends the model's turn; name an eos_token in tokenizer_config.json".into(),
            })?;
        Ok(Self { text, end })
    }

    /// The tokens of the prompt for a user's message: the chat template around it, up to where the answer begins.
    ///
    /// # Errors
    /// When template or tokenizer refuses the message.
    pub fn prompt(&self, message: &str) -> Result<Vec<u32>> {
        self.text.prompt(message)
    }

    /// The tokens of an answer, without an end.
    ///
    /// # Errors
    /// When the tokenizer refuses it.
    pub fn passage(&self, passage: &str) -> Result<Vec<u32>> {
        self.text.passage(passage)
    }

    /// The token that ends an answer.
    pub fn end(&self) -> u32 {
        self.end
    }
}
