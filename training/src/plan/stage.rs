//! The kinds of stages.

use expandr_models::gate::GATE_FILE;
use serde::{Deserialize, Serialize};

/// A kind of stage. Its name is what `--stages` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Sources to pairs.jsonl.
    Pairs,
    /// Supervised training of the language model: an adapter.
    WarmUp,
    /// The language model with the warm-up's adapter merged in.
    WarmExpander,
    /// The first layers of the encoder.
    BaseEncoder,
    /// Candidate expansions.
    Candidates,
    /// Answers that know the gold document.
    Answers,
    /// Similarities of candidates with answer, gold document and query.
    Scores,
    /// Preference pairs.
    Preferences,
    /// Direct preference optimisation: an adapter.
    Dpo,
    /// The language model with that adapter merged in.
    Merge,
    /// Expansions of the retriever's training queries.
    Expansions,
    /// Hard negatives that the untrained encoder finds.
    Negatives,
    /// What the encoder is trained on.
    Examples,
    /// Contrastive training of the encoder.
    Contrastive,
    /// Vectors of the test collections.
    Vectors,
    /// Expansions of the test queries.
    TestExpansions,
    /// The weight of the query in the search, chosen on the development part.
    Weight,
    /// Whether to expand a query, learnt on the development part.
    Gate,
    /// Ranked lists and their scores.
    Evaluation,
    /// The table, and what is significant in it.
    Report,
}

impl Stage {
    /// All of them, in an order in which none comes before what it reads.
    pub const ALL: [Self; 20] = [
        Self::Pairs,
        Self::WarmUp,
        Self::WarmExpander,
        Self::BaseEncoder,
        Self::Candidates,
        Self::Answers,
        Self::Scores,
        Self::Preferences,
        Self::Dpo,
        Self::Merge,
        Self::Expansions,
        Self::Negatives,
        Self::Examples,
        Self::Contrastive,
        Self::Vectors,
        Self::TestExpansions,
        Self::Weight,
        Self::Gate,
        Self::Evaluation,
        Self::Report,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pairs => "pairs",
            Self::WarmUp => "warm-up",
            Self::WarmExpander => "warm-expander",
            Self::BaseEncoder => "base-encoder",
            Self::Candidates => "candidates",
            Self::Answers => "answers",
            Self::Scores => "scores",
            Self::Preferences => "preferences",
            Self::Dpo => "dpo",
            Self::Merge => "merge",
            Self::Expansions => "expansions",
            Self::Negatives => "negatives",
            Self::Examples => "examples",
            Self::Contrastive => "contrastive",
            Self::Vectors => "vectors",
            Self::TestExpansions => "test-expansions",
            Self::Weight => "weight",
            Self::Gate => "gate",
            Self::Evaluation => "evaluation",
            Self::Report => "report",
        }
    }

    /// The stage of that name.
    ///
    /// # Errors
    /// When there is none; the message lists those there are.
    pub fn named(name: &str) -> Result<Self, String> {
        if let Some(stage) = Self::ALL.into_iter().find(|stage| stage.name() == name) {
            return Ok(stage);
        }
        let all: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
        Err(format!("there is no stage `{name}`; there are {}", all.join(", ")))
    }

    /// The files and folders that it leaves, relative to the folder of its arm.
    pub fn outputs(self) -> &'static [&'static str] {
        match self {
            Self::Pairs => &["pairs.jsonl"],
            Self::WarmUp => &["warm-up"],
            Self::WarmExpander => &["warm-expander"],
            Self::BaseEncoder => &["base-encoder"],
            Self::Candidates => &["candidates.jsonl"],
            Self::Answers => &["answers.jsonl"],
            Self::Scores => &["scores.jsonl"],
            Self::Preferences => &["preferences.jsonl", "preferences.dev.jsonl"],
            Self::Dpo => &["adapter"],
            Self::Merge => &["expander"],
            Self::Expansions => &["expansions.jsonl"],
            Self::Negatives => &["negatives.jsonl"],
            Self::Examples => &["examples.jsonl", "examples.dev.jsonl"],
            Self::Contrastive => &["encoder"],
            Self::Vectors => &["vectors"],
            Self::TestExpansions => &["test-expansions.jsonl"],
            Self::Weight => &["weight.json"],
            Self::Gate => &[GATE_FILE],
            Self::Evaluation => &["runs"],
            Self::Report => &["report.json", "report.md"],
        }
    }

    /// Raised when the same settings and inputs give something else than before.
    pub(crate) fn version(self) -> u32 {
        match self {
            // Pairs whose positive is a tested query are left out, too.
            Self::Pairs => 2,
            // They search among the training part's passages, too.
            Self::Weight | Self::Gate => 2,
            // Other positives of a query are none of its negatives in a batch.
            Self::Contrastive => 2,
            // Interval and effect size of the average are those of the average.
            Self::Report => 2,
            _ => 1,
        }
    }

    /// Whether it takes so little that it is done again without asking when settings or inputs have changed.
    pub(crate) fn is_cheap(self) -> bool {
        matches!(
            self,
            Self::Pairs
                | Self::WarmExpander
                | Self::BaseEncoder
                | Self::Preferences
                | Self::Merge
                | Self::Examples
                | Self::Weight
                | Self::Gate
                | Self::Evaluation
                | Self::Report
        )
    }

    /// Whether it works query by query, or collection by collection, so that what is still of use survives a change of
    /// its inputs.
    pub(crate) fn is_incremental(self) -> bool {
        self.is_line_by_line() || self == Self::Vectors
    }

    /// Whether it works query by query, and leaves a line for each.
    pub(crate) fn is_line_by_line(self) -> bool {
        matches!(
            self,
            Self::Candidates | Self::Answers | Self::Scores | Self::Expansions | Self::TestExpansions
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_wire_and_outputs_are_apart() {
        let mut outputs: Vec<&str> = Vec::new();
        for stage in Stage::ALL {
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.name());
            assert_eq!(Stage::named(stage.name()), Ok(stage));
            outputs.extend(stage.outputs());
        }
        let count = outputs.len();
        outputs.sort_unstable();
        outputs.dedup();
        assert_eq!(outputs.len(), count);
        assert!(Stage::named("rewards").unwrap_err().contains("there are pairs, warm-up"));
    }
}
