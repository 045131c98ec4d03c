//! What a stage reads from outside of the run.

use std::path::PathBuf;

use super::{EncoderRef, ExpanderRef, Work};
use crate::readers::Format;
use crate::recipe::{CollectionSettings, Recipe};

/// Something that a stage reads from outside of the run, and how it is called in manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Its name in manifests, e.g. `data nq` or `expander`.
    pub label: String,
    /// What it is.
    pub source: Source,
}

/// What an [`External`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file; its content counts.
    File(PathBuf),
    /// A folder of so many files that names and sizes must do.
    Listing(PathBuf),
    /// A collection.
    Collection {
        /// Its folder.
        folder: PathBuf,
        /// Which judgments.
        split: Option<String>,
        /// What of it counts.
        part: CollectionPart,
    },
    /// A setting that says which part of the inputs is read.
    Setting(String),
    /// A language model by name; its weights count.
    Expander(String),
    /// An encoder by name; its weights count.
    Encoder(String),
}

/// What of a collection is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectionPart {
    /// Its documents.
    Documents,
    /// Its queries and judgments.
    Queries,
    /// Both.
    All,
}

impl External {
    /// What tells it from others before anything is read.
    pub(crate) fn name(&self) -> String {
        match &self.source {
            Source::File(path) | Source::Listing(path) => format!("{} {}", self.label, path.display()),
            Source::Collection { folder, split, part } => {
                format!("{} {} {split:?} {part:?}", self.label, folder.display())
            }
            Source::Setting(name) | Source::Expander(name) | Source::Encoder(name) => {
                format!("{} {name}", self.label)
            }
        }
    }
}

pub(super) fn of(work: &Work, recipe: &Recipe) -> Vec<External> {
    match work {
        Work::Pairs => pairs(recipe),
        Work::WarmUp { .. } | Work::WarmExpander { .. } => expander(recipe, ExpanderRef::Base),
        Work::BaseEncoder { .. } => encoder(recipe, EncoderRef::Base),
        Work::Candidates { writer, .. } | Work::Answers { writer, .. } | Work::Expansions { writer, .. } => {
            expander(recipe, *writer)
        }
        Work::Dpo { base, .. } | Work::Merge { base, .. } => expander(recipe, *base),
        Work::Scores { encoder: by, .. } | Work::Negatives { encoder: by, .. } => encoder(recipe, *by),
        Work::Contrastive { base, .. } => encoder(recipe, *base),
        Work::Weight { encoder: by, .. } => encoder(recipe, *by),
        Work::Gate { encoder: by, writer, .. } => {
            encoder(recipe, *by).into_iter().chain(expander(recipe, *writer)).collect()
        }
        Work::Vectors { encoder: by } => encoder(recipe, *by).into_iter().chain(documents(recipe)).collect(),
        Work::TestExpansions { writer } => {
            expander(recipe, *writer).into_iter().chain(queries(recipe)).collect()
        }
        Work::Evaluation { encoder: by, .. } => {
            encoder(recipe, *by).into_iter().chain(queries(recipe)).collect()
        }
        Work::Preferences { .. } | Work::Examples { .. } => Vec::new(),
        Work::Report { .. } => documents(recipe).into_iter().chain(queries(recipe)).collect(),
    }
}

fn expander(recipe: &Recipe, model: ExpanderRef) -> Vec<External> {
    let base = &recipe.expander.model;
    let name = match model {
        ExpanderRef::Base => base,
        ExpanderRef::CandidateWriter => recipe.candidates.model.as_ref().unwrap_or(base),
        ExpanderRef::AnswerWriter => recipe.answers.model.as_ref().unwrap_or(base),
        ExpanderRef::Made(_) => return Vec::new(),
    };
    vec![External { label: "expander".into(), source: Source::Expander(name.clone()) }]
}

fn encoder(recipe: &Recipe, model: EncoderRef) -> Vec<External> {
    let base = &recipe.encoder.model;
    let name = match model {
        EncoderRef::Base => base,
        EncoderRef::Judge => recipe.rewards.encoder.as_ref().unwrap_or(base),
        EncoderRef::Made(_) => return Vec::new(),
    };
    vec![External { label: "encoder".into(), source: Source::Encoder(name.clone()) }]
}

fn documents(recipe: &Recipe) -> Vec<External> {
    let collections = recipe.evaluation.collections.iter();
    collections.map(|settings| collection(recipe, settings, CollectionPart::Documents)).collect()
}

/// Those that are searched for.
fn queries(recipe: &Recipe) -> Vec<External> {
    let collections = recipe.evaluation.collections.iter();
    let mut external: Vec<External> =
        collections.map(|settings| collection(recipe, settings, CollectionPart::Queries)).collect();
    if let Some(limit) = recipe.evaluation.max_queries {
        let drawn = format!("{limit} queries drawn by seed {}", recipe.seed);
        external.push(External { label: "max_queries".into(), source: Source::Setting(drawn) });
    }
    external
}

fn collection(recipe: &Recipe, settings: &CollectionSettings, part: CollectionPart) -> External {
    External {
        label: match part {
            CollectionPart::Documents => documents_label(settings),
            _ => format!("queries {}", with_split(settings)),
        },
        source: Source::Collection {
            folder: recipe.data_path(&settings.path),
            split: settings.split.clone(),
            part,
        },
    }
}

/// How a collection's documents are called among what a stage reads.
pub(crate) fn documents_label(settings: &CollectionSettings) -> String {
    format!("documents {}", with_split(settings))
}

fn with_split(settings: &CollectionSettings) -> String {
    let split = settings.split.as_ref().map_or(String::new(), |split| format!(" {split}"));
    format!("{}{split}", settings.path.display())
}

fn pairs(recipe: &Recipe) -> Vec<External> {
    let mut external = Vec::new();
    for source in &recipe.data.sources {
        let label = |what: &str| format!("data {}{what}", source.name);
        let path = recipe.data_path(&source.path);
        external.push(match source.format {
            Format::Beir => External {
                label: label(""),
                source: Source::Collection {
                    folder: path,
                    split: Some(source.split.clone()),
                    part: CollectionPart::All,
                },
            },
            _ => External { label: label(""), source: Source::File(path) },
        });
        for (what, path) in [(" documents", &source.documents), (" queries", &source.queries)] {
            if let Some(path) = path {
                external.push(External { label: label(what), source: Source::File(recipe.data_path(path)) });
            }
        }
        if let Some(path) = &source.evidence {
            external.push(External {
                label: label(" evidence"),
                source: Source::Listing(recipe.data_path(path)),
            });
        }
    }
    let held_out = recipe.data.held_out.iter().chain(&recipe.evaluation.collections);
    external.extend(held_out.map(|settings| {
        let found = collection(recipe, settings, CollectionPart::Queries);
        External { label: format!("held out {}", found.label), ..found }
    }));
    external
}
