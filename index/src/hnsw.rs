//! usearch's HNSW graph behind a wrapper that makes its sharp edges unreachable.
//!
//! | usearch | here |
//! |---|---|
//! | reserve, load and reset beside searches corrupt the heap | they hold `graph` exclusively; load only happens before sharing |
//! | load forgets the thread count; too many callers fail | capacity **and** threads are reserved, after load too; searches hold a permit, additions come from at most `build_threads` threads of one batch at a time |
//! | NaN, infinite and zero vectors poison answers | validated on the way in, queries too |
//! | `get` into an empty slice, dimension 0, huge k crash | `get` is never called; dimensions and k are clamped |
//! | a panic in a filter aborts | caught and returned as an error |
//! | load takes other dimensions, metrics and a damaged graph | the file is checksummed ([`crate::snapshot`]), then compared field by field before and after load |
//! | save may return an empty file | saved into memory of the announced length and checked; the file is written by us |
//! | a viewed file may change under us | never viewed |
//! | search beside remove may return removed keys; reused nodes keep their old neighbours' links | nothing is removed from the graph: removed keys are tombstones that searches skip, until a rebuild drops them |
//! | key `u64::MAX` is lost by a restore | refused |
//! | additions on several threads at once lose up to one vector in a hundred, and leave others (up to 28 at a time, some in one build of 3,000 vectors in 14) that only a long way leads to: a node can be found on a higher layer before it has links on the lowest, and who lands there is linked to nothing else | after such a batch every vector must find itself without comparing far more others than is usual in its batch; those that don't are linked again, alone |
//! | such a batch can cut off a vector of an earlier one (measured: about one vector in 40,000 is then missed at ef 32, one in 600,000 at any ef; more on busy cores) | not mended: it is found again by exact search, and by the graph after a rebuild |
//! | a search that lands on such a node returns next to nothing | documented in [`VectorIndex::search`]; [`crate::Index`] counts what came and scans exactly when it is short |
//!
//! ef is given per search as usearch's result count (it considers `max(expansion, count)` candidates; the expansion is
//! set to 1), so two searches with different ef never meet in shared state.

use std::borrow::Cow;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use roaring::RoaringTreemap;
use usearch::{IndexOptions, MetricKind, ScalarKind};

use crate::config::{IndexConfig, Scalar};
use crate::error::{Error, Result};
use crate::permits::Permits;
use crate::vector::{self, Hit};
use crate::vector_index::{Allow, Image, VectorIndex};

/// Most candidates that one search considers.
pub const MAX_CANDIDATES: usize = 10_000;
/// Batches smaller than this are linked by the calling thread alone.
const PARALLEL_BATCH: usize = 64;
/// How often vectors that parallel additions lost are linked again; a second round is needed very rarely.
const RELINK_ROUNDS: usize = 3;
/// A vector is lost when a search for it compares more than this many times as many others as the median of its batch does.
/// Of 40,000 random vectors of dimension 128, added by one thread, one in 10,000 is above 14 times the median; those of
/// 3,000 that eight threads left to be missed at ef 32 were at 20 to 125 times.
const LOST_RATIO: usize = 16;
/// Comparisons after which the search for a lost vector gives up, so that it does not walk through the whole graph.
const MOST_COMPARISONS: usize = 20_000;
/// Components of a unit vector in i8.
const I8_UNIT: f64 = 127.0;
const RESERVED_KEY: u64 = u64::MAX;

/// Approximate search by inner product.
pub struct Hnsw {
    config: IndexConfig,
    /// Shared: search and add. Exclusive: reserve.
    graph: RwLock<usearch::Index>,
    labels: RwLock<Labels>,
    /// One batch of additions at a time; held while serialising.
    additions: Mutex<()>,
    permits: Permits,
    memory_bytes: AtomicU64,
}

#[derive(Default)]
struct Labels {
    /// Keys in the graph.
    keys: RoaringTreemap,
    /// Those of them that must not be found.
    tombstones: RoaringTreemap,
    /// A power of two that brings the first vector's length to about 1: distances are kept as `1 - product`, which would
    /// round tiny products away. 0 = no vector yet.
    scale: f32,
}

