//! Documents that tantivy has not committed yet, inverted in memory, so that a write can be found as soon as it is
//! acknowledged and no search ever waits for a commit.

use std::collections::HashMap;

use super::analysis::Terms;
use super::view::GONE;

/// Rough cost of a term that is new here, beside its own bytes: two heap blocks and a place in the table.
const TERM_BYTES: usize = 96;
/// Rough cost of a posting, with the slack of a growing list.
const POSTING_BYTES: usize = 12;

#[derive(Default)]
pub(super) struct Recent {
    postings: HashMap<Box<str>, Vec<(u32, u32)>>,
    /// The slot of each document here, [`GONE`] once it was removed.
    pub(super) slots: Vec<u32>,
    pub(super) gone: u32,
    bytes: usize,
}

impl Recent {
    /// Adds a document and returns its number here.
    pub(super) fn insert(&mut self, slot: u32, terms: &Terms) -> u32 {
        let document = self.slots.len() as u32;
        self.slots.push(slot);
        self.bytes += size_of::<u32>();
        for (term, count) in &terms.counts {
            // The copy on its way to tantivy counts too: many large documents of few words must not pile up there.
            self.bytes += POSTING_BYTES + (term.len() + 1) * *count as usize;
            match self.postings.get_mut(term) {
                Some(list) => list.push((document, *count)),
                None => {
                    self.bytes += TERM_BYTES + term.len();
                    self.postings.insert(term.clone(), vec![(document, *count)]);
                }
            }
        }
        document
    }

    pub(super) fn remove(&mut self, document: u32) {
        self.slots[document as usize] = GONE;
        self.gone += 1;
    }

    /// (document, occurrences) of a term.
    pub(super) fn postings(&self, term: &str) -> &[(u32, u32)] {
        self.postings.get(term).map_or(&[], Vec::as_slice)
    }

    /// How many living documents hold a term.
    pub(super) fn holding(&self, term: &str) -> u64 {
        let postings = self.postings(term);
        if self.gone == 0 {
            return postings.len() as u64;
        }
        postings.iter().filter(|(document, _)| self.slots[*document as usize] != GONE).count() as u64
    }

    /// Living documents.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.gone as usize
    }

    /// About what it holds in memory, with the copies of its documents that tantivy may still have to read.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
