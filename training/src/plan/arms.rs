//! The rows of the report.

use serde::Serialize;

/// What happened to the language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpanderTraining {
    /// Nothing.
    None,
    /// DPO with the rewards that the recipe names.
    Dpo,
    /// DPO with the retriever reward alone.
    DpoWithoutSelfReward,
    /// DPO with the self-reward alone.
    DpoWithoutRetrieverReward,
}

/// What happened to the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderTraining {
    /// Nothing.
    None,
    /// Contrastive training on queries alone.
    Queries,
    /// Contrastive training on queries averaged with expansions.
    Expansions,
    /// Contrastive training on queries averaged with the query repeated to its expansion's length.
    Repetitions,
}

/// What is searched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchText {
    /// The query alone.
    Query,
    /// The average with the expansion.
    Expansion,
    /// The average with the query repeated to its expansion's length.
    Repetition,
    /// The average with the expansion where the gate expands, else the query alone.
    Gated,
}

/// One row of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Arm {
    /// How it is asked for.
    pub name: &'static str,
    /// How the report (and the paper's Table 3) calls it.
    pub title: &'static str,
    /// The language model.
    pub expander: ExpanderTraining,
    /// The encoder.
    pub encoder: EncoderTraining,
    /// The search.
    pub text: SearchText,
}

/// All rows: Table 3's, controls, and ExpandR behind its gate, which is there where the recipe switches the gate on. ExpandR comes first, so that what others share with it lies in the run folder
/// itself.
pub const ARMS: &[Arm] = &[
    Arm {
        name: "expandr",
        title: "ExpandR",
        expander: ExpanderTraining::Dpo,
        encoder: EncoderTraining::Expansions,
        text: SearchText::Expansion,
    },
    Arm {
        name: "query",
        title: "Query",
        expander: ExpanderTraining::None,
        encoder: EncoderTraining::None,
        text: SearchText::Query,
    },
    Arm {
        name: "ft",
        title: "w/ Retriever Training",
        expander: ExpanderTraining::None,
        encoder: EncoderTraining::Queries,
        text: SearchText::Query,
    },
    Arm {
        name: "without-llm-training",
        title: "w/o LLM Training",
        expander: ExpanderTraining::None,
        encoder: EncoderTraining::Expansions,
        text: SearchText::Expansion,
    },
    Arm {
        name: "without-retriever-training",
        title: "w/o Retriever Training",
        expander: ExpanderTraining::Dpo,
        encoder: EncoderTraining::None,
        text: SearchText::Expansion,
    },
    Arm {
        name: "without-self-reward",
        title: "w/o Self-Reward",
        expander: ExpanderTraining::DpoWithoutSelfReward,
        encoder: EncoderTraining::Expansions,
        text: SearchText::Expansion,
    },
    Arm {
        name: "without-retriever-reward",
        title: "w/o Retriever Reward",
        expander: ExpanderTraining::DpoWithoutRetrieverReward,
        encoder: EncoderTraining::Expansions,
        text: SearchText::Expansion,
    },
    Arm {
        name: "without-training",
        title: "w/o any Training, with expansions",
        expander: ExpanderTraining::None,
        encoder: EncoderTraining::None,
        text: SearchText::Expansion,
    },
    Arm {
        name: "repetition",
        title: "Control: query repeated, trained on it",
        expander: ExpanderTraining::Dpo,
        encoder: EncoderTraining::Repetitions,
        text: SearchText::Repetition,
    },
    Arm {
        name: "repetition-untrained",
        title: "Control: query repeated, encoder untrained",
        expander: ExpanderTraining::Dpo,
        encoder: EncoderTraining::None,
        text: SearchText::Repetition,
    },
    Arm {
        name: "auto",
        title: "ExpandR, expanded where the gate says so",
        expander: ExpanderTraining::Dpo,
        encoder: EncoderTraining::Expansions,
        text: SearchText::Gated,
    },
];

impl Arm {
    /// The arm of that name.
    ///
    /// # Errors
    /// When there is none; the message lists those there are.
    pub fn named(name: &str) -> Result<&'static Self, String> {
        if let Some(arm) = ARMS.iter().find(|arm| arm.name == name) {
            return Ok(arm);
        }
        let near = ARMS
            .iter()
            .max_by(|a, b| strsim::jaro_winkler(a.name, name).total_cmp(&strsim::jaro_winkler(b.name, name)));
        let near = near.map_or(String::new(), |arm| format!("; did you mean `{}`?", arm.name));
        let all: Vec<&str> = ARMS.iter().map(|arm| arm.name).collect();
        Err(format!("there is no arm `{name}`{near} (there are {})", all.join(", ")))
    }
}