impl Hnsw {
    /// An empty graph.
    ///
    /// # Errors
    /// A setting out of its range.
    pub fn new(config: &IndexConfig) -> Result<Self> {
        config.validate()?;
        let graph = usearch::Index::new(&IndexOptions {
            dimensions: config.dimension,
            metric: MetricKind::IP,
            quantization: scalar_kind(config.scalar),
            connectivity: config.connectivity,
            expansion_add: config.ef_construction,
            expansion_search: 1,
            multi: false,
        })
        .map_err(graph_error)?;
        let hnsw = Self {
            config: config.clone(),
            graph: RwLock::new(graph),
            labels: RwLock::default(),
            additions: Mutex::new(()),
            permits: Permits::new(config.search_threads),
            memory_bytes: AtomicU64::new(0),
        };
        hnsw.reserve(1024)?;
        Ok(hnsw)
    }

    /// Restores a graph from an image whose integrity the caller has proved (a damaged one would crash usearch).
    ///
    /// # Errors
    /// The image is of another dimension, metric, scalar or connectivity, or does not hold exactly its keys.
    pub fn restore(config: &IndexConfig, image: &Image) -> Result<Self> {
        let hnsw = Self::new(config)?;
        if image.keys.is_empty() {
            return Ok(hnsw);
        }
        let head = usearch::Index::metadata_from_buffer(&image.payload).map_err(graph_error)?;
        let expected =
            (config.dimension as u64, MetricKind::IP, scalar_kind(config.scalar), image.keys.len());
        if (head.dimensions, head.metric, head.quantization, head.count_present) != expected || head.multi {
            return Err(Error::Graph("the saved graph has another dimension, metric, scalar or size".into()));
        }
        {
            let graph = hnsw.graph.write();
            graph.load_from_buffer(&image.payload).map_err(graph_error)?;
            let loaded =
                (graph.dimensions() as u64, graph.metric_kind(), graph.scalar_kind(), graph.size() as u64);
            if loaded != expected || graph.connectivity() != config.connectivity {
                return Err(Error::Graph("the loaded graph differs from what its header announced".into()));
            }
            if let Some(key) = image.keys.iter().find(|&key| !graph.contains(key)) {
                return Err(Error::Graph(format!("the loaded graph lacks key {key}")));
            }
            graph.change_expansion_add(config.ef_construction);
            graph.change_expansion_search(1);
        }
        hnsw.reserve(image.keys.len() as usize)?;
        *hnsw.labels.write() =
            Labels { keys: image.keys.clone(), tombstones: RoaringTreemap::new(), scale: image.scale };
        Ok(hnsw)
    }

    /// Keys in the graph, removed ones too.
    pub fn keys(&self) -> RoaringTreemap {
        self.labels.read().keys.clone()
    }

    /// How many removed keys the graph still carries.
    pub fn tombstones(&self) -> usize {
        self.labels.read().tombstones.len() as usize
    }

    /// Memory held by the graph, as of the last addition, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// What computes the distances: the instruction set that was found.
    pub fn hardware(&self) -> String {
        self.graph.read().hardware_acceleration()
    }

    /// Whether [`VectorIndex::add`] would take this vector; `input` names it in the error.
    pub(crate) fn check_vector(&self, vector: &[f32], input: impl FnOnce() -> String) -> Result<()> {
        let norms =
            if self.config.scalar == Scalar::F16 { &vector::F16_NORM_RANGE } else { &vector::NORM_RANGE };
        vector::validate_within(vector, self.config.dimension, norms, input)
    }

