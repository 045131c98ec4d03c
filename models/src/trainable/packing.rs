//! Token sequences without padding: all rows lie one after the other in one matrix, and only attention looks at which
//! rows belong together.

use std::ops::Range;

use crate::{Error, Result};

/// Rows that see each other: a trunk, and branches that continue it without seeing one another. A plain text is a trunk
/// alone. A prompt with two completions is a trunk with two branches, so that the prompt is computed once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The first row.
    pub(super) start: usize,
    /// Rows of the trunk.
    pub(super) trunk: usize,
    /// Rows of each branch; they follow the trunk.
    pub(super) branches: Vec<usize>,
}

impl Group {
    /// All rows.
    pub(super) fn rows(&self) -> usize {
        self.trunk + self.branches.iter().sum::<usize>()
    }

    /// The trunk and the branches.
    pub(super) fn segments(&self) -> impl Iterator<Item = Segment> {
        let trunk = Segment { start: 0, rows: self.trunk, prefix: 0 };
        let mut start = self.trunk;
        let branches = self.branches.iter().map(move |&rows| {
            let segment = Segment { start, rows, prefix: self.trunk };
            start += rows;
            segment
        });
        std::iter::once(trunk).chain(branches).filter(|segment| segment.rows > 0)
    }
}

/// Consecutive rows of a group that attend alike: to the first `prefix` rows of the group, and to one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The first row, within the group.
    pub(super) start: usize,
    /// How many.
    pub(super) rows: usize,
    /// How many rows of the group's beginning they see besides themselves.
    pub(super) prefix: usize,
}

/// Packed sequences.
#[derive(Clone, Debug, Default)]
pub(super) struct Packed {
    /// The token of each row.
    pub(super) ids: Vec<u32>,
    /// The position of each row in its sequence, from 0.
    pub(super) positions: Vec<u32>,
    /// Which rows belong together, in order and without gaps.
    pub(super) groups: Vec<Group>,
}

impl Packed {
    pub(super) fn rows(&self) -> usize {
        self.ids.len()
    }

    fn push_group(&mut self, trunk: &[u32], branches: &[&[u32]]) {
        let start = self.ids.len();
        self.ids.extend_from_slice(trunk);
        self.positions.extend(0..trunk.len() as u32);
        for branch in branches {
            self.ids.extend_from_slice(branch);
            self.positions.extend((0..branch.len() as u32).map(|i| trunk.len() as u32 + i));
        }
        let branches = branches.iter().map(|branch| branch.len()).collect();
        self.groups.push(Group { start, trunk: trunk.len(), branches });
    }
}

/// Texts for an encoder.
#[derive(Clone, Debug, Default)]
pub struct TextBatch {
    pub(super) packed: Packed,
}

impl TextBatch {
    /// Packs texts, each as its token ids with special tokens.
    ///
    /// # Errors
    /// When a text has no token.
    pub fn new<T: AsRef<[u32]>>(texts: impl IntoIterator<Item = T>) -> Result<Self> {
        let mut packed = Packed::default();
        for text in texts {
            if text.as_ref().is_empty() {
                return Err(Error::Input("a text has no tokens, not even special ones; leave it out".into()));
            }
            packed.push_group(text.as_ref(), &[]);
        }
        Ok(Self { packed })
    }

    /// How many texts.
    pub fn texts(&self) -> usize {
        self.packed.groups.len()
    }

    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.packed.rows()
    }
}

/// Prompts for a decoder, each with the completions whose log-probabilities are wanted.
#[derive(Clone, Debug, Default)]
pub struct CompletionBatch {
    pub(super) packed: Packed,
    /// The row that predicts each target.
    pub(super) rows: Vec<u32>,
    /// The tokens to be predicted: those of all completions, one after the other.
    pub(super) targets: Vec<u32>,
    completions: Vec<Range<usize>>,
}

impl CompletionBatch {
    /// Adds a prompt with its completions. The prompt is computed once for all of them.
    ///
    /// # Errors
    /// When the prompt or a completion is empty: the first token of a completion is predicted from the prompt's last.
    pub fn push(&mut self, prompt: &[u32], completions: &[&[u32]]) -> Result<()> {
        if prompt.is_empty() {
            return Err(Error::Input("a prompt has no tokens; begin it with the model's first token".into()));
        }
        if completions.iter().any(|completion| completion.is_empty()) {
            return Err(Error::Input("a completion has no tokens; end it with the model's end token".into()));
        }
        let mut row = (self.packed.rows() + prompt.len()) as u32;
        let before_completions = row - 1;
        // The last token of a completion is predicted, and predicts nothing: it needs no row.
        let branches: Vec<&[u32]> = completions.iter().map(|c| &c[..c.len() - 1]).collect();
        self.packed.push_group(prompt, &branches);
        for completion in completions {
            let start = self.targets.len();
            self.targets.extend_from_slice(completion);
            self.rows.push(before_completions);
            self.rows.extend(row..row + completion.len() as u32 - 1);
            row += completion.len() as u32 - 1;
            self.completions.push(start..self.targets.len());
        }
        Ok(())
    }

    /// For each completion in the order of pushing, where its tokens are among the targets.
    pub fn completions(&self) -> &[Range<usize>] {
        &self.completions
    }

    /// How many tokens are predicted.
    pub fn targets(&self) -> usize {
        self.targets.len()
    }

    /// How many tokens are computed.
    pub fn tokens(&self) -> usize {
        self.packed.rows()
    }

    /// The longest sequence: a prompt with its longest completion.
    pub fn longest(&self) -> usize {
        let length = |group: &Group| group.trunk + group.branches.iter().max().copied().unwrap_or(0);
        self.packed.groups.iter().map(length).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_share_their_prompt_and_know_who_predicts_what() {
        let mut batch = CompletionBatch::default();
        batch.push(&[1, 2], &[&[10, 11, 12], &[20]]).unwrap();
        batch.push(&[3], &[&[30, 31]]).unwrap();
        assert_eq!(batch.packed.ids, [1, 2, 10, 11, 3, 30]);
        assert_eq!(batch.packed.positions, [0, 1, 2, 3, 0, 1]);
        assert_eq!(batch.targets, [10, 11, 12, 20, 30, 31]);
        assert_eq!(batch.rows, [1, 2, 3, 1, 4, 5]);
        assert_eq!(batch.completions(), [0..3, 3..4, 4..6]);
        assert_eq!(batch.longest(), 4);
        let segments: Vec<Segment> = batch.packed.groups[0].segments().collect();
        let segment = |start, rows, prefix| Segment { start, rows, prefix };
        assert_eq!(segments, [segment(0, 2, 0), segment(2, 2, 2)]);
        assert!(batch.push(&[], &[&[1]]).unwrap_err().to_string().contains("prompt"));
        assert!(batch.push(&[1], &[&[]]).unwrap_err().to_string().contains("completion"));
    }

    #[test]
    fn texts_lie_one_after_the_other() {
        let batch = TextBatch::new([vec![1, 2, 3], vec![4]]).unwrap();
        assert_eq!((batch.texts(), batch.tokens()), (2, 4));
        assert_eq!(batch.packed.positions, [0, 1, 2, 0]);
        assert!(TextBatch::new([Vec::new()]).is_err());
    }
}
