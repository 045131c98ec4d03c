//! The vectors of the test collections: for each a file of f32 numbers, little-endian, one document after the other, and
//! a file with the documents' ids in the same order. An interrupted stage goes on behind the last whole vector, and one
//! that has more collections than before keeps those that it has.

use std::io::Write;
use std::path::{Path, PathBuf};

use expandr_evaluation::Collection;
use expandr_models::{Encoder, TextKind};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Context, encode::encode, encode::normalize};
use crate::folder::{JsonLines, LineFile, replace_file, replace_folder};
use crate::plan::{Work, documents_label};
use crate::progress::Meter;
use crate::recipe::CollectionSettings;
use crate::seed::sha256;
use crate::text::joined;
use crate::{Error, Result, collections};

/// Calls of the encoder at once, so that it has something to batch.
const CALLS_AT_ONCE: usize = 2;

/// What is in the folder of vectors: `vectors.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Contents {
    /// Components of a vector.
    dimension: usize,
    /// By collection, in the order that the recipe had when they were made.
    collections: Vec<CollectionVectors>,
}

/// The vectors of one collection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CollectionVectors {
    /// The collection's name.
    pub(crate) name: String,
    /// Where its documents are, as the recipe says it.
    #[serde(default)]
    label: String,
    /// A hash of documents and encoder, which the vectors follow from.
    #[serde(default)]
    of: String,
    /// What its two files are called, without their endings.
    pub(crate) file: String,
    /// How many documents there are.
    pub(crate) documents: usize,
}

impl Contents {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("vectors.json");
        let text = fs_err::read(&path)?;
        serde_json::from_slice(&text).map_err(|error| {
            Error::Input(format!("{}: not readable ({error}); do stage vectors again", path.display()))
        })
    }

    /// The vectors of one of the recipe's collections.
    ///
    /// # Errors
    /// When there are none.
    pub(crate) fn of(&self, settings: &CollectionSettings) -> Result<&CollectionVectors> {
        let label = documents_label(settings);
        self.collections.iter().find(|found| found.label == label).ok_or_else(|| {
            Error::Input(format!("there are no vectors of {label}; do stage vectors again with --redo"))
        })
    }
}

/// The ids of a collection's documents.
pub(crate) fn ids(folder: &Path, file: &str) -> Result<Vec<String>> {
    JsonLines::open(&folder.join(format!("{file}.ids.jsonl")))?.collect()
}

/// Encodes what is missing. Vectors are L2-normalised, as in the paper's evaluation.
pub(crate) async fn run(context: &Context<'_>) -> Result<Value> {
    let Work::Vectors { encoder } = &context.node.work else {
        return Err(Error::Input("not a stage of vectors".into()));
    };
    let (model, weights) = context.encoder(*encoder);
    let encoder = context.steps.encoder(&model).await?;
    let dimension = encoder.info().dimension;
    let out = context.work().join("vectors");
    fs_err::create_dir_all(&out)?;
    let before = Contents::read(&context.own(0)).ok();
    let mut contents = Contents { dimension, collections: Vec::new() };
    let opened = collections::open(context.recipe)?;
    let mut places: Vec<(PathBuf, usize)> = Vec::new();
    for (collection, settings) in opened.iter().zip(&context.recipe.evaluation.collections) {
        let label = documents_label(settings);
        let of = sha256(format!("{}\0{weights}", context.hash(&label)).as_bytes());
        let name: String =
            collection.name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let file = format!("{name}-{}", &sha256(format!("{label}\0{of}").as_bytes())[..8]);
        let documents = write_ids(collection, &out.join(format!("{file}.ids.jsonl")))?;
        let path = out.join(format!("{file}.f32"));
        let known = |found: &&CollectionVectors| found.of == of && found.documents == documents;
        if let Some(known) = before.iter().flat_map(|before| &before.collections).find(known)
            && !path.exists()
        {
            fs_err::copy(context.own(0).join(format!("{}.f32", known.file)), &path)?;
        }
        let done = whole_vectors(&path, dimension)?;
        if done > documents {
            return Err(Error::Input(format!(
                "{}: more vectors than documents; remove it, and they are computed again",
                path.display()
            )));
        }
        places.push((path, done));
        contents.collections.push(CollectionVectors {
            name: collection.name.clone(),
            label,
            of,
            file,
            documents,
        });
    }
    let total = contents.collections.iter().map(|collection| collection.documents).sum();
    let done = places.iter().map(|(_, done)| done).sum();
    let mut meter = Meter::new(context.observer, context.name, "documents", total, done);
    for (collection, (path, done)) in opened.iter().zip(&places) {
        let texts = collection.documents()?.skip(*done).map(|document| {
            let document = document?;
            Ok(joined(&document.title, &document.text))
        });
        let batch = context.recipe.machine.encode_batch;
        append_vectors(encoder.as_ref(), path, texts, batch, &mut meter).await?;
    }
    let json = serde_json::to_vec_pretty(&contents).map_err(|error| Error::Input(error.to_string()))?;
    replace_file(&out.join("vectors.json"), &json)?;
    replace_folder(&out, &context.own(0))?;
    Ok(json!({ "documents": total, "kept_from_before": done, "encoder": encoder.info().id }))
}

fn write_ids(collection: &Collection, path: &Path) -> Result<usize> {
    let mut file = LineFile::create(path)?;
    let mut count = 0;
    for document in collection.documents()? {
        file.line(&document?.id)?;
        count += 1;
    }
    file.finish()?;
    Ok(count)
}

/// How many vectors a file holds; a last one that a kill has torn is cut off.
pub(crate) fn whole_vectors(path: &Path, dimension: usize) -> Result<usize> {
    if !path.is_file() {
        return Ok(0);
    }
    let file = fs_err::OpenOptions::new().write(true).open(path)?;
    let size = (dimension * size_of::<f32>()) as u64;
    let count = file.metadata()?.len() / size;
    file.set_len(count * size)?;
    Ok(count as usize)
}

/// Appends the L2-normalised vectors of `texts` to a file.
pub(crate) async fn append_vectors(
    encoder: &dyn Encoder,
    path: &Path,
    texts: impl Iterator<Item = Result<String>>,
    batch: usize,
    meter: &mut Meter<'_>,
) -> Result<()> {
    let mut file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
    let mut batches = futures::stream::iter(texts)
        .try_chunks(batch)
        .map_err(|error| error.1)
        .map(|texts| async move { encode(encoder, TextKind::Document, texts?, batch).await })
        .buffered(CALLS_AT_ONCE);
    while let Some(vectors) = batches.next().await {
        let mut vectors = vectors?;
        let mut bytes = Vec::with_capacity(vectors.len() * encoder.info().dimension * size_of::<f32>());
        for vector in &mut vectors {
            normalize(vector);
            bytes.extend(vector.iter().flat_map(|component| component.to_le_bytes()));
        }
        file.write_all(&bytes)?;
        meter.add(vectors.len());
    }
    Ok(file.sync_all()?)
}