    /// Makes room for `capacity` vectors and for every thread that may call.
    fn reserve(&self, capacity: usize) -> Result<()> {
        let graph = self.graph.write();
        let threads = self.config.search_threads + self.config.build_threads;
        graph.reserve_capacity_and_threads(capacity, threads).map_err(graph_error)?;
        self.memory_bytes.store(graph.memory_usage() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Grows by half, so that the exclusive lock is rare.
    fn make_room(&self, additional: usize) -> Result<()> {
        let (needed, capacity) = {
            let graph = self.graph.read();
            (graph.size() + additional, graph.capacity())
        };
        if needed <= capacity { Ok(()) } else { self.reserve(needed.max(capacity + capacity / 2)) }
    }

    fn check_new(&self, vectors: &[(u64, &[f32])]) -> Result<()> {
        let labels = self.labels.read();
        let mut batch = RoaringTreemap::new();
        for (key, vector) in vectors {
            self.check_vector(vector, || format!("vector {key}"))?;
            if *key == RESERVED_KEY || labels.keys.contains(*key) || !batch.insert(*key) {
                return Err(Error::Graph(format!(
                    "key {key} can't be added: it is reserved or was used before"
                )));
            }
        }
        Ok(())
    }

    fn scale_for(&self, first: &[f32]) -> f32 {
        let mut labels = self.labels.write();
        if self.config.scalar == Scalar::F16 {
            labels.scale = 1.0;
        } else if labels.scale == 0.0 {
            labels.scale = (-vector::norm(first).log2().round()).exp2() as f32;
        }
        labels.scale
    }

    /// Links the vectors, on several threads when there are many. The first error wins.
    fn link(&self, vectors: &[(u64, &[f32])], scale: f32) -> Result<()> {
        let graph = self.graph.read();
        let add = |key: u64, vector: &[f32]| graph.add(key, &scaled(vector, scale)).map_err(graph_error);
        if vectors.len() < PARALLEL_BATCH || self.config.build_threads == 1 {
            return vectors.iter().try_for_each(|(key, vector)| add(*key, vector));
        }
        self.on_threads(vectors, add)?;
        for round in 0..RELINK_ROUNDS {
            let found_after = Mutex::new(Vec::with_capacity(vectors.len()));
            self.on_threads(vectors, |key, vector| {
                let comparisons = comparisons_until_found(&graph, key, &scaled(vector, scale))?;
                found_after.lock().push((comparisons, key, vector));
                Ok(())
            })?;
            let mut lost = found_after.into_inner();
            let limit = if round == 0 {
                let middle = lost.len() / 2;
                let median = lost.select_nth_unstable_by_key(middle, |&(comparisons, ..)| comparisons).1.0;
                median.saturating_mul(LOST_RATIO).min(MOST_COMPARISONS)
            } else {
                // What is merely hard to find is not made easy by linking it once more.
                MOST_COMPARISONS
            };
            lost.retain(|&(comparisons, ..)| comparisons > limit);
            if lost.is_empty() {
                return Ok(());
            }
            tracing::debug!(
                lost = lost.len(),
                of = vectors.len(),
                "linking vectors again that additions lost"
            );
            for (_, key, vector) in lost {
                graph.remove(key).map_err(graph_error)?;
                add(key, vector)?;
            }
        }
        Ok(())
    }

    /// Calls `work` for each vector, on `build_threads` threads.
    fn on_threads<'v>(
        &self,
        vectors: &[(u64, &'v [f32])],
        work: impl Fn(u64, &'v [f32]) -> Result<()> + Sync,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let run = || {
            while let Some((key, vector)) = vectors.get(next.fetch_add(1, Ordering::Relaxed)) {
                work(*key, vector)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.config.build_threads).map(|_| scope.spawn(run)).collect();
            let panicked = |_| Err(Error::Graph("a thread that adds vectors panicked".into()));
            let outcomes: Vec<Result<()>> =
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect();
            outcomes.into_iter().collect()
        })
    }
}

impl VectorIndex for Hnsw {
    fn add(&self, vectors: &[(u64, &[f32])]) -> Result<()> {
        let Some((_, first)) = vectors.first() else { return Ok(()) };
        let _one_batch = self.additions.lock();
        self.check_new(vectors)?;
        self.make_room(vectors.len())?;
        let outcome = self.link(vectors, self.scale_for(first));
        {
            let graph = self.graph.read();
            let mut labels = self.labels.write();
            for (key, _) in vectors {
                // After a failure, what did get in is buried: a batch is added whole or not at all.
                if outcome.is_ok() || graph.contains(*key) {
                    labels.keys.insert(*key);
                }
                if outcome.is_err() && labels.keys.contains(*key) {
                    labels.tombstones.insert(*key);
                }
            }
            self.memory_bytes.store(graph.memory_usage() as u64, Ordering::Relaxed);
        }
        outcome
    }

    fn remove(&self, keys: &[u64]) -> usize {
        let mut labels = self.labels.write();
        keys.iter().filter(|&&key| labels.keys.contains(key) && labels.tombstones.insert(key)).count()
    }

    fn search(&self, query: &[f32], top_k: usize, ef: usize, allow: Option<Allow<'_>>) -> Result<Vec<Hit>> {
        vector::validate(query, self.config.dimension, || "query vector".into())?;
        let length = vector::norm(query);
        let unit: Vec<f32> = query.iter().map(|&value| (f64::from(value) / length) as f32).collect();

        let _permit = self.permits.acquire();
        let graph = self.graph.read();
        let labels = self.labels.read();
        let candidates = top_k.max(ef).min(MAX_CANDIDATES).min(graph.size());
        if candidates == 0 || top_k == 0 {
            return Ok(Vec::new());
        }
        let panicked = AtomicBool::new(false);
        let matches = match allow {
            None if labels.tombstones.is_empty() => graph.search(&unit, candidates),
            None => graph.filtered_search(&unit, candidates, |key| !labels.tombstones.contains(key)),
            Some(allow) => graph.filtered_search(&unit, candidates, |key| {
                let allowed = catch_unwind(AssertUnwindSafe(|| allow(key))).unwrap_or_else(|_| {
                    panicked.store(true, Ordering::Relaxed);
                    false
                });
                allowed && !labels.tombstones.contains(key)
            }),
        }
        .map_err(graph_error)?;
        if panicked.into_inner() {
            return Err(Error::Graph("the filter panicked".into()));
        }
        let mut unscale = length / f64::from(labels.scale);
        if self.config.scalar == Scalar::I8 {
            unscale /= I8_UNIT * I8_UNIT;
        }
        let mut hits: Vec<Hit> = matches
            .keys
            .into_iter()
            .zip(matches.distances)
            .filter(|(key, distance)| !labels.tombstones.contains(*key) && distance.is_finite())
            .map(|(key, distance)| Hit { key, score: ((1.0 - f64::from(distance)) * unscale) as f32 })
            .collect();
        hits.sort_by(Hit::rank);
        hits.truncate(top_k);
        Ok(hits)
    }

    fn snapshot(&self) -> Result<Image> {
        let _no_additions = self.additions.lock();
        let graph = self.graph.read();
        // Only additions change these two. A removal wants the lock, and must not wait for the copy, nor searches behind it.
        let mut image = {
            let labels = self.labels.read();
            Image { keys: labels.keys.clone(), scale: labels.scale, payload: Vec::new() }
        };
        if image.keys.is_empty() {
            return Ok(image);
        }
        image.payload = vec![0; graph.serialized_length()];
        graph.save_to_buffer(&mut image.payload).map_err(graph_error)?;
        let head = usearch::Index::metadata_from_buffer(&image.payload).map_err(graph_error)?;
        if head.count_present != image.keys.len() {
            return Err(Error::Graph("the graph was not saved whole".into()));
        }
        Ok(image)
    }

    fn len(&self) -> usize {
        let labels = self.labels.read();
        (labels.keys.len() - labels.tombstones.len()) as usize
    }
}

/// How many vectors, the last of them itself, a search for a vector of the graph meets; `usize::MAX` when it gives up or no
/// way leads there.
fn comparisons_until_found(graph: &usearch::Index, key: u64, vector: &[f32]) -> Result<usize> {
    let comparisons = Cell::new(0);
    let stop = |other: u64| {
        comparisons.set(comparisons.get() + 1);
        other == key || comparisons.get() > MOST_COMPARISONS
    };
    let found = graph.filtered_search(vector, 1, stop).map_err(graph_error)?;
    Ok(if found.keys.first() == Some(&key) { comparisons.get() } else { usize::MAX })
}

fn scaled(vector: &[f32], scale: f32) -> Cow<'_, [f32]> {
    if scale == 1.0 { vector.into() } else { vector.iter().map(|value| value * scale).collect() }
}

fn scalar_kind(scalar: Scalar) -> ScalarKind {
    match scalar {
        Scalar::Bf16 => ScalarKind::BF16,
        Scalar::F32 => ScalarKind::F32,
        Scalar::F16 => ScalarKind::F16,
        Scalar::I8 => ScalarKind::I8,
    }
}

fn graph_error(error: impl std::fmt::Display) -> Error {
    Error::Graph(error.to_string())
}
