//! `config.json`: which architecture a checkpoint has, and its sizes.

use std::path::Path;

use serde::Deserialize;

use crate::{
    Result,
    folder::{checkpoint_error, read_json},
};

/// The architectures that this encoder runs, each with its sizes. The one place where `model_type` is looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Architecture {
    /// BERT and its relatives: the same layers, other tensor names and position numbering.
    Bert(BertConfig),
}

/// Relatives of BERT that share its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// `bert`: also Contriever, MiniLM, E5, BGE, GTE.
    Bert,
    /// `roberta`, `xlm-roberta`, `camembert`: positions are numbered from the padding id on.
    Roberta,
    /// `distilbert`: no token types, other tensor names.
    DistilBert,
}

/// The non-linearity between the two feed-forward matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// x·Φ(x), by the error function.
    Gelu,
    /// x·Φ(x), by its tanh approximation.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

/// The sizes of a BERT.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BertConfig {
    /// Which relative.
    pub(crate) family: Family,
    /// Rows of the word embedding table.
    pub(crate) vocab_size: usize,
    /// Components of a hidden state, and of the vector.
    pub(crate) hidden_size: usize,
    /// Transformer layers.
    pub(crate) layers: usize,
    /// Attention heads; they divide `hidden_size`.
    pub(crate) heads: usize,
    /// Components between the two feed-forward matrices.
    pub(crate) intermediate_size: usize,
    /// What stands between them.
    pub(crate) activation: Activation,
    /// Rows of the position table as stored.
    pub(crate) position_rows: usize,
    /// The row of the first token's position.
    pub(crate) first_position: usize,
    /// Rows of the token type table; 0 where there is none.
    pub(crate) token_types: usize,
    /// Added to the variance in layer norms.
    pub(crate) layer_norm_epsilon: f64,
}

impl BertConfig {
    /// The longest text, in tokens, that has positions.
    pub(crate) fn longest_text(&self) -> usize {
        self.position_rows - self.first_position
    }
}

impl Architecture {
    /// Reads `config.json`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let raw: RawConfig = read_json(path, "copy it from the model that the checkpoint was made from")?;
        let family = match raw.model_type.as_deref() {
            Some("bert") => Family::Bert,
            Some("roberta" | "xlm-roberta" | "camembert") => Family::Roberta,
            Some("distilbert") => Family::DistilBert,
            other => {
                let found = other.map_or("no `model_type`".to_owned(), |m| format!("`model_type` {m:?}"));
                return Err(checkpoint_error(
                    path,
                    format!(
                        "{found} is not supported; use a checkpoint of type bert, roberta, xlm-roberta, camembert or \
                         distilbert"
                    ),
                ));
            }
        };
        raw.bert(family, path).map(Self::Bert)
    }
}

/// `config.json` as Hugging Face's transformers writes it; DistilBERT has its own names.
#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    #[serde(alias = "dim")]
    hidden_size: Option<usize>,
    #[serde(alias = "n_layers")]
    num_hidden_layers: Option<usize>,
    #[serde(alias = "n_heads")]
    num_attention_heads: Option<usize>,
    #[serde(alias = "hidden_dim")]
    intermediate_size: Option<usize>,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    max_position_embeddings: Option<usize>,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    pad_token_id: Option<usize>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

