//! What lexical searches see: the committed segments, the documents since, and the length of each document.
//!
//! A document is known by its slot, as in the slab of vectors, so that filters and the sums of scores mean the same
//! documents everywhere. Counts of documents and terms are those of the living documents alone, whatever tantivy still
//! carries of removed ones: a score depends on the documents and on nothing else, not on the history of writes or merges.

use std::collections::BTreeMap;
use std::sync::Arc;

use roaring::RoaringBitmap;
use tantivy::index::{InvertedIndexReader, SegmentId};
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{SegmentReader, TERMINATED, Term};

use super::analysis::Terms;
use super::bm25::{Bm25, Saturation, idf};
use super::recent::Recent;
use crate::error::{Error, Result};
use crate::slab::Slab;
use crate::vector::{Hit, TopHits};

/// The slot of a removed document.
pub(super) const GONE: u32 = u32::MAX;

pub(crate) struct View {
    /// By a number that stays the segment's own as long as it is here.
    segments: BTreeMap<u32, Segment>,
    next_number: u32,
    recent: Recent,
    /// By slot.
    documents: Vec<Place>,
    living: u64,
    length: u64,
}

/// Where a slot's document is, and its length in terms.
#[derive(Clone, Copy)]
struct Place {
    segment: u32,
    document: u32,
    length: u32,
}

/// [`Place::segment`] of documents in [`Recent`], and of free slots.
const RECENT: u32 = u32::MAX;
const NOWHERE: u32 = u32::MAX - 1;

/// A committed segment.
pub(super) struct Segment {
    id: SegmentId,
    /// The slot of each document, [`GONE`] once it was removed.
    slots: Vec<u32>,
    gone: u32,
    text: Field,
    postings: Arc<InvertedIndexReader>,
}

/// A segment with what has to be known of its documents when it is taken over.
pub(super) struct Loaded {
    segment: Segment,
    lengths: Vec<u32>,
}

impl Segment {
    /// Reads the keys and lengths of a segment's documents and finds their slots by `slot_of`; those without one are gone.
    pub(super) fn load(
        reader: &SegmentReader,
        text: Field,
        mut slot_of: impl FnMut(u64) -> Option<u32>,
    ) -> tantivy::Result<Loaded> {
        let keys = reader.fast_fields().u64(super::KEY)?.first_or_default_col(0);
        let lengths = reader.fast_fields().u64(super::LENGTH)?.first_or_default_col(0);
        let documents = reader.max_doc();
        let mut loaded = Loaded {
            segment: Segment {
                id: reader.segment_id(),
                slots: Vec::with_capacity(documents as usize),
                gone: 0,
                text,
                postings: reader.inverted_index(text)?,
            },
            lengths: Vec::with_capacity(documents as usize),
        };
        for document in 0..documents {
            let alive = !reader.is_deleted(document);
            let slot = alive.then(|| slot_of(keys.get_val(document))).flatten().unwrap_or(GONE);
            loaded.segment.gone += u32::from(slot == GONE);
            loaded.segment.slots.push(slot);
            loaded.lengths.push(lengths.get_val(document) as u32);
        }
        Ok(loaded)
    }

    fn term(&self, term: &str) -> Term {
        Term::from_field_text(self.text, term)
    }

    /// How many living documents hold a term.
    fn holding(&self, term: &str) -> tantivy::Result<u64> {
        let Some(info) = self.postings.get_term_info(&self.term(term))? else { return Ok(0) };
        if self.gone == 0 {
            return Ok(u64::from(info.doc_freq));
        }
        let mut holding = 0;
        let mut blocks = self.postings.read_block_postings_from_terminfo(&info, IndexRecordOption::Basic)?;
        while !blocks.docs().is_empty() {
            holding +=
                blocks.docs().iter().filter(|&&document| self.slots[document as usize] != GONE).count();
            blocks.advance();
        }
        Ok(holding as u64)
    }

    /// Calls `visit` with the slot and the occurrences of each living document that holds a term.
    fn visit(&self, term: &str, mut visit: impl FnMut(u32, u32)) -> tantivy::Result<()> {
        let Some(info) = self.postings.get_term_info(&self.term(term))? else { return Ok(()) };
        let mut blocks =
            self.postings.read_block_postings_from_terminfo(&info, IndexRecordOption::WithFreqs)?;
        while !blocks.docs().is_empty() {
            for (&document, &occurrences) in blocks.docs().iter().zip(blocks.freqs()) {
                debug_assert_ne!(document, TERMINATED);
                let slot = self.slots[document as usize];
                if slot != GONE {
                    visit(slot, occurrences);
                }
            }
            blocks.advance();
        }
        Ok(())
    }
}

impl View {
    pub(super) fn new() -> Self {
        Self {
            segments: BTreeMap::new(),
            next_number: 0,
            recent: Recent::default(),
            documents: Vec::new(),
            living: 0,
            length: 0,
        }
    }

    pub(crate) fn insert(&mut self, slot: u32, terms: &Terms) {
        let document = self.recent.insert(slot, terms);
        self.place(slot, Place { segment: RECENT, document, length: terms.length });
    }

