//! Text to tokens and back.

use std::{collections::HashSet, path::Path};

use tokenizers::Tokenizer;

use super::{chat::ChatTemplate, config::DecoderConfig};
use crate::{Error, Result, expander::SpecialTokens, folder::checkpoint_error};

/// What stands for bytes that are no character (yet).
const REPLACEMENT: char = '\u{fffd}';

/// A checkpoint's tokenizer and chat template.
pub(crate) struct Text {
    tokenizer: Tokenizer,
    special: SpecialTokens,
    chat: ChatTemplate,
}

impl Text {
    pub(crate) fn read(folder: &Path, config: &DecoderConfig) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let special = SpecialTokens::of_tokenizer(&path)?;
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| {
            checkpoint_error(
                &path,
                format!("not a tokenizer that can be read ({error}); fetch the file again"),
            )
        })?;
        if tokenizer.with_truncation(None).is_err() {
            let detail = "its truncation can't be taken off; fetch the file again";
            return Err(checkpoint_error(&path, detail.into()));
        }
        tokenizer.with_padding(None);
        let vocabulary = tokenizer.get_vocab(true);
        if let Some((token, id)) = vocabulary.into_iter().find(|(_, id)| *id as usize >= config.vocabulary) {
            let detail = format!(
                "token {token:?} has id {id}, and the model has {} words; tokenizer and weights belong to different models",
                config.vocabulary
            );
            return Err(checkpoint_error(&path, detail));
        }
        Ok(Self { tokenizer, special, chat: ChatTemplate::read(folder)? })
    }

    /// The tokens of the whole prompt for a user's message. Special tokens in the message are text.
    pub(crate) fn prompt(&self, message: &str) -> Result<Vec<u32>> {
        let rendered = self.chat.render(&self.special.neutralise(message))?;
        let encoded = self.tokenizer.encode_fast(rendered, false);
        let encoded =
            encoded.map_err(|error| Error::Input(format!("the prompt can't be tokenised: {error}")))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The tokens of a passage, without an end. Special tokens in it are text.
    pub(crate) fn passage(&self, passage: &str) -> Result<Vec<u32>> {
        let encoded = self.tokenizer.encode_fast(self.special.neutralise(passage).into_owned(), false);
        let encoded =
            encoded.map_err(|error| Error::Input(format!("the passage can't be tokenised: {error}")))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The token with which the model ends its turn, where the tokenizer names one.
    pub(crate) fn end_token(&self) -> Option<u32> {
        self.chat.end_token().and_then(|token| self.tokenizer.token_to_id(token))
    }

    /// The special tokens, which are never text.
    pub(crate) fn special_ids(&self) -> HashSet<u32> {
        let added = self.tokenizer.get_added_tokens_decoder();
        added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect()
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true).map_err(|error| Error::Engine {
            what: "batched",
            detail: format!("its tokens can't be made text: {error}"),
        })
    }
}

/// Tokens one after the other to text, in whole characters.
#[derive(Default)]
pub(crate) struct Writer {
    /// Tokens of the last piece, which the next one's white space may depend on, and those that came since.
    ids: Vec<u32>,
    /// How many of them belong to the last piece.
    written: usize,
}

impl Writer {
    /// The text that `id` adds; empty while a character is incomplete. What never becomes a character is left out when
    /// the text ends there.
    pub(crate) fn push(&mut self, id: u32, text: &Text) -> Result<String> {
        self.ids.push(id);
        let before = text.decode(&self.ids[..self.written])?;
        let after = text.decode(&self.ids)?;
        if after.ends_with(REPLACEMENT) || after.len() <= before.len() {
            return Ok(String::new());
        }
        let piece = after.strip_prefix(&before).unwrap_or(&after).to_owned();
        self.ids.drain(..self.written);
        self.written = self.ids.len();
        Ok(piece)
    }
}
