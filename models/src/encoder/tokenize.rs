//! Texts to token ids, as sentence-transformers does it: prefix, tokenizer, cut to the maximum length.

use tokenizers::{
    ModelWrapper, NormalizerWrapper, Tokenizer,
    normalizers::{Lowercase, Sequence},
};

use super::{TextKind, checkpoint::Checkpoint, config::Architecture};
use crate::{Error, Result, folder::checkpoint_error};

/// Tokens that a beginning of a text must have beyond the maximum length to stand for the whole text. Where the
/// beginning ends, its last tokens may differ from the whole text's; this many tokens are more than the longest
/// word that WordPiece splits (100 characters), so the difference is cut off.
const MARGIN: usize = 128;

/// Bytes of text per token that the first attempt takes; English has 5, indented code 3, base64 2.
const BYTES_PER_TOKEN: usize = 8;

/// A tokenizer with a checkpoint's settings.
pub(crate) struct TextTokenizer {
    tokenizer: Tokenizer,
    prefixes: [String; 2],
    max_length: usize,
    special_tokens: usize,
    /// Whether a word's tokens depend on at most 100 of its characters, as in WordPiece.
    short_words: bool,
}

impl TextTokenizer {
    /// Reads the checkpoint's `tokenizer.json`.
    pub(crate) fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let path = &checkpoint.tokenizer;
        let mut tokenizer = Tokenizer::from_file(path).map_err(|e| {
            checkpoint_error(path, format!("not a tokenizer that can be read ({e}); fetch the file again"))
        })?;
        let Architecture::Bert(bert) = &checkpoint.architecture;
        if let Some((token, id)) =
            tokenizer.get_vocab(true).into_iter().find(|(_, id)| *id as usize >= bert.vocab_size)
        {
            let detail = format!(
                "token {token:?} has id {id}, and the model has {} words; tokenizer and weights belong to different models",
                bert.vocab_size
            );
            return Err(checkpoint_error(path, detail));
        }
        if tokenizer.with_truncation(None).is_err() {
            return Err(checkpoint_error(
                path,
                "its truncation can't be taken off; fetch the file again".into(),
            ));
        }
        tokenizer.with_padding(None);
        if checkpoint.settings.lowercase {
            let mut steps = vec![NormalizerWrapper::Lowercase(Lowercase)];
            steps.extend(tokenizer.get_normalizer().cloned());
            tokenizer.with_normalizer(Some(Sequence::new(steps)));
        }
        let special_tokens =
            tokenizer.encode("", true).map_err(|e| checkpoint_error(path, e.to_string()))?.len();
        let max_length = checkpoint.settings.max_length;
        if max_length <= special_tokens {
            let detail = format!(
                "a maximum length of {max_length} leaves no room beside {special_tokens} special tokens; raise it"
            );
            return Err(checkpoint_error(&checkpoint.folder, detail));
        }
        Ok(Self {
            short_words: matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_)),
            tokenizer,
            prefixes: [checkpoint.settings.query_prefix.clone(), checkpoint.settings.document_prefix.clone()],
            max_length,
            special_tokens,
        })
    }

    /// The ids of a text, special tokens included: at most the maximum length. Special tokens that are spelled out in
    /// the text (`[SEP]`) become special tokens, as in sentence-transformers.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub(crate) fn ids(&self, kind: TextKind, text: &str) -> Result<Vec<u32>> {
        let prefix = match kind {
            TextKind::Query => &self.prefixes[0],
            TextKind::Document => &self.prefixes[1],
        };
        let joined;
        let text = if prefix.is_empty() {
            text
        } else {
            joined = format!("{prefix}{text}");
            &joined
        };
        self.encode(text)
            .map_err(|e| Error::Input(format!("the tokenizer refuses a text of {} bytes ({e})", text.len())))
    }

    /// Tokenises a beginning of the text that is long enough, so that the rest of a long text costs nothing.
    fn encode(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let room = self.max_length - self.special_tokens;
        let enough = room + MARGIN;
        let mut window = enough * BYTES_PER_TOKEN;
        loop {
            let beginning = self.beginning(text, window);
            let mut encoding = self.tokenizer.encode_fast(beginning, false)?;
            if beginning.len() < text.len() && encoding.len() < enough {
                window *= 4;
                continue;
            }
            if encoding.len() > room {
                encoding.truncate(room, 0, tokenizers::TruncationDirection::Right);
            }
            return Ok(self.tokenizer.post_process(encoding, None, true)?.get_ids().to_vec());
        }
    }

    /// At least half of the first `window` bytes of the text, cut where the cut does not change the tokens before
    /// it, but for the last [`MARGIN`]. That holds before a white-space character: every tokenizer for these models
    /// splits there before it looks for words. A text without white space can be cut anywhere when words are short;
    /// otherwise it is taken whole.
    fn beginning<'t>(&self, text: &'t str, window: usize) -> &'t str {
        if text.len() <= window {
            return text;
        }
        let bytes = &text.as_bytes()[..=window];
        let blank = |byte: u8| matches!(byte, b' ' | b'\n' | b'\t' | b'\r');
        let cut = (window / 2..=window).rev().find(|&at| blank(bytes[at]) && !blank(bytes[at - 1]));
        match cut {
            Some(cut) => &text[..cut],
            None if self.short_words => {
                let cut = (0..=window).rev().find(|&at| text.is_char_boundary(at)).unwrap_or_default();
                &text[..cut]
            }
            None => text,
        }
    }
}