    fn place(&mut self, slot: u32, place: Place) {
        let index = slot as usize;
        if self.documents.len() <= index {
            let free = Place { segment: NOWHERE, document: 0, length: 0 };
            self.documents.resize(index + 1, free);
        }
        let before = std::mem::replace(&mut self.documents[index], place);
        if before.segment == NOWHERE {
            self.living += 1;
            self.length += u64::from(place.length);
        }
    }

    pub(crate) fn remove(&mut self, slot: u32) {
        let free = Place { segment: NOWHERE, document: 0, length: 0 };
        let Some(place) = self.documents.get_mut(slot as usize) else { return };
        let place = std::mem::replace(place, free);
        match place.segment {
            NOWHERE => return,
            RECENT => self.recent.remove(place.document),
            number => {
                if let Some(segment) = self.segments.get_mut(&number) {
                    segment.slots[place.document as usize] = GONE;
                    segment.gone += 1;
                }
            }
        }
        self.living -= 1;
        self.length -= u64::from(place.length);
    }

    pub(super) fn holds(&self, slot: u32) -> bool {
        self.documents.get(slot as usize).is_some_and(|place| place.segment != NOWHERE)
    }

    pub(super) fn has_segment(&self, id: SegmentId) -> bool {
        self.segments.values().any(|segment| segment.id == id)
    }

    /// Takes over the segments of a commit after which nothing is recent: keeps those in `kept`, drops the others, adds
    /// the `loaded` ones.
    pub(super) fn adopt(&mut self, kept: &[SegmentId], loaded: Vec<Loaded>) {
        self.segments.retain(|_, segment| kept.contains(&segment.id));
        self.recent = Recent::default();
        for Loaded { segment, lengths } in loaded {
            let number = self.next_number;
            self.next_number += 1;
            for (document, (&slot, &length)) in segment.slots.iter().zip(&lengths).enumerate() {
                if slot != GONE {
                    self.place(slot, Place { segment: number, document: document as u32, length });
                }
            }
            self.segments.insert(number, segment);
        }
    }

    /// Documents that the segments and the recent ones hold together, each counted where it is.
    pub(super) fn accounted(&self) -> u64 {
        let committed: u64 =
            self.segments.values().map(|segment| segment.slots.len() as u64 - u64::from(segment.gone)).sum();
        committed + self.recent.len() as u64
    }

    /// Documents that can be found.
    pub(crate) fn living(&self) -> u64 {
        self.living
    }

    pub(crate) fn recent_documents(&self) -> usize {
        self.recent.len()
    }

    pub(crate) fn recent_bytes(&self) -> usize {
        self.recent.bytes()
    }

    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Memory that it holds, the recent documents' included.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let slots: usize = self.segments.values().map(|segment| segment.slots.capacity()).sum();
        let own = slots * size_of::<u32>() + self.documents.capacity() * size_of::<Place>();
        (own + self.recent.bytes()) as u64
    }

    /// The best `top_k` documents among those that hold a term of the query, best first, equal scores by key.
    ///
    /// Term by term, so that a document's score is a sum in the order of the query, wherever the document lies. `sums` is
    /// scratch space: all zero before and after, if this succeeds.
    pub(crate) fn search(
        &self,
        query: &Terms,
        bm25: Bm25,
        top_k: usize,
        among: Option<&RoaringBitmap>,
        slab: &Slab,
        sums: &mut Vec<f32>,
    ) -> Result<Vec<Hit>> {
        if self.living == 0 {
            return Ok(Vec::new());
        }
        sums.resize(self.documents.len().max(sums.len()), 0.0);
        let saturation = Saturation::new(bm25, self.length as f64 / self.living as f64);
        let mut touched: Vec<u32> = Vec::new();
        for (term, count) in &query.counts {
            let mut holding = self.recent.holding(term);
            for segment in self.segments.values() {
                holding += segment.holding(term).map_err(Error::lexical)?;
            }
            let weight = *count as f32 * idf(holding, self.living);
            let mut add = |slot: u32, occurrences: u32| {
                let sum = &mut sums[slot as usize];
                if *sum == 0.0 {
                    touched.push(slot);
                }
                *sum += weight * saturation.of(occurrences, self.documents[slot as usize].length);
            };
            for &(document, occurrences) in self.recent.postings(term) {
                let slot = self.recent.slots[document as usize];
                if slot != GONE {
                    add(slot, occurrences);
                }
            }
            for segment in self.segments.values() {
                segment.visit(term, &mut add).map_err(Error::lexical)?;
            }
        }
        let mut top = TopHits::new(top_k.min(touched.len()));
        for slot in touched {
            let score = std::mem::take(&mut sums[slot as usize]);
            if top.would_take(score)
                && among.is_none_or(|slots| slots.contains(slot))
                && let Some(key) = slab.key(slot)
            {
                top.push(Hit { key, score });
            }
        }
        Ok(top.into_sorted())
    }
}