impl RawConfig {
    fn bert(self, family: Family, path: &Path) -> Result<BertConfig> {
        let need = |value: Option<usize>, name: &str| {
            value.filter(|v| *v > 0).ok_or_else(|| {
                checkpoint_error(
                    path,
                    format!("`{name}` is missing or 0; give the value that the weights have"),
                )
            })
        };
        let activation = match self.hidden_act.as_deref() {
            None | Some("gelu") => Activation::Gelu,
            Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh") => Activation::GeluTanh,
            Some("relu") => Activation::Relu,
            Some(other) => {
                return Err(checkpoint_error(
                    path,
                    format!(
                        "`hidden_act` {other:?} is not supported; use gelu, gelu_new, gelu_pytorch_tanh or relu"
                    ),
                ));
            }
        };
        if let Some(kind) = self.position_embedding_type.filter(|kind| kind != "absolute") {
            let detail = format!(
                "`position_embedding_type` {kind:?} is not supported; use a checkpoint with absolute positions"
            );
            return Err(checkpoint_error(path, detail));
        }
        if self.is_decoder {
            return Err(checkpoint_error(path, "`is_decoder` is set; use a bidirectional encoder".into()));
        }
        let config = BertConfig {
            family,
            vocab_size: need(self.vocab_size, "vocab_size")?,
            hidden_size: need(self.hidden_size, "hidden_size")?,
            layers: need(self.num_hidden_layers, "num_hidden_layers")?,
            heads: need(self.num_attention_heads, "num_attention_heads")?,
            intermediate_size: need(self.intermediate_size, "intermediate_size")?,
            activation,
            position_rows: need(self.max_position_embeddings, "max_position_embeddings")?,
            first_position: match family {
                Family::Roberta => self.pad_token_id.unwrap_or(1) + 1,
                Family::Bert | Family::DistilBert => 0,
            },
            token_types: match family {
                Family::DistilBert => 0,
                Family::Bert => self.type_vocab_size.unwrap_or(2),
                Family::Roberta => self.type_vocab_size.unwrap_or(1),
            },
            layer_norm_epsilon: match family {
                Family::DistilBert => 1e-12, // fixed in transformers
                Family::Bert => self.layer_norm_eps.unwrap_or(1e-12),
                Family::Roberta => self.layer_norm_eps.unwrap_or(1e-5),
            },
        };
        if !config.hidden_size.is_multiple_of(config.heads) {
            let detail =
                format!("{} heads don't divide a hidden size of {}", config.heads, config.hidden_size);
            return Err(checkpoint_error(path, detail + "; give the values that the weights have"));
        }
        if config.position_rows <= config.first_position {
            let detail = "`max_position_embeddings` leaves no position after `pad_token_id`; give the values that the weights have";
            return Err(checkpoint_error(path, detail.into()));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Architecture> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        Architecture::read(&path)
    }

    const SIZES: &str = r#""vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 12"#;

    #[test]
    fn reads_the_families() {
        let Architecture::Bert(bert) = read(&format!(r#"{{"model_type": "bert", {SIZES}}}"#)).unwrap();
        assert_eq!((bert.family, bert.longest_text(), bert.token_types), (Family::Bert, 12, 2));
        let Architecture::Bert(roberta) =
            read(&format!(r#"{{"model_type": "xlm-roberta", {SIZES}}}"#)).unwrap();
        assert_eq!((roberta.first_position, roberta.longest_text()), (2, 10));
        let json = r#"{"model_type": "distilbert", "vocab_size": 9, "dim": 8, "n_layers": 1, "n_heads": 2,
            "hidden_dim": 16, "activation": "gelu", "max_position_embeddings": 12}"#;
        let Architecture::Bert(distil) = read(json).unwrap();
        assert_eq!((distil.hidden_size, distil.intermediate_size, distil.token_types), (8, 16, 0));
    }

    #[test]
    fn refuses_what_it_can_not_run_and_says_what_it_can() {
        for (json, words) in [
            (
                format!(r#"{{"model_type": "mpnet", {SIZES}}}"#),
                "\"mpnet\" is not supported; use a checkpoint of type bert",
            ),
            (format!("{{{SIZES}}}"), "no `model_type`"),
            (format!(r#"{{"model_type": "bert", "hidden_act": "mish", {SIZES}}}"#), "use gelu"),
            (
                format!(r#"{{"model_type": "bert", "position_embedding_type": "relative_key", {SIZES}}}"#),
                "absolute",
            ),
            (format!(r#"{{"model_type": "bert", "is_decoder": true, {SIZES}}}"#), "bidirectional"),
            (r#"{"model_type": "bert"}"#.into(), "`vocab_size` is missing"),
            (format!(r#"{{"model_type": "bert", {SIZES}}}"#).replace("heads\": 2", "heads\": 3"), "3 heads"),
            (format!(r#"{{"model_type": "roberta", "pad_token_id": 11, {SIZES}}}"#), "no position"),
            ("{".into(), "config.json"),
        ] {
            let message = read(&json).unwrap_err().to_string();
            assert!(message.contains(words), "{json} gives: {message}");
        }
    }
}
